"""Random cone programs whose answer is known by construction.

Only projections are needed, so any mix of the cones in `mlxcone.testing.projections` will do.
The idea, for problems with a solution, is SCS's: any vector z splits into y = proj_K*(z) and
s = y - z, which lie in K* and K and are orthogonal (Moreau); then ``b = A x + s`` and
``q = -P x - A'y`` make (x, y, s) optimal for any A, x and positive semidefinite P.

Infeasible and unbounded problems carry an exact certificate, and a proof that the other verdict is
wrong: an infeasible one has a dual feasible pair (x0, y0) of moderate size, which puts a floor
of ``1 / (||x0||_1 + 2 ||y0||_1)`` under the violation of any certificate of unboundedness; an
unbounded one has a feasible pair (x0, s0), with the floor ``1 / (||x0||_1 + ||s0||_1)``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxcone.testing.projections import (
    Array,
    Block,
    ConeDict,
    cone_blocks,
    cone_rows,
    project_cone,
    project_dual_cone,
    row_groups,
)
from mlxcone.testing.structure import Structure, flatten
from mlxcone.testing.verifier import assert_infeasible, assert_solved, assert_unbounded

Expect = Literal["solved", "infeasible", "unbounded"]

_ATTEMPTS = 50
# Beyond this condition number a finite-difference check of a derivative says little.
_REGULAR_CONDITION = 1e6
_REGULAR = Structure()


@dataclass(frozen=True, repr=False, eq=False)
class Instance:
    """A cone program and its known answer.

    Attributes:
        P: Symmetric positive semidefinite, shape (n, n), float64 like all arrays here.
        q: Linear cost, shape (n,).
        A: Constraint matrix, shape (m, n).
        b: Right-hand side, shape (m,).
        cones: SCS dictionary with m rows in all.
        expect: "solved", "infeasible" or "unbounded".
        x: An optimal point, or the direction of unboundedness with ``q'x = -1``; shape (n,). NaN
            when infeasible.
        y: An optimal dual point, or the certificate of infeasibility with ``b'y = -1``; shape (m,).
            NaN when unbounded.
        s: The slack that belongs to x, shape (m,). NaN when infeasible.
        recipe: The call that makes this instance again, if known.
        condition: Condition number of the Jacobian of the optimality system at (x, y, s), where
            it was asked for: below about 1e6 they are unique and differentiable in the data.
        spread: Largest over smallest factor by which units were changed (`scaling`).
    """

    P: Array
    q: Array
    A: Array
    b: Array
    cones: dict[str, Any]
    expect: Expect
    x: Array
    y: Array
    s: Array
    recipe: str = ""
    condition: float = math.inf
    spread: float = 1.0

    @property
    def data(self) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """The problem alone, ``(P, q, A, b, cones)``, in the order the verifier takes it."""
        return self.P, self.q, self.A, self.b, self.cones

    def check(
        self,
        x: ArrayLike | None = None,
        y: ArrayLike | None = None,
        s: ArrayLike | None = None,
        *,
        tolerance: float = 1e-6,
    ) -> None:
        """Fail unless a solver's answer is what this instance expects.

        Args:
            x: Solution or direction of unboundedness, shape (n,); not read when infeasible.
            y: Dual solution or certificate of infeasibility, shape (m,); not read when unbounded.
            s: Slack, shape (m,); not read when infeasible, optional when unbounded.
            tolerance: Bound on the relative residuals or on the certificate's violation.

        Raises:
            AssertionError: the answer is wrong, or the part of it that counts is missing.
            ValueError: a shape does not fit.
        """
        if self.expect == "infeasible":
            assert_infeasible(self.A, self.b, self.cones, self._given("y", y), tolerance=tolerance)
        elif self.expect == "unbounded":
            x = self._given("x", x)
            assert_unbounded(self.P, self.q, self.A, self.cones, x, s, tolerance=tolerance)
        else:
            x, y, s = self._given("x", x), self._given("y", y), self._given("s", s)
            assert_solved(*self.data, x, y, s, tolerance=tolerance)

    def _given(self, name: str, value: ArrayLike | None) -> ArrayLike:
        if value is None:
            raise AssertionError(f"expected an answer '{self.expect}' with {name}, got none")
        return value

    def __repr__(self) -> str:
        m, n = self.A.shape
        recipe = f", recipe={self.recipe!r}" if self.recipe else ""
        return f"Instance(expect={self.expect!r}, n={n}, m={m}, cones={self.cones!r}{recipe})"


def feasible(
    rng: np.random.Generator,
    n: int,
    cones: ConeDict,
    *,
    density: float = 1.0,
    quadratic_rank: int | None = None,
    structure: Structure = _REGULAR,
    unique: bool = False,
) -> Instance:
    """Make a problem with a solution.

    Args:
        rng: Source of randomness; the same state makes the same instance.
        n: Number of variables, at least 1.
        cones: SCS dictionary with m rows in all.
        density: Share of nonzeros of A, in (0, 1]; no row or column stays empty. P is dense.
        quadratic_rank: Rank of P from 0 (a linear or second-order cone program) to n, the default.
        structure: What is degenerate about the constraints; nothing by default.
        unique: Ask for a positive definite P and a regular solution: x, y and s are then unique
            and differentiable in the data (the Jacobian of the optimality system is well
            conditioned). Otherwise degenerate and non-unique solutions do occur.

    Returns:
        An `Instance` with ``expect == "solved"`` and x, y, s.

    Raises:
        ValueError: an argument is out of range, a cone is not supported, or ``unique`` cannot be
            had (a rank below n, or more equality rows than variables).
    """
    m = _checked_rows(n, cones, density)
    rank = _checked_rank(quadratic_rank, n)
    if unique and rank < n:
        raise ValueError(f"quadratic_rank: unique=True needs {n}, got {rank}")
    for attempt in range(_ATTEMPTS):
        # Fewer and fewer active constraints: more of them than variables are never regular.
        z = _random_split_point(rng, cones, bias=-0.25 * attempt)
        A = structure.apply(rng, _constraints(rng, m, n, density))
        if structure.thin:
            A, z = flatten(rng, cones, A, z)
        P = _quadratic(rng, n, rank)
        if not unique or _condition(P, A, cones, z) < _REGULAR_CONDITION:
            break
    else:
        raise ValueError(f"unique: found no regular solution for n = {n}, cones {dict(cones)}")
    x = rng.standard_normal(n)
    y = project_dual_cone(cones, z)
    s = y - z
    return Instance(P, -(P @ x + A.T @ y), A, A @ x + s, dict(cones), "solved", x=x, y=y, s=s)


def infeasible(
    rng: np.random.Generator,
    n: int,
    cones: ConeDict,
    *,
    density: float = 1.0,
    quadratic_rank: int | None = None,
    structure: Structure = _REGULAR,
) -> Instance:
    """Make a problem without a feasible point, whose dual is feasible.

    A certificate y is drawn first. A is then made orthogonal to it inside its own pattern, and b
    gets a component against it that is as large as the rest of b.

    Args:
        rng: Source of randomness; the same state makes the same instance.
        n: Number of variables, at least 1.
        cones: SCS dictionary with m rows in all, at least 1.
        density: Share of nonzeros of A, in (0, 1].
        quadratic_rank: Rank of P from 0 to n, the default.
        structure: What is degenerate about the constraints; nothing by default.

    Returns:
        An `Instance` with ``expect == "infeasible"`` and y, scaled to ``b'y = -1``.

    Raises:
        ValueError: an argument is out of range, a cone is not supported, or there are no rows.
    """
    m = _checked_rows(n, cones, density)
    rank = _checked_rank(quadratic_rank, n)
    if m == 0:
        raise ValueError("cones: an infeasible problem needs at least one row, got none")
    y = _generic_dual_point(rng, cones)
    A = structure.apply(rng, _constraints(rng, m, n, density))
    A = _with_zero_products(A, y)
    b = rng.standard_normal(m)
    b -= y * (y @ b)
    b -= y * max(1.0, float(np.linalg.norm(b)))
    P = _quadratic(rng, n, rank)
    # With a dual feasible point no direction of unboundedness exists: q'd = y0's >= 0 on all.
    x0, y0 = rng.standard_normal(n), project_dual_cone(cones, rng.standard_normal(m))
    q = -(P @ x0 + A.T @ y0)
    x, s = np.full(n, np.nan), np.full(m, np.nan)
    return Instance(P, q, A, b, dict(cones), "infeasible", x=x, y=y / -(b @ y), s=s)


def unbounded(
    rng: np.random.Generator,
    n: int,
    cones: ConeDict,
    *,
    density: float = 1.0,
    quadratic_rank: int | None = None,
    structure: Structure = _REGULAR,
) -> Instance:
    """Make a feasible problem whose objective has no lower bound.

    A direction x and its slack s in K are drawn first. A is then changed inside its own pattern to
    ``A x = -s``, P is drawn orthogonal to x, and q gets a component against x that is as
    large as the rest of q.

    Args:
        rng: Source of randomness; the same state makes the same instance.
        n: Number of variables, at least 1.
        cones: SCS dictionary with m rows in all.
        density: Share of nonzeros of A, in (0, 1].
        quadratic_rank: Rank of P from 0 to n - 1, the default.
        structure: What is degenerate about the constraints; nothing by default.

    Returns:
        An `Instance` with ``expect == "unbounded"`` and x, s, scaled to ``q'x = -1``.

    Raises:
        ValueError: an argument is out of range or a cone is not supported.
    """
    m = _checked_rows(n, cones, density)
    rank = _checked_rank(quadratic_rank, n - 1)
    # Entries away from zero, because a row with a single nonzero is divided by one of them.
    x = rng.choice([-1.0, 1.0], n) * rng.uniform(0.5, 1.5, n)
    s = _generic_point(rng, cones)
    A = structure.apply(rng, _constraints(rng, m, n, density))
    s = _without_blocks(s, cones, ~np.any(A, axis=1))
    A = _with_products(A, x, -s)
    P = _quadratic(rng, n, rank, orthogonal_to=x)
    unit = x / np.linalg.norm(x)
    q = rng.standard_normal(n)
    q -= unit * (unit @ q)
    q -= unit * max(1.0, float(np.linalg.norm(q)))
    # With a feasible point no certificate of infeasibility exists: b'y = s0'y >= 0 on all.
    x0, s0 = rng.standard_normal(n), project_cone(cones, rng.standard_normal(m))
    b = A @ x0 + s0
    scale = -(q @ x)
    return Instance(
        P, q, A, b, dict(cones), "unbounded", x=x / scale, y=np.full(m, np.nan), s=s / scale
    )


def with_condition(instance: Instance) -> Instance:
    """Fill in the condition number of an instance's known solution.

    It is that of the problem as it is; take it before the units are changed.

    Args:
        instance: Any instance; one without a solution is returned as it is.

    Returns:
        The instance with ``condition``, which is infinite where the Jacobian is singular.
    """
    if instance.expect != "solved":
        return instance
    z = instance.y - instance.s
    return replace(instance, condition=_condition(instance.P, instance.A, instance.cones, z))


# --- ingredients --------------------------------------------------------------------------------


def _checked_rows(n: int, cones: ConeDict, density: float) -> int:
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density: expected a number in (0, 1], got {density}")
    return cone_rows(cones)


def _checked_rank(rank: int | None, largest: int) -> int:
    if rank is None:
        return largest
    if not 0 <= rank <= largest:
        raise ValueError(f"quadratic_rank: expected 0 to {largest}, got {rank}")
    return rank


def _constraints(rng: np.random.Generator, m: int, n: int, density: float) -> Array:
    pattern = rng.random((m, n)) < density
    if m:
        pattern[np.arange(m), rng.integers(n, size=m)] = True
        pattern[rng.integers(m, size=n), np.arange(n)] = True
    return np.where(pattern, rng.standard_normal((m, n)), 0.0)


def _quadratic(
    rng: np.random.Generator, n: int, rank: int, orthogonal_to: Array | None = None
) -> Array:
    """Draw P of exactly this rank, with its nonzero eigenvalues between 1/2 and 2."""
    basis = rng.standard_normal((n, rank))
    if orthogonal_to is not None:
        unit = orthogonal_to / np.linalg.norm(orthogonal_to)
        basis -= np.outer(unit, unit @ basis)
    basis, _ = np.linalg.qr(basis)
    P = (basis * rng.uniform(0.5, 2.0, rank)) @ basis.T
    return 0.5 * (P + P.T)


def _random_split_point(rng: np.random.Generator, cones: ConeDict, bias: float) -> Array:
    """Draw z to be split into (y, s), each block anywhere between "s = 0" and "y = 0".

    Plain noise would leave every large cone at its boundary; a step of random length along a
    direction inside the cone, forwards or backwards, reaches the other two cases.
    """
    blocks = cone_blocks(cones)
    pieces = []
    for block in blocks:
        step = rng.standard_normal() + bias
        noise = rng.standard_normal(block.rows)
        pieces.append(noise + step * _inner_direction(rng, block))
    return np.concatenate(pieces) if pieces else np.zeros(0)


def _inner_direction(rng: np.random.Generator, block: Block, draws: int = 6) -> Array:
    # A sum of points of a convex cone moves inwards, whatever the cone.
    points = rng.standard_normal((draws, block.rows))
    return sum(
        (block.project(v) + block.project_dual(v[::-1]) for v in points), np.zeros(block.rows)
    ) / math.sqrt(draws)


def _generic_point(rng: np.random.Generator, cones: ConeDict) -> Array:
    """Draw a point of K, shape (m,), whose blocks lie at the boundary or well inside, not at 0."""
    blocks = cone_blocks(cones)
    pieces = [_generic_block_point(rng, block.rows, block.project) for block in blocks]
    return np.concatenate(pieces) if pieces else np.zeros(0)


def _generic_dual_point(rng: np.random.Generator, cones: ConeDict) -> Array:
    """Draw a point of K*, shape (m,), in the same way, and scale it to length one."""
    blocks = cone_blocks(cones)
    for _ in range(_ATTEMPTS):
        y = np.concatenate([_generic_block_point(rng, k.rows, k.project_dual) for k in blocks])
        length = float(np.linalg.norm(y))
        # A single nonnegative row is zero now and then.
        if length > 0.1:
            return y / length
    raise ValueError(f"cones: found no nonzero point of the dual cone of {dict(cones)}")


def _generic_block_point(
    rng: np.random.Generator, rows: int, project: Callable[[Array], Array]
) -> Array:
    # A certificate that is zero on most rows proves little: a solver needs it to rounding, and
    # the slightest change of A destroys it. So the point of largest norm of a few is kept.
    points = [project(rng.standard_normal(rows)) for _ in range(8)]
    point = max(points, key=lambda v: float(v @ v))
    if rng.random() < 0.5:
        # Sums of points of a convex cone lie inside of it.
        point = point + 0.5 * sum(points, np.zeros(rows))
    return point


def _with_zero_products(A: Array, y: Array) -> Array:
    """The matrix nearest to A, among those with its pattern, for which ``A'y = 0``."""
    pattern = A != 0.0
    weights = (y**2) @ pattern
    # A column that y does not see needs no change; the divisor one stands in for its zero.
    multiple = (A.T @ y) / np.where(weights > 0.0, weights, 1.0)
    return _cleaned(A - np.where(pattern, np.outer(y, multiple), 0.0), A)


def _with_products(A: Array, x: Array, target: Array) -> Array:
    """The matrix nearest to A, among those with its pattern, for which ``A x = target``."""
    pattern = A != 0.0
    weights = pattern @ (x**2)
    # The target of an empty row is zero.
    multiple = (A @ x - target) / np.where(weights > 0.0, weights, 1.0)
    return _cleaned(A - np.where(pattern, np.outer(multiple, x), 0.0), A)


def _without_blocks(s: Array, cones: ConeDict, empty: NDArray[np.bool_]) -> Array:
    """The point of K that is zero on the blocks with an empty row of A, shape (m,)."""
    s = s.copy()
    for rows in row_groups(cones):
        if np.any(empty[rows]):
            s[rows] = 0.0
    return s


def _cleaned(changed: Array, original: Array) -> Array:
    # An entry that should have cancelled leaves rounding noise, which a solver that scales rows
    # or columns would blow up into data.
    noise = np.abs(changed) <= 1e-14 * max(1.0, float(np.max(np.abs(original), initial=0.0)))
    return np.where(noise, 0.0, changed)


def _condition(P: Array, A: Array, cones: ConeDict, z: Array) -> float:
    """Condition of ``F(x, z) = (P x + A'y + q, A x + y - z - b)``, y = proj(z), in (x, z)."""
    m, step = z.size, 1e-6
    columns = [
        project_dual_cone(cones, z + offset) - project_dual_cone(cones, z - offset)
        for offset in step * np.eye(m)
    ]
    derivative = np.array(columns).reshape(m, m).T / (2.0 * step)
    jacobian = np.block([[P, A.T @ derivative], [A, derivative - np.eye(m)]])
    return float(np.linalg.cond(jacobian))
