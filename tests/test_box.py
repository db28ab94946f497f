"""Box cones against a root find of SciPy's, Clarabel, and what defines the derivative."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import brentq

from mlxcone.cones.box import Box
from mlxcone.cones.product import uniform

clarabel: Any = pytest.importorskip("clarabel")
Array = np.ndarray
INF = float("inf")

BOXES = {
    "plain": Box((-1.0, 0.5, -2.0), (1.0, 2.0, -0.5)),
    "one sided": Box((0.0, -INF, -INF, 1.0), (INF, 0.0, INF, INF)),
    "equal": Box((1.0, -2.0, 0.0, -1.0), (1.0, -2.0, 0.0, 1.0)),
    "wide": Box((-1e6, 1e-6, -1e3), (1e6, 1e-5, 1e9)),
    "no rows": Box((), ()),
    "long": Box(tuple(-1.0 - 0.1 * i for i in range(40)), tuple(0.05 * i for i in range(40))),
}
every_box = pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())

pytestmark = pytest.mark.usefixtures("on_cpu")


def project_dual(box: Box, z: Array, dtype: mx.Dtype = mx.float64) -> Array:
    return np.array(box.project_dual(mx.array(z, dtype=dtype))).astype(np.float64)


def project(box: Box, w: Array) -> Array:
    return w + project_dual(box, -w)


def dense(box: Box, z: Array, function: Callable[[mx.array], mx.array] = lambda e: e) -> Array:
    atoms = box.derivative(mx.array(z, dtype=mx.float64))
    return np.array(box.spectral(atoms, function, mx.eye(box.rows, dtype=mx.float64)[None]))


def size(z: Array) -> Array:
    return np.max(np.abs(z), axis=-1)


def points(box: Box, count: int, seed: int = 0) -> Array:
    """Inside, outside, with zeros and ties, t of both signs."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((count, box.rows))
    z[rng.random(z.shape) < 0.1] = 0.0
    # On their bounds exactly: the kinks of the projection.
    t = np.abs(z[:, :1])
    ends = np.where(rng.random((count, box.rows - 1)) < 0.5, box.lower, box.upper)
    ends = np.where(np.isfinite(ends), ends, 0.0)
    z[:, 1:] = np.where(rng.random(ends.shape) < 0.2, -t * ends, z[:, 1:])
    return np.concatenate([np.zeros((1, box.rows)), z])


def by_root(box: Box, w: Array) -> Array:
    """Projection of one point onto the cone: the root in t of the derivative of the distance."""
    lower, upper = np.array(box.lower), np.array(box.upper)

    def clipped(t: float) -> Array:
        with np.errstate(invalid="ignore"):
            low = np.where(np.isfinite(lower), t * lower, -np.inf)
            high = np.where(np.isfinite(upper), t * upper, np.inf)
        return np.minimum(np.maximum(w[1:], low), high)

    def slope(t: float) -> float:
        s = clipped(t)
        bound = np.where(w[1:] > s, upper, np.where(w[1:] < s, lower, 0.0))
        return t - w[0] + float(np.sum(bound * (s - w[1:])))

    t = 0.0
    if slope(0.0) < 0:
        root: Any = brentq(slope, 0.0, 10.0 * len(w) * size(w), xtol=1e-300, maxiter=2000)
        t = root
    return np.concatenate([[t], clipped(t)])


def by_clarabel(box: Box, w: Array) -> Array | None:
    n = len(w)
    rows = [np.eye(n)[0]]
    for i, (low, high) in enumerate(zip(box.lower, box.upper, strict=True), start=1):
        for bound, sign in ((low, 1.0), (high, -1.0)):
            if np.isfinite(bound):
                rows.append(sign * (np.eye(n)[i] - bound * np.eye(n)[0]))
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-11
    cones = [clarabel.NonnegativeConeT(len(rows))]
    matrix = sp.csc_matrix(-np.array(rows))
    P = sp.csc_matrix(np.eye(n))
    solver = clarabel.DefaultSolver(P, -w, matrix, np.zeros(len(rows)), cones, settings)
    solution = solver.solve()
    return np.array(solution.x) if str(solution.status) == "Solved" else None


# --- the projection -----------------------------------------------------------------------------


@every_box
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_projection_is_the_nearest_point(box: Box, scale: float) -> None:
    w = points(box, 200) * scale
    expected = np.stack([by_root(box, v) for v in w])
    error = size(project_dual(box, -w) - (expected - w))
    assert (error <= 1e-12 * size(w)).all()
    narrow = w.astype(np.float32).astype(np.float64)
    expected = np.stack([by_root(box, v) for v in narrow])
    error = size(project_dual(box, -narrow, mx.float32) - (expected - narrow))
    assert (error <= 1e-6 * size(w)).all()


@pytest.mark.parametrize("name", ["plain", "one sided", "equal", "long"])
def test_projection_is_clarabels(name: str) -> None:
    box = BOXES[name]
    # At kinks an interior-point method keeps the square root of its tolerance.
    w = np.random.default_rng(1).standard_normal((20, box.rows))
    solved = 0
    for point, found in zip(w, project(box, w), strict=True):
        expected = by_clarabel(box, point)
        if expected is not None:
            solved += 1
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert solved >= 15


@every_box
def test_projection_splits_every_point_into_orthogonal_parts(box: Box) -> None:
    z = points(box, 500)
    y = project_dual(box, z)
    s = y - z
    tolerance = 1e-13 * size(z)
    assert (size(project_dual(box, y) - y) <= tolerance).all(), "y in K*"
    assert (size(project(box, s) - s) <= tolerance).all(), "s in K"
    assert (np.abs(np.sum(y * s, axis=-1)) <= tolerance * size(z) * box.rows).all()
    t, s = s[:, :1], s[:, 1:]
    assert (t >= -tolerance[:, None]).all()
    low = np.where(np.isfinite(box.lower), box.lower, 0.0)
    high = np.where(np.isfinite(box.upper), box.upper, 0.0)
    slack = tolerance[:, None] * (1.0 + np.abs(low) + np.abs(high))
    assert (np.isinf(box.lower) | (s >= t * low - slack)).all()
    assert (np.isinf(box.upper) | (s <= t * high + slack)).all()


def test_bounds_of_1e15_are_none() -> None:
    w = points(BOXES["plain"], 50)
    huge, none = (
        Box((-1e15, 0.0, -1e20), (1.0, 1e16, 1e15)),
        Box((-INF, 0.0, -INF), (1.0, INF, INF)),
    )
    np.testing.assert_array_equal(project(huge, w), project(none, w))


# --- its derivative -----------------------------------------------------------------------------


@every_box
def test_derivative_is_the_limit_of_differences(box: Box) -> None:
    z = np.random.default_rng(2).standard_normal((300, box.rows))
    h = 1e-7
    steps = h * np.eye(box.rows)
    ahead = (
        np.stack([project_dual(box, z + e) for e in steps], axis=-1)
        - project_dual(box, z)[..., None]
    )
    behind = project_dual(box, z)[..., None] - np.stack(
        [project_dual(box, z - e) for e in steps], axis=-1
    )
    # Piecewise linear: both differences are exact unless a kink is between.
    smooth = np.abs(ahead - behind).max(axis=(1, 2)) <= 1e-6 * h
    assert smooth.mean() > 0.9
    np.testing.assert_allclose(dense(box, z)[smooth], ahead[smooth] / h, rtol=0, atol=2e-8)


@every_box
def test_derivative_is_a_projector_that_keeps_y_and_removes_s(box: Box) -> None:
    z = points(box, 500)
    D, y = dense(box, z), project_dual(box, z)
    np.testing.assert_allclose(D, np.swapaxes(D, -1, -2), rtol=0, atol=1e-15)
    np.testing.assert_allclose(D @ D, D, rtol=0, atol=1e-14)
    scale = size(z).max()
    np.testing.assert_allclose(np.einsum("bij,bj->bi", D, y), y, rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(np.einsum("bij,bj->bi", D, z), y, rtol=0, atol=1e-13 * scale)


@pytest.mark.parametrize("name", ["plain", "one sided", "equal", "no rows"])
def test_derivative_at_kinks_is_a_limit(name: str) -> None:
    """D at a kink occurs at smooth points at any distance, however small."""
    box, rng = BOXES[name], np.random.default_rng(3)
    z = points(box, 15, seed=4)
    D = dense(box, z)
    for point, matrix in zip(z, D, strict=True):
        around = point + 1e-9 * rng.standard_normal((4000, box.rows)) * rng.choice(
            [0.02, 1.0], (4000, 1)
        )
        near = dense(box, around)
        assert np.abs(near - matrix).max(axis=(1, 2)).min() <= 1e-12


def test_equal_bounds_are_always_active() -> None:
    """On the subspace s = t b the derivative is that of a linear projection, kink or not."""
    b = np.array([1.0, -2.0])
    box = Box(tuple(b), tuple(b))
    ray = np.array([1.0, *b]) / np.linalg.norm([1.0, *b])
    expected = np.eye(3) - np.outer(ray, ray)
    for z in (-ray, -ray + [0.1, 0.1, 0.05], -2.0 * ray + [0.0, 0.5, 0.0]):
        np.testing.assert_allclose(dense(box, z[None])[0], expected, rtol=0, atol=1e-15)


@every_box
def test_least_derivative_at_the_apex(box: Box) -> None:
    D = dense(box, np.zeros((1, box.rows)))[0]
    equal = np.array([low == high for low, high in zip(box.lower, box.upper, strict=True)])
    assert np.linalg.matrix_rank(D) == equal.sum()


@every_box
def test_spectral_is_the_matrix_function(box: Box) -> None:
    z, eps = points(box, 50), 1e-3
    values, vectors = np.linalg.eigh(dense(box, z))
    expected = (vectors * (values / (1.0 + eps - values))[:, None]) @ np.swapaxes(vectors, -1, -2)
    found = dense(box, z, lambda e: e / ((1.0 + eps) - e))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 / eps**2)


def test_second_derivative_is_zero() -> None:
    box = BOXES["plain"]
    z = mx.array(points(box, 50), dtype=mx.float64)
    v = mx.ones((1, box.rows, 1), dtype=mx.float64)
    gradient = mx.grad(lambda z: mx.sum(box.spectral(box.derivative(z), lambda e: e, v)))(z)
    assert not np.array(gradient).any()


# --- the group ----------------------------------------------------------------------------------


@every_box
def test_lanes_are_independent(box: Box) -> None:
    z = points(box, 6)
    together = project_dual(box, z)
    alone = np.concatenate([project_dual(box, v[None]) for v in z])
    np.testing.assert_array_equal(together, alone)
    z[2] = np.nan
    found = project_dual(box, z)
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(np.delete(found, 2, axis=0), np.delete(together, 2, axis=0))


@every_box
def test_vmap_is_the_batch(box: Box) -> None:
    z = mx.array(points(box, 30), dtype=mx.float64)
    alone = mx.vmap(lambda v: box.project_dual(v[None])[0])(z)
    np.testing.assert_array_equal(np.array(alone), np.array(box.project_dual(z)))
    atoms = mx.vmap(lambda v: tuple(a[0] for a in box.derivative(v[None])))(z)
    for one, all_of_them in zip(atoms, box.derivative(z), strict=True):
        np.testing.assert_array_equal(np.array(one), np.array(all_of_them))


@every_box
def test_signature_moves_with_the_derivative(box: Box) -> None:
    z = points(box, 60)
    atoms = box.derivative(mx.array(z, dtype=mx.float64))
    signature = np.array(box.signature(atoms))
    D = dense(box, z).reshape(len(z), -1)
    assert np.abs(signature).max() <= 1.0
    moved = np.abs(D[:, None] - D[None]).max(axis=-1)
    shown = np.abs(signature[:, None] - signature[None]).max(axis=-1)
    assert (moved <= 3.0 * shown + 1e-12).all()
    assert (shown[moved == 0.0] == 0.0).all()


def test_uniform_takes_the_maximum() -> None:
    weights = mx.array([[1.0, 3.0, 2.0, 0.5], [4.0, 1.0, 1.0, 1.0]])
    found = np.array(uniform(BOXES["plain"], weights))
    np.testing.assert_array_equal(found, [[3.0] * 4, [4.0] * 4])


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ((0.0,), ()),
        ((1.0,), (0.0,)),
        ((float("nan"),), (1.0,)),
        ((INF,), (INF,)),
        ((-INF,), (-INF,)),
    ],
    ids=str,
)
def test_impossible_bounds_are_refused(lower: tuple[float, ...], upper: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="box"):
        Box(lower, upper)
