"""Residuals in original units, computed from the equilibrated program (SCS 3's criteria)."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlxcone.program.equilibrate import Scaling
from mlxcone.program.problem import Program
from mlxcone.program.sparse import SparseProgram

_ROUNDING = 1e-16  # of float64, relative to the terms of a sum


class Residuals(NamedTuple):
    """One entry per lane, (B,).

    ``primal``, ``dual`` and ``gap`` are absolute, in original units. ``relative`` is the larger of
    the relative primal and dual residual; ``violation`` is at most 1 exactly when
    r <= eps_abs + eps_rel * size holds for all three, and for s'y as for the gap; ``accuracy`` is
    the eps at which it does with eps_abs = eps_rel.
    """

    primal: mx.array
    dual: mx.array
    gap: mx.array
    objective: mx.array
    primal_relative: mx.array
    dual_relative: mx.array
    violation: mx.array
    accuracy: mx.array

    @property
    def relative(self) -> mx.array:
        """The larger of the relative primal and dual residual."""
        return mx.maximum(self.primal_relative, self.dual_relative)


def norm(v: mx.array) -> mx.array:
    """Infinity norm per lane; 0 for no rows."""
    return mx.max(mx.abs(v), axis=1) if v.shape[1] else mx.zeros((v.shape[0],), dtype=v.dtype)


def dot(u: mx.array, v: mx.array) -> mx.array:
    """Inner product per lane."""
    return mx.sum(u * v, axis=1)


def measure(
    program: Program | SparseProgram,
    scaling: Scaling,
    x: mx.array,
    y: mx.array,
    s: mx.array,
    eps_abs: float,
    eps_rel: float,
) -> Residuals:
    """Residuals of an equilibrated iterate, judged in original units.

    Args:
        program (Program): the equilibrated program.
        scaling (Scaling): its factors.
        x, y, s (mx.array): equilibrated iterate, (B, n), (B, m), (B, m).
        eps_abs, eps_rel (float): tolerances for ``violation``.
    """
    to_row = 1.0 / (scaling.e * scaling.primal)
    to_column = 1.0 / (scaling.d * scaling.dual)
    to_value = (1.0 / (scaling.primal * scaling.dual))[:, 0]
    Ax, Px, Aty = program.A.times(x), program.P_times(x), program.A.transpose_times(y)
    rows = _norms([Ax + s - program.b, Ax, s, program.b], to_row)
    columns = _norms([Px + program.q + Aty, Px, program.q, Aty], to_column)
    sy = s * y
    sums = [mx.sum(v, axis=1) for v in (x * Px, program.q * x, program.b * y, sy, mx.abs(sy))]
    xPx, qx, by, sy, rounding = (v * to_value for v in sums)
    gap = mx.abs(xPx + qx + by)
    # Where neither residual is zero, the gap may vanish by chance; and by rounding.
    complementarity = mx.abs(sy) + _ROUNDING * rounding
    gap_size = mx.maximum(mx.maximum(mx.abs(xPx), mx.abs(qx)), mx.abs(by))
    found = mx.stack([rows[0], columns[0], mx.maximum(gap, complementarity)])
    sizes = mx.stack([mx.max(rows[1:], axis=0), mx.max(columns[1:], axis=0), gap_size])
    # The floor keeps eps = 0 ("as far as it goes") meaningful.
    ratios = found / (eps_abs + eps_rel * sizes + 1e-30)
    relative = found / (1.0 + sizes)
    return Residuals(
        rows[0],
        columns[0],
        gap,
        0.5 * xPx + qx,
        relative[0],
        relative[1],
        mx.max(ratios, axis=0),
        mx.max(relative, axis=0),
    )


def _norms(vectors: list[mx.array], scale: mx.array) -> mx.array:
    """Infinity norm of each vector per lane, (len(vectors), B)."""
    lanes, size = vectors[0].shape
    if size == 0:
        return mx.zeros((len(vectors), lanes), dtype=scale.dtype)
    together = mx.concatenate(vectors, axis=0).reshape(len(vectors), lanes, size)
    return mx.max(mx.abs(together * scale), axis=2)
