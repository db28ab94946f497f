"""The verbose table: the only module that prints."""

from __future__ import annotations

import time
from collections import Counter

from mlxcone.status import Status


class Table:
    """Progress of one solve, in the manner of SCS: the worst lane of each column."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.began = time.monotonic()
        self._last = self._next = 0

    def _print(self, line: str) -> None:
        if self.enabled:
            print(line, flush=True)

    def header(self, lanes: int, n: int, m: int, cones: object) -> None:
        """Sizes of the batch and titles of the columns."""
        self._print(f"mlxcone: {lanes} problem(s), n = {n}, m = {m}, {cones}")
        self._print(
            f"{'rung':<12}{'iter':>7}{'active':>8}{'pri res':>11}{'dua res':>11}{'time':>9}"
        )

    def row(self, rung: str, iteration: int, active: int, primal: float, dual: float) -> None:
        """One check; residuals are relative, the worst over the active lanes.

        Rows become rarer as a rung goes on, for a long one to fit on a screen.
        """
        begins = iteration <= self._last
        self._last = iteration
        if iteration < self._next and not begins:
            return
        self._next = iteration + iteration // 2
        clock = time.monotonic() - self.began
        self._print(
            f"{rung:<12}{iteration:>7}{active:>8}{primal:>11.2e}{dual:>11.2e}{clock:>8.2f}s"
        )

    def rung(self, name: str, lanes: int) -> None:
        """A rung of the ladder begins for some lanes."""
        clock = time.monotonic() - self.began
        self._print(f"{name:<12}{'':>7}{lanes:>8}{'':>22}{clock:>8.2f}s")

    def summary(self, statuses: list[int]) -> None:
        """How many lanes ended how."""
        if not self.enabled:
            return
        counts = Counter(Status(code).name.lower() for code in statuses)
        ended = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        self._print(f"mlxcone: {ended} in {time.monotonic() - self.began:.3f} s")
