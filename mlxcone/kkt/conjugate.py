"""(P + rho_x I + A'R A)^-1 v by conjugate gradients, for matrices too large to factor.

Hestenes and Stiefel (1952), preconditioned by the diagonal. A lane stops where its residual is
small enough, whatever the others do. Variables that share no row of A and no entry of P are
eliminated first: their block of the matrix is diagonal, and without them what is left of a
modelling variable such as r = F x - b no longer depends on the weight of that equation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import scipy.sparse as sp

from mlxcone.backend.gather import gather
from mlxcone.program.residuals import dot
from mlxcone.program.sparse import Sparse

_TINY = 1e-30


def independent(P: Any, A: Any) -> np.ndarray:
    """Variables of which no two share a row of A, (n,) of bool; their columns of P are diagonal.

    Of SciPy matrices. In each row the column with the fewest entries goes first, and those that go
    first in all of their rows are taken (a round of Luby, 1986).
    """
    wide: Any = sp.csc_matrix(A)
    counts = np.diff(wide.indptr)
    rank = np.empty(wide.shape[1], dtype=np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(wide.shape[1])
    own = np.repeat(rank, counts)
    first = np.full(wide.shape[0], wide.shape[1], dtype=np.int64)
    np.minimum.at(first, wide.indices, own)
    lost = np.repeat(np.arange(wide.shape[1]), counts)[own > first[wide.indices]]
    taken = np.ones(wide.shape[1], dtype=np.bool_)
    taken[lost] = False
    if P is not None:
        bent: Any = sp.coo_matrix(P)
        taken[bent.col[bent.row != bent.col]] = False
    # Something is left, unless there is nothing else.
    taken[-1] &= not taken.all()
    return taken


class Gone(NamedTuple):
    """Variables that are eliminated.

    Their places and those of the others, the place of each variable in (others, these), their
    columns of A, and their diagonal of P.
    """

    places: mx.array
    others: mx.array
    order: mx.array
    A: Sparse
    P: mx.array


class Blocks(NamedTuple):
    """P and A of the variables that are not eliminated, and the others if there are any."""

    P: Sparse | None
    A: Sparse
    gone: Gone | None

    @classmethod
    def of(cls, P: Any, A: Any) -> Blocks:
        """Of SciPy matrices."""
        taken = independent(P, A)
        if not taken.any():
            return cls(None if P is None else Sparse.of(P), Sparse.of(A), None)
        kept, places = np.flatnonzero(~taken), np.flatnonzero(taken)
        wide: Any = sp.csc_matrix(A)
        bent: Any = sp.csr_matrix((taken.size, taken.size) if P is None else P)
        gone = Gone(
            mx.array(places.astype(np.int32)),
            mx.array(kept.astype(np.int32)),
            mx.array(np.argsort(np.concatenate([kept, places])).astype(np.int32)),
            Sparse.of(wide[:, places]),
            mx.array(bent.diagonal()[places], dtype=mx.float64),
        )
        P = None if P is None else Sparse.of(bent[kept][:, kept])
        return cls(P, Sparse.of(wide[:, kept]), gone)

    def scaled(self, d: mx.array, e: mx.array) -> Blocks:
        """Of D P D and E A D, for d (n,) and e (m,)."""
        gone, own = self.gone, d
        if gone is not None:
            own, theirs = gather(d, gone.others), gather(d, gone.places)
            gone = gone._replace(A=gone.A.scaled(e, theirs), P=gone.P * mx.square(theirs))
        P = None if self.P is None else self.P.scaled(own, own)
        return Blocks(P, self.A.scaled(e, own), gone)

    def astype(self, dtype: mx.Dtype) -> Blocks:
        """In another dtype."""
        gone = self.gone
        if gone is not None:
            gone = gone._replace(A=gone.A.astype(dtype), P=gone.P.astype(dtype))
        return Blocks(None if self.P is None else self.P.astype(dtype), self.A.astype(dtype), gone)


class Conjugate(NamedTuple):
    """The blocks, R (1 or B, m), rho_x, two diagonals (1 or B, .), and when to stop.

    The diagonals are that of the matrix on the eliminated variables, if there are any, and about
    that of its Schur complement. ``rtol`` is relative to the right-hand side, ``most`` a number of
    iterations.
    """

    blocks: Blocks
    weights: mx.array
    rho_x: float
    pivots: mx.array | None
    diagonal: mx.array
    rtol: float
    most: int

    @classmethod
    def of(
        cls, blocks: Blocks, weights: mx.array, rho_x: float, rtol: float, most: int
    ) -> Conjugate:
        """For weights (1 or B, m)."""
        gone, left, pivots = blocks.gone, weights, None
        if gone is not None:
            pivots = gone.A.square_columns(weights) + gone.P + rho_x
            # Exact where an eliminated variable has one row.
            left = weights - mx.square(weights) * gone.A.square_rows(1.0 / pivots)
        diagonal = blocks.A.square_columns(left) + rho_x
        if blocks.P is not None:
            diagonal = diagonal + blocks.P.diagonal()
        return cls(blocks, weights, rho_x, pivots, diagonal, rtol, most)

    def _product(self, p: mx.array) -> mx.array:
        """The Schur complement times p."""
        P, A, gone = self.blocks
        bent = self.weights * A.times(p)
        if gone is not None and self.pivots is not None:
            bent = bent - self.weights * gone.A.times(gone.A.transpose_times(bent) / self.pivots)
        product = self.rho_x * p + A.transpose_times(bent)
        return product if P is None else product + P.times(p)

    def times(self, v: mx.array) -> mx.array:
        """Solve for ``v``, (B, n)."""
        A, gone = self.blocks.A, self.blocks.gone
        if gone is None or self.pivots is None:
            return self._reduced(v)
        theirs = gather(v, gone.places)
        bent = self.weights * gone.A.times(theirs / self.pivots)
        x = self._reduced(gather(v, gone.others) - A.transpose_times(bent))
        theirs = (theirs - gone.A.transpose_times(self.weights * A.times(x))) / self.pivots
        return gather(mx.concatenate([x, theirs], axis=1), gone.order)

    def _reduced(self, v: mx.array) -> mx.array:
        """Solve with the Schur complement."""
        x, r = mx.zeros_like(v), v
        z = r / self.diagonal
        p, rz = z, dot(r, z)[:, None]
        goal = self.rtol * self.rtol * rz
        for _ in range(self.most):
            Kp = self._product(p)
            open_ = rz > goal
            step = mx.where(open_, rz / mx.maximum(dot(p, Kp)[:, None], _TINY), 0.0)
            x, r = x + step * p, r - step * Kp
            z = r / self.diagonal
            before, rz = rz, mx.where(open_, dot(r, z)[:, None], rz)
            p = z + rz / mx.maximum(before, _TINY) * p
            left: Any = mx.any(rz > goal).item()
            if not left:
                break
        return x

    def take(self, chosen: mx.array) -> Conjugate:
        """Some lanes."""
        weights, pivots, diagonal = (
            a if a is None or a.shape[0] == 1 else a[chosen]
            for a in (self.weights, self.pivots, self.diagonal)
        )
        assert weights is not None and diagonal is not None
        return self._replace(weights=weights, pivots=pivots, diagonal=diagonal)

    def astype(self, dtype: mx.Dtype) -> Conjugate:
        """In another dtype."""
        return self._replace(
            blocks=self.blocks.astype(dtype),
            weights=self.weights.astype(dtype),
            pivots=None if self.pivots is None else self.pivots.astype(dtype),
            diagonal=self.diagonal.astype(dtype),
        )
