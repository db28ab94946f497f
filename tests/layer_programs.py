"""Layers beside the same ones that solve their program as CVXPY made it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np

from cvxpylayers_mlx import CvxpyLayer
from cvxpylayers_mlx.program import Whole

LANES = 3
Build = Callable[[], tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]]


def wide(value: Any) -> mx.array:
    return mx.array(np.asarray(value, dtype=np.float64), dtype=mx.float64)


def values(parameters: list[cp.Parameter], seed: int = 0, lanes: int = LANES) -> list[mx.array]:
    rng = np.random.default_rng(seed)
    drawn = [rng.standard_normal((lanes, *p.shape)) for p in parameters]
    spd = [
        v @ np.swapaxes(v, 1, 2) if p.is_psd() else v
        for v, p in zip(drawn, parameters, strict=True)
    ]
    return [wide(v) for v in spd]


def pair(
    build: Build, kind: type, **options: Any
) -> tuple[CvxpyLayer, CvxpyLayer, list[cp.Parameter]]:
    """The layer, whose program is of a kind, and the same one with the whole program."""
    problem, parameters, variables = build()
    made = [CvxpyLayer(problem, parameters, variables, solver_args=options) for _ in range(2)]
    assert isinstance(made[0]._solver._program, kind)
    made[1]._solver._program = Whole(made[1]._canonical)
    return made[0], made[1], parameters


def scs_cones(layer: CvxpyLayer) -> dict[str, Any]:
    """The cones of the whole program, as SCS names them."""
    cones = layer._canonical.cones
    return {
        "z": cones.zero,
        "l": cones.nonneg,
        "q": list(cones.soc),
        "s": list(cones.psd),
        "ep": cones.exp,
        "p": list(cones.power),
    }


def whole_data(layer: CvxpyLayer, given: list[mx.array]) -> list[Any]:
    """P, q, A, b of the whole program, one lane at a time."""
    caught: list[Any] = []

    def catch(read: Any, options: Any, wrong: Any) -> Any:
        caught.extend(Whole(layer._canonical).read(read)[:4])
        raise StopIteration

    keep, layer._solver = layer._solver, catch
    with contextlib.suppress(StopIteration):
        layer(*given)
    layer._solver = keep
    ranks = (2, 1, 2, 1)
    lanes = given[0].shape[0]
    return [
        [
            None if a is None else np.array(a[k] if a.ndim > r else a)
            for a, r in zip(caught, ranks, strict=True)
        ]
        for k in range(lanes)
    ]


def agree(found: Any, expected: Any, tolerance: float) -> None:
    """Two layer solutions are the same."""
    for u, v in zip(found.canonical[:3], expected.canonical[:3], strict=True):
        np.testing.assert_allclose(np.array(u), np.array(v), rtol=0, atol=tolerance)
    for u, v in zip(found.variables, expected.variables, strict=True):
        np.testing.assert_allclose(np.array(u), np.array(v), rtol=0, atol=tolerance)
    objective = np.array(expected.info.objective)
    np.testing.assert_allclose(np.array(found.info.objective), objective, rtol=0, atol=tolerance)


def gradients(layer: CvxpyLayer, given: list[mx.array]) -> list[np.ndarray]:
    """Of a function of everything that a layer returns."""

    def loss(*v: mx.array) -> mx.array:
        found = layer.solve(*v)
        parts = [*found.variables, *found.canonical[:3], found.info.objective]
        return sum((mx.sum(mx.sin(p)) for p in parts), wide(0.0))

    with mx.stream(mx.cpu):
        return [np.array(g) for g in mx.grad(loss, argnums=list(range(len(given))))(*given)]
