"""Ready layers, against closed forms in NumPy, Clarabel, and differences of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlxcone.nn as cones

Array = np.ndarray
N = 6
TIGHT = {"tol_gap_abs": 1e-13, "tol_gap_rel": 1e-13, "tol_feas": 1e-13}


def wide(value: Array) -> mx.array:
    with mx.stream(mx.Device(mx.DeviceType.cpu)):
        return mx.array(value, dtype=mx.float64)


def by_bisection(v: Array, lower: float, upper: float, total: float) -> Array:
    """Projection on a box and a plane: clip(v - t) for the t at which the sum is right."""
    low, high = v.min() - upper - 1.0, v.max() - lower + 1.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        above = np.clip(v - middle, lower, upper).sum() > total
        low, high = (middle, high) if above else (low, middle)
    return np.clip(v - 0.5 * (low + high), lower, upper)


def simplex_by_sorting(v: Array, total: float = 1.0) -> Array:
    """Duchi et al. 2008, figure 1."""
    u = np.sort(v)[::-1]
    t = (np.cumsum(u) - total) / np.arange(1, len(v) + 1)
    return np.maximum(v - t[np.nonzero(u > t)[0][-1]], 0.0)


def on_l1_ball(v: Array, radius: float = 1.5) -> Array:
    if np.abs(v).sum() <= radius:
        return v
    return np.sign(v) * simplex_by_sorting(np.abs(v), radius)


def on_l2_ball(v: Array, radius: float = 1.5) -> Array:
    return v * min(1.0, radius / np.linalg.norm(v))


PROJECTIONS: dict[str, tuple[Any, Callable[[Array], Array]]] = {
    "simplex": (lambda: cones.Simplex(N, total=2.0), lambda v: simplex_by_sorting(v, 2.0)),
    "l1 ball": (lambda: cones.L1Ball(N, radius=1.5), on_l1_ball),
    "l2 ball": (lambda: cones.L2Ball(N, radius=1.5), on_l2_ball),
    "box and simplex": (
        lambda: cones.BoxSimplex(N, -0.3, 0.7, 1.1),
        lambda v: by_bisection(v, -0.3, 0.7, 1.1),
    ),
    "sparsemax": (
        lambda: cones.Sparsemax(N, temperature=0.5),
        lambda v: simplex_by_sorting(2.0 * v),
    ),
    "soft top-k": (
        lambda: cones.SoftTopK(N, 2, temperature=2.0),
        lambda v: by_bisection(0.5 * v, 0.0, 1.0, 2.0),
    ),
}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_values(name: str, rng: np.random.Generator) -> None:
    make, reference = PROJECTIONS[name]
    layer, v = make(), 2.0 * rng.standard_normal((5, 3, N))
    wanted = np.apply_along_axis(reference, -1, v)
    assert np.linalg.norm(wanted - v) > 1.0, "inside, a projection does nothing"
    found = layer(wide(v))
    assert found.dtype == mx.float64
    np.testing.assert_allclose(np.array(found), wanted, atol=1e-9)
    single = layer(mx.array(v[0, 0].astype(np.float32)))
    assert single.dtype == mx.float32
    np.testing.assert_allclose(np.array(single), wanted[0, 0], atol=1e-6)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_gradients(name: str, rng: np.random.Generator) -> None:
    make, reference = PROJECTIONS[name]
    layer, v, weights = make(), 2.0 * rng.standard_normal((4, N)), rng.standard_normal((4, N))
    found = np.array(mx.grad(lambda v: mx.sum(wide(weights) * layer(v)))(wide(v)))
    assert np.abs(found).max() > 1e-3
    for direction in rng.standard_normal((3, 4, N)):
        ahead, behind = (
            np.apply_along_axis(reference, -1, v + h * direction) for h in (1e-6, -1e-6)
        )
        slope = np.sum(weights * (ahead - behind)) / 2e-6
        np.testing.assert_allclose(np.sum(found * direction), slope, atol=1e-6)


def test_transforms(rng: np.random.Generator) -> None:
    layer, v = cones.Sparsemax(N), rng.standard_normal((4, N))
    wanted = np.apply_along_axis(simplex_by_sorting, -1, v)
    np.testing.assert_allclose(np.array(mx.vmap(layer)(wide(v))), wanted, atol=1e-9)
    (value,), (slope,) = mx.jvp(lambda v: layer(v), [wide(v)], [wide(np.ones((4, N)))])
    np.testing.assert_allclose(np.array(value), wanted, atol=1e-9)
    np.testing.assert_allclose(np.array(slope), 0.0, atol=1e-9)  # a shift changes nothing


def test_zeros_and_limits_are_exact(rng: np.random.Generator) -> None:
    v = mx.array(rng.standard_normal((40, N)).astype(np.float32))
    for layer in (cones.Sparsemax(N), cones.Simplex(N, total=2.0)):
        found = np.array(layer(v))
        assert (found >= 0).all() and (found == 0).sum() > 40
    chosen = np.array(cones.SoftTopK(N, 2, temperature=0.2)(v))
    assert (chosen >= 0).all() and (chosen <= 1).all()
    assert (chosen == 0).sum() > 40 and (chosen == 1).sum() > 20


def test_semidefinite(rng: np.random.Generator) -> None:
    layer, v = cones.Semidefinite(4), rng.standard_normal((3, 4, 4))

    def reference(v: Array) -> Array:
        w, U = np.linalg.eigh(0.5 * (v + np.swapaxes(v, -1, -2)))
        return (U * np.maximum(w, 0.0)[..., None, :]) @ np.swapaxes(U, -1, -2)

    np.testing.assert_allclose(np.array(layer(wide(v))), reference(v), atol=1e-9)
    weights, direction = rng.standard_normal((2, 3, 4, 4))
    found = np.array(mx.grad(lambda v: mx.sum(wide(weights) * layer(v)))(wide(v)))
    slope = np.sum(weights * (reference(v + 1e-6 * direction) - reference(v - 1e-6 * direction)))
    np.testing.assert_allclose(np.sum(found * direction), slope / 2e-6, atol=1e-6)


def test_nearest_correlation() -> None:
    """Higham 2002, the example of section 4 to the digits printed there."""
    matrix = mx.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    found = np.array(cones.Semidefinite(3, unit_diagonal=True)(matrix))
    wanted = [[1.0, 0.7607, 0.1573], [0.7607, 1.0, 0.7607], [0.1573, 0.7607, 1.0]]
    np.testing.assert_allclose(found, wanted, atol=5e-5)


def stepped(module: nn.Module, name: str, index: tuple[int, ...], step: float) -> None:
    value = np.array(module[name])
    value[index] += step
    module[name] = wide(value)


def in_float64(module: nn.Module) -> None:
    module.update({name: wide(np.array(v)) for name, v in tree_flatten(module.parameters())})


def clarabel(problem: Any) -> None:
    problem.solve(solver=cp.CLARABEL, **TIGHT)


def check_learning(layer: nn.Module, reference: Callable[[], Array], out: Any) -> None:
    """Gradients of every parameter of a module, against differences of a reference."""
    weights = np.random.default_rng(1).standard_normal(reference().shape)
    _, gradients = nn.value_and_grad(layer, lambda: mx.sum(wide(weights) * out()))()
    touched = 0
    for name, gradient in tree_flatten(gradients):
        index = np.unravel_index(int(np.abs(np.array(gradient)).argmax()), gradient.shape)
        ends = []
        for sign in (1.0, -1.0):
            stepped(layer, name, index, sign * 1e-5)
            ends.append(np.sum(weights * reference()))
            stepped(layer, name, index, -sign * 1e-5)
        slope = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(np.array(gradient)[index], slope, rtol=1e-3, atol=1e-5)
        touched += abs(slope) > 1e-3
    assert touched >= 3


@pytest.mark.parametrize("equalities", [0, 2])
def test_quadratic_program(equalities: int, rng: np.random.Generator) -> None:
    mx.random.seed(0)
    layer = cones.QuadraticProgram(N, 8, equalities)
    in_float64(layer)
    p = 20.0 * rng.standard_normal((2, N))

    def reference() -> Array:
        L, G, z0 = (np.array(layer[name]) for name in ("factor", "inequality", "interior"))
        P = np.tril(L) @ np.tril(L).T + 1e-2 * np.eye(N)
        rows = []
        for lane in p:
            z = cp.Variable(N)
            constraints: list[Any] = [G @ z <= G @ z0 + np.exp(np.array(layer["slack"]))]
            if equalities:
                constraints.append(np.array(layer["equality"]) @ (z - z0) == 0)
            objective = cp.Minimize(0.5 * cp.quad_form(z, cp.psd_wrap(P)) + lane @ z)
            clarabel(cp.Problem(objective, constraints))
            rows.append(z.value)
        return np.stack(rows)

    np.testing.assert_allclose(np.array(layer(wide(p))), reference(), atol=1e-7)
    check_learning(layer, reference, lambda: layer(wide(p)))


def test_model_predictive_control(rng: np.random.Generator) -> None:
    mx.random.seed(0)
    layer = cones.LinearMPC(3, 2, horizon=4, limit=0.4)
    in_float64(layer)
    start, target = rng.standard_normal((2, 3)), rng.standard_normal(3)
    layer.dynamics = wide(np.eye(3) + 0.2 * rng.standard_normal((3, 3)))
    layer.control = wide(rng.standard_normal((3, 2)))
    layer.control_cost = wide(np.array([-1.0, 0.5]))

    def reference() -> Array:
        A, B = np.array(layer["dynamics"]), np.array(layer["control"])
        Q, R = (np.exp(np.array(layer[k])) for k in ("state_cost", "control_cost"))
        rows = []
        for lane in start:
            u, x = cp.Variable((4, 2)), cp.Variable((5, 3))
            cost = sum(
                0.5 * cp.sum(cp.multiply(Q, cp.square(x[t + 1] - target)))
                + 0.5 * cp.sum(cp.multiply(R, cp.square(u[t])))
                for t in range(4)
            )
            constraints: list[Any] = [x[0] == lane, cp.abs(u) <= 0.4]
            constraints += [x[t + 1] == A @ x[t] + B @ u[t] for t in range(4)]
            clarabel(cp.Problem(cp.Minimize(cost), constraints))
            rows.append(np.concatenate([np.ravel(u.value), np.ravel(x.value[1:])]))
        return np.stack(rows)

    def out() -> mx.array:
        plan = layer(wide(start), wide(target))
        return mx.concatenate([plan.controls.reshape(2, -1), plan.states.reshape(2, -1)], axis=1)

    wanted = reference()
    assert (np.abs(wanted[:, :8]) > 0.4 - 1e-9).any(), "no limit binds"
    np.testing.assert_allclose(np.array(out()), wanted, atol=1e-7)
    check_learning(layer, reference, out)


def test_nothing_but_parameters_is_trained() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, N)
            self.choice = cones.Sparsemax(N)
            self.program = cones.QuadraticProgram(N, 4)

        def __call__(self, v: mx.array) -> mx.array:
            return self.program(self.choice(self.inner(v)))

    model = Model()
    names = {name for name, _ in tree_flatten(model.parameters())}
    program = {f"program.{k}" for k in ("factor", "inequality", "interior", "slack")}
    assert names == {"inner.weight", "inner.bias"} | program
    optimizer = optim.Adam(0.02)
    v = mx.random.normal((16, 3), key=mx.random.key(0))
    step = nn.value_and_grad(model, lambda v: mx.mean(mx.square(model(v) - 0.3)))
    losses = []
    for _ in range(15):
        loss, gradients = step(v)
        optimizer.update(model, gradients)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cones.Simplex(0), "size: expected a positive integer"),
        (lambda: cones.Simplex(3, total=-1.0), "total: expected a positive number"),
        (lambda: cones.L1Ball(3, radius=0.0), "radius: expected a positive number"),
        (lambda: cones.BoxSimplex(3, 0.0, 1.0, 4.0), "total: expected a number from 0.0 to 3.0"),
        (lambda: cones.Sparsemax(3, temperature=0.0), "temperature: expected a positive"),
        (lambda: cones.SoftTopK(3, 4), "k: expected a number above 0, at most size = 3, got 4"),
        (lambda: cones.QuadraticProgram(3, 2, 3), "equalities: expected 0 to 2"),
        (lambda: cones.Simplex(3, epsilon=1.0), "unknown solver argument 'epsilon'"),
        (lambda: cones.Simplex(3)(mx.zeros((2, 4))), r"v: expected shape \(..., 3\)"),
        (lambda: cones.Projection(3, np.eye(2), np.ones(2), {"l": 2}), "A: expected at least 3"),
        (lambda: cones.Semidefinite(3)(mx.zeros((3, 4))), r"matrix: expected shape \(..., 3, 3\)"),
        (lambda: cones.QuadraticProgram(3, 2)(mx.zeros((4,))), r"p: expected shape \(..., 3\)"),
        (lambda: cones.LinearMPC(3, 1, 2, 1.0)(mx.zeros((4,))), r"state: expected shape"),
        (
            lambda: cones.LinearMPC(3, 1, 2, 1.0)(mx.zeros((2, 3)), mx.zeros((2,))),
            r"target: expected shape \(2, 3\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
