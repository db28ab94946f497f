"""`CvxpyLayer.solve`, warm starts, copies, modules, and other solvers in the place of ours."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy as cp
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from layer_problems import LAYER_PROBLEMS
from layer_problems_cones import CONE_PROBLEMS, GP_PROBLEMS
from mlx.utils import tree_flatten

import mlxcone
from cvxpylayers_mlx import CvxpyLayer

PROBLEMS = {p.name: p for p in (*LAYER_PROBLEMS, *CONE_PROBLEMS, *GP_PROBLEMS)}


def wide(values: Any) -> mx.array:
    return mx.array(values, dtype=mx.float64)


def box_projection() -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    x, p, top = cp.Variable(3), cp.Parameter(3), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p) + 4), [x <= top, x >= 0])
    return problem, [p, top], [x]


def layer_of(built: Any, **kwargs: Any) -> CvxpyLayer:
    return CvxpyLayer(*built, **kwargs)


# --- status, objective, iterations, residuals --------------------------------------------------


def test_the_objective_is_the_users() -> None:
    """Constants, maximization and logarithms included; it is differentiable."""
    p = mx.array([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])
    found = layer_of(box_projection()).solve(p, mx.array(1.0))
    np.testing.assert_allclose(np.array(found.info.objective), [4 + 1 + 1, 4], atol=1e-6)
    assert np.array(found.info.status).tolist() == [mlxcone.Status.SOLVED] * 2
    assert (np.array(found.info.iterations) > 0).all()
    assert (np.array(found.info.primal_residual) < 1e-6).all()
    np.testing.assert_allclose(np.array(found.variables[0][0]), [1, 0.5, 0], atol=1e-6)

    x, a = cp.Variable(), cp.Parameter(nonneg=True)
    maximum = CvxpyLayer(cp.Problem(cp.Maximize(a * x - x**2 + 3), [x <= 10]), [a], [x])
    value = lambda a: maximum.solve(a).info.objective  # noqa: E731
    assert value(mx.array(4.0)).item() == pytest.approx(7.0)
    assert mx.grad(value)(mx.array(4.0)).item() == pytest.approx(2.0)

    y, b = cp.Variable(pos=True), cp.Parameter(pos=True)
    for sense, exponent in ((cp.Minimize, 1.0), (cp.Maximize, -1.0)):
        power = CvxpyLayer(cp.Problem(sense(3 * y**exponent), [y >= b]), [b], [y], gp=True)
        assert power.solve(mx.array(2.0)).info.objective.item() == pytest.approx(3 * 2.0**exponent)


@pytest.mark.parametrize("name", ["kelly_gambling", "nearest_correlation", "gp_box_volume"])
def test_the_objective_against_cvxpy(name: str) -> None:
    listed = PROBLEMS[name]
    problem, parameters, variables = listed.build()
    values = listed.sample(np.random.default_rng(3))
    gp = name.startswith("gp")
    for parameter, value in zip(parameters, values, strict=True):
        parameter.save_value(value)
    problem.solve(solver=cp.CLARABEL, gp=gp)
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        info = CvxpyLayer(problem, parameters, variables, gp=gp).solve(*map(wide, values)).info
        assert info.objective.dtype == mx.float64
        assert info.objective.item() == pytest.approx(problem.value, rel=1e-5)


def test_the_status_of_each_lane() -> None:
    top = mx.array([1.0, -1.0, mx.nan])
    layer = layer_of(box_projection(), solver_args={"on_failure": "nan"})
    found = layer.solve(mx.ones((3,)), top)
    status = np.array(found.info.status).tolist()
    assert status == [mlxcone.Status.SOLVED, mlxcone.Status.INFEASIBLE, mlxcone.Status.FAILED]
    assert np.isnan(np.array(found.info.objective)).tolist() == [False, True, True]
    assert np.isnan(np.array(found.variables[0])).all(axis=1).tolist() == [False, True, True]


def test_solve_under_vmap() -> None:
    layer = layer_of(box_projection())
    p = mx.array(np.random.default_rng(0).standard_normal((4, 3)))

    def both(p: mx.array) -> tuple[mx.array, mx.array]:
        found = layer.solve(p, mx.array(1.0))
        return found.variables[0], found.info.objective

    mapped, batched = mx.vmap(both)(p), both(p)
    for one, other in zip(mapped, batched, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), atol=1e-6)


# --- warm starts -------------------------------------------------------------------------------


@pytest.fixture
def slow() -> tuple[CvxpyLayer, list[mx.array], list[mx.array]]:
    """A layer that takes many iterations, parameters, and others close by."""
    listed = PROBLEMS["minimum_l1_norm"]
    values = listed.sample(np.random.default_rng(0))
    near = [v + 1e-4 * np.abs(v) for v in values]
    layer = CvxpyLayer(*listed.build(), solver_args={"handover": 1e-4})
    arrays = [[mx.array(v.astype(np.float32)) for v in list_] for list_ in (values, near)]
    return layer, arrays[0], arrays[1]


def iterations(layer: CvxpyLayer, values: list[mx.array], warm_start: Any) -> int:
    info = layer.solve(*values, solver_args={"warm_start": warm_start}).info
    assert info.status.item() == mlxcone.Status.SOLVED
    count: Any = info.iterations.item()
    return count


def test_the_last_solution_is_kept_on_request(slow: Any) -> None:
    layer, values, near = slow
    cold = iterations(layer, values, False)
    assert iterations(layer, values, False) == cold
    assert iterations(layer, values, True) == cold
    assert iterations(layer, near, True) < cold
    assert iterations(layer, values, False) == cold


def test_a_given_solution_is_a_start(slow: Any) -> None:
    layer, values, near = slow
    first = layer.solve(*values)
    cold = iterations(layer, near, None)
    assert iterations(layer, near, first) < cold
    assert iterations(layer, near, first.canonical) < cold
    assert iterations(layer, near, tuple(first.canonical[:3])) < cold


def test_warm_starts_do_not_change_the_answer(slow: Any) -> None:
    layer, values, near = slow
    warm = {"warm_start": True}
    layer(*values, solver_args=warm)
    (started,), (fresh,) = layer(*near, solver_args=warm), layer(*near)
    np.testing.assert_allclose(np.array(started), np.array(fresh), atol=1e-5)
    bars = [mx.ones_like(fresh)]
    gradients = [
        mx.vjp(lambda *p, args=args: layer(*p, solver_args=args), near, bars)[1]
        for args in (warm, None)
    ]
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), atol=1e-4)


def test_a_warm_layer_takes_any_batch() -> None:
    """Another batch size, a failed lane, or vmap: the start is then a cold one."""
    layer = layer_of(box_projection(), solver_args={"warm_start": True, "on_failure": "nan"})
    p = mx.array(np.random.default_rng(0).standard_normal((4, 3)))
    expected = np.clip(np.array(p), 0, 1)
    tops = mx.array([1.0, mx.nan, -1.0, 1.0])
    for batch in (p[:2], p, p[0], p):
        np.testing.assert_allclose(
            np.array(layer(batch, mx.array(1.0))[0]), np.clip(np.array(batch), 0, 1), atol=1e-6
        )
    failed = np.isnan(np.array(layer(p, tops)[0])).any(axis=1)
    assert failed.tolist() == [False, True, True, False]
    np.testing.assert_allclose(np.array(layer(p, mx.array(1.0))[0]), expected, atol=1e-6)
    mapped = mx.vmap(lambda p: layer(p, mx.array(1.0))[0])(p)
    np.testing.assert_allclose(np.array(mapped), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["yes", (), 1.0])
def test_what_is_no_warm_start(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"warm_start: .* for a layer True .*, got .* type"):
        layer_of(box_projection()).solve(
            mx.ones((3,)), mx.array(1.0), solver_args={"warm_start": kind}
        )


# --- copies and modules ------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["every_cone", "gp_box_volume", "symmetric_matrix"])
def test_copies_compute_the_same(name: str, how: str) -> None:
    """To the last bit, in double precision too, with duals and gradients."""
    listed = PROBLEMS[name]
    problem, parameters, variables = listed.build()
    duals = [d for c in problem.constraints for d in c.dual_variables]
    layer = CvxpyLayer(problem, parameters, [*variables, *duals], gp=name.startswith("gp"))
    other = COPIES[how](layer)
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        values = [wide(v) for v in listed.sample(np.random.default_rng(1))]
        bars = [mx.ones_like(v) for v in layer(*values)]
        results = [mx.vjp(each, values, bars) for each in (layer, other)]
        for one, two in zip(*results, strict=True):
            for left, right in zip(one, two, strict=True):
                assert left.dtype == mx.float64
                assert np.array_equal(np.array(left), np.array(right))


class Model(nn.Module):
    """A linear map in front of a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.project = layer_of(box_projection())

    def __call__(self, v: mx.array) -> mx.array:
        return self.project(self.linear(v), mx.array(1.0, dtype=v.dtype))[0]


def test_member_of_a_module(tmp_path: Path) -> None:
    """No stray parameters; a training step, saving, loading, freezing and copying work."""
    model, v = Model(), mx.array(np.random.default_rng(0).standard_normal((5, 2)))
    names = {name for name, _ in tree_flatten(model.parameters())}
    assert names == {"linear.weight", "linear.bias"}
    loss, gradients = nn.value_and_grad(model, lambda v: mx.sum(mx.square(model(v) - 0.3)))(v)
    assert np.isfinite(loss.item())
    assert {name for name, _ in tree_flatten(gradients)} == names
    assert all(np.abs(np.array(g)).max() > 0 for _, g in tree_flatten(gradients))
    path = str(tmp_path / "weights.safetensors")
    model.save_weights(path)
    other = Model()
    other.load_weights(path)
    assert np.array_equal(np.array(other(v)), np.array(model(v)))
    model.freeze()
    assert not tree_flatten(model.trainable_parameters())
    assert np.array_equal(np.array(copy.deepcopy(model)(v)), np.array(model(v)))
    model.set_dtype(mx.float16)
    assert model(v.astype(mx.float16)).dtype == mx.float16


# --- other solvers -----------------------------------------------------------------------------

TIGHT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}
FOREIGN = ("lasso", "vertex_lp", "markowitz", "risk_limited_portfolio", "nearest_correlation")


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("name", [*FOREIGN, "softmax", "geometric_mean", "every_cone"])
def test_clarabel_forward_and_our_gradient(name: str) -> None:
    """The same values, duals and gradients as with our solver, alone and in a batch."""
    listed = PROBLEMS[name]
    problem, parameters, variables = listed.build()
    duals = [d for c in problem.constraints for d in c.dual_variables]
    outputs = [*variables, *duals]
    ours = CvxpyLayer(problem, parameters, outputs)
    theirs = CvxpyLayer(problem, parameters, outputs, solver=cp.CLARABEL, solver_args=TIGHT)
    rng = np.random.default_rng(4)
    lanes = [listed.sample(rng) for _ in range(2)]
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        batch = [wide(np.stack(v)) for v in zip(*lanes, strict=True)]
        for values in (batch, [v[0] for v in batch]):
            bars = [wide(rng.standard_normal(v.shape)) for v in ours(*values)]
            results = [mx.vjp(each, values, bars) for each in (ours, theirs)]
            for one, two in zip(*results, strict=True):
                for left, right in zip(one, two, strict=True):
                    scale = 1 + np.abs(np.array(left)).max()
                    np.testing.assert_allclose(
                        np.array(right) / scale, np.array(left) / scale, atol=2e-5
                    )


def test_its_answer_is_not_polished() -> None:
    """What the other solver found is what comes out, rough or not; and it takes its options."""
    layer = layer_of(box_projection(), solver=cp.SCS, solver_args={"eps": 1e-2})
    p = np.array([3.0, -1.0, 0.4])
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        (rough,) = layer(wide(p), wide(1.0))
        (fine,) = layer(wide(p), wide(1.0), solver_args={"eps": 1e-9})
    errors = [np.abs(np.array(v) - np.clip(p, 0, 1)).max() for v in (rough, fine)]
    assert errors[1] < 1e-7 < errors[0]


@pytest.mark.parametrize("on_failure", ["raise", "nan"])
def test_its_failures_are_ours(on_failure: str) -> None:
    layer = layer_of(box_projection(), solver=cp.CLARABEL, solver_args={"on_failure": on_failure})
    p, top = mx.ones((2, 3)), mx.array([1.0, -1.0])
    if on_failure == "raise":
        with pytest.raises(mlxcone.SolverError, match="lane 1: INFEASIBLE"):
            layer(p, top)
        return
    found, (gradient,) = mx.vjp(lambda p: layer(p, top)[0], [p], [mx.ones((2, 3))])
    assert np.isnan(np.array(found[0])).all(axis=1).tolist() == [False, True]
    assert np.isnan(np.array(gradient)).all(axis=1).tolist() == [False, True]
    status = layer.solve(p, top).info.status
    assert np.array(status).tolist() == [mlxcone.Status.SOLVED, mlxcone.Status.INFEASIBLE]


def test_it_says_what_it_cannot_do() -> None:
    layer = layer_of(box_projection(), solver="clarabel")
    with pytest.raises(RuntimeError, match=r"CLARABEL.*vmap"):
        mx.vmap(lambda p: layer(p, mx.array(1.0))[0])(mx.ones((2, 3)))
