"""The solver through its public names; every answer is judged by `mlxcone.testing`'s verifier."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import settings as examples

import mlxcone
from mlxcone import Cones, Settings, Solution, Solver, SolverError, Status
from mlxcone.testing import Instance, manufacture, strategies, verify_solution

CONES = {"z": 1, "l": 4, "q": [4, 1, 3]}
N, M = 6, 13
CODES = {"solved": 1, "infeasible": -2, "unbounded": -1}
# float64 answers end here; the verifier's measures are relative.
TOLERANCE = 1e-8
# The lane of `mixed` that has many solutions.
NOT_UNIQUE = (2, 5)  # of the mixed batch: many solutions, of which rounding chooses one
SAME = 1e-12


# --- helpers ------------------------------------------------------------------------------------


def numpy_of(solution: Solution, lane: int | None = None) -> tuple[np.ndarray, ...]:
    """x, y and s as float64 NumPy arrays, of one lane or of all."""
    arrays = [np.array(v).astype(np.float64) for v in solution[:3]]
    return tuple(v if lane is None else v[lane] for v in arrays)


def judge(
    instance: Instance, solution: Solution, lane: int | None = None, tolerance: float = TOLERANCE
) -> None:
    """Right status, and an answer that the verifier accepts."""
    codes = np.array(solution.info.status)
    code = int(codes if lane is None else codes[lane])
    assert code == CODES[instance.expect], f"{Status(code).name} for {instance!r}"
    instance.check(*numpy_of(solution, lane), tolerance=tolerance)


def difference(left: Any, right: Any) -> float:
    """Largest difference of x, y, s relative to 1 + their size; NaN must meet NaN."""
    worst = 0.0
    for u, v in zip(left, right, strict=True):
        assert u.shape == v.shape
        np.testing.assert_array_equal(np.isnan(u), np.isnan(v))
        u, v = np.nan_to_num(u), np.nan_to_num(v)
        worst = max(worst, np.max(np.abs(u - v), initial=0.0) / (1.0 + np.max(np.abs(v))))
    return worst


def stacked(instances: list[Instance]) -> list[np.ndarray]:
    """P, q, A, b of equally shaped instances with a batch axis."""
    return [np.stack([getattr(i, name) for i in instances]) for name in "PqAb"]


def mixed() -> list[Instance]:
    """Regular, degenerate, infeasible and unbounded problems of one shape."""
    rng = np.random.default_rng(0)
    return [
        manufacture.feasible(rng, N, CONES, unique=True),
        manufacture.infeasible(rng, N, CONES),
        manufacture.feasible(rng, N, CONES, quadratic_rank=2),
        manufacture.unbounded(rng, N, CONES),
        manufacture.feasible(rng, N, CONES, unique=True),
        manufacture.feasible(rng, N, CONES, quadratic_rank=0),
        manufacture.infeasible(rng, N, CONES, quadratic_rank=0),
    ]


def regular(seed: int = 0, n: int = N, cones: dict[str, Any] | None = None) -> Instance:
    """A problem with one solution, which varies smoothly."""
    return manufacture.feasible(np.random.default_rng(seed), n, cones or CONES, unique=True)


@pytest.fixture(scope="module")
def batch() -> list[Instance]:
    return mixed()


@pytest.fixture(scope="module")
def together(batch: list[Instance]) -> Solution:
    return mlxcone.solve(*stacked(batch), CONES)


# --- any problem --------------------------------------------------------------------------------


@examples(max_examples=60)
@given(strategies.instances(max_n=60, max_m=60))
def test_any_instance(instance: Instance) -> None:
    judge(instance, mlxcone.solve(*instance.data))


@examples(max_examples=15)
@given(strategies.instances(max_n=30, max_m=40, expect="infeasible"))
def test_any_infeasible_instance(instance: Instance) -> None:
    solution = mlxcone.solve(*instance.data)
    judge(instance, solution)
    assert float(instance.b @ numpy_of(solution)[1]) == pytest.approx(-1.0, abs=1e-9)
    assert np.isnan(float(solution.info.objective))


@examples(max_examples=15)
@given(strategies.instances(max_n=30, max_m=40, expect="unbounded"))
def test_any_unbounded_instance(instance: Instance) -> None:
    solution = mlxcone.solve(*instance.data)
    judge(instance, solution)
    assert float(instance.q @ numpy_of(solution)[0]) == pytest.approx(-1.0, abs=1e-9)
    assert np.isnan(float(solution.info.objective))


def test_float32_data_are_solved_to_float32() -> None:
    for seed in range(10):
        data = [np.asarray(v, dtype=np.float32) for v in regular(seed).data[:4]]
        solution = mlxcone.solve(*data, CONES)
        assert int(solution.info.status) == 1
        exact = [v.astype(np.float64) for v in data]
        exact[0] = 0.5 * (exact[0] + exact[0].T)
        assert verify_solution(*exact, CONES, *numpy_of(solution)).worst <= 1e-6


def test_degenerate_float32_data_are_solved_as_well_as_they_can_be() -> None:
    """Rounding b moves it by 1e-8 out of the range of A: nine equations, three more active rows."""
    cones = {"z": 9, "l": 12}
    statuses = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        instance = manufacture.feasible(rng, 10, cones, quadratic_rank=5)
        data = [np.asarray(v, dtype=np.float32) for v in instance.data[:4]]
        solution = mlxcone.solve(*data, cones, max_iters=400)
        statuses.append(int(solution.info.status))
    assert statuses == [1, 1, 1]


# --- lanes --------------------------------------------------------------------------------------


def test_mixed_batch_has_the_right_status_in_every_lane(
    batch: list[Instance], together: Solution
) -> None:
    assert together.info.status.tolist() == [CODES[i.expect] for i in batch]
    for lane, instance in enumerate(batch):
        judge(instance, together, lane)


def test_lane_alone_is_lane_in_a_batch(batch: list[Instance], together: Solution) -> None:
    for lane, instance in enumerate(batch):
        solution = mlxcone.solve(*instance.data)
        judge(instance, solution)
        if lane not in NOT_UNIQUE:
            assert difference(numpy_of(solution), numpy_of(together, lane)) <= SAME, lane


def test_lane_alone_takes_the_same_path_as_in_a_batch() -> None:
    """Neither the answer where there are many nor the iterations depend on the neighbours."""
    instances = [regular(seed) for seed in range(37)]
    solution = mlxcone.solve(*stacked(instances), CONES)
    counts = [int(mlxcone.solve(*i.data).info.iterations) for i in instances]
    assert solution.info.iterations.tolist() == counts


def test_newtons_method_does_not_wait_until_lanes_are_ready() -> None:
    """Projections onto the simplex: splitting alone takes some 100 iterations."""
    n, rng = 100, np.random.default_rng(0)
    points = rng.standard_normal((8, n))
    A = np.concatenate([np.ones((1, n)), -np.eye(n)])
    b = np.concatenate([np.ones(1), np.zeros(n)])
    cones = {"z": 1, "l": n}
    solution = mlxcone.solve(np.eye(n), -points, A, b, cones)
    assert solution.info.iterations.tolist() == [25] * 8
    alone = mlxcone.solve(np.eye(n), -points, A, b, cones, refine=False)
    assert min(alone.info.iterations.tolist()) > 50
    ordered = -np.sort(-points, axis=1)
    shifts = (np.cumsum(ordered, axis=1) - 1.0) / np.arange(1, n + 1)
    shift = shifts[np.arange(8), np.sum(ordered > shifts, axis=1) - 1]
    np.testing.assert_allclose(solution.x, np.maximum(points - shift[:, None], 0.0), atol=1e-8)


def test_the_last_lanes_of_small_programs_go_to_multipliers() -> None:
    """One of 64 dense quadratic programs takes 275 iterations and more without."""
    n, m, rng = 10, 20, np.random.default_rng(1)
    root = rng.normal(size=(64, n, n)) / np.sqrt(n) + 0.5 * np.eye(n)
    A = rng.normal(size=(64, m, n))
    inside = 0.3 * (A @ rng.normal(size=(64, n, 1)))[..., 0]
    b = inside + rng.uniform(0.1, 1.0, size=(64, m))
    data = root.transpose(0, 2, 1) @ root, rng.normal(size=(64, n)), A, b
    with_them = mlxcone.solve(*data, {"l": m})
    without = mlxcone.solve(*data, {"l": m}, multiplier_iters=0)
    assert max(with_them.info.iterations.tolist()) == 75
    assert max(without.info.iterations.tolist()) > 150
    for lane in range(64):
        own = [v[lane] for v in data]
        assert verify_solution(*own, {"l": m}, *numpy_of(with_them, lane)).worst <= 1e-8


def test_order_of_the_lanes_does_not_matter(batch: list[Instance], together: Solution) -> None:
    order = np.random.default_rng(1).permutation(len(batch))
    permuted = mlxcone.solve(*stacked([batch[k] for k in order]), CONES)
    for position, lane in enumerate(order):
        assert difference(numpy_of(permuted, position), numpy_of(together, lane)) <= SAME, lane


@pytest.mark.parametrize("broken", ["P", "q", "A", "b"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_lane_that_is_not_finite_fails_alone(
    batch: list[Instance], together: Solution, broken: str, value: float
) -> None:
    data = stacked(batch)
    data["PqAb".index(broken)][0].flat[2] = value
    solution = mlxcone.solve(*data, CONES)
    assert solution.info.status.tolist()[0] == Status.FAILED
    assert solution.info.status.tolist()[1:] == together.info.status.tolist()[1:]
    assert all(np.isnan(v).all() for v in numpy_of(solution, 0))
    assert np.isnan(np.array(solution.info.objective)[0])
    for lane in range(1, len(batch)):
        judge(batch[lane], solution, lane)
        if lane not in NOT_UNIQUE:
            assert difference(numpy_of(solution, lane), numpy_of(together, lane)) <= SAME, lane


@pytest.mark.parametrize("broken", ["P", "A"])
def test_nan_in_a_shared_matrix_fails_every_lane(broken: str) -> None:
    instance = regular()
    data = dict(zip("PqAb", instance.data[:4], strict=True))
    data[broken] = data[broken].copy()
    data[broken].flat[0] = np.nan
    data["q"] = np.stack([instance.q] * 3)
    solution = mlxcone.solve(*data.values(), CONES)
    assert solution.info.status.tolist() == [Status.FAILED] * 3


@pytest.mark.parametrize("hard", ["infeasible", "unbounded"])
def test_easy_lane_beside_a_hard_one(hard: str) -> None:
    easy = regular(3)
    beside = getattr(manufacture, hard)(np.random.default_rng(4), N, CONES)
    solution = mlxcone.solve(*stacked([easy, beside]), CONES)
    judge(easy, solution, 0)
    judge(beside, solution, 1)
    alone = mlxcone.solve(*easy.data)
    assert difference(numpy_of(solution, 0), numpy_of(alone)) <= SAME
    assert solution.info.iterations.tolist()[0] == int(alone.info.iterations)


def test_large_batch_is_its_lanes() -> None:
    """More lanes than one, in number not a power of two, finishing at different times."""
    instances = [regular(seed) for seed in range(37)]
    solution = mlxcone.solve(*stacked(instances), CONES)
    for lane, instance in enumerate(instances):
        judge(instance, solution, lane)
        known = (instance.x, instance.y, instance.s)
        assert difference(numpy_of(solution, lane), known) <= 1e-6


def test_answers_are_right_to_the_last_digits() -> None:
    """The optimality system's condition number is below 1e4 for all of these."""
    instances = [regular(seed) for seed in range(37)]
    solution = mlxcone.solve(*stacked(instances), CONES)
    errors = [
        difference(numpy_of(solution, lane), (i.x, i.y, i.s)) for lane, i in enumerate(instances)
    ]
    assert max(errors) <= 1e-11


# --- the same answer along another way ------------------------------------------------------------

VARIATIONS: list[dict[str, Any]] = [
    {"normalize": False},
    {"acceleration_lookback": 0},
    {"adaptive_scale": False},
    {"scale": 10.0},
    {"alpha": 1.0},
    {"check_interval": 7},
    {"acceleration_interval": 1},
    {"newton_iters": 0},
    {"handover": 1e-6},
]


@pytest.mark.parametrize("change", VARIATIONS, ids=str)
def test_settings_do_not_change_the_answer(batch: list[Instance], change: dict[str, Any]) -> None:
    solution = mlxcone.solve(*stacked(batch), CONES, **change)
    for lane, instance in enumerate(batch):
        judge(instance, solution, lane)
    for lane in (0, 4):  # unique solutions
        known = (batch[lane].x, batch[lane].y, batch[lane].s)
        assert difference(numpy_of(solution, lane), known) <= 1e-9


def test_badly_scaled_data() -> None:
    instance = regular(5)
    rng = np.random.default_rng(5)
    d = 10.0 ** rng.uniform(-2, 2, N)
    scaled = dataclasses.replace(
        instance,
        P=instance.P * np.outer(d, d) * 1e3,
        q=instance.q * d * 1e3,
        A=instance.A * d * 1e-2,
        b=instance.b * 1e-2,
        x=instance.x / d,
    )
    solution = mlxcone.solve(*scaled.data)
    judge(scaled, solution)
    np.testing.assert_allclose(np.array(solution.x), scaled.x, rtol=1e-8, atol=1e-10)


def test_a_strictly_convex_problem_is_never_unbounded() -> None:
    """Large costs: x = 1e-8 of any size has |P x| <= 1e-8 and q'x = -1."""
    statuses = []
    for seed in range(5):
        P, q, A, b, cones = regular(seed).data
        solution = mlxcone.solve(P, 1e8 * q, A, b, cones, max_iters=1000)
        statuses.append(int(solution.info.status))
    assert Status.UNBOUNDED not in statuses


def test_large_constraint_data() -> None:
    P, q, A, b, cones = regular().data
    solution = mlxcone.solve(P, q, 1e8 * A, 1e8 * b, cones, max_iters=1000)
    assert int(solution.info.status) == 1
    np.testing.assert_allclose(np.array(solution.x), regular().x, rtol=0, atol=1e-6)


def test_no_tolerance_means_as_far_as_it_goes() -> None:
    solution = mlxcone.solve(*regular().data, eps=0.0, max_iters=50, multiplier_iters=5)
    assert verify_solution(*regular().data, *numpy_of(solution)).worst <= 1e-14
    assert int(solution.info.status) > 0


def test_without_refinement_there_is_no_newton_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    mlxcone.solve(*regular().data, refine=False, max_iters=200, verbose=True)
    out = capsys.readouterr().out
    assert "splitting" in out
    assert "newton" not in out


def test_permuted_cones() -> None:
    """Second-order cones in another order: the same x, and y and s permuted."""
    cones = {"z": 1, "l": 2, "q": [4, 1, 3, 2, 4]}
    instance = regular(6, 9, cones)
    starts = np.cumsum([3, *cones["q"]])
    order = [4, 2, 0, 3, 1]
    rows = [0, 1, 2]
    for k in order:
        rows += range(starts[k], starts[k + 1])
    other = {"z": 1, "l": 2, "q": [cones["q"][k] for k in order]}
    plain = numpy_of(mlxcone.solve(*instance.data))
    A, b = instance.A[rows], instance.b[rows]
    x, y, s = numpy_of(mlxcone.solve(instance.P, instance.q, A, b, other))
    assert difference((x, y, s), (plain[0], plain[1][rows], plain[2][rows])) <= 1e-11


@pytest.mark.parametrize("shared", ["P", "A", "q", "b", "PA", "PAq", "qb"])
def test_shared_and_stacked_arguments(shared: str) -> None:
    instance = regular(7)
    rng = np.random.default_rng(7)
    data = dict(zip("PqAb", instance.data[:4], strict=True))
    full = {name: np.stack([value] * 3) for name, value in data.items()}
    for name in "qb":
        if name not in shared:
            full[name] = full[name] + 0.01 * rng.standard_normal(full[name].shape)
    some = {name: data[name] if name in shared else full[name] for name in "PqAb"}
    left = mlxcone.solve(*full.values(), CONES)
    right = mlxcone.solve(*some.values(), CONES)
    assert left.x.shape == right.x.shape == (3, N)
    assert difference(numpy_of(left), numpy_of(right)) <= 1e-11
    for lane in range(3):
        problem = dataclasses.replace(instance, q=full["q"][lane], b=full["b"][lane])
        judge(problem, right, lane)


def test_no_P_is_a_zero_P() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        instance = manufacture.feasible(rng, N, CONES, quadratic_rank=0)
        _, q, A, b, cones = instance.data
        without = mlxcone.solve(None, q, A, b, cones)
        zero = mlxcone.solve(np.zeros((N, N)), q, A, b, cones)
        judge(instance, without)
        judge(instance, zero)
        assert float(without.info.objective) == pytest.approx(float(zero.info.objective), rel=1e-8)


@pytest.mark.parametrize("kind", [np.triu, np.tril, lambda P: P + np.eye(N, k=1)])
def test_a_P_that_is_not_symmetric_is_refused(kind: Any) -> None:
    """SCS takes a triangle; here it would be another problem, solved without a word."""
    instance = regular(8)
    P = kind(instance.P)
    with pytest.raises(ValueError, match="P: expected a symmetric matrix"):
        mlxcone.solve(P, *instance.data[1:])
    with pytest.raises(ValueError, match="P: expected a symmetric matrix"):
        mlxcone.solve(np.stack([instance.P, P]), *instance.data[1:])
    with pytest.raises(ValueError, match="P: expected a symmetric matrix"):
        mx.vmap(lambda P: mlxcone.solve(P, *instance.data[1:]).x)(mx.array(P)[None])
    with pytest.raises(ValueError, match="P: expected a symmetric matrix"):
        mlxcone.Solver(P, instance.A, instance.cones).solve(instance.q, instance.b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_does_not_make_P_asymmetric(dtype: Any) -> None:
    instance = regular(8)
    P = instance.P.astype(dtype)
    noise = np.random.default_rng(8).standard_normal((N, N)) * np.finfo(dtype).eps
    data = [v.astype(dtype) for v in (P * (1.0 + 4.0 * noise), instance.q, instance.A, instance.b)]
    found = mlxcone.solve(*data, instance.cones)
    assert int(found.info.status.item()) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shared", [True, False])
def test_negative_curvature_fails_its_lane(dtype: Any, shared: bool) -> None:
    instance = regular(8)
    eigenvalues = np.linalg.eigvalsh(instance.P)
    bent = instance.P - (eigenvalues[0] + 1e-3 * eigenvalues[-1]) * np.eye(N)
    P = bent if shared else np.stack([instance.P, bent, instance.P])
    q = np.stack([instance.q] * 3)
    data = [v.astype(dtype) for v in (P, q, instance.A, instance.b)]
    found = mlxcone.solve(*data, instance.cones)
    statuses: Any = found.info.status.tolist()
    assert statuses == ([-4] * 3 if shared else [1, -4, 1])
    assert bool(mx.all(mx.isnan(found.x[1])).item())
    if not shared:
        alone = mlxcone.solve(data[0][0], data[1][0], *data[2:], instance.cones)
        np.testing.assert_allclose(np.array(found.x[2]), np.array(alone.x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 10, 300])
def test_products_of_low_rank_are_convex(dtype: Any, n: int) -> None:
    """Rounding gives L L' eigenvalues that are a little less than zero."""
    rng = np.random.default_rng(9)
    for scale in (1e-6, 1.0, 1e6):
        half = (scale * rng.standard_normal((n, 2))).astype(dtype)
        P = half @ half.T
        q = P @ rng.standard_normal(n).astype(dtype)
        bounds = np.concatenate([np.eye(n), -np.eye(n)]).astype(dtype)
        found = mlxcone.solve(P, q, bounds, np.full(2 * n, 10.0, dtype), {"l": 2 * n})
        status = int(found.info.status.item())
        # Beside bounds that are far enough, the curvature of the rounding shows.
        assert status in ((1, 2) if n <= 10 or dtype is np.float64 else (1, 2, -3))


def test_a_deterministic_solver(batch: list[Instance], together: Solution) -> None:
    again = mlxcone.solve(*stacked(batch), CONES)
    for found, expected in zip(numpy_of(again), numpy_of(together), strict=True):
        np.testing.assert_array_equal(found, expected)


# --- shapes and types -----------------------------------------------------------------------------


def test_shapes_without_and_with_a_batch_axis() -> None:
    P, q, A, b, cones = regular().data
    alone = mlxcone.solve(P, q, A, b, cones)
    assert (alone.x.shape, alone.y.shape, alone.s.shape) == ((N,), (M,), (M,))
    assert all(v.shape == () for v in alone.info)
    one = mlxcone.solve(P, q[None], A, b, cones)
    assert (one.x.shape, one.y.shape, one.s.shape) == ((1, N), (1, M), (1, M))
    assert all(v.shape == (1,) for v in one.info)
    assert difference(numpy_of(alone), numpy_of(one, 0)) <= SAME


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
def test_dtype_in_is_dtype_out(dtype: mx.Dtype) -> None:
    data = [mx.array(v, dtype=dtype) for v in regular().data[:4]]
    solution = mlxcone.solve(*data, CONES)
    assert {v.dtype for v in solution[:3]} == {dtype}
    info = solution.info
    assert {info.status.dtype, info.iterations.dtype, info.factorizations.dtype} == {mx.int32}
    reals = (info.primal_residual, info.dual_residual, info.gap, info.objective)
    assert {v.dtype for v in reals} == {dtype}


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: mx.Dtype) -> None:
    data = [mx.array(v, dtype=dtype) for v in regular().data[:4]]
    solution = mlxcone.solve(*data, CONES)
    exact = [np.array(v.astype(mx.float32)).astype(np.float64) for v in data]
    exact[0] = 0.5 * (exact[0] + exact[0].T)
    assert solution.x.dtype == mx.float32
    assert verify_solution(*exact, CONES, *numpy_of(solution)).worst <= 1e-5


def test_one_float64_argument_decides() -> None:
    P, q, A, b, cones = regular().data
    narrow = [mx.array(v, dtype=mx.float32) for v in (P, A, b)]
    solution = mlxcone.solve(narrow[0], q, narrow[1], narrow[2], cones)
    assert solution.x.dtype == mx.float64


FORMS = {
    "mx": lambda v: mx.array(v, dtype=mx.float64),
    "coo": lambda v: sp.coo_array(v) if v.ndim == 2 else v,
    "csc": lambda v: sp.csc_matrix(v) if v.ndim == 2 else v,
    "fortran": np.asfortranarray,
    "strided": lambda v: np.repeat(v, 2, axis=-1)[..., ::2],
}


@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_any_library(form: str) -> None:
    instance = regular()
    data = [FORMS[form](v) for v in instance.data[:4]]
    solution = mlxcone.solve(*data, CONES)
    judge(instance, solution)
    assert solution.x.dtype == mx.float64
    plain = mlxcone.solve(*instance.data)
    assert difference(numpy_of(solution), numpy_of(plain)) <= SAME


def test_lists_and_integers() -> None:
    # minimize x^2 + y^2 subject to x + y = 2, x >= 0, y >= 0
    A = [[1, 1], [-1, 0], [0, -1]]
    solution = mlxcone.solve([[2, 0], [0, 2]], [0, 0], A, [2, 0, 0], {"z": 1, "l": 2})
    assert solution.x.dtype == mx.float32
    np.testing.assert_allclose(np.array(solution.x), [1.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(np.array(solution.y), [-2.0, 0.0, 0.0], atol=1e-6)


def test_arguments_are_left_as_they_were() -> None:
    data = [mx.array(v, dtype=mx.float64) for v in regular().data[:4]]
    before = [np.array(v) for v in data]
    mlxcone.solve(*data, CONES)
    for array, copy in zip(data, before, strict=True):
        np.testing.assert_array_equal(np.array(array), copy)


def test_cones_object_and_dictionary_mean_the_same() -> None:
    instance = regular()
    named = Cones(zero=1, nonneg=4, soc=(4, 1, 3))
    left = mlxcone.solve(*instance.data[:4], named)
    assert difference(numpy_of(left), numpy_of(mlxcone.solve(*instance.data))) == 0.0


# --- sizes at the edge ----------------------------------------------------------------------------


NO_ROWS = {
    "batch": (
        "np.diag([1.0, 2.0, 4.0])",
        "np.arange(6.0).reshape(2, 3)",
        "solution.x.shape == (2, 3)",
    ),
    "alone": ("np.eye(3)", "np.ones(3)", "np.allclose(np.array(solution.x), -1.0, atol=1e-10)"),
    "zero": ("None", "np.zeros(3)", "int(solution.info.status) == 1"),
    "unbounded": ("None", "np.ones(3)", "int(solution.info.status) == -1"),
    "gradient": (
        "np.eye(3)",
        "np.ones(3)",
        "mx.grad(lambda q: mlxcone.solve(P, q, A, b, {}).x.sum())"
        "(mx.ones((3,), dtype=mx.float32)).tolist() == [-1.0] * 3",
    ),
}


@pytest.mark.parametrize("case", NO_ROWS)
def test_no_constraints(case: str) -> None:
    """A of shape (0, n), in a process of its own: where it fails, it takes Python with it."""
    P, q, claim = NO_ROWS[case]
    program = f"""
import mlx.core as mx, numpy as np, mlxcone
P, q, A, b = {P}, {q}, np.zeros((0, 3)), np.zeros(0)
solution = mlxcone.solve(P, q, A, b, {{}})
assert solution.y.shape[-1] == solution.s.shape[-1] == 0
assert {claim}, solution
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-500:]


def test_no_constraints_in_a_batch() -> None:
    """A of shape (B, 0, n): each problem still has a factor of its own."""
    P, q = np.eye(2), np.array([-0.5, 0.4])
    for lanes in (1, 3):
        A = np.zeros((lanes, 0, 2))
        free = mlxcone.solve(None, q, A, np.zeros(0), {"l": 0})
        assert free.info.status.tolist() == [Status.UNBOUNDED] * lanes
        held = mlxcone.solve(P, q, A, np.zeros(0), {"l": 0})
        np.testing.assert_allclose(np.array(held.x), np.tile(-q, (lanes, 1)), atol=1e-12)


@pytest.mark.parametrize("cones", [{"z": 1}, {"l": 1}, {"q": [1]}], ids=str)
def test_one_variable_one_row(cones: dict[str, Any]) -> None:
    instance = manufacture.feasible(np.random.default_rng(0), 1, cones)
    judge(instance, mlxcone.solve(*instance.data))


def test_one_variable_many_rows_and_many_variables_one_row() -> None:
    for n, cones in ((1, {"l": 5, "q": [3]}), (9, {"l": 1}), (9, {"z": 1})):
        instance = manufacture.feasible(np.random.default_rng(1), n, cones)
        judge(instance, mlxcone.solve(*instance.data))


def test_all_zero_data() -> None:
    solution = mlxcone.solve(None, np.zeros(2), np.zeros((3, 2)), np.zeros(3), {"l": 3})
    assert int(solution.info.status) == 1
    assert float(solution.info.objective) == 0.0


def test_contradiction_in_one_row() -> None:
    """0 x = 1."""
    solution = mlxcone.solve(None, np.zeros(1), np.zeros((1, 1)), np.ones(1), {"z": 1})
    assert int(solution.info.status) == Status.INFEASIBLE
    np.testing.assert_allclose(np.array(solution.y), [-1.0])


def test_repeated_equality_rows() -> None:
    """More equations than variables, consistent: y is not unique."""
    instance = manufacture.feasible(np.random.default_rng(2), 3, {"z": 2})
    doubled = dataclasses.replace(
        instance, A=np.vstack([instance.A] * 3), b=np.tile(instance.b, 3), cones={"z": 6}
    )
    judge(doubled, mlxcone.solve(*doubled.data))


# --- warm start -----------------------------------------------------------------------------------


def test_warm_start_from_the_solution(batch: list[Instance]) -> None:
    solved = [i for i in batch if i.expect == "solved"]
    data = stacked(solved)
    cold = mlxcone.solve(*data, CONES)
    warm = mlxcone.solve(*data, CONES, warm_start=cold)
    saved = np.array(cold.info.iterations) - np.array(warm.info.iterations)
    assert (saved >= 0).all()
    assert saved.max() > 0
    for lane, instance in enumerate(solved):
        judge(instance, warm, lane)
    # Not the degenerate ones: they have other solutions.
    for lane in (0, 2):
        assert difference(numpy_of(warm, lane), numpy_of(cold, lane)) <= 1e-11


@pytest.mark.parametrize(
    "value",
    [
        np.nan,
        np.inf,
        1e3,
        -7.0,
        1e12,
        1e30,
    ],
)
def test_warm_start_from_garbage(value: float) -> None:
    instance = regular(9)
    start = (np.full(N, value), np.full(M, value), np.full(M, -value))
    solution = mlxcone.solve(*instance.data, warm_start=start, max_iters=800)
    judge(instance, solution)
    assert difference(numpy_of(solution), (instance.x, instance.y, instance.s)) <= 1e-9


def test_warm_start_with_nan_in_one_lane_leaves_the_others(batch: list[Instance]) -> None:
    data = stacked(batch)
    cold = mlxcone.solve(*data, CONES)
    warm = mlxcone.solve(*data, CONES, warm_start=cold)  # certificates: NaN in their x or y
    for lane, instance in enumerate(batch):
        judge(instance, warm, lane)


def test_warm_start_is_for_every_lane_if_it_has_no_batch_axis() -> None:
    instance = regular(10)
    P, q, A, b, cones = instance.data
    known = (instance.x, instance.y, instance.s)
    solution = mlxcone.solve(P, np.stack([q, q]), A, b, cones, warm_start=known)
    for lane in range(2):
        judge(instance, solution, lane)


def test_warm_start_follows_the_permuted_rows() -> None:
    """One iteration from the solution stays there, so the rows were permuted as A's are."""
    cones = {"l": 2, "q": [4, 1, 3]}
    instance = regular(11, 6, cones)
    known = (instance.x, instance.y, instance.s)
    options = {"max_iters": 1, "newton_iters": 1, "multiplier_iters": 0}
    solution = mlxcone.solve(*instance.data, warm_start=known, **options)
    assert int(solution.info.status) == 1
    assert difference(numpy_of(solution), known) <= 1e-9


# --- Solver ---------------------------------------------------------------------------------------


def test_solver_equals_solve(batch: list[Instance], together: Solution) -> None:
    P, q, A, b = stacked(batch)
    solution = Solver(P, A, CONES).solve(q, b)
    assert solution.info.status.tolist() == together.info.status.tolist()
    assert difference(numpy_of(solution), numpy_of(together)) == 0.0


def test_solver_for_many_q_and_b() -> None:
    instance = regular(12)
    P, q, A, b, cones = instance.data
    solver = Solver(P, A, cones)
    rng = np.random.default_rng(12)
    for lanes in (None, 1, 4, 3):
        for _ in range(3):
            shape = () if lanes is None else (lanes,)
            some_q = q + 0.1 * rng.standard_normal((*shape, N))
            some_b = b + np.abs(0.1 * rng.standard_normal((*shape, M)))
            solution = solver.solve(some_q, some_b)
            expected = mlxcone.solve(P, some_q, A, some_b, cones)
            assert solution.x.shape == (*shape, N)
            assert difference(numpy_of(solution), numpy_of(expected)) <= SAME


@pytest.mark.parametrize("what", ["P", "A", "PA"])
def test_solver_update(what: str) -> None:
    old, new = regular(13), regular(14)
    solver = Solver(old.P, old.A, CONES)
    judge(old, solver.solve(old.q, old.b))
    change = {name: getattr(new, name) for name in what}
    solver.update(**change)
    P, A = change.get("P", old.P), change.get("A", old.A)
    solution = solver.solve(new.q, new.b)
    expected = mlxcone.solve(P, new.q, A, new.b, CONES)
    assert int(solution.info.status) == int(expected.info.status)
    assert difference(numpy_of(solution), numpy_of(expected)) <= SAME


def test_solver_that_updates_in_place_is_not_fooled() -> None:
    """Two solvers of one shape keep their own factors."""
    left, right = regular(15), regular(16)
    solvers = [Solver(i.P, i.A, CONES) for i in (left, right)]
    for _ in range(2):
        for solver, instance in zip(solvers, (left, right), strict=True):
            judge(instance, solver.solve(instance.q, instance.b))


def test_solver_keeps_what_it_was_given() -> None:
    """NumPy arrays that change afterwards change nothing, or everything; not half of it."""
    instance = regular(0)
    A = instance.A.copy()
    solver = Solver(instance.P, A, CONES)
    before = numpy_of(solver.solve(instance.q, instance.b))
    A *= 0.5

    def loss(b: mx.array) -> mx.array:
        return mx.sum(solver.solve(instance.q, b).x)

    after = numpy_of(solver.solve(instance.q, instance.b))
    b = mx.array(instance.b, dtype=mx.float64)
    given_old = mx.grad(
        lambda b: mx.sum(mlxcone.solve(instance.P, instance.q, instance.A, b, CONES).x)
    )(b)
    assert difference(after, before) <= SAME
    np.testing.assert_allclose(np.array(mx.grad(loss)(b)), np.array(given_old), atol=1e-9)


def test_solver_warm_start_and_settings() -> None:
    instance = regular(17)
    solver = Solver(instance.P, instance.A, CONES, Settings(handover=1e-5), check_interval=5)
    assert (solver.settings.handover, solver.settings.check_interval) == (1e-5, 5)
    cold = solver.solve(instance.q, instance.b)
    warm = solver.solve(instance.q, instance.b, warm_start=cold)
    judge(instance, warm)
    assert int(warm.info.iterations) < int(cold.info.iterations)


# --- failures -------------------------------------------------------------------------------------


def test_raise_names_the_lanes(batch: list[Instance]) -> None:
    data = stacked(batch)
    data[1][4, 0] = np.nan
    with pytest.raises(SolverError, match=r"no solution for 4 problem\(s\)") as caught:
        mlxcone.solve(*data, CONES, on_failure="raise")
    assert isinstance(caught.value, RuntimeError)
    assert caught.value.statuses == {
        1: Status.INFEASIBLE,
        3: Status.UNBOUNDED,
        4: Status.FAILED,
        6: Status.INFEASIBLE,
    }
    for part in ("lane 1: INFEASIBLE", "lane 3: UNBOUNDED", "lane 4: FAILED", "on_failure='nan'"):
        assert part in str(caught.value)


def test_raise_shortens_a_long_list() -> None:
    error = SolverError(dict.fromkeys(range(9), Status.INFEASIBLE))
    assert "9 problem(s)" in str(error)
    assert "lane 4" in str(error)
    assert "lane 5" not in str(error)
    assert "and 4 more" in str(error)


def test_raise_is_quiet_when_all_is_solved() -> None:
    judge(regular(), mlxcone.solve(*regular().data, on_failure="raise"))


def test_nan_fills_lanes_without_a_solution(batch: list[Instance], together: Solution) -> None:
    solution = mlxcone.solve(*stacked(batch), CONES, on_failure="nan")
    assert solution.info.status.tolist() == together.info.status.tolist()
    for lane, instance in enumerate(batch):
        for found, expected in zip(numpy_of(solution, lane), numpy_of(together, lane), strict=True):
            if instance.expect == "solved":
                np.testing.assert_array_equal(found, expected)
            else:
                assert np.isnan(found).all()


def test_certificates_say_nothing_where_they_do_not_apply(
    batch: list[Instance], together: Solution
) -> None:
    for lane, instance in enumerate(batch):
        x, y, s = numpy_of(together, lane)
        if instance.expect == "infeasible":
            assert np.isnan(x).all()
            assert np.isnan(s).all()
        if instance.expect == "unbounded":
            assert np.isnan(y).all()


def test_too_few_iterations_are_reported() -> None:
    instance = regular(18)
    options = {"max_iters": 1, "newton_iters": 0, "interior_iters": 0, "multiplier_iters": 0}
    solution = mlxcone.solve(*instance.data, **options)
    assert int(solution.info.status) in (Status.INDETERMINATE, Status.SOLVED_INACCURATE)
    assert np.isfinite(np.array(solution.x)).all()


def test_loose_tolerance_is_a_looser_answer() -> None:
    instance = regular(19)
    solution = mlxcone.solve(*instance.data, eps=1e-3)
    judge(instance, solution, tolerance=3e-3)


def test_time_limit() -> None:
    rng = np.random.default_rng(20)
    instance = manufacture.feasible(rng, 40, {"z": 5, "l": 30, "q": [10, 10]}, quadratic_rank=0)
    solution = mlxcone.solve(*instance.data, time_limit_secs=1e-9)
    code = int(solution.info.status)
    assert code in (Status.INTERRUPTED, Status.SOLVED, Status.SOLVED_INACCURATE)
    if code == Status.SOLVED:
        judge(instance, solution)
    else:
        assert int(solution.info.iterations) == 0


def test_time_limit_that_is_ample_changes_nothing(
    batch: list[Instance], together: Solution
) -> None:
    solution = mlxcone.solve(*stacked(batch), CONES, time_limit_secs=1e6)
    assert difference(numpy_of(solution), numpy_of(together)) == 0.0


# --- what is reported -----------------------------------------------------------------------------


def test_info_agrees_with_the_verifier(batch: list[Instance], together: Solution) -> None:
    info = together.info
    for lane, instance in enumerate(batch):
        if instance.expect != "solved":
            for field in (info.objective, info.primal_residual, info.dual_residual, info.gap):
                assert np.isnan(float(field[lane]))
            continue
        P, q, A, b, cones = instance.data
        x, y, s = numpy_of(together, lane)
        verdict = verify_solution(P, q, A, b, cones, x, y, s)
        assert float(info.objective[lane]) == pytest.approx(verdict.objective, rel=1e-12)
        # All at rounding level, where the order of additions shows.
        rounding = 1e-12
        assert abs(float(info.primal_residual[lane]) - abs(A @ x + s - b).max()) <= rounding
        assert abs(float(info.dual_residual[lane]) - abs(P @ x + A.T @ y + q).max()) <= rounding
        assert abs(float(info.gap[lane]) - abs(x @ P @ x + q @ x + b @ y)) <= rounding
        assert int(info.iterations[lane]) > 0
        assert int(info.factorizations[lane]) > 0


def test_info_is_in_original_units_where_there_is_something_to_see() -> None:
    """Stopped early, residuals are large, and must be those of the x, y and s returned."""
    instance = regular(21)
    P, q, A, b, cones = instance.data
    P, q, A, b = P * 50.0, q * 50.0, A * 0.1, b * 0.1
    options = {"eps": 1e-2, "handover": 1e-2, "newton_iters": 0, "multiplier_iters": 0}
    solution = mlxcone.solve(P, q, A, b, cones, max_iters=200, **options)
    x, y, s = numpy_of(solution)
    info = solution.info
    assert int(info.status) > 0
    approx = {"rel": 1e-6, "abs": 1e-12}
    assert float(info.primal_residual) == pytest.approx(abs(A @ x + s - b).max(), **approx)
    assert float(info.dual_residual) == pytest.approx(abs(P @ x + A.T @ y + q).max(), **approx)
    assert float(info.gap) == pytest.approx(abs(x @ P @ x + q @ x + b @ y), **approx)
    assert float(info.objective) == pytest.approx(0.5 * x @ P @ x + q @ x, **approx)


@pytest.mark.parametrize("status", list(Status), ids=lambda s: s.name)
def test_every_status_has_a_message(status: Status) -> None:
    assert status.message
    assert status.ok == (status in (Status.SOLVED, Status.SOLVED_INACCURATE))


def test_status_codes_are_those_of_scs() -> None:
    expected = [1, 2, -1, -2, -3, -4, -5, -6, -7]
    assert [int(status) for status in Status] == expected


def test_verbose_prints_a_table(batch: list[Instance], capsys: pytest.CaptureFixture[str]) -> None:
    mlxcone.solve(*stacked(batch), CONES, verbose=True)
    out = capsys.readouterr().out
    for part in (f"{len(batch)} problem(s), n = {N}, m = {M}", "pri res", "splitting", "newton"):
        assert part in out
    assert "4 solved" in out
    assert "2 infeasible" in out
    assert "1 unbounded" in out


def test_silent_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    mlxcone.solve(*regular().data)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 2.0}, "alpha must lie in"),
        ({"data_rounding": 0.01}, "data_rounding must be at most"),
        ({"acceleration_lookback": 10**400}, "acceleration_lookback must be at most 100"),
        ({"alpha": 0.0}, "alpha must lie in"),
        ({"scale": 0.0}, "scale must be a positive number, got 0.0"),
        ({"rho_x": -1.0}, "rho_x must be a positive number"),
        ({"check_interval": 0}, "check_interval must be an integer of at least 1"),
        ({"acceleration_interval": 0}, "acceleration_interval must be an integer of at least 1"),
        ({"eps_infeas": 0.0}, "eps_infeas must be a positive number"),
        ({"max_iters": -1}, "max_iters must be an integer of at least 0"),
        ({"acceleration_lookback": -1}, "acceleration_lookback must be an integer of at least 0"),
        ({"newton_iters": -1}, "newton_iters must be an integer of at least 0"),
        ({"multiplier_iters": -1}, "multiplier_iters must be an integer of at least 0"),
        ({"eps_abs": -1e-9}, "eps_abs must be a number of at least 0"),
        ({"eps_rel": float("nan")}, "eps_rel must be a number of at least 0"),
        ({"time_limit_secs": -1.0}, "time_limit_secs must be a number of at least 0"),
        ({"handover": -1.0}, "handover must be a number of at least 0"),
        ({"on_failure": "ignore"}, "on_failure must be 'return', 'raise' or 'nan', got 'ignore'"),
    ],
    ids=str,
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**change)
    with pytest.raises(ValueError, match=message):
        mlxcone.solve(*regular().data, **change)


def test_unknown_settings_are_refused_with_the_valid_names() -> None:
    with pytest.raises(ValueError, match="unknown solver argument 'max_iter'") as caught:
        mlxcone.solve(*regular().data, max_iter=3)
    for field in dataclasses.fields(Settings):
        assert field.name in str(caught.value)
    assert "eps," in str(caught.value)


def test_eps_sets_both_tolerances() -> None:
    settings = Settings().override({"eps": 1e-4})
    assert (settings.eps_abs, settings.eps_rel) == (1e-4, 1e-4)
    assert Settings(alpha=1.2).override({}).alpha == 1.2


def test_overrides_beat_settings() -> None:
    with pytest.raises(SolverError):
        mlxcone.solve(*mixed()[1].data, settings=Settings(on_failure="return"), on_failure="raise")


def arguments(**changes: Any) -> list[Any]:
    """P, q, A, b of a valid problem with some replaced."""
    data = dict(zip("PqAb", regular().data[:4], strict=True))
    return list((data | changes).values())


WRONG_SHAPES = {
    "P too small": ({"P": np.eye(N - 1)}, r"P: expected shape \(6, 6\).*got \(5, 5\)"),
    "P not square": ({"P": np.ones((N, N + 1))}, r"P: expected shape \(6, 6\).*got \(6, 7\)"),
    "P a vector": ({"P": np.ones(N)}, r"P: expected shape \(6, 6\).*got \(6,\)"),
    "P with two axes too many": ({"P": np.ones((2, 2, N, N))}, r"P: expected.*\(2, 2, 6, 6\)"),
    "q too long": ({"q": np.ones(N + 1)}, r"q: expected shape \(6,\).*got \(7,\)"),
    "q a scalar": ({"q": 1.0}, r"q: expected shape \(6,\).*got \(\)"),
    "q with two axes too many": ({"q": np.ones((1, 2, N))}, r"q: expected.*got \(1, 2, 6\)"),
    "b too short": ({"b": np.ones(M - 1)}, r"b: expected shape \(13,\).*got \(12,\)"),
    "b with a column": ({"b": np.ones((M, 1))}, r"b: expected shape \(13,\).*got \(13, 1\)"),
    "A a vector": ({"A": np.ones(N)}, r"A: expected shape \(m, n\) or \(B, m, n\), got \(6,\)"),
    "A with too few rows": ({"A": np.ones((M - 1, N))}, r"A: expected 13 rows.*got.*\(12, 6\)"),
    "A with too few columns": ({"A": np.ones((M, N - 1))}, r"expected shape \(5.*got"),
    "batches of P and q": (
        {"P": np.stack([np.eye(N)] * 2), "q": np.ones((3, N))},
        r"inconsistent batch sizes: .*'q': 3, 'P': 2",
    ),
    "batches of A and b": (
        {"A": np.ones((4, M, N)), "b": np.ones((3, M))},
        r"inconsistent batch sizes: .*'A': 4, 'b': 3",
    ),
    "empty batch": ({"q": np.ones((0, N))}, "q: the batch is empty"),
    "no variables": (
        {"P": None, "q": np.ones(0), "A": np.ones((M, 0))},
        "at least one variable, got n = 0",
    ),
}


@pytest.mark.parametrize("case", WRONG_SHAPES)
def test_wrong_shapes_are_named(case: str) -> None:
    changes, message = WRONG_SHAPES[case]
    with pytest.raises(ValueError, match=message):
        mlxcone.solve(*arguments(**changes), CONES)


@pytest.mark.parametrize("name", ["x", "y", "s"])
def test_warm_start_of_a_wrong_shape_is_named(name: str) -> None:
    start = {"x": np.zeros(N), "y": np.zeros(M), "s": np.zeros(M)}
    start[name] = np.zeros(N + 1)
    with pytest.raises(ValueError, match=rf"warm_start.{name}: expected shape .*got \(7,\)"):
        mlxcone.solve(*arguments(), CONES, warm_start=tuple(start.values()))


def test_warm_start_with_a_batch_axis_for_one_problem_is_refused() -> None:
    start = (np.zeros((2, N)), np.zeros((2, M)), np.zeros((2, M)))
    with pytest.raises(ValueError, match=r"warm_start.x: expected shape \(6,\)"):
        mlxcone.solve(*arguments(), CONES, warm_start=start)


def test_warm_start_of_two_arrays_is_refused() -> None:
    with pytest.raises(ValueError, match="warm_start"):
        mlxcone.solve(*arguments(), CONES, warm_start=(np.zeros(N), np.zeros(M)))


@pytest.mark.parametrize("name", list("PqAb"))
@pytest.mark.parametrize("kind", ["complex", "text", "object"])
def test_arguments_that_are_not_real_are_named(name: str, kind: str) -> None:
    shape = np.shape(arguments()["PqAb".index(name)])
    dtype = {"complex": np.complex64, "text": str, "object": object}[kind]
    with pytest.raises(TypeError, match=f"{name}: expected a real array"):
        mlxcone.solve(*arguments(**{name: np.full(shape, 1, dtype=dtype)}), CONES)


def test_complex_mx_arrays_are_refused() -> None:
    q = mx.ones((N,), dtype=mx.complex64)
    with pytest.raises(TypeError, match="q: expected a real array, got complex64"):
        mlxcone.solve(*arguments(q=q), CONES)


def test_solver_refuses_at_the_door() -> None:
    with pytest.raises(ValueError, match="unknown cone 'k'"):
        Solver(np.eye(2), np.eye(2), {"k": 2})
    with pytest.raises(ValueError, match="unknown solver argument 'epsilon'"):
        Solver(np.eye(2), np.eye(2), {"l": 2}, epsilon=1.0)
    with pytest.raises(ValueError, match="q: expected shape"):
        Solver(np.eye(2), np.eye(2), {"l": 2}).solve(np.zeros(3), np.zeros(2))


def test_no_rows_and_no_iterations() -> None:
    empty = np.zeros((0, 1)), np.zeros(0)
    solution = mlxcone.solve(None, np.array([-1.0]), *empty, {"l": 0}, max_iters=0)
    # Unbounded, which nothing was allowed to find out.
    assert solution.info.status.item() in (mlxcone.Status.INDETERMINATE, mlxcone.Status.UNBOUNDED)
