"""From the solution x of the cone program to the variables of the user."""

from __future__ import annotations

import mlx.core as mx


def variable(
    x: mx.array, index: mx.array, shape: tuple[int, ...], factor: mx.array | None = None
) -> mx.array:
    """Values (B, *shape) of one variable.

    Args:
        x (mx.array): (B, n).
        index (mx.array): for each entry of the variable, row by row, 1 + its place in x, or 0
            where the entry is always zero.
        shape (tuple[int, ...]): shape of the variable.
        factor (mx.array): what each entry is multiplied with; None is 1.
    """
    padded = mx.concatenate([mx.zeros((x.shape[0], 1), dtype=x.dtype), x], axis=1)
    entries = mx.take(padded, index, axis=1)
    if factor is not None:
        with mx.stream(mx.cpu):  # type: ignore[arg-type]
            entries = entries * factor.astype(x.dtype)
    return entries.reshape(x.shape[0], *shape)
