"""Programs in standard form are solved through their duals, which have fewer variables.

Without P, and with one constant entry a_j outside of the equality rows for every variable, as for
minimize q'x subject to F x = g, x in K, stationarity q + F'l + a y = 0 gives the multipliers of
the rows that hold variables. What is left of the dual,

    minimize g'l + b'y over l and the multipliers of rows without a variable, y in K*,

is a cone program itself. Its slack is y, its multiplier the slack s, and x = (b - s) / a.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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
from mlxcone import Status

_MATRICES = 400.0  # the solver begins semidefinite programs at a twentieth of the scale
_WORTH = 0.7  # share of the variables that the dual may have
_TURNED = (
    (Status.UNBOUNDED, Status.INFEASIBLE),
    (Status.UNBOUNDED_INACCURATE, Status.INFEASIBLE_INACCURATE),
)


@dataclass(frozen=True)
class Dual:
    """The dual program of one in standard form.

    ``pivots`` (m_k,) are the entries a_j of the rows outside of the zero cone, 1 where there is no
    variable; ``idle`` numbers those rows. ``to_x`` takes b - s there to x.
    """

    n: int
    cones: mlxcone.Cones
    zero: int
    pivots: np.ndarray
    idle: np.ndarray
    pattern: np.ndarray
    parts: dict[str, DataMap]
    to_x: mlxcone.SparseMap
    turned = True  # a certificate of the one means the opposite for the other

    @property
    def weight(self) -> float:
        """What the slack was to the multiplier the multiplier is to the slack."""
        return _MATRICES if self.cones.psd else 1.0

    @classmethod
    def of(cls, form: Canonical) -> Dual | None:
        """The dual of a program; None if that has not clearly fewer variables."""
        cones, zero, (m, n) = form.cones, form.cones.zero, form.A.shape
        if form.P is not None or cones.power_nd or cones.box or (cones.exp and cones.exp_dual):
            return None
        i, j = np.nonzero(form.A.pattern)
        i, j = i[i >= zero], j[i >= zero]
        alone = np.bincount(i, minlength=m)[i] == 1
        entries = constants(form.A, i, j)
        idle = np.setdiff1d(np.arange(zero, m), i) - zero
        size = zero + idle.size
        standard = alone.all() and np.array_equal(np.sort(j), np.arange(n))
        if not standard or not np.isfinite(entries).all() or not 0 < size <= _WORTH * n:
            return None
        column, pivots = np.full(m - zero, -1), np.ones(m - zero)
        column[i - zero], pivots[i - zero] = j, entries
        held = column[:, None] >= 0
        flat = np.where(held, grid(np.arange(zero), column, n).T if zero else held[:, :0], -1)
        parts = {
            "F": form.A.at(flat),
            "q": form.q.at(column),
            "cost": form.q,
            "g": form.b.at(np.arange(zero)),
            "b": form.b.at(np.arange(zero, m)),
        }
        to_x = sp.coo_array((1.0 / entries, (j, i - zero)), shape=(n, m - zero))
        dual = replace(
            cones,
            zero=0,
            exp=cones.exp_dual,
            exp_dual=cones.exp,
            power=tuple(-alpha for alpha in cones.power),
        )
        fixed = np.zeros((m - zero, idle.size), dtype=bool)
        fixed[idle, np.arange(idle.size)] = True
        full = np.concatenate([parts["F"].pattern, fixed], axis=1)
        return cls(n, dual, zero, pivots, idle, full, parts, mlxcone.SparseMap(to_x))

    def read(self, read: Read) -> Data:
        """The dual program, float64; ``read`` gives the arrays of maps."""
        dtype = read(self.parts["cost"]).dtype
        found = {k: read(part).astype(mx.float64) for k, part in self.parts.items()}
        pivots = mx.array(self.pivots, dtype=mx.float64)
        A, b = found["F"] / pivots[:, None], found["b"]
        q = found["g"] - row_times(b, A) if self.zero else found["g"]
        if self.idle.size:
            picks = np.zeros((self.pivots.size, self.idle.size))
            picks[self.idle, np.arange(self.idle.size)] = -1.0
            columns = mx.array(picks, dtype=mx.float64)
            A = mx.concatenate(
                [A, mx.broadcast_to(columns, (*A.shape[:-2], *columns.shape))], axis=-1
            )
            here = -row_times(b, columns)
            lanes = max(q.shape[:-1], here.shape[:-1])
            q = mx.concatenate(
                [mx.broadcast_to(v, (*lanes, v.shape[-1])) for v in (q, here)], axis=-1
            )
        return Data(None, q, A, -found["q"] / pivots, dtype, (b, found["cost"]))

    def start(self, warm: Any) -> Any:
        """A warm start of the whole program as one of the dual."""
        parts = warm_parts(warm, self.n, self.zero + self.pivots.size)
        if parts is None:
            return warm
        _, y, s = parts
        rows = y[..., self.zero :]
        x = [y[..., : self.zero]]
        if self.idle.size:
            x.append(mx.take(rows, mx.array(self.idle.astype(np.int32)), axis=-1))
        return mx.concatenate(x, axis=-1), s[..., self.zero :], rows

    def restore(self, found: mlxcone.Solution, data: Data) -> mlxcone.Solution:
        """The solution of the whole program from that of the dual."""
        b, cost = data.link
        status = _turned(found.info.status)
        solved, zero = status[..., None] > 0, mx.array(0.0, dtype=mx.float64)
        ray = status[..., None] == int(Status.UNBOUNDED)
        slack = mx.where(ray, zero, b) - found.y
        x = mapped(self.to_x, slack)
        # NaN must not meet the sums over lanes that derivatives of a shared cost make.
        value = mx.sum(cost * mx.where(mx.isfinite(x), x, zero), axis=-1)
        objective = mx.where(solved[..., 0], value, mx.nan)
        gap = mx.zeros((*found.s.shape[:-1], self.zero), dtype=mx.float64)
        info = found.info._replace(
            status=status,
            primal_residual=found.info.dual_residual,
            dual_residual=found.info.primal_residual,
            objective=objective,
        )
        y = mx.concatenate([found.x[..., : self.zero], found.s], axis=-1)
        s = mx.concatenate([gap + blot(found.y, solved), found.y], axis=-1)
        return finished(x, y, s, info, data.dtype)


def _turned(status: mx.array) -> mx.array:
    """Statuses of the program from those of its dual."""
    turned = status
    for one, other in _TURNED:
        turned = mx.where(status == int(one), int(other), turned)
        turned = mx.where(status == int(other), int(one), turned)
    return turned.astype(status.dtype)
