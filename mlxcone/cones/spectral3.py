"""Symmetric 3 x 3 operators kept as eigenvalues and eigenvectors, batched and branch-free.

At a point z = y - s with y = Pi(z) and s both nonzero, any projection Pi onto a cone has
Pi(a y - b s) = a y for a, b >= 0, so D y = y and D s = 0: in three dimensions D has the frame
(y, y x s, s) with eigenvalues (1, c, 0), and only c depends on the cone.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlxcone.cones.base import Spectral, root


class Atoms(NamedTuple):
    """``eigenvalues`` (B, count, 3); eigenvector i is ``vectors[..., :, i]``, (B, count, 3, 3)."""

    eigenvalues: mx.array
    vectors: mx.array


def _unit(v: mx.array) -> mx.array:
    largest = mx.max(mx.abs(v), axis=-1, keepdims=True)
    v = v / mx.where(largest > 0, largest, 1.0)
    length = mx.sqrt(mx.sum(mx.square(v), axis=-1, keepdims=True))
    return v / mx.where(length > 0, length, 1.0)


def cross(a: mx.array, b: mx.array) -> mx.array:
    """Cross product over the last axis."""
    a0, a1, a2 = (a[..., i] for i in range(3))
    b0, b1, b2 = (b[..., i] for i in range(3))
    return mx.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], axis=-1)


def frame(along: mx.array, across: mx.array) -> mx.array:
    """Orthonormal (along, across x along, across) as columns, (..., 3, 3).

    ``along`` and ``across``, (..., 3), are nonzero, of any length, and not parallel; what
    ``across`` has of ``along`` is removed.
    """
    u = _unit(along)
    w = _unit(across)
    for _ in range(2):  # the second time removes what rounding left
        w = _unit(w - mx.sum(u * w, axis=-1, keepdims=True) * u)
    return mx.stack([u, cross(w, u), w], axis=-1)


def spectral(atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
    """function(D) applied to the columns of ``v``, (B or 1, 3 count, k)."""
    values = function(atoms.eigenvalues)
    blocks = v.reshape(v.shape[0], -1, 3, v.shape[-1])
    parts = []
    for i in range(3):
        vector = atoms.vectors[..., i][..., None]
        along = mx.sum(vector * blocks, axis=2, keepdims=True)
        parts.append((values[..., i, None, None] * vector) * along)
    out = parts[0] + parts[1] + parts[2]
    return out.reshape(out.shape[0], -1, v.shape[-1])


def half(atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
    """`base.half` with a product less."""
    blocks = v.reshape(v.shape[0], -1, 3, v.shape[-1])
    turned = mx.swapaxes(atoms.vectors, -1, -2) @ blocks
    out = root(function, atoms.eigenvalues)[..., None] * turned
    return mx.swapaxes(out.reshape(out.shape[0], -1, v.shape[-1]), -1, -2)


def rotated(atoms: Atoms, function: Spectral) -> mx.array:
    """R (3, 3, B, count) with R'R = function(D), for a function that is nowhere negative.

    Entries first: each is contiguous.
    """
    vectors = mx.contiguous(mx.transpose(atoms.vectors, (3, 2, 0, 1)))
    return vectors * mx.moveaxis(root(function, atoms.eigenvalues), -1, 0)[:, None]


def signature(atoms: Atoms) -> mx.array:
    """The six entries of D of each cone, (B, 6 count)."""
    parts = []
    for i, j in ((0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (2, 2)):
        product = atoms.vectors[..., i, :] * atoms.vectors[..., j, :]
        parts.append(mx.sum(atoms.eigenvalues * product, axis=-1))
    return mx.stack(parts, axis=-1).reshape(atoms.eigenvalues.shape[0], -1)
