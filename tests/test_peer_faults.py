"""Faults seen in other differentiable conic solvers: one test each, failing if it comes back."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np
import pytest

import mlxcone
from cvxpylayers_mlx import CvxpyLayer
from mlxcone import Status

NAN = {"on_failure": "nan"}


def narrow(values: Any) -> mx.array:
    return mx.array(values, dtype=mx.float32)


def ball(**options: Any) -> CvxpyLayer:
    """Projection on the unit ball: smooth and curved outside."""
    x, p = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm(x) <= 1])
    return CvxpyLayer(problem, parameters=[p], variables=[x], **options)


def between() -> CvxpyLayer:
    """Projection on low <= x <= high: infeasible where they cross."""
    x, p, low, high = cp.Variable(2), cp.Parameter(2), cp.Parameter(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= low, x <= high])
    return CvxpyLayer(problem, parameters=[p, low, high], variables=[x])


def crossed() -> list[mx.array]:
    """Three elements, the second infeasible."""
    return [mx.full((3, 2), 0.5), narrow([0.0, 1.0, 0.0]), narrow([1.0, 0.0, 0.2])]


OUTSIDE = np.array([2.0, -1.0, 2.0])  # norm 3: x = p / 3, J = (I - u u') / 3


def test_jvp_is_not_zero() -> None:
    _, (moved,) = mx.jvp(ball(), [narrow(OUTSIDE)], [narrow([1.0, 0.0, 0.0])])
    u = OUTSIDE / 3.0
    np.testing.assert_allclose(np.array(moved), (np.eye(3) - np.outer(u, u))[0] / 3.0, atol=1e-5)


def test_gradient_of_a_gradient_is_not_zero() -> None:
    layer = ball()

    def slope(p: mx.array) -> mx.array:
        return mx.grad(lambda v: layer(v)[0][0])(p)[0]

    # d/dp_0 of (1 - p_0^2 / |p|^2) / |p| at p = (2, -1, 2).
    r, a = 3.0, 2.0
    expected = -a / r**3 - 2.0 * a / r**3 + 3.0 * a**3 / r**5
    assert mx.grad(slope)(narrow(OUTSIDE))[0].item() == pytest.approx(expected, rel=1e-4)


def test_vmap_compile_and_two_batch_axes() -> None:
    layer = ball(solver_args={"fixed_iters": 60, **NAN})
    points = np.random.default_rng(0).standard_normal((2, 4, 3)) * 5.0
    expected = points / np.linalg.norm(points, axis=-1, keepdims=True)
    data = narrow(points)
    for found in (
        mx.vmap(ball())(data)[0],
        mx.vmap(mx.vmap(ball()))(data)[0],
        mx.stack([mx.compile(layer)(data[k])[0] for k in range(2)]),
    ):
        np.testing.assert_allclose(np.array(found), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32, mx.float64])
def test_dtype_in_is_dtype_out(dtype: mx.Dtype) -> None:
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        p = mx.array(OUTSIDE, dtype=dtype)
        (x,) = ball()(p)
        gradient = mx.grad(lambda v: mx.sum(ball()(v)[0]))(p)
        assert x.dtype == gradient.dtype == dtype
        accuracy = {mx.float16: 1e-3, mx.bfloat16: 1e-2, mx.float32: 1e-6, mx.float64: 1e-9}
        found = np.array(x.astype(mx.float64))
    np.testing.assert_allclose(found, OUTSIDE / 3.0, atol=accuracy[dtype])


def test_one_infeasible_element_does_not_stop_the_batch() -> None:
    layer, data = between(), crossed()
    with pytest.raises(mlxcone.SolverError, match="lane 1"):
        layer(*data)
    (x,) = layer(*data, solver_args=NAN)
    np.testing.assert_allclose(np.array(x)[[0, 2]], [[0.5, 0.5], [0.2, 0.2]], atol=1e-6)


def test_an_infeasible_element_has_no_value_and_no_gradient() -> None:
    layer, data = between(), crossed()
    x, (gradient,) = mx.vjp(
        lambda p: layer(p, *data[1:], solver_args=NAN)[0], [data[0]], [mx.ones((3, 2))]
    )
    assert np.isnan(np.array(x[0])[1]).all()
    assert np.isnan(np.array(gradient)[1]).all()
    np.testing.assert_allclose(np.array(gradient)[0], 1.0, atol=1e-6)


def test_nan_in_the_data_is_a_failure() -> None:
    A, b, q = narrow([[1.0], [-1.0]]), narrow([1.0, 1.0]), narrow([[1.0], [mx.nan]])
    solution = mlxcone.solve(None, q, A, b, {"l": 2})
    assert solution.info.status.tolist() == [Status.SOLVED, Status.FAILED]
    assert np.isnan(np.array(solution.x)[1]).all()
    assert solution.x[0].item() == pytest.approx(-1.0, abs=1e-6)


def test_no_constraint_is_lost_on_the_way() -> None:
    """CVXPY moves sign constraints elsewhere for solvers that take them apart."""
    p = cp.Parameter(3)
    x, y = cp.Variable(3, nonneg=True), cp.Variable(3, nonpos=True)
    z = cp.Variable(3, bounds=[-0.5, 0.5])
    objective = cp.sum_squares(x - p) + cp.sum_squares(y - p) + cp.sum_squares(z - p)
    problem = cp.Problem(cp.Minimize(objective))
    found = CvxpyLayer(problem, parameters=[p], variables=[x, y, z])(narrow([-1.0, 0.2, 3.0]))
    expected = ([0.0, 0.2, 3.0], [-1.0, 0.0, 0.0], [-0.5, 0.2, 0.5])
    for value, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.array(value), wanted, atol=1e-6)


def test_a_second_layer_of_one_problem_is_right() -> None:
    x, A, b = cp.Variable(3), cp.Parameter((4, 3)), cp.Parameter(4)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [cp.norm(x) <= 1, x >= -0.5])
    rng = np.random.default_rng(0)
    A.value, b.value = rng.standard_normal((4, 3)), 3.0 * rng.standard_normal(4)
    layers = [CvxpyLayer(problem, parameters=[A, b], variables=[x]) for _ in range(3)]
    problem.solve(solver=cp.CLARABEL)
    layers.append(CvxpyLayer(problem, parameters=[A, b], variables=[x]))
    for layer in layers:
        (found,) = layer(narrow(A.value), narrow(b.value))
        np.testing.assert_allclose(np.array(found), x.value, atol=1e-5)


def test_a_quadratic_objective_stays_quadratic() -> None:
    x, p = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + p @ x), [x >= -1])
    layer = CvxpyLayer(problem, parameters=[p], variables=[x])
    form = layer._canonical
    assert form.P is not None
    assert not form.cones.soc


def test_gradients_at_a_degenerate_vertex_stay_bounded() -> None:
    """Five half-spaces through one point of the plane; the projection has slopes up to 1."""
    x, p = cp.Variable(2), cp.Parameter(2)
    angles = np.linspace(0.1, 1.4, 5)
    normals = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [normals @ x <= 0])
    layer = CvxpyLayer(problem, parameters=[p], variables=[x])
    for point in ([0.0, 0.0], [1.0, 1.0], [np.cos(0.1), np.sin(0.1)]):
        for row in np.eye(2):
            _, (gradient,) = mx.vjp(layer, [narrow(point)], [narrow(row)])
            assert np.linalg.norm(np.array(gradient)) <= 1.0 + 1e-4


def test_a_bad_solver_argument_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown solver argument 'epsilon'.*max_iters"):
        ball()(narrow(OUTSIDE), solver_args={"epsilon": 1e-3})
