"""Degenerate constraints: deficient rank, repeated and empty rows, empty columns, no interior.

What a modeling layer hands to a solver is rarely the full-rank matrix of a random problem. A
`Structure` says what to spoil; `mlxcone.testing.manufacture` applies it to the
constraints before it makes the answer, so the answer stays known.
"""

from dataclasses import dataclass

import numpy as np

from mlxcone.testing.projections import Array, ConeDict, project_dual_cone, row_groups

_FACTORS = (1.0, -1.0, 3.0)


@dataclass(frozen=True)
class Structure:
    """What is degenerate about the constraints; by default nothing.

    Infeasible and unbounded problems change A once more to fit their certificate, which may undo
    a repeated row or raise the rank by one.

    Attributes:
        rank: Largest rank of A; None for no bound.
        repeated_rows: How many rows become 1, -1 or 3 times another row.
        zero_rows: How many rows become zero.
        zero_columns: How many columns become zero: x is free there, but for P.
        thin: Leave no strictly feasible point: some w in K* has ``A'w = 0`` and ``b'w = 0``, so
            every feasible s lies in the face of K that w touches. Only problems with a solution
            have this.
    """

    rank: int | None = None
    repeated_rows: int = 0
    zero_rows: int = 0
    zero_columns: int = 0
    thin: bool = False

    def apply(self, rng: np.random.Generator, A: Array) -> Array:
        """Spoil A, shape (m, n), in everything but ``thin``; draws only for what is to be done.

        Args:
            rng: Source of randomness.
            A: Constraint matrix; it is not changed.

        Returns:
            The new matrix, shape (m, n).
        """
        m, n = A.shape
        if self.rank is not None and self.rank < min(m, n):
            weights = rng.standard_normal((m, self.rank)) / np.sqrt(max(self.rank, 1))
            A = weights @ A[: self.rank]
        A = A.copy()
        for _ in range(self.repeated_rows if m > 1 else 0):
            source, target = rng.choice(m, 2, replace=False)
            A[target] = rng.choice(_FACTORS) * A[source]
        if self.zero_rows:
            A[rng.permutation(m)[: self.zero_rows]] = 0.0
        if self.zero_columns:
            A[:, rng.permutation(n)[: self.zero_columns]] = 0.0
        return A


def flatten(rng: np.random.Generator, cones: ConeDict, A: Array, z: Array) -> tuple[Array, Array]:
    """Take the strictly feasible points from constraints ``A x + s = b`` with s from z.

    A point w of K* is drawn that is zero on some blocks. Where it is not zero, s becomes zero, and
    A becomes orthogonal to w; every feasible s then has ``w's = w'b = 0``.

    Args:
        rng: Source of randomness.
        cones: SCS dictionary with m rows in all.
        A: Constraint matrix, shape (m, n).
        z: Point that is split into y = proj_K*(z) and s = y - z, shape (m,).

    Returns:
        The new A and z. With one row alone A becomes zero; where K is the zero cone, both stay.
    """
    inner, slackless = (project_dual_cone(cones, v) for v in (rng.standard_normal(z.size), z))
    w, z = np.zeros_like(z), z.copy()
    equalities = int(cones.get("z") or 0)
    for rows in row_groups(cones):
        # An equality has s = 0 already, and w there says nothing about an interior.
        if rows.start >= equalities and rng.random() < 0.5 and np.any(inner[rows]):
            w[rows], z[rows] = inner[rows], slackless[rows]
    length = float(w @ w)
    # Divided by less, the rounding of A would be all that is left of it.
    return (A - np.outer(w, (w @ A) / length), z) if length > 1e-2 else (A, z)
