"""Problems over semidefinite matrices, some with exponential cones for a determinant."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
from layer_problems import Array, LayerProblem, Rng, make_problem, scalar
from layer_reference import ProblemTuple


def _symmetric(rng: Rng, order: int) -> Array:
    root = rng.normal(size=(order, order))
    return 0.5 * (root + root.T)


def _covariance(rng: Rng, order: int) -> Array:
    """Random positive definite matrix, not far from the identity."""
    root = rng.normal(size=(order, 2 * order))
    return root @ root.T / (2 * order) + 0.2 * np.eye(order)


def _psd_projection() -> ProblemTuple:
    X, S = cp.Variable((4, 4), PSD=True), cp.Parameter((4, 4), symmetric=True)
    return make_problem(cp.Minimize(cp.sum_squares(X - S))), [S], [X]


def _sample_psd_projection(rng: Rng) -> list[Array]:
    return [_symmetric(rng, 4)]


def _direct_psd_projection(params: list[Array]) -> list[Array]:
    values, vectors = np.linalg.eigh(params[0])
    return [(vectors * np.maximum(values, 0.0)) @ vectors.T]


def _nearest_correlation() -> ProblemTuple:
    X, C = cp.Variable((4, 4), PSD=True), cp.Parameter((4, 4), symmetric=True)
    problem = make_problem(cp.Minimize(cp.sum_squares(X - C)), [cp.diag(X) == 1])
    return problem, [C], [X]


def _sample_nearest_correlation(rng: Rng) -> list[Array]:
    C = np.clip(0.9 * _symmetric(rng, 4), -1.0, 1.0)
    np.fill_diagonal(C, 1.0)
    return [C]


def _minimum_trace() -> ProblemTuple:
    X, C = cp.Variable((4, 4), PSD=True), cp.Parameter((4, 4), symmetric=True)
    measurements, b = [cp.Parameter((4, 4), symmetric=True) for _ in range(3)], cp.Parameter(3)
    constraints = [cp.trace(A @ X) == b[i] for i, A in enumerate(measurements)]
    problem = make_problem(cp.Minimize(cp.trace(C @ X)), constraints)
    return problem, [C, *measurements, b], [X]


def _sample_minimum_trace(rng: Rng) -> list[Array]:
    measurements = [_symmetric(rng, 4) for _ in range(3)]
    inside = _covariance(rng, 4)
    # A positive definite cost bounds the problem.
    return [
        _covariance(rng, 4),
        *measurements,
        np.array([np.sum(A * inside) for A in measurements]),
    ]


def _maximum_cut() -> ProblemTuple:
    X, weights = cp.Variable((5, 5), PSD=True), cp.Parameter((5, 5), symmetric=True)
    problem = make_problem(cp.Minimize(cp.sum(cp.multiply(weights, X))), [cp.diag(X) == 1])
    return problem, [weights], [X]


def _sample_maximum_cut(rng: Rng) -> list[Array]:
    weights = _symmetric(rng, 5)
    np.fill_diagonal(weights, 0.0)
    return [weights]


_OBSERVED = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])


def _matrix_completion() -> ProblemTuple:
    Z, M, weight = cp.Variable((3, 2)), cp.Parameter((3, 2)), cp.Parameter(nonneg=True)
    fit = cp.sum_squares(cp.multiply(_OBSERVED, Z - M))
    return make_problem(cp.Minimize(weight * cp.normNuc(Z) + fit)), [M, weight], [Z]


def _sample_matrix_completion(rng: Rng) -> list[Array]:
    low_rank = np.outer(rng.normal(size=3), rng.normal(size=2))
    return [low_rank + 0.3 * rng.normal(size=(3, 2)), scalar(rng.uniform(0.3, 1.0))]


def _gaussian_precision() -> ProblemTuple:
    X, S = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    return make_problem(cp.Minimize(cp.trace(S @ X) - cp.log_det(X))), [S], [X]


def _sample_gaussian_precision(rng: Rng) -> list[Array]:
    return [_covariance(rng, 3)]


def _direct_gaussian_precision(params: list[Array]) -> list[Array]:
    return [np.linalg.inv(params[0])]


def _graphical_lasso() -> ProblemTuple:
    X, S = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    weight = cp.Parameter(nonneg=True)
    apart = cp.hstack([X[0, 1], X[0, 2], X[1, 2]])
    objective = cp.trace(S @ X) - cp.log_det(X) + weight * cp.norm1(apart)
    return make_problem(cp.Minimize(objective)), [S, weight], [X]


def _sample_graphical_lasso(rng: Rng) -> list[Array]:
    return [_covariance(rng, 3), scalar(rng.uniform(0.1, 0.4))]


def _d_optimal_design() -> ProblemTuple:
    weights, costs = cp.Variable(4), cp.Parameter(4, nonneg=True)
    moments = [cp.Parameter((2, 2), symmetric=True) for _ in range(4)]
    information = sum(M * weights[i] for i, M in enumerate(moments))
    constraints = [costs @ weights <= 1, weights >= 0]
    problem = make_problem(cp.Maximize(cp.log_det(information)), constraints)
    return problem, [costs, *moments], [weights]


def _sample_d_optimal_design(rng: Rng) -> list[Array]:
    experiments = rng.normal(size=(4, 2))
    return [rng.uniform(0.5, 1.5, 4), *(np.outer(v, v) + 0.05 * np.eye(2) for v in experiments)]


def _largest_eigenvalue() -> ProblemTuple:
    x, terms = cp.Variable(2), [cp.Parameter((4, 4), symmetric=True) for _ in range(3)]
    pencil = terms[0] + x[0] * terms[1] + x[1] * terms[2]
    objective = cp.lambda_max(pencil) + 0.1 * cp.sum_squares(x)
    return make_problem(cp.Minimize(objective)), terms, [x]


def _sample_largest_eigenvalue(rng: Rng) -> list[Array]:
    return [_symmetric(rng, 4) for _ in range(3)]


_S = frozenset({"s"})
_DETERMINANT = frozenset({"s", "ep"})

SEMIDEFINITE_PROBLEMS: tuple[LayerProblem, ...] = (
    LayerProblem(
        "psd_projection",
        _psd_projection,
        _sample_psd_projection,
        cones=_S,
        direct=_direct_psd_projection,
    ),
    LayerProblem(
        "nearest_correlation", _nearest_correlation, _sample_nearest_correlation, cones=_S
    ),
    LayerProblem("minimum_trace", _minimum_trace, _sample_minimum_trace, cones=_S),
    LayerProblem("maximum_cut", _maximum_cut, _sample_maximum_cut, cones=_S),
    LayerProblem("matrix_completion", _matrix_completion, _sample_matrix_completion, cones=_S),
    LayerProblem("largest_eigenvalue", _largest_eigenvalue, _sample_largest_eigenvalue, cones=_S),
    LayerProblem(
        "gaussian_precision",
        _gaussian_precision,
        _sample_gaussian_precision,
        cones=_DETERMINANT,
        direct=_direct_gaussian_precision,
    ),
    LayerProblem("graphical_lasso", _graphical_lasso, _sample_graphical_lasso, cones=_DETERMINANT),
    LayerProblem(
        "d_optimal_design", _d_optimal_design, _sample_d_optimal_design, cones=_DETERMINANT
    ),
)
"""Problems over semidefinite cones."""
