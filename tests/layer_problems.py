"""Parametrized convex problems on which layers are tested and measured.

Every problem follows CVXPY's rules for parametrized programs and canonicalizes to a quadratic
objective over zero, nonnegative and second-order cones; those with other cones are in
`layer_problems_cones.py`. `sample_batch` only hands out parameter values at which the solution is
unique and varies smoothly with every parameter entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import cvxpy as cp
import numpy as np
from layer_reference import (
    DEFAULT_STEP,
    Derivative,
    ProblemTuple,
    ReferenceError,
    Regularity,
    directional_derivative,
    gradient,
    regularity,
    solve,
)

Array = np.ndarray
Rng = np.random.Generator

# A draw is kept when no single parameter entry reaches a kink within this relative change, and
# when neither the solution nor the optimality system amplifies rounding errors too much. Solutions
# and derivatives that vanish are left out: relative errors mean nothing there.
MIN_KINK = 5e-3
MIN_SIZE = 1e-2
MIN_SENSITIVITY = 5e-2
MAX_SENSITIVITY = 30.0
MAX_CONDITION = 1e4
_MAX_DRAWS = 200


@dataclass(frozen=True)
class LayerProblem:
    """One row of the table.

    Attributes:
        name: Unique name.
        build: Makes fresh CVXPY objects: the problem, its parameters, its variables.
        sample: Draws one float64 array per parameter.
        loose: Auxiliary variables of the canonical form need not be unique.
        cones: Names in SCS's dictionary of the cones it needs beyond "z", "l" and "q".
        direct: The variables' values by another method, in which neither CVXPY nor a cone occurs.
        log_form: Of a geometric program: a convex problem, written by hand, in the logarithms of
            the parameters and of the variables, whose order is that of `build`.
    """

    name: str
    build: Callable[[], ProblemTuple]
    sample: Callable[[Rng], list[Array]]
    loose: bool = False
    cones: frozenset[str] = frozenset()
    direct: Callable[[list[Array]], list[Array]] | None = None
    log_form: Callable[[], ProblemTuple] | None = None

    @property
    def gp(self) -> bool:
        """Whether the problem is a geometric program."""
        return self.log_form is not None


def make_problem(objective: Any, constraints: Sequence[Any] = ()) -> cp.Problem:
    """Make a problem; CVXPY's own annotations do not admit what `<=` and `==` may return."""
    return cp.Problem(objective, list(constraints))


def scalar(value: float | np.floating) -> Array:
    return np.asarray(value, dtype=np.float64)


def _matrix(rng: Rng, rows: int, columns: int) -> Array:
    """Random matrix whose columns have norm near one."""
    return rng.normal(size=(rows, columns)) / np.sqrt(rows)


def regression(rng: Rng, rows: int, columns: int, noise: float = 0.3) -> tuple[Array, Array]:
    """Features and noisy responses of a sparse linear model with standard normal features."""
    A = rng.normal(size=(rows, columns))
    truth = rng.normal(size=columns) * (rng.random(columns) < 0.6)
    return A, A @ truth + noise * rng.normal(size=rows)


# --- projections ---------------------------------------------------------------------------


def _simplex_projection() -> ProblemTuple:
    x, p = cp.Variable(8), cp.Parameter(8)
    problem = make_problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    return problem, [p], [x]


def _sample_simplex_projection(rng: Rng) -> list[Array]:
    return [0.5 * rng.normal(size=8)]


def _box_projection() -> ProblemTuple:
    x, p, low, high = cp.Variable(10), cp.Parameter(10), cp.Parameter(10), cp.Parameter(10)
    problem = make_problem(cp.Minimize(cp.sum_squares(x - p)), [low <= x, x <= high])
    return problem, [p, low, high], [x]


def _sample_box_projection(rng: Rng) -> list[Array]:
    low, high = -rng.uniform(0.3, 1.0, 10), rng.uniform(0.3, 1.0, 10)
    return [rng.normal(size=10), low, high]


def _l1_ball_projection() -> ProblemTuple:
    x, p, radius = cp.Variable(8), cp.Parameter(8), cp.Parameter(nonneg=True)
    problem = make_problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm1(x) <= radius])
    return problem, [p, radius], [x]


def _sample_l1_ball_projection(rng: Rng) -> list[Array]:
    return [rng.normal(size=8), scalar(rng.uniform(0.8, 2.0))]


def _l2_ball_projection() -> ProblemTuple:
    x, p, radius = cp.Variable(6), cp.Parameter(6), cp.Parameter(nonneg=True)
    problem = make_problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm2(x) <= radius])
    return problem, [p, radius], [x]


def _sample_l2_ball_projection(rng: Rng) -> list[Array]:
    # Outside the ball: inside it CVXPY's bound on the norm would not be unique.
    p = rng.normal(size=6)
    return [p, scalar(np.linalg.norm(p) * rng.uniform(0.3, 0.9))]


def _soc_projection() -> ProblemTuple:
    x, t, p, s = cp.Variable(5), cp.Variable(), cp.Parameter(5), cp.Parameter()
    distance = cp.sum_squares(x - p) + cp.square(t - s)
    return make_problem(cp.Minimize(distance), [cp.SOC(t, x)]), [p, s], [x, t]


def _sample_soc_projection(rng: Rng) -> list[Array]:
    return [rng.normal(size=5), scalar(rng.normal())]


def _polyhedron_projection() -> ProblemTuple:
    x, p = cp.Variable(6), cp.Parameter(6)
    A, b = cp.Parameter((10, 6)), cp.Parameter(10)
    return make_problem(cp.Minimize(cp.sum_squares(x - p)), [A @ x <= b]), [p, A, b], [x]


def _sample_polyhedron_projection(rng: Rng) -> list[Array]:
    return [rng.normal(size=6), rng.normal(size=(10, 6)), rng.uniform(0.3, 1.0, 10)]


def _affine_projection() -> ProblemTuple:
    x, p = cp.Variable(8), cp.Parameter(8)
    A, b = cp.Parameter((4, 8)), cp.Parameter(4)
    return make_problem(cp.Minimize(cp.sum_squares(x - p)), [A @ x == b]), [p, A, b], [x]


def _sample_affine_projection(rng: Rng) -> list[Array]:
    return [rng.normal(size=8), rng.normal(size=(4, 8)), rng.normal(size=4)]


# --- soft choices --------------------------------------------------------------------------


def _sparsemax() -> ProblemTuple:
    x, scores = cp.Variable(7), cp.Parameter(7)
    objective = cp.Maximize(scores @ x - 0.5 * cp.sum_squares(x))
    return make_problem(objective, [cp.sum(x) == 1, x >= 0]), [scores], [x]


def _sample_sparsemax(rng: Rng) -> list[Array]:
    return [0.6 * rng.normal(size=7)]


def _soft_top_k() -> ProblemTuple:
    x, scores, k = cp.Variable(9), cp.Parameter(9), cp.Parameter(nonneg=True)
    objective = cp.Maximize(scores @ x - 0.4 * cp.sum_squares(x))
    return make_problem(objective, [cp.sum(x) == k, x >= 0, x <= 1]), [scores, k], [x]


def _sample_soft_top_k(rng: Rng) -> list[Array]:
    return [rng.normal(size=9), scalar(rng.uniform(2.5, 4.5))]


# --- quadratic and linear programs ---------------------------------------------------------


def _optnet_qp() -> ProblemTuple:
    x = cp.Variable(6)
    root, p = cp.Parameter((6, 6)), cp.Parameter(6)
    A, b = cp.Parameter((2, 6)), cp.Parameter(2)
    G, h = cp.Parameter((6, 6)), cp.Parameter(6)
    objective = cp.Minimize(0.5 * cp.sum_squares(root @ x) + p @ x)
    return make_problem(objective, [A @ x == b, G @ x <= h]), [root, p, A, b, G, h], [x]


def _sample_optnet_qp(rng: Rng) -> list[Array]:
    root = np.eye(6) + 0.4 * rng.normal(size=(6, 6))
    A, G, inside = rng.normal(size=(2, 6)), rng.normal(size=(6, 6)), 0.5 * rng.normal(size=6)
    return [root, rng.normal(size=6), A, A @ inside, G, G @ inside + rng.uniform(0.1, 1.0, 6)]


def _nonnegative_least_squares() -> ProblemTuple:
    x, A, b = cp.Variable(2), cp.Parameter((3, 2)), cp.Parameter(3)
    return make_problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0]), [A, b], [x]


def _sample_nonnegative_least_squares(rng: Rng) -> list[Array]:
    A = rng.normal(size=(3, 2))
    # At least one entry is positive: a solution of zero has no gradient to test.
    return [A, A @ np.array([rng.uniform(0.4, 1.5), rng.normal()]) + 0.2 * rng.normal(size=3)]


def _vertex_lp() -> ProblemTuple:
    x, c = cp.Variable(6), cp.Parameter(6)
    A, b = cp.Parameter((5, 6), nonneg=True), cp.Parameter(5, nonneg=True)
    return make_problem(cp.Maximize(c @ x), [A @ x <= b, x >= 0]), [c, A, b], [x]


def _sample_vertex_lp(rng: Rng) -> list[Array]:
    # Positive rows bound the feasible set.
    return [rng.uniform(0.2, 1.0, 6), rng.uniform(0.1, 1.0, (5, 6)), rng.uniform(0.8, 1.5, 5)]


def _minimum_l1_norm() -> ProblemTuple:
    x, A, b = cp.Variable(7), cp.Parameter((3, 7)), cp.Parameter(3)
    return make_problem(cp.Minimize(cp.norm1(x)), [A @ x == b]), [A, b], [x]


def _sample_minimum_l1_norm(rng: Rng) -> list[Array]:
    return [rng.normal(size=(3, 7)), rng.normal(size=3)]


def _chebyshev_fit() -> ProblemTuple:
    x, A, b = cp.Variable(3), cp.Parameter((8, 3)), cp.Parameter(8)
    return make_problem(cp.Minimize(cp.norm_inf(A @ x - b))), [A, b], [x]


def _sample_chebyshev_fit(rng: Rng) -> list[Array]:
    return list(regression(rng, 8, 3, noise=0.5))


def _chebyshev_center() -> ProblemTuple:
    center, radius = cp.Variable(2), cp.Variable()
    A, norms, b = cp.Parameter((7, 2)), cp.Parameter(7, nonneg=True), cp.Parameter(7)
    problem = make_problem(cp.Maximize(radius), [A @ center + norms * radius <= b])
    return problem, [A, norms, b], [center, radius]


def _sample_chebyshev_center(rng: Rng) -> list[Array]:
    angles = 2.0 * np.pi * (np.arange(7) + rng.uniform(-0.3, 0.3, 7)) / 7
    A = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.7, 1.4, (7, 1))
    return [A, np.linalg.norm(A, axis=1), rng.uniform(0.7, 1.6, 7)]


def _quadratic_transport() -> ProblemTuple:
    plan, cost = cp.Variable((3, 4)), cp.Parameter((3, 4))
    supply, demand = cp.Parameter(3), cp.Parameter(4)
    objective = cp.sum(cp.multiply(cost, plan)) + 0.5 * cp.sum_squares(plan)
    # The last column sum follows from the others; with it the multipliers were not unique.
    sums = [cp.sum(plan, axis=1) == supply, cp.sum(plan[:, :3], axis=0) == demand[:3]]
    slack = [cp.sum(plan[:, 3]) <= demand[3], plan >= 0]
    return make_problem(cp.Minimize(objective), sums + slack), [cost, supply, demand], [plan]


def _sample_quadratic_transport(rng: Rng) -> list[Array]:
    supply, demand = rng.uniform(0.5, 1.5, 3), rng.uniform(0.3, 0.8, 4)
    demand[3] = supply.sum() - demand[:3].sum() + rng.uniform(0.3, 0.8)
    return [rng.uniform(0.0, 2.0, (3, 4)), supply, demand]


_EDGES = ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (3, 5), (4, 5), (1, 4))


def _min_cost_flow() -> ProblemTuple:
    flow, cost = cp.Variable(len(_EDGES)), cp.Parameter(len(_EDGES))
    capacity, supply = cp.Parameter(len(_EDGES), nonneg=True), cp.Parameter(5)
    incidence = np.zeros((6, len(_EDGES)))
    for edge, (tail, head) in enumerate(_EDGES):
        incidence[tail, edge], incidence[head, edge] = 1.0, -1.0
    objective = cp.Minimize(cost @ flow + 0.25 * cp.sum_squares(flow))
    # Node 5 takes whatever the others send; its balance is implied.
    constraints = [incidence[:5] @ flow == supply, flow >= 0, flow <= capacity]
    return make_problem(objective, constraints), [cost, capacity, supply], [flow]


def _sample_min_cost_flow(rng: Rng) -> list[Array]:
    supply = np.concatenate([rng.uniform(0.8, 1.2, 1), rng.uniform(-0.1, 0.2, 4)])
    return [rng.uniform(0.1, 1.5, len(_EDGES)), rng.uniform(0.6, 1.4, len(_EDGES)), supply]


# --- regression ----------------------------------------------------------------------------


def _ridge() -> ProblemTuple:
    x, A, b, weight = (
        cp.Variable(6),
        cp.Parameter((10, 6)),
        cp.Parameter(10),
        cp.Parameter(nonneg=True),
    )
    objective = cp.sum_squares(A @ x - b) + weight * cp.sum_squares(x)
    return make_problem(cp.Minimize(objective)), [A, b, weight], [x]


def _sample_ridge(rng: Rng) -> list[Array]:
    return [*regression(rng, 10, 6), scalar(rng.uniform(0.3, 2.0))]


def _lasso() -> ProblemTuple:
    x, A, b, weight = (
        cp.Variable(6),
        cp.Parameter((10, 6)),
        cp.Parameter(10),
        cp.Parameter(nonneg=True),
    )
    objective = cp.sum_squares(A @ x - b) + weight * cp.norm1(x)
    return make_problem(cp.Minimize(objective)), [A, b, weight], [x]


def _sample_lasso(rng: Rng) -> list[Array]:
    return [*regression(rng, 10, 6), scalar(rng.uniform(1.0, 4.0))]


def _elastic_net() -> ProblemTuple:
    x, A, b = cp.Variable(8), cp.Parameter((7, 8)), cp.Parameter(7)
    lasso, ridge = cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
    penalty = lasso * cp.norm1(x) + ridge * cp.sum_squares(x)
    objective = 0.5 * cp.sum_squares(A @ x - b) + penalty
    return make_problem(cp.Minimize(objective)), [A, b, lasso, ridge], [x]


def _sample_elastic_net(rng: Rng) -> list[Array]:
    weights = scalar(rng.uniform(0.3, 1.0)), scalar(rng.uniform(0.3, 1.0))
    return [*regression(rng, 7, 8), *weights]


def _group_lasso() -> ProblemTuple:
    x, A, b, weight = (
        cp.Variable(9),
        cp.Parameter((11, 9)),
        cp.Parameter(11),
        cp.Parameter(nonneg=True),
    )
    groups = cp.sum(cp.hstack([cp.norm2(x[3 * i : 3 * i + 3]) for i in range(3)]))
    objective = cp.sum_squares(A @ x - b) + weight * groups
    return make_problem(cp.Minimize(objective)), [A, b, weight], [x]


def _sample_group_lasso(rng: Rng) -> list[Array]:
    A = rng.normal(size=(11, 9))
    # One group is far from zero and one is switched off as a rule.
    truth = rng.normal(size=9) * np.repeat([1.5, 0.5, 0.0], 3)
    return [A, A @ truth + 0.3 * rng.normal(size=11), scalar(rng.uniform(3.0, 6.0))]


def _huber_regression() -> ProblemTuple:
    x, A, b, weight = (
        cp.Variable(4),
        cp.Parameter((10, 4)),
        cp.Parameter(10),
        cp.Parameter(nonneg=True),
    )
    objective = cp.sum(cp.huber(A @ x - b)) + weight * cp.sum_squares(x)
    return make_problem(cp.Minimize(objective)), [A, b, weight], [x]


def _sample_huber_regression(rng: Rng) -> list[Array]:
    A, b = regression(rng, 10, 4, noise=0.4)
    b[rng.choice(10, 3, replace=False)] += rng.choice([-4.0, 4.0], 3)
    return [A, b, scalar(rng.uniform(0.1, 0.5))]


def _robust_l1_regression() -> ProblemTuple:
    x, A, b, weight = (
        cp.Variable(4),
        cp.Parameter((9, 4)),
        cp.Parameter(9),
        cp.Parameter(nonneg=True),
    )
    objective = cp.norm1(A @ x - b) + weight * cp.sum_squares(x)
    return make_problem(cp.Minimize(objective)), [A, b, weight], [x]


def _sample_robust_l1_regression(rng: Rng) -> list[Array]:
    A, b = regression(rng, 9, 4, noise=0.4)
    return [A, b, scalar(rng.uniform(0.3, 1.0))]


def _quantile_regression() -> ProblemTuple:
    x, residual = cp.Variable(4), cp.Variable(10)
    A, b, level = cp.Parameter((10, 4)), cp.Parameter(10), cp.Parameter()
    # The sum of pos(r) + (level - 1) r is the pinball loss, affine in the level.
    loss = cp.sum(cp.pos(residual)) + (level - 1) * cp.sum(residual)
    objective = cp.Minimize(loss + 0.5 * cp.sum_squares(x))
    problem = make_problem(objective, [residual == b - A @ x])
    return problem, [A, b, level], [x]


def _sample_quantile_regression(rng: Rng) -> list[Array]:
    return [*regression(rng, 10, 4, noise=0.5), scalar(rng.uniform(0.2, 0.8))]


def _robust_least_squares() -> ProblemTuple:
    x, A, b, size = (
        cp.Variable(4),
        cp.Parameter((8, 4)),
        cp.Parameter(8),
        cp.Parameter(nonneg=True),
    )
    # Worst case of the residual norm over all perturbations of A of spectral norm `size`.
    objective = cp.norm2(A @ x - b) + size * cp.norm2(x)
    return make_problem(cp.Minimize(objective)), [A, b, size], [x]


def _sample_robust_least_squares(rng: Rng) -> list[Array]:
    A = rng.normal(size=(8, 4))
    b = A @ rng.normal(size=4) + 0.8 * rng.normal(size=8)
    return [A, b, scalar(rng.uniform(0.1, 0.5))]


def _isotonic_regression() -> ProblemTuple:
    x, y = cp.Variable(10), cp.Parameter(10)
    return make_problem(cp.Minimize(cp.sum_squares(x - y)), [cp.diff(x) >= 0]), [y], [x]


def _sample_isotonic_regression(rng: Rng) -> list[Array]:
    return [np.linspace(-1.0, 1.0, 10) + 0.6 * rng.normal(size=10)]


def _total_variation_denoising() -> ProblemTuple:
    x, y, weight = cp.Variable(12), cp.Parameter(12), cp.Parameter(nonneg=True)
    objective = 0.5 * cp.sum_squares(x - y) + weight * cp.norm1(cp.diff(x))
    return make_problem(cp.Minimize(objective)), [y, weight], [x]


def _sample_total_variation_denoising(rng: Rng) -> list[Array]:
    steps = np.repeat(rng.normal(size=4), 3)
    return [steps + 0.3 * rng.normal(size=12), scalar(rng.uniform(0.2, 0.5))]


# --- classification ------------------------------------------------------------------------


def _svm_soft_margin() -> ProblemTuple:
    w, bias, loss = cp.Variable(3), cp.Variable(), cp.Variable(12)
    features, weight = cp.Parameter((12, 3)), cp.Parameter(nonneg=True)
    labels = np.repeat([1.0, -1.0], 6)
    objective = 0.5 * cp.sum_squares(w) + 0.05 * cp.square(bias) + weight * cp.sum(loss)
    margins = cp.multiply(labels, features @ w + bias)
    problem = make_problem(cp.Minimize(objective), [margins >= 1 - loss, loss >= 0])
    return problem, [features, weight], [w, bias]


def _sample_svm_soft_margin(rng: Rng) -> list[Array]:
    features = rng.normal(size=(12, 3))
    features += 0.8 * np.repeat([1.0, -1.0], 6)[:, None] * rng.normal(size=3)
    return [features, scalar(rng.uniform(0.2, 1.0))]


def _hinge_ridge() -> ProblemTuple:
    w, signed, weight = cp.Variable(4), cp.Parameter((9, 4)), cp.Parameter(nonneg=True)
    objective = cp.sum(cp.pos(1 - signed @ w)) + weight * cp.sum_squares(w)
    return make_problem(cp.Minimize(objective)), [signed, weight], [w]


def _sample_hinge_ridge(rng: Rng) -> list[Array]:
    signed = rng.normal(size=(9, 4)) + 0.5 * rng.normal(size=4)
    return [signed, scalar(rng.uniform(0.3, 1.0))]


def _support_vector_regression() -> ProblemTuple:
    w, bias = cp.Variable(3), cp.Variable()
    X, y, weight = cp.Parameter((10, 3)), cp.Parameter(10), cp.Parameter(nonneg=True)
    residual = X @ w + bias - y
    loss = cp.sum(cp.pos(residual - 0.2) + cp.pos(-residual - 0.2))
    objective = weight * cp.sum_squares(w) + 0.05 * cp.square(bias) + loss
    return make_problem(cp.Minimize(objective)), [X, y, weight], [w, bias]


def _sample_support_vector_regression(rng: Rng) -> list[Array]:
    return [*regression(rng, 10, 3, noise=0.4), scalar(rng.uniform(0.3, 1.0))]


# --- control -------------------------------------------------------------------------------


def _mpc_step() -> ProblemTuple:
    horizon = 4
    states, inputs = cp.Variable((2, horizon + 1)), cp.Variable((1, horizon))
    A, B = cp.Parameter((2, 2)), cp.Parameter((2, 1))
    start, goal = cp.Parameter(2), cp.Parameter(2)
    cost = cp.sum_squares(states[:, 1:] - cp.reshape(goal, (2, 1), order="C") @ np.ones((1, 4)))
    dynamics = states[:, 1:] == A @ states[:, :horizon] + B @ inputs
    constraints = [states[:, 0] == start, dynamics, inputs <= 0.6, inputs >= -0.6]
    problem = make_problem(cp.Minimize(cost + 0.2 * cp.sum_squares(inputs)), constraints)
    return problem, [A, B, start, goal], [inputs, states]


def _sample_mpc_step(rng: Rng) -> list[Array]:
    A = np.array([[1.0, 0.4], [0.0, 0.9]]) + 0.05 * rng.normal(size=(2, 2))
    B = np.array([[0.1], [0.5]]) + 0.05 * rng.normal(size=(2, 1))
    return [A, B, rng.normal(size=2), 0.3 * rng.normal(size=2)]


# --- finance -------------------------------------------------------------------------------


def _markowitz() -> ProblemTuple:
    w, mean, factor = cp.Variable(8), cp.Parameter(8), cp.Parameter((8, 8))
    objective = cp.Maximize(mean @ w - cp.sum_squares(factor @ w))
    return make_problem(objective, [cp.sum(w) == 1, w >= 0]), [mean, factor], [w]


def _risk_factor(rng: Rng, assets: int) -> Array:
    """Square root of a covariance: specific risks and some common risk."""
    return np.diag(rng.uniform(0.5, 1.0, assets)) + 0.3 * rng.normal(size=(assets, assets))


def _sample_markowitz(rng: Rng) -> list[Array]:
    return [0.5 * rng.normal(size=8), _risk_factor(rng, 8)]


def _risk_limited_portfolio() -> ProblemTuple:
    w, mean = cp.Variable(6), cp.Parameter(6)
    factor, limit = cp.Parameter((6, 6)), cp.Parameter(nonneg=True)
    constraints = [cp.SOC(limit, factor @ w), cp.sum(w) == 1, w >= 0]
    return make_problem(cp.Maximize(mean @ w), constraints), [mean, factor, limit], [w]


def _sample_risk_limited_portfolio(rng: Rng) -> list[Array]:
    factor = _risk_factor(rng, 6)
    equal = float(np.linalg.norm(factor @ np.full(6, 1 / 6)))
    return [rng.normal(size=6), factor, scalar(equal * rng.uniform(1.05, 1.3))]


def _portfolio_with_costs() -> ProblemTuple:
    w, trades = cp.Variable(6), cp.Variable(6)
    mean, factor = cp.Parameter(6), cp.Parameter((6, 6))
    held, cost = cp.Parameter(6), cp.Parameter(6, nonneg=True)
    gain = mean @ w - cp.sum_squares(factor @ w) - cost @ cp.abs(trades)
    problem = make_problem(cp.Maximize(gain), [trades == w - held, cp.sum(w) == 1, w >= 0])
    return problem, [mean, factor, held, cost], [w]


def _sample_portfolio_with_costs(rng: Rng) -> list[Array]:
    held = rng.dirichlet(np.full(6, 3.0))
    return [0.5 * rng.normal(size=6), _risk_factor(rng, 6), held, rng.uniform(0.05, 0.3, 6)]


# --- matrices and several variables --------------------------------------------------------


def _symmetric_matrix() -> ProblemTuple:
    X, C = cp.Variable((4, 4), symmetric=True), cp.Parameter((4, 4), symmetric=True)
    trace, low = cp.Parameter(), cp.Parameter()
    constraints = [cp.trace(X) == trace, cp.upper_tri(X) >= low, cp.diag(X) >= 0]
    return make_problem(cp.Minimize(cp.sum_squares(X - C)), constraints), [C, trace, low], [X]


def _sample_symmetric_matrix(rng: Rng) -> list[Array]:
    C = rng.normal(size=(4, 4))
    return [0.5 * (C + C.T), scalar(rng.uniform(1.0, 3.0)), scalar(-rng.uniform(0.2, 0.6))]


def _matrix_regression() -> ProblemTuple:
    X, A, B = cp.Variable((4, 3)), cp.Parameter((6, 4)), cp.Parameter((6, 3))
    constraints = [X >= 0, cp.sum(X, axis=1) <= 1]
    return make_problem(cp.Minimize(cp.sum_squares(A @ X - B)), constraints), [A, B], [X]


def _sample_matrix_regression(rng: Rng) -> list[Array]:
    A = rng.normal(size=(6, 4))
    truth = rng.normal(0.3, 0.4, size=(4, 3))
    return [A, A @ truth + 0.3 * rng.normal(size=(6, 3))]


def _matrix_weights() -> ProblemTuple:
    X, target = cp.Variable((3, 4)), cp.Parameter((3, 4))
    left, cap = cp.Parameter((3, 3)), cp.Parameter((2, 4))
    right = np.array([[1.0, 0.5], [-0.5, 1.0], [0.3, -1.0], [0.8, 0.2]])
    objective = cp.sum_squares(left @ X - target) + 0.1 * cp.sum_squares(X)
    load = (X @ right).T @ left.T
    constraints = [load <= cap[:, :3], X[0] <= cap[0] + cap[1]]
    return make_problem(cp.Minimize(objective), constraints), [target, left, cap], [X]


def _sample_matrix_weights(rng: Rng) -> list[Array]:
    left = np.eye(3) + 0.3 * rng.normal(size=(3, 3))
    return [rng.normal(size=(3, 4)), left, rng.uniform(0.1, 0.6, (2, 4))]


def _several_variables() -> ProblemTuple:
    x, y, level = cp.Variable(4), cp.Variable((2, 2)), cp.Variable()
    A, b = cp.Parameter((6, 4)), cp.Parameter(6)
    target, weight = cp.Parameter((2, 2)), cp.Parameter(nonneg=True)
    fit = cp.sum_squares(A @ x - b) + cp.sum_squares(y - target)
    coupling = weight * cp.sum_squares(cp.vec(y, order="C") - x) + cp.square(level - 1)
    constraints = [cp.sum(x) + level == 1, y <= level, -y <= level, x >= -0.5]
    return (
        make_problem(cp.Minimize(fit + coupling), constraints),
        [A, b, target, weight],
        [x, y, level],
    )


def _sample_several_variables(rng: Rng) -> list[Array]:
    A, b = regression(rng, 6, 4)
    return [A, b, 0.7 * rng.normal(size=(2, 2)), scalar(rng.uniform(0.5, 2.0))]


def _facility_location() -> ProblemTuple:
    site, distances, clients = cp.Variable(2), cp.Variable(6), cp.Parameter((6, 2))
    weights, home = cp.Parameter(6, nonneg=True), cp.Parameter(2)
    offsets = clients - np.ones((6, 1)) @ cp.reshape(site, (1, 2), order="C")
    cost = weights @ distances + 0.3 * cp.sum_squares(site - home)
    problem = make_problem(cp.Minimize(cost), [cp.SOC(distances, offsets, axis=1)])
    return problem, [clients, weights, home], [site, distances]


def _sample_facility_location(rng: Rng) -> list[Array]:
    home = 0.7 * rng.normal(size=2)
    return [1.5 * rng.normal(size=(6, 2)), rng.uniform(0.5, 1.5, 6), home]


# --- loose epigraphs -----------------------------------------------------------------------
# Where `abs(x) <= bound` is strictly satisfied, CVXPY's variable for the absolute value may take
# any value between the two: the solution x is unique and smooth, the canonical solution is not.


def _sample_inside_l2_ball(rng: Rng) -> list[Array]:
    p = rng.normal(size=6)
    return [p, scalar(np.linalg.norm(p) * rng.uniform(1.2, 2.0))]


def _bounded_regression() -> ProblemTuple:
    x, A, b = cp.Variable(5), cp.Parameter((8, 5)), cp.Parameter(8)
    bound, total = cp.Parameter(5, nonneg=True), cp.Parameter(nonneg=True)
    constraints = [cp.abs(x) <= bound, cp.norm1(x) <= total]
    problem = make_problem(cp.Minimize(cp.sum_squares(A @ x - b)), constraints)
    return problem, [A, b, bound, total], [x]


def _sample_bounded_regression(rng: Rng) -> list[Array]:
    total = scalar(rng.uniform(1.0, 4.0))
    return [*regression(rng, 8, 5), rng.uniform(0.3, 1.5, 5), total]


def _nested_epsilon_loss() -> ProblemTuple:
    w, bias = cp.Variable(3), cp.Variable()
    X, y, weight = cp.Parameter((10, 3)), cp.Parameter(10), cp.Parameter(nonneg=True)
    loss = cp.sum(cp.pos(cp.abs(X @ w + bias - y) - 0.2))
    objective = weight * cp.sum_squares(w) + 0.05 * cp.square(bias) + loss
    return make_problem(cp.Minimize(objective)), [X, y, weight], [w, bias]


LAYER_PROBLEMS: tuple[LayerProblem, ...] = (
    LayerProblem("simplex_projection", _simplex_projection, _sample_simplex_projection),
    LayerProblem("box_projection", _box_projection, _sample_box_projection),
    LayerProblem("l1_ball_projection", _l1_ball_projection, _sample_l1_ball_projection),
    LayerProblem("l2_ball_projection", _l2_ball_projection, _sample_l2_ball_projection),
    LayerProblem("soc_projection", _soc_projection, _sample_soc_projection),
    LayerProblem("polyhedron_projection", _polyhedron_projection, _sample_polyhedron_projection),
    LayerProblem("affine_projection", _affine_projection, _sample_affine_projection),
    LayerProblem("sparsemax", _sparsemax, _sample_sparsemax),
    LayerProblem("soft_top_k", _soft_top_k, _sample_soft_top_k),
    LayerProblem("optnet_qp", _optnet_qp, _sample_optnet_qp),
    LayerProblem(
        "nonnegative_least_squares",
        _nonnegative_least_squares,
        _sample_nonnegative_least_squares,
    ),
    LayerProblem("vertex_lp", _vertex_lp, _sample_vertex_lp),
    LayerProblem("minimum_l1_norm", _minimum_l1_norm, _sample_minimum_l1_norm),
    LayerProblem("chebyshev_fit", _chebyshev_fit, _sample_chebyshev_fit),
    LayerProblem("chebyshev_center", _chebyshev_center, _sample_chebyshev_center),
    LayerProblem("quadratic_transport", _quadratic_transport, _sample_quadratic_transport),
    LayerProblem("min_cost_flow", _min_cost_flow, _sample_min_cost_flow),
    LayerProblem("ridge", _ridge, _sample_ridge),
    LayerProblem("lasso", _lasso, _sample_lasso),
    LayerProblem("elastic_net", _elastic_net, _sample_elastic_net),
    LayerProblem("group_lasso", _group_lasso, _sample_group_lasso),
    LayerProblem("huber_regression", _huber_regression, _sample_huber_regression),
    LayerProblem("robust_l1_regression", _robust_l1_regression, _sample_robust_l1_regression),
    LayerProblem("quantile_regression", _quantile_regression, _sample_quantile_regression),
    LayerProblem("robust_least_squares", _robust_least_squares, _sample_robust_least_squares),
    LayerProblem("isotonic_regression", _isotonic_regression, _sample_isotonic_regression),
    LayerProblem(
        "total_variation_denoising",
        _total_variation_denoising,
        _sample_total_variation_denoising,
    ),
    LayerProblem("svm_soft_margin", _svm_soft_margin, _sample_svm_soft_margin),
    LayerProblem("hinge_ridge", _hinge_ridge, _sample_hinge_ridge),
    LayerProblem(
        "support_vector_regression",
        _support_vector_regression,
        _sample_support_vector_regression,
    ),
    LayerProblem("mpc_step", _mpc_step, _sample_mpc_step),
    LayerProblem("markowitz", _markowitz, _sample_markowitz),
    LayerProblem("risk_limited_portfolio", _risk_limited_portfolio, _sample_risk_limited_portfolio),
    LayerProblem("portfolio_with_costs", _portfolio_with_costs, _sample_portfolio_with_costs),
    LayerProblem("symmetric_matrix", _symmetric_matrix, _sample_symmetric_matrix),
    LayerProblem("matrix_regression", _matrix_regression, _sample_matrix_regression),
    LayerProblem("matrix_weights", _matrix_weights, _sample_matrix_weights),
    LayerProblem("several_variables", _several_variables, _sample_several_variables),
    LayerProblem("facility_location", _facility_location, _sample_facility_location),
)

"""Problems whose canonical solution is unique at the points that `sample_batch` draws."""

LOOSE_PROBLEMS: tuple[LayerProblem, ...] = (
    LayerProblem("inside_l2_ball", _l2_ball_projection, _sample_inside_l2_ball, loose=True),
    LayerProblem("bounded_regression", _bounded_regression, _sample_bounded_regression, loose=True),
    LayerProblem(
        "nested_epsilon_loss",
        _nested_epsilon_loss,
        _sample_support_vector_regression,
        loose=True,
    ),
)
"""Problems whose solution is unique and smooth while that of their canonical form is not unique."""


@cache
def built(problem: LayerProblem) -> ProblemTuple:
    """CVXPY objects of a problem, made once and shared by everything that only solves it."""
    return problem.build()


@cache
def _built_reference(problem: LayerProblem) -> ProblemTuple:
    """What the reference solves: the problem, or the logarithmic form of a geometric program."""
    return problem.log_form() if problem.log_form else built(problem)


def _to_reference(problem: LayerProblem, params: Sequence[Array]) -> list[Array]:
    return [np.log(p) if problem.gp else np.asarray(p) for p in params]


def reference_values(problem: LayerProblem, params: Sequence[Array]) -> list[Array]:
    """Values of the variables for one element, to about 1e-14."""
    found = solve(_built_reference(problem), _to_reference(problem, params))
    return [np.exp(v) for v in found] if problem.gp else found


def reference_directional_derivative(
    problem: LayerProblem, params: Sequence[Array], direction: Sequence[Array]
) -> Derivative:
    """Derivative of the variables along one direction of parameter space."""
    form, at = _built_reference(problem), _to_reference(problem, params)
    if not problem.gp:
        return directional_derivative(form, at, direction)
    relative = [d / p for d, p in zip(direction, params, strict=True)]
    found = directional_derivative(form, at, relative)
    values = reference_values(problem, params)
    return Derivative([v * d for v, d in zip(values, found.values, strict=True)], found.error)


def reference_gradient(
    problem: LayerProblem,
    params: Sequence[Array],
    cotangents: Sequence[Array],
    step: float = DEFAULT_STEP,
) -> Derivative:
    """Gradient of the inner product of the variables with cotangents, for one element."""
    form, at = _built_reference(problem), _to_reference(problem, params)
    if not problem.gp:
        return gradient(form, at, cotangents, step)
    values = reference_values(problem, params)
    bars = [c * v for c, v in zip(cotangents, values, strict=True)]
    found = gradient(form, at, bars, step)
    return Derivative([g / p for g, p in zip(found.values, params, strict=True)], found.error)


def is_regular(problem: LayerProblem, found: Regularity) -> bool:
    """Whether a point is far enough from kinks and well enough conditioned to be tested."""
    return (
        (problem.loose or found.nullity == 0)
        and found.kink >= MIN_KINK
        and found.size >= MIN_SIZE
        and MIN_SENSITIVITY <= found.sensitivity <= MAX_SENSITIVITY
        and found.condition <= MAX_CONDITION
    )


def sample_batch(
    problem: LayerProblem,
    batch: int,
    seed: int,
    dtype: type[np.floating] | np.dtype | str = np.float64,
    shared: Sequence[int] = (),
) -> list[Array]:
    """Draw parameter values for a batch, all of them at regular points.

    Both dtypes get the same numbers, which float32 represents exactly.

    Args:
        problem: Row of the table.
        batch: Number of elements.
        seed: Seed of the generator.
        dtype: float32 or float64.
        shared: Positions of parameters to use unbatched: one value for all elements.

    Returns:
        One array per parameter, with a leading batch axis unless shared.
    """
    rng = np.random.default_rng([seed, len(problem.name), *problem.name.encode()])
    elements: list[list[Array]] = []
    for _ in range(_MAX_DRAWS * batch):
        if len(elements) == batch:
            break
        drawn = [_round(value) for value in problem.sample(rng)]
        for i in shared if elements else ():
            drawn[i] = elements[0][i]
        if _usable(problem, drawn):
            elements.append(drawn)
    if len(elements) < batch:
        raise RuntimeError(f"{problem.name}: too few regular points with seed {seed}")
    columns = zip(*elements, strict=True)
    stacked = [c[0] if i in shared else np.stack(c) for i, c in enumerate(columns)]
    return [value.astype(dtype) for value in stacked]


def element(params: Sequence[Array], index: int, shared: Sequence[int] = ()) -> list[Array]:
    """Parameter values of one element of a batch, in float64."""
    chosen = [value if i in shared else value[index] for i, value in enumerate(params)]
    return [np.asarray(value, dtype=np.float64) for value in chosen]


def _round(value: Array) -> Array:
    return np.asarray(value).astype(np.float32).astype(np.float64)


def _usable(problem: LayerProblem, params: list[Array]) -> bool:
    """Whether a draw has a solution at a regular point."""
    try:
        form, at = _built_reference(problem), _to_reference(problem, params)
        return is_regular(problem, regularity(form, at))
    except ReferenceError:
        return False
