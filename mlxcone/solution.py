"""What a solve returns."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import mlx.core as mx


class Info(NamedTuple):
    """One entry per lane, shape (B,), or () for an unbatched call.

    Residuals are infinity norms in original units; ``objective`` is 1/2 x'Px + q'x and ``gap``
    |x'Px + q'x + b'y|. Objectives of lanes without a solution are NaN.
    """

    status: mx.array
    iterations: mx.array
    factorizations: mx.array
    primal_residual: mx.array
    dual_residual: mx.array
    gap: mx.array
    objective: mx.array


class Solution(NamedTuple):
    """x (n,) or (B, n); y and s (m,) or (B, m), in the dtype of the data.

    For an infeasible lane y is the certificate (A'y = 0, y in K*, b'y = -1), for an unbounded
    one x and s are (P x = 0, A x + s = 0, s in K, q'x = -1).
    """

    x: mx.array
    y: mx.array
    s: mx.array
    info: Info


def evaluated(tree: Any) -> Any:
    """Evaluate a tree of arrays where they have values, and return it.

    MLX can evaluate what is lazy only in the thread that made it; afterwards any may read it.
    Under vmap there are no values yet, and what cannot be computed raises where it is used.
    """
    with contextlib.suppress(RuntimeError, ValueError):
        mx.eval(tree)
    return tree
