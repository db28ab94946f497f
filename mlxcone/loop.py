"""The splitting loop: chunks of iterations, checks, frozen lanes, adaptive scale."""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

import mlx.core as mx

from mlxcone import admm, kkt, lanes, residuals
from mlxcone.admm import State
from mlxcone.anderson import Memory
from mlxcone.cones.product import Product
from mlxcone.equilibrate import Scaling
from mlxcone.problem import Program
from mlxcone.report import Table
from mlxcone.residuals import dot, norm
from mlxcone.settings import Settings

_SCALE_BAND = 5.0  # rebalance when the scale is off by more (OSQP, section 5.2)
_ROOM = 10.0  # a drift must exclude points this much larger than the iterate to be worth a try


class Splitting(NamedTuple):
    """Lanes under splitting, all float64: x (B, n), w (B, m), scale (B, 1), the drift of x and y
    over the last chunk, iterations (B,), and whether the drift resembles a certificate (B,)."""

    x: mx.array
    w: mx.array
    scale: mx.array
    dx: mx.array
    dy: mx.array
    iterations: mx.array
    drifts: mx.array


def cold(program: Program, settings: Settings) -> Splitting:
    """Every lane at zero."""
    total, dtype = program.lanes, program.q.dtype
    x = mx.zeros((total, program.n), dtype=dtype)
    w = mx.zeros((total, program.m), dtype=dtype)
    scale = mx.full((total, 1), settings.scale, dtype=dtype)
    count = mx.zeros((total,), dtype=mx.int32)
    return Splitting(x, w, scale, x, w, count, count > 0)


def warm(
    program: Program, cones: Product, settings: Settings, x: mx.array, y: mx.array, s: mx.array
) -> Splitting:
    """Every lane at an equilibrated (x, y, s)."""
    work = cold(program, settings)
    state = admm.join(admm.row_weights(work.scale, cones), x, y, s)
    return work._replace(x=state.x, w=state.w)


def _size(v: mx.array) -> mx.array:
    """1-norm per lane, at least the number of entries."""
    return mx.maximum(mx.sum(mx.abs(v), axis=1), float(v.shape[1]))


def _drifts(
    program: Program, cones: Product, x: mx.array, y: mx.array, dx: mx.array, dy: mx.array
) -> mx.array:
    """Whether the successive difference resembles a certificate (Banjac et al. 2019).

    y in K* with b'y < 0 excludes every feasible x with |x|_1 |A'y|_inf < -b'y; a drift is worth a
    closer look when what it excludes is well beyond the iterate. Likewise for x and dual points.
    """
    ray = cones.project_dual(dy)
    off = norm(program.A.transpose_times(ray)) + norm(ray - dy)
    infeasible = _ROOM * _size(x) * off < -dot(program.b, ray)
    Ax = program.A.times(dx)
    off = norm(program.P_times(dx)) + norm(Ax + cones.project(-Ax))
    return infeasible | (_ROOM * _size(y) * off < -dot(program.q, dx))


class Loop:
    """Splitting on some lanes in one dtype, until each is ready, drifts, or the budget is spent.

    Args:
        program (Program): equilibrated, float64, the lanes to iterate.
        scaling (Scaling): its factors.
        cones (Product): the cones.
        settings (Settings): relaxation, cadence, acceleration.
        dtype (mx.Dtype): arithmetic of the iteration.
        device (mx.Device): where float32 iterations run; float64 exists on the CPU only.
    """

    def __init__(
        self,
        program: Program,
        scaling: Scaling,
        cones: Product,
        settings: Settings,
        dtype: mx.Dtype,
        device: mx.Device,
    ) -> None:
        self.program, self.cones, self.settings, self.dtype = program, cones, settings, dtype
        self.device = device if dtype == mx.float32 else mx.Device(mx.DeviceType.cpu)
        self.small, self.factors = program.astype(dtype), scaling.astype(dtype)

    def _chunk(
        self, op: admm.Operator, state: State, memory: Memory | None, steps: int
    ) -> tuple[State, Memory | None]:
        while steps > 0:
            some = min(steps, self.settings.acceleration_interval)
            accelerate = memory if some > 2 else None
            state, kept = admm.advance(self.cones, op, state, accelerate, some)
            memory = kept if accelerate is not None else memory
            steps -= some
        return state, memory

    def _memory(self, state: State) -> Memory | None:
        lookback = self.settings.acceleration_lookback
        return Memory.empty(mx.concatenate(state, axis=1), lookback) if lookback else None

    def _operator(self, scale: mx.array, inverse: mx.array | None) -> admm.Operator:
        """Factor in float64 unless there is a factor, iterate in the loop's dtype."""
        matrices = [a for a in (self.program.A.matrix, self.program.P) if a is not None]
        if all(a.ndim == 2 for a in matrices) and bool(mx.all(scale == scale[0]).item()):
            scale = scale[:1]  # one factor serves every lane
        weights = admm.row_weights(scale, self.cones)
        if inverse is None:
            inverse = kkt.splitting_inverse(self.program, weights, self.settings.rho_x)
        return admm.Operator(
            self.small,
            inverse.astype(self.dtype),
            weights.astype(self.dtype),
            mx.array(self.settings.rho_x, dtype=self.dtype),
            mx.array(self.settings.alpha, dtype=self.dtype),
        )

    def run(
        self,
        work: Splitting,
        inverse: mx.array,
        budget: int,
        handover: float,
        table: Table,
        deadline: float,
    ) -> Splitting:
        """Iterate; lanes freeze as soon as their relative residual is at most ``handover``.

        Args:
            work (Splitting): where the lanes stand.
            inverse (mx.array): the factor for the initial scale, (n, n) or (B, n, n).
            budget (int): iterations.
            handover (float): relative residual at which a lane is ready.
            table (Table): told of every check.
            deadline (float): value of ``time.monotonic()`` at which to stop.
        """
        cones, wide = self.cones, work.x.dtype
        fresh = bool(mx.all(work.scale == self.settings.scale).item())
        op = self._operator(work.scale, inverse if fresh else None)
        state = State(work.x.astype(self.dtype), work.w.astype(self.dtype))
        memory = self._memory(state)
        before = admm.split(cones, op.weights, state)
        active = mx.ones((work.x.shape[0],), dtype=mx.bool_)
        done = 0
        while done < budget and time.monotonic() < deadline:
            steps = min(self.settings.check_interval, budget - done)
            done += steps
            with mx.stream(self.device):
                moved, memory = self._chunk(op, state, memory, steps)
                now = admm.split(cones, op.weights, moved)
                result = residuals.measure(self.small, self.factors, *now, 0.0, 1.0)
                dx, dy = now[0] - before[0], now[1] - before[1]
                drifts = _drifts(self.small, cones, now[0], now[1], dx, dy)
            sane = active & mx.isfinite(result.relative)
            drifts = sane & drifts
            freeze = functools.partial(mx.where, sane[:, None])
            state = State(freeze(moved.x, state.x), freeze(moved.w, state.w))
            work = Splitting(
                freeze(moved.x.astype(wide), work.x),
                freeze(moved.w.astype(wide), work.w),
                work.scale,
                freeze(dx.astype(wide), work.dx),
                freeze(dy.astype(wide), work.dy),
                work.iterations + steps * active.astype(mx.int32),
                work.drifts | drifts,
            )
            worst = [mx.max(mx.where(active, r, 0.0)) for r in result[4:6]]
            active = sane & (result.relative > handover) & mx.logical_not(drifts)
            before = now
            mx.eval(work, state, active, worst, before)
            left = lanes.where_true(active)
            table.row("splitting", done, len(left), *(w.item() for w in worst))  # type: ignore[arg-type]
            if not left:
                break
            if self.settings.adaptive_scale and done < budget:
                scale = self._rebalance(work.scale, active, result)
                if scale is not None:
                    work = work._replace(scale=scale)
                    op = self._operator(scale, None)
                    fresh = admm.join(op.weights, *now)
                    pick = functools.partial(mx.where, active[:, None])
                    state = State(pick(fresh.x, state.x), pick(fresh.w, state.w))
                    # Lanes that keep their scale keep w too, to the last bit.
                    memory = self._memory(state)
        return work

    def _rebalance(
        self, scale: mx.array, active: mx.array, result: residuals.Residuals
    ) -> mx.array | None:
        """New scales, or None if none is off by more than the band."""
        relative = (r[:, None].astype(scale.dtype) for r in result[4:6])
        wanted = admm.rebalanced(scale, *relative)
        off = mx.maximum(wanted / scale, scale / wanted) > _SCALE_BAND
        change = active[:, None] & off
        return mx.where(change, wanted, scale) if bool(mx.any(change).item()) else None
