"""Variables that CVXPY adds, t = E x + f, taken out of the program before it is solved.

CVXPY writes the sum of squares of A x - b with new variables t and equality rows A x - t = b. A
variable with one entry in A, a constant c in an equality row (a x + c t = b), is an affine function
of the others: its column and its row go, and what it costs becomes part of P and q. Which these are
follows from the patterns alone and is decided once. The multiplier of the row comes back from
stationarity in t, P_tt t + q_t + c y = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import scipy.sparse as sp

import mlxcone
from cvxpylayers_mlx.affine import DataMap
from cvxpylayers_mlx.canonicalize import Canonical
from cvxpylayers_mlx.program import (
    Data,
    Read,
    blot,
    constants,
    finished,
    grid,
    mapped,
    row_times,
    warm_parts,
)


class Cost(NamedTuple):
    """1/2 v'P v + q'v; P is None, a matrix, or if ``diagonal`` the diagonal of one."""

    P: mx.array | None
    q: mx.array
    diagonal: bool = False

    def slope(self, v: mx.array) -> mx.array:
        """P v + q."""
        return self.q if self.P is None else self.q + self._times(v)

    def __call__(self, v: mx.array) -> mx.array:
        """Its value, (B,) or ()."""
        both = self.q * v if self.P is None else (self.q + 0.5 * self._times(v)) * v
        return mx.sum(both, axis=-1)

    def _times(self, v: mx.array) -> mx.array:
        assert self.P is not None
        return self.P * v if self.diagonal else row_times(v, self.P)

    def conjugated(self, E: mx.array) -> mx.array:
        """E'P E."""
        assert self.P is not None
        return mx.swapaxes(E, -1, -2) @ (self.P[..., None] * E if self.diagonal else self.P @ E)


class Link(NamedTuple):
    """What brings t back: E (r, n') or (B, r, n'), f (r,) or (B, r), and what x and t cost."""

    E: mx.array
    f: mx.array
    cost_x: Cost
    cost_t: Cost


@dataclass(frozen=True)
class Elimination:
    """Which variables go with which rows, and the maps to what is left of P, q, A and b.

    ``x`` and ``t`` are columns, ``rows`` and ``gone`` rows; t[i] has the entry pivots[i] in row
    gone[i]. ``diagonal`` says how t costs.
    """

    x: np.ndarray
    t: np.ndarray
    rows: np.ndarray
    gone: np.ndarray
    pivots: np.ndarray
    diagonal: bool
    cones: mlxcone.Cones
    pattern: np.ndarray
    parts: dict[str, DataMap]
    place_x: mlxcone.SparseMap
    place_rows: mlxcone.SparseMap
    turned, weight = False, 1.0

    @classmethod
    def of(cls, form: Canonical) -> Elimination | None:
        """What can be eliminated of a program; None if nothing can."""
        t, gone, pivots = _singletons(form)
        keep = _closed(form.P, t)
        if keep.all() and t.size == form.q.shape[0]:
            keep[0] = False  # there is no program without variables
        t, gone, pivots = t[keep], gone[keep], pivots[keep]
        if not t.size:
            return None
        m, n = form.A.shape
        x, rows = np.setdiff1d(np.arange(n), t), np.setdiff1d(np.arange(m), gone)
        parts = {
            "q_x": form.q.at(x),
            "q_t": form.q.at(t),
            "A_x": form.A.at(grid(rows, x, n)),
            "A_t": form.A.at(grid(gone, x, n)),
            "b_x": form.b.at(rows),
            "b_t": form.b.at(gone),
        }
        diagonal = False
        if form.P is not None:
            i, j = np.nonzero(form.P.pattern)
            inside = np.isin(i, t)
            if not inside.all():
                parts["P_x"] = form.P.at(grid(x, x, n))
            if inside.any():
                diagonal = np.array_equal(i[inside], j[inside])
                parts["P_t"] = form.P.at(t * n + t if diagonal else grid(t, t, n))
        cones = replace(form.cones, zero=form.cones.zero - t.size)
        places = _places(x, t), _places(rows, gone)
        pattern = parts["A_x"].pattern
        return cls(x, t, rows, gone, pivots, diagonal, cones, pattern, parts, *places)

    def read(self, read: Read) -> Data:
        """The smaller program, float64; ``read`` gives the arrays of maps."""
        dtype = read(self.parts["q_x"]).dtype
        # P is squared in what t costs: float64, whatever the data are.
        found = {k: read(part).astype(mx.float64) for k, part in self.parts.items()}
        pivots = mx.array(self.pivots, dtype=mx.float64)
        E, f = -found["A_t"] / pivots[:, None], found["b_t"] / pivots
        cost_x = Cost(found.get("P_x"), found["q_x"])
        cost_t = Cost(found.get("P_t"), found["q_t"], self.diagonal)
        P, q = cost_x.P, cost_x.q + row_times(cost_t.slope(f), E)
        if cost_t.P is not None:
            EPE = cost_t.conjugated(E)
            P = EPE if P is None else P + EPE
        # Where nothing else is batched, x is as many times what f is.
        q = mx.broadcast_to(q, (*(f if q.ndim == 1 else q).shape[:-1], q.shape[-1]))
        link = Link(E, f, cost_x, cost_t)
        return Data(P, q, found["A_x"], found["b_x"], dtype, link)

    def start(self, warm: Any) -> Any:
        """A warm start of the whole program as one of the smaller."""
        parts = warm_parts(warm, self.x.size + self.t.size, self.rows.size + self.gone.size)
        if parts is None:
            return warm
        kept = (mx.array(i.astype(np.int32)) for i in (self.x, self.rows, self.rows))
        return tuple(mx.take(v, i, axis=-1) for v, i in zip(parts, kept, strict=True))

    def restore(self, found: mlxcone.Solution, data: Data) -> mlxcone.Solution:
        """The solution of the whole program from that of the smaller."""
        of = data.link
        assert of is not None
        status = found.info.status[..., None]
        solved, zero = status > 0, mx.array(0.0, dtype=mx.float64)
        # NaN must not meet the sums over lanes that derivatives of a shared E make.
        x = mx.where(mx.isfinite(found.x), found.x, zero)
        ray = status == int(mlxcone.Status.UNBOUNDED)
        t = row_times(x, mx.swapaxes(of.E, -1, -2)) + mx.where(ray, zero, of.f)
        y = -of.cost_t.slope(t) / mx.array(self.pivots, dtype=mx.float64)
        objective = mx.where(solved[..., 0], of.cost_x(x) + of.cost_t(t), mx.nan)
        # Once, and on the x that is used: `mx.compile` loses a part of the tangent otherwise.
        spoil = blot(found.x, solved)
        t = t + spoil
        # The rows that went have no part in a certificate.
        y = mx.where(solved, y, zero) + blot(found.y if self.rows.size else found.x, solved)
        s = mx.zeros_like(y) + blot(found.s if self.rows.size else found.x, solved)
        return finished(
            _join(self.place_x, x + spoil, t),
            _join(self.place_rows, found.y, y),
            _join(self.place_rows, found.s, s),
            found.info._replace(objective=objective),
            data.dtype,
        )


def _join(place: mlxcone.SparseMap, kept: mx.array, gone: mx.array) -> mx.array:
    """Both in the order of the whole program."""
    return mapped(place, mx.concatenate([kept, gone], axis=-1))


def _places(kept: np.ndarray, gone: np.ndarray) -> mlxcone.SparseMap:
    """From (kept, gone) to the order of the whole."""
    order, size = np.concatenate([kept, gone]), kept.size + gone.size
    return mlxcone.SparseMap(
        sp.coo_array((np.ones(size), (order, np.arange(size))), shape=(size, size))
    )


def _singletons(form: Canonical) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns with one entry in A, a constant in an equality row; the rows, one each; the entry."""
    i, j = np.nonzero(form.A.pattern)
    alone = (np.bincount(j, minlength=form.A.shape[1])[j] == 1) & (i < form.cones.zero)
    i, j = i[alone], j[alone]
    entries = constants(form.A, i, j)
    known = np.isfinite(entries)
    i, j, entries = i[known], j[known], entries[known]
    _, first = np.unique(i, return_index=True)
    return j[first], i[first], entries[first]


def _closed(P: DataMap | None, columns: np.ndarray) -> np.ndarray:
    """Which columns P does not tie, directly or through others of them, to the rest."""
    keep = np.ones(columns.size, dtype=bool)
    if P is None:
        return keep
    i, j = np.nonzero(P.pattern)
    while True:
        inside = np.isin(np.arange(P.shape[0]), columns[keep])
        tied = np.concatenate([i[inside[i] & ~inside[j]], j[inside[j] & ~inside[i]]])
        if not tied.size:
            return keep
        keep &= ~np.isin(columns, tied)
