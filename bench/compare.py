"""Seven layers, every way of solving them, batch sizes from 1 to 4096: time, accuracy, memory.

    python bench/compare.py [--cases qp nnls ...] [--ways mlxcone ...] [--batches 1 256] [--add]

Each case runs in a process of its own, in which the ways take turns: forward, then forward and
backward, so that a slow minute of the machine meets all of them. Times are medians in
milliseconds a batch; errors are those of the answers, relative to Clarabel's at 1e-12. A way that
cannot do a case is left out of it, and one that would take too long is extrapolated from a smaller
batch and marked. Prints tables of times and ratios, writes bench/results/compare.json, and a table
in Markdown and a picture of it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from cases import CASES
from rivals import WAYS, Way, exact, relative_error

RESULTS = Path(__file__).resolve().parent / "results"
OURS = "mlxcone"
PEERS = ("cvxpylayers.mlx", "moreau")
JUDGED = 8  # lanes compared with Clarabel
SLOW = 20.0  # seconds that a call may take to be timed at all
ENOUGH = 8.0  # seconds of calls after which a way has been timed often enough


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _peak() -> float:
    """Largest memory of this process so far, MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**10 if sys.platform == "linux" else size / 2**20


def measure(name: str, batch: int, ways: list[str], rounds: int) -> list[dict[str, Any]]:
    """Rows of one case and batch size."""
    case, rows = CASES[name], []
    prepared: list[tuple[str, Way, dict[str, list[float]]]] = []
    judged = min(batch, JUDGED)
    reference = exact(case, batch, judged)
    for way in ways:
        try:
            made = WAYS[way](case, batch)
            first = _seconds(made.forward)
            answer = np.asarray(made.forward()) if first < SLOW else None
        except (ImportError, NotImplementedError) as error:
            # A peer that is not installed, or does not have such problems.
            print(f"  {name} {batch} {way}: left out ({error})", flush=True)
            continue
        row = {"case": name, "batch": batch, "way": way, "first_ms": 1e3 * first}
        if answer is not None:
            row["error"] = relative_error(answer[:judged], reference[:judged])
        rows.append(row)
        prepared.append((way, made, {"forward": [], "both": []}))
        if made.both is not None and first < SLOW:
            made.both()
    for turn in range(rounds):
        for _, made, times in prepared:
            if turn and sum(map(sum, times.values())) > ENOUGH:
                continue
            times["forward"].append(_seconds(made.forward))
            if made.both is not None:
                times["both"].append(_seconds(made.both))
    for row, (_, made, times) in zip(rows, prepared, strict=True):
        for kind, values in times.items():
            if values:
                row[kind] = 1e3 * statistics.median(values)
        row |= made.statistics()
        first, second, error = (row.get(k, float("nan")) for k in ("forward", "both", "error"))
        print(f"  {name} {batch} {row['way']}: {first:.1f} ms, {second:.1f} ms, ", end="")
        print(f"error {error:.0e}", flush=True)
    rows[0]["peak_mib"] = _peak()
    return rows


def _place(row: dict[str, Any]) -> tuple[str, int, str]:
    return row["case"], row["batch"], row["way"]


def _find(rows: list[dict[str, Any]], case: str, batch: int, way: str) -> dict[str, Any]:
    return next((r for r in rows if _place(r) == (case, batch, way)), {})


def _geometric(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values)))) if values else float("nan")


def _ratios(rows: list[dict[str, Any]], kind: str, peer: str, batch: int) -> dict[str, float]:
    """How many times longer the peer takes, for each case that both did."""
    found = {}
    for case in dict.fromkeys(r["case"] for r in rows):
        own, other = (_find(rows, case, batch, w).get(kind) for w in (OURS, peer))
        if own and other:
            found[case] = other / own
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Times of each way, and how many times longer the peers take."""
    lines = []
    for kind, title in (("forward", "forward"), ("both", "forward and backward")):
        ways = [w for w in WAYS if any(kind in r and r["way"] == w for r in rows)]
        lines += ["", f"{title}, ms a batch", f"{'case':<12}{'B':>6}"]
        lines[-1] += "".join(f"{w:>17}" for w in ways)
        for case, batch in dict.fromkeys((r["case"], r["batch"]) for r in rows):
            cells = [_find(rows, case, batch, w).get(kind) for w in ways]
            text = "".join(f"{'':>17}" if c is None else f"{c:>17.1f}" for c in cells)
            lines.append(f"{case:<12}{batch:>6}{text}")
        for peer in PEERS:
            for batch in sorted({r["batch"] for r in rows}):
                ratios = _ratios(rows, kind, peer, batch)
                if ratios:
                    each = ", ".join(f"{c} {v:.2g}" for c, v in ratios.items())
                    mean = _geometric(list(ratios.values()))
                    lines.append(f"{peer} / {OURS} at B = {batch}: {mean:.2f} ({each})")
    return "\n".join(lines)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Milliseconds forward, and forward and backward; below, how many times longer peers take."""
    ways = [w for w in WAYS if any(r["way"] == w for r in rows)]
    lines = ["| layer | batch | " + " | ".join(ways) + " |", "|---" * (2 + len(ways)) + "|"]
    for case, batch in dict.fromkeys((r["case"], r["batch"]) for r in rows):
        found = [_find(rows, case, batch, w) for w in ways]
        times = [[row[k] for k in ("forward", "both") if k in row] for row in found]
        cells = [", ".join(f"{t:.1f}" if t < 100 else f"{t:.0f}" for t in some) for some in times]
        lines.append(f"| {CASES[case].name} | {batch} | " + " | ".join(cells) + " |")
    lines += ["", "| batch | over | forward | forward and backward |", "|---|---|---|---|"]
    for batch in sorted({r["batch"] for r in rows}):
        for peer in PEERS:
            both = [list(_ratios(rows, k, peer, batch).values()) for k in ("forward", "both")]
            cells = [f"{_geometric(some):.2f} (least {min(some):.2f})" for some in both if some]
            if cells:
                lines.append(f"| {batch} | {peer} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def growth(rows: list[dict[str, Any]]) -> str:
    """How our cost depends on the batch size: per problem, relative to that at B = 1 and 32."""
    lines = ["", f"{OURS}: cost of a problem, B = 1 over 256, and 4096 over 32"]
    for case in dict.fromkeys(r["case"] for r in rows):
        for kind in ("forward", "both"):
            cost = {
                r["batch"]: r[kind] / r["batch"]
                for r in rows
                if r["case"] == case and r["way"] == OURS and kind in r
            }
            ratios = [
                f"{cost[a] / cost[b]:.2f}" if a in cost and b in cost else "-"
                for a, b in ((1, 256), (4096, 32))
            ]
            lines.append(f"{case:<12}{kind:<9}{ratios[0]:>9}{ratios[1]:>9}")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Microseconds a problem over the batch size, a panel for each case."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    cases = list(dict.fromkeys(r["case"] for r in rows))
    figure, axes = plt.subplots(2, 4, figsize=(14, 6.5), sharex=True, squeeze=False)
    for axis, case in zip(axes.flat, cases, strict=False):
        for way in WAYS:
            for kind, style in (("forward", "--"), ("both", "-")):
                points = [
                    (r["batch"], 1e3 * r[kind] / r["batch"])
                    for r in rows
                    if r["case"] == case and r["way"] == way and kind in r
                ]
                if points:
                    color = f"C{list(WAYS).index(way)}"
                    label = way if kind == "both" or way in ("scs", "clarabel") else None
                    axis.loglog(*zip(*sorted(points), strict=True), style, color=color, label=label)
        axis.set_title(CASES[case].name, fontsize=10)
        axis.set_xlabel("batch size")
        axis.set_ylabel("µs a problem")
    axes.flat[0].legend(fontsize=8)
    for axis in list(axes.flat)[len(cases) :]:
        axis.axis("off")
    figure.suptitle("Forward and backward (solid) and forward alone (dashed)")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 32, 256, 1024])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--add", action="store_true", help="to the results that there are")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "BATCH"))
    options = parser.parse_args()
    if options.one:
        mx.set_default_device(mx.Device(getattr(mx.DeviceType, options.device)))
        case, batch = options.one[0], int(options.one[1])
        print("ROWS " + json.dumps(measure(case, batch, options.ways, options.rounds)))
        return 0
    rows: list[dict[str, Any]] = []
    common = ["--ways", *options.ways, "--rounds", str(options.rounds), "--device", options.device]
    for case in options.cases:
        for batch in options.batches:
            command = [sys.executable, __file__, "--one", case, str(batch), *common]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                for line in process.stdout or ():
                    if line.startswith("ROWS "):
                        rows += json.loads(line[5:])
                    else:
                        print(line, end="", flush=True)
            if process.returncode:
                print(f"  {case} {batch}: the process ended with {process.returncode}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    name = "compare" if options.device == "cpu" else "compare_gpu"
    path = RESULTS / f"{name}.json"
    if options.add and path.exists():
        new = {_place(row) for row in rows}
        rows += [row for row in json.loads(path.read_text()) if _place(row) not in new]
        rows.sort(key=lambda row: (list(CASES).index(row["case"]), row["batch"]))
    print(table(rows) + "\n" + growth(rows))
    path.write_text(json.dumps(rows, indent=1))
    (RESULTS / f"{name}.md").write_text(markdown(rows))
    draw(rows, RESULTS / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
