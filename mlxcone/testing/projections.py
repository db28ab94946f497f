"""Euclidean projections onto a cone and its dual, in plain NumPy and float64.

The reference for the solver's own projections, so nothing is shared with them. The cone
dictionary and the row order (z, l, bl with bu, q, s, ep, ed, p) are those of SCS 3; "pnd", lists of
exponents of power cones of more rows, follows as in CVXPY.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxcone.testing.root_projections import (
    INFINITE_BOUND,
    project_box,
    project_exponential,
    project_power,
)

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


def _block(rows: int, project: Callable[[Array], Array]) -> Block:
    """A cone by its projection; Moreau's decomposition gives the projection onto the dual."""
    return Block(rows, project, partial(_project_by_moreau, project))


def _dual_of(block: Block) -> Block:
    return Block(block.rows, project=block.project_dual, project_dual=block.project)


def _project_by_moreau(project: Callable[[Array], Array], v: Array) -> Array:
    return v + project(-v)


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
        # A whole float does no harm.
        whole: Any = int(value) if isinstance(value, float) and value.is_integer() else value
        number = operator.index(whole)
    except TypeError:
        raise ValueError(f"cones[{key!r}]: expected an integer, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"cones[{key!r}]: expected at least {minimum}, got {number}")
    return number


def _bounds(cones: ConeDict, key: str) -> Array:
    value = cones.get(key)
    try:
        bounds = np.atleast_1d(np.asarray([] if value is None else value, dtype=np.float64))
    except (TypeError, ValueError):
        bounds = np.full((1, 1), np.nan)
    if bounds.ndim != 1 or np.any(np.isnan(bounds)):
        raise ValueError(f"cones[{key!r}]: expected numbers, got {value!r}")
    return bounds


def _exponents(cones: ConeDict) -> list[float]:
    value = cones.get("p")
    if value is None or (np.ndim(value) == 0 and value == 0):
        return []
    for exponent in np.atleast_1d(value):
        # Written so that NaN fails.
        if not 0.0 < abs(exponent) < 1.0:
            raise ValueError(f"cones['p']: expected numbers in (-1, 0) or (0, 1), got {exponent}")
    return [float(exponent) for exponent in np.atleast_1d(value)]


def _exponent_lists(cones: ConeDict) -> list[Array]:
    value: Any = cones.get("pnd")
    if _is_empty(value):
        return []
    try:
        lists = [np.asarray(exponents, dtype=np.float64) for exponents in value]
    except (TypeError, ValueError):
        raise ValueError(f"cones['pnd']: expected lists of numbers, got {value!r}") from None
    for exponents in lists:
        # Written so that NaN fails.
        valid = exponents.ndim == 1 and exponents.size > 1 and np.all(exponents > 0.0)
        if not (valid and abs(np.sum(exponents) - 1.0) <= 1e-6):
            raise ValueError(
                f"cones['pnd']: expected two or more positive numbers of sum 1, got {exponents}"
            )
    return [exponents / np.sum(exponents) for exponents in lists]


def _zero_blocks(cones: ConeDict) -> list[Block]:
    rows = _count(cones, "z")
    return [Block(rows, np.zeros_like, _identity)] if rows else []


def _nonnegative_blocks(cones: ConeDict) -> list[Block]:
    rows = _count(cones, "l")
    return [Block(rows, _nonnegative_part, _nonnegative_part)] if rows else []


def _box_blocks(cones: ConeDict) -> list[Block]:
    lower, upper = _bounds(cones, "bl"), _bounds(cones, "bu")
    if lower.size != upper.size:
        raise ValueError(f"cones['bl']: expected {upper.size} bounds as in 'bu', got {lower.size}")
    if not np.all((lower <= upper) & (lower < INFINITE_BOUND) & (upper > -INFINITE_BOUND)):
        raise ValueError("cones['bl']: expected bounds that allow a number, none above its 'bu'")
    if not lower.size:
        return []
    return [_block(1 + lower.size, partial(project_box, lower=lower, upper=upper))]


def _second_order_blocks(cones: ConeDict) -> list[Block]:
    return [Block(k, _project_second_order, _project_second_order) for k in _sizes(cones, "q")]


def _semidefinite_blocks(cones: ConeDict) -> list[Block]:
    return [
        Block(k * (k + 1) // 2, _project_semidefinite, _project_semidefinite)
        for k in _sizes(cones, "s")
    ]


def _exponential_blocks(cones: ConeDict) -> list[Block]:
    return [_block(3, project_exponential)] * _count(cones, "ep")


def _dual_exponential_blocks(cones: ConeDict) -> list[Block]:
    return [_dual_of(_block(3, project_exponential))] * _count(cones, "ed")


def _power_blocks(cones: ConeDict) -> list[Block]:
    blocks = []
    for exponent in _exponents(cones):
        both = np.array([abs(exponent), 1.0 - abs(exponent)])
        block = _block(3, partial(project_power, exponents=both))
        blocks.append(block if exponent > 0.0 else _dual_of(block))
    return blocks


def _power_nd_blocks(cones: ConeDict) -> list[Block]:
    return [
        _block(exponents.size + 1, partial(project_power, exponents=exponents))
        for exponents in _exponent_lists(cones)
    ]


# The order here is the order of the rows.
CONE_KINDS: tuple[ConeKind, ...] = (
    ConeKind(("z",), _zero_blocks),
    ConeKind(("l",), _nonnegative_blocks),
    ConeKind(("bl", "bu"), _box_blocks),
    ConeKind(("q",), _second_order_blocks),
    ConeKind(("s",), _semidefinite_blocks),
    ConeKind(("ep",), _exponential_blocks),
    ConeKind(("ed",), _dual_exponential_blocks),
    ConeKind(("p",), _power_blocks),
    ConeKind(("pnd",), _power_nd_blocks),
)

# Products of cones of one row; they are first in that order.
_SEPARABLE = ("z", "l")


def cone_blocks(cones: ConeDict) -> list[Block]:
    """Expand a cone dictionary into its blocks, in row order.

    Args:
        cones: SCS dictionary; missing and empty keys mean "none".

    Returns:
        One `Block` for each cone that has rows.

    Raises:
        ValueError: a key is unknown or not supported, or its value is not valid.
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
        ValueError: as for `cone_blocks`.
    """
    return sum(block.rows for block in cone_blocks(cones))


def row_groups(cones: ConeDict) -> list[slice]:
    """Rows that belong together: those of one cone, and each row of "z" and "l" for itself.

    Args:
        cones: SCS dictionary.

    Returns:
        Slices of the m rows, in order.

    Raises:
        ValueError: as for `cone_blocks`.
    """
    blocks = cone_blocks({key: value for key, value in cones.items() if key not in _SEPARABLE})
    sizes = [1] * sum(_count(cones, key) for key in _SEPARABLE) + [block.rows for block in blocks]
    ends = [int(end) for end in np.cumsum(sizes, dtype=np.int64)]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


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
    if isinstance(value, list | tuple):  # of lists of unequal lengths, perhaps
        return not value
    return value == 0 if np.ndim(value) == 0 else np.size(value) == 0


def _split(blocks: list[Block], v: ArrayLike) -> Iterator[Array]:
    rows = [block.rows for block in blocks]
    point = as_vector(v, "v", sum(rows))
    ends = np.cumsum(rows, dtype=np.int64)
    return (point[end - count : end] for end, count in zip(ends, rows, strict=True))


def _join(pieces: list[Array]) -> Array:
    return np.concatenate(pieces) if pieces else np.zeros(0)
