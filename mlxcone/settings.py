"""Frozen settings of a solve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import InitVar, dataclass, fields, replace
from difflib import get_close_matches
from numbers import Real
from operator import index
from typing import Any

import numpy as np

_ALIASES = {"eps": ("eps_abs", "eps_rel")}
_MEANT = {"tol": "eps", "tolerance": "eps", "rho": "scale"}  # others' names
_MOST = {"data_rounding": 2.0**-7, "acceleration_lookback": 100}  # bfloat16's; each costs memory
_POSITIVE = ("eps_infeas", "scale", "rho_x")
_LEAST = {"check_interval": 1, "acceleration_interval": 1, "derivative_sweeps": 2}  # others: 0


def _count(name: str, value: Any) -> int:
    try:
        # A whole float does no harm: max_iters=1e4.
        whole: Any = int(value) if isinstance(value, float) and value.is_integer() else value
        number = index(whole)
    except TypeError:
        number = -1
    least = _LEAST.get(name, 0)
    if isinstance(value, bool) or number < least:
        raise ValueError(f"settings: {name} must be an integer of at least {least}, got {value!r}")
    return number


def _amount(name: str, value: Any) -> float:
    real: Any = value if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    limit = math.inf
    try:
        number = float(real)
    except OverflowError:
        number = limit
    if name in _POSITIVE and not 0 < number < limit:
        raise ValueError(f"settings: {name} must be a positive number, got {value!r}")
    if not 0 <= number < limit and not (name == "time_limit_secs" and number == limit):
        raise ValueError(f"settings: {name} must be a number of at least 0, got {value!r}")
    return number


def _switch(name: str, value: Any) -> bool:
    if isinstance(value, np.bool_) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise ValueError(f"settings: {name} must be True or False, got {value!r}")


_READ: dict[str, Callable[[str, Any], Any]] = {
    "int": _count,
    "float": _amount,
    "bool": _switch,
    "str": lambda name, value: value,
}


@dataclass(frozen=True)
class Settings:
    """How a solve runs. Names follow SCS where SCS has the setting. A lane is a problem of a batch.

    ``eps`` sets ``eps_abs`` and ``eps_rel``, here and wherever settings are given by name.

    Termination (in original units, infinity norm; O'Donoghue 2021, section 5):

    Args:
        eps_abs (float): absolute tolerance of the residuals and the gap.
        eps_rel (float): relative tolerance of the residuals and the gap.
        eps_infeas (float): tolerance of a certificate of infeasibility or unboundedness, scaled
            so that b'y = -1 or q'x = -1.
        max_iters (int): splitting iterations per lane, all rungs of the ladder together.
        time_limit_secs (float): wall-clock limit, looked at between chunks of iterations, steps and
            factorizations, none of which it interrupts; 0 means none.
        compile_after_secs (float): seconds that solves of one shape take before their operations
            are compiled, which may take a minute; 0 means never. Counted for a `Solver`, a layer,
            and for `solve` with these cones and settings.
        data_rounding (float): relative rounding of the data. A lane counts as solved, too, when it
            gets as far as twice that, for rounded rows often contradict each other. 0 means that of
            their dtype; at most 2**-7, that of bfloat16.

    Splitting:
        alpha (float): over-relaxation, in (0, 2).
        scale (float): initial weight of the constraint residual (rho), a twentieth of it with
            semidefinite cones.
        adaptive_scale (bool): rebalance ``scale`` per lane from the residuals.
        rho_x (float): proximal weight on x in the splitting step.
        normalize (bool): Ruiz equilibration.
        acceleration_lookback (int): memory of Anderson acceleration, at most 100; 0 turns it off.
        acceleration_interval (int): iterations between accelerated steps; an eighth of it with
            semidefinite, exponential and power cones, beside whose projections they are cheap.
        check_interval (int): iterations between convergence checks.

    Refinement:
        refine (bool): finish in float64 with Newton and proximal multipliers.
        handover (float): relative residual at which a lane leaves the splitting for Newton; five
            times that with exponential and power cones, whose projections are costly. Newton is
            also tried after 25 iterations, and after 75, and multipliers then, where programs are
            small and have linear constraints alone.
        newton_iters (int): Newton steps tried on a lane before proximal multipliers.
        interior_iters (int): interior-point steps for a lane that Newton steps do not finish.
        multiplier_iters (int): factorizations the method of multipliers may spend on a lane.

    Fixed length:
        fixed_iters (int): 0, or the number of splitting iterations every lane makes, followed by
            ``newton_iters`` Newton steps. The solve is then one graph, which `mx.compile` can have;
            it gives no certificates, and a lane that is not there in time is INDETERMINATE.

    Derivative:
        derivative_sweeps (int): most sweeps of iterative refinement of a tangent or adjoint, at
            least 2. Each divides the error by 1e6 times the least curvature of the equilibrated
            problem; a lane is done after four if the last step is 1e-9 of the whole.
        derivative_eps (float): relative residual above which an adjoint issues a
            `DerivativeWarning`, except under ``vmap`` and ``compile``; 0 means never. What cannot
            be matched because the solution is not unique does not count.
        smoothing (float): 0, or the weight mu, in units of the objective, of a logarithmic barrier:
            the answer stays exact, its derivative becomes that of the minimizer with the barrier
            added to the objective. A training signal where the exact derivative is zero, as at
            vertices of linear programs. Lanes without a strictly feasible point keep the exact
            one. No second derivatives.

    Outcome:
        on_failure (str): "return" reports failed lanes in ``info.status`` only; "raise" raises
            `SolverError` naming them; "nan" fills their x, y and s with NaN.
        verbose (bool): print the iteration table.

    Raises:
        ValueError: a value is not of its type or out of range; the message names the setting.
    """

    eps_abs: float = 1e-9
    eps_rel: float = 1e-9
    eps_infeas: float = 1e-8
    max_iters: int = 2000
    time_limit_secs: float = 0.0
    compile_after_secs: float = 60.0
    data_rounding: float = 0.0
    alpha: float = 1.6
    scale: float = 1.0
    adaptive_scale: bool = True
    rho_x: float = 1e-3
    normalize: bool = True
    acceleration_lookback: int = 5
    acceleration_interval: int = 25
    check_interval: int = 25
    refine: bool = True
    handover: float = 2e-3
    newton_iters: int = 8
    interior_iters: int = 80
    multiplier_iters: int = 150
    fixed_iters: int = 0
    derivative_sweeps: int = 5
    derivative_eps: float = 1e-7
    smoothing: float = 0.0
    on_failure: str = "return"
    verbose: bool = False
    eps: InitVar[float | None] = None

    def __post_init__(self, eps: float | None) -> None:
        if eps is not None:
            for name in _ALIASES["eps"]:
                object.__setattr__(self, name, _amount("eps", eps))
        for field in fields(self):
            # As plain Python numbers: settings are keys of caches.
            value = _READ[str(field.type)](field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if not 0 < self.alpha < 2:
            raise ValueError(f"settings: alpha must lie in (0, 2), got {self.alpha}")
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"settings: {name} must be at most {most}, got a larger value")
        known = ("return", "raise", "nan")
        if not isinstance(self.on_failure, str) or self.on_failure not in known:
            raise ValueError(
                f"settings: on_failure must be 'return', 'raise' or 'nan', got {self.on_failure!r}"
            )
        if self.fixed_iters and self.on_failure == "raise":
            raise ValueError(
                "settings: on_failure='raise' has to look at the answer, which fixed_iters rules "
                "out; pass on_failure='nan' or 'return'"
            )
        if self.fixed_iters and self.smoothing:
            raise ValueError(
                "settings: smoothing follows a path until it is there, which fixed_iters rules out"
            )

    @property
    def loose(self) -> float:
        """Tolerance at which a lane still counts as solved, inaccurately."""
        return max(1e-6, 10.0 * self.eps_abs, 10.0 * self.eps_rel)

    @classmethod
    def of(cls, settings: Settings | None, overrides: Mapping[str, Any]) -> Settings:
        """These settings, or the usual ones for None, with some replaced (`override`).

        Raises:
            TypeError: they are no `Settings`.
        """
        if settings is not None and not isinstance(settings, Settings):
            raise TypeError(
                f"settings: expected mlxcone.Settings, got {type(settings).__name__}; single ones "
                "are passed by name"
            )
        return (settings or cls()).override(overrides)

    def override(self, overrides: Mapping[str, Any], others: Iterable[str] = ()) -> Settings:
        """These settings with some replaced.

        Args:
            overrides: values by name; "eps" sets both eps_abs and eps_rel.
            others: what a message lists as valid besides.

        Raises:
            ValueError: a name is not a setting (the message lists the valid ones), or its value
                does not fit.
        """
        names = {f.name for f in fields(self)}
        changes: dict[str, Any] = {}
        for key, value in overrides.items():
            if key not in names and key not in _ALIASES:
                valid = sorted({*names, *_ALIASES, *others})
                close = [_MEANT[key]] if key in _MEANT else get_close_matches(str(key), valid, 1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                if key == "solver_args":
                    hint = " (which is a layer's: pass what is in it by name)"
                known = ", ".join(valid)
                raise ValueError(f"unknown solver argument {key!r}{hint}; valid ones: {known}")
            if key in _ALIASES:
                value = _amount(key, value)
            for name in _ALIASES.get(key, (key,)):
                changes[name] = value
        return replace(self, **changes) if changes else self
