"""Status codes per lane (SCS's numbers), and the error and the warning that name lanes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class Status(IntEnum):
    """Outcome of one lane; ``Status(code).name`` and ``Status(code).message`` explain it."""

    SOLVED = 1
    SOLVED_INACCURATE = 2
    UNBOUNDED = -1
    INFEASIBLE = -2
    INDETERMINATE = -3
    FAILED = -4
    INTERRUPTED = -5
    UNBOUNDED_INACCURATE = -6
    INFEASIBLE_INACCURATE = -7

    @classmethod
    def _missing_(cls, value: object) -> Status | None:
        """``info.status`` of one problem, an array, is as good as its number."""
        item = getattr(value, "item", None)
        return cls(item()) if item is not None and getattr(value, "size", 0) == 1 else None

    @property
    def message(self) -> str:
        """What happened, and what to do about it."""
        return _MESSAGES[self]

    @property
    def ok(self) -> bool:
        """Whether x, y and s are a solution."""
        return self > 0


_MESSAGES = {
    Status.SOLVED: "solved",
    Status.SOLVED_INACCURATE: (
        "solved, but not to the tolerance asked for; see info's residuals, loosen eps or raise "
        "max_iters"
    ),
    Status.UNBOUNDED: "unbounded: x is a direction of unlimited descent",
    Status.INFEASIBLE: "infeasible: y certifies that no x satisfies the constraints",
    Status.INDETERMINATE: (
        "neither a solution nor a certificate found within the limits; raise max_iters"
    ),
    Status.FAILED: (
        "the data hold NaN or infinity, or P is not positive semidefinite, or a parameter of the "
        "layer has not its declared sign"
    ),
    Status.INTERRUPTED: "stopped by the time limit; raise time_limit_secs",
    Status.UNBOUNDED_INACCURATE: "probably unbounded; raise max_iters",
    Status.INFEASIBLE_INACCURATE: "probably infeasible; raise max_iters",
}


class SolverError(RuntimeError):
    """Some lanes have no solution; ``statuses`` maps lane to `Status`.

    ``faults`` maps lanes that FAILED to what is known of their data.
    """

    def __init__(
        self, statuses: dict[int, Status], faults: Mapping[int, str] | None = None
    ) -> None:
        self.statuses, self.faults = statuses, dict(faults or {})
        shown = []
        for lane, status in list(statuses.items())[:5]:
            fault = self.faults.get(lane) if status == Status.FAILED else None
            shown.append(f"lane {lane}: {status.name} ({fault or status.message})")
        more = f", and {len(statuses) - 5} more" if len(statuses) > 5 else ""
        super().__init__(
            f"no solution for {len(statuses)} problem(s) of the batch: {'; '.join(shown)}{more}. "
            "Pass on_failure='nan' (solver_args of a layer) to keep the other lanes."
        )


class DerivativeWarning(RuntimeWarning):
    """The linear system of a derivative was not solved to ``derivative_eps`` in some lanes.

    ``residuals`` maps lane to relative residual; ``eps`` is what ``derivative_eps`` was.
    """

    def __init__(self, residuals: dict[int, float], eps: float) -> None:
        self.residuals = residuals
        shown = [f"lane {lane}: {size:.1e}" for lane, size in list(residuals.items())[:5]]
        more = f", and {len(residuals) - 5} more" if len(residuals) > 5 else ""
        super().__init__(
            f"derivative_eps={eps:g} not met, relative residual of {'; '.join(shown)}{more}. Raise "
            "derivative_sweeps; if that does not help, the problem is nearly degenerate there."
        )
