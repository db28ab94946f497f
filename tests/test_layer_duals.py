"""Dual variables of constraints as outputs of a layer, against CVXPY with Clarabel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np
import pytest

from cvxpylayers_mlx import CvxpyLayer

TIGHT = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
C = np.random.default_rng(5).standard_normal((3, 3))
pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
Built = tuple[cp.Problem, cp.Parameter, list[Any]]


def vector(constraints: Callable[[Any], list[Any]], sense: Any = cp.Minimize) -> Built:
    """Nearest point of a set to a parameter, or the negative of a largest one."""
    x, p = cp.Variable(3), cp.Parameter(3, value=[1.5, -0.7, 2.0])
    sign = 1.0 if sense is cp.Minimize else -1.0
    listed = constraints(x)
    return cp.Problem(sense(sign * cp.sum_squares(x - p)), listed), p, listed


def matrix() -> Built:
    X, p = cp.Variable((3, 3), symmetric=True), cp.Parameter(3, value=[0.5, -1.0, 0.2])
    listed = [X >> 0, cp.diag(X) == 1 + 0.1 * p]
    return cp.Problem(cp.Minimize(cp.sum_squares(X - C - C.T - cp.diag(p))), listed), p, listed


PROBLEMS: dict[str, Callable[[], Built]] = {
    "equality": lambda: vector(lambda x: [x[0] + x[1] == 1, cp.sum(x) == 2]),
    "inequality": lambda: vector(lambda x: [x <= 1, x >= -0.5]),
    "maximization": lambda: vector(lambda x: [x <= 1, cp.sum(x) == 0.5], cp.Maximize),
    "second order": lambda: vector(lambda x: [cp.SOC(cp.Constant(1.0), x)]),
    "norm": lambda: vector(lambda x: [cp.norm(x) <= 1, x[1] >= -0.1]),
    "exponential": lambda: vector(lambda x: [cp.ExpCone(x[0], x[1], x[2])]),
    "power": lambda: vector(lambda x: [cp.PowCone3D(x[0], x[1], x[2], 0.3)]),
    "semidefinite": matrix,
}


def wide(values: Any) -> mx.array:
    return mx.array(values, dtype=mx.float64)


def reference(problem: cp.Problem, constraints: list[Any]) -> list[np.ndarray]:
    problem.solve(solver=cp.CLARABEL, **TIGHT)
    return [np.array(d.value).reshape(d.shape) for c in constraints for d in c.dual_variables]


@pytest.mark.parametrize("name", PROBLEMS)
def test_values_and_gradients(name: str) -> None:
    """Values to 1e-6; the gradient of a weighted sum against differences of Clarabel's duals."""
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        problem, p, constraints = PROBLEMS[name]()
        duals = [d for c in constraints for d in c.dual_variables]
        layer = CvxpyLayer(problem, parameters=[p], variables=duals)
        at = np.array(p.value)
        expected = reference(problem, constraints)
        found = layer(wide(at))
        assert max(np.abs(e).max() for e in expected) > 1e-2, "no constraint is active"
        for f, e in zip(found, expected, strict=True):
            assert f.shape == e.shape
            np.testing.assert_allclose(np.array(f), e, rtol=0, atol=1e-6)
        weights = [
            np.random.default_rng(i).standard_normal(e.shape) for i, e in enumerate(expected)
        ]
        _, (gradient,) = mx.vjp(layer, [wide(at)], [wide(w) for w in weights])
        step = 1e-3  # Clarabel leaves 1e-8 in a dual, so less would measure that
        for i in range(at.size):
            ends = []
            for sign in (1.0, -1.0):
                p.value = at + sign * step * np.eye(at.size)[i]
                values = reference(problem, constraints)
                ends.append(sum(np.sum(w * v) for w, v in zip(weights, values, strict=True)))
            slope = (ends[0] - ends[1]) / (2.0 * step)
            assert gradient[i].item() == pytest.approx(slope, rel=1e-4, abs=1e-4)


def test_duals_beside_variables_in_a_batch() -> None:
    x, p = cp.Variable(3), cp.Parameter(3)
    bound = x >= 0
    layer = CvxpyLayer(
        cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [bound]),
        parameters=[p],
        variables=[bound.dual_variables[0], x],
    )
    points = mx.array([[1.0, -2.0, 3.0], [-1.0, 0.5, -0.25]])
    dual, value = layer(points)
    np.testing.assert_allclose(np.array(value), np.maximum(np.array(points), 0), atol=1e-6)
    np.testing.assert_allclose(np.array(dual), 2 * np.maximum(-np.array(points), 0), atol=1e-6)


def test_constraints_keep_the_dual_values_they_had() -> None:
    problem, p, constraints = PROBLEMS["second order"]()
    before = reference(problem, constraints)
    duals = [d for c in constraints for d in c.dual_variables]
    CvxpyLayer(problem, parameters=[p], variables=duals)
    for dual, value in zip(duals, before, strict=True):
        np.testing.assert_array_equal(np.reshape(dual.value, dual.shape), value)


def test_duals_of_a_geometric_program() -> None:
    """A dual is the rate at which log p* falls as its constraint f <= u is relaxed in log u."""
    x, y, z = (cp.Variable(pos=True) for _ in range(3))
    wall, shape, power, u = (cp.Parameter(pos=True) for _ in range(4))
    constraints = [wall * (x * y + x * z + y * z) <= u, cp.power(y, power) <= x, x * y == shape * z]
    objective = cp.Minimize(1 / (x * y * z))
    problem = cp.Problem(objective, constraints)
    duals = [c.dual_variables[0] for c in constraints]
    layer = CvxpyLayer(problem, [wall, shape, power, u], [x, y, z, *duals], gp=True)
    point = np.array([2.0, 0.5, 0.7, 1.3])

    def solve(at: np.ndarray) -> np.ndarray:
        return np.array([v.item() for v in layer(*(wide(v) for v in at))])

    def total(*p: Any) -> mx.array:
        return sum(layer(*p)[3:], mx.array(0.0))

    def log_optimum(at: np.ndarray) -> float:
        return float(-np.log(solve(at)[:3]).sum())

    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        step = 1e-5
        ahead, behind = (point * np.exp([0, 0, 0, s]) for s in (step, -step))
        rate = (log_optimum(ahead) - log_optimum(behind)) / (2 * step)
        found = solve(point)
        assert found[3] == pytest.approx(-rate, rel=1e-7)
        # Twice as large a factor in an equality is twice as large a left side.
        ahead, behind = (point * np.exp([0, s, 0, 0]) for s in (step, -step))
        rate = (log_optimum(ahead) - log_optimum(behind)) / (2 * step)
        assert found[5] == pytest.approx(-rate, rel=1e-7)
        gradient = mx.grad(total, argnums=(0, 1, 2, 3))
        slopes = [v.item() for v in gradient(*(wide(v) for v in point))]
        for i, slope in enumerate(slopes):
            shift = step * np.eye(4)[i]
            difference = (solve(point + shift) - solve(point - shift))[3:].sum() / (2 * step)
            assert slope == pytest.approx(difference, rel=1e-6, abs=1e-7)
    for parameter, v in zip((wall, shape, power, u), point, strict=True):
        parameter.value = v
    problem.solve(gp=True, solver=cp.CLARABEL, **TIGHT)
    expected = [float(np.asarray(c.dual_value).item()) for c in constraints]
    np.testing.assert_allclose(found[3:], expected, rtol=1e-4, atol=1e-6)


def test_prices_of_a_fisher_market() -> None:
    """Duals of the supplies: what the buyers pay in total for each good is its price."""
    rng = np.random.default_rng(1)
    shares, budgets = cp.Variable((3, 4), nonneg=True), cp.Parameter(3, nonneg=True)
    values = cp.Parameter((3, 4), nonneg=True)
    utility, sold = cp.Variable(3), cp.NonNeg(1 - cp.sum(shares, axis=0))
    useful = utility == cp.sum(cp.multiply(values, shares), axis=1)
    problem = cp.Problem(cp.Maximize(budgets @ cp.log(utility)), [sold, useful])
    layer = CvxpyLayer(problem, [budgets, values], [shares, sold.dual_variables[0]])
    money, worth = rng.uniform(1.0, 2.0, 3), rng.uniform(0.5, 2.0, (3, 4))
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        given = [wide(money), wide(worth)]
        x, prices = (np.array(v) for v in layer(*given))
        np.testing.assert_allclose(x @ prices, money, rtol=1e-8)
        # Everyone buys only what gives the most for the money.
        best = (worth / prices).max(axis=1, keepdims=True)
        assert np.abs(x * (best - worth / prices)).max() < 1e-7
        bar = rng.standard_normal(4)
        _, gradients = mx.vjp(lambda *p: layer(*p)[1], given, [wide(bar)])
        step = 1e-5
        for base, gradient in zip((money, worth), gradients, strict=True):
            d = rng.standard_normal(base.shape)
            ahead, behind = (
                np.array(layer(*(wide(v + s * d if v is base else v) for v in (money, worth)))[1])
                for s in (step, -step)
            )
            difference = bar @ (ahead - behind) / (2 * step)
            assert np.sum(np.array(gradient) * d) == pytest.approx(difference, rel=1e-5, abs=1e-6)
