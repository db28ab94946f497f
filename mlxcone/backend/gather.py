"""Entries of the last axis by their places."""

from __future__ import annotations

import mlx.core as mx


def gather(x: mx.array, places: mx.array) -> mx.array:
    """Entries of x (..., n) at places (...), which may have any shape: (..., *places.shape).

    On the CPU `mx.take` handles such entries one by one, ten times slower than this.
    """
    lead = x.shape[:-1]
    index = mx.broadcast_to(places.reshape(-1), (*lead, places.size))
    return mx.take_along_axis(x, index, axis=-1).reshape(*lead, *places.shape)
