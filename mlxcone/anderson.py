"""Anderson acceleration (type II) of a fixed-point iteration, per lane, matrix products only.

Zhang, O'Donoghue, Boyd, arXiv 1808.03971, with the safeguard of SCS 3: an accelerated point is
kept only if the fixed-point residual there is no larger than before.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class Memory(NamedTuple):
    """What the last steps were.

    Differences of images and of residuals, (B, k, N), the last of both, (B, N), and whether there
    is a last one, (B, 1).
    """

    images: mx.array
    residuals: mx.array
    last_image: mx.array
    last_residual: mx.array
    started: mx.array

    @classmethod
    def empty(cls, point: mx.array, lookback: int) -> Memory:
        """Nothing remembered yet."""
        zeros = mx.zeros((point.shape[0], lookback, point.shape[1]), dtype=point.dtype)
        nothing = mx.zeros((point.shape[0], 1), dtype=point.dtype)
        return cls(zeros, zeros, point, point, nothing)

    def forget(self, lanes: mx.array) -> Memory:
        """Start over in the lanes where the boolean array (B, 1) says so."""
        keep = 1.0 - lanes.astype(self.started.dtype)
        return Memory(
            self.images * keep[..., None],
            self.residuals * keep[..., None],
            self.last_image,
            self.last_residual,
            self.started * keep,
        )


def _solve(gram: mx.array, rhs: mx.array) -> mx.array:
    """Gauss-Jordan on k x k positive definite systems; elementwise, so it runs on any device."""
    size = gram.shape[-1]
    table = mx.concatenate([gram, rhs[..., None]], axis=-1)
    for i in range(size):
        pivot_row = table[:, i] / table[:, i, i][:, None]
        table = table - table[:, :, i][..., None] * pivot_row[:, None, :]
        keep = mx.arange(size)[None, :, None] == i
        table = mx.where(keep, pivot_row[:, None, :], table)
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
    # Normalized rows: the ridge then means the same for every scale of the problem.
    size = mx.sqrt(mx.sum(mx.square(residuals), axis=2, keepdims=True))
    unit = residuals / mx.maximum(size, 1e-30)
    ridge = 1e-5 if point.dtype == mx.float32 else 1e-10
    gram = unit @ mx.swapaxes(unit, 1, 2) + ridge * mx.eye(unit.shape[1], dtype=point.dtype)
    gamma = _solve(gram, (residual[:, None, :] * unit).sum(-1)) / mx.maximum(size[..., 0], 1e-30)
    gamma = mx.where(size[..., 0] > 0, gamma, 0.0)
    accelerated = image - (gamma[..., None] * images).sum(1)
    started = mx.ones_like(memory.started)
    return Memory(images, residuals, image, residual, started), accelerated
