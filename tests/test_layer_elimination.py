"""Variables that leave the program: the same answers, duals and derivatives as without it.

What is solved without elimination (`Whole`) is itself checked against solvers of others and against
differences elsewhere; `mlxcone.testing` judges the restored solutions on the whole program here.
"""

from __future__ import annotations

import pickle
from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np
import pytest
from layer_programs import (
    LANES,
    Build,
    agree,
    gradients,
    pair,
    scs_cones,
    values,
    whole_data,
    wide,
)

import mlxcone
from cvxpylayers_mlx import CvxpyLayer
from cvxpylayers_mlx.eliminate import Elimination
from cvxpylayers_mlx.program import Whole
from mlxcone.testing import verify_infeasible, verify_solution, verify_unbounded

M, N = 6, 4


def least_squares() -> Any:
    x, A, b = cp.Variable(N), cp.Parameter((M, N)), cp.Parameter(M)
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0]), [A, b], [x]


def shared_matrix() -> Any:
    x, b = cp.Variable(N), cp.Parameter(M)
    A = np.random.default_rng(5).standard_normal((M, N))
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + cp.sum(x)), [x <= 1]), [b], [x]


def weighted() -> Any:
    """A cost that ties the eliminated variables to each other."""
    x, u, A, b = cp.Variable(N), cp.Variable(M), cp.Parameter((M, N)), cp.Parameter(M)
    Q = cp.Parameter((M, M), PSD=True)
    problem = cp.Problem(cp.Minimize(cp.quad_form(u, Q)), [A @ x - u == b, x >= -0.1])
    return problem, [A, b, Q], [x]


def named() -> Any:
    """Variables of the user that are functions of others, and a dual of their definition."""
    x, u = cp.Variable(N), cp.Variable(M)
    A, b, c = cp.Parameter((M, N)), cp.Parameter(M), cp.Parameter(M)
    defined = A @ x - u == b
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + c @ u), [defined, x <= 0.3])
    return problem, [A, b, c], [x, u, defined.dual_variables[0]]


def no_cones() -> Any:
    x, A, b = cp.Variable(N), cp.Parameter((M, N)), cp.Parameter(M)
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b))), [A, b], [x]


PROBLEMS: dict[str, Build] = {
    f.__name__: f for f in (least_squares, shared_matrix, weighted, named, no_cones)
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_fewer_variables(name: str) -> None:
    layer, whole, parameters = pair(PROBLEMS[name], Elimination)
    program: Any = layer._solver._program
    assert program.t.size == M
    assert program.x.size == whole._canonical.q.shape[0] - M
    assert program.cones.rows == whole._canonical.cones.rows - M
    found, expected = (one.solve(*values(parameters)) for one in (layer, whole))
    agree(found, expected, 1e-8)


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_is_restored_solves_the_whole_program(name: str) -> None:
    layer, _, parameters = pair(PROBLEMS[name], Elimination)
    given = values(parameters)
    solution = layer.solve(*given).canonical
    for k, (P, q, A, b) in enumerate(whole_data(layer, given)):
        x, y, s = (np.array(v[k]) for v in solution[:3])
        assert verify_solution(P, q, A, b, scs_cones(layer), x, y, s).worst < 1e-8


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients(name: str) -> None:
    layer, whole, parameters = pair(PROBLEMS[name], Elimination)
    given = values(parameters)

    for u, v in zip(gradients(layer, given), gradients(whole, given), strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-7, atol=1e-7)


def test_tangents_and_second_derivatives_follow_differences() -> None:
    layer, _, parameters = pair(least_squares, Elimination)
    A, b = (v[0] for v in values(parameters))
    direction = wide(np.random.default_rng(1).standard_normal(M))
    with mx.stream(mx.cpu):

        def along(t: mx.array) -> mx.array:
            return mx.sum(mx.square(layer(A, b + t * direction)[0]))

        (_,), (slope,) = mx.jvp(along, [wide(0.0)], [wide(1.0)])
        h = 1e-5
        ends = [along(wide(t)).item() for t in (h, -h)]
        assert slope.item() == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)
        bends = [mx.grad(along)(wide(t)).item() for t in (h, -h)]
        bend = mx.grad(mx.grad(along))(wide(0.0)).item()
        assert bend == pytest.approx((bends[0] - bends[1]) / (2 * h), rel=1e-5)


def test_vmap_and_shared_parameters() -> None:
    layer, _, parameters = pair(least_squares, Elimination)
    A, b = values(parameters)
    lanes = mx.stack([layer(A[0], b[k])[0] for k in range(LANES)])
    for found in (layer(A[0], b)[0], mx.vmap(lambda v: layer(A[0], v)[0])(b)):
        np.testing.assert_allclose(np.array(found), np.array(lanes), atol=1e-9)


def bounded() -> CvxpyLayer:
    """Least squares between two bounds, with a cost along which it may be unbounded."""
    x, b, low, c = (cp.Variable(N), cp.Parameter(M), cp.Parameter(N), cp.Parameter(N))
    A = np.zeros((M, N))
    A[:, :2] = np.random.default_rng(5).standard_normal((M, 2))
    objective = cp.sum_squares(A @ x - b) + c @ x
    problem = cp.Problem(cp.Minimize(objective), [x >= low, x[0] <= 1])
    layer = CvxpyLayer(problem, [b, low, c], [x], solver_args={"on_failure": "return"})
    assert isinstance(layer._solver._program, Elimination)
    return layer


def troubled() -> list[mx.array]:
    """A lane that is solved, one infeasible, one unbounded, one spoiled."""
    b = np.random.default_rng(0).standard_normal((4, M))
    low, c = np.zeros((4, N)), np.ones((4, N))
    low[1, 0], c[2, 3], b[3, 2] = 2.0, -1.0, np.nan
    return [wide(v) for v in (b, low, c)]


def test_certificates_are_of_the_whole_program() -> None:
    layer, given = bounded(), troubled()
    found = layer.solve(*given)
    assert found.info.status.tolist() == [1, -2, -1, -4]
    data = whole_data(layer, given)
    cones = {"z": M, "l": layer._canonical.cones.nonneg}
    x, y, s = (np.array(v) for v in found.canonical[:3])
    assert verify_infeasible(data[1][2], data[1][3], cones, y[1]) < 1e-7
    assert verify_unbounded(*data[2][:3], cones, x[2], s[2]) < 1e-7
    assert all(np.isnan(v[3]).all() for v in (x, y, s))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
def test_lanes_that_fail_are_nan_and_leave_the_others_alone(dtype: mx.Dtype) -> None:
    layer, options = bounded(), {"on_failure": "nan"}
    with mx.stream(mx.cpu):
        given = [v.astype(dtype) for v in troubled()]

        def loss(*v: mx.array) -> mx.array:
            found = layer.solve(*v, solver_args=options)
            return sum((mx.sum(p[0]) for p in (*found.variables, *found.canonical[:3])), wide(0.0))

        found = layer.solve(*given, solver_args=options)
        whole = mx.grad(loss, argnums=[0, 1, 2])(*given)
        alone = mx.grad(loss, argnums=[0, 1, 2])(*(v[:1] for v in given))
    for part in (*found.variables, *found.canonical[:3]):
        assert part.dtype == dtype
        values = np.array(part)
        assert np.isfinite(values[0]).all()
        assert np.isnan(values[1:]).all()
    for u, v in zip(whole, alone, strict=True):
        np.testing.assert_array_equal(np.array(u[0]), np.array(v[0]))
        np.testing.assert_array_equal(np.array(u[1:]), 0.0)


def test_a_lane_that_failed_has_a_gradient_of_nan() -> None:
    layer = bounded()
    with mx.stream(mx.cpu):
        b, low, c = troubled()
        grads = mx.grad(
            lambda v: mx.sum(layer(v, low, c, solver_args={"on_failure": "nan"})[0][1])
        )(b)
    assert np.isnan(np.array(grads[1])).any()
    np.testing.assert_array_equal(np.array(grads[0]), 0.0)


def test_warm_starts_are_of_the_whole_program() -> None:
    layer, _, parameters = pair(least_squares, Elimination)
    given = values(parameters)
    cold = layer.solve(*given)
    warm = layer.solve(*given, solver_args={"warm_start": cold})
    assert max(warm.info.iterations.tolist()) <= min(cold.info.iterations.tolist())
    for u, v in zip(warm.canonical[:3], cold.canonical[:3], strict=True):
        np.testing.assert_allclose(np.array(u), np.array(v), atol=1e-9)
    x, y, s = cold.canonical[:3]
    with pytest.raises(ValueError, match=r"warm_start\.x: expected shape"):
        layer.solve(*given, solver_args={"warm_start": (x[:, :N], y, s)})


def test_copies() -> None:
    layer, _, parameters = pair(weighted, Elimination)
    given = values(parameters)
    again = pickle.loads(pickle.dumps(layer))
    np.testing.assert_array_equal(np.array(again(*given)[0]), np.array(layer(*given)[0]))


def test_pivots_are_divided_by() -> None:
    """Rows c_i t_i = b_i - a_i'x with constants c_i of several sizes."""
    x, t, b = cp.Variable(N), cp.Variable(M), cp.Parameter(M)
    rng = np.random.default_rng(3)
    A, c = rng.standard_normal((M, N)), np.array([2.0, -3.0, 0.5, 1.0, -1.0, 7.0])
    row = cp.multiply(c, t) + A @ x == b
    problem = cp.Problem(cp.Minimize(cp.sum_squares(t) + cp.norm1(x)), [row])
    layer = CvxpyLayer(problem, [b], [x, t, row.dual_variables[0]])
    assert isinstance(layer._solver._program, Elimination)
    b.value = rng.standard_normal(M)
    problem.solve(solver=cp.CLARABEL)
    found = layer(wide(b.value))
    for value, expected in zip(found, (x.value, t.value, row.dual_value), strict=True):
        np.testing.assert_allclose(np.array(value), expected, atol=1e-6)


def test_nothing_to_eliminate() -> None:
    x, c = cp.Variable(N), cp.Parameter(N)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(c @ x), [x >= 0, x <= 1]), [c], [x])
    assert isinstance(layer._solver._program, Whole)


def test_one_variable_stays() -> None:
    """Every variable is fixed by a row of its own."""
    x, b = cp.Variable(N), cp.Parameter(N)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x)), [2.0 * x == b]), [b], [x])
    given = np.arange(1.0, N + 1.0)
    np.testing.assert_allclose(np.array(layer(wide(given))[0]), 0.5 * given, atol=1e-12)


def test_rounded_data_count_as_rounded() -> None:
    """Float32 rows that contradict each other by a rounding are still solved."""
    x, A, b = cp.Variable(N), cp.Parameter((M, N)), cp.Parameter(M)
    C, d = cp.Parameter((2, N)), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [C @ x == d, x <= 3])
    layer = CvxpyLayer(problem, [A, b, C, d], [x], solver_args={"on_failure": "return"})
    rng = np.random.default_rng(0)
    C0 = rng.standard_normal(N)
    rows = np.stack([C0, C0 / 3.0])
    given = [rng.standard_normal((M, N)), rng.standard_normal(M), rows, rows @ np.full(N, 0.3)]
    narrow = [mx.array(v.astype(np.float32)) for v in given]
    assert layer.solve(*narrow).info.status.item() == mlxcone.Status.SOLVED
