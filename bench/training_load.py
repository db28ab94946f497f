"""Memory over thousands of training steps, in every way that a layer is used.

    python bench/training_load.py --steps 5000

Each kind of step runs in a process of its own: forward, backward, and a step of an optimizer of
`mlx.optimizers`. The resident memory of the process after a tenth of the steps is compared with
that at the end; it may grow by 5 %. Beside it stand what MLX says is in use and what it keeps for
later. Prints a table and writes bench/results/training_load.json. The exit code is 1 when memory
grows or the loss of a step is not finite where it should be.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy as cp
import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np

import mlxcone
from cvxpylayers_mlx import CvxpyLayer

RESULTS = Path(__file__).resolve().parent / "results"
GROWTH = 0.05
BATCH = 4

Step = Callable[[int], float]


def single(array: Any) -> mx.array:
    return mx.array(np.asarray(array), dtype=mx.float32)


def descend(weights: dict[str, mx.array], loss: Callable[..., mx.array]) -> Step:
    """Steps of Adam on ``loss(weights, step)``."""
    optimizer = optimizers.Adam(learning_rate=1e-3)
    state = {"weights": weights}

    def step(k: int) -> float:
        value, gradient = mx.value_and_grad(lambda w: loss(w, k))(state["weights"])
        # A lane without a solution has a gradient of NaN; training goes on without it.
        gradient = {name: mx.nan_to_num(g) for name, g in gradient.items()}
        state["weights"] = optimizer.apply_gradients(gradient, state["weights"])
        mx.eval(state, optimizer.state)
        return float(value.item())

    return step


def program(n: int, m: int, seed: int = 0) -> tuple[mx.array, ...]:
    """P, q, A, b with x = 0 strictly feasible."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n))
    P = root @ root.T / n + np.eye(n)
    return (
        single(P),
        single(rng.normal(size=(BATCH, n))),
        single(rng.normal(size=(m, n))),
        single(1.0 + rng.random(m)),
    )


def least_squares(rows: int = 5, columns: int = 3, **options: Any) -> CvxpyLayer:
    """Nonnegative least squares."""
    x, A, b = cp.Variable(columns), cp.Parameter((rows, columns)), cp.Parameter(rows)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    return CvxpyLayer(problem, [A, b], [x], **options)


def data(rows: int = 5, columns: int = 3, batch: int = BATCH) -> dict[str, mx.array]:
    rng = np.random.default_rng(0)
    A, b = rng.normal(size=(batch, rows, columns)), rng.normal(size=rows)
    return {"A": single(A), "b": single(b)}


def by_solve() -> Step:
    """`mlxcone.solve`, every argument trained."""
    P, q, A, b = program(6, 8)

    def loss(w: dict[str, mx.array], k: int) -> mx.array:
        return mx.sum(mlxcone.solve(P, w["q"], w["A"], w["b"], {"l": 5, "q": [3]}).x ** 2)

    return descend({"q": q, "A": A, "b": b}, loss)


def by_layer() -> Step:
    """A layer."""
    layer = least_squares()
    return descend(data(), lambda w, k: mx.sum(layer(w["A"], w["b"])[0] ** 2))


def by_warm_layer() -> Step:
    """A layer that begins where it ended, and is asked for more than a call returns."""
    layer = least_squares(solver_args={"warm_start": True})

    def loss(w: dict[str, mx.array], k: int) -> mx.array:
        found = layer.solve(w["A"], w["b"])
        return mx.sum(found.variables[0] ** 2) + mx.sum(found.info.objective)

    return descend(data(), loss)


def by_shapes() -> Step:
    """Another batch size and another program in each step."""
    layer = least_squares()
    whole = data(batch=16)

    def loss(w: dict[str, mx.array], k: int) -> mx.array:
        (x,) = layer(w["A"][: 1 + k % 16], w["b"])
        n, m = 2 + k % 7, 3 + k % 5
        P, q, A, b = program(n, m, seed=k)
        inner = mlxcone.solve(P, q, A * w["b"][0], b, {"l": m}).x
        return mx.sum(x**2) + mx.sum(inner**2)

    return descend(whole, loss)


def by_failures() -> Step:
    """Lanes that are infeasible, unbounded and NaN among good ones, and calls that raise."""
    P, q, A, b = program(4, 6)
    far = mx.concatenate([A, -A[:1]])
    # Lane 1 has A x <= -5 and -A x <= -5 in one row; lane 2 is NaN.
    shift = np.zeros((BATCH, 7))
    shift[:, 6], shift[1, [0, 6]], shift[2, 3] = 5.0, (-5.0, -5.0), np.nan
    bounds = mx.concatenate([b, mx.zeros(1)]) + single(shift)

    def loss(w: dict[str, mx.array], k: int) -> mx.array:
        how = "nan" if k % 2 else "return"
        found = mlxcone.solve(P, w["q"], far, bounds, {"l": 7}, on_failure=how)
        good = found.info.status > 0
        try:
            mlxcone.solve(P, w["q"], far, bounds, {"l": 7}, on_failure="raise")
        except mlxcone.SolverError:
            pass
        else:
            return mx.array(math.nan)
        return mx.sum(mx.where(good[:, None], found.x, 0.0) ** 2)

    return descend({"q": q}, loss)


def by_throwing_away() -> Step:
    """A layer and a `mlxcone.Solver` made, used and dropped in each step, with other settings."""
    P, q, A, b = program(4, 6)

    def loss(w: dict[str, mx.array], k: int) -> mx.array:
        layer = least_squares(3 + k % 3, 2)
        values = data(3 + k % 3, 2)
        solver = mlxcone.Solver(P, A, {"l": 6})
        solver.solve(w["q"], b)
        solver.update(P=2.0 * P)
        first = solver.solve(w["q"], b).x
        second = mlxcone.solve(P, w["q"], A, b, {"l": 6}, eps=1e-9 + 1e-14 * k).x
        (x,) = layer(values["A"] * w["q"][0, 0], values["b"])
        return mx.sum(first**2) + mx.sum(second**2) + mx.sum(x**2)

    return descend({"q": q}, loss)


def by_vmap() -> Step:
    """One mx.vmap over a layer and over `mlxcone.solve`, inside of the gradient."""
    layer = least_squares()
    P, q, A, b = program(4, 6)
    weights = {**data(), "q": q}

    def one(A_value: mx.array, b_value: mx.array, q_value: mx.array) -> mx.array:
        inner = mlxcone.solve(P, q_value, A, b, {"l": 6}).x
        return mx.sum(layer(A_value, b_value)[0] ** 2) + mx.sum(inner**2)

    def loss(w: dict[str, mx.array], k: int) -> mx.array:
        return mx.sum(mx.vmap(one, in_axes=(0, None, 0))(w["A"], w["b"], w["q"]))

    return descend(weights, loss)


KINDS: dict[str, Callable[[], Step]] = {
    "solve": by_solve,
    "layer": by_layer,
    "warm layer": by_warm_layer,
    "shapes": by_shapes,
    "failures": by_failures,
    "thrown away": by_throwing_away,
    "vmap": by_vmap,
}


def resident() -> int:
    """Bytes that the process has in memory; the most it ever had where Linux's file is missing."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(kind: str, steps: int) -> dict[str, Any]:
    """One kind of step, in this process."""
    step = KINDS[kind]()
    marks, worst = [], 0.0
    begun = time.perf_counter()
    for k in range(steps):
        value = step(k)
        worst = max(worst, value) if math.isfinite(value) else math.nan
        if (k + 1) % max(1, steps // 10) == 0:
            gc.collect()
            sizes = (resident(), mx.get_active_memory(), mx.get_cache_memory())
            marks.append([k + 1, *sizes])
            size, seconds = sizes[0] / 2**20, time.perf_counter() - begun
            print(f"  {kind}: step {k + 1}, {size:.1f} MiB, {seconds:.0f} s", flush=True)
    return {
        "kind": kind,
        "steps": steps,
        "marks": marks,
        "growth": marks[-1][1] / marks[0][1] - 1.0,
        "finite": math.isfinite(worst),
        "ms": 1e3 * (time.perf_counter() - begun) / steps,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--one", choices=KINDS)
    options = parser.parse_args()
    if options.one:
        print("ROW " + json.dumps(measure(options.one, options.steps)))
        return 0
    rows = []
    for kind in options.only:
        command = [sys.executable, __file__, "--one", kind, "--steps", str(options.steps)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                if line.startswith("ROW "):
                    rows.append(json.loads(line[4:]))
                else:
                    print(line, end="", flush=True)
        if process.returncode:
            print(f"{kind}: the process ended with {process.returncode}")
            return 1
    print(f"{'kind':<12}{'ms/step':>9}{'MiB at 1/10':>13}{'MiB at end':>12}{'growth':>9}", end="")
    print(f"{'MLX KiB, first and last':>26}{'kept MiB':>10}")
    for row in rows:
        first, last = row["marks"][0], row["marks"][-1]
        print(f"{row['kind']:<12}{row['ms']:>9.1f}{first[1] / 2**20:>13.1f}", end="")
        print(f"{last[1] / 2**20:>12.1f}{row['growth']:>9.1%}", end="")
        print(f"{first[2] / 1024:>16.1f}{last[2] / 1024:>10.1f}{last[3] / 2**20:>10.2f}")
    RESULTS.mkdir(exist_ok=True)
    if list(options.only) == list(KINDS):
        (RESULTS / "training_load.json").write_text(json.dumps(rows, indent=1))
    bad = [r["kind"] for r in rows if r["growth"] > GROWTH or not r["finite"]]
    if bad:
        print(f"memory grows, or a loss is not finite: {', '.join(bad)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
