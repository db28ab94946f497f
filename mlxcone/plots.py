"""Pictures of a solve, by matplotlib (the extra ``plot``).

Each function draws into the axes it is given, or into new ones, and returns them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import mlx.core as mx

from mlxcone.report import History
from mlxcone.solution import Info, Solution
from mlxcone.status import Status

_COLORS = {
    Status.SOLVED: "#2a9d4a",
    Status.SOLVED_INACCURATE: "#a8c93a",
    Status.INFEASIBLE: "#d1495b",
    Status.INFEASIBLE_INACCURATE: "#e39aa4",
    Status.UNBOUNDED: "#7b4fa3",
    Status.UNBOUNDED_INACCURATE: "#b9a0d0",
    Status.INDETERMINATE: "#e0a030",
    Status.INTERRUPTED: "#8a8a8a",
    Status.FAILED: "#202020",
}


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('mlxcone.plots needs matplotlib: pip install "mlxcone[plot]"') from error
    return plt.subplots(figsize=(7, 4.5), layout="constrained")[1]


def residuals(history: History, solve: int = 0, axes: Any = None) -> Any:
    """The larger of the relative primal and dual residual of every lane, against time.

    One line a lane, in the color of its status; vertical lines where rungs of the ladder begin.

    Args:
        history (History): of a ``with`` block.
        solve (int): which of its solves.
        axes: matplotlib's, or None for new ones.

    Returns:
        The axes.

    Raises:
        ValueError: there was no such solve, or none.
        TypeError: it is no `History`.
        ImportError: matplotlib is not installed.
    """
    if not isinstance(history, History):
        raise TypeError(
            f"history: expected a mlxcone.History, got {type(history).__name__}; see its example"
        )
    if not history.statuses:
        raise ValueError("history: no solve was seen; those of fixed length cannot be")
    if not 0 <= solve < len(history.statuses):
        raise ValueError(f"solve: expected 0 to {len(history.statuses) - 1}, got {solve}")
    axes = _axes(axes)
    lines: dict[int, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for check in history.checks:
        if check.solve != solve:
            continue
        for lane, primal, dual in zip(check.lanes, check.primal, check.dual, strict=True):
            lines[lane][0].append(1e3 * check.seconds)
            lines[lane][1].append(max(primal, dual))
    codes, labelled = history.statuses[solve], set()
    for lane, (times, sizes) in sorted(lines.items()):
        status = Status(codes[lane])
        label = None if status in labelled else status.name.lower()
        labelled.add(status)
        color, alpha = _COLORS[status], max(0.15, min(1.0, 20 / len(lines)))
        axes.plot(times, sizes, marker=".", color=color, alpha=alpha, label=label)
    top = axes.get_xaxis_transform()
    for place, name, lanes, seconds in history.rungs:
        if place == solve:
            axes.axvline(1e3 * seconds, color="#c0c0c0", linewidth=0.8, zorder=0)
            axes.text(
                1e3 * seconds,
                0.99,
                f" {name} {lanes}",
                rotation=90,
                va="top",
                size=7,
                transform=top,
            )
    axes.set(yscale="log", xlabel="ms", ylabel="relative residual while splitting")
    if labelled:
        legend = axes.legend(frameon=False)
        for handle in legend.legend_handles:
            handle.set_alpha(1.0)
    return axes


def statuses(solution: Solution | Info, axes: Any = None) -> Any:
    """How many lanes of a batch ended how.

    Args:
        solution: a `Solution`, its info, or a `LayerSolution`.
        axes: matplotlib's, or None for new ones.

    Returns:
        The axes.

    Raises:
        TypeError: it is neither.
        ImportError: matplotlib is not installed.
    """
    info: Any = getattr(solution, "info", solution)
    if not isinstance(info, Info):
        kind = type(solution).__name__
        raise TypeError(
            f"solution: expected one, its info, or what layer.solve returns, got {kind}"
        )
    codes: Any = mx.reshape(info.status, (-1,)).tolist()
    axes = _axes(axes)
    shown = [status for status in Status if int(status) in codes]
    counts = [codes.count(int(status)) for status in shown]
    names = [status.name.lower().replace("_", " ") for status in shown]
    bars = axes.barh(names, counts, color=[_COLORS[status] for status in shown])
    axes.bar_label(bars, padding=3)
    axes.set(xlabel=f"problems, of {len(codes)}", xlim=(0, 1.12 * max(counts, default=1)))
    axes.invert_yaxis()
    return axes
