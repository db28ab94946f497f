"""The ladder, per lane: splitting, certificates, Newton, multipliers, more splitting, status."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import mlx.core as mx

from mlxcone.backend import lanes
from mlxcone.backend.devices import on_cpu
from mlxcone.backend.repeated import EAGER, Calls, Repeated
from mlxcone.cones.product import Product
from mlxcone.kkt import splitting_factor
from mlxcone.kkt.splitting_factor import Factor
from mlxcone.methods import admm, certificates, loop, outcomes
from mlxcone.methods.admm import Fused
from mlxcone.methods.certificates import Certificate
from mlxcone.methods.loop import Loop, Splitting
from mlxcone.methods.multipliers import BRIEF, THOROUGH, Effort
from mlxcone.methods.outcomes import Outcome
from mlxcone.methods.refine import Refinement, met
from mlxcone.program import equilibrate, residuals
from mlxcone.program.equilibrate import Scaling
from mlxcone.program.problem import Program, unusable
from mlxcone.program.residuals import Residuals
from mlxcone.report import Report
from mlxcone.settings import Settings
from mlxcone.status import Status

_FIRST_BUDGET = 400  # float32 iterations before refinement takes over whatever is left
_COSTLY_BUDGET = 150  # the same where projections take longer than a step of interior points
_SHORT = 25, 50  # iterations before the first try of Newton's method, and before the second
_FIRST_STEPS = 8  # Newton steps of these tries, and of the one after them
_TRIES = 2  # in float32, after the first
_SOONER = 5.0  # factor of the handover where projections are costly
_TIGHTER = 0.05  # each further try begins at a residual smaller by this
_FEW_MULTIPLIERS = 40  # rounds where programs are so small that they take less than other steps
_CERTIFICATE_ITERS = 60
_DRIFT = 1e-3  # of a ray that is worth a look for a certificate, beside its value
_HOPELESS = 1e4  # a warm start with residuals this much larger than zero's is none


class Setup(NamedTuple):
    """What depends on P and A alone: equilibrated matrices and the splitting's first factor."""

    matrices: equilibrate.Setup
    factor: Factor


@on_cpu
def prepare(program: Program, cones: Product, settings: Settings) -> Setup:
    """Equilibrate and factor once for many q and b; q and b of ``program`` do not matter."""
    matrices = equilibrate.setup(program, cones, settings.normalize, not settings.fixed_iters)
    scaled = matrices.program(program.q, program.b)
    scale = mx.full((1, 1), admm.first_scale(settings, cones), dtype=program.q.dtype)
    unit = admm.unit_weights(cones)
    return Setup(matrices, splitting_factor.factor(scaled, scale, unit, settings.rho_x))


class Ladder:
    """One solve of one batch: each method is a rung, each lane leaves with its verdict."""

    def __init__(
        self,
        program: Program,
        setup: Setup | None,
        cones: Product,
        settings: Settings,
        device: mx.Device,
        precision: float,
        calls: Calls,
        report: Report,
    ) -> None:
        self.device, self.precision, self.calls = device, precision, calls
        self.cones, self.settings, self.report = cones, settings, report
        limit = settings.time_limit_secs
        self.deadline = time.monotonic() + limit if limit else float("inf")
        self.setup = setup or prepare(program, cones, settings)
        self.scaling, self.program = equilibrate.normalize(
            self.setup.matrices, program, settings.normalize
        )
        self.small = Fused.fits(self.program, cones)
        self.status: list[Status | None] = [None] * program.lanes
        self.drifting: list[int] = []
        self.unready: set[int] = set()  # lanes that the last splitting left for its budget
        self.certificates: dict[int, tuple[Status, Certificate, int]] = {}

    @property
    def central(self) -> bool:
        """Whether interior points look for rays: others need only look at lanes that drift."""
        return self.settings.refine and self.settings.interior_iters > 0 and self.cones.rows > 0

    @property
    def _tolerance(self) -> float:
        """What a solution may be off by: a certificate that rules out no such is a last resort."""
        return max(self.settings.eps_abs, self.settings.eps_rel, 2.0 * self.precision)

    def open_lanes(self) -> list[int]:
        """Lanes without a verdict."""
        return [lane for lane, status in enumerate(self.status) if status is None]

    def _chosen(self, some: list[int] | None) -> list[int]:
        """Some lanes, or all that are open."""
        return self.open_lanes() if some is None else some

    def start(self, warm: tuple[mx.array, mx.array, mx.array] | None) -> Splitting:
        """Zero, or a warm start where it is finite and not far worse than zero."""
        if warm is None:
            return loop.cold(self.program, self.cones, self.settings)
        finite = mx.all(mx.isfinite(mx.concatenate([*warm], axis=1)), axis=1, keepdims=True)
        start = [mx.where(finite, v, 0.0) for v in self.scaling.scale(*warm)]
        zero = [mx.zeros_like(v) for v in start]
        helps = self._distance(*start) <= _HOPELESS * self._distance(*zero) + _HOPELESS
        x, y, s = (mx.where(helps, v, 0.0) for v in start)
        return loop.warm(self.program, self.cones, self.settings, x, y, s)

    def _distance(self, x: mx.array, y: mx.array, s: mx.array) -> mx.array:
        """Largest absolute residual of an equilibrated point, (B, 1)."""
        result = residuals.measure(self.program, self.scaling.neutral(), x, y, s, 0.0, 1.0)
        return mx.maximum(result.primal, result.dual)[:, None]

    def _split(
        self,
        work: Splitting,
        dtype: mx.Dtype,
        handover: float,
        drift_ends: bool = True,
        some: list[int] | None = None,
        at_most: int | None = None,
    ) -> Splitting:
        """Splitting on ``some``, or all, of the open lanes that have iterations left.

        In float32 a lane has a first budget in all, in float64 five times what it has spent.
        """
        spent: Any = work.iterations.tolist()
        most, self.unready = self.settings.max_iters, set()
        budget = min(_FIRST_BUDGET if self.cones.symmetric else _COSTLY_BUDGET, most)
        limit = budget if dtype == mx.float32 else most
        which = [k for k in self._chosen(some) if spent[k] < limit]
        if not which:
            return work
        least, largest = min(spent[k] for k in which), max(spent[k] for k in which)
        wanted = budget - least if dtype == mx.float32 else 4 * max(budget, largest)
        chosen = lanes.some(which, self.program.lanes)
        local = Loop(
            self.program if chosen is None else self.program.take(chosen),
            self.scaling if chosen is None else self.scaling.take(chosen),
            self.cones,
            self.settings,
            dtype,
            self.device,
            handover,
            drift_ends,
            self.calls,
        )
        part = lanes.take(work, chosen)
        first_scale = admm.first_scale(self.settings, self.cones)
        fresh = bool(mx.all(part.scale == first_scale).item())
        first = self.setup.factor if fresh else None
        first = first if first is None or chosen is None else first.take(chosen)
        steps = min(wanted, most - largest, most if at_most is None else at_most)
        report = self.report.of(chosen)
        part = local.run(part, first, steps, report, self.deadline)
        work = Splitting(*(lanes.put(a, chosen, v) for a, v in zip(work, part, strict=True)))
        drifting: Any = work.drifts.tolist()
        self.drifting = [k for k in which if drifting[k]]
        # Lanes beyond these are padding.
        self.unready = {which[k] for k in local.unready if k < len(which)}
        return work

    def certify(
        self, infeasible: list[int], unbounded: list[int], dx: mx.array, dy: mx.array
    ) -> None:
        """Look for certificates along dy and dx; lanes that have a verified one leave."""
        kinds = (
            (Status.INFEASIBLE, certificates.infeasible, dy, infeasible),
            (Status.UNBOUNDED, certificates.unbounded, dx, unbounded),
        )
        for status, find, direction, some in kinds:
            which = [lane for lane in some if self.status[lane] is None]
            if not which:
                continue
            self.report.rung("certificate", which)
            chosen = lanes.bucket(which, self.program.lanes)
            found = find(
                self.program.take(chosen),
                self.scaling.take(chosen),
                self.cones,
                direction[chosen],
                self.settings.eps_infeas,
                _CERTIFICATE_ITERS,
                self.deadline,
            )
            valid: Any = (found.violation <= 1.0).tolist()
            decisive: Any = (found.margin > self._tolerance).tolist()
            for position, lane in enumerate(which):
                if valid[position]:
                    self.certificates[lane] = (status, found, position)
                    if decisive[position]:
                        self.status[lane] = status

    def _certify_drifting(self, work: Splitting) -> None:
        """Certificates along the last steps of the lanes that drift and have no solution yet."""
        # Where projections are costly, rays are sooner found on the central path.
        if self.cones.symmetric or not self.central:
            self.certify(self.drifting, self.drifting, work.dx, work.dy)

    def newton(self, refinement: Refinement, steps: int, some: list[int] | None = None) -> None:
        """Newton on some open lanes, or all of them."""
        which = self._chosen(some)
        if which and self.settings.refine:
            self.report.rung("newton", which)
            refinement.newton(which, steps)
        self._settle(refinement)

    def interior(self, refinement: Refinement, some: list[int]) -> None:
        """Interior-point steps on the open ones of some lanes; certificates for what diverges."""
        which = [lane for lane in some if self.status[lane] is None]
        if not which or not self.central:
            return
        self.report.rung("interior", which)
        chosen, rays = refinement.interior(which, self.settings.interior_iters)
        self._settle(refinement, 2.0 * self.precision)
        dx = lanes.put(mx.zeros_like(self.program.q), chosen, rays.x)
        dy = lanes.put(mx.zeros_like(self.program.b), chosen, rays.y)
        drifts: Any = (rays.infeasible.tolist(), rays.unbounded.tolist())
        near = [
            [lane for lane, drift in zip(which, kind, strict=False) if drift < _DRIFT]
            for kind in drifts
        ]
        self.certify(near[0], near[1], dx, dy)
        # Where interior points end, slower methods are not known to do better. Far out, though, a
        # point may meet a relative tolerance for its size alone: certificates come first.
        self._settle(refinement, self.settings.loose, Status.SOLVED_INACCURATE, which)

    def multipliers(self, refinement: Refinement, most: int, effort: Effort = THOROUGH) -> None:
        """Proximal multipliers on every open lane."""
        which = self.open_lanes()
        if which and self.settings.refine:
            self.report.rung("multipliers", which)
            refinement.multipliers(which, min(most, self.settings.multiplier_iters), effort)
            # What is left may be as good as its data: rounded numbers often fit no better.
            self._settle(refinement, 2.0 * self.precision)

    def _settle(
        self,
        refinement: Refinement,
        at_least: float = 0.0,
        status: Status = Status.SOLVED,
        some: list[int] | None = None,
    ) -> None:
        """A verdict for those of some lanes, or of all open ones, that meet a tolerance."""
        good = set(refinement.solved(at_least))
        for lane in self.open_lanes() if some is None else some:
            if self.status[lane] is None and lane in good:
                self.status[lane] = status

    def run(self, warm: tuple[mx.array, mx.array, mx.array] | None) -> Outcome:
        """Climb."""
        handover = self.settings.handover if self.settings.refine else 0.0
        handover *= 1.0 if self.cones.symmetric else _SOONER
        work, best = self._first_tries(self.start(warm), handover)
        dtype, tries, drift_ends = mx.float32, _TRIES if self.cones.symmetric else 1, True
        while self.open_lanes() and time.monotonic() < self.deadline:
            handover *= _TIGHTER
            before = work.iterations
            work = self._split(work, dtype, handover, drift_ends)
            if not drift_ends and bool(mx.all(work.iterations == before).item()):
                break
            again = self._refinement(work)
            self.newton(again, self.settings.newton_iters)
            self._certify_drifting(work)
            tries -= 1
            if dtype == mx.float32:
                # Steps of interior points cost more.
                if not tries and self.small:
                    self.multipliers(again, _FEW_MULTIPLIERS)
                self.interior(again, self.drifting if tries else self.open_lanes())
            else:
                self.multipliers(again, self.settings.multiplier_iters)
            best.adopt(again)
            if not self.central:
                left = self.open_lanes()
                self.certify(left, left, work.dx, work.dy)
            # Stubborn lanes: more splitting, now in float64, and refinement from there. A drift
            # that led to no certificate there may do so after many more iterations.
            drift_ends = dtype == mx.float32
            dtype = mx.float32 if tries > 0 else mx.float64
        best.finish()
        result = best.measure()
        self._conclude(best, result)
        return self._outcome(work, best, result)

    def _first_tries(self, work: Splitting, handover: float) -> tuple[Splitting, Refinement]:
        """Splitting and Newton's method, from which most lanes need no more.

        Newton's steps are often cheaper than iterations, so they do not wait until lanes are ready,
        and multipliers cheaper than the many iterations that the last lanes need.
        """
        settings = self.settings
        sooner = _SHORT if settings.refine and settings.newton_iters else ()
        early = bool(sooner) and self.small and settings.multiplier_iters > 0
        which, best = self.open_lanes(), None
        for at_most in sooner if early else (*sooner, settings.max_iters):
            work = self._split(work, mx.float32, handover, some=which, at_most=at_most)
            again = self._refinement(work, which)
            self.newton(again, min(_FIRST_STEPS, settings.newton_iters), which)
            self._certify_drifting(work)
            self.interior(again, self.drifting)
            best = again if best is None else best.adopt(again)
            which = sorted(self.unready.intersection(self.open_lanes()))
            if not which:
                break
        assert best is not None
        if early and self.open_lanes():
            again = self._refinement(work)
            self.multipliers(again, _FEW_MULTIPLIERS, BRIEF)
            best.adopt(again)
        return work, best

    def _refinement(self, work: Splitting, some: list[int] | None = None) -> Refinement:
        weights = admm.row_weights(work.scale, self.cones)
        x, y, s = admm.split(self.cones, weights, admm.State(work.x, work.w))
        which = self._chosen(some)
        how = self.settings, x, y, s, which, self.precision, self.deadline, self.calls
        return Refinement(self.program, self.scaling, self.cones, *how)

    def _conclude(self, refinement: Refinement, result: Residuals) -> None:
        # The last step may have been the one that was missing, or have shown what was overlooked.
        settings, rounded = self.settings, 2.0 * self.precision
        verdicts = mx.stack([met(result, settings, a) for a in (0.0, rounded, settings.loose)])
        found: Any = verdicts.tolist()
        solved, kept, loose = found
        for lane in refinement.cleaned:
            if self.status[lane] == Status.SOLVED and not kept[lane]:
                self.status[lane] = None
        for lane, status in enumerate(self.status):
            if status in (None, Status.SOLVED_INACCURATE) and solved[lane]:
                self.status[lane] = Status.SOLVED
            elif status is None and loose[lane]:
                self.status[lane] = Status.SOLVED_INACCURATE
        for lane in set(self.open_lanes()) & set(self.certificates):
            self.status[lane] = self.certificates[lane][0]
        late = time.monotonic() > self.deadline
        for lane in self.open_lanes():
            self.status[lane] = Status.INTERRUPTED if late else Status.INDETERMINATE

    def _outcome(self, work: Splitting, refinement: Refinement, result: Residuals) -> Outcome:
        kept = refinement.kept
        x, y, s = self.scaling.unscale(kept.x, kept.y, kept.s)
        for lane, (status, found, position) in self.certificates.items():
            if self.status[lane] is status:
                one, ray = mx.array([lane]), (found.x, found.y, found.s)
                pairs = zip((x, y, s), ray, strict=True)
                x, y, s = (lanes.put(v, one, r[position][None]) for v, r in pairs)
        codes = [int(status or Status.INDETERMINATE) for status in self.status]
        total = self.program.lanes
        d, e = (mx.broadcast_to(a, (total, a.shape[1])) for a in self.scaling[:2])
        outcome = Outcome(
            x,
            y,
            s,
            mx.array(codes, dtype=mx.int32),
            work.iterations,
            kept.factorizations,
            result.primal,
            result.dual,
            result.gap,
            Scaling(d, e, self.scaling.primal, self.scaling.dual),
        )
        mx.eval(outcome)
        return outcome


@on_cpu
def run(
    program: Program,
    cones: Product,
    settings: Settings,
    device: mx.Device,
    warm: tuple[mx.array, mx.array, mx.array] | None = None,
    setup: Setup | None = None,
    precision: float = 0.0,
    repeated: Repeated | None = None,
) -> Outcome:
    """Solve every lane of a program.

    Args:
        program (Program): float64, original units, rows in internal order.
        cones (Product): its cones.
        settings (Settings): how.
        device (mx.Device): where the float32 iterations run; all else runs on the CPU.
        warm (tuple): x (B, n), y and s (B, m) to start from; lanes with NaN start cold.
        setup (Setup): of `prepare` on the same P, A and settings, if there is one.
        precision (float): relative rounding of the data; a lane that gets no better than twice
            that counts as solved.
        repeated (Repeated): the compiled functions of this kind of program, if there are any.

    Returns:
        Outcome: with a status for each lane; never raises for a lane without a solution.
    """
    total, report = program.lanes, Report.start(settings.verbose)
    report.begin(total, program.n, program.m, cones.cones)
    usable = lanes.where_true(mx.logical_not(unusable(program, precision)))
    how = settings, device, precision, repeated
    if len(usable) == total:
        outcome = _climb(program, setup, cones, warm, report, *how)
        report.end(outcome.status)
        return outcome
    # The others leave first: what is left computes what it would compute without them.
    outcome = outcomes.failed(program)
    if usable:
        chosen = lanes.bucket(usable, total)
        part = program.take(chosen)
        start = None if warm is None else (warm[0][chosen], warm[1][chosen], warm[2][chosen])
        found = _climb(part, None, cones, start, report.of(chosen), *how)
        if program.shared:
            d, e = (mx.broadcast_to(a[:1], (total, a.shape[1])) for a in found.scaling[:2])
            outcome = outcome._replace(scaling=outcome.scaling._replace(d=d, e=e))
        outcome = lanes.put_tree(outcome, chosen, found)
    mx.eval(outcome)
    report.end(outcome.status)
    return outcome


def _climb(
    program: Program,
    setup: Setup | None,
    cones: Product,
    warm: tuple[mx.array, mx.array, mx.array] | None,
    report: Report,
    settings: Settings,
    device: mx.Device,
    precision: float,
    repeated: Repeated | None,
) -> Outcome:
    """Solve lanes whose data are finite."""
    how = program, setup, cones, settings, device, precision
    if repeated is None:
        return Ladder(*how, EAGER, report).run(warm)
    with repeated.solve((program.lanes, program.n, program.m)) as calls:
        return Ladder(*how, calls, report).run(warm)
