"""A batch shared out over processes: time in 1, 2 and 3 of them, and what sharing costs.

    python bench/processes.py [--batch 2048] [--sizes 1 2 3]

Dense quadratic programs (n = 10, m = 20, every matrix batched, float32), forward and with the
gradient of all data. Starts `mlx.launch --backend ring` on the loopback address for each size. The
overhead is that of the same calls on a batch with one problem a process, less the same share alone.
On a machine with fewer cores than processes there is nothing to win; answers are compared, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

import mlxcone

ROUNDS = 7
N, M = 10, 20
CONES = {"l": M}


def data(batch: int) -> list[mx.array]:
    rng = np.random.default_rng(0)
    root, q, A = (rng.standard_normal((batch, *s)) for s in ((N, N), (N,), (M, N)))
    P = root @ np.swapaxes(root, 1, 2) / N + 0.1 * np.eye(N)
    b = rng.uniform(0.1, 1.0, (batch, M))
    return [mx.array(v.astype(np.float32)) for v in (P, q, A, b)]


def milliseconds(call: Callable[[], object]) -> float:
    """Median, after a warm-up."""
    times = []
    for _ in range(ROUNDS + 1):
        begin = time.perf_counter()
        mx.eval(call())
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[1:])


def worker(batch: int) -> None:
    """In every process; the first prints the row."""
    group = mx.distributed.init()
    arrays, few = data(batch), data(group.size())

    def shared(*values: mx.array) -> mx.array:
        return mx.sum(mlxcone.distributed.solve(*values, CONES, group=group).x)

    def alone(*values: mx.array) -> mx.array:
        return mx.sum(mlxcone.solve(*values, CONES).x)

    both = mx.grad(shared, argnums=(0, 1, 2, 3))
    first = [v[:1] for v in few]
    row = {
        "processes": group.size(),
        "forward": milliseconds(lambda: shared(*arrays)),
        "both": milliseconds(lambda: both(*arrays)),
        "overhead": milliseconds(lambda: shared(*few)) - milliseconds(lambda: alone(*first)),
    }
    found = both(*arrays)
    mx.eval(found)
    if group.rank() == 0:
        wanted = mx.grad(alone, argnums=(0, 1, 2, 3))(*arrays)
        row["error"] = max(
            (mx.max(mx.abs(f - w)) / mx.max(mx.abs(w))).item()
            for f, w in zip(found, wanted, strict=True)
        )
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.batch)
        return
    launch = [str(Path(sys.executable).with_name("mlx.launch")), "--backend", "ring", "-n"]
    print(f"{arguments.batch} quadratic programs, ms: forward, forward and backward, overhead")
    for size in arguments.sizes:
        script = [sys.executable, __file__, "--worker", "--batch", str(arguments.batch)]
        command = script if size == 1 else [*launch, str(size), *script]
        done = subprocess.run(command, capture_output=True, text=True)
        rows = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if not rows:
            sys.exit(done.stdout + done.stderr)
        row = json.loads(rows[0])
        times = f"{row['forward']:>10.1f}{row['both']:>10.1f}{row['overhead']:>10.2f}"
        print(f"{size:>3} process(es){times}   gradients within {row['error']:.0e}", flush=True)


if __name__ == "__main__":
    main()
