"""The box cone {(t, s): t lower <= s <= t upper, t >= 0}: one cone, row t first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlxcone.cones.base import Spectral
from mlxcone.cones.linear import Linear

_TINY = 1e-30  # keeps 0 / 0 away; representable in float32
_INFINITE = 1e15  # a bound of this size is none, as in SCS; its square fits into float32


class Atoms(NamedTuple):
    """D = diag(active) - g g' or diag(active), where g is a unit vector on the active rows.

    ``eigenvalues`` is (B, rows + 1): D on g, then ``active`` (0 or 1; row t is always active).
    ``direction`` is g, (B, rows).
    """

    eigenvalues: mx.array
    direction: mx.array


class _Face(NamedTuple):
    """The projection of (w_t, w_s), of size 1, onto the cone, and the face it lies on.

    ``t`` is (B, 1), ``s`` (B, n). ``bound`` holds the active bound of a row or 0, ``free`` marks
    the rows between their bounds; ``ray`` (B, 1) says that t is free to move.
    """

    t: mx.array
    s: mx.array
    bound: mx.array
    free: mx.array
    ray: mx.array


@dataclass(frozen=True)
class Box:
    """One box cone of 1 + len(lower) rows; a bound may be infinite, and none is where t = 0.

    Args:
        lower, upper (tuple[float, ...]): the bounds; 1e15 and more in size means infinite.

    Raises:
        ValueError: their lengths differ, or lower <= upper fails, or no s is allowed.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "lower", tuple(float(v) for v in self.lower))
        object.__setattr__(self, "upper", tuple(float(v) for v in self.upper))
        if len(self.lower) != len(self.upper):
            raise ValueError(
                f"cones: a box has {len(self.lower)} lower and {len(self.upper)} upper bounds"
            )
        for low, high in zip(self.lower, self.upper, strict=True):
            if not (low <= high and low < _INFINITE and high > -_INFINITE):
                raise ValueError(f"cones: bounds of a box must allow a number, got [{low}, {high}]")

    @property
    def rows(self) -> int:
        return 1 + len(self.lower)

    @property
    def count(self) -> int:
        return 1

    def _bounds(self, dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Bounds (0 where infinite), and which are finite."""
        has_low = [low > -_INFINITE for low in self.lower]
        has_high = [high < _INFINITE for high in self.upper]
        low = [v if has else 0.0 for v, has in zip(self.lower, has_low, strict=True)]
        high = [v if has else 0.0 for v, has in zip(self.upper, has_high, strict=True)]
        return (
            mx.array(low, dtype=dtype),
            mx.array(high, dtype=dtype),
            mx.array(has_low, dtype=mx.bool_),
            mx.array(has_high, dtype=mx.bool_),
        )

    def _project(self, w: mx.array) -> _Face:
        """Minimize 1/2 (t - w_t)^2 + 1/2 dist(w_s, [t lower, t upper])^2 over t >= 0.

        The derivative is increasing and piecewise linear in t, with a kink where some w_s meets
        t times a bound: find the two kinks around its root by bisection over the sorted kinks,
        then the root from the rows that are active between them.
        """
        low, high, has_low, has_high = self._bounds(w.dtype)
        at_t, at_s = w[:, :1], w[:, 1:]

        def violated(t: mx.array) -> tuple[mx.array, mx.array]:
            """Which w_s are outside of their bounds at t, and these bounds or 0."""
            # Not `&`: under vmap it is wrong where one operand carries no batch (MLX 0.32).
            above = mx.logical_and(has_high, at_s > t * high)
            below = mx.logical_and(has_low, at_s < t * low)
            return above | below, mx.where(above, high, mx.where(below, low, 0.0))

        def slope(t: mx.array) -> mx.array:
            bound = violated(t)[1]
            return t - at_t + mx.sum(bound * (t * bound - at_s), axis=1, keepdims=True)

        # |w| <= 1, so the root is below 1 + sqrt(n) / 2.
        far = 2.0 + math.sqrt(self.rows)
        kinks = [at_s / mx.where(bound == 0, 1.0, bound) for bound in (low, high)]
        kinks = [mx.clip(k, 0.0, far) for k in kinks]
        ends = [mx.zeros_like(at_t), mx.full(at_t.shape, far, dtype=w.dtype)]
        sorted_kinks = mx.sort(mx.concatenate([ends[0], *kinks, ends[1]], axis=1), axis=1)
        last = sorted_kinks.shape[1] - 1
        left = mx.zeros(at_t.shape, dtype=mx.int32)
        right = mx.full(at_t.shape, last, dtype=mx.int32)
        for _ in range(max(last - 1, 0).bit_length()):
            middle = (left + right) // 2
            below = slope(mx.take_along_axis(sorted_kinks, middle, axis=1)) <= 0
            left, right = mx.where(below, middle, left), mx.where(below, right, middle)
        left, right = (mx.take_along_axis(sorted_kinks, k, axis=1) for k in (left, right))
        active, bound = violated(0.5 * (left + right))
        pull = at_t + mx.sum(bound * at_s, axis=1, keepdims=True)
        root = pull / (1.0 + mx.sum(mx.square(bound), axis=1, keepdims=True))
        at_kink = slope(left) == 0
        t = mx.where(at_kink, left, mx.minimum(mx.maximum(root, left), right))
        s = mx.where(has_low, mx.maximum(at_s, t * low), at_s)
        s = mx.where(has_high, mx.minimum(s, t * high), s)
        ray = at_kink | (t > 0)
        # At a kink the largest face: rows on their bounds count as free, unless lower = upper.
        equal = has_low & has_high & (low == high)
        free = mx.logical_not(mx.logical_or(mx.where(at_kink, s != at_s, active), equal))
        # Where t is fixed at 0, only a row with an infinite bound can be free.
        one_sided = mx.logical_not(has_low & has_high)
        free = mx.logical_and(free, mx.logical_or(ray, one_sided))
        bound = mx.where(equal, low, mx.where(free, 0.0, bound))
        return _Face(t, s, bound, free, ray)

    def project_dual(self, z: mx.array) -> mx.array:
        size = mx.maximum(mx.max(mx.abs(z), axis=1, keepdims=True), _TINY)
        w = -z / size
        face = self._project(w)
        return (mx.concatenate([face.t, face.s], axis=1) - w) * size

    def derivative(self, z: mx.array) -> Atoms:
        # I - D projects onto the span of the face of K that -z is projected to: constant nearby.
        z = mx.stop_gradient(z)
        size = mx.maximum(mx.max(mx.abs(z), axis=1, keepdims=True), _TINY)
        face = self._project(-z / size)
        one = mx.ones_like(face.t)
        active = 1.0 - face.free.astype(z.dtype)
        direction = mx.concatenate([one, face.bound], axis=1)
        length = mx.sqrt(mx.sum(mx.square(direction), axis=1, keepdims=True))
        fixed = 1.0 - face.ray.astype(z.dtype)
        return Atoms(mx.concatenate([fixed, one, active], axis=1), direction / length)

    def spectral(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        values = function(atoms.eigenvalues)[..., None]
        along, rows = values[:, :1], values[:, 1:]
        g = atoms.direction[..., None]
        # Row t is active: its value is that of all active rows, hence of g unless g is fixed.
        return rows * v + (along - rows[:, :1]) * g * mx.sum(g * v, axis=1, keepdims=True)

    def signature(self, atoms: Atoms) -> mx.array:
        # Where t is fixed at 0, the direction does not matter.
        free = 1.0 - atoms.eigenvalues[:, :1]
        return mx.concatenate([atoms.eigenvalues, free * atoms.direction], axis=1)

    @property
    def inequalities(self) -> Linear:
        """The cone as inequalities: t >= 0, the finite r - t lower >= 0, t upper - r >= 0."""
        low, high = self._finite
        return Linear(0, 1 + len(low) + len(high))

    @property
    def _finite(self) -> tuple[list[int], list[int]]:
        """Which rows have a lower and which an upper bound."""
        low = [i for i, v in enumerate(self.lower) if v > -_INFINITE]
        high = [i for i, v in enumerate(self.upper) if v < _INFINITE]
        return low, high

    def to_inequalities(self, v: mx.array) -> mx.array:
        """Rows (t, r), (..., rows, k), as rows of `inequalities`."""
        t, r = v[..., :1, :], v[..., 1:, :]
        parts = [t]
        for which, bounds, sign in zip(
            self._finite, (self.lower, self.upper), (1, -1), strict=True
        ):
            if which:
                bound = mx.array([[bounds[i]] for i in which], dtype=v.dtype)
                parts.append(sign * (mx.take(r, mx.array(which), axis=-2) - bound * t))
        return mx.concatenate(parts, axis=-2)

    def from_multipliers(self, y: mx.array) -> mx.array:
        """The transposed map: multipliers of `inequalities`, (B, rows), to those of (t, r)."""
        t = y[:, :1]
        r = mx.zeros((y.shape[0], len(self.lower)), dtype=y.dtype)
        at = 1
        for which, bounds, sign in zip(
            self._finite, (self.lower, self.upper), (1, -1), strict=True
        ):
            if which:
                part = sign * y[:, at : at + len(which)]
                bound = mx.array([bounds[i] for i in which], dtype=y.dtype)
                t = t - mx.sum(bound * part, axis=1, keepdims=True)
                r = r.at[:, mx.array(which)].add(part)
                at += len(which)
        return mx.concatenate([t, r], axis=1)
