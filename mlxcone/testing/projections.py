"""Euclidean projections onto a cone and its dual, in plain NumPy and float64.

The reference for the solver's own projections, so nothing is shared with them. The cone
dictionary and the row order (z, l, box, q, s, ep, ed, p) are those of SCS 3; :data:`CONE_KINDS`
says which of its cones are known so far.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]
ConeDict: TypeAlias = Mapping[str, Any]


class Block(NamedTuple):
    """The rows of one cone and the projections onto the cone and onto its dual."""

    rows: int
    project: Callable[[Array], Array]
    project_dual: Callable[[Array], Array]


class ConeKind(NamedTuple):
    """One kind of cone: the dictionary keys it owns and how they expand into blocks.

    To add a cone, write ``blocks`` and put one line into :data:`CONE_KINDS`, in SCS's row order.
    """

    keys: tuple[str, ...]
    blocks: Callable[[ConeDict], list[Block]]


def _identity(v: Array) -> Array:
    return v.copy()


def _nonnegative_part(v: Array) -> Array:
    return np.maximum(v, 0.0)


def _project_second_order(v: Array) -> Array:
    """Project v = (t, u), shape (k,), onto ``{(t, u) : ||u|| <= t}``."""
    t, u = v[0], v[1:]
    length = float(np.linalg.norm(u))
    if length <= t:
        return v.copy()
    if length <= -t:
        return np.zeros_like(v)
    # Here |t| < ||u||, so the division is safe even when t = 0.
    middle = 0.5 * (t + length)
    return np.concatenate(([middle], (middle / length) * u))


def _project_semidefinite(v: Array) -> Array:
    """Project a scaled lower triangle (columns stacked, shape (k (k + 1) / 2,)) onto the PSD cone.

    Off-diagonal entries carry a factor sqrt(2), so that the inner product is the trace product.
    """
    order = (math.isqrt(8 * v.size + 1) - 1) // 2
    # The upper triangle by rows is the lower triangle by columns of a symmetric matrix.
    triangle = np.triu_indices(order)
    weight = np.where(triangle[0] == triangle[1], 1.0, math.sqrt(2.0))
    matrix = np.zeros((order, order))
    matrix[triangle] = v / weight
    values, vectors = np.linalg.eigh(matrix, UPLO="U")
    matrix = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return matrix[triangle] * weight


def _count(cones: ConeDict, key: str) -> int:
    value = cones.get(key)
    return 0 if value is None else _integer(value, key, minimum=0)


def _sizes(cones: ConeDict, key: str) -> list[int]:
    value = cones.get(key)
    if value is None:
        return []
    if np.ndim(value) == 0:
        # SCS reads a bare integer as a list of one size; a bare zero is its way to say "none".
        size = _integer(value, key, minimum=0)
        return [size] if size else []
    return [_integer(size, key, minimum=1) for size in value]


def _integer(value: Any, key: str, minimum: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"cones[{key!r}]: expected an integer, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"cones[{key!r}]: expected at least {minimum}, got {number}")
    return number


def _zero_blocks(cones: ConeDict) -> list[Block]:
    rows = _count(cones, "z")
    return [Block(rows, np.zeros_like, _identity)] if rows else []


def _nonnegative_blocks(cones: ConeDict) -> list[Block]:
    rows = _count(cones, "l")
    return [Block(rows, _nonnegative_part, _nonnegative_part)] if rows else []


def _second_order_blocks(cones: ConeDict) -> list[Block]:
    return [Block(k, _project_second_order, _project_second_order) for k in _sizes(cones, "q")]


def _semidefinite_blocks(cones: ConeDict) -> list[Block]:
    return [
        Block(k * (k + 1) // 2, _project_semidefinite, _project_semidefinite)
        for k in _sizes(cones, "s")
    ]


# The order here is the order of the rows.
CONE_KINDS: tuple[ConeKind, ...] = (
    ConeKind(("z",), _zero_blocks),
    ConeKind(("l",), _nonnegative_blocks),
    ConeKind(("q",), _second_order_blocks),
    ConeKind(("s",), _semidefinite_blocks),
)


def cone_blocks(cones: ConeDict) -> list[Block]:
    """Expand a cone dictionary into its blocks, in row order.

    Args:
        cones: SCS dictionary; missing and empty keys mean "none".

    Returns:
        One :class:`Block` for each cone that has rows.

    Raises:
        ValueError: a key is unknown or not supported yet, or a size is not a valid integer.
    """
    supported = [key for kind in CONE_KINDS for key in kind.keys]
    for key, value in cones.items():
        if key not in supported and not _is_empty(value):
            raise ValueError(
                f"cones: key {key!r} is not supported; supported keys are {', '.join(supported)}"
            )
    return [block for kind in CONE_KINDS for block in kind.blocks(cones)]


def cone_rows(cones: ConeDict) -> int:
    """Count the rows that a cone dictionary stands for.

    Args:
        cones: SCS dictionary.

    Returns:
        The number of rows m of A.

    Raises:
        ValueError: as for :func:`cone_blocks`.
    """
    return sum(block.rows for block in cone_blocks(cones))


def project_cone(cones: ConeDict, v: ArrayLike) -> Array:
    """Project onto K in the Euclidean norm.

    Args:
        cones: SCS dictionary with m rows in all.
        v: Point, shape (m,).

    Returns:
        The nearest point of K, shape (m,).

    Raises:
        ValueError: unsupported cone, or a point of another size.
    """
    blocks = cone_blocks(cones)
    pieces = _split(blocks, v)
    return _join([block.project(piece) for block, piece in zip(blocks, pieces, strict=True)])


def project_dual_cone(cones: ConeDict, v: ArrayLike) -> Array:
    """Project onto the dual cone K* in the Euclidean norm.

    Args:
        cones: SCS dictionary with m rows in all.
        v: Point, shape (m,).

    Returns:
        The nearest point of K*, shape (m,).

    Raises:
        ValueError: unsupported cone, or a point of another size.
    """
    blocks = cone_blocks(cones)
    pieces = _split(blocks, v)
    return _join([block.project_dual(piece) for block, piece in zip(blocks, pieces, strict=True)])


def as_vector(v: ArrayLike, name: str, size: int) -> Array:
    """Read a vector in float64.

    Args:
        v: Vector, shape (size,).
        name: What to call it in the error.
        size: The length it must have.

    Returns:
        The vector, shape (size,), not necessarily a copy.

    Raises:
        ValueError: another shape.
    """
    vector = np.asarray(v, dtype=np.float64)
    if vector.shape != (size,):
        raise ValueError(f"{name}: expected shape ({size},), got {vector.shape}")
    return vector


def _is_empty(value: Any) -> bool:
    if value is None:
        return True
    return value == 0 if np.ndim(value) == 0 else np.size(value) == 0


def _split(blocks: list[Block], v: ArrayLike) -> Iterator[Array]:
    rows = [block.rows for block in blocks]
    point = as_vector(v, "v", sum(rows))
    ends = np.cumsum(rows, dtype=np.int64)
    return (point[end - count : end] for end, count in zip(ends, rows, strict=True))


def _join(pieces: list[Array]) -> Array:
    return np.concatenate(pieces) if pieces else np.zeros(0)
