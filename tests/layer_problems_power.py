"""Problems over power cones: norms, utilities, means."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
from layer_problems import Array, LayerProblem, Rng, make_problem, regression, scalar
from layer_reference import ProblemTuple

_STEPS = 200
_MEAN_WEIGHTS = (1, 2, 3)
_RETURN_TO_SCALE = 0.4


def _p_norm_regression() -> ProblemTuple:
    x, A, b = cp.Variable(3), cp.Parameter((6, 3)), cp.Parameter(6)
    return make_problem(cp.Minimize(cp.pnorm(A @ x - b, 3, approx=False))), [A, b], [x]


def _sample_p_norm_regression(rng: Rng) -> list[Array]:
    return list(regression(rng, 6, 3, noise=0.7))


def _direct_p_norm_regression(params: list[Array]) -> list[Array]:
    """Newton's method on the sum of cubes of the residuals."""
    A, b = params
    x = np.linalg.lstsq(A, b)[0]
    for _ in range(_STEPS):
        r = A @ x - b
        step = np.linalg.solve(2.0 * (A.T * np.abs(r)) @ A, A.T @ (np.abs(r) * r))
        # Halving until the sum of cubes falls keeps steps from cycling.
        size, cubes = 1.0, np.sum(np.abs(r) ** 3)
        while size > 1e-6 and np.sum(np.abs(A @ (x - size * step) - b) ** 3) > cubes * (1 + 1e-14):
            size *= 0.5
        x = x - size * step
    return [x]


def _p_norm_minimum() -> ProblemTuple:
    x, A, b = cp.Variable(5), cp.Parameter((2, 5)), cp.Parameter(2)
    # CVXPY's annotation of the exponent leaves out floats, which it takes.
    norm = cp.pnorm(x, 1.5, approx=False)  # pyright: ignore[reportArgumentType]
    return make_problem(cp.Minimize(norm), [A @ x == b]), [A, b], [x]


def _sample_p_norm_minimum(rng: Rng) -> list[Array]:
    return [rng.normal(size=(2, 5)), rng.normal(size=2)]


def _power_utility() -> ProblemTuple:
    x, tastes = cp.Variable(4), cp.Parameter(4, nonneg=True)
    prices, wealth = cp.Parameter(4, nonneg=True), cp.Parameter(nonneg=True)
    utility = tastes @ cp.power(x, _RETURN_TO_SCALE, approx=False)
    return make_problem(cp.Maximize(utility), [prices @ x <= wealth]), [tastes, prices, wealth], [x]


def _sample_power_utility(rng: Rng) -> list[Array]:
    return [rng.uniform(0.5, 1.5, 4), rng.uniform(0.5, 1.5, 4), scalar(rng.uniform(1.0, 3.0))]


def _direct_power_utility(params: list[Array]) -> list[Array]:
    tastes, prices, wealth = params
    demand = (tastes / prices) ** (1.0 / (1.0 - _RETURN_TO_SCALE))
    return [demand * wealth / (prices @ demand)]


def _geometric_mean() -> ProblemTuple:
    x, prices, wealth = cp.Variable(3), cp.Parameter(3, nonneg=True), cp.Parameter(nonneg=True)
    mean = cp.geo_mean(x, list(_MEAN_WEIGHTS), approx=False)
    return make_problem(cp.Maximize(mean), [prices @ x <= wealth]), [prices, wealth], [x]


def _sample_geometric_mean(rng: Rng) -> list[Array]:
    return [rng.uniform(0.5, 1.5, 3), scalar(rng.uniform(1.0, 3.0))]


def _direct_geometric_mean(params: list[Array]) -> list[Array]:
    prices, wealth = params
    return [np.array(_MEAN_WEIGHTS) / sum(_MEAN_WEIGHTS) * wealth / prices]


def _power_cone_projection() -> ProblemTuple:
    x, p = cp.Variable((3, 3)), cp.Parameter((3, 3))
    cones = [cp.PowCone3D(x[0], x[1], x[2], np.array([0.2, 0.5, 0.7]))]
    return make_problem(cp.Minimize(cp.sum_squares(x - p)), cones), [p], [x]


def _sample_power_cone_projection(rng: Rng) -> list[Array]:
    return [rng.normal(size=(3, 3))]


_P = frozenset({"p"})

POWER_PROBLEMS: tuple[LayerProblem, ...] = (
    LayerProblem(
        "p_norm_regression",
        _p_norm_regression,
        _sample_p_norm_regression,
        cones=_P,
        direct=_direct_p_norm_regression,
    ),
    LayerProblem("p_norm_minimum", _p_norm_minimum, _sample_p_norm_minimum, cones=_P),
    LayerProblem(
        "power_utility",
        _power_utility,
        _sample_power_utility,
        cones=_P,
        direct=_direct_power_utility,
    ),
    LayerProblem(
        "geometric_mean",
        _geometric_mean,
        _sample_geometric_mean,
        cones=_P,
        direct=_direct_geometric_mean,
    ),
    LayerProblem(
        "power_cone_projection", _power_cone_projection, _sample_power_cone_projection, cones=_P
    ),
)
"""Problems over power cones."""
