"""``python -m mlxcone``: versions, devices, a self-check and a small benchmark."""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from importlib import metadata

import mlx.core as mx
import numpy as np

from mlxcone._version import __version__
from mlxcone.report import say
from mlxcone.solver import solve
from mlxcone.testing import manufacture

_MIXES = {
    "linear": {"z": 2, "l": 8},
    "second-order": {"z": 1, "l": 3, "q": [4, 5]},
    "semidefinite": {"z": 1, "s": [4]},
    "exponential": {"l": 3, "ep": 2},
    "power": {"l": 3, "p": [0.3, -0.6]},
}
_TOLERANCE = 1e-7
_BATCHES = (1, 32, 256)
_ROUNDS = 5


def _versions() -> None:
    say(f"mlxcone {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in ("mlx", "cvxpy", "numpy", "scipy"):
        say(f"  {name:<8}{metadata.version(name)}")
    say(f"default device {mx.default_device()}")
    metal, cuda = mx.metal.is_available(), mx.cuda.is_available()
    say(f"  Metal {'yes' if metal else 'no'}, CUDA {'yes' if cuda else 'no'}; float64 on the CPU")


def _self_check() -> bool:
    """Problems with a known answer over every kind of cone, and one infeasible, judged in NumPy."""
    say("self-check: problems with a known answer, judged without the solver's code")
    passed = True
    for name, cones in _MIXES.items():
        instance = manufacture.feasible(np.random.default_rng(0), n=6, cones=cones)
        passed &= _judged(name, instance)
    instance = manufacture.infeasible(np.random.default_rng(0), n=6, cones={"l": 10})
    return passed & _judged("infeasible", instance)


def _judged(name: str, instance: manufacture.Instance) -> bool:
    begin = time.perf_counter()
    found = solve(instance.P, instance.q, instance.A, instance.b, instance.cones)
    seconds = time.perf_counter() - begin
    try:
        instance.check(*(np.array(v) for v in found[:3]), tolerance=_TOLERANCE)
        verdict = "ok"
    except AssertionError as error:
        verdict = f"WRONG: {error}"
    say(f"  {name:<14}{1e3 * seconds:>8.1f} ms  {verdict}")
    return verdict == "ok"


def _benchmark() -> None:
    """Quadratic programs, 10 variables and 20 rows, every matrix batched, float32."""
    say("benchmark: dense quadratic programs, n = 10, m = 20, forward, and with the gradient")
    rng = np.random.default_rng(0)
    n, m = 10, 20
    for batch in _BATCHES:
        M, q, A = (rng.standard_normal((batch, *shape)) for shape in ((n, n), (n,), (m, n)))
        P = M @ np.swapaxes(M, 1, 2) / n + 0.1 * np.eye(n)
        b = rng.uniform(0.1, 1.0, (batch, m))
        data = [mx.array(v.astype(np.float32)) for v in (P, q, A, b)]
        mx.eval(data)
        forward, both = _times(*data)
        say(
            f"  B = {batch:>4}{forward:>10.1f} ms{both:>10.1f} ms{1e3 * both / batch:>9.0f} µs each"
        )


def _times(P: mx.array, q: mx.array, A: mx.array, b: mx.array) -> list[float]:
    """Milliseconds of a solve, and of one with its gradient; medians, taking turns."""

    def forward(q: mx.array) -> mx.array:
        return mx.sum(solve(P, q, A, b, {"l": A.shape[1]}).x)

    calls = forward, mx.grad(forward)
    times: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):
        for call, spent in zip(calls, times, strict=True):
            begin = time.perf_counter()
            mx.eval(call(q))
            spent.append(time.perf_counter() - begin)
    return [1e3 * statistics.median(spent) for spent in times]


def main() -> int:
    """Print everything; 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(prog="python -m mlxcone", description=__doc__)
    parser.add_argument("--no-benchmark", action="store_true", help="versions and self-check only")
    arguments = parser.parse_args()
    _versions()
    passed = _self_check()
    if not arguments.no_benchmark:
        _benchmark()
    say("all answers right" if passed else "SOME ANSWERS ARE WRONG: please report this output")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
