"""The splitting loop: chunks of iterations, checks, frozen lanes, adaptive scale."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import mlx.core as mx

from mlxcone.backend import lanes
from mlxcone.backend.devices import CPU
from mlxcone.backend.repeated import Calls
from mlxcone.cones.product import Product
from mlxcone.kkt import low_rank, splitting_factor
from mlxcone.kkt.splitting_factor import Explicit, Factor, Pencil
from mlxcone.methods import admm
from mlxcone.methods.admm import Fused, State
from mlxcone.methods.anderson import Memory
from mlxcone.program import residuals
from mlxcone.program.equilibrate import Scaling
from mlxcone.program.problem import Program
from mlxcone.program.residuals import Residuals, dot, norm
from mlxcone.program.sparse import SparseProgram
from mlxcone.report import Report
from mlxcone.settings import Settings

_SCALE_BAND = 5.0  # rebalance when the scale is off by more (OSQP, section 5.2)
_PLAIN = 50  # float32 iterations before Anderson acceleration sets in
_SOONER = 8  # times as often, and from the first, where that is cheap beside a projection
_ROOM = 10.0  # a drift must exclude points this much larger than the iterate to be worth a try


Point = tuple[mx.array, mx.array, mx.array]  # x, y and s


class Splitting(NamedTuple):
    """Lanes under splitting, all float64.

    x (B, n), w (B, m), scale (B, 1), the drift of x and y over the last chunk, iterations (B,), and
    whether the drift resembles a certificate (B,).
    """

    x: mx.array
    w: mx.array
    scale: mx.array
    dx: mx.array
    dy: mx.array
    iterations: mx.array
    drifts: mx.array


def cold(program: Program | SparseProgram, cones: Product, settings: Settings) -> Splitting:
    """Every lane at zero."""
    total, dtype = program.lanes, program.q.dtype
    x = mx.zeros((total, program.n), dtype=dtype)
    w = mx.zeros((total, program.m), dtype=dtype)
    scale = mx.full((total, 1), admm.first_scale(settings, cones), dtype=dtype)
    count = mx.zeros((total,), dtype=mx.int32)
    return Splitting(x, w, scale, x, w, count, count > 0)


def warm(
    program: Program | SparseProgram,
    cones: Product,
    settings: Settings,
    x: mx.array,
    y: mx.array,
    s: mx.array,
) -> Splitting:
    """Every lane at an equilibrated (x, y, s)."""
    work = cold(program, cones, settings)
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


class _Live(NamedTuple):
    """Lanes still iterated.

    Their places in the batch; in the loop's dtype the program, scaling, operator, state, Anderson
    memory, and (x, y, s) at the last check; scales (B, 1) in float64.
    """

    places: mx.array
    program: Program
    scaling: Scaling
    op: admm.Operator
    state: State
    memory: Memory | None
    now: Point | None
    scale: mx.array

    def take(self, keep: mx.array) -> _Live:
        """Some of them."""
        program, memory = self.program.take(keep), self.memory
        return _Live(
            self.places[keep],
            program,
            self.scaling.take(keep),
            self.op.take(keep, program),
            lanes.take(self.state, keep),
            None if memory is None else lanes.take(memory, keep),
            None if self.now is None else _some(self.now, keep),
            self.scale[keep],
        )


class _Check(NamedTuple):
    """What a chunk of iterations led to.

    State, memory, (x, y, s) and its change, residuals, and per lane, (B,), whether it drifts and
    whether it goes on.
    """

    state: State
    memory: Memory | None
    now: Point
    dx: mx.array
    dy: mx.array
    result: Residuals
    drifts: mx.array
    stays: mx.array


def _chunk(
    cones: Product,
    settings: Settings,
    handover: float,
    drift_ends: bool,
    interval: int,
    steps: int,
    program: Program,
    scaling: Scaling,
    op: admm.Operator,
    start: State,
    memory: Memory | None,
    before: Point | None,
) -> _Check:
    """Some iterations, and what came of them; a lane that is no longer finite stays put."""
    state, memory = admm.advance(cones, op, start, memory, steps, interval)
    now = admm.split(cones, op.weights, state)
    result = residuals.measure(program, scaling, *now, settings.eps_abs, settings.eps_rel)
    sane = mx.isfinite(result.relative)
    if before is None:
        dx, dy, drifts = mx.zeros_like(now[0]), mx.zeros_like(now[1]), mx.zeros_like(sane)
    else:
        dx, dy = now[0] - before[0], now[1] - before[1]
        drifts = mx.logical_and(_drifts(program, cones, now[0], now[1], dx, dy), sane)
    ends = mx.logical_or(result.relative <= handover, result.violation <= 1.0)
    ends = mx.logical_or(ends, drifts) if drift_ends else ends
    stays = mx.logical_and(sane, mx.logical_not(ends))
    state = State(
        *(mx.where(sane[:, None], new, old) for new, old in zip(state, start, strict=True))
    )
    return _Check(state, memory, now, dx, dy, result, drifts, stays)


def _some(point: Point, keep: mx.array) -> Point:
    """Some lanes of a point."""
    x, y, s = (v[keep] for v in point)
    return x, y, s


class Loop:
    """Splitting on some lanes in one dtype, until each is ready, drifts, or the budget is spent.

    Args:
        program (Program): equilibrated, float64, the lanes to iterate.
        scaling (Scaling): its factors.
        cones (Product): the cones.
        settings (Settings): relaxation, cadence, acceleration.
        dtype (mx.Dtype): arithmetic of the iteration.
        device (mx.Device): where float32 iterations run; float64 exists on the CPU only.
        handover (float): relative residual at which a lane stops; one that meets eps stops anyway.
        drift_ends (bool): whether one whose drift resembles a certificate stops, too.
        calls (Calls): how its functions are called.

    ``unready`` are the lanes that the last run left because of its budget.
    """

    def __init__(
        self,
        program: Program,
        scaling: Scaling,
        cones: Product,
        settings: Settings,
        dtype: mx.Dtype,
        device: mx.Device,
        handover: float,
        drift_ends: bool,
        calls: Calls,
    ) -> None:
        self.program, self.scaling, self.calls = program, scaling, calls
        self.unready: list[int] = []
        self.cones, self.settings, self.dtype = cones, settings, dtype
        self.device = device if dtype == mx.float32 else CPU
        self.handover, self.drift_ends = handover, drift_ends
        self.costly = cones.costly
        self.unit = admm.unit_weights(cones)
        self.fuses = dtype == mx.float32 and Fused.fits(program, cones)
        self._pencil: Pencil | None = None

    def run(
        self, work: Splitting, first: Factor | None, budget: int, report: Report, deadline: float
    ) -> Splitting:
        """Iterate.

        Args:
            work (Splitting): state of each lane.
            first: the inverse at the lanes' present scales, if there is one.
            budget (int): iterations.
            report (Report): where progress goes.
            deadline (float): value of ``time.monotonic()`` at which to stop.
        """
        live = self._enter(work, first)
        left, done = list(range(work.x.shape[0])), 0
        while left and done < budget and time.monotonic() < deadline:
            steps = min(self.settings.check_interval, budget - done)
            done += steps
            # Lanes that are easy are there before a memory helps.
            accelerated = self.dtype == mx.float64 or done > _PLAIN or self.costly
            memory = live.memory if accelerated else None
            interval = self.settings.acceleration_interval // (_SOONER if self.costly else 1)
            fixed = self.cones, self.settings, self.handover, self.drift_ends
            if self.device != CPU:
                # Of a graph across devices CUDA may lose the stream of a buffer that is handed on.
                mx.eval(live)
            with mx.stream(self.device):
                check: _Check = self.calls.call(
                    _chunk,
                    (*fixed, max(interval, 1), steps),
                    live.program,
                    live.scaling,
                    live.op,
                    live.state,
                    memory,
                    live.now,
                )
            live = live._replace(
                state=check.state,
                memory=check.memory if accelerated else live.memory,
                now=check.now,
            )
            mx.eval(check)
            if report.watchers:
                places: Any = live.places.tolist()
                report.check(done, [places[k] for k in left], check.result, left)
            keeps = set(lanes.where_true(check.stays))
            gone = [k for k in left if k not in keeps]
            left = [k for k in left if k in keeps]
            over = not left or done >= budget or time.monotonic() >= deadline
            work = self._record(work, live, check, gone + left if over else gone, done)
            if over:
                at: Any = live.places.tolist()
                self.unready = [at[k] for k in left]
                break
            width = live.places.shape[0]
            keep = lanes.bucket(left, width)
            if keep.shape[0] < width:
                live, left = live.take(keep), list(range(len(left)))
                check = check._replace(now=live.now, result=lanes.take(check.result, keep))
            if self.settings.adaptive_scale:
                live = self._rebalance(live, check, left)
        return work

    def _enter(self, work: Splitting, first: Factor | None) -> _Live:
        """Every lane, from where ``work`` left it."""
        state = State(work.x.astype(self.dtype), work.w.astype(self.dtype))
        lookback = self.settings.acceleration_lookback
        flat = mx.concatenate([state.x, state.w], axis=1)
        program = self.program.astype(self.dtype)
        factor = first or self._factor(work.scale)
        return _Live(
            mx.arange(program.lanes),
            program,
            self.scaling.astype(self.dtype),
            self._operator(program, factor, work.scale),
            state,
            Memory.empty(flat, lookback) if lookback else None,
            None,
            work.scale,
        )

    def _factor(self, scale: mx.array) -> Factor:
        """In float64, whatever the loop's dtype."""
        rho_x = self.settings.rho_x
        shared = self.program.shared
        same = shared and bool(mx.all(scale == scale[0]).item())
        if same or not shared or low_rank.fits(self.program):
            some = scale[:1] if same else scale
            return splitting_factor.factor(self.program, some, self.unit, rho_x)
        self._pencil = self._pencil or Pencil.of(self.program, self.unit, rho_x)
        return self._pencil.at(scale)

    def _operator(self, program: Program, factor: Factor, scale: mx.array) -> admm.Operator:
        factor, weights = factor.astype(self.dtype), (scale * self.unit).astype(self.dtype)
        alpha, fused = self.settings.alpha, None
        # In float64 the step in its own terms is the more exact one.
        if self.fuses and isinstance(factor, Explicit):
            rho_x = self.settings.rho_x
            fused = Fused.of(program, self.cones, factor.inverse, weights, rho_x, alpha)
        return admm.Operator(program, factor, weights, alpha, fused)

    def _record(
        self, work: Splitting, live: _Live, check: _Check, which: list[int], done: int
    ) -> Splitting:
        """Write down where some of the live lanes are."""
        if not which:
            return work
        here = None if len(which) == work.x.shape[0] else mx.array(which)
        places = None if here is None else live.places[here]
        wide = work.x.dtype
        new = Splitting(
            lanes.pick(check.state.x, here).astype(wide),
            lanes.pick(check.state.w, here).astype(wide),
            lanes.pick(live.scale, here),
            lanes.pick(check.dx, here).astype(wide),
            lanes.pick(check.dy, here).astype(wide),
            lanes.pick(work.iterations, places) + done,
            lanes.pick(check.drifts, here),
        )
        return Splitting(*(lanes.put(a, places, v) for a, v in zip(work, new, strict=True)))

    def _rebalance(self, live: _Live, check: _Check, left: list[int]) -> _Live:
        """New scales for the lanes whose residuals are out of balance by more than the band."""
        result, wide = check.result, live.scale.dtype
        relative = (result.primal_relative, result.dual_relative)
        wanted = admm.rebalanced(live.scale, *(r[:, None].astype(wide) for r in relative))
        off = mx.maximum(wanted / live.scale, live.scale / wanted)[:, 0] > _SCALE_BAND
        changed = sorted(set(lanes.where_true(off)) & set(left))
        return live if not changed else self._rescale(live, check, wanted, changed)

    def _renewed(self, live: _Live, scale: mx.array, changed: list[int]) -> admm.Operator:
        """The operator with that of some lanes, which have factors of their own, made anew."""
        some = lanes.bucket(changed, scale.shape[0])
        every = some.shape[0] == scale.shape[0]
        at, here = (scale, live.program) if every else (scale[some], live.program.take(some))
        program = self.program.take(live.places if every else live.places[some])
        factor = splitting_factor.explicit(program, at, self.unit, self.settings.rho_x)
        new = self._operator(here, factor, at)
        return new if every else live.op.put(some, new)

    def _rescale(self, live: _Live, check: _Check, wanted: mx.array, changed: list[int]) -> _Live:
        here = mx.array(changed)
        mask = lanes.put(mx.zeros((live.scale.shape[0], 1), dtype=mx.bool_), here, mx.array(True))
        scale = mx.where(mask, wanted, live.scale)
        if self.program.shared or not isinstance(live.op.factor, Explicit):
            op = self._operator(live.program, self._factor(scale), scale)
        else:
            op = self._renewed(live, scale, changed)
        moved = admm.join(op.weights, *check.now)
        # Lanes that keep their scale keep their state and memory, to the last bit.
        state = State(*(mx.where(mask, a, b) for a, b in zip(moved, live.state, strict=True)))
        memory = None if live.memory is None else live.memory.forget(mask)
        return live._replace(op=op, state=state, memory=memory, scale=scale)
