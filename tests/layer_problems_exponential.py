"""Problems over exponential cones: soft choices, transport, entropy, growth, regression."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
from layer_problems import Array, LayerProblem, Rng, make_problem, scalar
from layer_reference import ProblemTuple

_HALVINGS = 200
_SWEEPS = 3000
_NEWTON_STEPS = 100


def _increasing_root(function, low: float, high: float) -> float:
    """Root of an increasing function by bisection."""
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if function(middle) > 0.0 else (middle, high)
    return 0.5 * (low + high)


def _sigmoid_of(scores: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-scores))


def _simplex(rng: Rng, size: int, least: float = 0.3) -> Array:
    weights = rng.uniform(least, 1.0, size)
    return weights / weights.sum()


# --- soft choices --------------------------------------------------------------------------


def _softmax() -> ProblemTuple:
    x, scores = cp.Variable(7), cp.Parameter(7)
    objective = cp.Maximize(scores @ x + cp.sum(cp.entr(x)))
    return make_problem(objective, [cp.sum(x) == 1]), [scores], [x]


def _sample_softmax(rng: Rng) -> list[Array]:
    return [rng.normal(size=7)]


def _direct_softmax(params: list[Array]) -> list[Array]:
    weights = np.exp(params[0] - params[0].max())
    return [weights / weights.sum()]


def _sigmoid() -> ProblemTuple:
    x, scores = cp.Variable(6), cp.Parameter(6)
    objective = cp.Maximize(scores @ x + cp.sum(cp.entr(x) + cp.entr(1 - x)))
    return make_problem(objective), [scores], [x]


def _sample_sigmoid(rng: Rng) -> list[Array]:
    return [1.5 * rng.normal(size=6)]


def _direct_sigmoid(params: list[Array]) -> list[Array]:
    return [_sigmoid_of(params[0])]


def _limited_multi_label() -> ProblemTuple:
    """Amos, Koltun and Kolter (2019), "The limited multi-label projection layer"."""
    x, scores, k = cp.Variable(8), cp.Parameter(8), cp.Parameter(nonneg=True)
    objective = cp.Maximize(scores @ x + cp.sum(cp.entr(x) + cp.entr(1 - x)))
    return make_problem(objective, [cp.sum(x) == k]), [scores, k], [x]


def _sample_limited_multi_label(rng: Rng) -> list[Array]:
    return [1.5 * rng.normal(size=8), scalar(rng.uniform(2.0, 4.0))]


def _direct_limited_multi_label(params: list[Array]) -> list[Array]:
    scores, k = params
    shift = _increasing_root(lambda nu: float(_sigmoid_of(scores + nu).sum() - k), -30.0, 30.0)
    return [_sigmoid_of(scores + shift)]


# --- transport -----------------------------------------------------------------------------


def _entropic_transport() -> ProblemTuple:
    plan, cost = cp.Variable((3, 4)), cp.Parameter((3, 4))
    supply, demand, softness = cp.Parameter(3), cp.Parameter(3), cp.Parameter(nonneg=True)
    objective = cp.sum(cp.multiply(cost, plan)) - softness * cp.sum(cp.entr(plan))
    # The last column takes what is left: a demand of its own would have to agree with the rest.
    sums = [cp.sum(plan, axis=1) == supply, cp.sum(plan[:, :3], axis=0) == demand]
    return make_problem(cp.Minimize(objective), sums), [cost, supply, demand, softness], [plan]


def _sample_entropic_transport(rng: Rng) -> list[Array]:
    total = rng.uniform(1.0, 2.0)
    supply, demand = total * _simplex(rng, 3), total * _simplex(rng, 4)
    return [rng.uniform(0.0, 2.0, (3, 4)), supply, demand[:3], scalar(rng.uniform(0.3, 1.0))]


def _direct_entropic_transport(params: list[Array]) -> list[Array]:
    """Sinkhorn's alternating scaling."""
    cost, supply, demand, softness = params
    demand = np.append(demand, supply.sum() - demand.sum())
    kernel, right = np.exp(-cost / softness), np.ones(4)
    for _ in range(_SWEEPS):
        left = supply / (kernel @ right)
        right = demand / (kernel.T @ left)
    return [left[:, None] * kernel * right]


def _unbalanced_transport() -> ProblemTuple:
    plan, cost = cp.Variable((3, 4)), cp.Parameter((3, 4))
    supply, demand = cp.Parameter(3, nonneg=True), cp.Parameter(4, nonneg=True)
    softness = cp.Parameter(nonneg=True)
    transport = cp.sum(cp.multiply(cost, plan)) - softness * cp.sum(cp.entr(plan))
    excess = cp.sum(cp.kl_div(cp.sum(plan, axis=1), supply))
    missing = cp.sum(cp.kl_div(cp.sum(plan, axis=0), demand))
    problem = make_problem(cp.Minimize(transport + excess + missing))
    return problem, [cost, supply, demand, softness], [plan]


def _sample_unbalanced_transport(rng: Rng) -> list[Array]:
    supply, demand = rng.uniform(0.5, 1.5, 3), rng.uniform(0.4, 1.2, 4)
    return [rng.uniform(0.0, 1.5, (3, 4)), supply, demand, scalar(rng.uniform(0.3, 1.0))]


def _direct_unbalanced_transport(params: list[Array]) -> list[Array]:
    """Scaling with damped exponents: Chizat, Peyre, Schmitzer and Vialard (2018), eq. 3.4."""
    cost, supply, demand, softness = params
    kernel, right = np.exp(-cost / softness - 1.0), np.ones(4)
    damping = 1.0 / (1.0 + softness)
    for _ in range(_SWEEPS):
        left = (supply / (kernel @ right)) ** damping
        right = (demand / (kernel.T @ left)) ** damping
    return [left[:, None] * kernel * right]


# --- entropy -------------------------------------------------------------------------------


def _maximum_entropy() -> ProblemTuple:
    x, A, b = cp.Variable(8), cp.Parameter((2, 8)), cp.Parameter(2)
    G, h = cp.Parameter((2, 8)), cp.Parameter(2)
    constraints = [cp.sum(x) == 1, A @ x == b, G @ x <= h]
    return make_problem(cp.Maximize(cp.sum(cp.entr(x))), constraints), [A, b, G, h], [x]


def _sample_maximum_entropy(rng: Rng) -> list[Array]:
    A, G, inside = rng.normal(size=(2, 8)), rng.normal(size=(2, 8)), _simplex(rng, 8)
    return [A, A @ inside, G, G @ inside + rng.uniform(0.0, 0.1, 2)]


def _relative_entropy_projection() -> ProblemTuple:
    x, prior = cp.Variable(6), cp.Parameter(6, nonneg=True)
    G, h = cp.Parameter((3, 6)), cp.Parameter(3)
    problem = make_problem(cp.Minimize(cp.sum(cp.kl_div(x, prior))), [cp.sum(x) == 1, G @ x <= h])
    return problem, [prior, G, h], [x]


def _sample_relative_entropy_projection(rng: Rng) -> list[Array]:
    G, inside = rng.normal(size=(3, 6)), _simplex(rng, 6)
    return [rng.uniform(0.2, 1.0, 6), G, G @ inside + rng.uniform(0.0, 0.1, 3)]


# --- growth and markets --------------------------------------------------------------------
# A parameter times the logarithm of an expression with another parameter is not DPP: a variable
# stands between the two.


def _kelly_gambling() -> ProblemTuple:
    bets, growth = cp.Variable(4), cp.Variable(6)
    returns, chances = cp.Parameter((6, 4), nonneg=True), cp.Parameter(6, nonneg=True)
    constraints = [growth == returns @ bets, cp.sum(bets) == 1, bets >= 0]
    problem = make_problem(cp.Maximize(chances @ cp.log(growth)), constraints)
    return problem, [returns, chances], [bets]


def _sample_kelly_gambling(rng: Rng) -> list[Array]:
    return [rng.uniform(0.2, 2.0, (6, 4)), _simplex(rng, 6)]


def _water_filling() -> ProblemTuple:
    power, noise, total = cp.Variable(6), cp.Parameter(6, nonneg=True), cp.Parameter(nonneg=True)
    objective = cp.Maximize(cp.sum(cp.log(noise + power)))
    return make_problem(objective, [cp.sum(power) == total, power >= 0]), [noise, total], [power]


def _sample_water_filling(rng: Rng) -> list[Array]:
    return [rng.uniform(0.3, 2.0, 6), scalar(rng.uniform(1.0, 3.0))]


def _direct_water_filling(params: list[Array]) -> list[Array]:
    noise, total = params
    level = _increasing_root(
        lambda w: float(np.maximum(w - noise, 0.0).sum() - total), 0.0, noise.max() + float(total)
    )
    return [np.maximum(level - noise, 0.0)]


def _fisher_market() -> ProblemTuple:
    """Eisenberg and Gale's program: its prices are the multipliers of the supplies."""
    goods, utilities = cp.Variable((3, 4)), cp.Variable(3)
    values, budgets = cp.Parameter((3, 4), nonneg=True), cp.Parameter(3, nonneg=True)
    supplies = cp.Parameter(4, nonneg=True)
    constraints = [
        utilities == cp.sum(cp.multiply(values, goods), axis=1),
        cp.sum(goods, axis=0) <= supplies,
        goods >= 0,
    ]
    problem = make_problem(cp.Maximize(budgets @ cp.log(utilities)), constraints)
    return problem, [values, budgets, supplies], [goods, utilities]


def _sample_fisher_market(rng: Rng) -> list[Array]:
    return [rng.uniform(0.3, 2.0, (3, 4)), rng.uniform(0.5, 1.5, 3), rng.uniform(0.5, 1.5, 4)]


# --- fits ----------------------------------------------------------------------------------

_LABELS = np.array([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0])


def _logistic_regression() -> ProblemTuple:
    """The gradient with respect to the features is that of data poisoning."""
    w, bias = cp.Variable(3), cp.Variable()
    features, weight = cp.Parameter((8, 3)), cp.Parameter(nonneg=True)
    loss = cp.sum(cp.logistic(-cp.multiply(_LABELS, features @ w + bias)))
    objective = loss + weight * (cp.sum_squares(w) + cp.square(bias))
    return make_problem(cp.Minimize(objective)), [features, weight], [w, bias]


def _sample_logistic_regression(rng: Rng) -> list[Array]:
    features = rng.normal(size=(8, 3)) + 0.5 * np.outer(_LABELS, rng.normal(size=3))
    return [features, scalar(rng.uniform(0.2, 1.0))]


def _direct_logistic_regression(params: list[Array]) -> list[Array]:
    """Newton's method; the weight keeps full steps from overshooting here."""
    features, weight = params
    signed, w = _LABELS[:, None] * np.insert(features, 3, 1.0, axis=1), np.zeros(4)
    for _ in range(_NEWTON_STEPS):
        wrong = _sigmoid_of(-signed @ w)
        gradient = 2.0 * weight * w - signed.T @ wrong
        hessian = 2.0 * weight * np.eye(4) + (signed.T * (wrong * (1.0 - wrong))) @ signed
        w = w - np.linalg.solve(hessian, gradient)
    return [w[:3], w[3]]


def _poisson_regression() -> ProblemTuple:
    w, rates = cp.Variable(3), cp.Variable(7)
    features, counts = cp.Parameter((7, 3)), cp.Parameter(7, nonneg=True)
    loss = cp.sum(cp.exp(rates)) - counts @ rates + 0.2 * cp.sum_squares(w)
    problem = make_problem(cp.Minimize(loss), [rates == features @ w])
    return problem, [features, counts], [w]


def _sample_poisson_regression(rng: Rng) -> list[Array]:
    features = 0.7 * rng.normal(size=(7, 3))
    return [features, np.exp(features @ rng.normal(size=3)) * rng.uniform(0.5, 1.5, 7)]


def _direct_poisson_regression(params: list[Array]) -> list[Array]:
    """Newton's method with its decrement as damping, which the exponential function needs."""
    features, counts = params
    w = np.zeros(3)
    for _ in range(_NEWTON_STEPS):
        rates = np.exp(features @ w)
        gradient = features.T @ (rates - counts) + 0.4 * w
        step = np.linalg.solve((features.T * rates) @ features + 0.4 * np.eye(3), gradient)
        w = w - step / (1.0 + np.abs(features @ step).max())
    return [w]


def _log_sum_exp() -> ProblemTuple:
    x, A, b = cp.Variable(3), cp.Parameter((6, 3)), cp.Parameter(6)
    objective = cp.log_sum_exp(A @ x + b) + 0.1 * cp.sum_squares(x)
    return make_problem(cp.Minimize(objective)), [A, b], [x]


def _sample_log_sum_exp(rng: Rng) -> list[Array]:
    return [rng.normal(size=(6, 3)), rng.normal(size=6)]


def _direct_log_sum_exp(params: list[Array]) -> list[Array]:
    """Newton's method, with short steps while they are long."""
    A, b = params
    x = np.zeros(3)
    for _ in range(_NEWTON_STEPS):
        weights = _direct_softmax([A @ x + b])[0]
        mean = weights @ A
        hessian = (A.T * weights) @ A - np.outer(mean, mean) + 0.2 * np.eye(3)
        step = np.linalg.solve(hessian, mean + 0.2 * x)
        x = x - step / (1.0 + np.abs(A @ step).max())
    return [x]


def _exponential_cone_projection() -> ProblemTuple:
    x, p = cp.Variable((3, 3)), cp.Parameter((3, 3))
    cones = [cp.ExpCone(x[0], x[1], x[2])]
    return make_problem(cp.Minimize(cp.sum_squares(x - p)), cones), [p], [x]


def _sample_exponential_cone_projection(rng: Rng) -> list[Array]:
    return [rng.normal(size=(3, 3))]


_EP = frozenset({"ep"})

EXPONENTIAL_PROBLEMS: tuple[LayerProblem, ...] = (
    LayerProblem("softmax", _softmax, _sample_softmax, cones=_EP, direct=_direct_softmax),
    LayerProblem("sigmoid", _sigmoid, _sample_sigmoid, cones=_EP, direct=_direct_sigmoid),
    LayerProblem(
        "limited_multi_label",
        _limited_multi_label,
        _sample_limited_multi_label,
        cones=_EP,
        direct=_direct_limited_multi_label,
    ),
    LayerProblem(
        "entropic_transport",
        _entropic_transport,
        _sample_entropic_transport,
        cones=_EP,
        direct=_direct_entropic_transport,
    ),
    LayerProblem(
        "unbalanced_transport",
        _unbalanced_transport,
        _sample_unbalanced_transport,
        cones=_EP,
        direct=_direct_unbalanced_transport,
    ),
    LayerProblem("maximum_entropy", _maximum_entropy, _sample_maximum_entropy, cones=_EP),
    LayerProblem(
        "relative_entropy_projection",
        _relative_entropy_projection,
        _sample_relative_entropy_projection,
        cones=_EP,
    ),
    LayerProblem("kelly_gambling", _kelly_gambling, _sample_kelly_gambling, cones=_EP),
    LayerProblem(
        "water_filling",
        _water_filling,
        _sample_water_filling,
        cones=_EP,
        direct=_direct_water_filling,
    ),
    LayerProblem("fisher_market", _fisher_market, _sample_fisher_market, cones=_EP),
    LayerProblem(
        "logistic_regression",
        _logistic_regression,
        _sample_logistic_regression,
        cones=_EP,
        direct=_direct_logistic_regression,
    ),
    LayerProblem(
        "poisson_regression",
        _poisson_regression,
        _sample_poisson_regression,
        cones=_EP,
        direct=_direct_poisson_regression,
    ),
    LayerProblem(
        "log_sum_exp", _log_sum_exp, _sample_log_sum_exp, cones=_EP, direct=_direct_log_sum_exp
    ),
    LayerProblem(
        "exponential_cone_projection",
        _exponential_cone_projection,
        _sample_exponential_cone_projection,
        cones=_EP,
    ),
)
"""Problems over exponential cones."""
