"""Values and gradients of the layer on the whole problem table, against references.

The errors are those that ``bench/accuracy.py`` measures, computed by its functions.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from layer_problems import (
    LAYER_PROBLEMS,
    LOOSE_PROBLEMS,
    LayerProblem,
    built,
    element,
    reference_gradient,
    reference_values,
    sample_batch,
)
from layer_problems_cones import CONE_PROBLEMS, GP_PROBLEMS
from layer_reference import Derivative

from cvxpylayers_mlx import CvxpyLayer

Array = np.ndarray

PLAIN = {problem.name: problem for problem in (*LAYER_PROBLEMS, *LOOSE_PROBLEMS)}
TABLE = PLAIN | {problem.name: problem for problem in (*CONE_PROBLEMS, *GP_PROBLEMS)}
SEVERAL = [name for name, problem in PLAIN.items() if len(problem.build()[1]) > 1]
BATCH = 8


def _load_bench() -> ModuleType:
    """The benchmark as a module; ``bench`` is not a package."""
    path = Path(__file__).resolve().parent.parent / "bench" / "accuracy.py"
    spec = importlib.util.spec_from_file_location("bench_accuracy", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


bench = _load_bench()


class Reference(NamedTuple):
    """Reference values, gradients and the estimated error of these, one of each per element."""

    values: list[list[Array]]
    gradients: list[list[Array]]
    error: float


def options(dtype: str) -> argparse.Namespace:
    """Options of the benchmark: the layer's default settings, whole gradients."""
    return bench.parse_options(["--dtype", dtype, "--batch", str(BATCH)])


@cache
def task_of(name: str) -> Any:
    """Parameters and cotangents that float32 represents exactly, the same for both types."""
    return bench.make_task(TABLE[name], options("float32"))


def best_gradient(
    problem: LayerProblem, params: Sequence[Array], bars: Sequence[Array]
) -> Derivative:
    """The difference quotient that is known best: shorter steps where the solution bends more."""
    found = []
    for step in (1e-4, 4e-5):
        found.append(reference_gradient(problem, params, bars, step))
        if found[-1].error <= 0.01 * bench.BARS["float64"][1]:
            break
    return min(found, key=lambda one: one.error)


@cache
def reference_of(name: str) -> Reference:
    """Reference for the numbers of `task_of`."""
    task, problem = task_of(name), TABLE[name]
    params = [element(task.params, i) for i in range(BATCH)]
    bars = [element(task.cotangents, i) for i in range(BATCH)]
    values = [reference_values(problem, p) for p in params]
    found = [best_gradient(problem, p, c) for p, c in zip(params, bars, strict=True)]
    return Reference(values, [f.values for f in found], max(f.error for f in found))


@contextmanager
def place(dtype: str) -> Iterator[None]:
    """float64 exists on the CPU only."""
    if dtype == "float64":
        with mx.stream(mx.cpu):  # type: ignore[arg-type]
            yield
    else:
        yield


def layer_of(problem: LayerProblem) -> CvxpyLayer:
    """A new layer on new CVXPY objects, with default settings."""
    made, parameters, variables = problem.build()
    return CvxpyLayer(made, parameters=parameters, variables=variables, gp=problem.gp)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TABLE)
def test_values_and_gradients_equal_the_reference(name: str, dtype: str) -> None:
    """Largest error over the largest entry, on the worst element, with default settings."""
    task, reference = task_of(name), reference_of(name)
    with place(dtype):
        outputs, gradients, _ = bench.run_layer(task, options(dtype))
    forward_bar, gradient_bar = bench.BARS[dtype]
    # A reference that is itself uncertain proves nothing.
    assert reference.error < 0.01 * gradient_bar
    for i in range(BATCH):
        forward = bench.relative_error(element(outputs, i), reference.values[i])
        assert forward <= forward_bar, f"values of element {i}"
        got = bench.symmetrized(task, element(gradients, i))
        error = bench.relative_error(got, reference.gradients[i])
        assert error <= gradient_bar, f"gradient of element {i}"


def test_bars_are_the_promised_ones() -> None:
    """The benchmark's bars cannot be loosened without this failing."""
    assert bench.BARS == {"float32": (1e-6, 1e-4), "float64": (1e-9, 1e-7)}


def _pull_back(
    layer: CvxpyLayer, params: Sequence[Array], bars: Sequence[mx.array]
) -> tuple[list[Array], list[Array]]:
    """Values and gradients in float64."""
    values, gradients = mx.vjp(layer, bench.to_mlx(params, mx.float64), list(bars))
    return bench.to_numpy(values), bench.to_numpy(gradients)


@pytest.mark.parametrize("first_shared", [0, 1])
@pytest.mark.parametrize("name", SEVERAL)
def test_shared_parameters_equal_copies(name: str, first_shared: int) -> None:
    """Every second parameter unbatched: the same values, and the sum of the gradients."""
    problem, batch = TABLE[name], 4
    shared = range(first_shared, len(built(problem)[1]), 2)
    mixed = sample_batch(problem, batch, seed=1, shared=shared)
    copies = [
        np.broadcast_to(p, (batch, *p.shape)) if i in shared else p for i, p in enumerate(mixed)
    ]
    layer = layer_of(problem)
    with place("float64"):
        bars = bench.to_mlx([c[:batch] for c in task_of(name).cotangents], mx.float64)
        values, gradients = _pull_back(layer, mixed, bars)
        wanted, full = _pull_back(layer, copies, bars)
    summed = [g.sum(axis=0) if i in shared else g for i, g in enumerate(full)]
    assert [v.shape for v in values] == [w.shape for w in wanted]
    assert [g.shape for g in gradients] == [s.shape for s in summed]
    assert bench.relative_error(values, wanted) < 1e-10
    assert bench.relative_error(gradients, summed) < 1e-8
