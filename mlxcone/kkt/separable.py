"""(P + sigma I + A'W A)^-1 where cones of three rows have variables of their own.

Exponential and power cones often stand for one term each of a separable sum. With P diagonal, all
but the variables that such terms share, the border, then fall into small blocks: with Delta = L L'
block diagonal, T = Delta^-1 B and S = C - B'T,

    [ Delta, B ; B', C ]^-1 (v, u) = (Delta^-1 v - T z, z),    z = S^-1 (u - T'v).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxcone.backend.gather import gather
from mlxcone.backend.linalg import spd_inverse
from mlxcone.cones import spectral3
from mlxcone.cones.base import Spectral
from mlxcone.cones.exponential import Exponential
from mlxcone.cones.power import Power
from mlxcone.cones.product import Product
from mlxcone.program.operators import Entries, row_times
from mlxcone.program.problem import Program, take_lanes

_WIDEST = 3  # variables in a block
_OFTEN = 2  # cones that a variable may be in without being in the border
_WORTH = 4  # times as many variables as in the border


class Plan(NamedTuple):
    """Where the entries of a matrix (m, n) belong.

    ``border`` (b,) are the shared variables, ``columns`` (w, g) those of each block, -1 where it
    has fewer than w, and ``back`` (n,) where each variable is in both, one after the other.
    ``members`` (g, k) are the cones of each block, -1 where it has fewer than k; ``single`` (n, k)
    are the linear rows that have an entry in a block, by its column, likewise.
    """

    border: np.ndarray
    columns: np.ndarray
    back: np.ndarray
    members: np.ndarray
    single: np.ndarray


def plan(program: Program, cones: Product) -> Plan | None:
    """That of a program with a shared A and P diagonal or zero, if there is one."""
    entries, flat = program.A.sparsity.entries, program.P is None or program.diagonal is not None
    if entries is None or program.A.matrix.ndim == 3 or not flat:
        return None
    groups = _groups(cones)
    if not groups or not all(isinstance(cones.groups[k], Exponential | Power) for k in groups):
        return None
    return _plan(entries, cones.linear)


def _groups(cones: Product) -> range:
    """Numbers of the groups after the linear rows."""
    return range(1 if cones.linear else 0, len(cones.groups))


@functools.lru_cache(maxsize=256)
def _plan(entries: Entries, linear: int) -> Plan | None:
    """For cones after so many linear rows."""
    full = entries.full
    n = full.shape[1]
    touched = np.asarray(full[linear:].reshape(-1, 3, n).any(axis=1))
    shared = touched.sum(axis=0) > _OFTEN
    inner = np.flatnonzero(np.logical_not(shared))
    if _WORTH * shared.sum() > n or not inner.size:
        return None
    beside, touched = full[:linear, inner], touched[:, inner]
    block = _connected(touched)
    sizes = np.bincount(block)
    if sizes.max() > _WIDEST or beside.sum(axis=1).max(initial=0) > 1:
        return None
    # Variables in the order of their blocks, each block in a column of (w, g).
    width, count = int(sizes.max()), sizes.size
    order: np.ndarray = np.argsort(block, kind="stable")
    first: np.ndarray = np.cumsum(sizes) - sizes
    place = np.empty(inner.size, dtype=np.int64)
    place[order] = np.arange(inner.size) - first[block[order]]
    columns, back = np.full((width, count), -1), np.empty(n, dtype=np.int64)
    columns[place, block] = inner
    back[inner] = place * count + block
    back[shared] = width * count + np.arange(n - inner.size)
    owner = np.where(touched.any(axis=1), block[touched.argmax(axis=1)], -1)
    alone = np.where(beside.any(axis=1), inner[beside.argmax(axis=1)], -1)
    members, single = _listed(owner, count), _listed(alone, n)
    return Plan(np.flatnonzero(shared), columns, back, members, single)


def _connected(touched: np.ndarray) -> np.ndarray:
    """A number for each variable, that of all with which it shares a cone, from 0 on."""
    label = np.arange(touched.shape[1])
    for row in touched:
        some = np.unique(label[row])
        if some.size > 1:
            label[np.isin(label, some)] = some[0]
    return np.unique(label, return_inverse=True)[1]


def _listed(owner: np.ndarray, owners: int) -> np.ndarray:
    """The items of each owner, (owners, most), -1 where there are fewer; an item may have none."""
    items = np.flatnonzero(owner >= 0)
    items = items[np.argsort(owner[items], kind="stable")]
    counts = np.bincount(owner[items], minlength=owners)
    out = np.full((owners, int(counts.max(initial=0))), -1)
    out[owner[items], np.arange(items.size) - np.repeat(np.cumsum(counts) - counts, counts)] = items
    return out


class Separable(NamedTuple):
    """L's entries below the diagonal, by rows, and the reciprocals of those on it, (B, g) each.

    ``border``, ``columns`` and ``back`` as in `Plan`; T' (B, b, n), zero in the border, and S^-1
    (B, b, b), if there is a border; ``ok`` (B,) says where all of them could be made.
    """

    below: tuple[mx.array, ...]
    pivots: tuple[mx.array, ...]
    border: mx.array
    columns: mx.array
    back: mx.array
    across: mx.array | None
    corner: mx.array | None
    ok: mx.array

    def times(self, v: mx.array) -> mx.array:
        """Solve for ``v``, (B, n)."""
        blocks = self.blocks(v)
        if self.across is None or self.corner is None:
            return gather(blocks, self.back)
        u = gather(v, self.border) - row_times(v, mx.swapaxes(self.across, -1, -2))
        z = row_times(u, self.corner)
        # T is zero in the border.
        whole = gather(mx.concatenate([blocks, z], axis=-1), self.back)
        return whole - row_times(z, self.across)

    def blocks(self, v: mx.array) -> mx.array:
        """Delta^-1 v for (B, n) or (B, k, n), in the order of the blocks."""
        pivots, below = self.pivots, self.below
        if v.ndim == 3:
            pivots, below = (tuple(a[:, None] for a in some) for some in (pivots, below))
        width = len(pivots)
        parts = gather(v, self.columns)
        y: list[mx.array] = []
        for j in range(width):
            left = parts[..., j, :]
            for k in range(j):
                left = left - below[_place(j, k)] * y[k]
            y.append(left * pivots[j])
        for j in reversed(range(width)):
            for k in range(j + 1, width):
                y[j] = y[j] - below[_place(k, j)] * y[k]
            y[j] = y[j] * pivots[j]
        return y[0] if width == 1 else mx.concatenate(y, axis=-1)

    def take(self, chosen: mx.array) -> Separable:
        """Some lanes."""
        below, pivots = (tuple(take_lanes(a, chosen, 2) for a in some) for some in self[:2])
        across, corner = (None if a is None else take_lanes(a, chosen, 3) for a in self[5:7])
        ok = take_lanes(self.ok, chosen, 1)
        return self._replace(below=below, pivots=pivots, across=across, corner=corner, ok=ok)

    def or_zero(self) -> Separable:
        """Zero in lanes where there is no inverse."""
        some = self.ok[:, None]
        below, pivots = (tuple(mx.where(some, a, 0.0) for a in part) for part in self[:2])
        both = (None if a is None else mx.where(some[..., None], a, 0.0) for a in self[5:7])
        across, corner = both
        return self._replace(below=below, pivots=pivots, across=across, corner=corner)


def _place(j: int, k: int) -> int:
    """Where entry (j, k) of a matrix is among those below its diagonal, by rows."""
    return j * (j - 1) // 2 + k


def factor(
    program: Program, cones: Product, atoms: list[Any], function: Spectral, plan: Plan, sigma: float
) -> Separable:
    """For W = function(D)."""
    A, n = program.A.matrix, program.n
    diagonal = mx.full((1, n), sigma, dtype=A.dtype)
    diagonal = diagonal if program.diagonal is None else diagonal + program.diagonal
    if plan.single.size:
        weights = cones.weights(atoms, function, cones.linear)
        for rows in plan.single.T:
            entries = mx.square(_entries(A, rows, np.arange(n)))
            diagonal = diagonal + entries * gather(weights, mx.array(np.maximum(rows, 0)))
    H = _blocks(A, cones, atoms, function, plan)
    on = gather(diagonal, mx.array(np.maximum(plan.columns, 0)))
    on = mx.where(mx.array(plan.columns) >= 0, on, 1.0)
    width = len(plan.columns)
    below: list[mx.array] = []
    pivots: list[mx.array] = []
    ok = mx.array(True)
    for j in range(width):
        for k in range(j):
            entry = H[j][k]
            for i in range(k):
                entry = entry - below[_place(j, i)] * below[_place(k, i)]
            below.append(entry * pivots[k])
        square = H[j][j] + on[:, j]
        for k in range(j):
            square = square - mx.square(below[_place(j, k)])
        ok = ok & mx.all(square > 0, axis=1)  # False for NaN
        pivots.append(mx.rsqrt(mx.maximum(square, 1e-300)))
    border, columns, back = (
        mx.array(v) for v in (plan.border, np.maximum(plan.columns, 0), plan.back)
    )
    found = Separable(tuple(below), tuple(pivots), border, columns, back, None, None, ok)
    return (
        found if not plan.border.size else _bordered(found, program, cones, atoms, function, sigma)
    )


def _bordered(
    inner: Separable,
    program: Program,
    cones: Product,
    atoms: list[Any],
    function: Spectral,
    sigma: float,
) -> Separable:
    """With the border that the blocks of ``inner`` have."""
    A, border = program.A.matrix, inner.border
    # Rows k of (B, b, n): what the shared variables have in common with every other.
    rows = mx.swapaxes(cones.spectral(atoms, function, A[:, border][None]), 1, 2) @ A
    own = sigma if program.diagonal is None else program.diagonal[border] + sigma
    corner = gather(rows, border) + own * mx.eye(border.size, dtype=A.dtype)
    blocks = inner.blocks(rows)
    nothing = mx.zeros((*blocks.shape[:-1], border.size), dtype=A.dtype)
    across = gather(mx.concatenate([blocks, nothing], axis=-1), inner.back)
    schur = corner - across @ mx.swapaxes(rows, -1, -2)
    inverse, ok = spd_inverse(0.5 * (schur + mx.swapaxes(schur, -1, -2)))
    return inner._replace(across=across, corner=inverse, ok=inner.ok & ok)


def _entries(A: mx.array, rows: np.ndarray, columns: np.ndarray) -> mx.array:
    """Entries of a matrix, zero where a row or a column is -1."""
    there = (rows >= 0) & (columns >= 0)
    at = np.where(there, rows * A.shape[1] + columns, -1)
    found = mx.take(A.reshape(-1), mx.array(np.maximum(at, 0)))
    return mx.where(mx.array(at) >= 0, found, 0.0)


def _blocks(
    A: mx.array, cones: Product, atoms: list[Any], function: Spectral, plan: Plan
) -> list[list[mx.array]]:
    """Entries (j, k), j >= k, of what the cones add to each block, (B, g) each."""
    width, count = plan.columns.shape
    sums: list[list[mx.array]] = [
        [mx.zeros((1, count), dtype=A.dtype)] * (j + 1) for j in range(width)
    ]
    halves = [spectral3.rotated(atoms[k], function) for k in _groups(cones)]
    half = mx.concatenate(halves, axis=-1) if len(halves) > 1 else halves[0]
    for members in plan.members.T:
        first = np.where(members >= 0, cones.linear + 3 * members, -1)
        own = half
        if not np.array_equal(members, np.arange(half.shape[-1])):
            own = gather(half, mx.array(np.maximum(members, 0)))
        turned = []
        for column in plan.columns:
            entries = [_entries(A, np.where(first >= 0, first + r, -1), column) for r in range(3)]
            turned.append([sum(own[i, r] * entries[r] for r in range(3)) for i in range(3)])
        for j in range(width):
            for k in range(j + 1):
                more = sum(turned[j][i] * turned[k][i] for i in range(3))
                sums[j][k] = sums[j][k] + more
    return sums
