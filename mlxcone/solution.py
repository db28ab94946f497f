"""What a solve returns."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections import Counter
from typing import Any, NamedTuple

import mlx.core as mx

from mlxcone.backend.devices import on_cpu
from mlxcone.status import Status


class Info(NamedTuple):
    """One entry per lane, shape (B,), or () for an unbatched call.

    Residuals are infinity norms in original units; ``objective`` is 1/2 x'Px + q'x and ``gap``
    |x'Px + q'x + b'y|. Objectives of lanes without a solution are NaN. Prints as a table.
    """

    status: mx.array
    iterations: mx.array
    factorizations: mx.array
    primal_residual: mx.array
    dual_residual: mx.array
    gap: mx.array
    objective: mx.array

    @on_cpu
    def __repr__(self) -> str:
        """A table: how the lanes ended, and median, least and largest of every number."""
        try:
            columns: Any = [mx.reshape(field, (-1,)).tolist() for field in self]
        except (RuntimeError, ValueError):  # under vmap there are no numbers yet
            return f"Info(shape={self.status.shape}, not evaluated)"
        ended = Counter(Status(code).name.lower() for code in columns[0])
        lines = ["status: " + ", ".join(f"{n} {name}" for name, n in ended.most_common())]
        several = len(columns[0]) > 1
        if several:
            lines.append(f"{'':<16}{'median':>12}{'least':>12}{'largest':>12}")
        for name, column in zip(self._fields[1:], columns[1:], strict=True):
            known = [value for value in column if not math.isnan(value)]
            some = (statistics.median(known), min(known), max(known)) if known else (math.nan,) * 3
            shown = "".join(f"{value:>12.5g}" for value in (some if several else some[:1]))
            lines.append(f"{name.replace('_', ' '):<16}{shown}")
        return "\n".join(lines)


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
