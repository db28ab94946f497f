"""What a solve ends with, whichever way it went."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlxcone.program.equilibrate import Scaling
from mlxcone.program.problem import Program
from mlxcone.status import Status


class Outcome(NamedTuple):
    """Everything a solve knows, per lane, float64, original units, rows in internal order.

    x (B, n); y, s (B, m); status, iterations, factorizations int32 (B,); residuals (B,); the
    scaling with every lane in it.
    """

    x: mx.array
    y: mx.array
    s: mx.array
    status: mx.array
    iterations: mx.array
    factorizations: mx.array
    primal_residual: mx.array
    dual_residual: mx.array
    gap: mx.array
    scaling: Scaling


def failed(program: Program) -> Outcome:
    """The outcome of lanes that cannot be solved."""
    total, n, m, dtype = program.lanes, program.n, program.m, program.q.dtype
    count = mx.zeros((total,), dtype=mx.int32)
    nothing = mx.full((total,), mx.nan, dtype=dtype)
    x, y = mx.full((total, n), mx.nan, dtype=dtype), mx.full((total, m), mx.nan, dtype=dtype)
    one = mx.ones((total, 1), dtype=dtype)
    return Outcome(
        x,
        y,
        y,
        count + int(Status.FAILED),
        count,
        count,
        nothing,
        nothing,
        nothing,
        Scaling(mx.ones_like(x), mx.ones_like(y), one, one),
    )
