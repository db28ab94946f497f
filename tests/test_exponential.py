"""The exponential cone and its dual, against points with a known projection and 60-digit bisection.

K is the closure of {(x, y, z): y > 0, y e^(x/y) <= z}; below, p is the projection onto K and
d = v - p the one onto the polar cone.
"""

import decimal
import itertools
from decimal import Decimal

import mlx.core as mx
import numpy as np
import pytest

from mlxcone.cones.exponential import Exponential
from mlxcone.cones.product import uniform

Array = np.ndarray
DIGITS = decimal.Context(prec=60, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
SCALES = (1e-12, 1.0, 1e12)
both = pytest.mark.parametrize("dual", [False, True], ids=["ep", "ed"])


def projections(v: Array, dtype: mx.Dtype = mx.float64) -> tuple[Array, Array]:
    """p and d of the rows of v, (N, 3), one cone a row: all in one lane."""
    with mx.stream(mx.cpu if dtype == mx.float64 else mx.default_device()):
        flat = mx.array(v.reshape(1, -1), dtype=dtype)
        p = Exponential(len(v), dual=True).project_dual(flat)
        d = -Exponential(len(v), dual=False).project_dual(-flat)
        return tuple(np.array(a).astype(np.float64).reshape(-1, 3) for a in (p, d))  # type: ignore


def derivatives(z: Array, dual: bool, function=lambda e: e, dtype: mx.Dtype = mx.float64) -> Array:
    """function(D) at the rows of z, (N, 3, 3), one lane a row."""
    cone = Exponential(1, dual)
    with mx.stream(mx.cpu if dtype == mx.float64 else mx.default_device()):
        atoms = cone.derivative(mx.array(z, dtype=dtype))
        eye = mx.eye(3, dtype=dtype)[None]
        return np.array(cone.spectral(atoms, function, eye)).astype(np.float64)


def size(v: Array) -> Array:
    return np.max(np.abs(v), axis=-1)


def reference(point: Array) -> Array:
    """p by bisection on the distance to the rays (rho, 1, e^rho), which span the curved face."""
    with decimal.localcontext(DIGITS):
        x, y, z = (Decimal(float(c)) for c in point)
        zero = Decimal(0)
        if (y > 0 and y * (x / y).exp() <= z) or (y == 0 and x <= 0 and z >= 0):
            p = [x, y, z]
        elif (x > 0 and x * (y / x - 1).exp() <= -z) or (x == 0 and y <= 0 and z <= 0):
            p = [zero, zero, zero]
        elif x <= 0 and y <= 0:
            p = [x, zero, max(z, zero)]
        else:

            def farther(rho: Decimal) -> bool:
                """Sign of the derivative of the cosine of v and (rho, 1, e^rho), multiplied out."""
                e = rho.exp()
                return x - rho * y + z * e * (rho * rho - rho + 1) < e * e * ((rho - 1) * x + y)

            # The root lies where x rho + y >= x and rho y <= x, which may leave one end open.
            upper = x / y if y > 0 else 1 - y / x
            lower = 1 - y / x if x > 0 else x / y
            step = Decimal(1)
            while y <= 0 and not farther(upper):
                upper, step = upper + step, 2 * step
            while x <= 0 and farther(lower):
                lower, step = lower - step, 2 * step
            for _ in range(230):
                rho = (lower + upper) / 2
                lower, upper = (lower, rho) if farther(rho) else (rho, upper)
            rho = (lower + upper) / 2
            e = rho.exp()
            length = (x * rho + y + z * e) / (rho * rho + 1 + e * e)
            p = [length * rho, length, length * e]
        return np.array([float(c) for c in p])


def known(count: int, seed: int) -> tuple[Array, Array]:
    """Points v and their p: p on the curved face and d normal to it there, of any sizes."""
    rng = np.random.default_rng(seed)
    rho = rng.standard_normal(count) * np.where(
        rng.random(count) < 0.5, 5.0, 10.0 ** rng.uniform(-6.0, 6.0, count)
    )
    small = np.exp(-np.abs(rho))
    growth, decay = np.where(rho < 0, small, 1.0), np.where(rho < 0, 1.0, small)
    p = np.stack([rho * decay, decay, growth], axis=-1)
    d = np.stack([growth, (1.0 - rho) * growth, -decay], axis=-1)
    p *= 10.0 ** rng.uniform(-12.0, 0.0, (count, 1)) / np.linalg.norm(p, axis=-1, keepdims=True)
    d *= 10.0 ** rng.uniform(-12.0, 0.0, (count, 1)) / np.linalg.norm(d, axis=-1, keepdims=True)
    scale = 10.0 ** rng.uniform(-12.0, 12.0, (count, 1))
    return scale * (p + d), scale * p


def noise(count: int, seed: int) -> Array:
    """Points of any size, half of them with entries of very different sizes."""
    rng = np.random.default_rng(seed)
    v = rng.standard_normal((count, 3))
    v[::2] *= 10.0 ** rng.uniform(-12.0, 0.0, (len(v[::2]), 3))
    return v * 10.0 ** rng.uniform(-12.0, 12.0, (count, 1))


def corners() -> Array:
    """Apex, faces, boundaries of K and of its polar and points just off them; huge and tiny."""
    plain = [np.array(c, dtype=float) for c in itertools.product((-1.0, 0.0, 1.0), repeat=3)]
    for rho in (-30.0, -2.0, 0.0, 0.5, 1.0, 3.0, 30.0):
        p = np.array([rho, 1.0, np.exp(rho)])
        d = np.array([1.0, 1.0 - rho, -np.exp(-rho)])
        for ray in (p / size(p), d / size(d)):
            plain += [ray, -ray, *(ray + h * np.eye(3)[i] for i in range(3) for h in (1e-9, -1e-9))]
    # Near the rays (x <= 0, 0, z >= 0) and (0, y <= 0, z <= 0) where the curved faces begin.
    for h in (1e-3, -1e-3, 1e-9, -1e-9, 1e-15, -1e-15):
        for x, z in ((-1.0, 1.0), (-1.0, 0.0), (0.0, 1.0), (-1.0, -1.0), (-1.0, 1e-9)):
            plain += [np.array([x, h, z]), np.array([h, x, -z])]
    return np.concatenate([c * np.array(plain) for c in SCALES])


def smooth_points(count: int) -> Array:
    """Points at which a step of 1e-5 leaves the projection smooth: all its pieces, no seam."""
    rng = np.random.default_rng(4)
    v = rng.standard_normal((count, 3))
    x, y, z = v.T
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        off_cone = (y < 0) | (np.abs(y * np.exp(x / y) - z) > 0.05)
        off_polar = (x < 0) | (np.abs(x * np.exp(y / x - 1.0) + z) > 0.05)
    return v[off_cone & off_polar & np.all(np.abs(v) > 0.1, axis=-1)]


POINTS = {"noise": noise(300, 0), "known": known(300, 1)[0], "corners": corners()}
some_points = pytest.mark.parametrize("kind", POINTS)


@some_points
def test_projection_is_that_of_60_digit_bisection(kind: str) -> None:
    v = POINTS[kind]
    p, d = projections(v)
    expected = np.array([reference(point) for point in v])
    scale = size(v) + (size(v) == 0)
    assert np.max(size(p - expected) / scale) <= 1e-14
    assert np.max(size(d - (v - expected)) / scale) <= 1e-14


@some_points
def test_projection_in_float32(kind: str) -> None:
    v = POINTS[kind].astype(np.float32).astype(np.float64)
    scale = size(v) + (size(v) == 0)
    for narrow, wide in zip(projections(v, mx.float32), projections(v), strict=True):
        assert np.max(size(narrow - wide) / scale) <= 1e-6


def test_100000_points_with_a_known_projection() -> None:
    v, expected = known(100_000, 2)
    p, d = projections(v)
    assert np.max(size(p - expected) / size(v)) <= 1e-14
    assert np.max(size(d - (v - expected)) / size(v)) <= 1e-14


def test_100000_points_split_by_moreau() -> None:
    v = noise(100_000, 3)
    p, d = projections(v)
    assert np.max(size(p + d - v) / size(v)) <= 1e-13
    assert np.max(np.abs(np.sum(p * d, axis=-1)) / size(v) ** 2) <= 1e-14
    again = projections(p)[0], projections(d)[1]
    assert np.max(size(again[0] - p) / size(v)) <= 1e-14
    assert np.max(size(again[1] - d) / size(v)) <= 1e-14


@both
@pytest.mark.parametrize("kind", POINTS)
def test_derivative_is_symmetric_with_spectrum_in_0_1(kind: str, dual: bool) -> None:
    z = POINTS[kind]
    for dtype, tolerance in ((mx.float64, 1e-14), (mx.float32, 1e-6)):
        D = derivatives(z, dual, dtype=dtype)
        assert np.max(np.abs(D - D.swapaxes(-1, -2))) <= tolerance
        values = np.linalg.eigvalsh(0.5 * (D + D.swapaxes(-1, -2)))
        assert values.min() >= -tolerance
        assert values.max() <= 1.0 + tolerance


@some_points
def test_derivative_of_the_dual_is_the_complement(kind: str) -> None:
    v = POINTS[kind]
    np.testing.assert_allclose(
        derivatives(v, dual=True) + derivatives(-v, dual=False),
        np.broadcast_to(np.eye(3), (len(v), 3, 3)),
        rtol=0,
        atol=1e-14,
    )


@both
def test_derivative_keeps_the_projection_and_kills_the_rest(dual: bool) -> None:
    """Pi(a y - b s) = a y: D is 1 along y and 0 along s."""
    z = noise(1000, 5)
    z /= size(z)[:, None]
    D = derivatives(z, dual)
    y = projections(z)[0] if dual else -projections(-z)[1]
    assert np.max(np.abs((D @ y[..., None])[..., 0] - y)) <= 1e-14
    assert np.max(np.abs((D @ (y - z)[..., None])[..., 0])) <= 1e-14


@both
def test_derivative_is_the_limit_of_differences(dual: bool) -> None:
    h, v = 1e-5, smooth_points(1000)
    assert len(v) > 300

    def project(v: Array) -> Array:
        return projections(v)[0] if dual else v - projections(v)[0]

    columns = [(project(v + h * e) - project(v - h * e)) / (2.0 * h) for e in np.eye(3)]
    found = derivatives(v, True) if dual else derivatives(-v, False)
    assert np.max(np.abs(found - np.stack(columns, axis=-1))) <= 1e-7


@both
def test_gradient_of_the_projection_is_the_derivative(dual: bool) -> None:
    """`mx.grad` through the graph: no branch that is not taken may leave a NaN."""
    cone = Exponential(1, dual)

    def gradient(z: Array, v: Array) -> Array:
        with mx.stream(mx.cpu):
            weights = mx.array(v, dtype=mx.float64)
            function = mx.grad(lambda z: mx.sum(weights * cone.project_dual(z)))
            return np.array(function(mx.array(z, dtype=mx.float64)))

    for z in POINTS.values():
        assert np.isfinite(gradient(z, np.ones_like(z))).all()
    z = smooth_points(1000)
    v = np.random.default_rng(10).standard_normal(z.shape)
    expected = (derivatives(z, dual) @ v[..., None])[..., 0]
    assert np.max(np.abs(gradient(z, v) - expected)) <= 1e-13


@both
def test_gradient_of_the_derivative_is_the_limit_of_differences(dual: bool) -> None:
    """Second derivatives of a solution differentiate D."""
    h, v = 1e-5, smooth_points(1000)
    z, cone = v if dual else -v, Exponential(1, dual)
    directions = mx.array(np.random.default_rng(11).standard_normal((2, *z.shape, 1)), mx.float64)

    def form(z: mx.array) -> mx.array:
        image = cone.spectral(cone.derivative(z), lambda e: e, directions[0])
        return mx.sum(image * directions[1])

    with mx.stream(mx.cpu):
        found = np.array(mx.grad(form)(mx.array(z, dtype=mx.float64)))
    left, right = np.array(directions)
    columns = [
        left.swapaxes(1, 2) @ (derivatives(z + h * e, dual) - derivatives(z - h * e, dual)) @ right
        for e in np.eye(3)
    ]
    expected = np.concatenate(columns, axis=-1)[:, 0] / (2.0 * h)
    assert np.max(np.abs(found - expected) / (1.0 + np.abs(expected))) <= 1e-5


@both
def test_derivative_in_float32(dual: bool) -> None:
    z = smooth_points(1000).astype(np.float32).astype(np.float64)
    narrow, wide = derivatives(z, dual, dtype=mx.float32), derivatives(z, dual)
    assert np.max(np.abs(narrow - wide)) <= 1e-5


@both
def test_derivative_has_every_piece(dual: bool) -> None:
    """The points above reach the inside, the polar, both flat faces and the curved one."""
    ranks = np.round(np.trace(derivatives(smooth_points(1000), dual), axis1=1, axis2=2), 6)
    assert {0.0, 1.0, 2.0, 3.0} <= set(ranks)
    assert np.sum(ranks != np.round(ranks)) > 50


@both
def test_spectral_is_the_matrix_function(dual: bool) -> None:
    eps, z = 1e-3, noise(100, 6)
    values, vectors = np.linalg.eigh(derivatives(z, dual))
    weights = values / (1.0 + eps - values)
    expected = (vectors * weights[:, None, :]) @ vectors.swapaxes(-1, -2)
    found = derivatives(z, dual, lambda e: e / ((1.0 + eps) - e))
    assert np.max(np.abs(found - expected)) <= 1e-13 / eps**2


@both
def test_group_of_cones_in_lanes_equals_each_alone(dual: bool) -> None:
    cone, z = Exponential(5, dual), noise(35, 7)
    v = np.random.default_rng(8).standard_normal((1, 15, 2))
    with mx.stream(mx.cpu):
        batch = mx.array(z.reshape(7, 15), dtype=mx.float64)
        atoms = cone.derivative(batch)
        projected = np.array(cone.project_dual(batch)).reshape(-1, 3)
        image = np.array(cone.spectral(atoms, lambda e: e, mx.array(v, dtype=mx.float64)))
        signature = np.array(cone.signature(atoms)).reshape(35, -1)
    D = derivatives(z, dual)
    expected = np.einsum("lcij,cjk->lcik", D.reshape(7, 5, 3, 3), v.reshape(5, 3, 2))
    np.testing.assert_allclose(image, expected.reshape(7, 15, 2), rtol=0, atol=1e-14)
    np.testing.assert_allclose(signature, D[:, *np.tril_indices(3)][:, [0, 1, 3, 2, 4, 5]])
    for one, y in zip(z, projected, strict=True):
        alone = projections(one[None])[0] if dual else -projections(-one[None])[1]
        np.testing.assert_array_equal(alone[0], y)


@both
def test_one_lane_with_nan_stays_alone(dual: bool) -> None:
    cone, z = Exponential(1, dual), noise(5, 9)
    bad = z.copy()
    bad[1], bad[3, 2] = np.nan, np.nan
    with mx.stream(mx.cpu):
        found = np.array(cone.project_dual(mx.array(bad, dtype=mx.float64)))
        expected = np.array(cone.project_dual(mx.array(z, dtype=mx.float64)))
    np.testing.assert_array_equal(found[[0, 2, 4]], expected[[0, 2, 4]])
    assert np.isnan(found[[1, 3]]).all()


def test_uniform_takes_the_largest_weight_of_each_cone() -> None:
    weights = mx.array([[1.0, 3.0, 2.0, 5.0, 4.0, 0.5]])
    found = uniform(Exponential(2, dual=False), weights).tolist()
    assert found == [[3.0, 3.0, 3.0, 5.0, 5.0, 5.0]]
