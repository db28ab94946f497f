"""Geometric programs, each with the convex problem in logarithms that a reference solves."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
from layer_problems import Array, LayerProblem, Rng, make_problem, scalar
from layer_reference import ProblemTuple

# Boyd, Kim, Vandenberghe and Hassibi (2007), "A tutorial on geometric programming", section 2.4:
# the largest box with bounds on its walls, its floor and its shape.


def _box_volume() -> ProblemTuple:
    height, width, depth = (cp.Variable(pos=True) for _ in range(3))
    walls, floor, slim, deep = (cp.Parameter(pos=True) for _ in range(4))
    constraints = [
        2 * (height * width + height * depth) <= walls,
        width * depth <= floor,
        height / width <= slim,
        depth / width <= deep,
    ]
    problem = make_problem(cp.Maximize(height * width * depth), constraints)
    return problem, [walls, floor, slim, deep], [height, width, depth]


def _log_box_volume() -> ProblemTuple:
    height, width, depth = (cp.Variable() for _ in range(3))
    walls, floor, slim, deep = (cp.Parameter() for _ in range(4))
    sides = cp.log_sum_exp(cp.hstack([height + width, height + depth])) + np.log(2.0)
    constraints = [
        sides <= walls,
        width + depth <= floor,
        height - width <= slim,
        depth - width <= deep,
    ]
    problem = make_problem(cp.Maximize(height + width + depth), constraints)
    return problem, [walls, floor, slim, deep], [height, width, depth]


def _sample_box_volume(rng: Rng) -> list[Array]:
    ranges = ((3.0, 10.0), (1.0, 4.0), (0.8, 3.0), (0.4, 2.0))
    return [scalar(rng.uniform(*ends)) for ends in ranges]


# The least total power at which every receiver hears its sender through the others' signals:
# the same tutorial, section 2.6 (with the sum of powers as objective).

_STATIONS = 3


def _power_control() -> ProblemTuple:
    power = cp.Variable(_STATIONS, pos=True)
    gains = cp.Parameter((_STATIONS, _STATIONS), pos=True)
    noise, ratios = cp.Parameter(_STATIONS, pos=True), cp.Parameter(_STATIONS, pos=True)
    constraints = []
    for i in range(_STATIONS):
        others = sum(gains[i, j] * power[j] for j in range(_STATIONS) if j != i)
        constraints.append(ratios[i] * (noise[i] + others) / (gains[i, i] * power[i]) <= 1)
    return make_problem(cp.Minimize(cp.sum(power)), constraints), [gains, noise, ratios], [power]


def _log_power_control() -> ProblemTuple:
    power = cp.Variable(_STATIONS)
    gains = cp.Parameter((_STATIONS, _STATIONS))
    noise, ratios = cp.Parameter(_STATIONS), cp.Parameter(_STATIONS)
    constraints = []
    for i in range(_STATIONS):
        others = [gains[i, j] + power[j] for j in range(_STATIONS) if j != i]
        heard = cp.log_sum_exp(cp.hstack([noise[i], *others]))
        constraints.append(ratios[i] + heard <= gains[i, i] + power[i])
    problem = make_problem(cp.Minimize(cp.log_sum_exp(power)), constraints)
    return problem, [gains, noise, ratios], [power]


def _sample_power_control(rng: Rng) -> list[Array]:
    gains = rng.uniform(0.05, 0.3, (_STATIONS, _STATIONS))
    gains[np.diag_indices(_STATIONS)] = rng.uniform(1.0, 2.0, _STATIONS)
    return [gains, rng.uniform(0.2, 1.0, _STATIONS), rng.uniform(0.5, 1.5, _STATIONS)]


def _direct_power_control(params: list[Array]) -> list[Array]:
    """Every ratio is met exactly, which is a linear system."""
    gains, noise, ratios = params
    need = ratios / np.diag(gains)
    crossed = gains - np.diag(np.diag(gains))
    return [np.linalg.solve(np.eye(_STATIONS) - need[:, None] * crossed, need * noise)]


def _posynomial() -> ProblemTuple:
    x, y, z = (cp.Variable(pos=True) for _ in range(3))
    costs, shares = cp.Parameter(3, pos=True), cp.Parameter(2, pos=True)
    objective = costs[0] / (x * y) + costs[1] * x**0.5 / z + costs[2] * y * z
    constraints = [shares[0] * x + shares[1] * x * z**2 <= 1]
    return make_problem(cp.Minimize(objective), constraints), [costs, shares], [x, y, z]


def _log_posynomial() -> ProblemTuple:
    x, y, z = (cp.Variable() for _ in range(3))
    costs, shares = cp.Parameter(3), cp.Parameter(2)
    terms = [costs[0] - x - y, costs[1] + 0.5 * x - z, costs[2] + y + z]
    bounded = [shares[0] + x, shares[1] + x + 2.0 * z]
    constraints = [cp.log_sum_exp(cp.hstack(bounded)) <= 0]
    objective = cp.Minimize(cp.log_sum_exp(cp.hstack(terms)))
    return make_problem(objective, constraints), [costs, shares], [x, y, z]


def _sample_posynomial(rng: Rng) -> list[Array]:
    return [rng.uniform(0.5, 2.0, 3), rng.uniform(0.3, 1.5, 2)]


_EP = frozenset({"ep"})

GP_PROBLEMS: tuple[LayerProblem, ...] = (
    LayerProblem(
        "gp_box_volume", _box_volume, _sample_box_volume, cones=_EP, log_form=_log_box_volume
    ),
    LayerProblem(
        "gp_power_control",
        _power_control,
        _sample_power_control,
        cones=_EP,
        direct=_direct_power_control,
        log_form=_log_power_control,
    ),
    LayerProblem(
        "gp_posynomial", _posynomial, _sample_posynomial, cones=_EP, log_form=_log_posynomial
    ),
)
"""Geometric programs, for layers made with ``gp=True``."""
