"""Refinement in float64 on the CPU stream: semismooth Newton on F(x, z) = 0, then multipliers."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import mlx.core as mx

from mlxcone.backend import lanes
from mlxcone.backend.repeated import Calls
from mlxcone.cones.product import Product
from mlxcone.kkt import reduced as kkt
from mlxcone.methods import interior, multipliers
from mlxcone.methods.multipliers import Effort
from mlxcone.program import residual_map, residuals
from mlxcone.program.equilibrate import Scaling
from mlxcone.program.problem import Program
from mlxcone.program.residuals import Residuals
from mlxcone.settings import Settings

_STALL = 3  # Newton steps without halving the violation before a lane gives up
_ROUNDING = 2e-16  # of float64
_FINE = 1e-5  # violation below which nothing is left to gain,
_BESIDE = 1e-2  # or residual beside the rounding of the data
_NOTICED = 0.1  # share of eps_abs that rounding may take


def newton_step(
    program: Program, cones: Product, x: mx.array, z: mx.array, y: mx.array, atoms: Any
) -> tuple[mx.array, mx.array]:
    """X and z after one full Newton step on F(x, z) = 0, with y = Pi(z) and D there."""
    factor = kkt.factor(program, cones, atoms)
    system = kkt.Jacobian(program, cones, atoms, factor, sweeps=1)
    dx, dz = system.solve(*residual_map.at(program, x, z, y))
    return x - dx, z - dz


def met(result: Residuals, settings: Settings, at_least: float) -> mx.array:
    """Which lanes (B,) meet the tolerances, or ``at_least`` if that is more than both of them."""
    meets = result.violation <= 1.0
    if at_least < max(settings.eps_abs, settings.eps_rel):
        return meets
    return mx.logical_or(meets, result.accuracy <= at_least)


class Place(NamedTuple):
    """Where lanes are: x (B, n), z, y = Pi(z) and s (B, m), D there, the violation (B,)."""

    x: mx.array
    z: mx.array
    y: mx.array
    atoms: Any
    violation: mx.array


class Kept(NamedTuple):
    """The best (x, y, s) of each lane, its violation, and how many factors were made."""

    x: mx.array
    y: mx.array
    s: mx.array
    violation: mx.array
    factorizations: mx.array

    def improved(self, x: mx.array, y: mx.array, s: mx.array, violation: mx.array) -> Kept:
        """With what is better than the best so far."""
        better = violation < self.violation  # False for NaN
        some = better[:, None]
        return self._replace(
            x=mx.where(some, x, self.x),
            y=mx.where(some, y, self.y),
            s=mx.where(some, s, self.s),
            violation=mx.where(better, violation, self.violation),
        )

    def counted(self, factorizations: int | mx.array) -> Kept:
        """With so many more factors."""
        return self._replace(factorizations=self.factorizations + factorizations)


def _measure(
    cones: Product,
    settings: Settings,
    program: Program,
    scaling: Scaling,
    x: mx.array,
    y: mx.array,
    s: mx.array,
) -> Residuals:
    """Residuals of a point, in original units."""
    return residuals.measure(program, scaling, x, y, s, settings.eps_abs, settings.eps_rel)


def _judge(*point: Any) -> mx.array:
    """The violation of what `_measure` takes, infinite for NaN."""
    violation = _measure(*point).violation
    return mx.where(mx.isnan(violation), mx.inf, violation)


def _place(
    cones: Product, settings: Settings, program: Program, scaling: Scaling, x: mx.array, z: mx.array
) -> Place:
    """Where x and z are."""
    y, atoms = cones.linearize(z)
    return Place(x, z, y, atoms, _judge(cones, settings, program, scaling, x, y, y - z))


def _advance(
    cones: Product, settings: Settings, program: Program, scaling: Scaling, at: Place, kept: Kept
) -> tuple[Place, Kept]:
    """One Newton step."""
    x, z = newton_step(program, cones, at.x, at.z, at.y, at.atoms)
    at = _place(cones, settings, program, scaling, x, z)
    return at, kept.counted(1).improved(x, at.y, at.y - z, at.violation)


class Refinement:
    """Lanes under refinement: the best (x, y, s) of each, and its violation.

    y = Pi(z) and s = y - z for Newton's steps; what interior points end with is not as exactly
    complementary, and kept as it is.

    Args:
        program (Program): equilibrated, float64.
        scaling (Scaling): its factors.
        cones (Product): the cones.
        settings (Settings): tolerances and budgets.
        x, y, s (mx.array): starting iterate, equilibrated, float64.
        which (list): lanes that are looked at; the others count as worse than anything.
        precision (float): relative rounding of the data.
        deadline (float): value of ``time.monotonic()`` at which to stop.
        calls (Calls): how its functions are called.
    """

    def __init__(
        self,
        program: Program,
        scaling: Scaling,
        cones: Product,
        settings: Settings,
        x: mx.array,
        y: mx.array,
        s: mx.array,
        which: list[int],
        precision: float,
        deadline: float,
        calls: Calls,
    ) -> None:
        self.program, self.scaling, self.cones = program, scaling, cones
        self.settings, self.deadline, self.calls = settings, deadline, calls
        nothing = mx.zeros((program.lanes,), dtype=mx.int32)
        self.kept = Kept(x, y, s, mx.full(nothing.shape, mx.inf, dtype=x.dtype), nothing)
        chosen = lanes.some(which, program.lanes)
        place = self._call(_place, *self._taken(chosen), *lanes.take((x, y - s), chosen))
        self._start: tuple[list[int], Place] | None = (which, place)
        kept = lanes.take(self.kept, chosen)
        kept = kept._replace(y=place.y, s=place.y - place.z, violation=place.violation)
        self.kept = kept if chosen is None else lanes.put_tree(self.kept, chosen, kept)
        tolerance = max(settings.eps_abs, settings.eps_rel, 1e-300)
        self.fine = max(_FINE, _BESIDE * precision / tolerance)
        self.cleaned: list[int] = []  # lanes whose s was replaced in the end
        mx.eval(place, self.kept)

    def _call(self, function: Any, *trees: Any) -> Any:
        return self.calls.call(function, (self.cones, self.settings), *trees)

    def _taken(self, chosen: mx.array | None) -> tuple[Program, Scaling]:
        """Program and scaling of some lanes."""
        if chosen is None:
            return self.program, self.scaling
        return self.program.take(chosen), self.scaling.take(chosen)

    def measure(self) -> Residuals:
        """Residuals of the best points, in original units."""
        kept = self.kept
        return self._call(_measure, self.program, self.scaling, kept.x, kept.y, kept.s)

    def solved(self, at_least: float = 0.0) -> list[int]:
        """Lanes that meet the tolerances, or ``at_least`` where that is larger."""
        if at_least <= min(self.settings.eps_abs, self.settings.eps_rel):
            return lanes.where_true(self.kept.violation <= 1.0)
        return lanes.where_true(met(self.measure(), self.settings, at_least))

    def adopt(self, other: Refinement) -> Refinement:
        """This one, with the lanes in which another of the same program did better."""
        kept = self.kept.improved(*other.kept[:4])
        self.kept, self._start = kept.counted(other.kept.factorizations), None
        return self

    def newton(self, which: list[int], steps: int, aim: float = 1.0) -> None:
        """Full Newton steps on some lanes; each stops when its violation is at most ``aim``."""
        if not which:
            return
        total = self.program.lanes
        chosen = lanes.some(which, total)
        program, scaling = self._taken(chosen)
        kept = lanes.take(self.kept, chosen)
        if self._start is not None and self._start[0] == which:
            at = self._start[1]
        else:
            at = self._call(_place, program, scaling, kept.x, kept.y - kept.s)
        reference = kept.violation
        idle = mx.zeros((kept.x.shape[0],), dtype=mx.int32)
        self._start = None
        for _ in range(steps):
            at, kept = self._call(_advance, program, scaling, at, kept)
            self.kept = kept if chosen is None else lanes.put_tree(self.kept, chosen, kept)
            progress = at.violation < 0.5 * reference
            reference = mx.where(progress, at.violation, reference)
            idle = mx.where(progress, 0, idle + 1)
            mx.eval(at, idle, self.kept)
            left = lanes.where_true((at.violation > aim) & (idle < _STALL))
            if not left or time.monotonic() > self.deadline:
                return
            keep = lanes.bucket(left, at.x.shape[0])
            if keep.shape[0] < at.x.shape[0]:
                chosen = keep if chosen is None else chosen[keep]
                program, scaling = program.take(keep), scaling.take(keep)
                at, kept = lanes.take_tree(at, keep), lanes.take(kept, keep)
                reference, idle = reference[keep], idle[keep]

    def interior(self, which: list[int], most: int) -> tuple[mx.array, interior.Rays]:
        """Interior-point steps on some lanes, then Newton to finish.

        Returns:
            tuple: the places of the lanes, and their directions that resemble certificates.
        """
        chosen = lanes.bucket(which, self.program.lanes)
        program = self.program.take(chosen)

        judge = self._judge_of(chosen)
        best, rays, count = interior.solve(program, self.cones, judge, most, self.deadline)
        self._keep(chosen, *best, count)
        # Where interior points end, y is as good as the square root of the gap: see it through.
        self.newton(which, 3, 0.0)
        return chosen, rays

    def multipliers(self, which: list[int], most: int, effort: Effort) -> None:
        """Proximal multipliers on some lanes, then Newton to finish."""
        if not which or most == 0:
            return
        chosen = lanes.bucket(which, self.program.lanes)
        program = self.program.take(chosen)

        judge = self._judge_of(chosen)
        best, count = multipliers.solve(
            program,
            self.cones,
            self.kept.x[chosen],
            self.kept.y[chosen],
            judge,
            most,
            self.deadline,
            effort,
            self.calls,
        )
        self._keep(chosen, *best, count)
        self.newton(which, 3)

    def _judge_of(self, chosen: mx.array) -> Any:
        """The judge of points of some of the chosen lanes."""
        last: list[Any] = [None, None]  # lanes, which stay the same for a while, and their data

        def judge(some: mx.array, x: mx.array, y: mx.array, s: mx.array) -> mx.array:
            if last[0] is not some:
                last[:] = some, self._taken(chosen[some])
            return self._call(_judge, *last[1], x, y, s)

        return judge

    def _keep(
        self,
        chosen: mx.array,
        x: mx.array,
        y: mx.array,
        s: mx.array,
        violation: mx.array,
        count: int | mx.array,
    ) -> None:
        """Keep what is better than the best so far, and count factorizations."""
        kept = lanes.take(self.kept, chosen).counted(count).improved(x, y, s, violation)
        self.kept, self._start = lanes.put_tree(self.kept, chosen, kept), None
        mx.eval(self.kept)

    def finish(self) -> None:
        """One more step where something is left to gain."""
        violation = self.kept.violation
        rough = mx.logical_and(violation > self.fine, mx.isfinite(violation))
        if self.settings.refine:
            self.newton(lanes.where_true(rough), 1, 0.0)
        self._clean_slack()
        mx.eval(self.kept)

    def _clean_slack(self) -> None:
        """Put s into K where y is so large that s = y - z, its rounding, is not quite there."""
        kept, to_row = self.kept, 1.0 / (self.scaling.e * self.scaling.primal)
        rounding = _ROUNDING * residuals.norm(kept.y * to_row)
        large = rounding > _NOTICED * self.settings.eps_abs
        self.cleaned = lanes.where_true(large)
        if self.cleaned:
            s = mx.where(large[:, None], self.cones.project(kept.s), kept.s)
            violation = self._call(_judge, self.program, self.scaling, kept.x, kept.y, s)
            self.kept = kept._replace(s=s, violation=violation)
