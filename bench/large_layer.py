"""The large example of cvxpylayers' documentation: nonnegative least squares, A (1000, 500).

    python bench/large_layer.py
    python bench/large_layer.py --rows 200 --columns 100 --batch 8 --peer

Builds the layer, solves it once, and once more with gradients in A and b; checks the solution
against SciPy's active-set NNLS. Prints seconds, the peak memory of the process, and the error; with
``--peer`` the same for `cvxpylayers.mlx`, whose memory grows with the square of the size of A.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np
from scipy.optimize import nnls

from cvxpylayers_mlx import CvxpyLayer


def measure(name: str, make: Any, m: int, n: int, batch: int, rng: np.random.Generator) -> float:
    """Print the figures of one kind of layer; forward and backward in seconds, or infinity."""
    begin = time.perf_counter()
    x, A, b = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    layer = make(problem, parameters=[A, b], variables=[x])
    print(f"{name}\nbuild                  {time.perf_counter() - begin:7.2f} s", flush=True)

    shapes = ((batch, m, n), (batch, m))
    values = [mx.array(rng.normal(size=shape), dtype=mx.float32) for shape in shapes]
    begin = time.perf_counter()
    (solution,) = layer(*values)
    mx.eval(solution)
    print(f"forward                {time.perf_counter() - begin:7.2f} s", flush=True)

    begin = time.perf_counter()
    both: Any = mx.value_and_grad(lambda A, b: mx.sum(layer(A, b)[0]), argnums=(0, 1))(*values)
    mx.eval(both)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = peak / 2**20 if sys.platform == "linux" else peak / 2**30
    print(f"forward and backward   {seconds:7.2f} s", flush=True)
    print(f"peak memory            {peak:7.2f} GiB")

    error = 0.0
    for lane in range(batch):
        reference, _ = nnls(*(np.array(v[lane], dtype=np.float64) for v in values))
        off = np.abs(np.array(solution[lane]) - reference).max() / np.abs(reference).max()
        error = max(error, float(off))
    print(f"error                  {error:7.1e} relative to SciPy's NNLS", flush=True)
    return seconds if error <= 1e-5 else float("inf")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--columns", type=int, default=500)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer", action="store_true")
    options = parser.parse_args()
    size = options.rows, options.columns, options.batch
    own = measure("mlxcone", CvxpyLayer, *size, np.random.default_rng(options.seed))
    if options.peer:
        from cvxpylayers.mlx import CvxpyLayer as Peer

        measure("cvxpylayers.mlx", Peer, *size, np.random.default_rng(options.seed))
    return 0 if own < float("inf") else 1


if __name__ == "__main__":
    raise SystemExit(main())
