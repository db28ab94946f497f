"""All problems over exponential, power and semidefinite cones, and one over every cone at once."""

from __future__ import annotations

import cvxpy as cp
from layer_problems import Array, LayerProblem, Rng, make_problem, scalar
from layer_problems_exponential import EXPONENTIAL_PROBLEMS
from layer_problems_geometric import GP_PROBLEMS
from layer_problems_power import POWER_PROBLEMS
from layer_problems_semidefinite import SEMIDEFINITE_PROBLEMS
from layer_reference import ProblemTuple

__all__ = ["CONE_PROBLEMS", "GP_PROBLEMS"]


def _every_cone() -> ProblemTuple:
    x, mean, X = cp.Variable(4), cp.Variable(), cp.Variable((2, 2), PSD=True)
    center, weight = cp.Parameter(4), cp.Parameter(nonneg=True)
    A, b = cp.Parameter((3, 4)), cp.Parameter(3)
    M, bound = cp.Parameter((2, 2), symmetric=True), cp.Parameter(nonneg=True)
    objective = (
        cp.sum_squares(x - center)
        + cp.sum_squares(X - M)
        - weight * cp.sum(cp.entr(x))
        + cp.norm2(A @ x - b)
        - mean
    )
    constraints = [cp.sum(x) == 2, x[0] <= bound, cp.trace(X) <= 1 + x[1]]
    constraints.append(cp.PowCone3D(x[2], x[3], mean, 0.3))
    problem = make_problem(cp.Minimize(objective), constraints)
    return problem, [center, weight, A, b, M, bound], [x, mean, X]


def _sample_every_cone(rng: Rng) -> list[Array]:
    root = rng.normal(size=(2, 2))
    return [
        rng.uniform(0.0, 1.0, 4),
        scalar(rng.uniform(0.2, 1.0)),
        rng.normal(size=(3, 4)),
        rng.normal(size=3),
        0.5 * (root + root.T),
        scalar(rng.uniform(0.2, 0.8)),
    ]


CONE_PROBLEMS: tuple[LayerProblem, ...] = (
    *EXPONENTIAL_PROBLEMS,
    *POWER_PROBLEMS,
    *SEMIDEFINITE_PROBLEMS,
    LayerProblem("every_cone", _every_cone, _sample_every_cone, cones=frozenset({"s", "ep", "p"})),
)
"""Problems over other cones than zero, nonnegative and second-order ones."""
