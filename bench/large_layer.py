"""The large example of cvxpylayers' documentation: nonnegative least squares, A (1000, 500).

    python bench/large_layer.py

Builds the layer, solves it once, and once more with gradients in A and b; checks the solution
against SciPy's active-set NNLS. Prints seconds, the peak memory of the process, and the error.
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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--columns", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    m, n = options.rows, options.columns
    rng = np.random.default_rng(options.seed)

    begin = time.perf_counter()
    x, A, b = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    layer = CvxpyLayer(problem, parameters=[A, b], variables=[x])
    print(f"build                  {time.perf_counter() - begin:7.2f} s", flush=True)

    values = [mx.array(rng.normal(size=shape), dtype=mx.float32) for shape in ((m, n), (m,))]
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

    reference, _ = nnls(*(np.array(v, dtype=np.float64) for v in values))
    error = np.abs(np.array(solution) - reference).max() / np.abs(reference).max()
    print(f"error                  {error:7.1e} relative to SciPy's NNLS")
    return 0 if error <= 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
