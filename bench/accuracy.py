"""Accuracy of a CVXPY layer against reference solutions and gradients.

    python bench/accuracy.py --dtype float32
    python bench/accuracy.py --layer cvxpylayers.mlx --solver-args '{"eps": 1e-9}'

Runs every problem of `tests/layer_problems.py` and `tests/layer_problems_cones.py` on one batch, at
the layer's default settings unless `--solver-args` says otherwise. Two errors are taken for each
element of the batch and the worst is printed:

- forward: with all variables concatenated, the largest error over the largest entry of the
  reference solution for the same numbers (float32 parameters are exact in float64);
- gradient: for the inner product of the variables with standard normal cotangents, and with the
  gradients of all parameters concatenated, the largest error over the largest entry of the
  reference gradient. With `--directions K`, the same over K random directional derivatives.

The exit code is 1 when an error is above the bar of its dtype.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# The problems are the tests', which are no package: found, and seen by pyright, only from here.
sys.path.insert(0, str(ROOT / "tests"))

import layer_reference  # noqa: E402  # pyright: ignore[reportMissingImports]
from layer_problems import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    LAYER_PROBLEMS,
    LOOSE_PROBLEMS,
    LayerProblem,
    built,
    element,
    reference_directional_derivative,
    reference_gradient,
    reference_values,
    sample_batch,
)
from layer_problems_cones import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    CONE_PROBLEMS,
    GP_PROBLEMS,
)

Array = np.ndarray

BARS = {"float32": (1e-6, 1e-4), "float64": (1e-9, 1e-7)}
"""Largest accepted forward and gradient error per dtype."""


@dataclass(frozen=True)
class Row:
    """Result of one problem; errors are NaN where the layer failed."""

    name: str
    forward_error: float
    gradient_error: float
    reference_error: float
    forward_ms: float
    total_ms: float
    failure: str = ""

    def passes(self, bars: tuple[float, float]) -> bool:
        """Whether both errors are within the bars."""
        return self.forward_error <= bars[0] and self.gradient_error <= bars[1]


@dataclass(frozen=True)
class Task:
    """One problem with a batch of parameters, cotangents, and directions to test along."""

    problem: LayerProblem
    params: list[Array]
    cotangents: list[Array]
    directions: list[list[Array]]

    @property
    def batch(self) -> int:
        """Number of elements."""
        return len(self.params[0])


def make_task(problem: LayerProblem, options: argparse.Namespace) -> Task:
    """Draw the numbers of one problem from fixed seeds."""
    params = sample_batch(problem, options.batch, options.seed, options.dtype)
    rng = np.random.default_rng(options.seed)
    variables = built(problem)[2]
    cotangents = [_cotangent(rng, options, variable) for variable in variables]
    directions = [
        [rng.normal(size=p.shape[1:]) for p in params] for _ in range(options.directions or 0)
    ]
    return Task(problem, params, cotangents, directions)


def _cotangent(rng: np.random.Generator, options: argparse.Namespace, variable: Any) -> Array:
    """Random cotangents that the dtype represents exactly."""
    return rng.normal(size=(options.batch, *variable.shape)).astype(options.dtype)


def to_mlx(arrays: Sequence[Array], dtype: mx.Dtype) -> list[mx.array]:
    """Convert arrays, keeping float64."""
    return [mx.array(array, dtype=dtype) for array in arrays]


def to_numpy(arrays: Sequence[mx.array]) -> list[Array]:
    """Convert arrays to float64."""
    return [np.array(array, dtype=np.float64) for array in arrays]


def milliseconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """Result of a call and how long it took."""
    start = time.perf_counter()
    result = work()
    return result, 1e3 * (time.perf_counter() - start)


def run_layer(task: Task, options: argparse.Namespace) -> tuple[list[Array], list[Array], Any]:
    """Values, gradients, and the times of a second forward and forward-backward run."""
    layer_type = importlib.import_module(options.layer).CvxpyLayer
    problem, parameters, variables = task.problem.build()
    layer = layer_type(problem, parameters=parameters, variables=variables, gp=task.problem.gp)
    dtype = getattr(mx, options.dtype)
    params, cotangents = to_mlx(task.params, dtype), to_mlx(task.cotangents, dtype)

    def call(*values: mx.array) -> tuple[mx.array, ...]:
        return layer(*values, solver_args=options.solver_args)

    def forward() -> None:
        mx.eval(call(*params))

    def both() -> tuple[list[mx.array], list[mx.array]]:
        outputs, gradients = mx.vjp(call, params, cotangents)
        mx.eval(outputs, gradients)
        return outputs, gradients

    both()
    _, forward_ms = milliseconds(forward)
    (outputs, gradients), total_ms = milliseconds(both)
    if any(array.dtype != dtype for array in (*outputs, *gradients)):
        raise TypeError(f"the layer did not keep {options.dtype}")
    return to_numpy(outputs), to_numpy(gradients), (forward_ms, total_ms)


def relative_error(values: Sequence[Array], reference: Sequence[Array]) -> float:
    """Largest error over the largest entry of the reference, everything concatenated."""
    got = np.concatenate([np.ravel(value) for value in values])
    wanted = np.concatenate([np.ravel(value) for value in reference])
    error = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    return error if np.isfinite(got).all() else np.inf


def symmetrized(task: Task, arrays: Sequence[Array]) -> list[Array]:
    """Gradients with only their symmetric part kept for symmetric parameters."""
    parameters = built(task.problem)[1]
    return [
        0.5 * (a + a.T) if layer_reference.is_symmetric_parameter(p) else a
        for a, p in zip(arrays, parameters, strict=True)
    ]


def gradient_errors(task: Task, index: int, gradients: Sequence[Array]) -> tuple[float, float]:
    """Error of one element's gradient, and the estimated error of its reference."""
    params, cotangents = element(task.params, index), element(task.cotangents, index)
    got = symmetrized(task, element(gradients, index))
    if not task.directions:
        wanted = reference_gradient(task.problem, params, cotangents)
        return relative_error(got, wanted.values), wanted.error
    return _directional_errors(task, params, cotangents, got)


def _directional_errors(
    task: Task, params: list[Array], cotangents: list[Array], got: list[Array]
) -> tuple[float, float]:
    """Errors along the task's directions, which cost less than a whole reference gradient."""
    slopes, wanted, worst = [], [], 0.0
    for direction in task.directions:
        moved = symmetrized(task, direction)
        found = reference_directional_derivative(task.problem, params, moved)
        slopes.append(np.asarray(_inner(got, moved)))
        wanted.append(np.asarray(_inner(cotangents, found.values)))
        worst = max(worst, found.error)
    return relative_error(slopes, wanted), worst


def _inner(left: Sequence[Array], right: Sequence[Array]) -> float:
    return float(sum(np.sum(a * b) for a, b in zip(left, right, strict=True)))


def measure(problem: LayerProblem, options: argparse.Namespace) -> Row:
    """Run one problem; a failure of the layer is a result, not the end of the run."""
    task = make_task(problem, options)
    try:
        outputs, gradients, (forward_ms, total_ms) = run_layer(task, options)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        return Row(problem.name, np.nan, np.nan, np.nan, np.nan, np.nan, failure)
    forward = 0.0
    pairs = []
    for index in range(task.batch):
        wanted = reference_values(problem, element(task.params, index))
        forward = max(forward, relative_error(element(outputs, index), wanted))
        pairs.append(gradient_errors(task, index, gradients))
    gradient, reference = np.max(pairs, axis=0)
    return Row(problem.name, forward, float(gradient), float(reference), forward_ms, total_ms)


def print_row(row: Row, bars: tuple[float, float]) -> None:
    """Print one line at once, so that a long run shows its progress."""
    mark = "ok" if row.passes(bars) else "MISSED"
    line = f"{row.name:28s} {row.forward_error:9.1e} {row.gradient_error:9.1e}"
    line += f" {row.reference_error:9.1e} {row.forward_ms:9.1f} {row.total_ms:9.1f}  {mark}"
    print(line + (f"  {row.failure[:160]}" if row.failure else ""), flush=True)


def write_results(rows: list[Row], options: argparse.Namespace) -> Path:
    """Write all rows with what is needed to repeat them."""
    path = Path(options.output or f"{options.layer}-{options.dtype}.json")
    path = path if path.is_absolute() else ROOT / "bench" / "results" / path
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = ("layer", "dtype", "batch", "seed", "directions", "solver_args")
    settings = {key: getattr(options, key) for key in keys}
    versions = {"python": platform.python_version(), "mlx": version("mlx")}
    content = {
        "settings": settings,
        "machine": platform.machine(),
        "versions": versions,
        "bars": dict(zip(("forward", "gradient"), BARS[options.dtype], strict=True)),
        "rows": [_json_row(row) for row in rows],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def _json_row(row: Row) -> dict[str, Any]:
    """Row with null in place of numbers that JSON does not have."""
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in asdict(row).items()
    }


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Accuracy of a CVXPY layer on MLX.")
    parser.add_argument("--layer", default="cvxpylayers_mlx", help="package with CvxpyLayer")
    parser.add_argument("--dtype", choices=sorted(BARS), default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", metavar="NAME", help="may be repeated")
    parser.add_argument("--solver-args", type=json.loads, metavar="JSON")
    parser.add_argument("--output", help="file name under bench/results/")
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--full", action="store_true", help="whole gradients (the default)")
    scope.add_argument("--directions", type=int, metavar="K", help="K directions instead")
    options = parser.parse_args(arguments)
    if options.batch < 1 or (options.directions is not None and options.directions < 1):
        parser.error("--batch and --directions must be positive")
    return options


def chosen_problems(names: Sequence[str] | None) -> list[LayerProblem]:
    """The whole table, or the named rows of it."""
    lists = (LAYER_PROBLEMS, LOOSE_PROBLEMS, CONE_PROBLEMS, GP_PROBLEMS)
    table = {problem.name: problem for problems in lists for problem in problems}
    unknown = sorted(set(names or ()) - set(table))
    if unknown:
        raise SystemExit(f"unknown problem {', '.join(unknown)}; known: {', '.join(table)}")
    return [table[name] for name in names or table]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the table and report."""
    options = parse_options(arguments)
    if options.dtype == "float64":
        mx.set_default_device(mx.Device(mx.DeviceType.cpu))
    bars = BARS[options.dtype]
    header = ("forward", "gradient", "reference", "ms fwd", "ms total")
    print(f"{options.layer}, {options.dtype}, batch {options.batch}; bars {bars[0]:g}, {bars[1]:g}")
    print(f"{'problem':28s} " + " ".join(f"{title:>9s}" for title in header), flush=True)
    rows = []
    for problem in chosen_problems(options.only):
        rows.append(measure(problem, options))
        print_row(rows[-1], bars)
    missed = [row.name for row in rows if not row.passes(bars)]
    worst = [np.max([getattr(r, f"{k}_error") for r in rows]) for k in ("forward", "gradient")]
    print(f"worst forward {worst[0]:.1e}, worst gradient {worst[1]:.1e}")
    print(f"{len(rows) - len(missed)} of {len(rows)} within the bars")
    print(f"results in {write_results(rows, options)}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
