"""Programs in standard form, solved through their duals: the same answers as without.

As for elimination, `mlxcone.testing` judges what is restored on the whole program.
"""

from __future__ import annotations

import pickle
from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np
import pytest
from layer_programs import Build, agree, gradients, pair, scs_cones, values, whole_data, wide

import mlxcone
from cvxpylayers_mlx import CvxpyLayer
from cvxpylayers_mlx.dualize import Dual
from cvxpylayers_mlx.program import Whole
from mlxcone.testing import verify_infeasible, verify_solution, verify_unbounded

N = 8


def linear() -> Any:
    x, c, b = cp.Variable(N), cp.Parameter(N), cp.Parameter(2)
    A = np.abs(np.random.default_rng(0).standard_normal((2, N)))
    return cp.Problem(cp.Minimize(c @ x), [A @ x == b, x >= 0]), [c, b], [x]


def scaled() -> Any:
    """Bounds with factors and offsets of their own."""
    x, c = cp.Variable(N), cp.Parameter(N)
    A = np.random.default_rng(0).standard_normal((2, N))
    factors = np.linspace(-2.0, 3.0, N)
    problem = cp.Problem(
        cp.Minimize(c @ x), [A @ x == 1, cp.multiply(factors, x) <= 1 + factors**2]
    )
    return problem, [c], [x, problem.constraints[0].dual_variables[0]]


def norms() -> Any:
    x, t, c = cp.Variable(N), cp.Variable(), cp.Parameter(N)
    A = np.random.default_rng(0).standard_normal((2, N))
    return cp.Problem(cp.Minimize(t + 0.1 * c @ x), [A @ x == 1, cp.SOC(t, x)]), [c], [x, t]


def max_cut() -> Any:
    X, C = cp.Variable((4, 4), PSD=True), cp.Parameter((4, 4), symmetric=True)
    rows = cp.diag(X) == 1
    problem = cp.Problem(cp.Maximize(cp.trace(C @ X)), [rows])
    return problem, [C], [X, rows.dual_variables[0]]


def entropy() -> Any:
    x, c = cp.Variable(N), cp.Parameter(N)
    return cp.Problem(cp.Maximize(c @ x + cp.sum(cp.entr(x))), [cp.sum(x) == 1]), [c], [x]


def powers() -> Any:
    x, t, c = cp.Variable(4), cp.Variable(2), cp.Parameter(2)
    cone = cp.PowCone3D(x[:2], x[2:], t, np.array([0.3, 0.6]))
    A = np.array([[1.0, 1.0, 0.2, 0.0], [0.0, 0.1, 1.0, 1.0]])
    return cp.Problem(cp.Maximize((1.5 + cp.sum(t)) + 0.1 * c @ t), [A @ x == 1, cone]), [c], [x, t]


PROBLEMS: dict[str, Build] = {
    f.__name__: f for f in (linear, scaled, norms, max_cut, entropy, powers)
}


def given_for(name: str, parameters: list[cp.Parameter]) -> list[mx.array]:
    drawn = values(parameters)
    if name == "linear":  # bounded and feasible
        A = np.abs(np.random.default_rng(0).standard_normal((2, N)))
        return [mx.abs(drawn[0]) + 0.1, wide(np.random.default_rng(1).uniform(size=(3, N)) @ A.T)]
    if name == "scaled":
        # q in the range of the rows and of the cone.
        rng = np.random.default_rng(4)
        A = np.random.default_rng(0).standard_normal((2, N))
        factors = np.linspace(-2.0, 3.0, N)
        y, z = rng.standard_normal((3, 2)), np.abs(rng.standard_normal((3, N)))
        return [wide(-(y @ A + z * factors))]
    if name == "max_cut":
        return [0.5 * (v + mx.swapaxes(v, 1, 2)) for v in drawn]
    return drawn


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_same_answers(name: str) -> None:
    layer, whole, parameters = pair(PROBLEMS[name], Dual)
    given = given_for(name, parameters)
    found = layer.solve(*given)
    agree(found, whole.solve(*given), 2e-7)
    for k, (P, q, A, b) in enumerate(whole_data(layer, given)):
        assert P is None
        x, y, s = (np.array(v[k]) for v in found.canonical[:3])
        assert verify_solution(None, q, A, b, scs_cones(layer), x, y, s).worst < 1e-7


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients(name: str) -> None:
    layer, whole, parameters = pair(PROBLEMS[name], Dual)
    given = given_for(name, parameters)
    for u, v in zip(gradients(layer, given), gradients(whole, given), strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-5)


def troubled() -> list[mx.array]:
    """A lane that is solved, one infeasible, one unbounded, one spoiled."""
    c, b = np.ones((4, N)), np.ones((4, 2))
    b[1, 0], c[2, 3], c[3, 1] = -1.0, 0.0, np.nan
    return [wide(c), wide(b)]


def rays() -> Any:
    """A linear program of which a variable has no part in the rows."""
    x, c, b = cp.Variable(N), cp.Parameter(N), cp.Parameter(2)
    A = np.abs(np.random.default_rng(0).standard_normal((2, N)))
    A[:, 3] = 0.0
    rows = [A @ x == b, x >= 0]
    return cp.Problem(cp.Minimize((c - (np.arange(N) == 3)) @ x), rows), [c, b], [x]


def test_certificates_are_of_the_whole_program() -> None:
    layer, _, _ = pair(rays, Dual, on_failure="return")
    given = troubled()
    given[0] = given[0] + 1.0 * (mx.arange(N) == 3)
    found = layer.solve(*given)
    assert found.info.status.tolist() == [1, -2, 1, -4]
    c = np.array(given[0])
    c[2, 3] = 0.5
    found = layer.solve(wide(c), given[1])
    assert found.info.status.tolist() == [1, -2, -1, -4]
    data, cones = whole_data(layer, [wide(c), given[1]]), scs_cones(layer)
    x, y, s = (np.array(v) for v in found.canonical[:3])
    assert verify_infeasible(data[1][2], data[1][3], cones, y[1]) < 1e-7
    assert verify_unbounded(*data[2][:3], cones, x[2], s[2]) < 1e-7
    assert all(np.isnan(v[3]).all() for v in (x, y, s))
    assert np.isnan(np.array(found.info.objective)[1:]).all()


def test_errors_name_what_is_wrong_with_the_program_itself() -> None:
    layer, _, _ = pair(linear, Dual)
    c, b = (v[0] for v in troubled())
    with pytest.raises(mlxcone.SolverError, match="INFEASIBLE") as caught:
        layer(c, -b)
    assert caught.value.statuses == {0: mlxcone.Status.INFEASIBLE}
    with pytest.raises(mlxcone.SolverError, match="INFEASIBLE"):
        mx.eval(mx.vmap(lambda v: layer(c, v)[0])(mx.stack([b, -b])))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
def test_lanes_that_fail_are_nan_and_leave_the_others_alone(dtype: mx.Dtype) -> None:
    layer, _, _ = pair(linear, Dual, on_failure="nan")
    with mx.stream(mx.cpu):
        given = [v.astype(dtype) for v in troubled()]
        given[0] = given[0] - 2.0 * (mx.arange(4) == 2)[:, None]

        def loss(*v: mx.array) -> mx.array:
            found = layer.solve(*v)
            return sum((mx.sum(p[0]) for p in (*found.variables, *found.canonical[:3])), wide(0.0))

        found = layer.solve(*given)
        grads = mx.grad(loss, argnums=[0, 1])(*given)
        alone = mx.grad(loss, argnums=[0, 1])(*(v[:1] for v in given))
    for part in (*found.variables, *found.canonical[:3]):
        assert part.dtype == dtype
        assert np.isfinite(np.array(part)[0]).all()
        assert np.isnan(np.array(part)[[1, 3]]).all()
    for u, v in zip(grads, alone, strict=True):
        np.testing.assert_array_equal(np.array(u[0]), np.array(v[0]))
        np.testing.assert_array_equal(np.array(u[1:]), 0.0)


def test_transforms() -> None:
    layer, _, parameters = pair(max_cut, Dual)
    (C,) = given_for("max_cut", parameters)
    together = layer(C)[0]
    for quiet in ({}, {"on_failure": "nan"}):
        mapped = mx.vmap(lambda v, quiet=quiet: layer(v, solver_args=quiet)[0])(C)
        np.testing.assert_allclose(np.array(mapped), np.array(together), atol=1e-7)
    direction = wide(np.diag([1.0, -2.0, 0.5, 0.0]) + 0.3)
    with mx.stream(mx.cpu):

        def along(t: mx.array) -> mx.array:
            return mx.sum(mx.square(layer(C[0] + t * direction)[0]))

        (_,), (slope,) = mx.jvp(along, [wide(0.0)], [wide(1.0)])
        h = 1e-5
        ends = [along(wide(t)).item() for t in (h, -h)]
        assert slope.item() == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4, abs=1e-6)
        bends = [mx.grad(along)(wide(t)).item() for t in (h, -h)]
        bend = mx.grad(mx.grad(along))(wide(0.0)).item()
        assert bend == pytest.approx((bends[0] - bends[1]) / (2 * h), rel=1e-3, abs=1e-5)


def test_warm_starts_and_copies() -> None:
    layer, _, parameters = pair(entropy, Dual)
    given = given_for("entropy", parameters)
    cold = layer.solve(*given)
    warm = layer.solve(*given, solver_args={"warm_start": cold})
    agree(warm, cold, 1e-8)
    assert max(warm.info.iterations.tolist()) <= min(cold.info.iterations.tolist())
    x, y, s = cold.canonical[:3]
    with pytest.raises(ValueError, match=r"warm_start\.y: expected shape"):
        layer.solve(*given, solver_args={"warm_start": (x, y[:, :2], s)})
    again = pickle.loads(pickle.dumps(layer))
    np.testing.assert_array_equal(np.array(again(*given)[0]), np.array(layer(*given)[0]))


@pytest.mark.parametrize("kind", ["quadratic", "two rows", "parameter", "no gain", "n-d power"])
def test_other_forms_stay(kind: str) -> None:
    x, c = cp.Variable(N), cp.Parameter(N)
    objective, rows = c @ x, [cp.sum(x) == 1, x >= 0]
    if kind == "quadratic":
        objective = objective + cp.sum_squares(x)
    elif kind == "two rows":
        rows.append(x <= 1)
    elif kind == "parameter":
        rows[1] = cp.multiply(cp.exp(0.0) * cp.Parameter(N, name="d", nonneg=True), x) <= 1
    elif kind == "no gain":
        rows[0] = np.eye(N)[:-1] @ x + cp.sum(x) == 1
    elif kind == "n-d power":
        t = cp.Variable()
        rows[1] = cp.PowConeND(x, t, np.full(N, 1.0 / N))
        objective = objective - t
    problem = cp.Problem(cp.Minimize(objective), rows)
    layer = CvxpyLayer(problem, problem.parameters(), [x])
    assert isinstance(layer._solver._program, Whole)
