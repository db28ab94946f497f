"""The exponential cone, the closure of {(x, y, z): y > 0, y e^(x/y) <= z}, and its dual.

Friberg, "Projection onto the exponential cone: a univariate root-finding problem" (Optimization
Methods and Software, 2023): a point (r, s, t) outside of the cone K and of its polar, with r > 0
or s > 0, is p + d with p = alpha (rho, 1, e^rho) its projection onto K, d = beta (1, 1 - rho,
-e^-rho) the one onto the polar, q = rho^2 - rho + 1, alpha = ((rho - 1) r + s) / q > 0,
beta = (r - rho s) / q > 0, and rho the root of alpha e^rho - beta e^-rho = t. Here the equation
is solved for e^rho first and the logarithm taken, which makes it nearly linear (`_root`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlxcone.backend.linalg import symmetric_eigen
from mlxcone.cones import barrier, spectral3
from mlxcone.cones.base import Spectral
from mlxcone.cones.spectral3 import Atoms

# Steps of `_root` after which one of Newton's is enough, measured on 10^6 points of every kind.
_STEPS = {mx.float32: 3, mx.float64: 6}
_LAST = 0.5  # longest last step; a longer one is rounding where rho hardly matters
# Where y is minus the gradient at y of the barrier of K*, for K = the cone and for K = its dual.
_CENTRE = [-1.0513839437502288, 0.5564096186043385, 1.2589678864644602]
_DUAL_CENTRE = [-0.8278383990656786, 0.8051020015847954, 1.290927709856958]
_FAR = 1e18  # where there is no end
# Entries that count as zero beside the largest: their quotients are squared.
_TINY = {mx.float32: 1e-18, mx.float64: 1e-140}


def _exp(x: mx.array) -> mx.array:
    """e^x; ``mx.exp`` has float32's error in float64, ``mx.power`` more than that in float32."""
    return mx.power(math.e, x) if x.dtype == mx.float64 else mx.exp(x)


def _root(r: mx.array, s: mx.array, t: mx.array) -> mx.array:
    """The root rho for r > 0 or s > 0; finite also for (r, s, t) in K or in its polar.

    Exchanging r and s, alpha and beta, rho and 1 - rho changes the sign of t and multiplies the
    exponentials by 1/e, so let t >= 0. With c = 0 or 1 the equation is the quadratic
    alpha E^2 - t E - beta = 0 for E = e^(rho - c), and phi(rho) = rho - c - log E increases
    between lower = 1 - s/r (if r > 0), where alpha = 0, and upper = r/s (if s > 0), where beta = 0.
    Near lower, phi is like log(rho - lower): a Newton step down is taken in this logarithm, so
    that it cannot pass the end, and a step up in log(upper - rho), or, if longer, by the secant
    through upper, where phi is finite if t > 0.
    """
    tiny = _TINY[r.dtype]
    flip = t < 0
    r, s, t = mx.where(flip, s, r), mx.where(flip, r, s), mx.abs(t)
    c = flip.astype(r.dtype)
    has_lower, has_upper = r > 0, s > 0
    lower = 1.0 - s / mx.where(has_lower, r, 1.0)
    upper = r / mx.where(has_upper, s, 1.0)
    top = mx.log(mx.maximum(s, tiny)) + upper - c - mx.log(mx.maximum(t, tiny))
    top = mx.where(has_upper & (t > tiny), top, mx.inf)  # phi at upper; infinite: no secant
    reach = mx.where(has_lower & has_upper, mx.minimum(0.5 * (upper - lower), 1.0), 1.0)
    from_lower = has_lower & (mx.logical_not(has_upper) | (r >= s))
    rho = mx.where(from_lower, lower + reach, upper - reach)
    # 2 alpha q = 2 r (rho - left) + left_rest, 2 beta q = 2 s (right - rho) + right_rest.
    left, left_rest = mx.where(has_lower, lower, 1.0), mx.where(has_lower, 0.0, 2.0 * s)
    right, right_rest = mx.where(has_upper, upper, 0.0), mx.where(has_upper, 0.0, 2.0 * r)
    lower, upper = mx.where(has_lower, lower, -_FAR), mx.where(has_upper, upper, _FAR)
    two_r, two_s, two_t, square_t = 2.0 * r, 2.0 * s, 2.0 * t, mx.square(t)
    for _ in range(_STEPS[rho.dtype]):
        q = rho * (rho - 1.0) + 1.0
        alpha = mx.maximum((two_r * (rho - left) + left_rest) / q, tiny)
        beta = mx.maximum((two_s * (right - rho) + right_rest) / q, tiny)
        root = mx.sqrt(square_t + alpha * beta)
        E = (t + root) / alpha
        phi = rho - c - mx.log(E)
        slope = (r * E + s / E - (rho - 0.5) * two_t) / (root * q)
        step = phi / mx.maximum(1.0 + slope, 1e-3)
        falls = phi > 0
        room = mx.maximum(mx.where(falls, rho - lower, upper - rho), tiny)
        less = room * mx.expm1(-mx.abs(step) / room)
        # Rounding may put the root a little past upper.
        secant = room * mx.minimum(phi / mx.minimum(phi - top, -tiny), 1.0)
        rho = rho + mx.where(falls, less, mx.maximum(-less, secant))
    return mx.where(flip, 1.0 - rho, rho)


# Entries of vectors, (B, count) each: apart they are contiguous, which MLX works on faster.
_Vector = tuple[mx.array, mx.array, mx.array]


class _Ray(NamedTuple):
    """A ray of the cone or of its polar.

    Its direction, of length 1; how far along it v is, and how fast what is there moves across as
    rho moves, (B, count).
    """

    unit: _Vector
    along: mx.array
    bend: mx.array

    @classmethod
    def of(cls, entries: _Vector, square: mx.array, bend: mx.array, v: _Vector) -> _Ray:
        """From a direction, and the square of its length."""
        size = mx.sqrt(square)
        x, y, z = (entry / size for entry in entries)
        # Orthogonal projections are as accurate as v, whatever cancels in alpha.
        along = x * v[0] + y * v[1] + z * v[2]
        return cls((x, y, z), along, mx.maximum(along, 0.0) * (bend / size))


class _Split(NamedTuple):
    """v = p + d: where v is in one of the two, or on the edge between, and else on which rays."""

    v: _Vector
    in_cone: mx.array
    in_polar: mx.array
    on_edge: mx.array
    g: _Ray
    w: _Ray

    def _pick(
        self,
        cone: mx.array | float,
        polar: mx.array | float,
        edge: mx.array | float,
        curve: mx.array | float,
    ) -> mx.array:
        out = mx.where(self.on_edge, edge, curve)
        return mx.where(self.in_cone, cone, mx.where(self.in_polar, polar, out))

    def _edge(self) -> _Vector:
        """P where v is on the edge."""
        r, _, t = self.v
        return mx.minimum(r, 0.0), mx.zeros_like(r), mx.maximum(t, 0.0)

    def on_cone(self) -> mx.array:
        """P, (B, count, 3)."""
        entries = zip(self.v, self._edge(), self.g.unit, strict=True)
        parts = [self._pick(v, 0.0, edge, self.g.along * unit) for v, edge, unit in entries]
        return mx.stack(parts, axis=-1)

    def on_polar(self) -> mx.array:
        """D, (B, count, 3)."""
        entries = zip(self.v, self._edge(), self.w.unit, strict=True)
        parts = [self._pick(0.0, v, v - edge, self.w.along * unit) for v, edge, unit in entries]
        return mx.stack(parts, axis=-1)

    def atoms(self, polar: bool) -> Atoms:
        """Of the derivative of p, or of d."""
        total = self.g.bend + self.w.bend
        total = mx.where(total > 0, total, 1.0)
        positive = (self.v[2] > 0).astype(total.dtype)
        if polar:
            edge, curve = (0.0, 1.0, 1.0 - positive), (0.0, self.w.bend / total, 1.0)
        else:
            edge, curve = (1.0, 0.0, positive), (1.0, self.g.bend / total, 0.0)
        cone, outside = float(not polar), float(polar)
        values = [self._pick(cone, outside, *pair) for pair in zip(edge, curve, strict=True)]
        flat = mx.logical_or(self.on_edge, mx.logical_or(self.in_cone, self.in_polar))
        frame = spectral3.frame(*(mx.stack(list(ray.unit), axis=-1) for ray in (self.g, self.w)))
        frame = mx.where(flat[..., None, None], mx.eye(3, dtype=total.dtype), frame)
        return Atoms(mx.stack([v.astype(total.dtype) for v in values], axis=-1), frame)


class _Direction(NamedTuple):
    """What rho says of its rays; all (B, count).

    The smaller of e^rho and e^-rho may underflow, the larger must not overflow: with
    e^rho = growth / decay, p is along decay (rho, 1, e^rho), d along growth (1, 1 - rho, ..).
    """

    rho: mx.array
    growth: mx.array
    decay: mx.array
    square_decay: mx.array
    square_growth: mx.array

    @classmethod
    def at(cls, rho: mx.array) -> _Direction:
        rises = rho > 0
        small, one = _exp(mx.where(rises, -rho, rho)), mx.ones_like(rho)
        growth, decay = mx.where(rises, one, small), mx.where(rises, small, one)
        return cls(rho, growth, decay, mx.square(decay), mx.square(growth))

    def rays(self, v: _Vector) -> tuple[_Ray, _Ray]:
        """Where v is on the rays g of the cone and w of its polar."""
        rho, growth, decay, square_g, square_w = self
        other = 1.0 - rho
        round_g, round_w = mx.square(rho) + 1.0, mx.square(other) + 1.0
        bend_g, bend_w = square_g + square_w * round_w, square_w + square_g * round_g
        g = _Ray.of((rho * decay, decay, growth), bend_w, decay * bend_g, v)
        w = _Ray.of((growth, other * growth, -decay), bend_g, growth * bend_w, v)
        return g, w

    def off(self, v: _Vector) -> mx.array:
        """How far v is off the plane of both rays: n'v, n = g x w."""
        rho, growth, decay, square_g, square_w = self
        other = 1.0 - rho
        x, y = -square_g - square_w * other, square_w + square_g * rho
        z = decay * growth * (rho * other - 1.0)
        return x * v[0] + y * v[1] + z * v[2]


def _split(v: _Vector) -> _Split:
    """Split v, with entries in [-1, 1]."""
    tiny = _TINY[v[0].dtype]
    still = mx.stop_gradient(v[0]), mx.stop_gradient(v[1]), mx.stop_gradient(v[2])
    r, s, t = still
    up, right = s > 0, r > 0
    size = mx.maximum(mx.abs(t), tiny)
    to_s, to_r = (mx.log(size / mx.where(v > tiny, v, 1.0)) for v in (s, r))
    in_cone = up & mx.where(s > tiny, s * to_s >= r, r <= 0) & (t > 0)
    in_polar = right & mx.where(r > tiny, r * (to_r + 1.0) >= s, s <= 0) & (t < 0)
    on_edge = mx.logical_and(r <= tiny, s <= tiny)

    r_far = mx.where(on_edge, 1.0, mx.where(mx.abs(r) > tiny, r, 0.0))
    s_far = mx.where(on_edge, 1.0, mx.where(mx.abs(s) > tiny, s, 0.0))
    rho = mx.stop_gradient(_root(r_far, s_far, t))
    # One Newton step on n'v = 0 also carries the derivative of rho.
    near = _Direction.at(rho)
    g, w = near.rays(still)
    step = near.off(v) / mx.maximum(g.bend + w.bend, tiny)
    step = step + mx.stop_gradient(mx.clip(step, -_LAST, _LAST) - step)
    return _Split(v, in_cone, in_polar, on_edge, *_Direction.at(rho - step).rays(v))


@dataclass(frozen=True)
class Exponential:
    """``count`` exponential cones K, or with ``dual`` their duals, of three rows each."""

    count: int
    dual: bool

    @property
    def rows(self) -> int:
        return 3 * self.count

    def _split(self, z: mx.array) -> tuple[_Split, mx.array]:
        parts = mx.contiguous(mx.moveaxis(z.reshape(z.shape[0], self.count, 3), -1, 0))
        size = mx.stop_gradient(mx.max(mx.abs(parts), axis=0))
        unit = parts / mx.where(size == 0, 1.0, size)
        unit = unit if self.dual else -unit
        return _split((unit[0], unit[1], unit[2])), size

    def _projected(self, split: _Split, size: mx.array, shape: tuple[int, ...]) -> mx.array:
        # The dual of the exponential cone is minus its polar.
        y = split.on_cone() if self.dual else -split.on_polar()
        return (size[..., None] * y).reshape(shape)

    def project_dual(self, z: mx.array) -> mx.array:
        return self._projected(*self._split(z), z.shape)

    def derivative(self, z: mx.array) -> Atoms:
        return self._split(z)[0].atoms(not self.dual)

    def linearize(self, z: mx.array) -> tuple[mx.array, Atoms]:
        split, size = self._split(z)
        return self._projected(split, size, z.shape), split.atoms(not self.dual)

    def spectral(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        return spectral3.spectral(atoms, function, v)

    def half(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        """`base.half`."""
        return spectral3.half(atoms, function, v)

    def signature(self, atoms: Atoms) -> mx.array:
        return spectral3.signature(atoms)

    @property
    def degree(self) -> int:
        return 3 * self.count

    def centre(self, dtype: mx.Dtype) -> mx.array:
        return mx.array((_DUAL_CENTRE if self.dual else _CENTRE) * self.count, dtype=dtype)

    def _barrier(self, y: mx.array) -> barrier.Barrier:
        blocks = y.reshape(y.shape[0], self.count, 3)
        of_dual = barrier.of_exponential if self.dual else barrier.of_exponential_dual
        return of_dual(blocks)

    def scaling(self, s: mx.array, y: mx.array, mu: mx.array) -> Atoms:
        return Atoms(*symmetric_eigen(mu[:, :, None, None] * self._barrier(y).hessian))

    def inverse(self, y: mx.array) -> mx.array:
        return self._barrier(y).inverse.reshape(y.shape)

    def correction(self, atoms: Atoms, y: mx.array, ds: mx.array, dy: mx.array) -> mx.array:
        return mx.zeros_like(y)

    def room(self, v: mx.array, dv: mx.array, dual: bool) -> mx.array:
        shape = (v.shape[0], self.count, 3)
        is_dual = dual != self.dual
        inside = barrier.in_exponential_dual if is_dual else barrier.in_exponential
        return barrier.longest(inside, v.reshape(shape), dv.reshape(shape))
