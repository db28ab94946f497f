"""The semidefinite cone: both projections, the derivative where eigenvalues meet, and its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from test_portability import assert_portable, trace

import mlxcone
from mlxcone.cones import positive_part, semidefinite, sign_iteration
from mlxcone.cones.description import Cones
from mlxcone.cones.product import Product
from mlxcone.cones.second_order import SecondOrder
from mlxcone.cones.semidefinite import Semidefinite, Semidefinite2
from mlxcone.testing import project_cone

Array = np.ndarray
Function = Callable[[Any], Any]
ORDERS = range(2, 9)
SCALES = (1e-12, 1e-6, 1.0, 1e6, 1e12)
ROOT = np.sqrt(2.0)


def cones_of(order: int) -> list[Any]:
    """Every class that can be one cone of this order."""
    general = Semidefinite(1, order)
    return [Semidefinite2(1), general] if order == 2 else [general]


EVERY_CONE = [(order, cone) for order in ORDERS for cone in cones_of(order)]
every_cone = pytest.mark.parametrize(("order", "cone"), EVERY_CONE, ids=repr)


def triangle(matrix: Array) -> Array:
    k = matrix.shape[-1]
    lower = [(i, j) for j in range(k) for i in range(j, k)]
    return np.stack([matrix[..., i, j] * (1.0 if i == j else ROOT) for i, j in lower], axis=-1)


def orthogonal(rng: np.random.Generator, *shape: int) -> Array:
    return np.linalg.qr(rng.standard_normal((*shape, shape[-1])))[0]


def with_eigenvalues(rng: np.random.Generator, values: Any) -> Array:
    """Random symmetric matrices, (..., n, n), with eigenvalues (..., n)."""
    values = np.asarray(values, dtype=np.float64)
    Q = orthogonal(rng, *values.shape)
    X = (Q * values[..., None, :]) @ Q.swapaxes(-1, -2)
    return 0.5 * (X + X.swapaxes(-1, -2))


def spectra(rng: np.random.Generator, n: int) -> dict[str, Array]:
    """Eigenvalues, (n,), at every kind of place; the largest is about 1."""
    signs = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    low_rank = np.zeros(n)
    low_rank[:2] = 1.0, -0.5
    one_away = np.ones(n)
    one_away[0] = -1e-6
    return {
        "any": rng.standard_normal(n),
        "two opposite": signs,
        "clustered": signs * rng.choice([1.0, 1.0 / np.sqrt(3.0), 1e-3], n),
        "low rank": low_rank,
        "of all sizes": signs * 10.0 ** np.linspace(0.0, -9.0, n),
        "near zero": np.concatenate([[1.0], 1e-7 * signs[1:]]),
        "inside": rng.uniform(0.1, 1.0, n),
        "polar": -rng.uniform(0.1, 1.0, n),
        "one is away": one_away,
        "identity": np.ones(n),
        "minus identity": -np.ones(n),
        "zero": np.zeros(n),
    }


def points(order: int) -> tuple[list[str], Array]:
    """Names and rows of points of every kind and scale, (B, rows)."""
    rng = np.random.default_rng(order)
    kinds = spectra(rng, order)
    plain = [triangle(with_eigenvalues(rng, values)) for values in kinds.values()]
    names = [f"{name} {c:g}" for c in SCALES for name in kinds]
    return names, np.concatenate([c * np.stack(plain) for c in SCALES])


def projected(cone: Any, z: Array, dtype: mx.Dtype = mx.float64) -> Array:
    with mx.stream(mx.cpu):
        return np.array(cone.project_dual(mx.array(z, dtype=dtype))).astype(np.float64)


def reference(order: int, z: Array) -> Array:
    return np.stack([project_cone({"s": [order]}, lane) for lane in np.atleast_2d(z)])


def dense(cone: Any, z: Array, function: Function = lambda e: e) -> Array:
    """function(D) at several points, (B, m, m)."""
    with mx.stream(mx.cpu):
        atoms = cone.derivative(mx.array(np.atleast_2d(z), dtype=mx.float64))
        return np.array(cone.spectral(atoms, function, mx.eye(cone.rows, dtype=mx.float64)[None]))


def wide(values: Any) -> mx.array:
    return mx.array(values, dtype=mx.float64)


# --- projection ---------------------------------------------------------------------------------


@every_cone
@pytest.mark.parametrize(("dtype", "bar"), [(mx.float64, 1e-12), (mx.float32, 1e-6)], ids=str)
def test_projection_is_the_references(order: int, cone: Any, dtype: mx.Dtype, bar: float) -> None:
    names, z = points(order)
    if dtype == mx.float32:
        z = z.astype(np.float32).astype(np.float64)
    found, expected = projected(cone, z, dtype), reference(order, z)
    # float32's eigenvalues round relative to the largest, which may exceed the entries.
    norms = np.linalg.norm(z, axis=1)
    for name, difference, norm in zip(names, found - expected, norms, strict=True):
        assert np.abs(difference).max() <= bar * norm, name


@every_cone
def test_idempotent_and_moreau(order: int, cone: Any) -> None:
    names, z = points(order)
    y = projected(cone, z)
    s, again = y - z, projected(cone, y)
    apart = projected(cone, s)  # K is its own dual: s lies in it as well
    sizes = np.abs(z).max(axis=1)
    for i, name in enumerate(names):
        assert np.abs(again[i] - y[i]).max() <= 1e-12 * sizes[i], name
        assert np.abs(apart[i] - s[i]).max() <= 1e-12 * sizes[i], name
        assert abs(y[i] @ s[i]) <= 1e-12 * cone.rows * sizes[i] ** 2, name


@every_cone
def test_nan_in_one_lane_leaves_the_others_alone(order: int, cone: Any) -> None:
    z = np.random.default_rng(0).standard_normal((3, cone.rows))
    expected, D = projected(cone, z), dense(cone, z)
    z[1, -1] = np.nan
    found = projected(cone, z)
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
    np.testing.assert_array_equal(dense(cone, z)[[0, 2]], D[[0, 2]])
    assert np.isnan(found[1]).all()


@every_cone
def test_vmap_is_a_batch(order: int, cone: Any) -> None:
    z = np.random.default_rng(1).standard_normal((2, 3, cone.rows))
    with mx.stream(mx.cpu):
        found = np.array(mx.vmap(cone.project_dual)(wide(z)))
        turned = np.array(mx.vmap(cone.project_dual, in_axes=1, out_axes=1)(wide(z)))
    expected = projected(cone, z.reshape(6, -1)).reshape(z.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(turned, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("order", ORDERS)
def test_several_cones_in_a_group(order: int) -> None:
    product = Product(Cones(psd=(order, order, order)))
    (group,) = product.groups
    z = np.random.default_rng(2).standard_normal((4, product.rows))
    alone = [reference(order, part) for part in np.split(z, 3, axis=1)]
    np.testing.assert_allclose(projected(group, z), np.hstack(alone), rtol=0, atol=1e-13)


@pytest.mark.usefixtures("on_cpu")
def test_order_2_is_a_turned_second_order_cone() -> None:
    assert Product(Cones(psd=(2, 2))).groups == [Semidefinite2(2)]
    turned, general = Semidefinite2(1), Semidefinite(1, 2)
    _, z = points(2)
    np.testing.assert_allclose(
        projected(turned, z) / np.maximum(np.abs(z).max(axis=1, keepdims=True), 1e-300),
        projected(general, z) / np.maximum(np.abs(z).max(axis=1, keepdims=True), 1e-300),
        rtol=0,
        atol=1e-14,
    )
    z = np.random.default_rng(3).standard_normal((20, 3))
    np.testing.assert_allclose(dense(turned, z), dense(general, z), rtol=0, atol=1e-13)
    isometry = np.array(turned._turn(wide(np.eye(3))))
    np.testing.assert_allclose(isometry @ isometry, np.eye(3), rtol=0, atol=1e-15)
    np.testing.assert_array_equal(isometry, isometry.T)
    assert turned.rows == SecondOrder(1, 3).rows


def test_order_2_needs_no_factorization() -> None:
    cones = Product(Cones(psd=(2, 2)))

    def both(z: mx.array, v: mx.array) -> tuple[mx.array, ...]:
        atoms = cones.derivative(z)
        return cones.project(z), cones.apply_derivative(atoms, v), cones.signature(atoms)

    z = mx.array(np.random.default_rng(0).standard_normal((3, 6)), dtype=mx.float32)
    assert_portable(trace(both, z, z))


# --- projection by products alone ---------------------------------------------------------------


def by_products(matrices: Array) -> Array:
    return np.array(sign_iteration.project(mx.array(matrices, dtype=mx.float32))).astype(np.float64)


def positive(matrices: Array) -> Array:
    values, vectors = np.linalg.eigh(matrices)
    return (vectors * np.maximum(values, 0.0)[..., None, :]) @ vectors.swapaxes(-1, -2)


@pytest.mark.parametrize("order", [2, 3, 5, 10, 30, 100])
def test_products_alone_project_to_float32(order: int) -> None:
    rng = np.random.default_rng(order)
    repeats, scales = max(1, 60 // order), (1e-12, 1.0, 1e12) if order < 30 else (1.0,)
    for name, values in spectra(rng, order).items():
        X = with_eigenvalues(rng, np.tile(values, (repeats, 1)))
        X = X.astype(np.float32).astype(np.float64)
        for scale in scales:
            error = np.abs(by_products(scale * X) - scale * positive(X))
            norm = np.abs(np.linalg.eigvalsh(X)).max()
            assert error.max() <= 4e-6 * scale * norm, f"{name} {scale:g}"


def test_products_alone_at_the_worst_eigenvalues() -> None:
    """All sizes of eigenvalues, one by one: diagonal matrices do not round."""
    small = np.logspace(-9.0, 0.0, 4001)
    for sign in (1.0, -1.0):
        X = np.zeros((small.size, 2, 2))
        X[:, 0, 0], X[:, 1, 1] = 1.0, sign * small
        assert np.abs(by_products(X) - np.maximum(X, 0.0)).max() <= 1.5e-6


def test_products_alone_return_symmetric_matrices_and_zero_for_zero() -> None:
    X = with_eigenvalues(np.random.default_rng(0), np.ones((4, 6)) * [1, -1, 2, -2, 0, 3])
    found = by_products(X)
    np.testing.assert_array_equal(found, found.swapaxes(-1, -2))
    np.testing.assert_array_equal(by_products(np.zeros((2, 3, 3))), np.zeros((2, 3, 3)))


def test_products_alone_keep_nan_in_its_lane() -> None:
    X = with_eigenvalues(np.random.default_rng(0), np.ones((3, 1, 4)) * [1.0, -1.0, 2.0, -2.0])
    expected = by_products(X)
    for bad in (np.nan, np.inf):
        X[1, 0, 2, 2] = bad
        found = by_products(X)
        np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
        assert np.isnan(found[1]).all()


@pytest.fixture
def products_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: float32 projects by products."""
    monkeypatch.setattr(semidefinite, "_by_products", lambda dtype: dtype == mx.float32)


def test_float32_projects_by_products_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with mx.stream(mx.cpu):
        assert not semidefinite._by_products(mx.float32)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.DeviceType.gpu))
    assert semidefinite._by_products(mx.float32)
    assert not semidefinite._by_products(mx.float64)


@pytest.mark.parametrize("order", [3, 6])
def test_on_a_gpu_the_projection_stays_there(products_only: None, order: int) -> None:
    cones = Product(Cones(psd=(order, order)))
    z = mx.array(np.random.default_rng(0).standard_normal((3, cones.rows)), dtype=mx.float32)
    assert_portable(trace(lambda z: cones.project(z), z))


def test_products_alone_solve_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    q, A, b, cones = correlation(4)
    problem = correlation_problem(q, A, b)
    exact = mlxcone.solve(*problem, cones, eps=1e-10)
    calls = []
    project = sign_iteration.project
    monkeypatch.setattr(semidefinite, "_by_products", lambda dtype: dtype == mx.float32)
    monkeypatch.setattr(sign_iteration, "project", lambda X: calls.append(X.dtype) or project(X))
    found = mlxcone.solve(*problem, cones, eps=1e-10)
    assert set(calls) == {mx.float32}
    assert np.array(found.info.status).tolist() == [1, 1]
    assert np.abs(np.array(found.info.iterations - exact.info.iterations)).max() <= 25
    np.testing.assert_allclose(np.array(found.x), np.array(exact.x), rtol=0, atol=1e-8)


# --- derivative ---------------------------------------------------------------------------------

AWAY_FROM_ZERO = {
    "simple": (1.0, 2.0, -1.0, -3.0),
    "repeated, positive": (1.0, 1.0, -1.0, -3.0),
    "repeated, negative": (1.0, 2.0, -2.0, -2.0),
    "both repeated": (1.5, 1.5, -1.0, -1.0),
    "opposite": (1.0, 1.0, 1.0, -1.0),
    "nearly repeated": (1.0, 1.0 + 1e-9, -1.0, -1.0 - 1e-7),
    "all equal": (2.0, 2.0, 2.0, 2.0),
    "all equal, negative": (-2.0, -2.0, -2.0, -2.0),
    "of order 2": (1.0, -2.0),
    "of order 2, opposite": (1.0, -1.0),
    "of order 3": (1.0, 1.0, -0.5),
    "of order 6": (1.0, 1.0, 1.0, -0.5, -0.5, 3.0),
}
at_smooth_points = pytest.mark.parametrize("values", AWAY_FROM_ZERO.values(), ids=AWAY_FROM_ZERO)
DIRECTIONS = 3


@at_smooth_points
def test_derivative_is_the_limit_of_differences(values: tuple[float, ...]) -> None:
    order, h = len(values), 1e-5
    z = triangle(with_eigenvalues(np.random.default_rng(0), values))
    for cone in cones_of(order):
        steps = h * np.eye(cone.rows)
        differences = (reference(order, z + steps) - reference(order, z - steps)).T / (2.0 * h)
        np.testing.assert_allclose(dense(cone, z)[0], differences, rtol=0, atol=1e-8)


WITH_ZEROS = {
    "one": (1.0, 0.0, -1.0),
    "two": (1.0, 0.0, 0.0, -1.0),
    "on the face": (1.0, 2.0, 0.0, 0.0),
    "on the polar face": (-1.0, -2.0, 0.0, 0.0),
    "nothing else": (0.0, 0.0, 0.0),
    "of order 2": (1.0, 0.0),
    "nothing else, of order 2": (0.0, 0.0),
}


@pytest.mark.parametrize("values", WITH_ZEROS.values(), ids=WITH_ZEROS)
def test_at_zero_eigenvalues_it_is_a_generalized_derivative(values: tuple[float, ...]) -> None:
    rng, order = np.random.default_rng(1), len(values)
    Q = orthogonal(rng, order)
    z = triangle((Q * np.array(values)) @ Q.T)
    for cone in cones_of(order):
        (D,) = dense(cone, z)
        assert np.isfinite(D).all()
        np.testing.assert_allclose(D, D.T, rtol=0, atol=1e-14)
        eigenvalues = np.linalg.eigvalsh(D)
        assert eigenvalues.min() >= -1e-13
        assert eigenvalues.max() <= 1.0 + 1e-13
        # What leaves the zero eigenvalues at zero moves the projection smoothly.
        inner = rng.standard_normal((order, order))
        inner = inner + inner.T
        kernel = np.array(values) == 0.0
        inner[np.ix_(kernel, kernel)] = 0.0
        direction, h = triangle(Q @ inner @ Q.T), 1e-6
        moved = (reference(order, z + h * direction) - reference(order, z))[0] / h
        np.testing.assert_allclose(D @ direction, moved, rtol=0, atol=1e-4)


def test_derivative_on_either_side_of_zero() -> None:
    """At an eigenvalue of zero the two one-sided derivatives bracket D."""
    order, h = 4, 1e-7
    z = triangle(np.diag([2.0, 1.0, 0.0, -1.0]))
    up = triangle(np.diag([0.0, 0.0, 1.0, 0.0]))
    (D,) = dense(Semidefinite(1, order), z)
    right = (reference(order, z + h * up) - reference(order, z))[0] / h
    left = (reference(order, z) - reference(order, z - h * up))[0] / h
    np.testing.assert_allclose([left @ up, right @ up], [0.0, 1.0], rtol=0, atol=1e-6)
    assert left @ up - 1e-6 <= up @ D @ up <= right @ up + 1e-6


@at_smooth_points
@pytest.mark.parametrize("eps", [1e-1, 1e-3, 1e-6])
def test_functions_of_the_derivative(values: tuple[float, ...], eps: float) -> None:
    z = triangle(with_eigenvalues(np.random.default_rng(2), values))
    for cone in cones_of(len(values)):
        (D,) = dense(cone, z)
        (found,) = dense(cone, z, lambda e: e / ((1.0 + eps) - e))
        eye = np.eye(cone.rows)
        expected = D @ np.linalg.inv((1.0 + eps) * eye - D)
        # The last digit of an eigenvalue is amplified by 1 / eps^2.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 / eps**2)


# --- derivatives of the projection and of its derivative ----------------------------------------


class Probe:
    """A scalar function of z, by MLX, and random directions."""

    def __init__(self, cone: Any, values: tuple[float, ...]) -> None:
        rng = np.random.default_rng(5)
        self.cone = cone
        self.z = triangle(with_eigenvalues(rng, values))[None]
        self.weights, self.along, self.v = rng.standard_normal((3, *self.z.shape))

    def projection(self, z: mx.array) -> mx.array:
        return mx.sum(wide(self.weights) * self.cone.project_dual(z))

    def gradient(self, z: mx.array) -> Any:
        return mx.grad(self.projection)(z)

    def applied(self, function: Function) -> Callable[[mx.array], mx.array]:
        """Some number made of function(D(z)) v."""

        def probe(z: mx.array) -> mx.array:
            atoms = self.cone.derivative(z)
            return mx.sum(
                wide(self.weights)[..., None]
                * self.cone.spectral(atoms, function, wide(self.v)[..., None])
            )

        return probe

    def slope(self, function: Callable[[mx.array], mx.array], h: float = 1e-4) -> Array:
        """Central difference along the direction, of higher order."""
        near, far = (
            (np.array(function(wide(self.z + step * self.along))))
            - np.array(function(wide(self.z - step * self.along)))
            for step in (h, 2.0 * h)
        )
        return (8.0 * near - far) / (12.0 * h)


def probes(values: tuple[float, ...]) -> list[Probe]:
    return [Probe(cone, values) for cone in cones_of(len(values))]


@at_smooth_points
def test_projection_is_differentiable(values: tuple[float, ...]) -> None:
    for probe in probes(values):
        with mx.stream(mx.cpu):
            expected = probe.slope(probe.projection)
            gradient = np.array(probe.gradient(wide(probe.z)))
            _, (tangent,) = mx.jvp(probe.projection, [wide(probe.z)], [wide(probe.along)])
        np.testing.assert_allclose(np.sum(gradient * probe.along), expected, rtol=0, atol=1e-8)
        np.testing.assert_allclose(np.array(tangent), expected, rtol=0, atol=1e-8)


@at_smooth_points
def test_projection_is_twice_differentiable(values: tuple[float, ...]) -> None:
    for probe in probes(values):
        along = wide(probe.along)
        with mx.stream(mx.cpu):
            expected = probe.slope(probe.gradient)
            hessian = mx.grad(lambda z: mx.sum(probe.gradient(z) * along))  # noqa: B023
            found = np.array(hessian(wide(probe.z)))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


@at_smooth_points
@pytest.mark.parametrize("eps", [None, 1e-1, 1e-3], ids=str)
def test_functions_of_the_derivative_are_differentiable(
    values: tuple[float, ...], eps: float | None
) -> None:
    def function(e: Any) -> Any:
        return e if eps is None else e / ((1.0 + eps) - e)

    for probe in probes(values):
        applied = probe.applied(function)
        with mx.stream(mx.cpu):
            expected = probe.slope(applied)
            gradient = np.array(mx.grad(applied)(wide(probe.z)))
            size = np.abs(gradient).max() + 1.0
            np.testing.assert_allclose(
                np.sum(gradient * probe.along), expected, rtol=0, atol=1e-7 * size
            )
            _, (tangent,) = mx.jvp(applied, [wide(probe.z)], [wide(probe.along)])
            np.testing.assert_allclose(np.array(tangent), expected, rtol=0, atol=1e-7 * size)


def test_what_a_function_captures_has_its_gradient() -> None:
    probe = Probe(Semidefinite(1, 4), AWAY_FROM_ZERO["simple"])

    def of_eps(eps: mx.array) -> mx.array:
        return probe.applied(lambda e: e / ((1.0 + eps) - e))(wide(probe.z))

    with mx.stream(mx.cpu):
        found = mx.grad(of_eps)(wide(0.1)).item()
        ends = [np.array(of_eps(wide(0.1 + h))).item() for h in (1e-5, -1e-5)]
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


def test_vmap_and_gradients_in_either_order() -> None:
    """MLX differentiates the body of a mapped custom function unless its vmap rule calls it."""
    rng = np.random.default_rng(6)
    cone, along = Semidefinite(1, 4), wide(rng.standard_normal((1, 10)))
    weights = wide(rng.standard_normal((1, 10)))

    def loss(z: mx.array) -> mx.array:
        return mx.sum(weights * cone.project_dual(z[None]) ** 2)

    def curve(z: mx.array) -> mx.array:
        return mx.grad(lambda z: mx.sum(mx.grad(loss)(z) * along[0]))(z)

    with mx.stream(mx.cpu):
        z = wide(rng.standard_normal((3, 10)))
        for single in (mx.grad(loss), curve):
            alone = np.stack([np.array(single(lane)) for lane in z])
            assert np.abs(alone).max() > 0.1
            np.testing.assert_allclose(np.array(mx.vmap(single)(z)), alone, rtol=0, atol=1e-12)
        alone = np.stack([np.array(mx.grad(loss)(lane)) for lane in z])
        outside = np.array(mx.grad(lambda z: mx.sum(mx.vmap(loss)(z)))(z))
        np.testing.assert_allclose(outside, alone, rtol=0, atol=1e-12)
        curved = np.stack([np.array(curve(lane)) for lane in z])

        def slope(z: mx.array) -> mx.array:
            return mx.sum(mx.grad(lambda z: mx.sum(mx.vmap(loss)(z)))(z) * along)

        np.testing.assert_allclose(np.array(mx.grad(slope)(z)), curved, rtol=0, atol=1e-12)
        _, (tangents,) = mx.jvp(mx.vmap(loss), [z], [mx.broadcast_to(along, z.shape)])
        np.testing.assert_allclose(np.array(tangents), alone @ np.array(along)[0], atol=1e-12)


def test_third_derivatives_are_refused() -> None:
    probe = Probe(Semidefinite(1, 3), AWAY_FROM_ZERO["of order 3"])

    def second(z: mx.array) -> mx.array:
        return mx.sum(mx.grad(lambda z: mx.sum(probe.gradient(z) ** 2))(z) ** 2)

    with mx.stream(mx.cpu), pytest.raises(NotImplementedError, match="third derivatives"):
        mx.eval(mx.grad(second)(wide(probe.z)))


@pytest.mark.usefixtures("on_cpu")
def test_derivatives_at_zero_eigenvalues_are_finite() -> None:
    eigen = positive_part.decompose(wide(np.zeros((1, 1, 3, 3))))
    assert not np.array(positive_part._second_slopes(eigen.values)).any()
    for values in WITH_ZEROS.values():
        for probe in probes(values):
            with mx.stream(mx.cpu):
                curve = mx.grad(lambda z: mx.sum(probe.gradient(z) ** 2))  # noqa: B023
                assert np.isfinite(np.array(curve(wide(probe.z)))).all()


# --- through the solver -------------------------------------------------------------------------


def correlation(k: int) -> tuple[Array, Array, Array, dict[str, Any]]:
    """Two of: nearest matrix, of unit diagonal and positive semidefinite, to a given one."""
    rng, rows = np.random.default_rng(7), k * (k + 1) // 2
    signs = np.where(np.arange(k) % 2 == 0, 1.0, -1.0)
    q = -triangle(with_eigenvalues(rng, 3.0 * signs * rng.uniform(0.5, 1.0, (2, k))))
    diagonal = triangle(np.eye(k)) > 0
    A = np.concatenate([np.eye(rows)[diagonal], -np.eye(rows)])
    b = np.concatenate([np.ones(k), np.zeros(rows)])
    return q, A, b, {"z": k, "s": [k]}


def correlation_problem(q: Any, A: Any, b: Any) -> tuple[Any, Any, Any, Any]:
    q, A, b = (v if isinstance(v, mx.array) else wide(v) for v in (q, A, b))
    return wide(np.eye(q.shape[-1])), q, A, b


@pytest.mark.parametrize("order", [2, 3, 4])
def test_second_derivatives_of_a_solve(order: int) -> None:
    q, A, b, cones = correlation(order)
    rng = np.random.default_rng(8)
    values = [wide(q), wide(A), wide(b)]
    along = [wide(rng.standard_normal(v.shape)) for v in values]

    def loss(*at: mx.array) -> mx.array:
        solution = mlxcone.solve(*correlation_problem(*at), cones, eps=1e-12)
        return mx.sum(solution.x**3) + mx.sum(mx.sin(solution.y))

    which, h = [0, 1, 2], 1e-4
    with mx.stream(mx.cpu):
        solution = mlxcone.solve(*correlation_problem(*values), cones, eps=1e-12)
        z = (solution.y - solution.s)[:, order:]
        size = np.abs(np.linalg.eigvalsh(np.array(Semidefinite(1, order)._matrices(z))))
        assert size.min() > 0.1, "far from where the solution has kinks"
        gradient: Any = mx.grad(loss, argnums=which)

        def slope(*at: mx.array) -> mx.array:
            pairs = zip(gradient(*at), along, strict=True)
            return sum((mx.sum(g * d) for g, d in pairs), wide(0.0))

        def pushed(*at: mx.array) -> mx.array:
            return mx.jvp(loss, list(at), along)[1][0]

        def moved(step: float) -> list[Array]:
            at = (v + step * d for v, d in zip(values, along, strict=True))
            return [np.array(g) for g in gradient(*at)]

        near, far = (zip(moved(k * h), moved(-k * h), strict=True) for k in (1, 2))
        expected = [
            (8.0 * (up - down) - (more - less)) / (12.0 * h)
            for (up, down), (more, less) in zip(near, far, strict=True)
        ]
        largest = max(np.abs(e).max() for e in expected)
        assert largest > 1e-2, "a linear map proves nothing"
        ways = {
            "grad of grad": mx.grad(slope, argnums=which)(*values),
            "jvp of grad": mx.jvp(lambda *at: gradient(*at), values, along)[1],
            "grad of jvp": mx.grad(pushed, argnums=which)(*values),
        }
    for name, found in ways.items():
        for f, e in zip(found, expected, strict=True):
            np.testing.assert_allclose(np.array(f), e, rtol=0, atol=1e-4 * largest, err_msg=name)
