"""Solves of fixed length: one graph, so that `mx.compile` can have them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from layer_problems import LAYER_PROBLEMS
from layer_problems_cones import CONE_PROBLEMS, EXPONENTIAL_PROBLEMS, SEMIDEFINITE_PROBLEMS

import mlxcone
from cvxpylayers_mlx import CvxpyLayer
from mlxcone import Status
from mlxcone.testing import Instance, manufacture

N, CONES = 6, {"z": 1, "l": 5, "q": [3]}
OPTIONS: dict[str, Any] = {"fixed_iters": 60, "newton_iters": 10}
Function = Callable[..., mx.array]


def narrow(values: Any) -> mx.array:
    return mx.array(values, dtype=mx.float32)


def batch(seeds: range = range(4)) -> list[Instance]:
    return [manufacture.feasible(np.random.default_rng(k), N, CONES, unique=True) for k in seeds]


def arrays(instances: list[Instance], convert: Callable[[Any], mx.array] = narrow) -> list[Any]:
    return [convert(np.stack([getattr(i, name) for i in instances])) for name in "PqAb"]


def short(P: Any, q: Any, A: Any, b: Any) -> mx.array:
    return mlxcone.solve(P, q, A, b, CONES, **OPTIONS).x


def weighted(P: Any, q: Any, A: Any, b: Any) -> mx.array:
    x = short(P, q, A, b)
    return mx.sum(x * mx.arange(x.size, dtype=mx.float32).reshape(x.shape))


def close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    found, expected = np.array(found), np.array(expected)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_it_ends_where_the_ladder_ends() -> None:
    data = arrays(batch())
    solution = mlxcone.solve(*data, CONES, **OPTIONS)
    assert solution.info.status.tolist() == [Status.SOLVED] * 4
    assert solution.info.iterations.tolist() == [60] * 4
    for found, expected in zip(solution[:3], mlxcone.solve(*data, CONES)[:3], strict=True):
        close(found, expected)


@pytest.mark.parametrize("argument", range(4))
def test_compiled_values_and_gradients(argument: int) -> None:
    data = arrays(batch())
    compiled = mx.compile(short)
    close(compiled(*data), mlxcone.solve(*data, CONES).x)

    def reference(*values: mx.array) -> mx.array:
        x = mlxcone.solve(*values, CONES).x
        return mx.sum(x * mx.arange(x.size, dtype=mx.float32).reshape(x.shape))

    found = mx.compile(mx.grad(weighted, argnums=argument))(*data)
    close(found, mx.grad(reference, argnums=argument)(*data))


KINDS: dict[str, mlxcone.Cones] = {
    "box": mlxcone.Cones(zero=1, box=((-1.0, -2.0), (1.0, 0.5))),
    "psd": mlxcone.Cones(nonneg=2, psd=(2, 3)),
    "exp": mlxcone.Cones(nonneg=2, exp=2),
    "exp dual": mlxcone.Cones(nonneg=2, exp_dual=2),
    "power": mlxcone.Cones(nonneg=2, power=(0.3, -0.6)),
    "power nd": mlxcone.Cones(nonneg=2, power_nd=((0.3, 0.3, 0.4),)),
}


ALONE = {
    "psd alone": mlxcone.Cones(psd=(3,)),
    "exp alone": mlxcone.Cones(exp=2),
    "power alone": mlxcone.Cones(power=(0.3, -0.6)),
}


@pytest.mark.parametrize("kind", KINDS | ALONE)
@pytest.mark.parametrize("quadratic", [True, False])
def test_mlx_can_join_the_graph_of_every_cone(kind: str, quadratic: bool) -> None:
    """It raises `IndexError` for some graphs that make the same of one array three times.

    That shows in the call; building the kernels, which would take minutes, is left out.
    """
    cones, n, lanes = (KINDS | ALONE)[kind], 4, 2
    rng = np.random.default_rng(0)
    A, b = rng.standard_normal((lanes, cones.rows, n)), rng.standard_normal((lanes, cones.rows))
    P = narrow(np.stack([np.eye(n)] * lanes)) if quadratic else None
    data = [narrow(v) for v in (np.ones((lanes, n)), A, b)]

    def loss(*values: Any) -> mx.array:
        return mx.sum(mlxcone.solve(P, *values, cones, fixed_iters=2, newton_iters=2).x)

    assert mx.compile(loss)(*data).shape == ()
    gradients = mx.compile(mx.grad(loss, argnums=(0, 1)))(*data)
    assert [g.shape for g in gradients] == [data[0].shape, data[1].shape]


LAYERS = [
    *("ridge", "elastic_net", "huber_regression", "mpc_step", "matrix_weights"),
    *(row.name for row in EXPONENTIAL_PROBLEMS[::3]),
    *(row.name for row in SEMIDEFINITE_PROBLEMS[::3]),
]


@pytest.mark.parametrize("name", LAYERS)
def test_mlx_can_join_the_graph_of_a_layer_and_its_derivatives(name: str) -> None:
    row = next(r for r in (*LAYER_PROBLEMS, *CONE_PROBLEMS) if r.name == name)
    problem, parameters, variables = row.build()
    layer = CvxpyLayer(problem, parameters, variables)
    data = [narrow(v) for v in row.sample(np.random.default_rng(0))]
    how = {"fixed_iters": 2, "newton_iters": 1, "on_failure": "nan"}

    def loss(*values: mx.array) -> mx.array:
        return functools.reduce(mx.add, map(mx.sum, layer(*values, solver_args=how)))

    one = [mx.array(1.0)]
    gradients = mx.compile(lambda *v: mx.vjp(loss, list(v), one)[1])(*data)
    assert [g.shape for g in gradients] == [v.shape for v in data]
    ones = [mx.ones_like(v) for v in data]
    (tangent,) = mx.compile(lambda *v: mx.jvp(loss, list(v), ones)[1])(*data)
    assert tangent.shape == ()


def test_compiled_function_follows_its_arguments() -> None:
    """What is traced once must not hold the answer of the first call."""
    first, second = arrays(batch()), arrays(batch(range(4, 8)))
    compiled = mx.compile(short)
    mx.eval(compiled(*first))
    close(compiled(*second), mlxcone.solve(*second, CONES).x)


def test_vmap_and_jvp() -> None:
    P, q, A, b = arrays(batch())
    mapped = mx.vmap(lambda *v: mlxcone.solve(*v, CONES, **OPTIONS).x)(P, q, A, b)
    close(mapped, short(P, q, A, b))
    moved = [mx.zeros_like(P), mx.ones_like(q), mx.zeros_like(A), mx.ones_like(b)]
    compiled = mx.compile(lambda *v: mx.jvp(short, list(v), moved)[1][0])
    expected = mx.jvp(lambda *v: mlxcone.solve(*v, CONES).x, [P, q, A, b], moved)[1][0]
    close(compiled(P, q, A, b), expected)


def test_a_lane_of_nan_and_a_lane_without_solution_stay_alone() -> None:
    instances = batch()
    instances[1] = manufacture.infeasible(np.random.default_rng(0), N, CONES)
    data = arrays(instances)
    data[1][2] = mx.nan
    solution = mlxcone.solve(*data, CONES, **OPTIONS)
    codes = solution.info.status.tolist()
    assert codes[2] == Status.FAILED
    assert codes[1] == Status.INDETERMINATE
    expected = mlxcone.solve(*data, CONES)
    for lane in (0, 3):
        assert codes[lane] == Status.SOLVED
        close(solution.x[lane], expected.x[lane])
    filled = mlxcone.solve(*data, CONES, **OPTIONS, on_failure="nan").x
    assert np.isnan(np.array(filled)).all(axis=1).tolist() == [False, True, True, False]


def test_a_warm_start_is_used() -> None:
    """From the answer, one iteration and no Newton step lead to it; NaN counts as zero."""
    data = arrays(batch())
    start = mlxcone.solve(*data, CONES)
    options = {"fixed_iters": 1, "newton_iters": 0, "eps": 1e-5}
    found = mlxcone.solve(*data, CONES, warm_start=start, **options)
    assert found.info.status.tolist() == [Status.SOLVED] * 4
    close(found.x, start.x)
    nothing = tuple(v * mx.nan for v in start[:3])
    cold = mlxcone.solve(*data, CONES, warm_start=nothing, **options)
    np.testing.assert_array_equal(
        np.array(cold.x), np.array(mlxcone.solve(*data, CONES, **options).x)
    )


def test_too_few_iterations_are_reported() -> None:
    solution = mlxcone.solve(*arrays(batch()), CONES, fixed_iters=1, newton_iters=0)
    assert all(code == Status.INDETERMINATE for code in solution.info.status.tolist())


def test_raising_on_failure_is_refused() -> None:
    with pytest.raises(ValueError, match="fixed_iters rules out"):
        mlxcone.solve(*arrays(batch()), CONES, **OPTIONS, on_failure="raise")


def test_a_compiled_solve_of_open_length_raises() -> None:
    compiled = mx.compile(lambda *v: mlxcone.solve(*v, CONES).x)
    with pytest.raises(RuntimeError):
        mx.eval(compiled(*arrays(batch())))
