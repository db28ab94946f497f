"""Projections onto dual cones in NumPy, their derivatives, and where these jump.

Rows are in the order of CVXPY's interface to Clarabel: zero, nonnegative, second-order,
semidefinite (upper triangle, columns stacked, off-diagonal entries times sqrt 2), exponential
{y exp(x/y) <= z, y > 0} and power {x^a y^(1-a) >= |z|} cones. With ``z = y - s``, y in the dual
cone and s in the cone, y is the projection of z onto the dual cone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray

_HALVINGS = 75
_LARGEST_EXPONENT = 300.0


class Kinks(NamedTuple):
    """Functions of z that vanish where the projection is not smooth, and their gradients."""

    values: Array
    gradients: Array


class Linear:
    """Rows with s = 0 (free duals) and s >= 0."""

    def __init__(self, zero: int, nonneg: int) -> None:
        self.zero, self.rows = zero, zero + nonneg

    def project(self, z: Array) -> Array:
        """Project each row of z."""
        y = z.copy()
        y[..., self.zero :] = np.maximum(z[..., self.zero :], 0.0)
        return y

    def derivative(self, z: Array) -> Array:
        """Dense derivative of the projection at one z."""
        free = np.arange(self.rows) < self.zero
        return np.diag((free | (z > 0.0)).astype(float))

    def kinks(self, z: Array) -> Kinks:
        """One for each inequality."""
        return Kinks(z[self.zero :], np.eye(self.rows)[self.zero :])


class SecondOrder:
    """{(t, v): ||v|| <= t}."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def project(self, z: Array) -> Array:
        """Project each row of z."""
        t, v = z[..., :1], z[..., 1:]
        norm = np.linalg.norm(v, axis=-1, keepdims=True)
        half = 0.5 * (t + norm)
        ratio = half / np.where(norm > 0.0, norm, 1.0)
        outside = np.concatenate([half, ratio * v], axis=-1)
        return np.where(norm <= t, z, np.where(norm <= -t, 0.0, outside))

    def derivative(self, z: Array) -> Array:
        """Dense derivative of the projection at one z."""
        t, v = z[0], z[1:]
        norm = float(np.linalg.norm(v))
        if norm <= t:
            return np.eye(z.size)
        if norm <= -t:
            return np.zeros((z.size, z.size))
        u = v / norm
        D = np.empty((z.size, z.size))
        D[0, 0] = 0.5
        D[0, 1:] = D[1:, 0] = 0.5 * u
        D[1:, 1:] = 0.5 * ((1.0 + t / norm) * np.eye(u.size) - (t / norm) * np.outer(u, u))
        return D

    def kinks(self, z: Array) -> Kinks:
        """The two eigenvalues of the cone's algebra."""
        norm = float(np.linalg.norm(z[1:]))
        signed = np.array([1.0, -1.0])[:, None] * z[1:] / max(norm, 1e-300)
        return Kinks(z[0] + np.array([norm, -norm]), np.insert(signed, 0, 1.0, axis=1))


class Semidefinite:
    """Positive semidefinite matrices of one order."""

    def __init__(self, order: int) -> None:
        self.rows = order * (order + 1) // 2
        # The upper triangle by columns is the lower one by rows.
        columns, rows = np.tril_indices(order)
        scale = np.where(rows == columns, 1.0, np.sqrt(0.5))
        self._basis = np.zeros((self.rows, order, order))
        k = np.arange(self.rows)
        self._basis[k, rows, columns] = self._basis[k, columns, rows] = scale

    def _matrix(self, z: Array) -> Array:
        return np.tensordot(z, self._basis, 1)

    def _vector(self, matrix: Array) -> Array:
        return np.einsum("...ij,kij->...k", matrix, self._basis)

    def project(self, z: Array) -> Array:
        """Project each row of z."""
        values, vectors = np.linalg.eigh(self._matrix(z))
        kept = vectors * np.maximum(values, 0.0)[..., None, :]
        return self._vector(kept @ vectors.swapaxes(-1, -2))

    def derivative(self, z: Array) -> Array:
        """Divided differences of max(., 0) in the basis of eigenvectors."""
        values, vectors = np.linalg.eigh(self._matrix(z))
        positive = np.maximum(values, 0.0)
        same = np.equal.outer(values > 0.0, values > 0.0)
        gap = np.where(same, 1.0, np.subtract.outer(values, values))
        quotient = np.subtract.outer(positive, positive) / gap
        weights = np.where(same, (values > 0.0).astype(float), quotient)
        turned = vectors.T @ self._basis @ vectors
        return np.einsum("kij,ij,lij->kl", turned, weights, turned)

    def kinks(self, z: Array) -> Kinks:
        """The eigenvalues."""
        values, vectors = np.linalg.eigh(self._matrix(z))
        return Kinks(values, self._vector(np.einsum("ik,jk->kij", vectors, vectors)))


class _Curve(NamedTuple):
    """Boundary rays s(r) of a cone, the normal rays y(r) of its dual, their derivatives in r."""

    s: Array
    y: Array
    ds: Array
    dy: Array


class Boundary(NamedTuple):
    """z = dual * y(r) - primal * s(r), entry by entry of a batch."""

    r: Array
    primal: Array
    dual: Array
    sign: Array


class _CurvedCone:
    """A cone in three dimensions whose boundary is a smooth curve of rays, up to flat faces.

    Where both y and s are on curved boundaries, z is a function of the curve's parameter and of two
    lengths; the derivative of the projection follows from the inverse of that function.
    """

    rows = 3

    def _dual_margin(self, z: Array) -> tuple[Array, Array]:
        """A concave function whose nonnegative values are the dual cone; its gradient at one z."""
        raise NotImplementedError

    def _primal_margin(self, s: Array) -> tuple[Array, Array]:
        """The same for the cone."""
        raise NotImplementedError

    def _flat(self, z: Array) -> tuple[Array, Array]:
        """Where both lie on flat faces, and the projection there."""
        raise NotImplementedError

    def _boundary(self, z: Array) -> Boundary:
        """The decomposition on the curved part."""
        raise NotImplementedError

    def _curve(self, at: Boundary) -> _Curve:
        raise NotImplementedError

    def project(self, z: Array) -> Array:
        """Project each row of z."""
        inside = self._dual_margin(z)[0] >= 0.0
        polar = self._primal_margin(-z)[0] >= 0.0
        flat, face = self._flat(z)
        curved = ~(inside | polar | flat)
        y = np.where(inside[..., None], z, np.where(polar[..., None], 0.0, face))
        if curved.any():
            at = self._boundary(z[curved])
            y[curved] = at.dual[..., None] * self._curve(at).y
        return y

    def _inverse(self, z: Array) -> tuple[Boundary, _Curve, Array]:
        """Decomposition of curved z, and the derivative of (r, primal, dual) in z."""
        at = self._boundary(z)
        curve = self._curve(at)
        moved = at.dual[..., None] * curve.dy - at.primal[..., None] * curve.ds
        return at, curve, np.linalg.inv(np.stack([moved, -curve.s, curve.y], axis=-1))

    def derivative(self, z: Array) -> Array:
        """Derivatives of the projection at each row of z, (..., 3, 3)."""
        inside = self._dual_margin(z)[0] >= 0.0
        polar = self._primal_margin(-z)[0] >= 0.0
        flat, face = self._flat(z)
        kept = np.where(inside[..., None], 1.0, np.where(polar[..., None], 0.0, face != 0.0))
        D = kept[..., None] * np.eye(3)
        curved = ~(inside | polar | flat)
        if curved.any():
            at, curve, inverse = self._inverse(z[curved])
            ends = np.stack([at.dual[..., None] * curve.dy, curve.y], axis=-1)
            D[curved] = ends @ inverse[..., ::2, :]
        return D

    def kinks(self, z: Array) -> Kinks:
        """The two lengths on the curved part; elsewhere the distance to it, in some measure."""
        for margin, sign in ((self._dual_margin, 1.0), (self._primal_margin, -1.0)):
            value, gradient = margin(sign * z)
            if value >= 0.0:
                return Kinks(np.array([value]), sign * gradient[None])
        if self._flat(z)[0]:
            return Kinks(z, np.eye(3))
        at, _, inverse = self._inverse(z)
        return Kinks(np.array([at.primal, at.dual]), inverse[1:])


@dataclass(frozen=True)
class Exponential(_CurvedCone):
    """Exponential cone: rays (r, 1, e^r), with the dual rays (-e^r, (r - 1) e^r, 1)."""

    def _primal_margin(self, s: Array) -> tuple[Array, Array]:
        x, y, top = s[..., 0], s[..., 1], s[..., 2]
        safe = np.where(y > 0.0, y, 1.0)
        ratio = np.clip(x / safe, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
        growth = np.exp(ratio)
        edge = np.where((y == 0.0) & (x <= 0.0) & (top >= 0.0), 0.0, -1.0)
        value = np.where(y > 0.0, top - safe * growth, edge)
        return value, np.stack([-growth, growth * (ratio - 1.0), np.ones_like(x)], axis=-1)

    def _dual_margin(self, z: Array) -> tuple[Array, Array]:
        u, v, w = z[..., 0], z[..., 1], z[..., 2]
        safe = np.where(u < 0.0, u, -1.0)
        ratio = np.clip(v / safe, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
        growth = np.exp(ratio - 1.0)
        edge = np.where((u == 0.0) & (v >= 0.0) & (w >= 0.0), 0.0, -1.0)
        value = np.where(u < 0.0, w + safe * growth, edge)
        return value, np.stack([growth * (1.0 - ratio), growth, np.ones_like(u)], axis=-1)

    def _flat(self, z: Array) -> tuple[Array, Array]:
        face = np.stack([np.zeros_like(z[..., 0]), z[..., 1], np.maximum(z[..., 2], 0.0)], axis=-1)
        return (z[..., 0] >= 0.0) & (z[..., 1] >= 0.0), face

    def _boundary(self, z: Array) -> Boundary:
        """Bisection on the equation of Friberg (2023), increasing between the bounds here.

        "Projection onto the exponential cone: a univariate root-finding problem", OMS 38(3).
        """
        x, y, top = -z[..., 0], -z[..., 1], -z[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            ends, others = 1.0 - y / x, x / y
        low = np.fmax(np.where(x > 0.0, ends, -np.inf), np.where(y < 0.0, others, -np.inf))
        high = np.fmin(np.where(x < 0.0, ends, np.inf), np.where(y > 0.0, others, np.inf))
        low, high = (np.clip(end, -_LARGEST_EXPONENT, _LARGEST_EXPONENT) for end in (low, high))
        for _ in range(_HALVINGS):
            r = 0.5 * (low + high)
            primal, dual = (r - 1.0) * x + y, x - r * y
            above = np.exp(r) * primal - np.exp(-r) * dual > (r * (r - 1.0) + 1.0) * top
            low, high = np.where(above, low, r), np.where(above, r, high)
        at = Boundary(0.5 * (low + high), np.ones_like(x), np.ones_like(x), np.ones_like(x))
        curve = self._curve(at)
        primal = -np.sum(z * curve.s, axis=-1) / np.sum(curve.s**2, axis=-1)
        dual = np.sum(z * curve.y, axis=-1) / np.sum(curve.y**2, axis=-1)
        return Boundary(at.r, primal, dual, at.sign)

    def _curve(self, at: Boundary) -> _Curve:
        r, growth, one = at.r, np.exp(at.r), np.ones_like(at.r)
        return _Curve(
            s=np.stack([r, one, growth], axis=-1),
            y=np.stack([-growth, (r - 1.0) * growth, one], axis=-1),
            ds=np.stack([one, 0.0 * one, growth], axis=-1),
            dy=np.stack([-growth, r * growth, 0.0 * one], axis=-1),
        )


@dataclass(frozen=True)
class Power(_CurvedCone):
    """Power cone: rays (e^((1-a)r), e^(-ar), +-1) and (a e^(-(1-a)r), (1-a) e^(ar), -+1)."""

    exponent: float

    @property
    def _weights(self) -> Array:
        return np.array([self.exponent, 1.0 - self.exponent])

    def _margin(self, v: Array, scale: Array) -> tuple[Array, Array]:
        """Weighted geometric mean of the first two entries over `scale`, less the third's size."""
        first, size = v[..., :2], np.abs(v[..., 2])
        safe = np.where(first > 0.0, first, 1.0) / scale
        mean = np.prod(safe**self._weights, axis=-1)
        edge = np.where((first >= 0.0).all(-1) & (size == 0.0), 0.0, -1.0)
        value = np.where((first > 0.0).all(-1), mean - size, edge)
        slope = mean[..., None] * self._weights / (safe * scale)
        return value, np.concatenate([slope, -np.sign(v[..., 2:])], axis=-1)

    def _primal_margin(self, s: Array) -> tuple[Array, Array]:
        return self._margin(s, np.ones(2))

    def _dual_margin(self, z: Array) -> tuple[Array, Array]:
        return self._margin(z, self._weights)

    def _flat(self, z: Array) -> tuple[Array, Array]:
        return z[..., 2] == 0.0, np.maximum(z, 0.0) * np.array([1.0, 1.0, 0.0])

    def _boundary(self, z: Array) -> Boundary:
        """Bisection on the third entry of s: Hien (2015), Math. Meth. Oper. Res. 82, Prop. 2.2.

        The unknown is the logarithm of primal / dual, so that neither is lost in the other.
        """
        low = np.full(z.shape[:-1], -_LARGEST_EXPONENT)
        high = -low
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            primal, _, first = self._split(z, middle)
            below = np.prod(first**self._weights, axis=-1) < primal
            low, high = np.where(below, low, middle), np.where(below, middle, high)
        primal, dual, first = self._split(z, 0.5 * (low + high))
        r = np.log(first[..., 0]) - np.log(first[..., 1])
        return Boundary(r, primal, dual, -np.sign(z[..., 2]))

    def _split(self, z: Array, ratio: Array) -> tuple[Array, Array, Array]:
        """Shares of |third entry| for s and y, and the first two entries of s.

        Those are the positive roots of t^2 + z t = weight * primal * dual.
        """
        size, p = np.abs(z[..., 2]), -z[..., :2]
        primal, dual = size / (1.0 + np.exp(-ratio)), size / (1.0 + np.exp(ratio))
        product = self._weights * (primal * dual)[..., None]
        root = np.sqrt(p * p + 4.0 * product) + np.abs(p)
        first = np.where(p >= 0.0, 0.5 * root, 2.0 * product / np.maximum(root, 1e-300))
        return primal, dual, np.maximum(first, 1e-300)

    def _curve(self, at: Boundary) -> _Curve:
        exponents = np.multiply.outer(at.r, np.array([1.0, -1.0]) * self._weights[::-1])
        third, up, down = at.sign[..., None], np.exp(exponents), np.exp(-exponents)
        slope = np.array([1.0, -1.0]) * self._weights[::-1]
        return _Curve(
            s=np.concatenate([up, third], axis=-1),
            y=np.concatenate([self._weights * down, -third], axis=-1),
            ds=np.concatenate([slope * up, 0.0 * third], axis=-1),
            dy=np.concatenate([-slope * self._weights * down, 0.0 * third], axis=-1),
        )


class Cones:
    """Product of cones on consecutive rows, from CVXPY's `ConeDims`."""

    def __init__(self, dims: Any) -> None:
        self.parts: list[Any] = [
            Linear(int(dims.zero), int(dims.nonneg)),
            *(SecondOrder(int(rows)) for rows in dims.soc),
            *(Semidefinite(int(order)) for order in dims.psd),
            *(Exponential() for _ in range(dims.exp)),
            *(Power(float(exponent)) for exponent in dims.p3d),
        ]
        starts = np.cumsum([0, *(part.rows for part in self.parts)])
        self._spans = [slice(int(a), int(b)) for a, b in pairwise(starts)]
        self._runs = _runs(self.parts, self._spans)

    def project(self, z: Array) -> Array:
        """Project each row of z."""
        y = np.empty_like(z)
        for part, count, span in self._runs:
            block = z[..., span].reshape(*z.shape[:-1], count, part.rows)
            y[..., span] = part.project(block).reshape(z[..., span].shape)
        return y

    def derivative(self, z: Array) -> Array:
        """Dense derivative of the projection at one z."""
        D = np.zeros((z.size, z.size))
        for part, count, span in self._runs:
            blocks = part.derivative(z[span].reshape(count, part.rows) if count > 1 else z[span])
            for i, block in enumerate(blocks if count > 1 else [blocks]):
                rows = slice(span.start + i * part.rows, span.start + (i + 1) * part.rows)
                D[rows, rows] = block
        return D

    def kinks(self, z: Array) -> Kinks:
        """Functions that vanish where the projection is not smooth, and their gradients."""
        found = [part.kinks(z[span]) for part, span in zip(self.parts, self._spans, strict=True)]
        gradients = np.zeros((sum(k.values.size for k in found), z.size))
        row = 0
        for span, kinks in zip(self._spans, found, strict=True):
            gradients[row : row + kinks.values.size, span] = kinks.gradients
            row += kinks.values.size
        return Kinks(np.concatenate([k.values for k in found]), gradients)


def _runs(parts: Sequence[Any], spans: Sequence[slice]) -> list[tuple[Any, int, slice]]:
    """Consecutive equal curved cones are projected in one call."""
    runs: list[tuple[Any, int, slice]] = []
    for part, span in zip(parts, spans, strict=True):
        if runs and isinstance(part, _CurvedCone) and part == runs[-1][0]:
            _, count, before = runs.pop()
            runs.append((part, count + 1, slice(before.start, span.stop)))
        else:
            runs.append((part, 1, span))
    return runs
