"""Anderson acceleration (type II) of a fixed-point iteration, per lane, matrix products only.

Zhang, O'Donoghue, Boyd, arXiv 1808.03971, with the safeguard of SCS 3: an accelerated point is
kept only if the fixed-point residual there is no larger than before.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np


class Memory(NamedTuple):
    """What the last steps were.

    Differences of images and of residuals, (B, k, N), inner products of the latter, (B, k, k), the
    last image and residual, (B, N), and whether there are any, (B, 1). Differences without length
    are those that are forgotten.
    """

    images: mx.array
    residuals: mx.array
    gram: mx.array
    last_image: mx.array
    last_residual: mx.array
    started: mx.array

    @classmethod
    def empty(cls, point: mx.array, lookback: int) -> Memory:
        """Nothing remembered yet."""
        zeros = mx.zeros((point.shape[0], lookback, point.shape[1]), dtype=point.dtype)
        gram = mx.zeros((point.shape[0], lookback, lookback), dtype=point.dtype)
        nothing = mx.zeros((point.shape[0], 1), dtype=point.dtype)
        return cls(zeros, zeros, gram, point, point, nothing)

    def forget(self, lanes: mx.array) -> Memory:
        """Start over in the lanes where the boolean array (B, 1) says so."""
        keep = 1.0 - lanes.astype(self.started.dtype)
        return self._replace(gram=self.gram * keep[..., None], started=self.started * keep)


def _identity(like: mx.array) -> mx.array:
    """As a constant: `mx.eye` is an operation that takes time."""
    return mx.array(np.eye(like.shape[-1]), dtype=like.dtype)


def _solve(gram: mx.array, rhs: mx.array) -> mx.array:
    """Gauss-Jordan on k x k positive definite systems; elementwise, so it runs on any device."""
    table, eye = mx.concatenate([gram, rhs[..., None]], axis=-1), _identity(gram)
    for i in range(gram.shape[-1]):
        at = slice(i, i + 1)
        pivot_row = table[:, at] / table[:, at, at]
        # Of its own row this leaves the pivot row.
        table = table - (table[..., at] - eye[:, at]) * pivot_row
    return table[..., -1]


def accelerate(memory: Memory, point: mx.array, image: mx.array) -> tuple[Memory, mx.array]:
    """Remember one step point -> image and extrapolate.

    Args:
        memory (Memory): previous steps.
        point (mx.array): (B, N) argument of the fixed-point map.
        image (mx.array): (B, N) its value.

    Returns:
        tuple: the new memory and the accelerated point, (B, N).
    """
    residual = image - point
    new_image = memory.started * (image - memory.last_image)
    new_residual = memory.started * (residual - memory.last_residual)
    images = mx.concatenate([memory.images[:, 1:], new_image[:, None]], axis=1)
    residuals = mx.concatenate([memory.residuals[:, 1:], new_residual[:, None]], axis=1)
    # Passes over the memory take longest; the other inner products are known.
    rows = mx.stack([new_residual, residual], axis=1) @ mx.swapaxes(residuals, 1, 2)
    new, right = rows[:, :1], rows[:, 1]
    known = mx.concatenate([memory.gram[:, 1:, 1:], new[..., :-1]], axis=1)
    gram = mx.concatenate([known, mx.swapaxes(new, 1, 2)], axis=2)
    # Normalized: the ridge then means the same for every scale of the problem.
    square = mx.diagonal(gram, axis1=1, axis2=2)
    unit = mx.where(square > 0, mx.rsqrt(square), 0.0)
    ridge = 1e-5 if point.dtype == mx.float32 else 1e-10
    system = unit[:, :, None] * gram * unit[:, None] + ridge * _identity(gram)
    gamma = unit * _solve(system, unit * right)
    accelerated = image - (gamma[..., None] * images).sum(1)
    started = mx.ones_like(memory.started)
    return Memory(images, residuals, gram, image, residual, started), accelerated
