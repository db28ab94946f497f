"""The power cone {(w, z): prod w_i^alpha_i >= |z|, w >= 0} of k + 1 rows, sum alpha = 1.

Outside of the cone and of its polar, the projection (p, r) of (v, z), and y = p - v, are given by
the root 0 < r < |z| of Hien's equation (Mathematical Methods of Operations Research 82, 2015):

    p_i (p_i - v_i) = alpha_i r (|z| - r),    prod p_i^alpha_i = r.

With t the logit of r / |z|, and s, d = 1 - s the shares r / |z| and 1 - r / |z|,

    phi(t) = sum alpha_i log p_i - log r,    -phi'(t) = Q = s H + d C,
    H = sum alpha_i y_i / (p_i + y_i),       C = sum alpha_i p_i / (p_i + y_i) = 1 - H.

|Q'| <= 2 Q, so that Newton's method converges from any point within 0.4 of the root, which a few
halvings reach. An error of phi moves the projection by no more than about itself times |z|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlxcone.backend.linalg import symmetric_eigen
from mlxcone.cones import barrier, probes
from mlxcone.cones.base import Spectral, root

_TINY = 1e-30  # relative size that counts as zero; representable in float32
_LAST = 80.0  # beyond this logit r is 0 or |z|: sqrt(r (|z| - r)) is 4e-18 |z|
_HALVINGS = 8  # of [-_LAST, _LAST]: to 0.31 around the root
_STEPS = {mx.float32: 3, mx.float64: 5}  # Newton's; two more follow that carry derivatives
_EVEN = 1e-6  # exponents that differ by less are equal but for rounding
_CLOSE = 1e-7  # eigenvalues that differ by less have a derivative for a difference quotient


def _exp(x: mx.array) -> mx.array:
    """e^x; ``mx.exp`` has float32's error in float64."""
    return mx.power(mx.array(math.e, dtype=x.dtype), x)


class _Point(NamedTuple):
    """What does not change while the root is sought; arrays are (B, count, k) or (B, count, 1).

    ``positive`` is v >= 0, ``size`` is |v|, ``constant`` is the part of phi without t and p.
    """

    a: mx.array
    root_a: mx.array
    positive: mx.array
    size: mx.array
    z: mx.array
    above: mx.array
    below: mx.array
    constant: mx.array


class _Value(NamedTuple):
    """At a logit: both shares, the larger and the smaller of p and y, their sum, and phi."""

    s: mx.array
    d: mx.array
    large: mx.array
    small: mx.array
    whole: mx.array
    phi: mx.array

    def shares(self, point: _Point) -> tuple[mx.array, mx.array, mx.array]:
        """The shares p / (p + y) and y / (p + y), and Q."""
        large, small = self.large / self.whole, self.small / self.whole
        p = mx.where(point.positive, large, small)
        y = mx.where(point.positive, small, large)
        return p, y, mx.sum(point.a * (self.s * y + self.d * p), axis=-1, keepdims=True)


def _point(v: mx.array, z: mx.array, a: mx.array) -> _Point:
    positive = v >= 0
    # Not mx.abs, whose derivative at 0 is 0.
    size = mx.where(positive, v, -v)
    above = mx.sum(mx.where(positive, a, 0.0), axis=-1, keepdims=True)
    below = mx.sum(mx.where(positive, 0.0, a), axis=-1, keepdims=True)
    entropy = mx.sum(mx.where(positive, 0.0, a * mx.log(a)), axis=-1, keepdims=True)
    constant = (below - above) * mx.log(z) + entropy
    return _Point(a, mx.sqrt(a), positive, size, z, above, below, constant)


def _evaluate(point: _Point, t: mx.array) -> _Value:
    """By logarithms of the larger of p_i and y_i alone: the large parts have cancelled.

    log p_i = log(alpha_i s d z^2) - log y_i where v_i < 0, and what these have in common with
    log r is subtracted in ``constant`` and by the exponents above and below.
    """
    right = t > 0
    log_less = mx.where(right, -t, t)
    root = _exp(0.5 * log_less)
    less = mx.square(root)
    more = 1.0 / (1.0 + less)
    less = less * more
    s, d = mx.where(right, more, less), mx.where(right, less, more)
    half = point.root_a * (point.z * (root * more))  # sqrt(alpha_i r (|z| - r))
    high = mx.maximum(mx.maximum(point.size, 2.0 * half), _TINY)
    low = mx.minimum(point.size, 2.0 * half)
    whole = high * mx.sqrt(1.0 + mx.square(low / high))
    large = 0.5 * (whole + point.size)
    log_more = mx.log(more)
    # In log s and log d: the smaller one has the logit besides.
    logs = (point.below - point.above) * log_more
    logs = logs + mx.where(right, point.below, -point.above) * log_less
    signed = mx.where(point.positive, point.a, -point.a)
    phi = point.constant + logs + mx.sum(signed * mx.log(large), axis=-1, keepdims=True)
    return _Value(s, d, large, half * (half / large), whole, phi)


def _root(point: _Point) -> mx.array:
    """The logit t at which phi is 0, or the end of its range on that side.

    p_i = sqrt(alpha_i r (|z| - r)) e^(h_i) with sinh h_i = v_i cosh(t / 2) / (|z| sqrt(alpha_i)),
    so that phi = sum alpha_i (h_i + log(alpha_i) / 2) - t / 2: fewer operations, and digits, than
    `_evaluate` has.
    """
    most = mx.finfo(point.z.dtype).max ** 0.5
    scaled = mx.where(point.positive, point.size, -point.size) / (point.root_a * point.z)
    scaled = mx.clip(scaled, -most, most)
    middle = mx.sum(point.a * mx.log(point.root_a), axis=-1, keepdims=True)
    half = mx.zeros_like(middle)  # t / 2

    def evaluate(half: mx.array) -> tuple[mx.array, mx.array]:
        h = mx.arcsinh(scaled * mx.cosh(half))
        return h, middle - half + mx.sum(point.a * h, axis=-1, keepdims=True)

    width = 0.5 * _LAST
    for _ in range(_HALVINGS):
        width *= 0.5
        half = half + mx.where(evaluate(half)[1] > 0, width, -width)
    for _ in range(_STEPS[half.dtype]):
        h, phi = evaluate(half)
        Q = 1.0 - mx.tanh(half) * mx.sum(point.a * mx.tanh(h), axis=-1, keepdims=True)
        # No step is longer than what is left of the bracket.
        half = half + mx.clip(phi / mx.maximum(Q, _TINY), -width, width)
    return mx.clip(2.0 * half, -_LAST, _LAST)


class _Split(NamedTuple):
    """The projection of w onto K is (p, r sign), and (y, (r - |z|) sign) that of -w onto K*.

    ``inside`` is K and ``polar`` its polar, where the rest means nothing; ``p_share`` and
    ``y_share`` are p and y over p + y.
    """

    y: mx.array
    z: mx.array
    sign: mx.array
    s: mx.array
    d: mx.array
    p_share: mx.array
    y_share: mx.array
    Q: mx.array
    inside: mx.array
    polar: mx.array


def _reaches(u: mx.array, z: mx.array, a: mx.array) -> mx.array:
    """Whether u >= 0 and prod u_i^a_i >= z."""
    logs = mx.where(u > 0, mx.log(mx.maximum(u, _TINY)), -mx.inf)
    mean = mx.sum(a * logs, axis=-1, keepdims=True)
    reached = mx.logical_or(z == 0, mx.logical_not(mean < mx.log(z)))
    return mx.logical_and(mx.all(u >= 0, axis=-1, keepdims=True), reached)


def _split(w: mx.array, a: mx.array) -> _Split:
    """Split w (B, count, k + 1), of size 1, into the projections onto K and onto -K*."""
    v, last = w[..., :-1], w[..., -1:]
    sign = mx.where(last < 0, -1.0, 1.0).astype(w.dtype)
    z = last * sign
    still_v, still_z = mx.stop_gradient(v), mx.stop_gradient(z)
    inside, polar = _reaches(still_v, still_z, a), _reaches(-still_v / a, still_z, a)
    # Any smooth point will do where there is no boundary to project onto.
    flat = mx.logical_or(inside, polar)
    v = mx.where(flat, 0.0, v)
    z = mx.where(flat, 1.0, mx.maximum(z, _TINY))
    point = _point(v, z, a)
    still = _Point(*(mx.stop_gradient(part) for part in point))
    t = mx.stop_gradient(_root(still))
    # At z = 0 the limit is 0 or 1 (Hien, Theorem 3.1), reached too slowly for _TINY to show it.
    on_face = mx.logical_and(still_z == 0, mx.logical_not(flat))
    for _ in range(2):
        # Carries the derivative of t (implicit function theorem), then the second one.
        value = _evaluate(point, t)
        step = value.phi / mx.stop_gradient(value.shares(point)[2])
        t = mx.where(mx.abs(step) < 0.1, t + step, t)
    lean = point.above - point.below
    ends = mx.where(lean > 0, _LAST, -_LAST).astype(t.dtype)
    t = mx.where(mx.logical_and(on_face, mx.abs(lean) > _EVEN), ends, t)
    value = _evaluate(point, t)
    y = mx.where(point.positive, value.small, value.large)
    return _Split(y, z, sign, value.s, value.d, *value.shares(point), inside, polar)


class Atoms(NamedTuple):
    """D = V diag(theta) V' of each cone.

    ``eigenvalues`` theta are (B, count, k + 1), ``vectors`` V (B, count, k + 1, k + 1). ``moved``
    is V'(D - D)V, zero: one D is constant, so that transforms find V'(dD)V here, and none has to
    differentiate eigenvectors.
    """

    eigenvalues: mx.array
    vectors: mx.array
    moved: mx.array


def _difference_quotients(function: Spectral, values: mx.array) -> mx.array:
    """(f(x) - f(y)) / (x - y) for all pairs of eigenvalues: the derivative of f(D) in D's frame."""
    image, slope = (part[0] for part in mx.jvp(function, [values], [mx.ones_like(values)]))
    gap = values[..., :, None] - values[..., None, :]
    close = mx.abs(gap) <= _CLOSE
    rise = image[..., :, None] - image[..., None, :]
    mean = 0.5 * (slope[..., :, None] + slope[..., None, :])
    return mx.where(close, mean, rise / mx.where(close, 1.0, gap))


@dataclass(frozen=True)
class PowerND:
    """Cones of k + 1 rows (w, z) each, with k exponents for each, of which no two need be equal.

    Args:
        alphas (tuple[tuple[float, ...], ...]): the exponents, cone by cone; positive, of sum 1.

    Raises:
        ValueError: exponents are not so, or not equally many in each cone, or fewer than two.
    """

    alphas: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        alphas = tuple(tuple(float(a) for a in cone) for cone in self.alphas)
        if len({len(cone) for cone in alphas}) > 1 or not all(len(cone) > 1 for cone in alphas):
            raise ValueError("cones: power cones of one group have equally many exponents, >= 2")
        for cone in alphas:
            if not (all(a > 0 for a in cone) and abs(sum(cone) - 1.0) <= 1e-6):
                raise ValueError(f"cones: exponents are positive and their sum is 1, got {cone}")
        scaled = tuple(tuple(a / math.fsum(cone) for a in cone) for cone in alphas)
        object.__setattr__(self, "alphas", scaled)

    @property
    def rows(self) -> int:
        return len(self.alphas) * self._width

    @property
    def count(self) -> int:
        return len(self.alphas)

    @property
    def _width(self) -> int:
        """Rows of one cone."""
        return 1 + len(self.alphas[0])

    def _prepare(self, z: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Blocks of z, their sizes, and the exponents."""
        blocks = z.reshape(z.shape[0], len(self.alphas), self._width)
        size = mx.stop_gradient(mx.max(mx.abs(blocks), axis=-1, keepdims=True))
        return blocks, mx.maximum(size, _TINY), mx.array(self.alphas, dtype=z.dtype)

    def project_dual(self, z: mx.array) -> mx.array:
        blocks, size, a = self._prepare(z)
        parts = _split(-blocks / size, a)
        y = mx.concatenate([parts.y, -parts.sign * parts.z * parts.d], axis=-1) * size
        y = mx.where(parts.polar, blocks, y)
        return mx.where(parts.inside, 0.0, y).reshape(z.shape)

    def derivative(self, z: mx.array) -> Atoms:
        blocks, size, a = self._prepare(z)
        parts = _split(-blocks / size, a)
        D = self._matrix(parts, a)
        still = mx.stop_gradient(D)
        values, vectors = symmetric_eigen(still)
        moved = mx.swapaxes(vectors, -1, -2) @ (D - still) @ vectors
        return Atoms(mx.clip(values, 0.0, 1.0), vectors, moved)

    def _matrix(self, parts: _Split, a: mx.array) -> mx.array:
        """D of the dual projection, (B, count, k + 1, k + 1), by implicit differentiation.

        That of the projection onto K is diag(p / (p + y), 0) and, over Q,
        [[(d - s) bb', b sqrt(s d)], [b' sqrt(s d), s H]] with b = sqrt(alpha p y) / (p + y).
        """
        eye = mx.eye(self._width, dtype=a.dtype)
        product = a * (parts.p_share * parts.y_share)
        # sqrt has no derivative at 0. No floor: towards the apex Q is as small as the product.
        some = product > 0
        b = mx.where(some, mx.sqrt(mx.where(some, product, 1.0)), 0.0)
        C = mx.sum(a * parts.p_share, axis=-1, keepdims=True)
        edge = parts.sign * mx.sqrt(parts.s * parts.d) / parts.Q * b
        # One row and column more, for z.
        corner = parts.d * C / parts.Q
        scaled = (parts.d - parts.s) / parts.Q
        block = scaled[..., None] * (b[..., :, None] * b[..., None, :])
        top = mx.concatenate([-block, -edge[..., :, None]], axis=-1)
        bottom = mx.concatenate([-edge, mx.zeros_like(corner)], axis=-1)
        full = mx.concatenate([top, bottom[..., None, :]], axis=-2)
        diagonal = mx.concatenate([parts.y_share, corner], axis=-1)
        full = full + eye * diagonal[..., None, :]
        full = mx.where(parts.polar[..., None], eye, full)
        return mx.where(parts.inside[..., None], 0.0, full)

    def spectral(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        columns = v.reshape(v.shape[0], len(self.alphas), self._width, v.shape[-1])
        inner = mx.swapaxes(atoms.vectors, -1, -2) @ columns
        moved = _difference_quotients(function, atoms.eigenvalues) * atoms.moved
        inner = function(atoms.eigenvalues)[..., None] * inner + moved @ inner
        out = atoms.vectors @ inner
        return out.reshape(out.shape[0], self.rows, v.shape[-1])

    def half(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        """`base.half`, as constants: roots have no slope at zero."""
        columns = v.reshape(v.shape[0], len(self.alphas), self._width, v.shape[-1])
        turned = mx.swapaxes(atoms.vectors, -1, -2) @ columns
        out = root(function, atoms.eigenvalues)[..., None] * turned
        return mx.swapaxes(out.reshape(out.shape[0], self.rows, v.shape[-1]), -1, -2)

    def signature(self, atoms: Atoms) -> mx.array:
        return probes.images(self, atoms, atoms.vectors.dtype)

    @property
    def degree(self) -> int:
        return self.rows

    def centre(self, dtype: mx.Dtype) -> mx.array:
        points = [[*(math.sqrt(1 + a) for a in cone), 0.0] for cone in self.alphas]
        return mx.array([v for point in points for v in point], dtype=dtype)

    def _barrier(self, y: mx.array) -> barrier.Barrier:
        blocks, _, a = self._prepare(y)
        return barrier.of_powers(blocks, a, a)

    def scaling(self, s: mx.array, y: mx.array, mu: mx.array) -> Atoms:
        values, vectors = symmetric_eigen(mu[:, :, None, None] * self._barrier(y).hessian)
        return Atoms(values, vectors, mx.zeros_like(vectors))

    def inverse(self, y: mx.array) -> mx.array:
        return self._barrier(y).inverse.reshape(y.shape)

    def correction(self, atoms: Atoms, y: mx.array, ds: mx.array, dy: mx.array) -> mx.array:
        return mx.zeros_like(y)

    def room(self, v: mx.array, dv: mx.array, dual: bool) -> mx.array:
        blocks, _, a = self._prepare(v)
        alphas = a[:, None]
        scale = alphas if dual else mx.ones_like(alphas)

        def inside(points: mx.array) -> mx.array:
            return barrier.in_powers(points, alphas, scale)

        return barrier.longest(inside, blocks, dv.reshape(blocks.shape))
