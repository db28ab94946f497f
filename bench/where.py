"""Where the time of a layer goes: mapping, factors, products, projections, checks, adjoint.

    python bench/where.py [--cases qp simplex ...] [--batches 1 256] [--rounds 5] [--device gpu]

Every part is evaluated before its clock stops, which costs some time of its own: the shares count,
not the sums. Prints a table for each case and writes bench/results/where.json and a picture of it.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from cases import CASES

from cvxpylayers_mlx import CvxpyLayer, dualize, eliminate, layer
from mlxcone.cones import product
from mlxcone.derivatives import transforms as differentiable
from mlxcone.kkt import low_rank, splitting_factor
from mlxcone.kkt import reduced as kkt
from mlxcone.methods import admm, loop
from mlxcone.program import equilibrate, operators, problem, residuals

RESULTS = Path(__file__).resolve().parent / "results"
REST = "everything else"
PARTS: dict[str, list[tuple[Any, str]]] = {
    "parameters and variables": [
        (layer.CvxpyLayer, "_data"),
        (eliminate.Elimination, "read"),
        (eliminate.Elimination, "restore"),
        (dualize.Dual, "read"),
        (dualize.Dual, "restore"),
    ],
    "equilibration": [(equilibrate, "setup"), (equilibrate, "normalize")],
    "factors": [
        (splitting_factor, "explicit"),
        (splitting_factor.Pencil, "at"),
        (low_rank, "factor"),
        (kkt, "root"),
        (problem, "is_positive_definite"),
    ],
    "products": [
        (operators.Rectangular, "times"),
        (operators.Rectangular, "transpose_times"),
        (problem.Program, "P_times"),
        (splitting_factor.Explicit, "times"),
        (splitting_factor.Spectral, "times"),
        (low_rank.LowRank, "times"),
        (admm.Fused, "advance"),
    ],
    "projections": [
        (product.Product, name)
        for name in ("project", "project_dual", "linearize", "derivative", "spectral")
    ],
    "checks": [(residuals, "measure"), (loop, "_drifts")],
    "adjoint": [(differentiable, "_pull_back")],
}


class Clock:
    """Time spent in each part, without the parts inside of it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def wrap(self, owner: Any, name: str, part: str) -> Callable[[], None]:
        """Time a function; returns what undoes that."""
        function = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            return self.time(part, lambda: function(*args, **kwargs))

        setattr(owner, name, timed)
        return lambda: setattr(owner, name, function)

    def time(self, part: str, call: Callable[[], Any]) -> Any:
        """The result of a call, evaluated."""
        begin = time.perf_counter()
        self._inner.append(0.0)
        result = call()
        mx.eval(result)
        whole = time.perf_counter() - begin
        self.spent[part] += whole - self._inner.pop()
        if self._inner:
            self._inner[-1] += whole
        return result


def measure(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Milliseconds a call of one case, forward and backward, by part."""
    case = CASES[name]
    # Compiled functions would not be seen.
    one = CvxpyLayer(*case.build(), solver_args={"compile_after_secs": 0.0})
    values = [mx.array(v) for v in case.values(batch)]

    def both() -> Any:
        loss = mx.value_and_grad(lambda *v: mx.sum(one(*v)[0]), argnums=list(range(len(values))))
        return loss(*values)

    mx.eval(both())
    plain = []
    for _ in range(rounds):
        begin = time.perf_counter()
        mx.eval(both())
        plain.append(time.perf_counter() - begin)
    clock = Clock()
    undo = [clock.wrap(*at, part) for part, places in PARTS.items() for at in places]
    for _ in range(rounds):
        clock.time(REST, both)
    for back in undo:
        back()
    spent = {part: 1e3 * clock.spent[part] / rounds for part in (*PARTS, REST)}
    row = {"case": name, "batch": batch, "ms": 1e3 * sorted(plain)[rounds // 2], "parts": spent}
    total = sum(spent.values())
    print(f"{name}, B = {batch}: {row['ms']:.1f} ms, of which", flush=True)
    for part, value in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {part:<26}{value / total:>6.0%}", flush=True)
    return row


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Shares as stacked bars."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.5 * len(rows) + 2))
    labels = [f"{row['case']}, B = {row['batch']}" for row in rows]
    left = [0.0] * len(rows)
    for part in (*PARTS, REST):
        share = [row["parts"][part] / sum(row["parts"].values()) for row in rows]
        axes.barh(labels, share, left=left, label=part)
        left = [a + b for a, b in zip(left, share, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("share of forward and backward")
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    options = parser.parse_args()
    mx.set_default_device(mx.Device(getattr(mx.DeviceType, options.device)))
    rows = [
        measure(name, batch, options.rounds) for name in options.cases for batch in options.batches
    ]
    RESULTS.mkdir(exist_ok=True)
    name = "where" if options.device == "cpu" else "where_gpu"
    (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=1))
    try:
        picture(rows, RESULTS / f"{name}.png")
    except ImportError:
        print("for a picture, install matplotlib")


if __name__ == "__main__":
    main()
