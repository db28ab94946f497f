"""Cone programs as batched arrays: validation at the door, broadcasting, lanes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxcone.backend.linalg import is_positive_definite
from mlxcone.program.operators import Place, Rectangular, row_times

_NEGATIVE, _LEAST_NEGATIVE = 8.0, 1e-10  # eigenvalues of P, beside its norm: roundings, at least
_ASYMMETRY = {mx.float32: 1e-5, mx.float64: 1e-9}  # of P, relative, that may be rounding
_OF_A_LAYER = " (in a layer also: a parameter without its declared sign)"
_FLOATS = (mx.float16, mx.bfloat16, mx.float32, mx.float64)


class Program(NamedTuple):
    """minimize 1/2 x'Px + q'x subject to A x + s = b, s in K, for B lanes.

    P is None, (n, n) or (B, n, n); A holds (m, n) or (B, m, n); q is (B, n) and b (B, m). A
    matrix without the batch axis is shared by all lanes. ``diagonal`` (n,) is that of P if P is
    known to have nothing else.
    """

    P: mx.array | None
    q: mx.array
    A: Rectangular
    b: mx.array
    diagonal: mx.array | None = None

    @property
    def lanes(self) -> int:
        return self.q.shape[0]

    @property
    def n(self) -> int:
        return self.q.shape[1]

    @property
    def m(self) -> int:
        return self.b.shape[1]

    @property
    def shared(self) -> bool:
        """Whether P and A serve every lane."""
        return self.A.matrix.ndim == 2 and (self.P is None or self.P.ndim == 2)

    def P_times(self, x: mx.array) -> mx.array:
        """P x, (B, n); P is symmetric."""
        if self.diagonal is not None:
            return x * self.diagonal
        return mx.zeros_like(x) if self.P is None else row_times(x, self.P)

    def astype(self, dtype: mx.Dtype) -> Program:
        """All arrays in another dtype."""
        P = None if self.P is None else self.P.astype(dtype)
        A = self.A.map(lambda array, axes: array.astype(dtype))
        diagonal = None if self.diagonal is None else self.diagonal.astype(dtype)
        return Program(P, self.q.astype(dtype), A, self.b.astype(dtype), diagonal)

    def take(self, lanes: mx.array) -> Program:
        """The sub-batch of some lanes; shared matrices stay shared."""
        P = None if self.P is None else take_lanes(self.P, lanes, 3)
        A = self.A.map(lambda array, axes: take_lanes(array, lanes, axes))
        return Program(P, self.q[lanes], A, self.b[lanes], self.diagonal)


def take_lanes(array: mx.array, lanes: mx.array, batched_ndim: int) -> mx.array:
    """Rows of the batch axis if there is one and it is not broadcast."""
    if array.ndim < batched_ndim or array.shape[0] == 1:
        return array
    return array[lanes]


def _told(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def as_array(name: str, value: Any) -> mx.array:
    """An mx.array of a float dtype; NumPy float64 and SciPy sparse matrices keep float64.

    Args:
        name (str): what a message calls it.
        value: mx.array, NumPy, SciPy sparse or nested lists, of any shape.

    Raises:
        TypeError: not numeric, or complex.
    """
    if hasattr(value, "toarray"):
        value = value.toarray()
    if not isinstance(value, mx.array):
        try:
            host = np.asarray(value, order="C")  # MLX takes no negative strides
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{name}: expected a real array, got {_told(value)}: {error}"
            ) from error
        if host.dtype.kind not in "fiub":
            raise TypeError(
                f"{name}: expected a real array, got {_told(value)}, dtype {host.dtype}"
            )
        # Only NumPy says float64 by intent; lists of Python floats do as well as anything in MLX.
        wide = host.dtype.kind == "f" and host.dtype.itemsize >= 8
        wide = wide and isinstance(value, (np.ndarray, np.generic))
        with np.errstate(over="ignore"):  # infinity fails its lane
            host = host.astype(np.float64 if wide else np.float32)  # in the byte order of MLX
        value = mx.array(host, dtype=mx.float64 if wide else mx.float32)
    if value.dtype in _FLOATS:
        return value
    if value.dtype == mx.complex64:
        raise TypeError(f"{name}: expected a real array, got complex64")
    return value.astype(mx.float32)


class Arguments(NamedTuple):
    """Validated arguments of a solve and the batch size they imply (None: unbatched)."""

    P: mx.array | None
    q: mx.array
    A: mx.array
    b: mx.array
    batch: int | None


def validate(P: Any, q: Any, A: Any, b: Any, rows: int) -> Arguments:
    """Check shapes and agree on one dtype.

    Args:
        P: None, (n, n) or (B, n, n), symmetric (`check_symmetric` looks at the values).
        q: (n,) or (B, n).
        A: (m, n) or (B, m, n).
        b: (m,) or (B, m).
        rows (int): rows the cones occupy.

    Raises:
        ValueError: a shape does not fit; the message names the argument.
        TypeError: an argument is not a real numeric array.
    """
    A, q, b = as_array("A", A), as_array("q", q), as_array("b", b)
    P = None if P is None else as_array("P", P)
    if A.ndim not in (2, 3):
        raise ValueError(f"A: expected shape (m, n) or (B, m, n), got {A.shape}")
    m, n = A.shape[-2:]
    if m != rows:
        raise ValueError(
            f"A: expected {rows} rows, the sum of the cones (a semidefinite one of order k has "
            f"k (k + 1) / 2), got shape {A.shape}; arguments are P, q, A, b, cones"
        )
    expected: dict[str, tuple[mx.array, tuple[int, ...]]] = {"q": (q, (n,)), "b": (b, (m,))}
    if P is not None:
        expected["P"] = (P, (n, n))
    for name, (array, shape) in expected.items():
        if array.shape[-len(shape) :] != shape or array.ndim - len(shape) not in (0, 1):
            dims = ", ".join(map(str, shape))
            wanted = f"shape {shape} or (B, {dims})" + (", or None for zero" * (name == "P"))
            raise ValueError(f"{name}: expected {wanted}, got {tuple(array.shape)}")
    if n == 0:
        raise ValueError("q: expected at least one variable, got n = 0")
    arrays = {"A": (A, 3), "q": (q, 2), "b": (b, 2), "P": (P, 3)}
    sizes = {
        name: array.shape[0]
        for name, (array, ndim) in arrays.items()
        if array is not None and array.ndim == ndim
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(f"inconsistent batch sizes: {sizes}")
    batch = next(iter(sizes.values()), None)
    if batch == 0:
        raise ValueError(f"{next(iter(sizes))}: the batch is empty")
    present = [a for a, _ in arrays.values() if a is not None]
    wide = any(a.dtype == mx.float64 for a in present)
    dtype = mx.float64 if wide else mx.float32
    # float16 and bfloat16 are computed in float32, which holds their numbers exactly.
    P = None if P is None else P.astype(dtype)
    return Arguments(P, q.astype(dtype), A.astype(dtype), b.astype(dtype), batch)


def reorder(array: mx.array, order: Sequence[int] | None, axis: int) -> mx.array:
    """Reorder rows; None leaves them."""
    if order is None:
        return array
    index = mx.array(list(order)).reshape(-1, *(1,) * (-1 - axis))
    # Unlike that of mx.take, the gradient of this has every derivative.
    return mx.take_along_axis(array, mx.broadcast_to(index, array.shape), axis=axis)


def _not_finite(program: Program) -> dict[str, mx.array]:
    """For each of P, q, A and b the lanes in which it holds NaN or infinity, (B,) or ()."""
    found = {}
    arrays = {"P": program.P, "q": program.q, "A": program.A.matrix, "b": program.b}
    for name, array in arrays.items():
        if array is None or array.size == 0:
            continue
        batched = array.ndim == (2 if name in "qb" else 3)
        axes = tuple(range(1 if batched else 0, array.ndim))
        # Zero times what is not finite is NaN: a third of the time of looking at each.
        found[name] = mx.isnan(mx.sum(0.0 * array, axis=axes))
    return found


def not_finite(program: Program) -> mx.array:
    """Lanes whose data hold NaN or infinity, (B,)."""
    none = mx.zeros((program.lanes,), dtype=mx.bool_)
    return functools.reduce(mx.logical_or, _not_finite(program).values(), none)


def faults(program: Program, lanes: Iterable[int]) -> dict[int, str]:
    """What is wrong with the data of lanes that failed."""
    bad: dict[str, Any] = {
        name: mx.broadcast_to(where, (program.lanes,)).tolist()
        for name, where in _not_finite(program).items()
    }
    found = {}
    for lane in lanes:
        names = [name for name, where in bad.items() if where[lane]]
        told = f"NaN or infinity in {' and '.join(names)}" + _OF_A_LAYER
        found[lane] = told if names else "P is not positive semidefinite"
    return found


def unusable(program: Program, precision: float) -> mx.array:
    """Lanes whose data are not finite or whose P has a negative eigenvalue, (B,).

    Args:
        program (Program): float64.
        precision (float): relative rounding of the data; an eigenvalue that could be the rounding
            of zero does no harm.
    """
    bad = not_finite(program)
    if program.P is None:
        return bad
    P = mx.where(mx.isfinite(program.P), program.P, 0.0)
    size = mx.max(mx.sum(mx.abs(P), axis=-1), axis=-1)[..., None, None]
    rounding = max(_NEGATIVE * precision, _LEAST_NEGATIVE) * size
    shift = mx.where(size > 0, rounding, 1.0) * mx.eye(program.n, dtype=P.dtype)
    return bad | mx.logical_not(is_positive_definite(P + shift))


def check_symmetric(P: mx.array) -> None:
    """Raise for a P that can be seen to differ from its transpose by more than rounding.

    Args:
        P (mx.array): (n, n) or (B, n, n); entries that are not finite do not count.

    Raises:
        ValueError: it does; the message says by how much.
    """
    finite = mx.isfinite(P)
    P = mx.where(mx.logical_and(finite, mx.swapaxes(finite, -1, -2)), P, 0.0)
    largest, difference = mx.max(mx.abs(P)), mx.max(mx.abs(P - mx.swapaxes(P, -1, -2)))
    if bool((difference > _ASYMMETRY[P.dtype] * largest).item()):
        raise ValueError(
            "P: expected a symmetric matrix, with both triangles; it differs from its transpose "
            f"by up to {difference.item():.3g}. Pass P + P' minus its diagonal for a triangle, "
            "or (P + P') / 2"
        )


def check_places(A: mx.array, places: Sequence[Place]) -> None:
    """Raise where rows of A that a pattern gives one entry have others."""
    if not places:
        return
    other = []
    for i, j, k in places:
        rows = mx.abs(A[..., i : i + k, :])
        entries = mx.diagonal(rows[..., j : j + k], axis1=-2, axis2=-1)
        other.append(mx.any(mx.sum(rows, axis=-1) > entries))  # False for NaN, which fails its lane
    if bool(mx.any(mx.stack(other)).item()):
        raise ValueError("pattern: A is not zero where it is False")


def without(program: Program, bad: mx.array) -> Program:
    """The program with zeros in place of what is not finite."""

    def clean(array: mx.array) -> mx.array:
        return mx.where(mx.isfinite(array), array, 0.0)

    P = None if program.P is None else clean(program.P)
    A = program.A.map(lambda array, axes: clean(array))
    return Program(P, clean(program.q), A, clean(program.b))
