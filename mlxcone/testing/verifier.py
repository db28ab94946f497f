"""Judge the answer of a conic solver without knowing the solver.

A primal-dual triple (x, y, s) solves

    minimize 1/2 x'Px + q'x  subject to  A x + s = b,  s in K

exactly when A x + s = b, P x + A'y + q = 0, s in K, y in K* and s'y = 0. Everything is computed
in float64 from the data as given, so a solver that scales, rounds or eliminates is judged on the
problem its user posed. The sign conventions, the row order (z, l, box, q, s, ep, ed, p) and the
residuals are those of SCS 3 (its documentation; O'Donoghue 2021, arXiv 2004.02177).
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Matrix: TypeAlias = Any  # array-like, or any SciPy sparse container
ConeDict = Mapping[str, Any]

# Room for a matrix that was symmetric before it was rounded to float32.
_ASYMMETRY = 1e-6


# --- cones --------------------------------------------------------------------------------------


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


def _is_empty(value: Any) -> bool:
    if value is None:
        return True
    return value == 0 if np.ndim(value) == 0 else np.size(value) == 0


def _split(blocks: list[Block], v: ArrayLike) -> Iterator[Array]:
    rows = [block.rows for block in blocks]
    point = _vector(v, "v", sum(rows))
    ends = np.cumsum(rows, dtype=np.int64)
    return (point[end - count : end] for end, count in zip(ends, rows, strict=True))


def _join(pieces: list[Array]) -> Array:
    return np.concatenate(pieces) if pieces else np.zeros(0)


# --- verdicts -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """How far a triple (x, y, s) is from optimal; every number is relative but the objective.

    With the infinity norm throughout, as in SCS 3:

    Attributes:
        primal_residual: ``||Ax + s - b|| / (1 + max(||Ax||, ||s||, ||b||))``.
        dual_residual: ``||Px + A'y + q|| / (1 + max(||Px||, ||A'y||, ||q||))``.
        gap: ``|x'Px + q'x + b'y| / (1 + max(|x'Px|, |q'x|, |b'y|))``.
        primal_cone_distance: ``||s - proj_K(s)|| / (1 + ||s||)``.
        dual_cone_distance: ``||y - proj_K*(y)|| / (1 + ||y||)``.
        complementarity: ``|s'y|`` over the denominator of the gap, which it equals at a point
            without residuals: ``s'y = -(x'Px + q'x + b'y)``.
        objective: ``1/2 x'Px + q'x``, absolute, and no part of :attr:`worst`.

    A measure that cannot be computed (NaN or infinity in the answer) is infinite.
    """

    primal_residual: float
    dual_residual: float
    gap: float
    primal_cone_distance: float
    dual_cone_distance: float
    complementarity: float
    objective: float

    @property
    def worst(self) -> float:
        """The largest of the relative measures; compare it with a tolerance."""
        return max(value for _, value in self._measures())

    def __str__(self) -> str:
        measures = ", ".join(f"{name} {value:.2e}" for name, value in self._measures())
        return f"{measures}; objective {self.objective:.6g}"

    def _measures(self) -> list[tuple[str, float]]:
        names = [field.name for field in fields(self) if field.name != "objective"]
        return [(name.replace("_", " "), float(getattr(self, name))) for name in names]


def verify_solution(
    P: Matrix,
    q: ArrayLike,
    A: Matrix,
    b: ArrayLike,
    cones: ConeDict,
    x: ArrayLike,
    y: ArrayLike,
    s: ArrayLike,
) -> Verdict:
    """Measure how well (x, y, s) satisfies the optimality conditions.

    Args:
        P: Symmetric matrix with both triangles, shape (n, n), dense or sparse; None for zero.
        q: Linear cost, shape (n,).
        A: Constraint matrix, shape (m, n), dense or sparse.
        b: Right-hand side, shape (m,).
        cones: SCS dictionary with m rows in all.
        x: Primal answer, shape (n,).
        y: Dual answer, shape (m,).
        s: Slack answer, shape (m,).

    Returns:
        A :class:`Verdict`; its formulas are given there.

    Raises:
        ValueError: a shape does not fit, P is not symmetric, or a cone is not supported.
    """
    A, m, n = _constraint_matrix(A, cones)
    P = _quadratic(P, n)
    q, b = _vector(q, "q", n), _vector(b, "b", m)
    x, y, s = _vector(x, "x", n), _vector(y, "y", m), _vector(s, "s", m)
    with np.errstate(invalid="ignore", over="ignore"):
        Ax, Aty, Px = A @ x, A.T @ y, P @ x
        xPx, qx, by = float(x @ Px), float(q @ x), float(b @ y)
        values = max(abs(xPx), abs(qx), abs(by))
        return Verdict(
            primal_residual=_relative(_norm(Ax + s - b), _norm(Ax), _norm(s), _norm(b)),
            dual_residual=_relative(_norm(Px + Aty + q), _norm(Px), _norm(Aty), _norm(q)),
            gap=_relative(abs(xPx + qx + by), values),
            primal_cone_distance=_relative(_distance(project_cone, cones, s), _norm(s)),
            dual_cone_distance=_relative(_distance(project_dual_cone, cones, y), _norm(y)),
            complementarity=_relative(abs(float(s @ y)), values),
            objective=0.5 * xPx + qx,
        )


def verify_infeasible(A: Matrix, b: ArrayLike, cones: ConeDict, y: ArrayLike) -> float:
    """Measure how far y is from proving that no feasible point exists.

    A certificate of primal infeasibility has ``A'y = 0``, y in K* and ``b'y < 0``. With y scaled to
    ``b'y = -1`` the violation is

        max(||A'y||, ||y - proj_K*(y)||)        (infinity norms).

    It is not relative to the size of A or b, as in SCS, because so it means something on its own:
    every feasible point, if there were one, has ``||x||_1 + ||s||_1 >= 1 / violation``.

    Args:
        A: Constraint matrix, shape (m, n), dense or sparse.
        b: Right-hand side, shape (m,).
        cones: SCS dictionary with m rows in all.
        y: Certificate at any positive scale, shape (m,).

    Returns:
        The violation; infinite when ``b'y`` is not negative or anything is not finite.

    Raises:
        ValueError: a shape does not fit or a cone is not supported.
    """
    A, m, _ = _constraint_matrix(A, cones)
    b, y = _vector(b, "b", m), _vector(y, "y", m)
    scaled = _scaled_to_minus_one(b, y)
    if scaled is None:
        return math.inf
    (y,) = scaled
    return _worst(_norm(A.T @ y), _distance(project_dual_cone, cones, y))


def verify_unbounded(
    P: Matrix,
    q: ArrayLike,
    A: Matrix,
    cones: ConeDict,
    x: ArrayLike,
    s: ArrayLike | None = None,
) -> float:
    """Measure how far x is from a direction in which every feasible point improves forever.

    A certificate of unboundedness (of dual infeasibility) has ``P x = 0``, ``A x + s = 0``, s in K
    and ``q'x < 0``. With x and s scaled to ``q'x = -1`` the violation is

        max(||P x||, ||A x + s||, ||s - proj_K(s)||)        (infinity norms),

    and without s, where the best s is the projection of -Ax, ``max(||P x||, dist(-A x, K))``. As in
    :func:`verify_infeasible` it is not relative to the data: every dual feasible pair (x0, y0), if
    there were one, has ``||x0||_1 + 2 ||y0||_1 >= 1 / violation``.

    Args:
        P: Symmetric matrix with both triangles, shape (n, n), dense or sparse; None for zero.
        q: Linear cost, shape (n,).
        A: Constraint matrix, shape (m, n), dense or sparse.
        cones: SCS dictionary with m rows in all.
        x: Direction at any positive scale, shape (n,).
        s: Slack of the direction at the same scale, shape (m,), or None.

    Returns:
        The violation; infinite when ``q'x`` is not negative or anything is not finite.

    Raises:
        ValueError: a shape does not fit, P is not symmetric, or a cone is not supported.
    """
    A, m, n = _constraint_matrix(A, cones)
    P = _quadratic(P, n)
    q, x = _vector(q, "q", n), _vector(x, "x", n)
    slack = None if s is None else _vector(s, "s", m)
    scaled = _scaled_to_minus_one(q, x, *(() if slack is None else (slack,)))
    if scaled is None:
        return math.inf
    x = scaled[0]
    Ax = A @ x
    slack = -Ax if slack is None else scaled[1]
    return _worst(_norm(P @ x), _norm(Ax + slack), _distance(project_cone, cones, slack))


# --- assertions ---------------------------------------------------------------------------------


def assert_solved(
    P: Matrix,
    q: ArrayLike,
    A: Matrix,
    b: ArrayLike,
    cones: ConeDict,
    x: ArrayLike,
    y: ArrayLike,
    s: ArrayLike,
    *,
    tolerance: float = 1e-6,
) -> Verdict:
    """Fail unless (x, y, s) is optimal to a tolerance.

    Args:
        P: Symmetric matrix with both triangles, shape (n, n); None for zero.
        q: Linear cost, shape (n,).
        A: Constraint matrix, shape (m, n).
        b: Right-hand side, shape (m,).
        cones: SCS dictionary with m rows in all.
        x: Primal answer, shape (n,).
        y: Dual answer, shape (m,).
        s: Slack answer, shape (m,).
        tolerance: Bound on :attr:`Verdict.worst`.

    Returns:
        The verdict.

    Raises:
        AssertionError: the answer is worse than the tolerance; the message lists every measure.
        ValueError: as for :func:`verify_solution`.
    """
    verdict = verify_solution(P, q, A, b, cones, x, y, s)
    if not verdict.worst <= tolerance:
        raise AssertionError(f"not solved to {tolerance:.1e}: {verdict}")
    return verdict


def assert_infeasible(
    A: Matrix, b: ArrayLike, cones: ConeDict, y: ArrayLike, *, tolerance: float = 1e-6
) -> float:
    """Fail unless y certifies primal infeasibility to a tolerance.

    Args:
        A: Constraint matrix, shape (m, n).
        b: Right-hand side, shape (m,).
        cones: SCS dictionary with m rows in all.
        y: Certificate at any positive scale, shape (m,).
        tolerance: Bound on the violation at ``b'y = -1``.

    Returns:
        The violation.

    Raises:
        AssertionError: the violation is above the tolerance.
        ValueError: as for :func:`verify_infeasible`.
    """
    violation = verify_infeasible(A, b, cones, y)
    _require("infeasibility", violation, tolerance, "b'y", float(np.dot(b, y)))
    return violation


def assert_unbounded(
    P: Matrix,
    q: ArrayLike,
    A: Matrix,
    cones: ConeDict,
    x: ArrayLike,
    s: ArrayLike | None = None,
    *,
    tolerance: float = 1e-6,
) -> float:
    """Fail unless x certifies unboundedness to a tolerance.

    Args:
        P: Symmetric matrix with both triangles, shape (n, n); None for zero.
        q: Linear cost, shape (n,).
        A: Constraint matrix, shape (m, n).
        cones: SCS dictionary with m rows in all.
        x: Direction at any positive scale, shape (n,).
        s: Slack of the direction at the same scale, shape (m,), or None.
        tolerance: Bound on the violation at ``q'x = -1``.

    Returns:
        The violation.

    Raises:
        AssertionError: the violation is above the tolerance.
        ValueError: as for :func:`verify_unbounded`.
    """
    violation = verify_unbounded(P, q, A, cones, x, s)
    _require("unboundedness", violation, tolerance, "q'x", float(np.dot(q, x)))
    return violation


def _require(claim: str, violation: float, tolerance: float, name: str, value: float) -> None:
    if not violation <= tolerance:
        raise AssertionError(
            f"no certificate of {claim} to {tolerance:.1e}: violation {violation:.2e} when scaled "
            f"to {name} = -1 (as given, {name} = {value:.3g})"
        )


# --- arithmetic that distrusts its input ---------------------------------------------------------


def _norm(v: Array) -> float:
    return float(np.max(np.abs(v), initial=0.0))


def _distance(project: Callable[[ConeDict, ArrayLike], Array], cones: ConeDict, v: Array) -> float:
    if not np.all(np.isfinite(v)):
        return math.inf
    return _norm(v - project(cones, v))


def _relative(value: float, *sizes: float) -> float:
    # max() would drop a NaN depending on its position, so NaN becomes infinity here.
    ratio = value / (1.0 + max(sizes))
    return ratio if math.isfinite(ratio) and all(map(math.isfinite, sizes)) else math.inf


def _worst(*values: float) -> float:
    return max(values) if all(map(math.isfinite, values)) else math.inf


def _scaled_to_minus_one(cost: Array, *parts: Array) -> tuple[Array, ...] | None:
    """Scale the parts alike so that ``cost @ parts[0] = -1``; None where that is impossible."""
    with np.errstate(all="ignore"):
        value = float(cost @ parts[0])
        if not (math.isfinite(value) and value < 0.0):
            return None
        scaled = tuple(part / -value for part in parts)
    return scaled if all(np.all(np.isfinite(part)) for part in scaled) else None


def _vector(v: ArrayLike, name: str, size: int) -> Array:
    vector = np.asarray(v, dtype=np.float64)
    if vector.shape != (size,):
        raise ValueError(f"{name}: expected shape ({size},), got {vector.shape}")
    return vector


def _matrix(M: Matrix, name: str) -> Any:
    # Only SciPy's containers have `toarray`; they are kept sparse and never densified.
    matrix = M.astype(np.float64) if hasattr(M, "toarray") else np.asarray(M, dtype=np.float64)
    if len(matrix.shape) != 2:
        raise ValueError(f"{name}: expected a matrix, got shape {matrix.shape}")
    return matrix


def _constraint_matrix(A: Matrix, cones: ConeDict) -> tuple[Any, int, int]:
    A = _matrix(A, "A")
    m, n = A.shape
    rows = cone_rows(cones)
    if m != rows:
        raise ValueError(f"A: expected {rows} rows for cones {dict(cones)}, got {m}")
    return A, m, n


def _quadratic(P: Matrix, n: int) -> Any:
    if P is None:
        return np.zeros((n, n))
    P = _matrix(P, "P")
    if P.shape != (n, n):
        raise ValueError(f"P: expected shape ({n}, {n}), got {P.shape}")
    # SCS and Clarabel take one triangle; judged by that, a right answer would look wrong.
    if n and abs(P - P.T).max() > _ASYMMETRY * abs(P).max():
        raise ValueError("P: expected a symmetric matrix with both triangles filled")
    return P
