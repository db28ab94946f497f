"""The references of the problem table against closed forms, other methods and other solvers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import cvxpy as cp
import layer_reference
import numpy as np
import pytest
from layer_problems import (
    LAYER_PROBLEMS,
    LOOSE_PROBLEMS,
    LayerProblem,
    built,
    element,
    reference_directional_derivative,
    reference_gradient,
    reference_values,
    sample_batch,
)
from layer_problems_cones import CONE_PROBLEMS, GP_PROBLEMS
from reference_cones import Cones, Exponential, Power

Array = np.ndarray

BATCH = 2
NEW = {problem.name: problem for problem in (*CONE_PROBLEMS, *GP_PROBLEMS)}
DIRECT = [name for name, problem in NEW.items() if problem.direct]
ALL_KINDS = {"zero": 1, "nonneg": 2, "soc": [3, 4], "psd": [2, 3], "exp": 2, "p3d": [0.3, 0.3, 0.9]}


@cache
def batch_of(name: str) -> list[Array]:
    return sample_batch(NEW[name], BATCH, seed=0)


def flat(arrays: list[Array]) -> Array:
    return np.concatenate([np.ravel(a) for a in arrays])


def relative(got: list[Array], wanted: list[Array]) -> float:
    """Largest error over the largest entry, everything concatenated."""
    return float(np.abs(flat(got) - flat(wanted)).max() / np.abs(flat(wanted)).max())


def cotangents_of(problem: LayerProblem) -> list[Array]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=v.shape) for v in built(problem)[2]]


def canonical_cones(problem: LayerProblem) -> frozenset[str]:
    """Names of the cones beyond linear and second-order ones, as CVXPY makes them for Clarabel."""
    data, _, _ = built(problem)[0].get_problem_data(cp.CLARABEL, gp=problem.gp)
    dims = data["dims"]
    found = {"s": dims.psd, "ep": dims.exp, "p": [*dims.p3d, *dims.pnd]}
    return frozenset(name for name, count in found.items() if count)


def values_for(problem: LayerProblem) -> list[Array]:
    """Parameter values that CVXPY needs before it canonicalizes a geometric program."""
    params = element(sample_batch(problem, 1, seed=0), 0)
    for parameter, value in zip(built(problem)[1], params, strict=True):
        parameter.value = value
    return params


# --- the table -----------------------------------------------------------------------------


def test_the_table_has_all_rows() -> None:
    rows = (*LAYER_PROBLEMS, *LOOSE_PROBLEMS, *CONE_PROBLEMS)
    names = [p.name for p in (*rows, *GP_PROBLEMS)]
    assert len(set(names)) == len(names)
    assert len(rows) >= 60
    assert len(GP_PROBLEMS) == 3
    assert all(p.gp for p in GP_PROBLEMS) and not any(p.gp for p in rows)


@pytest.mark.parametrize("name", NEW)
def test_problems_are_parametrized_and_name_their_cones(name: str) -> None:
    problem = NEW[name]
    program = built(problem)[0]
    assert program.is_dpp("dgp" if problem.gp else "dcp")  # pyright: ignore[reportCallIssue]
    values_for(problem)
    assert canonical_cones(problem) == problem.cones


@pytest.mark.parametrize("name", [p.name for p in (*LAYER_PROBLEMS, *LOOSE_PROBLEMS)])
def test_the_other_problems_need_no_further_cones(name: str) -> None:
    problem = next(p for p in (*LAYER_PROBLEMS, *LOOSE_PROBLEMS) if p.name == name)
    values_for(problem)
    assert canonical_cones(problem) == problem.cones == frozenset()


# --- values and gradients ------------------------------------------------------------------


@pytest.mark.parametrize("name", NEW)
def test_values_equal_those_of_clarabel_alone(name: str) -> None:
    """Through `Problem.solve`, which for a geometric program does not see its logarithmic form.

    Coarse: where the objective is curved, values are off by the square root of Clarabel's gap.
    """
    problem = NEW[name]
    program, parameters, variables = built(problem)
    for i in range(BATCH):
        params = element(batch_of(name), i)
        for parameter, value in zip(parameters, params, strict=True):
            parameter.value = value
        options = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-10)
        with warnings.catch_warnings():
            # Clarabel may stop short of such tolerances; how far is what this test sees.
            warnings.simplefilter("ignore", UserWarning)
            program.solve(solver=cp.CLARABEL, gp=problem.gp, **options)
        found = [np.asarray(v.value) for v in variables]
        assert relative(reference_values(problem, params), found) < 1e-4


@pytest.mark.parametrize("name", DIRECT)
def test_values_equal_those_of_a_direct_method(name: str) -> None:
    problem = NEW[name]
    assert problem.direct is not None
    for i in range(BATCH):
        params = element(batch_of(name), i)
        assert relative(reference_values(problem, params), problem.direct(params)) < 1e-11


def differences(problem: LayerProblem, params: list[Array], bars: list[Array]) -> list[Array]:
    """Gradient through fourth-order differences of the direct method."""
    assert problem.direct is not None
    gradients = []
    for k, parameter in enumerate(built(problem)[1]):
        found = np.zeros(params[k].shape)
        for at in np.ndindex(found.shape):
            total, step = 0.0, 2e-4
            for shift, weight in ((1, 8.0), (-1, -8.0), (2, -1.0), (-2, 1.0)):
                moved = [p.copy() for p in params]
                moved[k][at] += shift * step
                if layer_reference.is_symmetric_parameter(parameter):
                    moved[k] = 0.5 * (moved[k] + moved[k].T)
                total += weight * flat(problem.direct(moved)) @ flat(bars) / (12.0 * step)
            found[at] = total
        gradients.append(found)
    return gradients


@pytest.mark.parametrize("name", DIRECT)
def test_gradients_equal_differences_of_a_direct_method(name: str) -> None:
    problem = NEW[name]
    params, bars = element(batch_of(name), 0), cotangents_of(problem)
    found = reference_gradient(problem, params, bars)
    assert relative(found.values, differences(problem, params, bars)) < 1e-7


@pytest.mark.parametrize("name", NEW)
def test_two_step_sizes_agree(name: str) -> None:
    """The solution map is smooth at what is drawn, and differences are accurate."""
    problem = NEW[name]
    params, bars = element(batch_of(name), 1), cotangents_of(problem)
    found = reference_gradient(problem, params, bars)
    assert found.error < 1e-7
    # Each entry was moved alone; a dense direction moves all of them together.
    rng = np.random.default_rng(2)
    parameters = built(problem)[1]
    direction = [rng.normal(size=p.shape) for p in params]
    for i, parameter in enumerate(parameters):
        if layer_reference.is_symmetric_parameter(parameter):
            direction[i] = 0.5 * (direction[i] + direction[i].T)
    slope = reference_directional_derivative(problem, params, direction)
    wanted = flat(found.values) @ flat(direction)
    scale = np.linalg.norm(flat(found.values)) * np.linalg.norm(flat(direction))
    assert abs(flat(slope.values) @ flat(bars) - wanted) < 1e-7 * scale


def _softmax_pullback(scores: Array, bar: Array) -> Array:
    x = np.exp(scores) / np.exp(scores).sum()
    return x * (bar - x @ bar)


def _sigmoid_pullback(scores: Array, bar: Array) -> Array:
    x = 1.0 / (1.0 + np.exp(-scores))
    return x * (1.0 - x) * bar


def _inverse_pullback(S: Array, bar: Array) -> Array:
    X = np.linalg.inv(S)
    return -0.5 * X @ (bar + bar.T) @ X


@pytest.mark.parametrize(
    ("name", "pullback"),
    [
        ("softmax", _softmax_pullback),
        ("sigmoid", _sigmoid_pullback),
        ("gaussian_precision", _inverse_pullback),
    ],
)
def test_gradients_equal_formulas(name: str, pullback: Callable[[Array, Array], Array]) -> None:
    problem = NEW[name]
    params, bars = element(batch_of(name), 0), cotangents_of(problem)
    found = reference_gradient(problem, params, bars)
    assert relative(found.values, [pullback(params[0], bars[0])]) < 1e-9


def test_a_kink_shows() -> None:
    """Water just reaches the highest floor: two step sizes must not agree there."""
    problem = NEW["water_filling"]
    noise = np.array([0.5, 0.5, 0.5, 0.5, 0.5, 1.0])
    params = [noise, np.asarray(2.5 + 1e-4)]
    bars = [np.arange(6.0)]
    assert reference_gradient(problem, params, bars).error > 1e-3
    regular = [noise, np.asarray(2.3)]
    assert reference_gradient(problem, regular, bars).error < 1e-7


# --- projections ---------------------------------------------------------------------------


def test_projections_are_right_on_every_cone(rng: np.random.Generator) -> None:
    """y'(y - z) = 0 with y and y - z in their cones, and the derivative against differences."""
    cones = Cones(SimpleNamespace(**ALL_KINDS))
    rows = sum(part.rows for part in cones.parts)
    z = rng.normal(size=(200, rows)) * 10.0 ** rng.uniform(-1.0, 1.0, (200, 1))
    y = cones.project(z)
    size = np.linalg.norm(z, axis=1)
    assert np.abs(np.sum(y * (y - z), axis=1)).max() < 1e-13 * (size**2).max()
    np.testing.assert_allclose(cones.project(y), y, atol=1e-12 * size.max())
    # Points of the cone, -s, project onto zero.
    assert np.abs(cones.project(z - y)[:, 1:]).max() < 1e-12 * size.max()
    smooth = 0
    for row in z:
        direction = rng.normal(size=rows)
        if np.abs(cones.kinks(row).values).min() < 1e-2:
            continue
        smooth += 1
        step = 1e-6
        change = cones.project(row + step * direction) - cones.project(row - step * direction)
        D = cones.derivative(row)
        np.testing.assert_allclose(change / (2.0 * step), D @ direction, atol=1e-6)
        np.testing.assert_allclose(D, D.T, atol=1e-9)
    assert smooth > 50


@pytest.mark.parametrize("cone", [Exponential(), Power(0.3), Power(0.9)])
def test_curved_projections_span_magnitudes(cone: Exponential | Power) -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(size=(20000, 3)) * 10.0 ** rng.uniform(-2.0, 2.0, (20000, 3))
    y = cone.project(z)
    size = np.linalg.norm(z, axis=1)
    assert np.all(np.abs(np.sum(y * (y - z), axis=1)) < 1e-13 * size**2)
    # Nonexpansive and idempotent, as the projection onto a convex set is.
    other = cone.project(z[::-1])
    apart = np.linalg.norm(z - z[::-1], axis=1)
    assert np.all(np.linalg.norm(y - other, axis=1) <= (1.0 + 1e-12) * apart)
    assert np.abs((cone.project(y) - y) / size[:, None]).max() < 1e-12
