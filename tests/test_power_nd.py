"""Power cones of many rows against plain NumPy, their three-dimensional case, and Clarabel."""

import inspect
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np
import pytest

import mlxcone
from mlxcone import Cones
from mlxcone.cones.power import Power
from mlxcone.cones.power_nd import PowerND
from mlxcone.testing import manufacture, project_cone, project_dual_cone

Array = np.ndarray

# One group for each number of exponents.
GROUPS = [
    PowerND(((0.5, 0.5), (0.3, 0.7), (1e-3, 1.0 - 1e-3))),
    PowerND(((0.2, 0.3, 0.5), (0.98, 0.01, 0.01), (1 / 3, 1 / 3, 1 / 3), (0.999, 5e-4, 5e-4))),
    PowerND(((0.6, 0.1, 0.1, 0.2), (0.25, 0.25, 0.25, 0.25))),
    PowerND(((0.1,) * 10, (0.91, *[0.01] * 9))),
]
every_group = pytest.mark.parametrize("cone", GROUPS, ids=lambda c: f"k={len(c.alphas[0])}")
MAGNITUDES = (1.0, 1.0, 1.0, 1e-1, 1e-3, 1e-6, 1e-12, 0.0)


@pytest.fixture(autouse=True)
def _on_cpu():  # float64 exists nowhere else
    with mx.stream(mx.cpu):
        yield


def shape_of(cone: PowerND) -> tuple[int, int]:
    return len(cone.alphas), 1 + len(cone.alphas[0])


def wide(v: Array) -> mx.array:
    return mx.array(v, dtype=mx.float64)


def project(cone: PowerND | Power, z: Array, dtype: mx.Dtype = mx.float64) -> Array:
    """project_dual of (B, count, k + 1)."""
    flat = mx.array(z.reshape(z.shape[0], -1), dtype=dtype)
    return np.array(cone.project_dual(flat)).astype(np.float64).reshape(z.shape)


def dense(cone: Any, z: Array, function: Callable[[mx.array], mx.array] = lambda e: e) -> Array:
    """function(D), (B, count, k + 1, k + 1), and that different cones do not mix."""
    eye = mx.eye(cone.rows, dtype=mx.float64)[None]
    full = np.array(cone.spectral(cone.derivative(wide(z.reshape(z.shape[0], -1))), function, eye))
    _, count, width = z.shape
    blocks = full.reshape(-1, count, width, count, width)
    kept = np.stack([blocks[:, i, :, i] for i in range(count)], axis=1)
    assert np.count_nonzero(full) == np.count_nonzero(kept)
    return kept


def size(z: Array) -> Array:
    return np.max(np.abs(z), axis=-1)


def odd_points(cone: PowerND, lanes: int, seed: int = 0) -> Array:
    """All sign patterns, zeros, boundaries of the cone and of its polar, and 24 magnitudes."""
    rng = np.random.default_rng(seed)
    shape = (lanes, *shape_of(cone))
    a = np.array(cone.alphas)
    z = rng.standard_normal(shape) * rng.choice(MAGNITUDES, shape)
    kind = rng.integers(0, 5, shape[:2])[..., None]
    w = np.abs(z[..., :-1])
    near = 1.0 + rng.choice([-1.0, 0.0, 1.0], shape[:2]) * 10.0 ** rng.uniform(-16, -1, shape[:2])
    edge = np.concatenate([w, (np.prod(w**a, axis=-1) * near)[..., None]], axis=-1)
    opposite = edge * np.concatenate([-a, np.ones_like(a[:, :1])], axis=-1)
    z = np.where(kind == 0, edge, np.where(kind == 1, opposite, z))
    z = np.where(kind == 2, rng.standard_normal(shape), z)
    return z * 10.0 ** rng.uniform(-12, 12, (lanes, 1, 1))


def belongs(v: Array, a: Array, weights: Array) -> bool:
    """Whether prod (w_i / weights_i)^a_i >= |z| and w >= 0 within 1e-14 of each v."""
    # Of w, not of the product: near w = 0 that sees rounding through a small power.
    w, last = v[..., :-1] + 1e-14, np.abs(v[..., -1])
    if w.min() < 0.0:
        return False
    return bool((last <= np.prod((w / weights) ** a, axis=-1) * (1.0 + 1e-10) + 1e-14).all())


def reference(cone: PowerND, z: Array) -> Array:
    lists = [{"pnd": [list(alphas)]} for alphas in cone.alphas]
    return np.stack(
        [[project_dual_cone(one, v) for one, v in zip(lists, lane, strict=True)] for lane in z]
    )


# --- the projection -----------------------------------------------------------------------------


@every_group
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(mx.float64, 1e-14), (mx.float32, 1e-6)], ids=["wide", "narrow"]
)
def test_projection_is_the_reference(cone: PowerND, dtype: mx.Dtype, tolerance: float) -> None:
    z = odd_points(cone, 200)
    if dtype == mx.float32:
        z = z.astype(np.float32).astype(np.float64)
    error = size(project(cone, z, dtype) - reference(cone, z)) / np.maximum(size(z), 1e-100)
    assert error.max() <= tolerance


@every_group
def test_projection_splits_every_point_into_orthogonal_parts(cone: PowerND) -> None:
    """Moreau's conditions, which no other point meets; membership is by the definition."""
    z = odd_points(cone, 1000, seed=1)
    z = z / np.maximum(size(z), 1e-100)[..., None]
    y, a = project(cone, z), np.array(cone.alphas)
    s = y - z
    assert belongs(y, a, a)
    assert belongs(s, a, np.ones_like(a))
    assert np.abs(np.sum(y * s, axis=-1)).max() <= 1e-14


@every_group
def test_float32_is_right_to_1e_6_everywhere(cone: PowerND) -> None:
    z = odd_points(cone, 4000, seed=2).astype(np.float32).astype(np.float64)
    error = size(project(cone, z, mx.float32) - project(cone, z)) / np.maximum(size(z), 1e-30)
    assert error.max() <= 1e-6


def test_two_exponents_make_the_cone_of_three_rows() -> None:
    a = (1e-3, 0.02, 0.3, 0.5, 0.62, 0.9)
    many, three = PowerND(tuple((e, 1.0 - e) for e in a)), Power(a)
    z = odd_points(many, 1000, seed=3)
    error = size(project(many, z) - project(three, z)) / np.maximum(size(z), 1e-100)
    assert error.max() <= 1e-14
    z = np.random.default_rng(0).standard_normal(z.shape)
    np.testing.assert_allclose(dense(many, z), dense(three, z), rtol=0, atol=1e-12)


# --- its derivative -----------------------------------------------------------------------------


@every_group
def test_derivative_is_the_limit_of_differences(cone: PowerND) -> None:
    z, h = np.random.default_rng(5).standard_normal((400, *shape_of(cone))), 1e-6
    steps = h * np.eye(z.shape[-1])
    columns = [(project(cone, z + e) - project(cone, z - e)) / (2.0 * h) for e in steps]
    error = np.abs(dense(cone, z) - np.stack(columns, axis=-1)).max(axis=(1, 2, 3))
    # The third derivative is large where |z| is small or a kink close by.
    assert np.quantile(error, 0.9) <= 1e-8
    assert error.max() <= 1e-3


@every_group
def test_derivative_is_symmetric_between_0_and_1(cone: PowerND) -> None:
    z = odd_points(cone, 1000, seed=4)
    D, y = dense(cone, z), project(cone, z)
    np.testing.assert_allclose(D, np.swapaxes(D, -1, -2), rtol=0, atol=1e-14)
    values = np.linalg.eigvalsh(D)
    assert values.min() >= -1e-14
    assert values.max() <= 1.0 + 1e-14
    # y is kept and s removed.
    kept = np.einsum("bcij,bcj->bci", D, y)
    assert (size(kept - y) / np.maximum(size(z), 1e-300)).max() <= 1e-12


def test_derivative_where_z_is_zero() -> None:
    """Hien's limits along z: 1 if the exponents of positive entries prevail, 0 if the others."""
    cone = PowerND(((0.2, 0.3, 0.5), (0.4, 0.3, 0.3), (0.1, 0.1, 0.8)))
    z = np.broadcast_to(np.array([1.0, 2.0, -3.0, 0.0]), (1, 3, 4))
    for matrix, along in zip(dense(cone, -z)[0], (None, 0.0, 1.0), strict=True):
        np.testing.assert_allclose(np.diag(matrix)[:3], [0.0, 0.0, 1.0], rtol=0, atol=1e-14)
        if along is not None:
            assert matrix[3, 3] == pytest.approx(along, abs=1e-14)


@every_group
def test_second_derivatives(cone: PowerND) -> None:
    """Of D as a function of z, for D itself and for a function of it."""
    rng = np.random.default_rng(6)
    z, dz = rng.standard_normal((2, 100, cone.rows))
    v = wide(rng.standard_normal((100, cone.rows, 1)))
    for function in (lambda e: e, lambda e: e / (1.1 - e)):

        def image(z: mx.array, function: Callable = function) -> mx.array:
            return cone.spectral(cone.derivative(z), function, v)

        found = np.array(mx.jvp(image, [wide(z)], [wide(dz)])[1][0])
        ends = [np.array(image(wide(z + h * dz))) for h in (1e-6, -1e-6)]
        expected = (ends[0] - ends[1]) / 2e-6
        error = (np.abs(found - expected) / (1.0 + np.abs(expected))).max(axis=(1, 2))
        assert np.quantile(error, 0.5) <= 1e-7
        assert np.quantile(error, 0.8) <= 1e-4  # differences, close to a kink


def test_projection_is_differentiable_twice() -> None:
    cone = PowerND(((0.2, 0.3, 0.5),))
    rng = np.random.default_rng(7)
    z, dz, weight = (wide(v) for v in rng.standard_normal((3, 60, 4)))
    slope = mx.grad(lambda z: mx.sum(weight * cone.project_dual(z)))
    first = np.einsum("bij,bj->bi", dense(cone, np.array(z)[:, None])[:, 0], np.array(weight))
    np.testing.assert_allclose(np.array(slope(z)), first, rtol=0, atol=1e-12)
    found = np.array(mx.jvp(slope, [z], [dz])[1][0])
    expected = np.array((slope(z + 1e-6 * dz) - slope(z - 1e-6 * dz)) / 2e-6)
    error = (np.abs(found - expected) / (1.0 + np.abs(expected))).max(axis=1)
    assert np.quantile(error, 0.9) <= 1e-7


@every_group
def test_gradients_are_numbers_at_odd_points(cone: PowerND) -> None:
    z = wide(odd_points(cone, 500, seed=5).reshape(500, -1))
    v = mx.ones((1, cone.rows, 1), dtype=mx.float64)
    outputs = [
        lambda z: mx.sum(cone.spectral(cone.derivative(z), lambda e: e, v)),
        lambda z: mx.sum(cone.project_dual(z)),
    ]
    for output in outputs:
        assert not np.isnan(np.array(mx.grad(output)(z))).any()


# --- the group ----------------------------------------------------------------------------------


@every_group
def test_vmap_is_the_batch(cone: PowerND) -> None:
    z = wide(odd_points(cone, 50).reshape(50, -1))
    alone = mx.vmap(lambda v: cone.project_dual(v[None])[0])(z)
    np.testing.assert_array_equal(np.array(alone), np.array(cone.project_dual(z)))
    eye = mx.eye(cone.rows, dtype=mx.float64)[None]
    found = mx.vmap(lambda v: cone.spectral(cone.derivative(v[None]), lambda e: e, eye)[0])(z)
    expected = cone.spectral(cone.derivative(z), lambda e: e, eye)
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "bad", [((0.5, 0.6),), ((1.2, -0.2),), ((1.0,),), ((0.5, 0.5), (0.2, 0.3, 0.5))], ids=str
)
def test_bad_exponents_are_refused(bad: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValueError, match="exponents"):
        PowerND(bad)


# --- programs -----------------------------------------------------------------------------------

SCS = {"z": 1, "l": 2, "pnd": [[0.2, 0.3, 0.5], [0.4, 0.6], [0.7, 0.1, 0.1, 0.1]]}


def test_solutions_of_manufactured_programs() -> None:
    for seed in range(3):
        one = manufacture.feasible(np.random.default_rng(seed), 6, SCS, unique=True)
        P, q, A, b, cones = one.data
        found = mlxcone.solve(P, q, A, b, cones)
        one.check(*(np.array(v) for v in (found.x, found.y, found.s)), tolerance=1e-7)


def test_gradients_are_those_of_differences() -> None:
    rng = np.random.default_rng(8)
    one = manufacture.feasible(rng, 6, SCS, unique=True)
    P, q, A, b, cones = one.data
    weight, direction = wide(rng.standard_normal(6)), wide(rng.standard_normal(b.size))

    def loss(b: mx.array) -> mx.array:
        found = mlxcone.solve(wide(P), wide(q), wide(A), b, cones, eps=1e-11)
        return mx.sum(weight * found.x)

    slope = mx.sum(mx.grad(loss)(wide(b)) * direction).item()
    h = 1e-5
    expected = (loss(wide(b) + h * direction) - loss(wide(b) - h * direction)).item() / (2 * h)
    assert slope == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_cones_are_grouped_by_size_and_hashable() -> None:
    cones = Cones(power_nd=[np.array([0.5, 0.5 + 1e-7]), [0.2, 0.8]])  # type: ignore[arg-type]
    assert cones.rows == 6
    assert hash(cones) == hash(Cones.of({"pnd": cones.power_nd}))
    assert all(abs(sum(alphas) - 1.0) <= 1e-15 for alphas in cones.power_nd)


# --- CVXPY --------------------------------------------------------------------------------------

Case = tuple[cp.Problem, list[Any]]


def one_cone() -> Case:
    w, z = cp.Variable(3), cp.Variable()
    rows = [cp.PowConeND(w, z, np.array([0.2, 0.3, 0.5])), cp.sum(w) <= 2, w[0] - w[1] == 0.1]
    return cp.Problem(cp.Minimize(-3 * z + cp.sum_squares(w)), rows), [w, z]


def several_cones(axis: int) -> Case:
    alpha = np.array([[0.2, 0.6], [0.3, 0.1], [0.5, 0.3]])
    alpha = alpha if axis == 0 else alpha.T
    W, z = cp.Variable(alpha.shape), cp.Variable(2)
    limits = [cp.sum(W, axis=axis) <= np.array([1.0, 2.0]), cp.sum(W) >= 0.3]
    objective = cp.Maximize(z[0] + 2 * z[1] - cp.sum_squares(W))
    return cp.Problem(objective, [cp.PowConeND(W, z, alpha, axis=axis), *limits]), [W, z]


def negative_z_and_uneven_exponents() -> Case:
    w, z = cp.Variable(4), cp.Variable()
    target = np.array([0.1, 0.2, 3.0, 1.0])
    rows = [cp.PowConeND(w, z, np.array([0.97, 0.01, 0.01, 0.01])), w[:2] <= 1, z <= -0.3]
    return cp.Problem(cp.Minimize(cp.sum_squares(w - target) + z), [*rows, cp.sum(w) <= 3]), [w, z]


def two_constraints() -> Case:
    w, u, z = cp.Variable(3), cp.Variable(3), cp.Variable(2)
    powers = [
        cp.PowConeND(w, z[0], np.array([0.2, 0.3, 0.5])),
        cp.PowConeND(u, z[1], np.array([0.2, 0.7, 0.1])),
    ]
    rows = [*powers, cp.sum(w) <= 1, cp.sum(u) <= 1]
    return cp.Problem(cp.Maximize(cp.sum(z)), rows), [w, u, z]


def weighted_mean() -> Case:
    x = cp.Variable(4, nonneg=True)
    rows = [np.random.default_rng(0).uniform(0.1, 1.0, (3, 4)) @ x <= 1]
    mean = cp.geo_mean(x, [1, 2, 0.5, 0.3], approx=False)
    return cp.Problem(cp.Maximize(mean), rows), [x]


def means_of_columns() -> Case:
    X = cp.Variable((3, 4), nonneg=True)
    means = cp.sum(cp.geo_mean(X, [1, 2, 0.5], approx=False, axis=0))
    rows = [cp.sum(X) <= 5, X <= 1, X[0] >= 0.2]
    return cp.Problem(cp.Maximize(means - cp.sum_squares(X)), rows), [X]


CASES = [
    one_cone,
    lambda: several_cones(0),
    lambda: several_cones(1),
    negative_z_and_uneven_exponents,
    two_constraints,
    weighted_mean,
    pytest.param(
        means_of_columns,
        marks=pytest.mark.skipif(
            "axis" not in inspect.signature(cp.geo_mean).parameters,
            reason="this release of CVXPY has no means along an axis",
        ),
    ),
]


def answer(case: Case, solver: Any, **options: Any) -> list[Array]:
    problem, variables = case
    problem.solve(solver, **options)
    duals = [dual.value for c in problem.constraints for dual in c.dual_variables]
    return [np.array(problem.value), *(v.value for v in variables), *map(np.array, duals)]


# Clarabel calls what it reaches here inaccurate, with all digits right.
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("build", CASES)
def test_values_and_duals_are_clarabels(build: Callable[[], Case]) -> None:
    exact = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}
    case = build()
    dims = case[0].get_problem_data(mlxcone.MLXCONE())[0]["dims"]
    assert dims.pnd
    assert not dims.p3d
    expected = answer(build(), cp.CLARABEL, **exact)
    found = answer(case, mlxcone.MLXCONE())
    assert case[0].status == cp.OPTIMAL
    for f, e in zip(found, expected, strict=True):
        assert f.shape == e.shape
        np.testing.assert_allclose(f, e, rtol=0, atol=1e-6)


def test_cones_of_unequal_sizes_are_split() -> None:
    """CVXPY cannot list their exponents side by side: with Clarabel this problem fails."""
    w, u, z = cp.Variable(3), cp.Variable(2), cp.Variable(2)
    alphas = np.array([0.2, 0.3, 0.5]), np.array([0.2, 0.8])
    powers = [cp.PowConeND(w, z[0], alphas[0]), cp.PowConeND(u, z[1], alphas[1])]
    problem = cp.Problem(cp.Maximize(cp.sum(z)), [*powers, cp.sum(w) <= 1, cp.sum(u) <= 1])
    problem.solve(mlxcone.MLXCONE())
    np.testing.assert_allclose(w.value, alphas[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(u.value, alphas[1], rtol=0, atol=1e-6)
    best = [np.prod(a**a) for a in alphas]
    np.testing.assert_allclose(z.value, best, rtol=0, atol=1e-7)
    for power, k, value in zip(powers, (3, 2), best, strict=True):
        np.testing.assert_allclose(power.dual_variables[0].value, [value] * k, rtol=0, atol=1e-6)


def test_means_of_unequal_sizes_are_split() -> None:
    x = cp.Variable(4, nonneg=True)
    mean = cp.geo_mean(x, [1, 2, 0.5, 0.3], approx=False)
    rows = [cp.sum(x) <= 1, cp.geo_mean(x[:2], approx=False) >= 0.1]
    problem = cp.Problem(cp.Maximize(mean), rows)
    problem.solve(mlxcone.MLXCONE())
    weights = np.array([1, 2, 0.5, 0.3]) / 3.8
    np.testing.assert_allclose(x.value, weights, rtol=0, atol=1e-6)


# --- the reference ------------------------------------------------------------------------------


def test_reference_is_the_nearest_point() -> None:
    """Moreau: nearest exactly if the rest is in the polar and orthogonal."""
    a = np.array([0.6, 0.3, 0.1])
    z = np.random.default_rng(9).standard_normal((200, 4))
    p = np.stack([project_cone({"pnd": [a]}, v) for v in z])
    assert belongs(p, a, np.ones_like(a))
    assert belongs(p - z, a, a)
    assert np.abs(np.sum(p * (p - z), axis=-1)).max() <= 1e-13


@pytest.mark.parametrize("bad", [[[0.5, 0.6]], [[1.0]], [0.5, 0.5], [[1.5, -0.5]], 3], ids=str)
def test_reference_refuses_bad_exponents(bad: Any) -> None:
    with pytest.raises(ValueError, match="pnd"):
        project_cone({"pnd": bad}, np.zeros(3))
