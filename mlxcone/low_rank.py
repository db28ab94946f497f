"""(P + sigma I + A'W A)^-1 where P and W are diagonal and few rows of A have many entries.

With Delta the diagonal part and V = W^(1/2) A on the other rows (Woodbury):

    (Delta + V'V)^-1 = Delta^-1 - U'(I + V Delta^-1 V')^-1 U,    U = V Delta^-1.

The difference loses what the least entry of Delta is smaller than the entries of W.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlxcone._linalg import spd_inverse
from mlxcone.operators import row_times
from mlxcone.problem import Program, take_lanes


class LowRank(NamedTuple):
    """Delta^-1 (B or 1, n); U (d, n) and (I + V Delta^-1 V')^-1 (d, d), or both with lanes.

    ``ok`` (B or 1,) says where the latter could be inverted.
    """

    scales: mx.array
    rows: mx.array | None
    core: mx.array | None
    ok: mx.array

    def times(self, v: mx.array) -> mx.array:
        """Solve for ``v``, (B, n)."""
        straight = v * self.scales
        if self.rows is None or self.core is None:
            return straight
        along = row_times(row_times(v, mx.swapaxes(self.rows, -1, -2)), self.core)
        return straight - row_times(along, self.rows)

    def take(self, chosen: mx.array) -> LowRank:
        """Some lanes."""
        rows, core = (None if a is None else take_lanes(a, chosen, 3) for a in self[1:3])
        return LowRank(
            take_lanes(self.scales, chosen, 2), rows, core, take_lanes(self.ok, chosen, 1)
        )

    def astype(self, dtype: mx.Dtype) -> LowRank:
        """In another dtype."""
        rows, core = (None if a is None else a.astype(dtype) for a in self[1:3])
        return LowRank(self.scales.astype(dtype), rows, core, self.ok)

    def or_zero(self) -> LowRank:
        """With lanes first in every array, and zero in lanes where there is no inverse."""
        ok = mx.logical_and(self.ok, mx.all(mx.isfinite(self.scales), axis=1))
        scales = mx.where(ok[:, None], self.scales, 0.0)
        some = ok[:, None, None]
        rows, core = (None if a is None else mx.where(some, a, 0.0) for a in self[1:3])
        return LowRank(scales, rows, core, ok)


def fits(program: Program) -> bool:
    """Whether P is diagonal or zero, and A has few rows of more than one entry."""
    flat = program.P is None or program.diagonal is not None
    return flat and bool(program.A.places) and 2 * program.A.others <= program.n


def slopes(program: Program, weights: mx.array) -> mx.array:
    """Diagonal of A'W A as far as rows with one entry make it, (B, n)."""
    A = program.A
    blocks = zip(A.places, A.entries, strict=True)
    return A.sum_blocks([weights[:, i : i + k] * entries for (i, _, k), entries in blocks])


def factor(program: Program, weights: mx.array, sigma: float) -> LowRank:
    """For a program that `fits` and W = diag(weights), (B or 1, m)."""
    A = program.A
    diagonal = slopes(program, weights) + sigma
    scales = 1.0 / (diagonal if program.diagonal is None else diagonal + program.diagonal)
    if A.dense is None:
        return LowRank(scales, None, None, mx.all(scales > 0, axis=1))
    V = mx.sqrt(A.other_rows(weights))[..., None] * A.dense[0]
    U = V * scales[:, None, :]
    eye = mx.eye(A.others, dtype=scales.dtype)
    core, ok = spd_inverse(eye + U @ mx.swapaxes(V, -1, -2))
    if U.shape[0] == 1:
        U, core = U[0], core[0]
    return LowRank(scales, U, core, ok)
