"""Seeing a solve work: table, history and progress bar. The only module that prints."""

from __future__ import annotations

import contextvars
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import mlx.core as mx

from mlxcone.status import Status

_WATCHING: contextvars.ContextVar[tuple[Watcher, ...]] = contextvars.ContextVar(
    "watching", default=()
)


def say(line: str) -> None:
    """Print a line now."""
    print(line, flush=True)


class Watcher:
    """Is told how solves go that are made inside its ``with`` block; does nothing with it.

    Solves under ``vmap`` are told of, solves of fixed length (``fixed_iters``) are not: they are
    one graph, evaluated later.
    """

    def __enter__(self) -> Self:
        self._token = _WATCHING.set((*_WATCHING.get(), self))
        return self

    def __exit__(self, *error: object) -> None:
        _WATCHING.reset(self._token)

    def begin(self, lanes: int, n: int, m: int, cones: object) -> None:
        """A solve begins.

        Args:
            lanes (int): problems of the batch.
            n (int): variables of each.
            m (int): rows of A.
            cones: what the rows are in; prints as one line.
        """

    def check(
        self, iteration: int, lanes: list[int], primal: list[float], dual: list[float]
    ) -> None:
        """Residuals while some lanes are split.

        Args:
            iteration (int): counted from the beginning of the rung.
            lanes (list): which ones, by their places in the batch.
            primal (list): primal residual of each, relative to its tolerance's scale.
            dual (list): dual residuals, the same.
        """

    def rung(self, name: str, lanes: int) -> None:
        """A rung of the ladder begins.

        Args:
            name (str): "splitting", "newton", "interior", "multipliers", ...
            lanes (int): how many have no verdict yet.
        """

    def end(self, statuses: list[int]) -> None:
        """A solve ends.

        Args:
            statuses (list): a `Status` code for every lane.
        """


class Table(Watcher):
    """Progress of one solve, in the manner of SCS: the worst lane of each column."""

    def begin(self, lanes: int, n: int, m: int, cones: object) -> None:
        self._began = time.monotonic()
        self._last = self._next = 0
        say(f"mlxcone: {lanes} problem(s), n = {n}, m = {m}, {cones}")
        titles = f"{'iter':>7}{'active':>8}{'pri res':>11}{'dua res':>11}{'time':>9}"
        say(f"{'rung':<12}{titles}")

    def check(
        self, iteration: int, lanes: list[int], primal: list[float], dual: list[float]
    ) -> None:
        """One row; rows become rarer as a rung goes on, for a long one to fit on a screen."""
        begins = iteration <= self._last
        self._last = iteration
        if iteration < self._next and not begins:
            return
        self._next = iteration + iteration // 2
        worst = f"{max(primal):>11.2e}{max(dual):>11.2e}"
        clock = time.monotonic() - self._began
        say(f"{'splitting':<12}{iteration:>7}{len(lanes):>8}{worst}{clock:>8.2f}s")

    def rung(self, name: str, lanes: int) -> None:
        clock = time.monotonic() - self._began
        say(f"{name:<12}{'':>7}{lanes:>8}{'':>22}{clock:>8.2f}s")

    def end(self, statuses: list[int]) -> None:
        seconds = time.monotonic() - self._began
        say(f"mlxcone: {ended(statuses)} in {seconds:.3f} s")


def ended(statuses: Sequence[int]) -> str:
    """How many lanes ended how."""
    counts = Counter(Status(code).name.lower() for code in statuses)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


class Check(NamedTuple):
    """Residuals of some lanes of a solve, relative, after so many iterations and seconds."""

    solve: int
    iteration: int
    seconds: float
    lanes: list[int]
    primal: list[float]
    dual: list[float]


class History(Watcher):
    """Keeps the residuals of every lane at every check of the splitting.

    ```python
    with mlxcone.History() as history:
        solution = mlxcone.solve(P, q, A, b, cones)
    mlxcone.plots.residuals(history)
    ```

    ``checks`` has a `Check` for each check; ``rungs`` the rungs, (solve, name, lanes, seconds);
    ``statuses`` a list of status codes for each solve. ``iteration`` counts from the beginning of
    a rung. Lanes with NaN in their data are in ``statuses`` alone, as FAILED.
    """

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.rungs: list[tuple[int, str, int, float]] = []
        self.statuses: list[list[int]] = []

    def begin(self, lanes: int, n: int, m: int, cones: object) -> None:
        self._began = time.monotonic()

    def check(
        self, iteration: int, lanes: list[int], primal: list[float], dual: list[float]
    ) -> None:
        """Keep it."""
        seconds = time.monotonic() - self._began
        self.checks.append(Check(len(self.statuses), iteration, seconds, lanes, primal, dual))

    def rung(self, name: str, lanes: int) -> None:
        self.rungs.append((len(self.statuses), name, lanes, time.monotonic() - self._began))

    def end(self, statuses: list[int]) -> None:
        self.statuses.append(statuses)


class Progress(Watcher):
    """A bar of the lanes that have their verdict, by tqdm (the extra ``progress``).

    ```python
    with mlxcone.Progress():
        solution = mlxcone.solve(P, q, A, b, cones)
    ```

    Args:
        **options: of ``tqdm.auto.tqdm``, such as ``desc`` or ``leave``.

    Raises:
        ImportError: tqdm is not installed.
    """

    def __init__(self, **options: Any) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError(
                'mlxcone.Progress needs tqdm: pip install "mlxcone[progress]"'
            ) from error
        self._make: Any = tqdm
        self._options: dict[str, Any] = {"desc": "mlxcone", "unit": "problem"} | options

    def begin(self, lanes: int, n: int, m: int, cones: object) -> None:
        self._bar: Any = self._make(total=lanes, **self._options)
        self._shown = 0.0

    def check(
        self, iteration: int, lanes: list[int], primal: list[float], dual: list[float]
    ) -> None:
        """Say where it is."""
        self._say(f"splitting {iteration}, {len(lanes)} active")

    def rung(self, name: str, lanes: int) -> None:
        self._bar.update(max(self._bar.total - lanes - self._bar.n, 0))
        self._say(f"{name}, {lanes} active")

    def end(self, statuses: list[int]) -> None:
        self._bar.update(self._bar.total - self._bar.n)
        self._bar.set_postfix_str(ended(statuses))
        self._bar.close()

    def _say(self, text: str) -> None:
        late = time.monotonic() - self._shown > self._bar.mininterval
        self._bar.set_postfix_str(text, refresh=late)
        self._shown = time.monotonic() if late else self._shown


class Report:
    """What a solve tells, to all who watch it; ``lanes`` says which of the batch are its own."""

    def __init__(self, watchers: tuple[Watcher, ...], lanes: list[int] | None = None) -> None:
        self.watchers, self.lanes = watchers, lanes

    @classmethod
    def start(cls, verbose: bool) -> Report:
        """To those whose ``with`` block this is in, and to a table if the solve is verbose."""
        return cls((*_WATCHING.get(), *([Table()] if verbose else [])))

    def of(self, chosen: mx.array | None) -> Report:
        """The same, told by a solve of some of the lanes."""
        if not self.watchers or chosen is None:
            return self
        places: Any = chosen.tolist()
        return Report(self.watchers, self._named(places))

    def _named(self, lanes: list[int]) -> list[int]:
        return lanes if self.lanes is None else [self.lanes[k] for k in lanes]

    def begin(self, lanes: int, n: int, m: int, cones: object) -> None:
        for watcher in self.watchers:
            watcher.begin(lanes, n, m, cones)

    def check(self, iteration: int, lanes: list[int], result: Any, which: list[int]) -> None:
        """Residuals of some lanes; ``which`` says where these are in the result."""
        if not self.watchers:
            return
        both: Any = mx.stack([result.primal_relative, result.dual_relative]).tolist()
        # A part is filled up with lanes it already has.
        place = dict(zip(reversed(self._named(lanes)), reversed(which), strict=True))
        names = sorted(place)
        primal, dual = ([column[place[k]] for k in names] for column in both)
        for watcher in self.watchers:
            watcher.check(iteration, names, primal, dual)

    def rung(self, name: str, lanes: list[int]) -> None:
        for watcher in self.watchers:
            watcher.rung(name, len(set(self._named(lanes))))

    def end(self, statuses: mx.array) -> None:
        if self.watchers:
            codes: Any = statuses.tolist()
            for watcher in self.watchers:
                watcher.end(codes)
