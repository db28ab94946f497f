"""Judge the answer of a conic solver without knowing the solver.

A primal-dual triple (x, y, s) solves

    minimize 1/2 x'Px + q'x  subject to  A x + s = b,  s in K

exactly when A x + s = b, P x + A'y + q = 0, s in K, y in K* and s'y = 0. Everything is computed
in float64 from the data as given, so a solver that scales, rounds or eliminates is judged on the
problem its user posed. The sign conventions and the residuals are those of SCS 3 (its
documentation; O'Donoghue 2021, arXiv 2004.02177).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from mlxcone.testing.projections import (
    Array,
    ConeDict,
    as_vector,
    cone_rows,
    project_cone,
    project_dual_cone,
)

Matrix: TypeAlias = Any  # array-like, or any SciPy sparse container

_EPSILON = float(np.finfo(np.float64).eps)
# Room for a matrix that was symmetric before it was rounded to float32.
_ASYMMETRY = 1e-6


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
        A `Verdict`; its formulas are given there.

    Raises:
        ValueError: a shape does not fit, P is not symmetric, or a cone is not supported.
    """
    A, m, n = _constraint_matrix(A, cones)
    P = _quadratic(P, n)
    q, b = as_vector(q, "q", n), as_vector(b, "b", m)
    x, y, s = as_vector(x, "x", n), as_vector(y, "y", m), as_vector(s, "s", m)
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
        The violation; infinite when ``b'y`` is not negative by more than its rounding, or anything
        is not finite.

    Raises:
        ValueError: a shape does not fit or a cone is not supported.
    """
    A, m, _ = _constraint_matrix(A, cones)
    b, y = as_vector(b, "b", m), as_vector(y, "y", m)
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
    `verify_infeasible` it is not relative to the data: every dual feasible pair (x0, y0), if
    there were one, has ``||x0||_1 + 2 ||y0||_1 >= 1 / violation``.

    Args:
        P: Symmetric matrix with both triangles, shape (n, n), dense or sparse; None for zero.
        q: Linear cost, shape (n,).
        A: Constraint matrix, shape (m, n), dense or sparse.
        cones: SCS dictionary with m rows in all.
        x: Direction at any positive scale, shape (n,).
        s: Slack of the direction at the same scale, shape (m,), or None.

    Returns:
        The violation; infinite when ``q'x`` is not negative by more than its rounding, or anything
        is not finite.

    Raises:
        ValueError: a shape does not fit, P is not symmetric, or a cone is not supported.
    """
    A, m, n = _constraint_matrix(A, cones)
    P = _quadratic(P, n)
    q, x = as_vector(q, "q", n), as_vector(x, "x", n)
    slack = None if s is None else as_vector(s, "s", m)
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
        ValueError: as for `verify_solution`.
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
        ValueError: as for `verify_infeasible`.
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
        ValueError: as for `verify_unbounded`.
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
    """Scale the parts alike so that ``cost @ parts[0] = -1``; None where that is impossible.

    It is, too, where the value may be the rounding of terms that cancel: its sign means nothing.
    """
    with np.errstate(all="ignore"):
        value = float(cost @ parts[0])
        rounding = _EPSILON * cost.size * float(np.abs(cost) @ np.abs(parts[0]))
        if not (math.isfinite(value) and value < -rounding):
            return None
        scaled = tuple(part / -value for part in parts)
    return scaled if all(np.all(np.isfinite(part)) for part in scaled) else None


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
