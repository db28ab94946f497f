"""Barriers of every cone, and interior-point steps, alone and as a rung of the ladder."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxcone
from mlxcone import Cones
from mlxcone.backend.linalg import lu_inverses
from mlxcone.cones.base import Interior
from mlxcone.cones.exponential import Exponential
from mlxcone.cones.linear import Linear
from mlxcone.cones.power import Power
from mlxcone.cones.power_nd import PowerND
from mlxcone.cones.product import Product
from mlxcone.cones.second_order import SecondOrder
from mlxcone.cones.semidefinite import Semidefinite, Semidefinite2
from mlxcone.kkt.scaled_system import Reduced, System, Whole
from mlxcone.methods import interior
from mlxcone.program import residuals
from mlxcone.program.equilibrate import normalize, setup
from mlxcone.program.operators import Rectangular
from mlxcone.program.problem import Program
from mlxcone.testing import manufacture, project_cone, project_dual_cone, verify_infeasible

Array = np.ndarray
SYMMETRIC: list[tuple[Interior, dict[str, Any]]] = [
    (Linear(0, 3), {"l": 3}),
    (SecondOrder(2, 4), {"q": [4, 4]}),
    (Semidefinite(2, 3), {"s": [3, 3]}),
    (Semidefinite2(2), {"s": [2, 2]}),
]
OTHERS: list[tuple[Interior, dict[str, Any]]] = [
    (Exponential(2, dual=False), {"ep": 2}),
    (Exponential(2, dual=True), {"ed": 2}),
    (Power((0.3, -0.6)), {"p": [0.3, -0.6]}),
    (PowerND(((0.2, 0.3, 0.5), (0.1, 0.6, 0.3))), {"pnd": [[0.2, 0.3, 0.5], [0.1, 0.6, 0.3]]}),
]
every_cone = pytest.mark.parametrize(
    ("cone", "scs"), SYMMETRIC + OTHERS, ids=lambda v: type(v).__name__
)

pytestmark = pytest.mark.usefixtures("on_cpu")


def wide(v: Any) -> mx.array:
    return mx.array(v, dtype=mx.float64)


def near_centre(cone: Interior, rng: np.random.Generator) -> Array:
    centre = np.array(cone.centre(mx.float64))
    return centre + 0.1 * rng.standard_normal(centre.shape)


def times(cone: Interior, atoms: Any, v: Array) -> Array:
    return np.array(cone.spectral(atoms, lambda e: e, wide(v)[None, :, None]))[0, :, 0]


@every_cone
def test_the_centre_is_its_own_inverse(cone: Interior, scs: dict[str, Any]) -> None:
    centre = cone.centre(mx.float64)
    np.testing.assert_allclose(
        np.array(cone.inverse(centre[None])[0]), np.array(centre), atol=1e-14
    )
    for project in (project_cone, project_dual_cone):
        np.testing.assert_allclose(project(scs, np.array(centre)), np.array(centre), atol=1e-12)


@every_cone
def test_barriers_are_logarithmically_homogeneous(cone: Interior, scs: dict[str, Any]) -> None:
    """y'g(y) is the degree, g(2 y) = g(y) / 2, and the derivative of g is symmetric."""
    rng = np.random.default_rng(0)
    y = near_centre(cone, rng)
    inverse = np.array(cone.inverse(wide(y)[None])[0])
    assert y @ inverse == pytest.approx(cone.degree, rel=1e-12)
    doubled = np.array(cone.inverse(wide(2 * y)[None])[0])
    np.testing.assert_allclose(doubled, inverse / 2, rtol=1e-12, atol=1e-12)
    u, v = rng.standard_normal((2, y.size))
    step = 1e-6

    def slope(d: Array) -> Array:
        ends = [np.array(cone.inverse(wide(y + s * d)[None])[0]) for s in (step, -step)]
        return (ends[0] - ends[1]) / (2 * step)

    assert u @ slope(v) == pytest.approx(v @ slope(u), rel=1e-6)


@pytest.mark.parametrize(("cone", "scs"), SYMMETRIC, ids=lambda v: type(v).__name__)
def test_symmetric_scalings_take_y_to_s(cone: Interior, scs: dict[str, Any]) -> None:
    """W^2 y = s, and W^2 g(s) = g(y): Nesterov and Todd's two properties."""
    rng = np.random.default_rng(1)
    s, y = near_centre(cone, rng), near_centre(cone, rng)
    atoms = cone.scaling(wide(s)[None], wide(y)[None], wide([[1.0]]))
    np.testing.assert_allclose(times(cone, atoms, y), s, atol=1e-13)
    inverses = [np.array(cone.inverse(wide(v)[None])[0]) for v in (s, y)]
    np.testing.assert_allclose(times(cone, atoms, inverses[0]), inverses[1], atol=1e-13)


@pytest.mark.parametrize(("cone", "scs"), SYMMETRIC, ids=lambda v: type(v).__name__)
def test_corrections_are_second_order(cone: Interior, scs: dict[str, Any]) -> None:
    """y'r = ds'dy, and at the centre r is symmetric in ds and dy."""
    rng = np.random.default_rng(4)
    s, y = near_centre(cone, rng), near_centre(cone, rng)
    ds, dy = rng.standard_normal((2, cone.rows))

    def correction(s: Array, y: Array, ds: Array, dy: Array) -> Array:
        atoms = cone.scaling(wide(s)[None], wide(y)[None], wide([[1.0]]))
        return np.array(cone.correction(atoms, wide(y)[None], wide(ds)[None], wide(dy)[None])[0])

    found = correction(s, y, ds, dy)
    assert y @ found == pytest.approx(ds @ dy, rel=1e-10)
    np.testing.assert_allclose(correction(s, y, 2 * ds, 3 * dy), 6 * found, rtol=1e-10, atol=1e-12)
    centre = np.array(cone.centre(mx.float64))
    swapped = correction(centre, centre, dy, ds)
    np.testing.assert_allclose(correction(centre, centre, ds, dy), swapped, atol=1e-12)
    np.testing.assert_allclose(correction(centre, centre, ds, centre), ds, atol=1e-12)


def _spread(centre: np.ndarray, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """S and y of z 2, l 3, q 4, s 3 with W^2 from 1e-6 to 1e4, otherwise in every lane."""
    s, y = np.tile(centre, (lanes, 1)), np.tile(centre, (lanes, 1))
    for lane in range(lanes):
        s[lane, 2:5] = [1e-3, 1.0, 10.0 + lane]
        y[lane, 2:5] = [10.0, 0.5 + lane, 1e-2]
        for v, diagonal in ((s, [1e-2, 0.3, 5.0]), (y, [4.0 + lane, 1e-2, 1e-2])):
            v[lane, [9, 12, 14]] = diagonal
            v[lane, [10, 11, 13]] = [1e-3, -1e-3, 2e-3]
    return s, y


@pytest.mark.parametrize("far", [False, True], ids=["centre", "far"])
@pytest.mark.parametrize("kind", [Reduced, Whole])
@pytest.mark.parametrize("shared", [True, False])
def test_both_factorizations_solve_the_system(kind: type[System], shared: bool, far: bool) -> None:
    rng = np.random.default_rng(5)
    n, scs = 6, {"z": 2, "l": 3, "q": [4], "s": [3]}
    m, lanes = 2 + 3 + 4 + 6, 3
    product = Product(Cones.of(scs))
    A = rng.standard_normal((m, n) if shared else (lanes, m, n))
    half = rng.standard_normal((n, 2))
    P = half @ half.T
    program = Program(
        wide(P), wide(np.zeros((lanes, n))), Rectangular.of(wide(A)), wide(np.zeros((lanes, m)))
    )
    centre = np.array(product.centre(mx.float64))
    s, y = (centre + 0.1 * rng.standard_normal((lanes, m)) for _ in range(2))
    if far:
        s, y = _spread(centre, lanes)
    atoms = product.scaling(wide(s), wide(y), wide(np.ones((lanes, 1))))
    system = kind(program, product, atoms)
    r, t = rng.standard_normal((lanes, n)), rng.standard_normal((lanes, m))
    dx, dy, error = system.solve(wide(r), wide(t))
    if isinstance(system, Whole):
        gone = np.array(system._goes).sum(axis=1)
        assert (gone < m - 2 - 4).any() == far and (gone > 0).all()
    assert bool(mx.all(system.ok).item())
    assert float(mx.max(error).item()) < 1e-12
    W2 = np.array(product.apply_derivative(atoms, wide(np.tile(np.eye(m), (lanes, 1, 1)))))
    W2[:, :2] = 0.0
    for lane in range(lanes):
        here = A if shared else A[lane]
        K = np.block([[P, here.T], [here, -W2[lane]]])
        want = np.linalg.solve(K, np.concatenate([r[lane], t[lane]]))
        found = np.concatenate([np.array(dx)[lane], np.array(dy)[lane]])
        np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-9)


def test_one_singular_matrix_leaves_the_others() -> None:
    rng = np.random.default_rng(6)
    matrices = rng.standard_normal((4, 5, 5))
    matrices[1] = 0.0
    matrices[2, 0, 0] = np.nan
    lower, upper, ok = lu_inverses(wide(matrices))
    assert np.array(ok).tolist() == [True, False, False, True]
    v = rng.standard_normal(5)
    for lane in (0, 3):
        found = v @ np.array(lower)[lane] @ np.array(upper)[lane]
        np.testing.assert_allclose(matrices[lane] @ found, v, atol=1e-12)


@pytest.mark.parametrize(("cone", "scs"), OTHERS, ids=lambda v: type(v).__name__)
def test_other_scalings_are_hessians(cone: Interior, scs: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    y, d = near_centre(cone, rng), rng.standard_normal(cone.rows)
    atoms = cone.scaling(wide(y)[None], wide(y)[None], wide([[1.3]]))
    step = 1e-6
    ends = [np.array(cone.inverse(wide(y + s * d)[None])[0]) for s in (step, -step)]
    slope = 1.3 * (ends[1] - ends[0]) / (2 * step)
    np.testing.assert_allclose(times(cone, atoms, d), slope, rtol=1e-6, atol=1e-8)


@every_cone
@pytest.mark.parametrize("dual", [False, True])
def test_room_ends_at_the_boundary(cone: Interior, scs: dict[str, Any], dual: bool) -> None:
    """Inside just before it; outside soon after it, unless all of a grid's steps fit."""
    rng = np.random.default_rng(3)
    project = project_dual_cone if dual else project_cone
    for _ in range(20):
        v, d = near_centre(cone, rng), 3 * rng.standard_normal(cone.rows)
        room = float(np.array(cone.room(wide(v)[None], wide(d)[None], dual))[0, 0])
        if not np.isfinite(room):
            room = 1e3
        elif room < 1.0:
            outside = v + 1.05 * room * d if cone in [c for c, _ in SYMMETRIC] else v + d
            assert np.abs(project(scs, outside) - outside).max() > 1e-6
        inside = v + 0.999 * room * d
        assert np.abs(project(scs, inside) - inside).max() <= 1e-9 * (1 + np.abs(inside).max())


FULL = {
    "z": 3,
    "l": 6,
    "bl": [-1.0, 0.0, -np.inf],
    "bu": [1.0, np.inf, 0.5],
    "q": [4, 3],
    "s": [3, 2],
    "ep": 2,
    "ed": 1,
    "p": [0.3, -0.4],
}


def equilibrated(instance: Any) -> tuple[Program, Any, Product]:
    cones = Cones.of(instance.cones)
    product = Product(cones)
    order = np.array(product.order if product.order is not None else np.arange(cones.rows))
    P, A = (
        None if M is None else np.asarray(M, dtype=np.float64) for M in (instance.P, instance.A)
    )
    assert A is not None
    program = Program(
        None if P is None else wide(P),
        wide(instance.q)[None],
        Rectangular.of(wide(A[order])),
        wide(np.asarray(instance.b)[order])[None],
    )
    scaling, scaled = normalize(setup(program, product, True), program, True)
    return scaled, scaling, product


def steps(instance: Any, most: int = 80) -> tuple[interior.Best, interior.Rays, int, Any, Program]:
    program, scaling, product = equilibrated(instance)

    def judge(some: mx.array, x: mx.array, y: mx.array, s: mx.array) -> mx.array:
        local, factors = program.take(some), scaling.take(some)
        return residuals.measure(local, factors, x, y, s, 1e-8, 1e-8).violation

    best, rays, count = interior.solve(program, product, judge, most, np.inf)
    return best, rays, count, scaling, program


@pytest.mark.parametrize("seed", range(4))
def test_programs_over_every_cone(seed: int) -> None:
    """Solved to 1e-8 from nothing, in a few dozen steps."""
    instance = manufacture.feasible(np.random.default_rng(seed), 12, FULL)
    best, _, count, _, _ = steps(instance)
    assert best.violation.item() <= 1.0
    assert count <= 40


@pytest.mark.parametrize("cones", [{"z": 2, "l": 20}, {"l": 8, "q": [5], "s": [3]}], ids=str)
def test_infeasible_programs_leave_a_ray(cones: dict[str, Any]) -> None:
    instance = manufacture.infeasible(np.random.default_rng(0), 6, cones)
    _, rays, _, scaling, program = steps(instance)
    assert rays.infeasible.item() < 1e-6
    product = Product(Cones.of(instance.cones))
    y = np.array((rays.y * scaling.e)[0])
    order = product.order if product.order is not None else range(y.size)
    found = np.zeros_like(y)
    found[np.array(order)] = y
    assert verify_infeasible(instance.A, instance.b, instance.cones, found) < 1e-4
    assert program.lanes == 1


def test_the_rung_saves_lanes_that_newton_does_not() -> None:
    """With no splitting to speak of and one Newton step, interior points do the work."""
    poor = {"max_iters": 1, "newton_iters": 1, "multiplier_iters": 0}
    rng = np.random.default_rng(5)
    instance = manufacture.feasible(rng, 12, {"z": 3, "l": 6, "q": [4, 3], "s": [3, 2]})
    args = (instance.P, instance.q, instance.A, instance.b, instance.cones)
    without = mlxcone.solve(*args, **poor, interior_iters=0)
    assert without.info.status.item() != mlxcone.Status.SOLVED
    found = mlxcone.solve(*args, **poor)
    assert found.info.status.item() == mlxcone.Status.SOLVED
    instance.check(*(np.array(v) for v in found[:3]), tolerance=1e-7)


def test_a_batch_is_the_same_as_its_lanes() -> None:
    """Lanes that end at different times do not disturb each other."""
    rng = np.random.default_rng(6)
    instance = manufacture.feasible(rng, 10, {"z": 2, "l": 12, "q": [4]})
    args = [np.asarray(v, dtype=np.float64) for v in (instance.P, instance.A)]
    qs = np.stack([instance.q, 3 * instance.q, instance.q - 1])
    poor = {"max_iters": 1, "newton_iters": 0, "multiplier_iters": 0}
    together = mlxcone.solve(args[0], qs, args[1], instance.b, instance.cones, **poor)
    for lane, q in enumerate(qs):
        alone = mlxcone.solve(args[0], q, args[1], instance.b, instance.cones, **poor)
        assert alone.info.status.item() == np.array(together.info.status)[lane]
        np.testing.assert_allclose(np.array(together.x[lane]), np.array(alone.x), atol=1e-7)
