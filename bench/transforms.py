"""Transforms of a layer against each other, in float64, on the problems of `bench/accuracy.py`.

    python bench/transforms.py

For each problem, on a batch: |<J v, w> - <v, J'w>| / |<J v, w>| with jvp and vjp at random v and w;
the largest difference between vmap and a loop over its elements; and between the gradient of a vmap
and the vmap of a gradient. The exit code is 1 when one is above its bar.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from accuracy import chosen_problems, make_task, relative_error, to_mlx, to_numpy
from layer_problems import LayerProblem

from cvxpylayers_mlx import CvxpyLayer

BARS = {"adjoint": 1e-6, "vmap": 1e-8, "grad of vmap": 1e-6}


def inner(left: Sequence[mx.array], right: Sequence[mx.array]) -> float:
    """Inner product of two lists of arrays."""
    pairs = zip(to_numpy(left), to_numpy(right), strict=True)
    return float(sum(np.sum(a * b) for a, b in pairs))


def measure(problem: LayerProblem, options: argparse.Namespace) -> dict[str, float]:
    """The three figures of one problem."""
    task = make_task(problem, options)
    built, parameters, variables = problem.build()
    layer = CvxpyLayer(built, parameters=parameters, variables=variables, gp=problem.gp)
    params, weights = (to_mlx(v, mx.float64) for v in (task.params, task.cotangents))
    directions = to_mlx(
        [np.random.default_rng(i).normal(size=p.shape) for i, p in enumerate(params)], mx.float64
    )
    _, tangents = mx.jvp(layer, params, directions)
    _, gradients = mx.vjp(layer, params, weights)
    forward, backward = inner(tangents, weights), inner(directions, gradients)

    mapped = mx.vmap(layer)(*params)
    alone = [layer(*(p[i] for p in params)) for i in range(task.batch)]
    looped = [mx.stack(column) for column in zip(*alone, strict=True)]

    def loss(*values: mx.array) -> mx.array:
        """One element, all variables: sum of squares."""
        total = mx.array(0.0, dtype=mx.float64)
        for value in layer(*values):
            total = total + mx.sum(mx.square(value))
        return total

    which = list(range(len(params)))
    inside = mx.vmap(mx.grad(loss, argnums=which))(*params)
    outside = mx.grad(lambda *v: mx.sum(mx.vmap(loss)(*v)), argnums=which)(*params)
    return {
        "adjoint": abs(forward - backward) / abs(forward),
        "vmap": relative_error(to_numpy(mapped), to_numpy(looped)),
        "grad of vmap": relative_error(to_numpy(inside), to_numpy(outside)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", metavar="NAME", help="may be repeated")
    options = parser.parse_args()
    options.dtype, options.directions = "float64", None
    mx.set_default_device(mx.Device(mx.DeviceType.cpu))
    worst = dict.fromkeys(BARS, 0.0)
    print(f"{'problem':28s}" + "".join(f"{name:>14s}" for name in BARS))
    for problem in chosen_problems(options.only):
        row = measure(problem, options)
        worst = {name: max(worst[name], row[name]) for name in BARS}
        print(f"{problem.name:28s}" + "".join(f"{row[name]:14.1e}" for name in BARS), flush=True)
    print(f"{'worst':28s}" + "".join(f"{worst[name]:14.1e}" for name in BARS))
    print(f"{'bar':28s}" + "".join(f"{bar:14.1e}" for bar in BARS.values()))
    return 0 if all(worst[name] <= bar for name, bar in BARS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
