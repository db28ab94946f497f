"""The layer as people use it: the examples of its documentation, transforms, and in models."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cvxpy as cp
import layer_reference
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from layer_problems import LAYER_PROBLEMS, sample_batch

import mlxcone
from cvxpylayers_mlx import CvxpyLayer

Array = np.ndarray

TABLE = {problem.name: problem for problem in LAYER_PROBLEMS}
DIFFERENTIATED = (
    "simplex_projection",
    "soc_projection",
    "optnet_qp",
    "nonnegative_least_squares",
    "vertex_lp",
    "lasso",
    "group_lasso",
    "risk_limited_portfolio",
    "symmetric_matrix",
    "several_variables",
)
"""Problems on which transforms are compared: every cone, several variables, matrices."""


on_cpu = pytest.mark.usefixtures("cpu")


@pytest.fixture
def cpu() -> Iterator[None]:
    """Run on the CPU, the only place that has float64."""
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        yield


def nonnegative_least_squares() -> CvxpyLayer:
    """The layer of the peer's documentation."""
    x = cp.Variable(2)
    A = cp.Parameter((3, 2))
    b = cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    return CvxpyLayer(problem, parameters=[A, b], variables=[x])


def layer_of(name: str) -> CvxpyLayer:
    """The layer of a row of the table."""
    problem, parameters, variables = TABLE[name].build()
    return CvxpyLayer(problem, parameters, variables)


def arrays(name: str, batch: int, dtype: mx.Dtype = mx.float64) -> list[mx.array]:
    """Batched parameter values of a row of the table."""
    return [mx.array(v, dtype=dtype) for v in sample_batch(TABLE[name], batch, seed=2)]


def normal(shape: Sequence[int], seed: int = 0, dtype: mx.Dtype = mx.float64) -> mx.array:
    """Random normal numbers."""
    return mx.array(np.random.default_rng(seed).normal(size=tuple(shape)), dtype=dtype)


def host(value: mx.array) -> Array:
    """NumPy, in float64."""
    return np.array(value).astype(np.float64)


def close(got: mx.array, wanted: mx.array | Array, tolerance: float) -> None:
    """Same shape; the largest error over the largest entry is within tolerance."""
    assert tuple(got.shape) == tuple(wanted.shape)
    expected = np.array(wanted).astype(np.float64)
    scale = np.abs(expected).max(initial=0.0)
    assert scale > 0, "zero proves nothing"
    assert np.abs(host(got) - expected).max() <= tolerance * scale


def all_close(got: Sequence[mx.array], wanted: Sequence[mx.array], tolerance: float) -> None:
    """Same shapes; the largest error over the largest entry of everything is within tolerance."""
    assert [g.shape for g in got] == [w.shape for w in wanted]
    flat = [mx.concatenate([v.reshape(-1) for v in values]) for values in (got, wanted)]
    close(flat[0], flat[1], tolerance)


def gradients_of(
    loss: Callable[..., mx.array], values: Sequence[mx.array], chosen: Sequence[int] | None = None
) -> list[mx.array]:
    """Gradients with respect to all or the chosen arguments, always a list."""
    chosen = range(len(values)) if chosen is None else chosen
    found = mx.grad(loss, argnums=list(chosen))(*values)
    return [found] if isinstance(found, mx.array) else list(found)


# --- examples of the documentation ---------------------------------------------------------


def test_documentation_solve() -> None:
    x = cp.Variable(2)
    A = cp.Parameter((3, 2))
    b = cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    layer = CvxpyLayer(problem, parameters=[A, b], variables=[x])

    A_mx = mx.random.normal((3, 2), key=mx.random.key(0))
    b_mx = mx.random.normal((3,), key=mx.random.key(1))
    (solution,) = layer(A_mx, b_mx)

    assert solution.shape == (2,)
    A.value, b.value = np.array(A_mx), np.array(b_mx)
    problem.solve(solver=cp.CLARABEL)
    assert np.allclose(np.array(solution), x.value, atol=1e-6)


def test_documentation_gradient_of_both_arguments() -> None:
    layer = nonnegative_least_squares()
    A_mx = mx.array([[1.0, 0.5], [0.2, 2.0], [-1.0, 0.3]], dtype=mx.float32)
    b_mx = mx.array([1.0, 2.0, 0.5], dtype=mx.float32)

    def loss_fn(A: mx.array, b: mx.array) -> mx.array:
        (x,) = layer(A, b)
        return mx.sum(x)

    grad_fn = mx.grad(loss_fn, argnums=[0, 1])
    grads = grad_fn(A_mx, b_mx)

    assert [g.shape for g in grads] == [(3, 2), (3,)]
    # Both entries are positive here: ordinary least squares, x = (A'A)^-1 A'b.
    dense, response = host(A_mx), host(b_mx)
    pseudo = np.linalg.pinv(dense)
    assert (pseudo @ response > 0.1).all()
    close(grads[1], pseudo.sum(axis=0), 1e-6)
    left = np.linalg.inv(dense.T @ dense).sum(axis=0)
    residual, x = response - dense @ (pseudo @ response), pseudo @ response
    close(grads[0], np.outer(residual, left) - np.outer(dense @ left, x), 1e-5)


def test_documentation_batch_of_ten() -> None:
    layer = nonnegative_least_squares()
    A_batch = mx.random.normal((10, 3, 2), key=mx.random.key(0))
    b_batch = mx.random.normal((10, 3), key=mx.random.key(1))

    (x_batch,) = layer(A_batch, b_batch)

    assert x_batch.shape == (10, 2)
    for A_one, b_one, x_one in zip(A_batch, b_batch, x_batch, strict=True):
        assert mx.allclose(layer(A_one, b_one)[0], x_one, atol=1e-5)
    assert mx.all(x_batch >= -1e-6)
    assert mx.any(x_batch > 0.1)


def test_documentation_batch_with_a_shared_matrix() -> None:
    layer = nonnegative_least_squares()
    A_mx = mx.random.normal((3, 2), key=mx.random.key(0))
    b_batch = mx.random.normal((10, 3), key=mx.random.key(1))

    (x_batch,) = layer(A_mx, b_batch)

    assert x_batch.shape == (10, 2)
    assert mx.allclose(x_batch[3], layer(A_mx, b_batch[3])[0], atol=1e-5)


def test_documentation_value_and_grad_of_a_batch() -> None:
    layer = nonnegative_least_squares()
    A_batch = mx.random.normal((10, 3, 2), key=mx.random.key(0))
    b_batch = mx.random.normal((10, 3), key=mx.random.key(1))

    def loss_fn(A: mx.array, b: mx.array) -> mx.array:
        (x,) = layer(A, b)
        return mx.mean(mx.square(x - 1.0))

    value, (grad_A, grad_b) = mx.value_and_grad(loss_fn, argnums=(0, 1))(A_batch, b_batch)

    assert np.isclose(value.item(), loss_fn(A_batch, b_batch).item(), rtol=1e-6)
    assert grad_A.shape == A_batch.shape
    assert grad_b.shape == b_batch.shape
    # A step against the gradient lowers the loss by about its squared norm.
    norm = mx.sum(mx.square(grad_A)) + mx.sum(mx.square(grad_b))
    step = 1e-2
    lowered = loss_fn(A_batch - step * grad_A, b_batch - step * grad_b)
    assert norm.item() > 1e-4
    assert np.isclose((value - lowered).item(), step * norm.item(), rtol=0.1)


def test_documentation_gradient_of_one_argument() -> None:
    layer = nonnegative_least_squares()
    A_mx = mx.random.normal((3, 2), key=mx.random.key(0))
    b_mx = mx.random.normal((3,), key=mx.random.key(3)) + 1

    def loss_fn(A: mx.array, b: mx.array) -> mx.array:
        (x,) = layer(A, b)
        return mx.sum(x)

    both = mx.grad(loss_fn, argnums=[0, 1])(A_mx, b_mx)
    close(mx.grad(loss_fn)(A_mx, b_mx), both[0], 1e-6)
    close(mx.grad(loss_fn, argnums=1)(A_mx, b_mx), both[1], 1e-6)


# --- transforms ----------------------------------------------------------------------------


@on_cpu
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_vmap_equals_a_loop_and_the_batched_call(name: str) -> None:
    layer, values = layer_of(name), arrays(name, 3)
    mapped = mx.vmap(layer)(*values)
    singles = [layer(*(a[i] for a in values)) for i in range(3)]
    loop = [mx.stack(v) for v in zip(*singles, strict=True)]
    all_close(mapped, loop, 1e-9)
    all_close(mapped, layer(*values), 1e-9)


@on_cpu
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_vmap_over_any_axis(axis: int) -> None:
    layer, (A, b) = nonnegative_least_squares(), arrays("nonnegative_least_squares", 4)
    mapped = mx.vmap(lambda *v: layer(*v)[0], in_axes=(axis, 1))
    close(mapped(mx.moveaxis(A, 0, axis), b.T), layer(A, b)[0], 1e-9)


@on_cpu
def test_vmap_out_axes() -> None:
    layer, (A, b) = nonnegative_least_squares(), arrays("nonnegative_least_squares", 4)
    mapped = mx.vmap(lambda *v: layer(*v)[0], out_axes=1)
    close(mapped(A, b), layer(A, b)[0].T, 1e-9)


@on_cpu
@pytest.mark.parametrize("axes", [(0, None), (None, 0)])
def test_vmap_over_some_arguments(axes: tuple[int | None, int | None]) -> None:
    layer, (A, b) = nonnegative_least_squares(), arrays("nonnegative_least_squares", 4)
    values = [v if axis == 0 else v[0] for v, axis in zip((A, b), axes, strict=True)]
    mapped = mx.vmap(lambda *v: layer(*v)[0], in_axes=axes)
    close(mapped(*values), layer(*values)[0], 1e-9)


@on_cpu
def test_nested_vmap_makes_all_pairs() -> None:
    layer, (A, b) = nonnegative_least_squares(), arrays("nonnegative_least_squares", 3)
    inner = mx.vmap(lambda *v: layer(*v)[0], in_axes=(None, 0))
    pairs = mx.vmap(inner, in_axes=(0, None))(A, b[:2])
    assert pairs.shape == (3, 2, 2)
    loop = [mx.stack([layer(A[i], b[j])[0] for j in range(2)]) for i in range(3)]
    close(pairs, mx.stack(loop), 1e-9)


@on_cpu
def test_vmap_over_a_batched_layer() -> None:
    """Two batch axes: one of the call, one of the transform."""
    layer, (A, b) = nonnegative_least_squares(), arrays("nonnegative_least_squares", 6)
    A, b = A.reshape(2, 3, 3, 2), b.reshape(2, 3, 3)
    mapped = mx.vmap(lambda *v: layer(*v)[0])(A, b)
    close(mapped, mx.stack([layer(A[i], b[i])[0] for i in range(2)]), 1e-9)


@on_cpu
def test_vmap_over_one_argument_of_a_batched_layer() -> None:
    layer, (A, b) = nonnegative_least_squares(), arrays("nonnegative_least_squares", 3)
    mapped = mx.vmap(lambda *v: layer(*v)[0], in_axes=(0, None))(A, b)
    assert mapped.shape == (3, 3, 2)
    close(mapped, mx.stack([layer(A[i], b)[0] for i in range(3)]), 1e-9)


@on_cpu
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_vmap_of_grad_is_the_grad_of_vmap(name: str) -> None:
    layer, values = layer_of(name), arrays(name, 3)
    weights = [normal(v.shape[1:], 7) for v in layer(*values)]

    def loss(*params: mx.array) -> mx.array:
        terms = [mx.sum(w * v) for w, v in zip(weights, layer(*params), strict=True)]
        return sum(terms[1:], terms[0])

    def summed(*params: mx.array) -> mx.array:
        return mx.sum(mx.vmap(loss)(*params))

    outside = gradients_of(summed, values)
    inside = mx.vmap(lambda *v: gradients_of(loss, v))(*values)
    alone = [gradients_of(loss, [v[i] for v in values]) for i in range(3)]
    all_close(inside, outside, 1e-8)
    all_close(inside, [mx.stack(g) for g in zip(*alone, strict=True)], 1e-8)


def inner(left: Sequence[mx.array], right: Sequence[mx.array]) -> float:
    """Inner product of two lists of arrays."""
    return float(sum(np.sum(host(a) * host(b)) for a, b in zip(left, right, strict=True)))


@on_cpu
@pytest.mark.parametrize("name", TABLE)
def test_jvp_is_adjoint_to_vjp(name: str) -> None:
    """<J v, w> = <v, J' w>."""
    layer, values = layer_of(name), arrays(name, 3)
    directions = [normal(v.shape, 10 + i) for i, v in enumerate(values)]
    outputs, tangents = mx.jvp(layer, values, directions)
    weights = [normal(v.shape, 20 + i) for i, v in enumerate(outputs)]
    _, gradients = mx.vjp(layer, values, weights)
    forward, backward = inner(tangents, weights), inner(directions, gradients)
    assert abs(forward) > 1e-6
    assert forward == pytest.approx(backward, rel=1e-6)


@on_cpu
@pytest.mark.parametrize("name", ["lasso", "risk_limited_portfolio", "symmetric_matrix"])
def test_jvp_equals_the_reference(name: str) -> None:
    layer, values = layer_of(name), arrays(name, 2)
    directions = [normal(v.shape, 10 + i) for i, v in enumerate(values)]
    if name == "symmetric_matrix":
        directions[0] = directions[0] + mx.swapaxes(directions[0], 1, 2)
    _, (tangent,) = mx.jvp(layer, values, directions)
    for lane in range(2):
        at = [[host(v[lane]) for v in group] for group in (values, directions)]
        wanted = layer_reference.directional_derivative(TABLE[name].build(), *at)
        close(tangent[lane], wanted.values[0], 1e-6)


@on_cpu
def test_jvp_in_one_argument() -> None:
    layer, (A, b) = nonnegative_least_squares(), arrays("nonnegative_least_squares", 2)
    direction = normal(b.shape, 1)
    _, (tangent,) = mx.jvp(lambda v: layer(A, v)[0], [b], [direction])
    _, (full,) = mx.jvp(layer, [A, b], [mx.zeros_like(A), direction])
    close(tangent, full, 1e-9)


@on_cpu
def test_vmap_of_jvp_gives_the_jacobian() -> None:
    """Forward and reverse mode agree on the whole Jacobian."""
    layer, (A, b) = nonnegative_least_squares(), arrays("nonnegative_least_squares", 1)
    A, b = A[0], b[0]

    def solution(v: mx.array) -> mx.array:
        return layer(A, v)[0]

    def column(v: mx.array) -> mx.array:
        return mx.jvp(solution, [b], [v])[1][0]

    def row(w: mx.array) -> mx.array:
        return mx.vjp(solution, [b], [w])[1][0]

    columns = mx.vmap(column)(mx.eye(3, dtype=mx.float64))
    rows = mx.vmap(row)(mx.eye(2, dtype=mx.float64))
    assert rows.shape == (2, 3)
    close(columns.T, rows, 1e-9)


@on_cpu
@pytest.mark.parametrize("name", ["lasso", "group_lasso", "optnet_qp"])
def test_grad_of_grad_equals_differences(name: str) -> None:
    layer, values = layer_of(name), [v[0] for v in arrays(name, 1)]
    positions = list(range(len(values)))
    directions = [normal(v.shape, 30 + i) for i, v in enumerate(values)]

    def loss(*params: mx.array) -> mx.array:
        return mx.sum(mx.square(layer(*params)[0]))

    def slope(*params: mx.array) -> mx.array:
        gradients = mx.grad(loss, argnums=positions)(*params)
        parts = [mx.sum(g * d) for g, d in zip(gradients, directions, strict=True)]
        return sum(parts[1:], parts[0])

    second = mx.grad(slope, argnums=positions)(*values)
    found, h = inner(second, directions), 1e-5
    moved = [[v + s * h * d for v, d in zip(values, directions, strict=True)] for s in (1, -1)]
    wanted = (slope(*moved[0]) - slope(*moved[1])).item() / (2 * h)
    assert abs(wanted) > 1e-3
    assert found == pytest.approx(wanted, rel=1e-4)


@on_cpu
@pytest.mark.parametrize("name", ["lasso", "several_variables"])
def test_checkpoint_changes_nothing(name: str) -> None:
    layer, values = layer_of(name), arrays(name, 2)
    positions = list(range(len(values)))

    def loss(*params: mx.array) -> mx.array:
        return mx.sum(mx.square(layer(*params)[0]))

    plain = mx.value_and_grad(loss, argnums=positions)(*values)
    again = mx.value_and_grad(mx.checkpoint(loss), argnums=positions)(*values)
    assert plain[0].item() == pytest.approx(again[0].item(), rel=1e-12)
    all_close(again[1], plain[1], 1e-10)


@on_cpu
def test_compile_raises_and_does_not_guess() -> None:
    layer, (A, b) = nonnegative_least_squares(), arrays("nonnegative_least_squares", 2)
    with pytest.raises((RuntimeError, ValueError)):
        mx.eval(mx.compile(lambda *v: layer(*v)[0])(A, b))


def bounded() -> CvxpyLayer:
    """Nearest point of [low, 1]; infeasible for low > 1."""
    x, p, low = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= low, x <= 1])
    return CvxpyLayer(problem, [p, low], [x])


@on_cpu
def test_failures_under_vmap_raise() -> None:
    p, low = normal((3, 2)), mx.array([0.0, 2.0, -1.0], dtype=mx.float64)
    with pytest.raises(mlxcone.SolverError, match="lane 1: INFEASIBLE"):
        mx.eval(mx.vmap(bounded())(p, low))


@on_cpu
def test_failures_under_vmap_can_be_nan() -> None:
    p, low = normal((3, 2)), mx.array([0.0, 2.0, -1.0], dtype=mx.float64)
    layer = bounded()
    mapped = mx.vmap(lambda *v: layer(*v, solver_args={"on_failure": "nan"})[0])(p, low)
    assert np.isnan(host(mapped)).all(axis=1).tolist() == [False, True, False]
    kept = mx.array([0, 2])
    close(mapped[kept], layer(p[kept], low[kept])[0], 1e-9)


@on_cpu
@pytest.mark.parametrize("transform", ["grad", "value_and_grad", "vjp", "jvp"])
def test_failures_under_other_transforms_raise(transform: str) -> None:
    layer = bounded()
    values = [normal((2,)), mx.array(2.0, dtype=mx.float64)]

    def loss(*params: mx.array) -> mx.array:
        return mx.sum(layer(*params)[0])

    one = mx.array(1.0, dtype=mx.float64)
    calls: dict[str, Callable[[], Any]] = {
        "grad": lambda: mx.grad(loss)(*values),
        "value_and_grad": lambda: mx.value_and_grad(loss)(*values),
        "vjp": lambda: mx.vjp(loss, values, [one]),
        "jvp": lambda: mx.jvp(loss, values, values),
    }
    with pytest.raises(mlxcone.SolverError, match="INFEASIBLE"):
        mx.eval(calls[transform]())


# --- one layer, many uses ------------------------------------------------------------------


@on_cpu
def test_one_layer_twice_in_one_graph() -> None:
    """The solution of one call is the parameter of the next."""
    layer, p = layer_of("simplex_projection"), arrays("simplex_projection", 1)[0][0]
    target = normal((8,), 3)

    def twice(v: mx.array) -> mx.array:
        (first,) = layer(v)
        (second,) = layer(2.0 * first + v - 0.1 * target)
        return mx.sum(target * second) + mx.sum(mx.square(first))

    gradient = mx.grad(twice)(p)
    h, differences = 1e-6, []
    for unit in mx.eye(8, dtype=mx.float64):
        differences.append((twice(p + h * unit) - twice(p - h * unit)).item() / (2 * h))
    close(gradient, np.array(differences), 1e-6)


@on_cpu
def test_two_calls_with_different_batches_in_one_graph() -> None:
    layer, (A, b) = nonnegative_least_squares(), arrays("nonnegative_least_squares", 3)

    def loss(v: mx.array) -> mx.array:
        return mx.sum(layer(A, v)[0]) + mx.sum(layer(A[0], b[0] + v)[0])

    def parts(v: mx.array) -> mx.array:
        alone = [layer(A[i], v)[0] for i in range(3)]
        return sum((mx.sum(x) for x in alone), mx.sum(layer(A[0], b[0] + v)[0]))

    close(mx.grad(loss)(b[1]), mx.grad(parts)(b[1]), 1e-8)


@on_cpu
def test_gradients_of_some_parameters_only() -> None:
    layer, values = layer_of("optnet_qp"), arrays("optnet_qp", 2)

    def loss(*params: mx.array) -> mx.array:
        return mx.sum(mx.square(layer(*params)[0]))

    every = gradients_of(loss, values)
    for chosen in ([1], [5], [0, 5], [3, 4]):
        some = gradients_of(loss, values, chosen)
        all_close(some, [every[i] for i in chosen], 1e-10)


@on_cpu
def test_stop_gradient_on_a_parameter() -> None:
    layer, (A, b) = nonnegative_least_squares(), arrays("nonnegative_least_squares", 2)

    def loss(A: mx.array, b: mx.array) -> mx.array:
        return mx.sum(layer(mx.stop_gradient(A), b)[0])

    grad_A, grad_b = mx.grad(loss, argnums=(0, 1))(A, b)
    assert not mx.any(grad_A)
    close(grad_b, mx.grad(lambda v: mx.sum(layer(A, v)[0]))(b), 1e-10)


def _copies() -> dict[str, Callable[[CvxpyLayer], CvxpyLayer]]:
    return {
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
        "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    }


@on_cpu
@pytest.mark.parametrize("how", list(_copies()))
@pytest.mark.parametrize("name", ["lasso", "symmetric_matrix", "several_variables"])
def test_copies_of_a_layer(name: str, how: str) -> None:
    layer, values = layer_of(name), arrays(name, 2)
    again = _copies()[how](layer)
    weights = [normal(v.shape, 4) for v in layer(*values)]
    outputs, gradients = mx.vjp(layer, values, weights)
    copied, also = mx.vjp(again, values, weights)
    all_close(copied, outputs, 1e-12)
    all_close(also, gradients, 1e-10)


@on_cpu
@pytest.mark.parametrize("how", list(_copies()))
def test_copies_keep_their_settings(how: str) -> None:
    problem, parameters, variables = TABLE["simplex_projection"].build()
    args = {"on_failure": "nan"}
    layer = _copies()[how](CvxpyLayer(problem, parameters, variables, solver_args=args))
    assert np.isnan(host(layer(mx.full((8,), mx.nan, dtype=mx.float64))[0])).all()


@on_cpu
def test_the_layer_outlives_its_problem() -> None:
    problem, parameters, variables = TABLE["simplex_projection"].build()
    layer = CvxpyLayer(problem, parameters, variables)
    del problem, parameters, variables
    (x,) = layer(normal((8,)))
    assert mx.sum(x).item() == pytest.approx(1.0, abs=1e-9)


# --- in models -----------------------------------------------------------------------------


class Model(nn.Module):
    """Linear features, projected onto the simplex."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)
        self.projection = layer_of("simplex_projection")

    def __call__(self, features: mx.array) -> mx.array:
        return self.projection(self.linear(features))[0]


def test_a_layer_in_a_module_adds_no_parameters() -> None:
    names = {name for name, _ in nn.utils.tree_flatten(Model().parameters())}
    assert names == {"linear.weight", "linear.bias"}
    assert set(Model().children()) == {"linear"}


def _learn(model: nn.Module, features: mx.array, labels: mx.array, steps: int) -> list[float]:
    """Losses of training with Adam."""

    def loss_fn(model: nn.Module, features: mx.array, labels: mx.array) -> mx.array:
        return mx.mean(mx.sum(mx.square(model(features) - labels), axis=1))

    optimizer, losses = optim.Adam(learning_rate=0.05), []
    step = nn.value_and_grad(model, loss_fn)
    for _ in range(steps):
        loss, gradients = step(model, features, labels)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(loss.item())
    return losses


def test_a_module_with_a_layer_learns() -> None:
    mx.random.seed(0)
    features = mx.random.normal((16, 4))
    labels = Model()(features)
    losses = _learn(Model(), features, labels, 20)
    assert losses[0] > 0.1
    assert losses[-1] < 0.5 * losses[0]


def test_a_module_with_a_layer_saves_and_loads(tmp_path: Any) -> None:
    first, second = Model(), Model()
    features = mx.random.normal((3, 4), key=mx.random.key(0))
    path = str(tmp_path / "weights.safetensors")
    first.save_weights(path)
    second.load_weights(path)
    assert mx.array_equal(first(features), second(features))


def test_deepcopy_of_a_module_with_a_layer() -> None:
    model = Model()
    features = mx.random.normal((3, 4), key=mx.random.key(0))
    assert mx.array_equal(copy.deepcopy(model)(features), model(features))


@on_cpu
def test_gradient_descent_recovers_a_parameter() -> None:
    """The weight of a ridge regression, from its solutions."""
    layer, (A, b, _) = layer_of("ridge"), arrays("ridge", 4)
    weight = mx.array(0.7, dtype=mx.float64)
    (observed,) = layer(A, b, weight)

    def loss(logarithm: mx.array) -> mx.array:
        (x,) = layer(A, b, mx.power(mx.array(np.e, dtype=mx.float64), logarithm))
        return mx.sum(mx.square(x - observed))

    found, step = mx.array(1.0, dtype=mx.float64), mx.value_and_grad(loss)
    before = None
    for _ in range(60):
        value, gradient = step(found)
        # Gauss-Newton on one unknown: the residual vanishes at the solution.
        found = found - 2.0 * value / gradient
        before = value if before is None else before
        if value.item() < 1e-14 * before.item():
            break
    assert np.exp(found.item()) == pytest.approx(0.7, rel=1e-6)


# --- a matrix parameter of some size -------------------------------------------------------


@pytest.fixture(scope="module")
def regression() -> tuple[CvxpyLayer, cp.Problem, cp.Variable, list[cp.Parameter]]:
    """Nonnegative least squares with A (200, 100): 20,000 entries that are parameters."""
    x, A, b = cp.Variable(100), cp.Parameter((200, 100)), cp.Parameter(200)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    return CvxpyLayer(problem, [A, b], [x]), problem, x, [A, b]


def _regression_values() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    A = rng.normal(size=(200, 100)) / np.sqrt(200)
    return A, A @ np.maximum(rng.normal(size=100), 0.0) + 0.1 * rng.normal(size=200)


def test_a_large_matrix_parameter_is_stored_sparsely(regression: Any) -> None:
    """The map from A has one nonzero an entry, where a dense one has (m n)^2 = 4e8."""
    maps = regression[0]._canonical
    entries = {name: getattr(maps, name).matrix.nnz for name in ("A", "q", "b", "P")}
    assert 20_000 <= entries["A"] <= 20_000 + 2_000
    assert sum(entries.values()) <= 20_000 + 4_000


def test_a_large_matrix_parameter_matches_clarabel(regression: Any) -> None:
    layer, problem, x, (A, b) = regression
    A.value, b.value = _regression_values()
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    (got,) = layer(*(mx.array(v, dtype=mx.float32) for v in (A.value, b.value)))
    close(got, x.value, 1e-5)


def test_gradients_of_a_large_matrix_parameter(regression: Any) -> None:
    """Against the closed form on the entries that are positive."""
    layer = regression[0]
    A, b = _regression_values()
    values = [mx.array(v, dtype=mx.float32) for v in (A, b)]
    bar = normal((100,), 5, mx.float32)
    (x,), (grad_A, grad_b) = mx.vjp(layer, values, [bar])
    support = host(x) > 1e-6
    assert 50 < support.sum() < 95
    part = A[:, support]
    left = np.zeros(100)
    left[support] = np.linalg.solve(part.T @ part, host(bar)[support])
    residual = b - A @ host(x)
    # Entries that are zero do not move, however their columns change.
    wanted = np.outer(residual, left) - np.outer(A @ left, host(x))
    wanted[:, ~support] = 0.0
    close(grad_A, wanted, 1e-4)
    close(grad_b, A @ left, 1e-4)
