"""Projection onto semidefinite matrices: eigenvalues on the CPU against products on the device.

    python bench/semidefinite_projection.py
    python bench/semidefinite_projection.py --device gpu

Times are for the whole batch in float32, medians of several runs. Errors are the largest entry of
the difference from NumPy's eigenvalues in float64, relative to the spectral norm, over random
matrices and matrices with opposite, tiny and zero eigenvalues.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from mlxcone.cones import positive_part, sign_iteration

SIZES = ((3, 1), (3, 1000), (5, 1000), (10, 1), (10, 300), (30, 1), (30, 30), (100, 1), (100, 8))
BAR = 4e-6


def draw(rng: np.random.Generator, batch: int, order: int) -> np.ndarray:
    """Random, opposite, of all sizes, and of low rank, in turn; (batch, 1, order, order)."""
    values = rng.standard_normal((batch, order))
    signs = rng.choice([-1.0, 1.0], (batch, order))
    values[1::4] = signs[1::4]
    values[2::4] = (signs * 10.0 ** rng.uniform(-9.0, 0.0, (batch, order)))[2::4]
    values[3::4, 2:] = 0.0
    Q = np.linalg.qr(rng.standard_normal((batch, order, order)))[0]
    X = (Q * values[:, None, :]) @ Q.swapaxes(-1, -2)
    return (0.5 * (X + X.swapaxes(-1, -2)))[:, None].astype(np.float32)


def by_eigenvalues(X: mx.array) -> mx.array:
    return positive_part.value(positive_part.decompose(X))


def microseconds(project: Callable[[mx.array], mx.array], X: mx.array, repeats: int) -> float:
    """Median of ``repeats`` timings of one projection of the batch."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        mx.eval(project(X))
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def worst_error(found: mx.array, X: np.ndarray) -> float:
    values, vectors = np.linalg.eigh(X.astype(np.float64))
    exact = (vectors * np.maximum(values, 0.0)[..., None, :]) @ vectors.swapaxes(-1, -2)
    error = np.abs(np.array(found) - exact).max(axis=(-1, -2))
    return float((error / np.abs(values).max(axis=-1)).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    mx.set_default_device(mx.Device(getattr(mx.DeviceType, options.device)))
    rng = np.random.default_rng(options.seed)
    titles = ("order", "batch", "eigh µs", "products µs", "ratio", "eigh error", "products error")
    print("".join(f"{title:>15s}" for title in titles))
    worst = 0.0
    for order, batch in SIZES:
        drawn = draw(rng, batch, order)
        X = mx.array(drawn)
        mx.eval(X)
        ways = (by_eigenvalues, sign_iteration.project)
        eigen, products = (microseconds(way, X, options.repeats) for way in ways)
        errors = [worst_error(way(X), drawn) for way in ways]
        worst = max(worst, *errors)
        print(
            f"{order:15d}{batch:15d}{eigen:15.0f}{products:15.0f}{products / eigen:15.2f}"
            + "".join(f"{error:15.1e}" for error in errors),
            flush=True,
        )
    return 0 if worst <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
