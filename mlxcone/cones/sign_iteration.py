"""Projection onto positive semidefinite matrices by matrix products alone.

Eigenvalues come from LAPACK on the CPU; a GPU has products. The projection of X is
(X + X sign(X)) / 2, and sign(X) is the limit of odd polynomials composed with one another
(arXiv 2507.09165 projects so). The polynomials here are cubics: small eigenvalues grow 1.61 times
with each product, as they do with quintics.

On [l, u] the best cubic x (a + b x^2) for the value 1 errs equally, by E, at l, at its top and at
u, which gives a and b in closed form; its values lie in [1 - E, 1 + E], where the next one starts.
Taking the best one each time is the best composition (Amsel et al., arXiv 2505.16932). Its first
cubics however take u itself down to nearly 0, where rounding drowns what was large; so here, as in
that paper, no interval starts below a share of u. It costs half a step.
"""

from __future__ import annotations

import math

import mlx.core as mx

# Eigenvalues below this share of the norm keep a sign in (0, 1), which moves the projection by at
# most a thirtieth of it: 6e-7. So many steps bring all others to less; rounding is of that size.
_LEAST = 1.8e-5
_STEPS = 16
_FLOOR = 0.1  # share of u: what was above it stays above 0.39
_CUSHION = 1.01  # rounding must not carry an eigenvalue past the end of the first interval
_TINY = 1e-30  # keeps 0 / 0 away; representable in float32


def _cubics(least: float, steps: int) -> tuple[tuple[float, float], ...]:
    """Coefficients a and b of x (a + b x^2), one pair a step, for the sign on [least, 1]."""
    low, high, out = least, 1.0, []
    for _ in range(steps):
        # Equal values at both ends: a multiple of x (s - x^2), with its top at sqrt(s / 3).
        left = max(low, _FLOOR * high)
        s = left * left + left * high + high * high
        end, top = left * (s - left * left), 2.0 * math.sqrt(s / 3.0) ** 3
        factor = 2.0 / (end + top)
        out.append((s * factor, -factor))
        low, high = min(end, low * (s - low * low)) * factor, top * factor
    return tuple(out)


_SCHEDULE = _cubics(_LEAST, _STEPS)


def project(matrices: mx.array) -> mx.array:
    """Nearest positive semidefinite matrices, to about 1e-6 of the spectral norm.

    TF32 products, CUDA's default, leave an error of 1e-3; MLX_ENABLE_TF32=0 turns them off.

    Args:
        matrices (mx.array): symmetric, float32, (..., n, n).

    Returns:
        mx.array: symmetric, (..., n, n); NaN where a matrix is not finite.
    """
    largest = mx.max(mx.abs(matrices), axis=(-1, -2), keepdims=True)
    size = mx.maximum(largest, _TINY)  # so that squares neither overflow nor vanish
    X = matrices / size
    square = X @ X
    # |X^2|_F^(1/2) is at most n^(1/4) times the spectral norm, |X|_F would be n^(1/2) times it.
    fourth = mx.sum(mx.square(square), axis=(-1, -2), keepdims=True)
    bound = _CUSHION * mx.sqrt(mx.sqrt(mx.where(fourth > 0, fourth, 1.0)))
    Y, Y2 = X / bound, square / mx.square(bound)
    for step, (a, b) in enumerate(_SCHEDULE):
        Y2 = Y @ Y if step else Y2
        Y = mx.addmm(Y, Y, Y2, alpha=b, beta=a)  # one kernel; a and b go to float32
    modulus = X @ Y
    modulus = 0.5 * (modulus + mx.swapaxes(modulus, -1, -2))
    return (0.5 * size) * (X + modulus)
