"""The parts of the ladder one by one: factor and solve, multipliers, certificates, acceleration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxcone import Settings
from mlxcone.backend import lanes
from mlxcone.backend.repeated import EAGER
from mlxcone.cones.description import Cones
from mlxcone.cones.product import Product
from mlxcone.kkt import reduced as kkt
from mlxcone.kkt import splitting_factor
from mlxcone.methods import admm, anderson, certificates, multipliers
from mlxcone.methods.refine import Refinement
from mlxcone.program import equilibrate, residual_map, residuals
from mlxcone.program.operators import Rectangular
from mlxcone.program.problem import Program
from mlxcone.testing import Instance, manufacture, verify_infeasible, verify_solution
from mlxcone.testing import verify_unbounded as verify_ray

# Rows in internal order already: sizes of second-order cones increase.
CONES = {"z": 2, "l": 4, "q": [2, 3, 5]}
PRODUCT = Product(Cones.of(CONES))
N, M = 7, 16
FOREVER = float("inf")


@pytest.fixture(autouse=True)
def _on_the_cpu() -> Iterator[None]:
    """Refinement is float64, which the CPU alone has."""
    with mx.stream(mx.cpu):
        yield


def wide(values: Any) -> mx.array:
    return mx.array(values, dtype=mx.float64)


def program_of(instances: list[Instance], shared: bool = False, quadratic: bool = True) -> Program:
    """Instances of one shape as one program; the matrices of the first if they are shared."""
    P, q, A, b = (np.stack([getattr(i, name) for i in instances]) for name in "PqAb")
    if shared:
        P, A = P[0], A[0]
    return Program(wide(P) if quadratic else None, wide(q), Rectangular.of(wide(A)), wide(b))


def regular(seed: int) -> Instance:
    return manufacture.feasible(np.random.default_rng(seed), N, CONES, unique=True)


def equilibrated(program: Program, cones: Product = PRODUCT) -> tuple[Any, Program]:
    return equilibrate.normalize(equilibrate.setup(program, cones, True), program, True)


# --- J and its transpose --------------------------------------------------------------------------


def dense_derivative(z: np.ndarray) -> np.ndarray:
    """D of the projection onto K*, from the closed form, in NumPy."""
    D = np.zeros((z.size, z.size))
    D[:2, :2] = np.eye(2)
    D[2:6, 2:6] = np.diag((z[2:6] > 0).astype(float))
    row = 6
    for dim in CONES["q"]:
        t, u = z[row], z[row + 1 : row + dim]
        r = np.linalg.norm(u)
        block = np.zeros((dim, dim))
        if r <= t:
            block = np.eye(dim)
        elif r > -t:
            v = u / r
            block[0, 0] = 0.5
            block[0, 1:] = block[1:, 0] = 0.5 * v
            block[1:, 1:] = 0.5 * ((1 + t / r) * np.eye(dim - 1) - t / r * np.outer(v, v))
        D[row : row + dim, row : row + dim] = block
        row += dim
    return D


def dense_jacobian(instance: Instance, quadratic: bool, A: np.ndarray | None = None) -> np.ndarray:
    A = instance.A if A is None else A
    D = dense_derivative(instance.y - instance.s)
    P = instance.P if quadratic else np.zeros((N, N))
    return np.block([[P, A.T @ D], [A, D - np.eye(M)]])


def regular_without_P(count: int) -> list[Instance]:
    found: list[Instance] = []
    seed = 0
    while len(found) < count:
        rng = np.random.default_rng(seed)
        instance = manufacture.feasible(rng, N, CONES, quadratic_rank=0)
        if np.linalg.cond(dense_jacobian(instance, False)) < 300:
            found.append(instance)
        seed += 1
    return found


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize("transposed", [False, True], ids=["J", "J'"])
@pytest.mark.parametrize("quadratic", [True, False], ids=["P", "no P"])
def test_jacobian_solves_like_a_dense_matrix(transposed: bool, quadratic: bool) -> None:
    instances = [regular(k) for k in range(4)] if quadratic else regular_without_P(4)
    program = program_of(instances, quadratic=quadratic)
    z = wide(np.stack([i.y - i.s for i in instances]))
    atoms = PRODUCT.derivative(z)
    factor, ok = kkt.root(program, PRODUCT, atoms)
    assert all(ok.tolist())
    system = kkt.Jacobian(program, PRODUCT, atoms, factor, sweeps=4)
    rng = np.random.default_rng(0)
    r, t = rng.standard_normal((4, N)), rng.standard_normal((4, M))
    solve = system.solve_transpose if transposed else system.solve
    found = np.concatenate([np.array(v) for v in solve(wide(r), wide(t))], axis=1)
    for lane, instance in enumerate(instances):
        J = dense_jacobian(instance, quadratic)
        expected = np.linalg.solve(J.T if transposed else J, np.concatenate([r[lane], t[lane]]))
        assert relative(found[lane], expected) <= 1e-10


def test_jacobian_with_a_shared_matrix() -> None:
    instances = [regular(0)] * 3
    rng = np.random.default_rng(0)
    z = np.stack([i.y - i.s for i in instances])
    r, t = rng.standard_normal((3, N)), rng.standard_normal((3, M))
    answers = []
    for shared in (True, False):
        program = program_of(instances, shared=shared)
        atoms = PRODUCT.derivative(wide(z))
        factor, _ = kkt.root(program, PRODUCT, atoms)
        system = kkt.Jacobian(program, PRODUCT, atoms, factor)
        answers.append(np.concatenate([np.array(v) for v in system.solve(wide(r), wide(t))], 1))
    assert relative(answers[0], answers[1]) <= 1e-12


def test_products_with_the_jacobian() -> None:
    instance = regular(1)
    program, z = program_of([instance]), wide((instance.y - instance.s)[None])
    atoms = PRODUCT.derivative(z)
    rng = np.random.default_rng(0)
    w = rng.standard_normal(N + M)
    J = dense_jacobian(instance, True)
    pair = wide(w[None, :N]), wide(w[None, N:])
    for product, matrix in (
        (residual_map.jacobian_times, J),
        (residual_map.transpose_times, J.T),
    ):
        found = np.concatenate([np.array(v)[0] for v in product(program, PRODUCT, atoms, pair)])
        assert relative(found, matrix @ w) <= 1e-13


def test_residual_map_vanishes_at_the_solution_alone() -> None:
    instance = regular(2)
    program = program_of([instance])
    x, z = wide(instance.x[None]), wide((instance.y - instance.s)[None])
    assert max(mx.max(mx.abs(v)).item() for v in residual_map.evaluate(program, PRODUCT, x, z)) < (
        1e-13
    )
    moved = residual_map.evaluate(program, PRODUCT, x + 0.1, z)
    assert min(mx.max(mx.abs(v)).item() for v in moved) > 1e-3


def test_a_singular_jacobian_gets_a_bounded_answer() -> None:
    """A row twice: J has a null space; the least-norm answer solves what can be solved."""
    instance = regular(3)
    A = np.vstack([instance.A[:1], instance.A[:1], instance.A[2:]])
    program = program_of([instance])._replace(A=Rectangular.of(wide(A[None])))
    atoms = PRODUCT.derivative(wide((instance.y - instance.s)[None]))
    J = dense_jacobian(instance, True, A)
    assert np.linalg.cond(J) > 1e12
    expected = np.linalg.pinv(J) @ (J @ np.random.default_rng(0).standard_normal(N + M))
    rhs = J @ expected
    factor, ok = kkt.root(program, PRODUCT, atoms)
    assert ok.tolist() == [True]
    system = kkt.Jacobian(program, PRODUCT, atoms, factor)
    found = np.concatenate(
        [np.array(v)[0] for v in system.solve(wide(rhs[None, :N]), wide(rhs[None, N:]))]
    )
    assert np.max(np.abs(J @ found - rhs)) <= 1e-6
    assert np.max(np.abs(found)) <= 10 * np.max(np.abs(expected))


def test_a_matrix_that_is_not_positive_definite_is_reported() -> None:
    instances = [regular(0), regular(1), regular(2)]
    program = program_of(instances)
    P = np.array(program.P)
    P[1] = -10.0 * np.eye(N)
    P[2, 0, 0] = np.nan
    atoms = PRODUCT.derivative(wide(np.full((3, M), -1.0)))
    factor, ok = kkt.root(program._replace(P=wide(P)), PRODUCT, atoms)
    assert ok.tolist() == [True, False, False]
    assert np.isfinite(np.array(factor.root)).all()


# --- Newton ---------------------------------------------------------------------------------------


def test_newton_lands_from_nearby() -> None:
    instances = [regular(k) for k in range(5)]
    program = program_of(instances)
    scaling, scaled = equilibrated(program)
    rng = np.random.default_rng(0)
    start = [
        wide(np.stack([getattr(i, k) for i in instances]))
        + wide(1e-4 * rng.standard_normal((5, size)))
        for k, size in (("x", N), ("y", M), ("s", M))
    ]
    start = scaling.scale(*start)
    how = 0.0, FOREVER, EAGER
    some = Refinement(scaled, scaling, PRODUCT, Settings(), *start, [1, 4, 2], *how)
    assert np.isinf(np.array(some.kept.violation)).tolist() == [True, False, False, True, False]
    work = Refinement(scaled, scaling, PRODUCT, Settings(), *start, [0, 1, 2, 3, 4], *how)
    some.newton([1, 4, 2], 5)
    assert some.solved() == [1, 2, 4]
    assert work.solved() == []
    work.newton([0, 1, 2, 3], 5)
    assert work.solved() == [0, 1, 2, 3]
    assert work.kept.factorizations.tolist()[4] == 0
    work.newton([4], 5)
    work.finish()
    x, y, s = (np.array(v) for v in scaling.unscale(*work.kept[:3]))
    for lane, instance in enumerate(instances):
        assert verify_solution(*instance.data, x[lane], y[lane], s[lane]).worst <= 1e-12
        np.testing.assert_allclose(x[lane], instance.x, rtol=0, atol=1e-9)


# --- multipliers ----------------------------------------------------------------------------------


def verifier_judge(instances: list[Instance], eps: float) -> multipliers.Judge:
    """Let the verifier say when an iterate is good enough."""

    def judge(some: mx.array, x: mx.array, y: mx.array, s: mx.array) -> mx.array:
        chosen = some.tolist()
        arrays = [np.array(v) for v in (x, y, s)]
        worst = [
            verify_solution(*instances[lane].data, *(v[k] for v in arrays)).worst / eps
            for k, lane in enumerate(chosen)  # type: ignore[arg-type]
        ]
        return wide(worst)

    return judge


@pytest.mark.parametrize("distance", [1.0, 1e3])
@pytest.mark.parametrize("rank", [N, 3, 0])
def test_multipliers_from_far_away(rank: int, distance: float) -> None:
    instances = [
        manufacture.feasible(np.random.default_rng(k), N, CONES, quadratic_rank=rank)
        for k in range(4)
    ]
    rng = np.random.default_rng(0)
    best, rounds = multipliers.solve(
        program_of(instances),
        PRODUCT,
        wide(distance * rng.standard_normal((4, N))),
        wide(distance * rng.standard_normal((4, M))),
        verifier_judge(instances, 1e-9),
        400,
        FOREVER,
    )
    assert rounds < 400
    for lane, instance in enumerate(instances):
        x, y, s = (np.array(v)[lane] for v in best[:3])
        instance.check(x, y, s, tolerance=1e-9)


def test_multipliers_stop_at_the_budget_and_at_the_deadline() -> None:
    instances = [regular(0)]
    start = wide(1e3 * np.ones((1, N))), wide(np.zeros((1, M)))
    never = verifier_judge(instances, 1e-300)
    program = program_of(instances)
    _, rounds = multipliers.solve(program, PRODUCT, *start, never, 7, FOREVER)
    assert rounds == 7
    best, rounds = multipliers.solve(program, PRODUCT, *start, never, 7, 0.0)
    assert rounds == 1
    assert np.isfinite(np.array(best.x)).all()


def test_multipliers_give_up_lanes_that_come_no_nearer() -> None:
    instances = [regular(k) for k in range(3)]
    start = wide(np.zeros((3, N))), wide(np.zeros((3, M)))

    def stuck(lanes: mx.array, x: mx.array, y: mx.array, s: mx.array) -> mx.array:
        return mx.full(lanes.shape, 1e9, dtype=mx.float64)

    program = program_of(instances)
    for patience, expected in ((5, 6), (None, 9)):  # the first round is better than nothing
        effort = multipliers.Effort(patience=patience)
        _, rounds = multipliers.solve(program, PRODUCT, *start, stuck, 9, FOREVER, effort)
        assert rounds == expected


# --- certificates ---------------------------------------------------------------------------------


def poor_directions(count: int, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((count, size))
    return {"zero": 0.0 * noise, "noise": noise, "huge": 1e6 * noise, "tiny": 1e-9 * noise}


@pytest.mark.parametrize("direction", ["zero", "noise", "huge", "tiny"])
@pytest.mark.parametrize("rank", [N, 0])
def test_certificates_of_infeasibility_from_poor_directions(direction: str, rank: int) -> None:
    instances = [
        manufacture.infeasible(np.random.default_rng(k), N, CONES, quadratic_rank=rank)
        for k in range(3)
    ]
    scaling, program = equilibrated(program_of(instances))
    found = certificates.infeasible(
        program, scaling, PRODUCT, wide(poor_directions(3, M)[direction]), 1e-8, 200, FOREVER
    )
    for lane, instance in enumerate(instances):
        y = np.array(found.y)[lane]
        violation = float(np.array(found.violation)[lane])
        assert violation <= 1.0
        assert verify_infeasible(instance.A, instance.b, instance.cones, y) <= 1e-8
        assert instance.b @ y == pytest.approx(-1.0)
    assert np.isnan(np.array(found.x)).all()


@pytest.mark.parametrize("direction", ["zero", "noise", "huge", "tiny"])
@pytest.mark.parametrize("rank", [N - 1, 0])
def test_certificates_of_unboundedness_from_poor_directions(direction: str, rank: int) -> None:
    instances = [
        manufacture.unbounded(np.random.default_rng(k), N, CONES, quadratic_rank=rank)
        for k in range(3)
    ]
    scaling, program = equilibrated(program_of(instances))
    found = certificates.unbounded(
        program, scaling, PRODUCT, wide(poor_directions(3, N)[direction]), 1e-8, 200, FOREVER
    )
    for lane, instance in enumerate(instances):
        x, s = np.array(found.x)[lane], np.array(found.s)[lane]
        P, q, A, _, cones = instance.data
        assert float(np.array(found.violation)[lane]) <= 1.0
        assert verify_ray(P, q, A, cones, x, s) <= 2e-8
        assert q @ x == pytest.approx(-1.0)
    assert np.isnan(np.array(found.y)).all()


@pytest.mark.parametrize("find", [certificates.infeasible, certificates.unbounded])
def test_no_certificate_where_there_is_a_solution(find: Any) -> None:
    instances = [regular(k) for k in range(3)]
    scaling, program = equilibrated(program_of(instances))
    size = M if find is certificates.infeasible else N
    for direction in poor_directions(3, size).values():
        found = find(program, scaling, PRODUCT, wide(direction), 1e-8, 60, FOREVER)
        assert (np.array(found.violation) > 1e3).all()


# --- acceleration ---------------------------------------------------------------------------------


def linear_map(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """x -> M x + c with eigenvalues from 0 to 0.99."""
    basis, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return basis @ np.diag(np.linspace(0.0, 0.99, size)) @ basis.T, rng.standard_normal(size)


def iterations_to(matrix: np.ndarray, c: np.ndarray, lookback: int, goal: float) -> int:
    """Evaluations of the map until it moves by less than ``goal``."""
    M, point = wide(matrix), wide(np.zeros((1, c.size)))
    memory = anderson.Memory.empty(point, lookback) if lookback else None
    for count in range(1, 5000):
        image = point @ M + wide(c[None])
        if mx.max(mx.abs(image - point)).item() < goal:
            return count
        if memory is None:
            point = image
        else:
            memory, point = anderson.accelerate(memory, point, image)
    return 5000


def test_acceleration_speeds_up_a_linear_iteration() -> None:
    matrix, c = linear_map(np.random.default_rng(0), 12)
    plain = iterations_to(matrix, c, 0, 1e-8)
    accelerated = iterations_to(matrix, c, 5, 1e-8)
    assert plain > 500
    assert accelerated < plain / 5


def test_acceleration_finishes_a_small_linear_iteration() -> None:
    """With as many columns as dimensions it is a secant method, exact for linear maps."""
    matrix, c = linear_map(np.random.default_rng(1), 4)
    assert iterations_to(matrix, c, 4, 1e-7) <= 12


def test_first_accelerated_point_is_the_image() -> None:
    rng = np.random.default_rng(2)
    point, image = wide(rng.standard_normal((2, 6))), wide(rng.standard_normal((2, 6)))
    _, candidate = anderson.accelerate(anderson.Memory.empty(point, 3), point, image)
    np.testing.assert_array_equal(np.array(candidate), np.array(image))


def test_forgetting_is_per_lane() -> None:
    rng = np.random.default_rng(3)
    memory = anderson.Memory.empty(wide(rng.standard_normal((2, 6))), 3)
    for _ in range(4):
        point, image = wide(rng.standard_normal((2, 6))), wide(rng.standard_normal((2, 6)))
        memory, _ = anderson.accelerate(memory, point, image)
    forgetful = memory.forget(mx.array([[True], [False]], dtype=mx.bool_))
    assert forgetful.started.tolist() == [[0.0], [1.0]]
    # What it remembers of one lane is what it remembers of that lane alone; of the other, nothing.
    empty = anderson.Memory.empty(point, 3)
    for _ in range(4):
        point, image = wide(rng.standard_normal((2, 6))), wide(rng.standard_normal((2, 6)))
        forgetful, candidate = anderson.accelerate(forgetful, point, image)
        memory, kept = anderson.accelerate(memory, point, image)
        empty, fresh = anderson.accelerate(empty, point, image)
        np.testing.assert_array_equal(np.array(candidate)[0], np.array(fresh)[0])
        np.testing.assert_array_equal(np.array(candidate)[1], np.array(kept)[1])


def test_known_inner_products_are_those_of_the_residuals() -> None:
    rng = np.random.default_rng(4)
    memory = anderson.Memory.empty(wide(rng.standard_normal((2, 6))), 3)
    for _ in range(6):
        point, image = wide(rng.standard_normal((2, 6))), wide(rng.standard_normal((2, 6)))
        memory, _ = anderson.accelerate(memory, point, image)
    R = np.array(memory.residuals)
    np.testing.assert_allclose(np.array(memory.gram), R @ R.transpose(0, 2, 1), rtol=1e-12)


def operator(program: Program, scale: float) -> admm.Operator:
    scales = mx.full((program.lanes, 1), scale, dtype=mx.float64)
    factor = splitting_factor.explicit(program, scales, admm.unit_weights(PRODUCT), 1e-3)
    weights = admm.row_weights(scales, PRODUCT)
    return admm.Operator(program, factor, weights, 1.6)


def splitting(instances: list[Instance]) -> tuple[admm.Operator, admm.State]:
    _, program = equilibrated(program_of(instances))
    op = operator(program, 0.1)
    count = len(instances)
    return op, admm.State(wide(np.zeros((count, N))), wide(np.zeros((count, M))))


def moves(op: admm.Operator, state: admm.State) -> np.ndarray:
    """How far one plain step goes, per lane."""
    after, _ = admm.step(PRODUCT, op, state, op.slack(state.x))
    return sum(np.sum(np.array(a - b) ** 2, axis=1) for a, b in zip(after, state, strict=True))


def test_safeguard_refuses_a_bad_memory() -> None:
    op, state = splitting([regular(0), regular(1)])
    state, _ = admm.advance(PRODUCT, op, state, None, 20, 20)
    rng = np.random.default_rng(0)
    point = mx.concatenate(state, axis=1)
    memory = anderson.Memory.empty(point, 3)
    residuals = rng.standard_normal(memory.residuals.shape)
    garbage = memory._replace(
        images=wide(1e8 * rng.standard_normal(memory.images.shape)),
        residuals=wide(residuals),
        gram=wide(residuals @ residuals.transpose(0, 2, 1)),
        started=mx.ones_like(memory.started),
    )
    found, after = admm.advance(PRODUCT, op, state, garbage, 3, 3)
    # The candidate costs a step and is thrown away.
    expected, _ = admm.advance(PRODUCT, op, state, None, 2, 2)
    for u, v in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.array(u), np.array(v), rtol=0, atol=1e-14)
    assert after is not None
    assert not np.array(after.started).any()


def test_safeguard_judges_lanes_alone() -> None:
    op, state = splitting([regular(0), regular(1)])
    state, _ = admm.advance(PRODUCT, op, state, None, 5, 5)
    memory = anderson.Memory.empty(mx.concatenate(state, axis=1), 3)
    good, clean = state, memory
    for _ in range(2):
        good, clean = admm.advance(PRODUCT, op, good, clean, 3, 3)
    spoiled = np.array(clean.images)
    spoiled[0] *= -1e8
    _, after = admm.advance(PRODUCT, op, good, clean._replace(images=wide(spoiled)), 5, 5)
    reference, _ = admm.advance(PRODUCT, op, good, clean, 5, 5)
    again, _ = admm.advance(PRODUCT, op, good, clean._replace(images=wide(spoiled)), 5, 5)
    assert after is not None
    assert after.started.tolist()[0] == [0.0]
    for u, v in zip(again, reference, strict=True):
        np.testing.assert_array_equal(np.array(u)[1], np.array(v)[1])


def test_accelerated_iteration_never_diverges() -> None:
    """Steps of the splitting do not grow, with whatever the memory proposes in between."""
    rng = np.random.default_rng(0)
    instances = [
        regular(0),
        manufacture.infeasible(rng, N, CONES),
        manufacture.unbounded(rng, N, CONES),
        manufacture.feasible(rng, N, CONES, quadratic_rank=0),
    ]
    op, state = splitting(instances)
    memory = anderson.Memory.empty(mx.concatenate(state, axis=1), 5)
    first = moves(op, state)
    for _ in range(60):
        state, kept = admm.advance(PRODUCT, op, state, memory, 10, 10)
        assert kept is not None
        memory = kept
        now = moves(op, state)
        assert np.isfinite(now).all()
        # The iteration contracts in a norm weighted by rho; 1e3 is the spread of the weights.
        assert (now <= 1e3 * first).all()
    assert now[0] <= 1e-16 * first[0]
    assert now[3] <= 1e-6 * first[3]
    assert (now[1:3] > 1e-12 * first[1:3]).all(), "no fixed point exists"


def test_gauss_jordan_against_numpy() -> None:
    rng = np.random.default_rng(0)
    G = rng.standard_normal((4, 5, 5))
    G = G @ G.transpose(0, 2, 1) + 0.1 * np.eye(5)
    rhs = rng.standard_normal((4, 5))
    found = np.array(anderson._solve(wide(G), wide(rhs)))
    np.testing.assert_allclose(found, np.linalg.solve(G, rhs[..., None])[..., 0], rtol=1e-9)


def test_fixed_point_of_a_step_is_the_solution() -> None:
    """And it is the same for every scale: x, w = s - y / rho."""
    instances = [regular(0), regular(1)]
    scaling, program = equilibrated(program_of(instances))
    known = [wide(np.stack([getattr(i, k) for i in instances])) for k in "xys"]
    x, y, s = scaling.scale(*known)
    for scale in (1e-3, 1.0, 1e3):
        op = operator(program, scale)
        state = admm.join(op.weights, x, y, s)
        after, _ = admm.step(PRODUCT, op, state, op.slack(state.x))
        for u, v in zip(after, state, strict=True):
            size = 1.0 + np.abs(np.array(v)).max()
            assert np.max(np.abs(np.array(u - v))) <= 1e-11 * size
        for u, v in zip(admm.split(PRODUCT, op.weights, state), (x, y, s), strict=True):
            np.testing.assert_allclose(np.array(u), np.array(v), rtol=0, atol=1e-11)


# --- equilibration --------------------------------------------------------------------------------


def badly_scaled(seed: int, lead: tuple[int, ...] = (3,)) -> Program:
    rng = np.random.default_rng(seed)
    rows, columns = 10.0 ** rng.uniform(-2, 2, M), 10.0 ** rng.uniform(-2, 2, N)
    A = rng.standard_normal((*lead, M, N)) * rows[:, None] * columns
    G = rng.standard_normal((*lead, N, N)) * columns
    P = G.swapaxes(-1, -2) @ G
    q, b = 1e3 * rng.standard_normal((3, N)), 1e-3 * rng.standard_normal((3, M))
    return Program(wide(P), wide(q), Rectangular.of(wide(A)), wide(b))


every_lead = pytest.mark.parametrize("lead", [(3,), ()], ids=["batched", "shared"])


@every_lead
@pytest.mark.parametrize("quadratic", [True, False])
def test_factors_are_powers_of_two_and_uniform_in_a_cone(
    lead: tuple[int, ...], quadratic: bool
) -> None:
    program = badly_scaled(0, lead)
    scaling, _ = equilibrated(program if quadratic else program._replace(P=None))
    for factor in scaling:
        exponents = np.log2(np.array(factor))
        np.testing.assert_array_equal(exponents, np.round(exponents))
        assert np.abs(exponents).max() > 0
    e = np.array(scaling.e)
    for lo, hi in ((6, 8), (8, 11), (11, 16)):
        assert (e[:, lo:hi] == e[:, lo : lo + 1]).all()
    assert not (e[:, :6] == e[:, :1]).all()
    assert e.shape[0] == (3 if lead else 1)


@every_lead
def test_equilibration_evens_out_the_entries(lead: tuple[int, ...]) -> None:
    program = badly_scaled(1, lead)
    _, scaled = equilibrated(program)

    def spread(some: Program) -> float:
        assert some.P is not None
        A, P = (np.abs(np.array(v)).reshape(-1, k, N) for v, k in ((some.A.matrix, M), (some.P, N)))
        columns = np.maximum(A.max(axis=1), P.max(axis=1))
        return float((columns.max(axis=1) / columns.min(axis=1)).max())

    assert spread(program) > 300
    assert spread(scaled) < 16
    largest = np.abs(np.concatenate([np.array(scaled.q), np.array(scaled.b)], axis=1)).max(axis=1)
    assert ((largest > 0.5) & (largest < 2)).all()


@every_lead
def test_scaling_is_exact_and_undone(lead: tuple[int, ...]) -> None:
    program = badly_scaled(2, lead)
    scaling, scaled = equilibrated(program)
    rng = np.random.default_rng(0)
    point = [wide(rng.standard_normal((3, k))) for k in (N, M, M)]
    for u, v in zip(scaling.unscale(*scaling.scale(*point)), point, strict=True):
        np.testing.assert_array_equal(np.array(u), np.array(v))
    again = equilibrate.apply(scaling, program)
    for u, v in zip(
        (again.P, again.q, again.A.matrix, again.b),
        (scaled.P, scaled.q, scaled.A.matrix, scaled.b),
        strict=True,
    ):
        np.testing.assert_array_equal(np.array(u), np.array(v))
    np.testing.assert_array_equal(
        np.array(scaled.A.transposed), np.array(scaled.A.matrix).swapaxes(-1, -2)
    )


def test_no_equilibration_leaves_everything() -> None:
    program = badly_scaled(3)
    scaling, scaled = equilibrate.normalize(
        equilibrate.setup(program, PRODUCT, False), program, False
    )
    assert all((np.array(factor) == 1.0).all() for factor in scaling)
    np.testing.assert_array_equal(np.array(scaled.A.matrix), np.array(program.A.matrix))


def test_empty_rows_and_columns_keep_their_scale() -> None:
    program = badly_scaled(4)
    A, P = np.array(program.A.matrix), np.array(program.P)
    A[:, 3], A[:, :, 2], P[:, 2], P[:, :, 2] = 0.0, 0.0, 0.0, 0.0
    scaling, scaled = equilibrated(program._replace(P=wide(P), A=Rectangular.of(wide(A))))
    assert (np.array(scaling.e)[:, 3] == 1.0).all()
    assert (np.array(scaling.d)[:, 2] == 1.0).all()
    assert np.isfinite(np.array(scaled.A.matrix)).all()


def test_residuals_are_those_of_the_original_program() -> None:
    instance = regular(4)
    program = program_of([instance])
    scaling, scaled = equilibrated(program)
    rng = np.random.default_rng(0)
    x, y, s = (rng.standard_normal((1, k)) for k in (N, M, M))
    point = scaling.scale(wide(x), wide(y), wide(s))
    found = residuals.measure(scaled, scaling, *point, 0.0, 1.0)
    x, y, s = x[0], y[0], s[0]
    P, q, A, b, cones = instance.data
    expected = {
        "primal": abs(A @ x + s - b).max(),
        "dual": abs(P @ x + A.T @ y + q).max(),
        "gap": abs(x @ P @ x + q @ x + b @ y),
        "objective": 0.5 * x @ P @ x + q @ x,
    }
    for name, value in expected.items():
        assert float(getattr(found, name)) == pytest.approx(value, rel=1e-12)
    verdict = verify_solution(P, q, A, b, cones, x, y, s)
    assert float(found.primal_relative) == pytest.approx(verdict.primal_residual, rel=1e-12)
    assert float(found.dual_relative) == pytest.approx(verdict.dual_residual, rel=1e-12)


# --- lanes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "total", "expected"),
    [
        ([3], 8, [3]),
        ([1, 4], 8, [1, 4]),
        ([0, 2, 5], 8, [0, 2, 5, 0]),
        ([0, 1, 2, 3, 4], 6, [0, 1, 2, 3, 4, 0]),
        ([0, 1, 2, 3, 4], 5, [0, 1, 2, 3, 4]),
    ],
)
def test_buckets_are_powers_of_two_or_all(
    chosen: list[int], total: int, expected: list[int]
) -> None:
    assert lanes.bucket(chosen, total).tolist() == expected


def test_put_replaces_some_lanes_of_a_copy() -> None:
    array = wide(np.zeros((4, 2)))
    some = lanes.bucket([1, 3, 2], 4)
    values = wide(np.arange(8.0).reshape(4, 2))
    values = mx.where((some == 1)[:, None], 9.0, values)  # padding repeats its lane's values
    found = np.array(lanes.put(array, some, values))
    np.testing.assert_array_equal(found, [[0, 0], [9, 9], [4, 5], [2, 3]])
    assert not np.array(array).any()


# --- the splitting's factors ----------------------------------------------------------------------


def test_spectrum_of_shared_matrices_solves_at_every_scale() -> None:
    instance = regular(0)
    program = program_of([instance])
    shared = Program(program.P[0], program.q, Rectangular.of(program.A.matrix[0]), program.b)  # type: ignore[index]
    unit, scales = admm.unit_weights(PRODUCT), np.array([[1e-4], [0.3], [1e3]])
    pencil = splitting_factor.Pencil.of(shared, unit, 1e-3)
    v = wide(np.random.default_rng(0).standard_normal((3, N)))
    got = np.array(pencil.at(wide(scales)).times(v))
    for lane, scale in enumerate(scales[:, 0]):
        A, weights = instance.A, scale * np.array(unit)
        system = instance.P + 1e-3 * np.eye(N) + A.T @ (weights[:, None] * A)
        expected = np.linalg.solve(system, np.array(v)[lane])
        np.testing.assert_allclose(got[lane], expected, rtol=1e-9, atol=1e-12)


def test_only_the_lanes_named_get_another_operator() -> None:
    program, unit = program_of([regular(0), regular(1), regular(2)]), admm.unit_weights(PRODUCT)

    def operator(scale: mx.array) -> admm.Operator:
        factor = splitting_factor.explicit(program, scale, unit, 1e-3)
        return admm.Operator(program, factor, scale * unit, 1.6)

    before, moved = operator(wide([[0.1]] * 3)), operator(wide([[7.0]] * 3))
    lane = mx.array([1])
    after = before.put(lane, moved.take(lane, program.take(lane)))
    for k, source in enumerate((before, moved, before)):
        np.testing.assert_array_equal(after.factor.inverse[k], source.factor.inverse[k])
        np.testing.assert_array_equal(after.weights[k], source.weights[k])
