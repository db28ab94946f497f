"""The second-order cone {(t, u): ||u|| <= t}; self-dual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlxcone.cones.base import Spectral

_TINY = 1e-30  # keeps 0 / 0 away; representable in float32


class Atoms(NamedTuple):
    """Eigenvalues of D on (1, u)/sqrt 2, on (1, -u)/sqrt 2 and on what is orthogonal to both.

    ``eigenvalues`` is (B, count, 3), ``unit`` the direction of u, (B, count, dim - 1).
    """

    eigenvalues: mx.array
    unit: mx.array


def _norm(u: mx.array) -> mx.array:
    """Euclidean norm over the last axis without overflow or underflow of the squares."""
    largest = mx.max(mx.abs(u), axis=-1, keepdims=True)
    safe = mx.maximum(largest, _TINY)
    # Differentiable everywhere: the inner where keeps sqrt away from 0.
    squares = mx.sum(mx.square(u / safe), axis=-1, keepdims=True)
    return safe * mx.sqrt(mx.where(squares > 0, squares, 1.0)) * (squares > 0).astype(u.dtype)


@dataclass(frozen=True)
class SecondOrder:
    """``count`` cones of dimension ``dim`` >= 2 each."""

    count: int
    dim: int

    @property
    def rows(self) -> int:
        return self.count * self.dim

    def _split(self, z: mx.array) -> tuple[mx.array, mx.array]:
        z = z.reshape(z.shape[0], self.count, self.dim)
        return z[..., :1], z[..., 1:]

    def project_dual(self, z: mx.array) -> mx.array:
        t, u = self._split(z)
        norm = _norm(u)
        half = 0.5 * (t + norm)
        t_new = mx.where(norm <= t, t, mx.where(norm <= -t, 0.0, half))
        ratio = half / mx.maximum(norm, _TINY)
        factor = mx.where(norm <= t, 1.0, mx.where(norm <= -t, 0.0, ratio))
        return mx.concatenate([t_new, factor * u], axis=-1).reshape(z.shape)

    project = project_dual

    def derivative(self, z: mx.array) -> Atoms:
        t, u = self._split(z)
        norm = _norm(u)
        safe = mx.maximum(norm, _TINY)
        inside, polar = norm <= t, norm <= -t
        one, zero = mx.ones_like(t), mx.zeros_like(t)
        rest = 0.5 * (1.0 + t / safe)

        def pick(boundary: mx.array) -> mx.array:
            return mx.where(polar, zero, mx.where(inside, one, boundary))

        return Atoms(mx.concatenate([pick(one), pick(zero), pick(rest)], axis=-1), u / safe)

    def spectral(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        values = function(atoms.eigenvalues)[..., None]
        plus, minus, rest = values[:, :, 0], values[:, :, 1], values[:, :, 2]
        blocks = v.reshape(v.shape[0], self.count, self.dim, v.shape[-1])
        v0, v1 = blocks[:, :, 0], blocks[:, :, 1:]
        unit = atoms.unit[..., None]
        along = mx.sum(unit * v1, axis=2)
        up, down = 0.5 * plus * (v0 + along), 0.5 * minus * (v0 - along)
        side = unit * (up - down - rest * along)[:, :, None] + rest[:, :, None] * v1
        out = mx.concatenate([(up + down)[:, :, None], side], axis=2)
        return out.reshape(out.shape[0], self.rows, v.shape[-1])

    def weights(self, atoms: Atoms, function: Spectral) -> mx.array:
        """W (B, rows): function(D) is diag(w) but for `corrections`."""
        rest = function(atoms.eigenvalues[..., 2:])
        return mx.broadcast_to(rest, (*rest.shape[:2], self.dim)).reshape(rest.shape[0], self.rows)

    def corrections(
        self, atoms: Atoms, function: Spectral, v: mx.array
    ) -> tuple[mx.array, mx.array]:
        """C (B, k) and V (B, k, columns): v'function(D) v = v'diag(w) v + V'diag(c) V."""
        values = function(atoms.eigenvalues)
        c = 0.5 * (values[..., :2] - values[..., 2:])
        blocks = v.reshape(v.shape[0], self.count, self.dim, v.shape[-1])
        along = mx.sum(atoms.unit[..., None] * blocks[:, :, 1:], axis=2)
        V = mx.stack([blocks[:, :, 0] + along, blocks[:, :, 0] - along], axis=2)
        return c.reshape(c.shape[0], -1), V.reshape(V.shape[0], -1, V.shape[-1])

    def signature(self, atoms: Atoms) -> mx.array:
        # Where D = 0 or I, the direction does not matter.
        spread = atoms.eigenvalues[..., :1] - atoms.eigenvalues[..., 1:2]
        parts = mx.concatenate([atoms.eigenvalues, spread * atoms.unit], axis=-1)
        return parts.reshape(parts.shape[0], -1)

    @property
    def degree(self) -> int:
        return self.count

    def centre(self, dtype: mx.Dtype) -> mx.array:
        apex = mx.zeros((self.count, self.dim), dtype=dtype)
        apex[:, 0] = 1.0
        return apex.reshape(-1)

    def _determinant(self, v: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """t, u and t^2 - |u|^2."""
        t, u = self._split(v)
        norm = _norm(u)
        return t, u, (t - norm) * (t + norm)

    def scaling(self, s: mx.array, y: mx.array, mu: mx.array) -> Atoms:
        (s0, s1, ds), (y0, y1, dy) = self._determinant(s), self._determinant(y)
        root_s, root_y = mx.sqrt(ds), mx.sqrt(dy)
        s0, s1, y0, y1 = s0 / root_s, s1 / root_s, y0 / root_y, y1 / root_y
        inner = s0 * y0 + mx.sum(s1 * y1, axis=-1, keepdims=True)
        gamma = mx.sqrt(0.5 * (1.0 + inner))
        # W^2 = eta (2 w w' - J) with w'J w = 1 (Vandenberghe, "The CVXOPT linear and quadratic
        # cone program solvers", 2010, section 4).
        w0, w1 = (s0 + y0) / (2.0 * gamma), (s1 - y1) / (2.0 * gamma)
        norm, eta = _norm(w1), root_s / root_y
        largest = mx.square(w0 + norm)
        values = mx.concatenate([eta * largest, eta / largest, eta], axis=-1)
        return Atoms(values, w1 / mx.maximum(norm, _TINY))

    def inverse(self, y: mx.array) -> mx.array:
        t, u, determinant = self._determinant(y)
        return (mx.concatenate([t, -u], axis=-1) / determinant).reshape(y.shape)

    def correction(self, atoms: Atoms, y: mx.array, ds: mx.array, dy: mx.array) -> mx.array:
        r"""W (l \\ (W^-1 ds o W dy)) with l = W y (Vandenberghe 2010, section 5)."""

        def scaled(v: mx.array, power: float) -> tuple[mx.array, mx.array]:
            return self._split(
                self.spectral(atoms, lambda e: mx.power(e, power), v[..., None])[..., 0]
            )

        (l0, l1), (s0, s1), (y0, y1) = scaled(y, 0.5), scaled(ds, -0.5), scaled(dy, 0.5)
        w0 = s0 * y0 + mx.sum(s1 * y1, axis=-1, keepdims=True)
        w1 = s0 * y1 + y0 * s1
        norm = _norm(l1)
        v0 = (l0 * w0 - mx.sum(l1 * w1, axis=-1, keepdims=True)) / ((l0 - norm) * (l0 + norm))
        v = mx.concatenate([v0, (w1 - v0 * l1) / l0], axis=-1)
        return self.spectral(atoms, mx.sqrt, v.reshape(*y.shape, 1))[..., 0]

    def room(self, v: mx.array, dv: mx.array, dual: bool) -> mx.array:
        (t, u, c), (dt, du, a) = self._determinant(v), self._determinant(dv)
        # The least positive root of a step^2 + 2 b step + c.
        b = t * dt - mx.sum(u * du, axis=-1, keepdims=True)
        square = b * b - a * c
        bottom = mx.sqrt(mx.maximum(square, 0.0)) - b
        meets = mx.logical_and(square >= 0, bottom > 0)
        steps = mx.where(meets, c / mx.where(meets, bottom, 1.0), mx.inf)
        return mx.min(steps[..., 0], axis=1, keepdims=True)
