"""Long use and rough treatment: memory, threads, interrupts, time limits, exceptions, copies.

Whatever happens in a call, the next one must answer as if it had not happened, to the last bit.
``bench/training_load.py`` is the long version of what is said here about memory.
"""

from __future__ import annotations

import copy
import gc
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import cvxpy as cp
import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

import mlxcone
from cvxpylayers_mlx import CvxpyLayer
from mlxcone import Status
from mlxcone.testing import manufacture, verify_solution

PROFILE = settings()
THREADS = 8
BATCH, N, M = 3, 4, 6
CONES = {"l": 3, "q": [3]}
EVERY_CONE = {
    "z": 1,
    "l": 2,
    "bl": [-1.0, -2.0],
    "bu": [1.0, 3.0],
    "q": [3],
    "s": [2, 3],
    "ep": 1,
    "ed": 1,
    "p": [0.3, -0.6],
    "pnd": [[0.2, 0.5, 0.3]],
}

Call = Callable[[], Any]


def single(array: Any) -> mx.array:
    return mx.array(np.asarray(array), dtype=mx.float32)


def numbers(tree: Any) -> list[np.ndarray]:
    mx.eval(tree)
    return [np.array(leaf) for _, leaf in tree_flatten(tree)]


def same(one: Any, two: Any) -> bool:
    """Equal to the last bit; NaN equals NaN."""
    pairs = list(zip(numbers(one), numbers(two), strict=True))
    return bool(pairs) and all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


RNG = np.random.default_rng(0)
INSTANCE = manufacture.feasible(RNG, N, CONES)
P, A, B = single(INSTANCE.P), single(INSTANCE.A), single(INSTANCE.b)
Q = single(INSTANCE.q + 0.1 * RNG.normal(size=(BATCH, N)))
Q[0] = single(INSTANCE.q)
A_VALUES, B_VALUE = single(RNG.normal(size=(BATCH, 5, 3))), single(RNG.normal(size=5))
mx.eval(P, A, B, Q, A_VALUES, B_VALUE)


def make_layer(**options: Any) -> CvxpyLayer:
    """Nonnegative least squares."""
    x, a, b = cp.Variable(3), cp.Parameter((5, 3)), cp.Parameter(5)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(a @ x - b)), [x >= 0])
    return CvxpyLayer(problem, [a, b], [x], solver_args=options)


def layer_step(layer: CvxpyLayer) -> Any:
    """Forward and backward."""
    loss = mx.value_and_grad(lambda a, b: mx.sum(layer(a, b)[0] ** 2), argnums=(0, 1))
    return numbers(loss(A_VALUES, B_VALUE))


def solver_step(solver: mlxcone.Solver, q: mx.array = Q) -> Any:
    return numbers(mx.value_and_grad(lambda q: mx.sum(solver.solve(q, B).x ** 2))(q))


@pytest.fixture(scope="module")
def layer() -> CvxpyLayer:
    return make_layer()


@pytest.fixture(scope="module")
def layer_answer() -> Any:
    return layer_step(make_layer())


@pytest.fixture(scope="module")
def solver_answer() -> Any:
    return solver_step(mlxcone.Solver(P, A, CONES))


def test_the_answer_that_all_else_is_compared_with() -> None:
    found = mlxcone.Solver(P, A, CONES).solve(Q, B)
    q = np.array(Q[0], dtype=np.float64)
    data = (np.array(v, dtype=np.float64) for v in (P, q, A, B))
    point = (np.array(v[0], dtype=np.float64) for v in found[:3])
    data = list(data)
    verdict = verify_solution(data[0], data[1], data[2], data[3], CONES, *point)
    assert verdict.worst <= 1e-5


# --- memory ---------------------------------------------------------------------------------------


def train_solve() -> Callable[[int], Any]:
    def loss(q: mx.array, k: int) -> mx.array:
        return mx.sum(mlxcone.solve(P, q, A, B, CONES, eps=1e-9 + 1e-12 * k).x ** 2)

    return lambda k: mx.value_and_grad(loss)(Q, k)


def train_shapes() -> Callable[[int], Any]:
    layer = make_layer(warm_start=True)

    def loss(a: mx.array, k: int) -> mx.array:
        (x,) = layer(a[: 1 + k % BATCH], B_VALUE)
        more = mlxcone.solve(P, Q[: 1 + k % 2], A[: 3 + k % 3], B[: 3 + k % 3], {"l": 3 + k % 3})
        return mx.sum(x**2) + mx.sum(more.x**2)

    return lambda k: mx.value_and_grad(loss)(A_VALUES, k)


def train_failures() -> Callable[[int], Any]:
    rows, q = single([[1.0], [-1.0]]), mx.zeros(1)
    bounds = single([[1.0, 1.0], [-1.0, -1.0], [np.nan, 1.0]])

    def loss(b: mx.array, k: int) -> mx.array:
        how = ("nan", "return", "raise")[k % 3]
        found = mlxcone.solve(None, q, rows, b, {"l": 2}, on_failure=how)
        return mx.sum(mx.where(found.info.status[:, None] > 0, found.x, 0.0))

    def step(k: int) -> Any:
        try:
            return mx.value_and_grad(loss)(bounds, k)
        except mlxcone.SolverError:
            assert k % 3 == 2
            return mx.zeros(1)

    return step


def train_throw_away() -> Callable[[int], Any]:
    def loss(q: mx.array) -> mx.array:
        solver = mlxcone.Solver(P, A, CONES)
        before = solver.solve(q, B).x
        solver.update(P=2.0 * P)
        (x,) = make_layer()(A_VALUES * q[0, 0], B_VALUE)
        return mx.sum(before**2) + mx.sum(solver.solve(q, B).x ** 2) + mx.sum(x**2)

    return lambda k: mx.value_and_grad(loss)(Q)


def train_vmap() -> Callable[[int], Any]:
    layer = make_layer()

    def loss(a: mx.array) -> mx.array:
        return mx.sum(mx.vmap(lambda each: layer(each, B_VALUE)[0])(a) ** 2)

    return lambda k: mx.value_and_grad(loss)(A_VALUES)


KINDS = {
    "solve": train_solve,
    "shapes": train_shapes,
    "failures": train_failures,
    "throw away": train_throw_away,
    "vmap": train_vmap,
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_steps_leave_no_array_behind(kind: str) -> None:
    """MLX's arrays in use after 6 steps and after 12, counted in bytes."""
    step, optimizer = KINDS[kind](), optimizers.Adam(1e-3)
    weights = {"w": mx.ones(8)}
    sizes = []
    for k in range(12):
        value: Any = step(k)
        weights = optimizer.apply_gradients({"w": mx.ones(8) * numbers(value)[0].sum()}, weights)
        mx.eval(weights, optimizer.state)
        if (k + 1) % 6 == 0:
            del value
            gc.collect()
            sizes.append(mx.get_active_memory())
    assert sizes[0] == sizes[1], f"bytes in use: {sizes}"


def test_layers_and_solvers_that_were_used_can_go() -> None:
    def use() -> list[Any]:
        layer, solver = make_layer(warm_start=True), mlxcone.Solver(P, A, CONES)
        layer_step(layer), solver_step(solver)
        mx.eval(mx.vmap(lambda each: layer(each, B_VALUE)[0])(A_VALUES))
        mx.eval(mx.vmap(lambda q: solver.solve(q, B).x)(Q))
        parts = layer, layer._canonical, layer._canonical.q.linear, solver
        return [weakref.ref(part) for part in parts]

    left = use()
    gc.collect()
    assert [reference() for reference in left] == [None] * len(left)


# --- threads --------------------------------------------------------------------------------------


def in_threads(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """What ``work(thread)`` returns in threads that begin together."""
    begin = threading.Barrier(count)

    def run(thread: int) -> Any:
        begin.wait()
        return work(thread)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_threads_share_a_layer(layer: CvxpyLayer, layer_answer: Any) -> None:
    for answers in in_threads(lambda _: [layer_step(layer) for _ in range(2)]):
        assert all(same(answer, layer_answer) for answer in answers)


def test_threads_with_layers_of_their_own(layer_answer: Any) -> None:
    for answer in in_threads(lambda _: layer_step(make_layer())):
        assert same(answer, layer_answer)


def test_threads_share_a_layer_that_starts_warm(layer_answer: Any) -> None:
    """Where each starts depends on the others, and only the last digits on where it starts."""
    warm = make_layer(warm_start=True)

    def work(thread: int) -> list[Any]:
        # Batches of two sizes, and vmap, whose arrays have no numbers to remember.
        numbers(mx.vmap(lambda each: warm(each, B_VALUE)[0])(A_VALUES))
        numbers(warm(A_VALUES[: 1 + thread % 2], B_VALUE))
        return layer_step(warm)

    for answer in in_threads(work):
        for found, wanted in zip(answer, layer_answer, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6)


def test_threads_share_a_solver(solver_answer: Any) -> None:
    """Set up by whichever of them is first."""
    solver = mlxcone.Solver(P, A, CONES)
    for answer in in_threads(lambda _: solver_step(solver)):
        assert same(answer, solver_answer)


def test_threads_solve_while_another_updates(solver_answer: Any) -> None:
    """Every answer belongs to one of the two matrices, never to one and the factor of the other."""
    solver, other = mlxcone.Solver(P, A, CONES), 2.0 * P
    mx.eval(other)
    both = [solver_answer, solver_step(mlxcone.Solver(other, A, CONES))]
    assert not same(*both)
    done = threading.Event()

    def work(thread: int) -> list[Any]:
        if thread:
            try:
                return [solver_step(solver) for _ in range(4)]
            finally:
                done.set()
        turn = 0
        while not done.is_set():
            turn += 1
            solver.update(P=other if turn % 2 else P)
            time.sleep(1e-3)
        return []

    for answers in in_threads(work, 4):
        assert all(any(same(answer, each) for each in both) for answer in answers)
    solver.update(P=P)
    assert same(solver_step(solver), solver_answer)


def in_another_thread(call: Call) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_answers_of_one_thread_are_read_in_another(layer: CvxpyLayer) -> None:
    """MLX evaluates what is lazy in the thread that made it, and nowhere else."""
    calls: list[Call] = [
        lambda: layer.solve(A_VALUES, B_VALUE),
        lambda: layer(A_VALUES[0], B_VALUE),
        lambda: mlxcone.solve(P, Q, A, B, CONES),
        lambda: mlxcone.solve(P, Q, A, B, CONES, fixed_iters=20),
        lambda: mlxcone.Solver(P, A, CONES).solve(Q, B),
    ]
    for call in calls:
        assert same(in_another_thread(call), call())


def test_what_one_thread_made_another_uses_and_a_third_copies() -> None:
    def build() -> tuple[CvxpyLayer, mlxcone.Solver]:
        # Whole numbers become floats, which is lazy.
        return make_layer(), mlxcone.Solver(mx.eye(N, dtype=mx.int32), A + 0.0, CONES)

    layer, solver = in_another_thread(build)
    wanted = layer_step(layer), solver_step(solver)
    assert same(in_another_thread(lambda: (layer_step(layer), solver_step(solver))), wanted)
    copies = in_another_thread(lambda: copy.deepcopy((layer, solver)))
    assert same((layer_step(copies[0]), solver_step(copies[1])), wanted)


def test_a_setup_with_every_cone_crosses_threads() -> None:
    instance = manufacture.feasible(np.random.default_rng(3), 10, EVERY_CONE)
    data = [mx.array(v, dtype=mx.float64) for v in (instance.P, instance.A)]
    vectors = [mx.array(v, dtype=mx.float64) for v in (instance.q, instance.b)]
    mx.eval(data, vectors)
    effort = {"fixed_iters": 4, "newton_iters": 1}
    solver = mlxcone.Solver(*data, EVERY_CONE, **effort)
    first = in_another_thread(lambda: numbers(solver.solve(*vectors)))
    assert same(solver.solve(*vectors), first)
    assert same(mlxcone.Solver(*data, EVERY_CONE, **effort).solve(*vectors), first)


def test_a_transform_in_one_thread_is_none_in_another(solver_answer: Any) -> None:
    """While one thread is inside of mx.vmap or mx.grad, another evaluates what it likes."""
    solver = mlxcone.Solver(P, A, CONES)
    found = []

    def outer(q: mx.array) -> mx.array:
        found.append(in_another_thread(lambda: solver_step(solver)))
        return mx.sum(solver.solve(q, B).x)

    mx.eval(mx.vmap(outer)(Q), mx.grad(lambda q: outer(q))(Q))
    assert len(found) == 2
    assert all(same(answer, solver_answer) for answer in found)


# --- interrupts -----------------------------------------------------------------------------------


@contextmanager
def interrupt_at(line: int, counted: list[int]) -> Iterator[None]:
    """Raise KeyboardInterrupt before that executed line of our modules; count the lines."""
    seen = 0

    def local(frame: Any, event: str, argument: Any) -> Any:
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == line:
                raise KeyboardInterrupt
        return local

    def enter(frame: Any, event: str, argument: Any) -> Any:
        name = frame.f_globals.get("__name__", "")
        return local if name.startswith(("mlxcone.", "cvxpylayers_mlx.")) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)
        counted.append(seen)


def where_mlx_runs() -> Any:
    return mx.default_device(), mx.default_stream(mx.cpu)  # type: ignore[arg-type]


@settings(max_examples=max(1, PROFILE.max_examples // 5))
@given(part=st.floats(0.0, 1.0), which=st.sampled_from(["layer", "first", "solver", "vmap"]))
def test_interrupt_at_any_line(
    part: float, which: str, layer: CvxpyLayer, layer_answer: Any, solver_answer: Any
) -> None:
    solver = mlxcone.Solver(P, A, CONES)
    if which == "solver":
        solver_step(solver)  # not the first time: it is set up

    def call() -> Any:
        if which == "layer":
            return layer_step(layer)
        if which == "vmap":
            return numbers(mx.vmap(lambda q: solver.solve(q, B).x)(Q))
        return solver_step(solver)

    place, lines = where_mlx_runs(), LINES.setdefault(which, [])
    if not lines:
        with interrupt_at(0, lines):
            call()
        if which == "first":
            solver = mlxcone.Solver(P, A, CONES)
    with pytest.raises(KeyboardInterrupt), interrupt_at(1 + int(part * (lines[0] // 2)), lines):
        call()
    assert where_mlx_runs() == place
    assert same(layer_step(layer), layer_answer)
    assert same(solver_step(solver), solver_answer)


LINES: dict[str, list[int]] = {}


def test_interrupted_update_changes_all_or_nothing() -> None:
    """At every line of it."""
    other = 2.0 * P
    solver, lines = mlxcone.Solver(P, A, CONES), []
    before = numbers(solver.solve(Q, B).x)
    after = numbers(mlxcone.Solver(other, A, CONES).solve(Q, B).x)
    twin = copy.copy(solver)
    with interrupt_at(0, lines):
        twin.update(P=other)
    assert lines[0] > 3
    for line in range(1, lines[0] + 1):
        solver.update(P=P)
        with pytest.raises(KeyboardInterrupt), interrupt_at(line, lines):
            solver.update(P=other)
        changed = bool(mx.array_equal(solver.P, other).item())  # type: ignore[arg-type]
        assert same(solver.solve(Q, B).x, after if changed else before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signal.setitimer")
def test_real_signals(layer: CvxpyLayer, layer_answer: Any) -> None:
    """As Ctrl-C comes: from outside, in the middle of what it likes."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread alone")
    begun = time.perf_counter()
    layer_step(layer)
    usual = time.perf_counter() - begun
    place, hits = where_mlx_runs(), 0
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for k in range(12):
            try:
                signal.setitimer(signal.ITIMER_REAL, usual * (k + 1) / 16)
                layer_step(layer)
                signal.setitimer(signal.ITIMER_REAL, 0.0)
            except KeyboardInterrupt:
                hits += 1
            assert where_mlx_runs() == place
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, old)
    assert hits > 0
    assert same(layer_step(layer), layer_answer)


# --- the time limit -------------------------------------------------------------------------------


@contextmanager
def clock(looks: float) -> Iterator[list[int]]:
    """``time.monotonic`` stands still for so many looks at it, then it is far past any limit."""
    count = [0]

    def monotonic() -> float:
        count[0] += 1
        return 0.0 if count[0] <= looks else 1e9

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", monotonic)
        yield count


# Looks that only note when a solve begins: for its own limit, the smoothing's, and for
# when to compile.
BEGINNING = 3


def hard_batch() -> tuple[list[Any], tuple[Any, ...]]:
    """An easy program, two linear programs that take longer, and one that is infeasible."""
    rng, cones = np.random.default_rng(5), {"l": 16}
    kinds = [
        manufacture.feasible(rng, 8, cones),
        manufacture.feasible(rng, 8, cones, quadratic_rank=0),
        manufacture.feasible(rng, 8, cones, quadratic_rank=0),
        manufacture.infeasible(rng, 8, cones),
    ]
    return kinds, tuple(np.stack([getattr(i, name) for i in kinds]) for name in "PqAb")


@settings(max_examples=max(1, PROFILE.max_examples // 5))
@given(part=st.floats(0.0, 1.0))
def test_time_limit_at_any_moment(part: float) -> None:
    """A lane is solved, and then it is right, or it was interrupted; nothing else."""
    instances, data = hard_batch()
    with clock(np.inf) as count:
        whole = mlxcone.solve(*data, {"l": 16}, time_limit_secs=5.0)
    assert [Status(k).name for k in whole.info.status.tolist()] == ["SOLVED"] * 3 + ["INFEASIBLE"]  # type: ignore[union-attr]
    with clock(BEGINNING + int(part * count[0])):
        cut = mlxcone.solve(*data, {"l": 16}, time_limit_secs=5.0)
    codes: Any = cut.info.status.tolist()
    for lane, (instance, code) in enumerate(zip(instances, codes, strict=True)):
        if code == Status.INTERRUPTED:
            continue
        right = (Status.SOLVED, Status.SOLVED_INACCURATE) if lane < 3 else (Status.INFEASIBLE,)
        assert code in right
        tolerance = 1e-5 if code == Status.SOLVED_INACCURATE else 1e-7
        instance.check(*(np.array(v[lane]) for v in cut[:3]), tolerance=tolerance)


def test_time_limit_tells_lanes_apart() -> None:
    """What was solved before it stays solved, also in a layer."""
    instances, data = hard_batch()
    with clock(BEGINNING + 2):
        cut = mlxcone.solve(*data, {"l": 16}, time_limit_secs=5.0)
    codes: Any = cut.info.status.tolist()
    assert codes[0] == Status.SOLVED
    assert Status.INTERRUPTED in codes
    instances[0].check(*(np.array(v[0]) for v in cut[:3]), tolerance=1e-7)


def test_time_limit_in_a_layer(layer: CvxpyLayer) -> None:
    options = {"time_limit_secs": 5.0, "handover": 0.0, "refine": False}
    with clock(BEGINNING):
        found = layer.solve(A_VALUES, B_VALUE, solver_args={**options, "on_failure": "return"})
    assert found.info.status.tolist() == [Status.INTERRUPTED] * BATCH
    with clock(BEGINNING), pytest.raises(mlxcone.SolverError, match="INTERRUPTED"):
        layer(A_VALUES, B_VALUE, solver_args=options)


def test_time_limit_holds_for_smoothing() -> None:
    """The answer is there when time runs out: it counts, with its exact derivative."""

    def pulled(**options: Any) -> Any:
        def loss(q: mx.array) -> mx.array:
            return mx.sum(mlxcone.solve(P, q, A, B, CONES, time_limit_secs=5.0, **options).x)

        return numbers(mx.value_and_grad(loss)(Q))

    with clock(np.inf) as count:
        exact = pulled()
    smooth = pulled(smoothing=0.1)
    assert not same(smooth[1], exact[1])
    with clock(count[0]):
        assert same(pulled(smoothing=0.1), exact)


# --- exceptions -----------------------------------------------------------------------------------


class UserError(Exception):
    """What a function of the user raises."""


def transformed() -> dict[str, Callable[[Any], Any]]:
    return {
        "grad": lambda f: mx.grad(lambda q: mx.sum(f(q)))(Q),
        "vmap": lambda f: mx.vmap(f)(Q),
        "grad of vmap": lambda f: mx.grad(lambda q: mx.sum(mx.vmap(f)(q)))(Q),
        "jvp": lambda f: mx.jvp(f, (Q,), (Q,)),
        "vjp": lambda f: mx.vjp(f, (Q,), (Q,)),
        "checkpoint": lambda f: mx.grad(lambda q: mx.sum(mx.checkpoint(f)(q)))(Q),
        "compile": lambda f: mx.compile(f)(Q),
    }


@pytest.mark.parametrize("name", transformed())
@pytest.mark.parametrize("fixed_iters", [0, 3])
def test_user_error_inside_a_transform(name: str, fixed_iters: int) -> None:
    """The first use of a solver, whose setup is made under a transform, ends in an exception."""
    options = {"fixed_iters": fixed_iters, "newton_iters": 2}
    solver = mlxcone.Solver(P, A, CONES, **options)
    transform = transformed()[name]

    def fails(q: mx.array) -> mx.array:
        solver.solve(q, B)
        raise UserError

    with pytest.raises(UserError):
        transform(fails)
    fresh = mlxcone.Solver(P, A, CONES, **options)
    assert same(solver.solve(Q, B), fresh.solve(Q, B))
    assert same(solver_step(solver), solver_step(fresh))
    if fixed_iters or name != "compile":
        answers = [transform(lambda q, s=s: s.solve(q, B).x) for s in (solver, fresh)]
        assert same(*answers)


# Under mx.compile nothing is solved.
@pytest.mark.parametrize("name", sorted({"nothing", *transformed()} - {"compile"}))
def test_solver_error_inside_a_transform(name: str, layer: CvxpyLayer, layer_answer: Any) -> None:
    bad = mx.array(Q)
    bad[1] = mx.nan

    def raises(q: mx.array) -> mx.array:
        return mlxcone.solve(
            P, q * bad / Q if q.ndim == 2 else q * mx.nan, A, B, CONES, on_failure="raise"
        ).x

    transform = transformed().get(name, lambda f: f(Q))
    with pytest.raises(mlxcone.SolverError, match="FAILED"):
        mx.eval(transform(raises))
    assert same(layer_step(layer), layer_answer)
    fine = [transform(lambda q: mlxcone.solve(P, q, A, B, CONES).x) for _ in range(2)]
    assert same(*fine)


# --- copies of a solver ---------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda solver: pickle.loads(pickle.dumps(solver)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64, mx.bfloat16])
def test_copies_of_a_solver(how: str, dtype: mx.Dtype) -> None:
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        matrix, other = A.astype(dtype), -A.astype(dtype)
    q, b = (np.array(v, dtype=np.float32) for v in (Q, B))
    solver = mlxcone.Solver(P, matrix, CONES, eps=1e-7, on_failure="nan")
    wanted = solver.solve(q, b)
    twin = COPIES[how](solver)
    assert twin.settings == solver.settings
    found = twin.solve(q, b)
    assert found.x.dtype == wanted.x.dtype
    assert same(found, wanted)
    twin.update(A=other)
    assert same(solver.solve(q, b), wanted)
    fresh = mlxcone.Solver(P, other, CONES, solver.settings)
    assert same(twin.solve(q, b), fresh.solve(q, b))


def test_update_that_is_refused_changes_nothing(solver_answer: Any) -> None:
    solver = mlxcone.Solver(P, A, CONES)
    solver_step(solver)
    with pytest.raises(TypeError, match="A: expected a real array"):
        solver.update(P=2.0 * P, A=mx.zeros((M, N), dtype=mx.complex64))
    assert bool(mx.array_equal(solver.P, P).item())  # type: ignore[arg-type]
    assert same(solver_step(solver), solver_answer)


def test_matrices_of_a_solver_change_by_update_only() -> None:
    """Assigned to, they would go with the factor of those before."""
    solver = mlxcone.Solver(P, A, CONES)
    for name in "PA":
        with pytest.raises(AttributeError):
            setattr(solver, name, mx.eye(N))
