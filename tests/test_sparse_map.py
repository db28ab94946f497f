"""The sparse maps between parameters and problem data, against SciPy."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import scipy.sparse as sp

from mlxcone import SparseMap

Array = np.ndarray

DTYPES = {"float32": (mx.float32, 2e-6), "float64": (mx.float64, 1e-14)}
"""Type, and largest accepted error relative to the largest entry."""


def _duplicates() -> sp.coo_array:
    """Three entries at (1, 2), which add up to 2.25, and two at (0, 0), which cancel."""
    rows, columns = [1, 0, 1, 3, 1, 0], [2, 0, 2, 1, 2, 0]
    values = [1.5, 0.75, -0.25, 2.0, 1.0, -0.75]
    return sp.coo_array((values, (rows, columns)), shape=(4, 3))


def _random(rows: int, columns: int, density: float) -> sp.coo_array:
    rng = np.random.default_rng(rows)  # `sp.random_array` has had two names for it
    draw = rng.standard_normal
    return sp.coo_array(sp.random(rows, columns, density, random_state=rng, data_rvs=draw))


MATRICES: dict[str, Callable[[], Any]] = {
    "tall": lambda: _random(30, 7, 0.3),
    "wide": lambda: _random(6, 25, 0.2),
    "dense": lambda: _random(5, 8, 1.0),
    "one_entry": lambda: sp.coo_array(([2.5], ([0], [0])), shape=(1, 1)),
    "no_entries": lambda: sp.coo_array((3, 4)),
    "empty_rows_and_columns": lambda: sp.coo_array(([2.0, -1.0], ([1, 1], [0, 3])), shape=(5, 6)),
    "duplicates": _duplicates,
    "csr": lambda: _random(9, 4, 0.5).tocsr(),
    "csc_matrix": lambda: sp.csc_matrix(_random(8, 5, 0.5)),
}


@pytest.fixture(params=list(MATRICES))
def matrix(request: pytest.FixtureRequest) -> Any:
    """Every matrix of the table."""
    return MATRICES[request.param]()


@pytest.fixture(params=list(DTYPES))
def dtype(request: pytest.FixtureRequest) -> Iterator[mx.Dtype]:
    """Both types; float64 on the CPU, the only place that has it."""
    chosen = DTYPES[request.param][0]
    if chosen == mx.float64:
        with mx.stream(mx.cpu):  # type: ignore[arg-type]
            yield chosen
    else:
        yield chosen


def draw(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Random numbers that float32 represents exactly."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(np.float64)


def assert_equal(got: mx.array, wanted: Array, dtype: mx.Dtype) -> None:
    """Same type and shape, and values up to rounding."""
    assert got.dtype == dtype
    assert tuple(got.shape) == wanted.shape
    tolerance = next(t for d, t in DTYPES.values() if d == dtype)
    scale = max(float(np.abs(wanted).max(initial=0.0)), 1.0)
    error = np.abs(np.array(got, dtype=np.float64) - wanted)
    assert float(error.max(initial=0.0)) <= tolerance * scale


def test_forward(matrix: Any, dtype: mx.Dtype) -> None:
    p = draw((3, matrix.shape[1]))
    got = SparseMap(matrix)(mx.array(p, dtype=dtype))
    assert_equal(got, p @ matrix.toarray().T, dtype)


def test_vjp_is_the_transpose(matrix: Any, dtype: mx.Dtype) -> None:
    p, bar = draw((3, matrix.shape[1])), draw((3, matrix.shape[0]), 1)
    _, (got,) = mx.vjp(SparseMap(matrix), [mx.array(p, dtype=dtype)], [mx.array(bar, dtype=dtype)])
    assert_equal(got, bar @ matrix.toarray(), dtype)


def test_jvp_is_the_map(matrix: Any, dtype: mx.Dtype) -> None:
    p, moved = draw((3, matrix.shape[1])), draw((3, matrix.shape[1]), 1)
    values, (got,) = mx.jvp(
        SparseMap(matrix), [mx.array(p, dtype=dtype)], [mx.array(moved, dtype=dtype)]
    )
    assert_equal(values[0], p @ matrix.toarray().T, dtype)
    assert_equal(got, moved @ matrix.toarray().T, dtype)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_vmap_over_any_axis(matrix: Any, dtype: mx.Dtype, axis: int) -> None:
    p = draw((4, 3, matrix.shape[1]))
    mapped = mx.vmap(SparseMap(matrix), in_axes=axis)
    got = mapped(mx.moveaxis(mx.array(p, dtype=dtype), 0, axis))
    assert_equal(got, p @ matrix.toarray().T, dtype)


def test_nested_vmap(matrix: Any, dtype: mx.Dtype) -> None:
    p = draw((2, 4, 3, matrix.shape[1]))
    got = mx.vmap(mx.vmap(SparseMap(matrix)))(mx.array(p, dtype=dtype))
    assert_equal(got, p @ matrix.toarray().T, dtype)


def _cubes(matrix: Any) -> tuple[Callable[[mx.array], mx.array], Callable[[Array], Array]]:
    """A function of the map with third-order terms, and its gradient in NumPy."""
    linear, dense = SparseMap(matrix), matrix.toarray()
    return lambda p: mx.sum(linear(p) ** 3), lambda p: 3.0 * (p @ dense.T) ** 2 @ dense


def test_gradient_of_a_nonlinear_function(matrix: Any, dtype: mx.Dtype) -> None:
    function, gradient = _cubes(matrix)
    p = draw((3, matrix.shape[1]))
    assert_equal(mx.grad(function)(mx.array(p, dtype=dtype)), gradient(p), dtype)


def test_vmap_of_grad(matrix: Any, dtype: mx.Dtype) -> None:
    function, gradient = _cubes(matrix)
    p = draw((4, 3, matrix.shape[1]))
    got = mx.vmap(mx.grad(function))(mx.array(p, dtype=dtype))
    assert_equal(got, gradient(p), dtype)


def test_gradient_of_a_gradient(matrix: Any, dtype: mx.Dtype) -> None:
    function, _ = _cubes(matrix)
    p, weight, dense = draw((3, matrix.shape[1])), draw((3, matrix.shape[1]), 1), matrix.toarray()
    with_weight = mx.array(weight, dtype=dtype)
    got = mx.grad(lambda v: mx.sum(with_weight * mx.grad(function)(v)))(mx.array(p, dtype=dtype))
    assert_equal(got, 6.0 * ((p @ dense.T) * (weight @ dense.T)) @ dense, dtype)


def test_jvp_of_a_gradient(matrix: Any, dtype: mx.Dtype) -> None:
    function, _ = _cubes(matrix)
    p, moved, dense = draw((3, matrix.shape[1])), draw((3, matrix.shape[1]), 1), matrix.toarray()
    tangent = [mx.array(moved, dtype=dtype)]
    _, (got,) = mx.jvp(mx.grad(function), [mx.array(p, dtype=dtype)], tangent)
    assert_equal(got, 6.0 * ((p @ dense.T) * (moved @ dense.T)) @ dense, dtype)


def test_duplicate_entries_are_summed_once() -> None:
    assert SparseMap(_duplicates()).matrix.nnz == 3


def test_the_given_matrix_is_left_alone() -> None:
    given = _duplicates()
    SparseMap(given)
    assert given.nnz == 6


def test_float64_values_are_not_rounded() -> None:
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        got = SparseMap(sp.coo_array([[1.0 / 3.0]]))(mx.ones((1, 1), dtype=mx.float64))
    assert got.item() == 1.0 / 3.0


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_no_rows_or_no_columns(shape: tuple[int, int], dtype: mx.Dtype) -> None:
    linear = SparseMap(sp.coo_array(shape))
    p, bar = mx.ones((2, shape[1]), dtype=dtype), mx.ones((2, shape[0]), dtype=dtype)
    assert_equal(linear(p), np.zeros((2, shape[0])), dtype)
    _, (gradient,) = mx.vjp(linear, [p], [bar])
    assert_equal(gradient, np.zeros((2, shape[1])), dtype)


def test_pickle_keeps_values_and_derivatives(matrix: Any, dtype: mx.Dtype) -> None:
    again = pickle.loads(pickle.dumps(SparseMap(matrix)))
    p, bar = draw((3, matrix.shape[1])), draw((3, matrix.shape[0]), 1)
    (values,), (gradient,) = mx.vjp(again, [mx.array(p, dtype=dtype)], [mx.array(bar, dtype=dtype)])
    assert again.shape == matrix.shape
    assert_equal(values, p @ matrix.toarray().T, dtype)
    assert_equal(gradient, bar @ matrix.toarray(), dtype)


def test_nan_goes_only_where_the_map_leads(dtype: mx.Dtype) -> None:
    matrix = sp.coo_array(([1.0, 2.0, 3.0], ([0, 1, 1], [0, 1, 2])), shape=(3, 3))
    p = mx.array([[np.nan, 1.0, 1.0]], dtype=dtype)
    np.testing.assert_array_equal(SparseMap(matrix)(p), [[np.nan, 5.0, 0.0]])
    bar = mx.array([[np.nan, 1.0, np.nan]], dtype=dtype)
    _, (gradient,) = mx.vjp(SparseMap(matrix), [mx.ones((1, 3), dtype=dtype)], [bar])
    np.testing.assert_array_equal(gradient, [[np.nan, 2.0, 3.0]])


@pytest.mark.parametrize("shape", [(2, 3), (4,), (1, 2, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="p: expected shape"):
        SparseMap(sp.coo_array((3, 4)))(mx.ones(shape))
