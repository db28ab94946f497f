"""Refinement in float64 on the CPU stream: semismooth Newton on F(x, z) = 0, then multipliers."""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx

from mlxcone import interior, kkt, lanes, multipliers, residual_map, residuals
from mlxcone.cones.product import Product
from mlxcone.equilibrate import Scaling
from mlxcone.problem import Program
from mlxcone.residuals import Residuals
from mlxcone.settings import Settings

_STALL = 3  # Newton steps without halving the violation before a lane gives up
# W = D E^-1 amplifies a change of D by 1 / eps: a factor serves only where D stayed put.
_STALE = 1e-7
_ROUNDING = 2e-16  # of float64
_FINE = 1e-5  # violation below which nothing is left to gain
_NOTICED = 0.1  # share of eps_abs that rounding may take


def factor_at(program: Program, cones: Product, atoms: Any) -> mx.array:
    """H^-1 at D, (B, n, n); zero in lanes where H could not be factored."""
    inverse, ok = kkt.reduced_inverse(program, cones, atoms)
    return mx.where(ok[:, None, None], inverse, 0.0)


def newton_step(
    program: Program, cones: Product, x: mx.array, z: mx.array, y: mx.array, atoms: Any
) -> tuple[mx.array, mx.array, mx.array]:
    """One full Newton step on F(x, z) = 0, with y = Pi(z) and D there: x, z, and H^-1 at D."""
    inverse = factor_at(program, cones, atoms)
    system = kkt.Jacobian(program, cones, atoms, inverse, sweeps=1)
    dx, dz = system.solve(*residual_map.at(program, x, z, y))
    return x - dx, z - dz, inverse


def met(result: Residuals, settings: Settings, at_least: float) -> mx.array:
    """Which lanes (B,) meet the tolerances, or ``at_least`` if that is more than both of them."""
    meets = result.violation <= 1.0
    if at_least < max(settings.eps_abs, settings.eps_rel):
        return meets
    return mx.logical_or(meets, result.accuracy <= at_least)


class Refinement:
    """Lanes under refinement: the best (x, y, s) of each, its violation, and the last factor.

    y = Pi(z) and s = y - z for Newton's steps; what interior points end with is not as exactly
    complementary, and kept as it is.

    Args:
        program (Program): equilibrated, float64.
        scaling (Scaling): its factors.
        cones (Product): the cones.
        settings (Settings): tolerances and budgets.
        x, y, s (mx.array): starting iterate, equilibrated, float64.
        deadline (float): value of ``time.monotonic()`` at which to stop.
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
        deadline: float,
    ) -> None:
        self.program, self.scaling, self.cones = program, scaling, cones
        self.settings, self.deadline = settings, deadline
        z = y - s
        self.x, self.y = x, cones.project_dual(z)
        self.s = self.y - z
        self.violation = self._judge(None, x, self.y, self.s)
        n = program.n
        self.inverse = mx.zeros((program.lanes, n, n), dtype=x.dtype)
        # NaN differs from everything: no lane has a factor yet.
        self.factored_at = cones.signature(cones.derivative(self.z)) * mx.nan
        self.factorizations = mx.zeros((program.lanes,), dtype=mx.int32)
        self.cleaned: list[int] = []  # lanes whose s was replaced in the end
        mx.eval(self.violation)

    @property
    def z(self) -> mx.array:
        """Where the projection is differentiated."""
        return self.y - self.s

    def _judge(self, chosen: mx.array | None, x: mx.array, y: mx.array, s: mx.array) -> mx.array:
        """Violation of (x, y, s) in original units."""
        program = self.program if chosen is None else self.program.take(chosen)
        scaling = self.scaling if chosen is None else self.scaling.take(chosen)
        result = residuals.measure(
            program, scaling, x, y, s, self.settings.eps_abs, self.settings.eps_rel
        )
        return mx.where(mx.isnan(result.violation), mx.inf, result.violation)

    def measure(self) -> Residuals:
        """Residuals of the best points, in original units."""
        eps = self.settings.eps_abs, self.settings.eps_rel
        return residuals.measure(self.program, self.scaling, self.x, self.y, self.s, *eps)

    def solved(self, at_least: float = 0.0) -> list[int]:
        """Lanes that meet the tolerances, or ``at_least`` where that is larger."""
        if at_least <= min(self.settings.eps_abs, self.settings.eps_rel):
            return lanes.where_true(self.violation <= 1.0)
        return lanes.where_true(met(self.measure(), self.settings, at_least))

    def adopt(self, other: Refinement) -> None:
        """Take the lanes in which another refinement of the same program did better."""
        better = other.violation < self.violation
        pick = [better.reshape(-1, *[1] * k) for k in range(3)]
        self.x = mx.where(pick[1], other.x, self.x)
        self.y = mx.where(pick[1], other.y, self.y)
        self.s = mx.where(pick[1], other.s, self.s)
        self.violation = mx.where(pick[0], other.violation, self.violation)
        self.inverse = mx.where(pick[2], other.inverse, self.inverse)
        self.factored_at = mx.where(pick[1], other.factored_at, self.factored_at)
        self.factorizations = self.factorizations + other.factorizations

    def _keep(
        self, chosen: mx.array | None, x: mx.array, y: mx.array, s: mx.array, violation: mx.array
    ) -> None:
        """Keep what is better than the best so far."""
        before = lanes.pick(self.violation, chosen)
        better = violation < before
        self.x, self.y, self.s = (
            lanes.put(old, chosen, mx.where(better[:, None], new, lanes.pick(old, chosen)))
            for old, new in ((self.x, x), (self.y, y), (self.s, s))
        )
        self.violation = lanes.put(self.violation, chosen, mx.where(better, violation, before))

    def _remember(self, chosen: mx.array | None, atoms: Any, inverse: mx.array) -> None:
        """Keep a factor beside where it was made."""
        self.inverse = lanes.put(self.inverse, chosen, inverse)
        at = self.cones.signature(atoms)
        self.factored_at = lanes.put(self.factored_at, chosen, at)
        count = lanes.pick(self.factorizations, chosen) + 1
        self.factorizations = lanes.put(self.factorizations, chosen, count)

    def newton(self, which: list[int], steps: int, aim: float = 1.0) -> None:
        """Full Newton steps on some lanes; each stops when its violation is at most ``aim``."""
        if not which:
            return
        total = self.program.lanes
        chosen = lanes.some(which, total)
        program = self.program if chosen is None else self.program.take(chosen)
        x, z = lanes.pick(self.x, chosen), lanes.pick(self.z, chosen)
        reference = lanes.pick(self.violation, chosen)
        idle = mx.zeros((x.shape[0],), dtype=mx.int32)
        y, atoms = self.cones.linearize(z)
        for _ in range(steps):
            x, z, inverse = newton_step(program, self.cones, x, z, y, atoms)
            self._remember(chosen, atoms, inverse)
            y, atoms = self.cones.linearize(z)
            violation = self._judge(chosen, x, y, y - z)
            self._keep(chosen, x, y, y - z, violation)
            progress = violation < 0.5 * reference
            reference = mx.where(progress, violation, reference)
            idle = mx.where(progress, 0, idle + 1)
            mx.eval(x, z, idle, self.x, self.y, self.s, self.violation)
            mx.eval(self.inverse, self.factored_at)
            left = lanes.where_true((violation > aim) & (idle < _STALL))
            if not left or time.monotonic() > self.deadline:
                return
            keep = lanes.bucket(left, x.shape[0])
            if keep.shape[0] < x.shape[0]:
                chosen = keep if chosen is None else chosen[keep]
                program = program.take(keep)
                x, z, reference, idle = x[keep], z[keep], reference[keep], idle[keep]
                y, atoms = self.cones.linearize(z)

    def interior(self, which: list[int], most: int) -> tuple[mx.array, interior.Rays]:
        """Interior-point steps on some lanes, then Newton to finish.

        Returns:
            tuple: the places of the lanes, and their directions that resemble certificates.
        """
        chosen = lanes.bucket(which, self.program.lanes)
        program = self.program.take(chosen)

        def judge(some: mx.array, x: mx.array, y: mx.array, s: mx.array) -> mx.array:
            return self._judge(chosen[some], x, y, s)

        best, rays, count = interior.solve(program, self.cones, judge, most, self.deadline)
        self._keep(chosen, *best)
        self.factorizations = lanes.put(
            self.factorizations, chosen, self.factorizations[chosen] + count
        )
        mx.eval(self.x, self.y, self.s, self.violation)
        # Where interior points end, y is as good as the square root of the gap: see it through.
        self.newton(which, 3, 0.0)
        return chosen, rays

    def multipliers(self, which: list[int], most: int) -> None:
        """Proximal multipliers on some lanes, then Newton to finish."""
        if not which or most == 0:
            return
        chosen = lanes.bucket(which, self.program.lanes)
        program = self.program.take(chosen)

        def judge(some: mx.array, x: mx.array, y: mx.array, s: mx.array) -> mx.array:
            return self._judge(chosen[some], x, y, s)

        best, count = multipliers.solve(
            program,
            self.cones,
            self.x[chosen],
            self.y[chosen],
            judge,
            most,
            self.deadline,
        )
        self._keep(chosen, *best)
        self.factorizations = lanes.put(
            self.factorizations, chosen, self.factorizations[chosen] + count
        )
        mx.eval(self.x, self.y, self.s, self.violation)
        self.newton(which, 3)

    def finish(self) -> None:
        """One more step, and for every lane a factor that fits the point it ended at."""
        self._refactor_stale()
        rough = mx.logical_and(self.violation > _FINE, mx.isfinite(self.violation))
        if self.settings.refine and bool(mx.any(rough).item()):
            y, atoms = self.cones.linearize(self.z)
            system = kkt.Jacobian(self.program, self.cones, atoms, self.inverse)
            dx, dz = system.solve(*residual_map.at(self.program, self.x, self.z, y))
            x, z = self.x - dx, self.z - dz
            y = self.cones.project_dual(z)
            violation = mx.where(rough, self._judge(None, x, y, y - z), mx.inf)
            self._keep(None, x, y, y - z, violation)
            self._refactor_stale()
        self._clean_slack()
        mx.eval(self.x, self.y, self.s, self.violation, self.inverse)

    def _clean_slack(self) -> None:
        """Put s into K where y is so large that s = y - z, its rounding, is not quite there."""
        to_row = 1.0 / (self.scaling.e * self.scaling.primal)
        rounding = _ROUNDING * residuals.norm(self.y * to_row)
        large = rounding > _NOTICED * self.settings.eps_abs
        self.cleaned = lanes.where_true(large)
        if self.cleaned:
            self.s = mx.where(large[:, None], self.cones.project(self.s), self.s)
            self.violation = self._judge(None, self.x, self.y, self.s)

    def _refactor_stale(self) -> None:
        same = self._same(self.factored_at, self.cones.derivative(self.z))
        stale = lanes.where_true(mx.logical_not(same) & mx.isfinite(self.violation))
        if stale:
            chosen = lanes.some(stale, self.program.lanes)
            local = self.program if chosen is None else self.program.take(chosen)
            z = lanes.pick(self.z, chosen)
            atoms = self.cones.derivative(z)
            self._remember(chosen, atoms, factor_at(local, self.cones, atoms))

    def _same(self, signature: mx.array, atoms: Any) -> mx.array:
        """Whether D is where the signature says, (B,); False for NaN."""
        return mx.all(mx.abs(self.cones.signature(atoms) - signature) <= _STALE, axis=1)
