"""(P + sigma I + A'W A)^-1 where P is diagonal, W nearly so, and few rows of A have many entries.

With Delta the diagonal part, V the other rows of A and what W has beside its diagonal, each times
the square root of its weight, and S = diag(1, -1) the signs of these (Woodbury):

    (Delta + V'S V)^-1 = Delta^-1 - U'(S + V Delta^-1 V')^-1 U,    U = V Delta^-1.

The difference loses what the least entry of Delta is smaller than the entries of W.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlxcone.backend.linalg import spd_inverse
from mlxcone.program.operators import row_times
from mlxcone.program.problem import Program, take_lanes


class LowRank(NamedTuple):
    """Delta^-1 (B or 1, n); U (d, n) and (S + V Delta^-1 V')^-1 (d, d), or both with lanes.

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


def fits(program: Program, further: int = 0) -> bool:
    """Whether P is diagonal or zero, and A has few rows of more than one entry.

    ``further`` is how many more there are in W.
    """
    flat = program.P is None or program.diagonal is not None
    return flat and bool(program.A.places) and 2 * (program.A.others + further) <= program.n


def slopes(program: Program, weights: mx.array) -> mx.array:
    """Diagonal of A'W A as far as rows with one entry make it, (B, n)."""
    A = program.A
    blocks = zip(A.places, A.entries, strict=True)
    return A.sum_blocks([weights[:, i : i + k] * entries for (i, _, k), entries in blocks])


def factor(
    program: Program,
    weights: mx.array,
    sigma: float,
    added: tuple[mx.array, mx.array] | None = None,
    removed: tuple[mx.array, mx.array] | None = None,
) -> LowRank:
    """For a program that `fits` and W = diag(weights), (B or 1, m).

    Args:
        program (Program): equilibrated, float64.
        weights (mx.array): diagonal of W.
        sigma (float): on the diagonal of the whole.
        added, removed: c (B, k), at least zero, and V (B, k, n), where A'W A has V'diag(c) V more
            or less than that.
    """
    A = program.A
    diagonal = slopes(program, weights) + sigma
    scales = 1.0 / (diagonal if program.diagonal is None else diagonal + program.diagonal)
    parts = [] if added is None else [mx.sqrt(added[0])[..., None] * added[1]]
    if A.dense is not None:
        parts.append(mx.sqrt(A.other_rows(weights))[..., None] * A.dense[0])
    positive = sum(part.shape[1] for part in parts)
    if removed is not None:
        parts.append(mx.sqrt(removed[0])[..., None] * removed[1])
    if not parts:
        return LowRank(scales, None, None, mx.all(scales > 0, axis=1))
    V = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)
    U = V * scales[:, None, :]
    core, ok = _core(U @ mx.swapaxes(V, -1, -2), positive)
    if U.shape[0] == 1:
        U, core = U[0], core[0]
    return LowRank(scales, U, core, ok)


def _core(gram: mx.array, positive: int) -> tuple[mx.array, mx.array]:
    """(S + gram)^-1, S = diag(1, -1) with so many ones, one at least; and where there is one, (B,).

    Its Schur complement on the others is minus a positive definite matrix, as the whole is one.
    """
    k, eye = positive, mx.eye(gram.shape[-1], dtype=gram.dtype)
    if k == gram.shape[-1]:
        return spd_inverse(eye + gram)
    first, ok = spd_inverse(eye[:k, :k] + gram[..., :k, :k])
    off = gram[..., k:, :k]
    turned = off @ first
    rest = eye[k:, k:] - gram[..., k:, k:] + turned @ mx.swapaxes(off, -1, -2)
    last, fits = spd_inverse(0.5 * (rest + mx.swapaxes(rest, -1, -2)))
    side = last @ turned
    above = mx.concatenate(
        [first - mx.swapaxes(turned, -1, -2) @ side, mx.swapaxes(side, -1, -2)], -1
    )
    return mx.concatenate([above, mx.concatenate([side, -last], -1)], -2), ok & fits
