"""Second derivatives of smooth layers against differences of first ones, in float64."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from layer_problems import LAYER_PROBLEMS, sample_batch

from cvxpylayers_mlx import CvxpyLayer

TABLE = {problem.name: problem for problem in LAYER_PROBLEMS}
# The solution is a smooth function of the parameters around these points, and not a linear one.
SMOOTH = ("affine_projection", "ridge", "l2_ball_projection", "optnet_qp", "robust_least_squares")
STEP = 1e-5
Values = list[mx.array]


def wide(values: np.ndarray) -> mx.array:
    return mx.array(values, dtype=mx.float64)


def loss_of(name: str) -> tuple[Callable[..., mx.array], Values]:
    """Sum of cubes of all variables, and a batch of two."""
    problem, parameters, variables = TABLE[name].build()
    layer = CvxpyLayer(problem, parameters=parameters, variables=variables)

    def loss(*values: mx.array) -> mx.array:
        total = mx.array(0.0, dtype=mx.float64)
        for value in layer(*values):
            total = total + mx.sum(value**3)
        return total

    return loss, [wide(v) for v in sample_batch(TABLE[name], 2, 0, "float64")]


ORDERS = ["grad of grad", "grad of jvp", "jvp of grad", "jvp of grad, alone"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", SMOOTH)
def test_hessian_times_vector(name: str, order: str) -> None:
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        loss, values = loss_of(name)
        if order.endswith("alone"):  # without a batch axis there is one more step at each end
            values = [v[0] for v in values]
        which = list(range(len(values)))
        rng = np.random.default_rng(0)
        along = [wide(rng.standard_normal(v.shape)) for v in values]
        gradient = mx.grad(loss, argnums=which)

        def slope(*at: mx.array) -> mx.array:
            if order == "grad of jvp":
                return mx.jvp(loss, list(at), along)[1][0]
            pairs = zip(gradient(*at), along, strict=True)
            return sum((mx.sum(g * d) for g, d in pairs), mx.array(0.0, dtype=mx.float64))

        if order.startswith("jvp"):
            found = mx.jvp(lambda *at: gradient(*at), values, along)[1]
        else:
            found = mx.grad(slope, argnums=which)(*values)
        ends = [
            gradient(*(v + sign * STEP * d for v, d in zip(values, along, strict=True)))
            for sign in (1.0, -1.0)
        ]
        expected = [(up - down) / (2.0 * STEP) for up, down in zip(*ends, strict=True)]
        size = max(float(np.abs(np.array(e)).max()) for e in expected)
        assert size > 1e-3, "a linear map proves nothing"
        for f, e in zip(found, expected, strict=True):
            np.testing.assert_allclose(np.array(f), np.array(e), rtol=0, atol=1e-4 * size)


@pytest.mark.parametrize("name", ["ridge", "l2_ball_projection"])
def test_jacobians_by_rows_and_by_columns(name: str) -> None:
    """Full Jacobians by vmap over vjp and over jvp are the same matrix."""
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        problem, parameters, variables = TABLE[name].build()
        layer = CvxpyLayer(problem, parameters=parameters, variables=variables)
        values = [wide(v[0]) for v in sample_batch(TABLE[name], 1, 0, "float64")]
        (x, *_) = layer(*values)
        size, width = x.size, values[0].size

        def of_first(first: mx.array) -> mx.array:
            return layer(first, *values[1:])[0].reshape(-1)

        def row(weight: mx.array) -> mx.array:
            return mx.vjp(of_first, [values[0]], [weight])[1][0].reshape(-1)

        def column(direction: mx.array) -> mx.array:
            return mx.jvp(of_first, [values[0]], [direction.reshape(values[0].shape)])[1][0]

        rows = mx.vmap(row)(mx.eye(size, dtype=mx.float64))
        columns = mx.vmap(column)(mx.eye(width, dtype=mx.float64))
        assert rows.shape == (size, width)
        np.testing.assert_allclose(np.array(rows), np.array(columns).T, rtol=0, atol=1e-9)
