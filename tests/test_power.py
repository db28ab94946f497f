"""Power cones against a root find of SciPy's, a quartic at exponent 1/2, and what defines them."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from scipy.optimize import brentq

from mlxcone.cones.power import Power
from mlxcone.cones.product import uniform

Array = np.ndarray

EXPONENTS = (1e-3, 0.02, 0.3, 0.5, 0.62, 0.9, 1.0 - 1e-3)
PRIMAL, DUAL = Power(EXPONENTS), Power(tuple(-a for a in EXPONENTS))
both = pytest.mark.parametrize("cone", [PRIMAL, DUAL], ids=["primal", "dual"])
MAGNITUDES = (1.0, 1.0, 1.0, 1e-1, 1e-3, 1e-6, 1e-12, 0.0)


@pytest.fixture(autouse=True)
def _on_cpu():  # float64 exists nowhere else
    with mx.stream(mx.cpu):
        yield


def project(cone: Power, z: Array, dtype: mx.Dtype = mx.float64) -> Array:
    """project_dual of (B, count, 3)."""
    flat = mx.array(z.reshape(z.shape[0], -1), dtype=dtype)
    return np.array(cone.project_dual(flat)).astype(np.float64).reshape(z.shape)


def dense(cone: Power, z: Array, function: Callable[[mx.array], mx.array] = lambda e: e) -> Array:
    """function(D), (B, count, 3, 3), and that different cones do not mix."""
    flat = mx.array(z.reshape(z.shape[0], -1), dtype=mx.float64)
    eye = mx.eye(cone.rows, dtype=mx.float64)[None]
    full = np.array(cone.spectral(cone.derivative(flat), function, eye))
    count = z.shape[1]
    blocks = full.reshape(-1, count, 3, count, 3)
    kept = np.stack([blocks[:, i, :, i] for i in range(count)], axis=1)
    assert np.count_nonzero(full) == np.count_nonzero(kept)
    return kept


def odd_points(count: int, seed: int = 0) -> Array:
    """All sign patterns, zeros, boundaries of the cone and of its polar, and 24 magnitudes."""
    rng = np.random.default_rng(seed)
    a = np.array(EXPONENTS)
    z = rng.standard_normal((count, a.size, 3)) * rng.choice(MAGNITUDES, (count, a.size, 3))
    kind = rng.integers(0, 4, (count, a.size))
    x, y = np.abs(z[..., 0]), np.abs(z[..., 1])
    near = 1.0 + rng.choice([-1.0, 0.0, 1.0], kind.shape) * 10.0 ** rng.uniform(-16, -1, kind.shape)
    edge = np.stack([x, y, x**a * y ** (1.0 - a) * near], axis=-1)
    opposite = edge * np.stack([-a, a - 1.0, np.ones_like(a)], axis=-1)
    z = np.where((kind == 0)[..., None], edge, np.where((kind == 1)[..., None], opposite, z))
    return z * 10.0 ** rng.uniform(-12, 12, (count, 1, 1))


def size(z: Array) -> Array:
    return np.max(np.abs(z), axis=-1)


# --- references ---------------------------------------------------------------------------------


def hien(w: Array, a: float) -> Array:
    """Projection onto the cone by Hien's equation, in the logit of r / |z|."""
    x, y, z = (float(v) for v in w)
    b, length = 1.0 - a, abs(z)
    if x >= 0 and y >= 0 and x**a * y**b >= length:
        return w
    if x <= 0 and y <= 0 and (-x / a) ** a * (-y / b) ** b >= length:
        return np.zeros(3)
    if z == 0:
        return np.maximum(w, 0.0)

    def entries(t: float) -> tuple[float, float, float]:
        product = length**2 / (4.0 * np.cosh(0.5 * t) ** 2)  # r (|z| - r)
        pair = []
        for v, c in ((x, a), (y, b)):
            root = np.hypot(v, 2.0 * np.sqrt(c * product))
            pair.append(0.5 * (v + root) if v >= 0 else 2.0 * c * product / (root - v))
        return pair[0], pair[1], length / (1.0 + np.exp(-t))

    def equation(t: float) -> float:
        p = entries(t)
        return a * np.log(p[0] / p[2]) + b * np.log(p[1] / p[2])

    low, high = -300.0, 300.0
    if equation(low) <= 0 or equation(high) >= 0:
        raise ValueError("the root is out of reach")
    root: Any = brentq(equation, low, high, xtol=1e-15, maxiter=500)
    p = entries(root)
    return np.array([p[0], p[1], np.copysign(p[2], z)])


def quartic(w: Array) -> Array:
    """Projection onto {x y >= z^2} for a point outside of it and of its polar.

    The boundary rays are (1, u^2, u); the one that forms the least angle with w is stationary.
    """
    x, y, z = w
    # d/du of (x + y u^2 + z u) / |(1, u^2, u)| has this numerator (its u^5 cancels).
    u = np.roots([-z, y - 2.0 * x, 0.0, 2.0 * y - x, z])
    u = u.real[np.abs(u.imag) < 1e-6 * np.abs(u)]
    rays = np.stack([np.ones_like(u), u**2, u], axis=-1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    best = rays[np.argmax(rays @ w)]
    return best * (best @ w)


# --- the projection -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_projection_is_hiens(scale: float) -> None:
    rng = np.random.default_rng(1)
    z = rng.standard_normal((40, len(EXPONENTS), 3)) * rng.choice([1.0, 1e-3], (40, 7, 3)) * scale
    narrow = z.astype(np.float32).astype(np.float64)
    expected = np.zeros_like(z)
    for v, dtype, tolerance in ((z, mx.float64, 1e-12), (narrow, mx.float32, 1e-6)):
        compared = np.zeros(z.shape[:2], dtype=bool)
        for i, j in np.ndindex(*compared.shape):
            try:
                expected[i, j] = hien(v[i, j] / scale, EXPONENTS[j]) * scale
            except ValueError:
                continue
            compared[i, j] = True
        assert compared.mean() > 0.9
        error = size(project(DUAL, v, dtype) - expected) / size(v)
        assert error[compared].max() <= tolerance
        # Moreau: onto the dual cone by the projection of -z onto the cone.
        error = size(project(PRIMAL, -v, dtype) - (expected - v)) / size(v)
        assert error[compared].max() <= tolerance


def test_projection_solves_the_quartic_at_one_half() -> None:
    z = np.random.default_rng(2).standard_normal((400, 1, 3))
    x, y, t = z[:, 0].T
    inside = (x >= 0) & (y >= 0) & (x * y >= t**2)
    polar = (x <= 0) & (y <= 0) & (4.0 * x * y >= t**2)
    expected = np.stack([quartic(w) for w in z[:, 0]])[:, None]
    expected = np.where(inside[:, None, None], z, expected)
    expected = np.where(polar[:, None, None], 0.0, expected)
    assert min(inside.sum(), polar.sum()) > 10
    np.testing.assert_allclose(project(Power((-0.5,)), z), expected, rtol=0, atol=1e-12)


@both
def test_projection_splits_every_point_into_orthogonal_parts(cone: Power) -> None:
    z = odd_points(3000)
    scale = np.maximum(size(z), 1e-100)
    y = project(cone, z)
    s = y - z
    other = DUAL if cone is PRIMAL else PRIMAL
    assert np.isfinite(y).all()
    assert (size(project(cone, y) - y) / scale).max() <= 1e-14, "y in K*"
    assert (size(project(other, s) - s) / scale).max() <= 1e-14, "s in K"
    assert (np.abs(np.sum(y * s, axis=-1)) / scale**2).max() <= 1e-14


def test_membership_by_the_definition() -> None:
    """What is projected to itself is the cone, for exponents that test the dual's constants."""
    z = np.random.default_rng(3).uniform(0.01, 1.0, (4000, len(EXPONENTS), 3))
    a = np.array(EXPONENTS)
    x, y, t = (z[..., i] for i in range(3))
    primal = x**a * y ** (1.0 - a) >= t
    dual = (x / a) ** a * (y / (1.0 - a)) ** (1.0 - a) >= t
    np.testing.assert_array_equal((project(DUAL, z) == z).all(axis=-1), primal)
    np.testing.assert_array_equal(size(project(PRIMAL, z) - z) < 1e-14, dual)


@both
def test_float32_is_right_to_1e_6_everywhere(cone: Power) -> None:
    z = odd_points(3000, seed=1).astype(np.float32).astype(np.float64)
    scale = np.maximum(size(z), 1e-30)
    error = size(project(cone, z, mx.float32) - project(cone, z)) / scale
    assert error.max() <= 1e-6


def test_points_without_z() -> None:
    z = np.array([[3.0, -2.0, 0.0], [-3.0, 2.0, 0.0], [-1.0, -2.0, 0.0], [1.0, 0.0, 0.0]])
    for w in z:
        every = np.broadcast_to(w, (1, len(EXPONENTS), 3))
        np.testing.assert_allclose(
            project(DUAL, every)[0], np.maximum(every[0], 0.0), rtol=0, atol=1e-15
        )


# --- its derivative -----------------------------------------------------------------------------


@both
def test_derivative_is_the_limit_of_differences(cone: Power) -> None:
    z = np.random.default_rng(4).standard_normal((500, len(EXPONENTS), 3))
    h = 1e-6
    columns = [(project(cone, z + h * e) - project(cone, z - h * e)) / (2.0 * h) for e in np.eye(3)]
    error = np.abs(dense(cone, z) - np.stack(columns, axis=-1)).max(axis=(1, 2, 3))
    # The third derivative is large where |z| is small or a kink close by.
    assert np.quantile(error, 0.95) <= 2e-9
    assert error.max() <= 1e-5


@both
def test_derivative_is_symmetric_between_0_and_1(cone: Power) -> None:
    D = dense(cone, odd_points(2000))
    np.testing.assert_allclose(D, np.swapaxes(D, -1, -2), rtol=0, atol=1e-15)
    values = np.linalg.eigvalsh(D)
    assert values.min() >= -1e-14
    assert values.max() <= 1.0 + 1e-14


@both
def test_derivative_keeps_y_and_removes_s(cone: Power) -> None:
    z = odd_points(2000)
    D, y = dense(cone, z), project(cone, z)
    kept = np.einsum("bcij,bcj->bci", D, y)
    assert (size(kept - y) / np.maximum(size(z), 1e-300)).max() <= 1e-13


@pytest.mark.parametrize(("x", "y"), [(2.0, -3.0), (-3.0, 2.0)])
def test_derivative_where_z_is_zero(x: float, y: float) -> None:
    """Hien's limits: 0 or 1 along z, and between them only at exponent 1/2."""
    z = np.broadcast_to(np.array([x, y, 0.0]), (1, len(EXPONENTS), 3))
    D = dense(DUAL, z)[0]
    for a, matrix in zip(EXPONENTS, D, strict=True):
        positive = a if x > 0 else 1.0 - a
        half = 2.0 / (2.0 + 2.0 * 3.0)
        along = half if a == 0.5 else float(positive > 0.5)
        expected = np.diag([float(x > 0), float(y > 0), along])
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-14)
    # The reference at 1/2 by a difference.
    step = np.zeros((1, len(EXPONENTS), 3))
    step[..., 2] = 1e-6
    moved = (project(DUAL, z + step) - project(DUAL, z - step))[0, EXPONENTS.index(0.5), 2] / 2e-6
    assert moved == pytest.approx(half, abs=1e-6)


def test_derivative_at_corners_is_the_least() -> None:
    apex = np.zeros((1, len(EXPONENTS), 3))
    assert not dense(PRIMAL, apex).any()
    assert not dense(DUAL, apex).any()


@both
def test_spectral_is_the_matrix_function(cone: Power) -> None:
    z, eps = odd_points(200), 1e-3
    values, vectors = np.linalg.eigh(dense(cone, z))
    expected = (vectors * (values / (1.0 + eps - values))[..., None, :]) @ np.swapaxes(
        vectors, -1, -2
    )
    found = dense(cone, z, lambda e: e / ((1.0 + eps) - e))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 / eps**2)


@both
def test_second_derivative(cone: Power) -> None:
    rng = np.random.default_rng(5)
    z, dz = rng.standard_normal((2, 300, cone.rows))
    v = mx.array(rng.standard_normal((300, cone.rows, 1)), dtype=mx.float64)

    def image(z: mx.array) -> mx.array:
        return cone.spectral(cone.derivative(z), lambda e: e, v)

    def at(h: float) -> Array:
        return np.array(image(mx.array(z + h * dz, dtype=mx.float64)))

    primals, tangents = (mx.array(u, dtype=mx.float64) for u in (z, dz))
    found = np.array(mx.jvp(image, [primals], [tangents])[1][0])
    expected = (at(1e-6) - at(-1e-6)) / 2e-6
    error = (np.abs(found - expected) / (1.0 + np.abs(expected))).max(axis=(1, 2))
    assert np.quantile(error, 0.9) <= 1e-8
    assert error.max() <= 1e-3  # differences, close to a kink


@both
def test_gradients_are_numbers_at_odd_points(cone: Power) -> None:
    z = odd_points(1000)
    flat = mx.array(z.reshape(1000, -1), dtype=mx.float64)
    v = mx.ones((1, cone.rows, 1), dtype=mx.float64)
    outputs = [
        lambda z: mx.sum(cone.spectral(cone.derivative(z), lambda e: e, v)),
        lambda z: mx.sum(cone.project_dual(z)),
    ]
    for output in outputs:
        assert not np.isnan(np.array(mx.grad(output)(flat))).any()


# --- the group ----------------------------------------------------------------------------------


def test_lanes_and_cones_are_independent() -> None:
    cone = Power((0.3, -0.3, 0.7))
    z = np.random.default_rng(6).standard_normal((5, 3, 3))
    together = project(cone, z)
    for lane in range(5):
        for j, alpha in enumerate(cone.alphas):
            alone = project(Power((alpha,)), z[lane : lane + 1, j : j + 1])
            np.testing.assert_array_equal(together[lane, j], alone[0, 0])
    z[1] = np.nan
    found = project(cone, z)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(np.delete(found, 1, axis=0), np.delete(together, 1, axis=0))


@both
def test_vmap_is_the_batch(cone: Power) -> None:
    z = mx.array(odd_points(50).reshape(50, -1), dtype=mx.float64)
    alone = mx.vmap(lambda v: cone.project_dual(v[None])[0])(z)
    np.testing.assert_array_equal(np.array(alone), np.array(cone.project_dual(z)))
    atoms = mx.vmap(lambda v: tuple(a[0] for a in cone.derivative(v[None])))(z)
    for one, all_of_them in zip(atoms, cone.derivative(z), strict=True):
        np.testing.assert_array_equal(np.array(one), np.array(all_of_them))


def test_signature_moves_with_the_derivative() -> None:
    z = odd_points(60)
    signature = np.array(
        PRIMAL.signature(PRIMAL.derivative(mx.array(z.reshape(60, -1), dtype=mx.float64)))
    )
    D = dense(PRIMAL, z).reshape(60, -1)
    assert np.abs(signature).max() <= 1.0 + 1e-12
    moved = np.abs(D[:, None] - D[None]).max(axis=-1)
    shown = np.abs(signature[:, None] - signature[None]).max(axis=-1)
    np.testing.assert_allclose(shown, moved, rtol=0, atol=1e-12)


def test_uniform_takes_the_maximum_of_each_cone() -> None:
    weights = mx.array([[1.0, 3.0, 2.0, 9.0, 4.0, 5.0]])
    found = np.array(uniform(Power((0.2, -0.4)), weights))
    np.testing.assert_array_equal(found, [[3.0, 3.0, 3.0, 9.0, 9.0, 9.0]])


@pytest.mark.parametrize("bad", [0.0, 1.0, -1.0, 1.5, float("nan")])
def test_exponents_outside_0_1_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="exponent"):
        Power((0.5, bad))
