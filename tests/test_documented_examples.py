"""Every example that cvxpylayers documents for MLX, batches, duals and geometric programs.

Only the import differs. Data is drawn as there, in float32; each answer and each gradient is
compared with closed forms, NumPy and SciPy, or CVXPY with Clarabel and central differences. Pages
are named in the headings; examples that tests/test_layer.py has (test_documentation_*) are not
repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cvxpy as cp
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from scipy.optimize import brentq, nnls

from cvxpylayers_mlx import CvxpyLayer
from mlxcone import SolverError

Array = np.ndarray
Solver = Callable[..., list[Array]]
TIGHT = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}


def program(objective: Any, constraints: list[Any]) -> Any:
    """A problem; CVXPY declares neither what comparisons give nor the option dpp."""
    return cp.Problem(objective, constraints)


def positive() -> tuple[Any, Any, Any]:
    """Three positive scalars."""
    x, y, z = (cp.Variable(pos=True) for _ in range(3))
    return x, y, z


def normal(shape: Sequence[int], seed: int) -> mx.array:
    """Random normal numbers in float32."""
    return mx.random.normal(tuple(shape), key=mx.random.key(seed))


def host(value: mx.array) -> Array:
    """NumPy, in float64."""
    return np.array(value).astype(np.float64)


def equal(found: Sequence[mx.array], wanted: Sequence[Any], tolerance: float = 1e-5) -> None:
    """Same shapes; the largest error over the largest entry of all is within tolerance."""
    arrays = [np.asarray(w, dtype=np.float64) for w in wanted]
    assert [f.shape for f in found] == [w.shape for w in arrays]
    scale = max(np.abs(w).max() for w in arrays)
    assert scale > 1e-3, "zero proves nothing"
    for f, w in zip(found, arrays, strict=True):
        np.testing.assert_allclose(host(f), w, rtol=0, atol=tolerance * scale)


def in_lanes(solve: Solver, dimensions: Sequence[int]) -> Solver:
    """A reference of one problem, for batches; its arguments have these numbers of axes."""

    def reference(*values: Array) -> list[Array]:
        batched = [v.ndim > d for v, d in zip(values, dimensions, strict=True)]
        sizes = {len(v) for v, b in zip(values, batched, strict=True) if b}
        if not sizes:
            return solve(*values)
        (size,) = sizes
        lanes = [
            solve(*(v[i] if b else v for v, b in zip(values, batched, strict=True)))
            for i in range(size)
        ]
        return [np.stack(column) for column in zip(*lanes, strict=True)]

    return reference


def by_clarabel(problem: Any, parameters: list[Any], outputs: list[Any]) -> Solver:
    """CVXPY with Clarabel at tight tolerances, for a geometric program."""

    def reference(*values: Array) -> list[Array]:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.value = value
        problem.solve(solver=cp.CLARABEL, gp=True, **TIGHT)
        return [np.array(o.value, dtype=np.float64) for o in outputs]

    return reference


def differences(f: Callable[..., Any], values: Sequence[Array], step: float) -> list[Array]:
    """Central differences of a number in every entry of every argument."""
    found = []
    for position, value in enumerate(values):
        slopes = np.zeros(value.shape)
        for entry in np.ndindex(value.shape):
            ends = []
            for sign in (1.0, -1.0):
                moved = [v.copy() for v in values]
                moved[position][entry] += sign * step
                ends.append(float(f(*moved)))
            slopes[entry] = (ends[0] - ends[1]) / (2.0 * step)
        found.append(slopes)
    return found


def total(*outputs: Any) -> Any:
    """The sum of all entries, of MLX or NumPy arrays."""
    return sum((o.sum() for o in outputs[1:]), outputs[0].sum())


def check(
    layer: Callable[..., Sequence[mx.array]],
    values: Sequence[mx.array],
    reference: Solver,
    loss: Callable[..., Any] = total,
    step: float = 1e-6,
    tolerance: float = 1e-4,
) -> list[mx.array]:
    """Compare answers, and gradients of a loss of them by ``mx.grad``; returns the answers."""
    exact = [host(v) for v in values]
    found = list(layer(*values))
    equal(found, reference(*exact))
    every = list(range(len(values)))
    gradients = mx.grad(lambda *v: loss(*layer(*v)), argnums=every)(*values)
    listed = [gradients] if isinstance(gradients, mx.array) else list(gradients)
    equal(listed, differences(lambda *v: loss(*reference(*v)), exact, step), tolerance)
    return found


# --- nonnegative least squares, the problem of most pages -----------------------------------


def least_squares(m: int = 3, n: int = 2, **options: Any) -> CvxpyLayer:
    x = cp.Variable(n)
    A = cp.Parameter((m, n))
    b = cp.Parameter(m)
    problem = program(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    assert problem.is_dpp()
    return CvxpyLayer(problem, parameters=[A, b], variables=[x], **options)


NNLS = in_lanes(lambda A, b: [nnls(A, b)[0]], (2, 1))
POSITIVE = (mx.array([[1.0, 0.5], [0.2, 2.0], [-1.0, 0.3]]), mx.array([1.0, 2.0, 0.5]))
"""A and b of a solution without zeros."""


# --- README, and the scripts named examples/{torch,jax,mlx} ---------------------------------


def l1_fit() -> CvxpyLayer:
    n, m = 2, 3
    x = cp.Variable(n)
    A = cp.Parameter((m, n))
    b = cp.Parameter(m)
    constraints = [x >= 0]
    objective = cp.Minimize(0.5 * cp.pnorm(A @ x - b, p=1))
    problem = program(objective, constraints)
    assert problem.is_dpp()
    return CvxpyLayer(problem, parameters=[A, b], variables=[x])


def l1_solution(A: Array, b: Array) -> list[Array]:
    """The best vertex: as many zeros among residuals and entries of x as x has entries."""
    m, n = A.shape
    planes, levels = np.vstack([A, np.eye(n)]), np.concatenate([b, np.zeros(n)])
    candidates = []
    for i in range(m + n):
        for j in range(i):
            x = np.linalg.solve(planes[[i, j]], levels[[i, j]])
            if x.min() >= -1e-12:
                candidates.append(x)
    return [min(candidates, key=lambda x: np.abs(A @ x - b).sum())]


@pytest.mark.parametrize("seed", range(3))
def test_readme_l1_fit(seed: int) -> None:
    layer = l1_fit()
    A_mx, b_mx = mx.abs(normal((3, 2), seed)), mx.abs(normal((3,), seed + 50))

    def loss_fn(A: mx.array, b: mx.array) -> mx.array:
        (solution,) = layer(A, b)
        return solution.sum()

    exact = [host(A_mx), host(b_mx)]
    equal(layer(A_mx, b_mx), l1_solution(*exact))
    gradients = mx.grad(loss_fn, argnums=[0, 1])(A_mx, b_mx)
    equal(gradients, differences(lambda A, b: l1_solution(A, b)[0].sum(), exact, 1e-6), 1e-4)


def test_readme_jax_form_of_the_gradient() -> None:
    """The loss is Python's sum over the solution."""
    layer = l1_fit()
    A_mx, b_mx = POSITIVE

    dlayer = mx.grad(lambda A, b: sum(layer(A, b)[0]), argnums=[0, 1])
    gradients = dlayer(A_mx, b_mx)

    exact = [host(A_mx), host(b_mx)]
    equal(gradients, differences(lambda A, b: l1_solution(A, b)[0].sum(), exact, 1e-6), 1e-4)


ARGUMENTS: list[tuple[dict[str, Any] | None, dict[str, Any] | None]] = [
    (None, {"eps": 1e-8}),
    (None, {"eps": 1e-8, "max_iters": 10000, "acceleration_lookback": 0}),
    ({"max_iters": 1000}, {"max_iters": 5000, "eps": 1e-8}),
    ({"max_iters": 5000, "eps": 1e-8}, None),
    ({"max_iters": 5000, "eps": 1e-8}, {"max_iters": 10000}),
    (None, {"eps": 1e-6}),
    (None, {"eps": 1e-10, "acceleration_lookback": 0, "max_iters": 10000}),
]
"""solver_args of the constructor and of the call on the pages README, basic usage and solvers."""


@pytest.mark.parametrize(("constructed", "called"), ARGUMENTS)
def test_solver_arguments(
    constructed: dict[str, Any] | None, called: dict[str, Any] | None
) -> None:
    layer = least_squares(solver_args=constructed)
    check(lambda *v: layer(*v, solver_args=called), POSITIVE, NNLS)


@pytest.mark.parametrize("where", ["constructor", "solver_args", "call"])
def test_verbose_prints(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    options: dict[str, dict[str, Any]] = {
        "constructor": {"verbose": True},
        "solver_args": {"solver_args": {"verbose": True}},
        "call": {},
    }
    layer = least_squares(**options[where])
    capfd.readouterr()
    found = layer(*POSITIVE, solver_args={"verbose": True} if where == "call" else None)
    equal(found, NNLS(*(host(v) for v in POSITIVE)))
    assert capfd.readouterr().out.strip()


# --- MLX API --------------------------------------------------------------------------------


def test_api_value_and_gradient() -> None:
    layer = least_squares()
    A_mx, b_mx = POSITIVE

    def loss_fn(A: mx.array, b: mx.array) -> mx.array:
        (x,) = layer(A, b)
        return mx.sum(x)

    value_and_grad_fn = mx.value_and_grad(loss_fn, argnums=[0, 1])
    loss_val, (dA, db) = value_and_grad_fn(A_mx, b_mx)
    mx.eval(loss_val, dA, db)

    exact = [host(A_mx), host(b_mx)]
    equal([loss_val], [NNLS(*exact)[0].sum()])
    equal([dA, db], differences(lambda A, b: NNLS(A, b)[0].sum(), exact, 1e-6), 1e-4)


def test_api_projection_inside_a_cpu_stream() -> None:
    """The page prints its numbers: [2, 0] and [-1, 0]."""
    x = cp.Variable(2)
    q = cp.Parameter(2)
    problem = program(cp.Minimize(0.5 * cp.sum_squares(x) + q @ x), [x >= 0])
    layer = CvxpyLayer(problem, parameters=[q], variables=[x])
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        q_mx = mx.array([-2.0, 3.0])
        x_sol = layer(q_mx)[0]
        dq = mx.grad(lambda q: mx.sum(layer(q)[0]))(q_mx)
        mx.eval(x_sol, dq)
    equal([x_sol], [[2.0, 0.0]])
    equal([dq], [[-1.0, 0.0]])


# --- quickstart -----------------------------------------------------------------------------


def test_quickstart_training_loop() -> None:
    """A matrix is learned whose nonnegative fit of b_true is x_true."""
    n, m = 5, 10
    layer = least_squares(m, n)
    x_true = mx.abs(normal((n,), 1))
    b_true = normal((m, n), 0) @ x_true

    class Learner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A = normal((m, n), 2)

        def __call__(self, b: mx.array) -> mx.array:
            (x_pred,) = layer(self.A, b)
            return x_pred

    def loss_fn(model: nn.Module, b: mx.array) -> mx.array:
        return mx.sum((model(b) - x_true) ** 2)

    def exact_loss(A: Array) -> float:
        return float(np.sum((NNLS(A, host(b_true))[0] - host(x_true)) ** 2))

    model = Learner()
    optimizer = optim.Adam(learning_rate=0.1)
    step = nn.value_and_grad(model, loss_fn)
    start, losses = host(model.A), []
    first: Any = None
    for _ in range(100):
        loss, gradients = step(model, b_true)
        first = gradients if first is None else first
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(loss.item())

    assert losses[0] == pytest.approx(exact_loss(start), rel=1e-5)
    equal([first["A"]], differences(exact_loss, [start], 1e-6), 1e-4)
    assert losses[-1] < 0.05 * losses[0]
    assert loss_fn(model, b_true).item() == pytest.approx(exact_loss(host(model.A)), abs=1e-5)


# --- basic usage ----------------------------------------------------------------------------


def test_basic_constructor_with_every_argument_by_name() -> None:
    layer = least_squares(solver=None, gp=False, verbose=False, solver_args=None)
    check(layer, POSITIVE, NNLS)


def test_basic_affine_parameters_are_dpp() -> None:
    """No constraint; the solution is that of least squares."""
    x = cp.Variable(2)
    A = cp.Parameter((3, 2))
    b = cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)))
    assert problem.is_dpp()
    layer = CvxpyLayer(problem, parameters=[A, b], variables=[x])
    check(layer, [normal((3, 2), 0), normal((3,), 1)], lambda A, b: [np.linalg.pinv(A) @ b])


def test_basic_a_problem_that_is_not_dpp() -> None:
    x = cp.Variable(2)
    c = cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, c * np.eye(2))))
    assert not problem.is_dpp()
    with pytest.raises(AssertionError, match="Problem must be DPP"):
        CvxpyLayer(problem, parameters=[c], variables=[x])


def test_basic_three_parameters_two_variables() -> None:
    """x and y share a budget: x + y = c."""
    x, y = cp.Variable(2), cp.Variable(2)
    A, b, c = cp.Parameter((2, 2)), cp.Parameter(2), cp.Parameter(2)
    objective = cp.Minimize(cp.sum_squares(A @ x - b) + cp.sum_squares(y))
    layer = CvxpyLayer(program(objective, [x + y == c]), parameters=[A, b, c], variables=[x, y])

    def reference(A: Array, b: Array, c: Array) -> list[Array]:
        found = np.linalg.solve(A.T @ A + np.eye(2), A.T @ b + c)
        return [found, c - found]

    values = [normal((2, 2), 0), normal((2,), 1), normal((2,), 2)]
    check(layer, values, reference, lambda x, y: (x**2).sum() + y[0])


def test_basic_one_parameter_three_variables() -> None:
    """The row sums of A are divided in the ratio 6 : 3 : 2."""
    x, y, z = cp.Variable(2), cp.Variable(2), cp.Variable(2)
    A = cp.Parameter((2, 3))
    costs = cp.sum_squares(x) + 2 * cp.sum_squares(y) + 3 * cp.sum_squares(z)
    problem = program(cp.Minimize(costs), [x + y + z == A @ np.ones(3)])
    layer = CvxpyLayer(problem, parameters=[A], variables=[x, y, z])

    def reference(A: Array) -> list[Array]:
        return [share / 11 * A.sum(axis=1) for share in (6, 3, 2)]

    check(layer, [normal((2, 3), 0)], reference, lambda x, y, z: (x * y).sum() - z[0])


def test_basic_parameter_shapes() -> None:
    """A matrix, a vector and a scalar, which adds c times the sum of x."""
    m, n = 3, 2
    x = cp.Variable(n)
    A = cp.Parameter((m, n))
    b = cp.Parameter(m)
    c = cp.Parameter()
    objective = cp.Minimize(cp.sum_squares(A @ x - b) + c * cp.sum(x))
    layer = CvxpyLayer(program(objective, [x >= 0]), parameters=[A, b, c], variables=[x])

    def reference(A: Array, b: Array, c: Array) -> list[Array]:
        shifted = A @ np.linalg.solve(A.T @ A, A.T @ b - c / 2)
        return NNLS(A, shifted)

    check(layer, [*POSITIVE, mx.array(1.0)], reference)


class OptimizationNet(nn.Module):
    """A linear map predicts the matrix of a nonnegative least squares problem."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 6)
        self.cvx_layer = least_squares(2, 3)

    def __call__(self, input_features: mx.array, b: mx.array) -> mx.array:
        A = self.linear(input_features).reshape(-1, 2, 3)
        (x,) = self.cvx_layer(A, b)
        return x


def predicted(weight: Array, bias: Array, features: Array, b: Array) -> Array:
    """What OptimizationNet computes, by NumPy and SciPy."""
    return NNLS((features @ weight.T + bias).reshape(-1, 2, 3), b)[0]


def optimization_net() -> tuple[OptimizationNet, mx.array, mx.array]:
    """The network with features and b.

    With two rows and three columns x is unique only if b has a residual, so every b here has one.
    """
    net = OptimizationNet()
    net.linear.weight, net.linear.bias = 0.3 * normal((6, 10), 3), 0.3 * normal((6,), 4)
    features = normal((40, 10), 0)
    b = normal((40, 2), 1)
    matrices = host(net.linear(features)).reshape(-1, 2, 3)
    fits = [nnls(A, v) for A, v in zip(matrices, host(b), strict=True)]
    kept = [i for i, (x, residual) in enumerate(fits) if residual > 0.3 and x.max() > 0.1]
    chosen = mx.array(kept[:6])
    assert chosen.size == 6
    return net, features[chosen], b[chosen]


def test_basic_network_forward_and_gradient() -> None:
    net, features, b = optimization_net()

    def loss_fn(net: nn.Module, features: mx.array, b: mx.array) -> mx.array:
        return mx.mean(mx.square(net(features, b) - 1.0))

    def exact_loss(weight: Array, bias: Array) -> float:
        return float(np.mean((predicted(weight, bias, host(features), host(b)) - 1.0) ** 2))

    names = {name for name, _ in tree_flatten(net.parameters())}
    assert names == {"linear.weight", "linear.bias"}
    weight, bias = host(net.linear.weight), host(net.linear.bias)
    equal([net(features, b)], [predicted(weight, bias, host(features), host(b))])
    step: Any = nn.value_and_grad(net, loss_fn)
    loss, gradients = step(net, features, b)
    assert loss.item() == pytest.approx(exact_loss(weight, bias), rel=1e-5)
    found = [gradients["linear"]["weight"], gradients["linear"]["bias"]]
    equal(found, differences(exact_loss, [weight, bias], 1e-6), 1e-4)


def test_basic_network_where_solutions_are_not_unique() -> None:
    """The fit A x is unique anyway, and x is one of the solutions."""
    net = OptimizationNet()
    features, b = normal((8, 10), 0), normal((8, 2), 1)
    x = host(net(features, b))
    assert x.min() >= -1e-6
    for matrix, vector, solution in zip(
        host(net.linear(features)).reshape(-1, 2, 3), host(b), x, strict=True
    ):
        fit = np.linalg.norm(matrix @ solution - vector)
        assert fit == pytest.approx(nnls(matrix, vector)[1], abs=1e-5)


def test_basic_a_tensor_of_the_wrong_shape() -> None:
    A_mx, b_mx = POSITIVE
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(2, 3\)"):
        least_squares()(A_mx.T, b_mx)


def test_basic_solver_failure() -> None:
    """A solver that finds no solution raises SolverError, a RuntimeError."""
    x, p = cp.Variable(1), cp.Parameter(1)
    layer = CvxpyLayer(program(cp.Minimize(p @ x), [x >= 1, x <= -1]), [p], [x])
    with pytest.raises(RuntimeError) as caught:
        mx.eval(layer(mx.ones(1)))
    assert caught.type is SolverError


# --- batching -------------------------------------------------------------------------------


def test_batching_one_problem_and_ten() -> None:
    layer = least_squares()
    A_single, b_single = mx.abs(normal((3, 2), 0)), mx.abs(normal((3,), 1))
    (x_single,) = layer(A_single, b_single)
    assert x_single.shape == (2,)
    equal([x_single], NNLS(host(A_single), host(b_single)))
    (x_batch,) = check(layer, [normal((10, 3, 2), 2), normal((10, 3), 3)], NNLS)
    assert x_batch.shape == (10, 2)


def test_batching_a_shared_vector() -> None:
    (x_batch,) = check(least_squares(), [normal((10, 3, 2), 4), normal((3,), 5)], NNLS)
    assert x_batch.shape == (10, 2)


def test_batching_a_hundred_at_once_and_one_by_one() -> None:
    layer = least_squares()
    A_batch, b = normal((100, 3, 2), 6), normal((3,), 7)
    (x_batch,) = layer(A_batch, b)
    solutions = []
    for i in range(100):
        (x,) = layer(A_batch[i], b)
        solutions.append(x)
    wanted = NNLS(host(A_batch), host(b))
    equal([x_batch], wanted)
    equal([mx.stack(solutions)], wanted)


def test_batching_in_chunks() -> None:
    """The last chunk is smaller than the others."""

    def chunked_solve(
        layer: CvxpyLayer, A_all: mx.array, b: mx.array, chunk_size: int = 32
    ) -> mx.array:
        results = []
        for i in range(0, len(A_all), chunk_size):
            (x_chunk,) = layer(A_all[i : i + chunk_size], b)
            results.append(x_chunk)
        return mx.concatenate(results, axis=0)

    layer = least_squares()
    check(lambda *v: [chunked_solve(layer, *v)], [normal((70, 3, 2), 8), normal((3,), 9)], NNLS)


def test_batching_gradients_have_the_shapes_of_the_inputs() -> None:
    layer = least_squares()
    A_batch, b_batch = normal((10, 3, 2), 10), normal((10, 3), 11)

    def loss_fn(A: mx.array, b: mx.array) -> mx.array:
        (x_batch,) = layer(A, b)
        return x_batch.sum()

    dA, db = mx.grad(loss_fn, argnums=[0, 1])(A_batch, b_batch)
    assert dA.shape == (10, 3, 2)
    assert db.shape == (10, 3)
    exact = [host(A_batch), host(b_batch)]
    equal([dA, db], differences(lambda A, b: NNLS(A, b)[0].sum(), exact, 1e-6), 1e-4)


def test_batching_by_vmap() -> None:
    layer = least_squares()
    A_batch, b_single = normal((10, 3, 2), 12), normal((3,), 13)

    def solve_single(A: mx.array) -> mx.array:
        (x,) = layer(A, b_single)
        return x

    solve_batched = mx.vmap(solve_single)
    equal([solve_batched(A_batch)], [host(layer(A_batch, b_single)[0])], 1e-6)
    check(lambda A: [solve_batched(A)], [A_batch], lambda A: NNLS(A, host(b_single)), step=1e-6)


def portfolio(returns: Array, risk_aversion: Array) -> list[Array]:
    """The projection of returns / (2 risk_aversion) on the simplex."""
    point = returns / (2.0 * risk_aversion)
    ordered = np.sort(point)[::-1]
    thresholds = (np.cumsum(ordered) - 1.0) / np.arange(1, len(point) + 1)
    return [np.maximum(point - thresholds[np.nonzero(ordered > thresholds)[0][-1]], 0.0)]


def test_batching_portfolios_of_fifty_scenarios() -> None:
    n_assets, n_scenarios = 10, 50
    weights = cp.Variable(n_assets)
    expected_returns = cp.Parameter(n_assets)
    risk_aversion = cp.Parameter(nonneg=True)
    problem = program(
        cp.Maximize(expected_returns @ weights - risk_aversion * cp.sum_squares(weights)),
        [cp.sum(weights) == 1, weights >= 0],
    )
    layer = CvxpyLayer(problem, parameters=[expected_returns, risk_aversion], variables=[weights])
    (optimal_weights,) = check(
        layer,
        [normal((n_scenarios, n_assets), 0), mx.array(0.5)],
        in_lanes(portfolio, (1, 0)),
        lambda w: (w**2).sum(),
    )
    assert optimal_weights.shape == (50, 10)


def test_batching_script_without_constraints() -> None:
    """examples/*/batching: four least squares problems."""
    n, m, batch_size = 2, 3, 4
    A, b, x = cp.Parameter((m, n)), cp.Parameter(m), cp.Variable(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)))
    layer = CvxpyLayer(problem, parameters=[A, b], variables=[x])
    reference = in_lanes(lambda A, b: [np.linalg.pinv(A) @ b], (2, 1))
    check(layer, [normal((batch_size, m, n), 0), normal((batch_size, m), 1)], reference)


# --- dual variables -------------------------------------------------------------------------


def cheapest() -> tuple[cp.Problem, list[Any], Any, Any, Any]:
    """minimize c'x subject to sum(x) = b, x >= 0."""
    x, c, b = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    eq_con, ineq_con = cp.sum(x) == b, x >= 0
    return program(cp.Minimize(c @ x), [eq_con, ineq_con]), [c, b], x, eq_con, ineq_con


def cheapest_solution(c: Array, b: Array) -> list[Array]:
    """Everything goes to the cheapest entry; the other pays what it is dearer."""
    return [b * (c == c.min()), -c.min(), c - c.min()]


COSTS = (mx.array([1.0, 2.0]), mx.array(1.0))


def test_duals_basic_usage() -> None:
    problem, parameters, x, eq_con, _ = cheapest()
    layer = CvxpyLayer(problem, parameters=parameters, variables=[x, eq_con.dual_variables[0]])

    def reference(c: Array, b: Array) -> list[Array]:
        return cheapest_solution(c, b)[:2]

    x_opt, eq_dual = check(layer, COSTS, reference, lambda x, dual: dual.sum())
    equal([x_opt], [[1.0, 0.0]])
    equal([eq_dual], [-1.0])
    # The dual is the sensitivity of the optimal value, with the sign of CVXPY.
    slope = mx.grad(lambda c, b: mx.sum(c * layer(c, b)[0]), argnums=1)(*COSTS)
    equal([slope], [-eq_dual.item()])


def test_duals_of_several_constraints() -> None:
    problem, parameters, x, eq_con, ineq_con = cheapest()
    layer = CvxpyLayer(
        problem,
        parameters=parameters,
        variables=[x, eq_con.dual_variables[0], ineq_con.dual_variables[0]],
    )

    def loss(x: Any, eq_dual: Any, ineq_dual: Any) -> Any:
        return x[0] + 2.0 * eq_dual + 3.0 * ineq_dual[1]

    check(layer, COSTS, cheapest_solution, loss)


def test_duals_only() -> None:
    problem, parameters, _, eq_con, _ = cheapest()
    layer = CvxpyLayer(problem, parameters=parameters, variables=[eq_con.dual_variables[0]])
    (eq_dual,) = check(layer, COSTS, lambda c, b: cheapest_solution(c, b)[1:2])
    assert eq_dual.shape == ()


def test_duals_of_a_batch() -> None:
    """The page draws b of both signs, which is infeasible for b < 0; here b > 0."""
    problem, parameters, x, eq_con, _ = cheapest()
    layer = CvxpyLayer(problem, parameters=parameters, variables=[x, eq_con.dual_variables[0]])
    reference = in_lanes(lambda c, b: cheapest_solution(c, b)[:2], (1, 0))
    c_batch, b_batch = normal((32, 2), 0), normal((32,), 1)
    x_opt, eq_dual = check(
        layer, [c_batch, mx.abs(b_batch)], reference, lambda x, dual: (x[:, 0] * dual).sum()
    )
    assert x_opt.shape == (32, 2)
    assert eq_dual.shape == (32,)
    with pytest.raises(SolverError, match="INFEASIBLE"):
        mx.eval(layer(c_batch, b_batch))


def test_duals_of_a_matrix_equation() -> None:
    """minimize |x|^2 / 2 subject to A x = b: the dual is -(A A')^-1 b."""
    x, A, b = cp.Variable(3), cp.Parameter((2, 3)), cp.Parameter(2)
    con = A @ x == b
    dual = con.dual_variables[0]
    problem = program(cp.Minimize(0.5 * cp.sum_squares(x)), [con])
    layer = CvxpyLayer(problem, parameters=[A, b], variables=[x, dual])

    def reference(A: Array, b: Array) -> list[Array]:
        multiplier = np.linalg.solve(A @ A.T, b)
        return [A.T @ multiplier, -multiplier]

    check(layer, [normal((2, 3), 0), normal((2,), 1)], reference, lambda x, y: (x[0] * y).sum())


def test_duals_of_a_cone_by_index() -> None:
    """A point outside a ball of radius t: the dual is (2, -2 p / |p|) (|p| - t)."""
    x, p, t = cp.Variable(3), cp.Parameter(3), cp.Parameter(nonneg=True)
    con = cp.SOC(t, x)
    duals: list[Any] = [con.dual_variables[0], con.dual_variables[1]]
    problem = program(cp.Minimize(cp.sum_squares(x - p)), [con])
    layer = CvxpyLayer(problem, parameters=[p, t], variables=[x, *duals])

    def reference(p: Array, t: Array) -> list[Array]:
        length = np.linalg.norm(p)
        price = 2.0 * (length - t)
        return [t * p / length, np.reshape(price, (1,)), -price * p / length]

    assert [d.shape for d in duals] == [(1,), (3,)]
    values = [mx.array([1.0, -2.0, 0.5]), mx.array(1.5)]
    check(layer, values, reference, lambda x, s, v: x[0] + s.sum() + 2.0 * (v**2).sum())


def test_duals_of_a_projection_on_the_orthant() -> None:
    """The solvers page: both parts of -q."""
    x, q = cp.Variable(3), cp.Parameter(3)
    nonneg = x >= 0
    problem = program(cp.Minimize(0.5 * cp.sum_squares(x) + q @ x), [nonneg])
    layer = CvxpyLayer(problem, parameters=[q], variables=[x, nonneg.dual_variables[0]])

    def reference(q: Array) -> list[Array]:
        return [np.maximum(-q, 0.0), np.maximum(q, 0.0)]

    check(layer, [mx.array([1.0, -2.0, 0.5])], reference, lambda x, y: (x**2).sum() + y[0])


# The notebook batched_portfolio.

N_ASSETS = 5
FACTORS = np.random.RandomState(42).randn(N_ASSETS, N_ASSETS) * 0.1
SIGMA_SQRT = np.linalg.cholesky(FACTORS.T @ FACTORS + 0.05 * np.eye(N_ASSETS))
MU = mx.array([0.12, 0.10, 0.07, 0.03, 0.02])


def risky() -> CvxpyLayer:
    """The layer with the weights and the dual of the risk limit."""
    w = cp.Variable(N_ASSETS, name="weights")
    mu = cp.Parameter(N_ASSETS, name="expected_returns")
    sigma_max = cp.Parameter(pos=True, name="risk_budget")
    risk_constraint = cp.norm(SIGMA_SQRT.T @ w, 2) <= sigma_max
    problem = program(cp.Maximize(mu @ w), [risk_constraint, cp.sum(w) == 1, w >= 0])
    assert problem.is_dpp()
    outputs: list[Any] = [w, risk_constraint.dual_variables[0]]
    return CvxpyLayer(problem, parameters=[mu, sigma_max], variables=outputs)


def risky_solution(mu: Array, sigma_max: Array) -> list[Array]:
    """The best over all sets of assets of a mix of two funds, or of one asset."""
    covariance = SIGMA_SQRT @ SIGMA_SQRT.T
    best, answer = -np.inf, [np.zeros(N_ASSETS), np.array(0.0)]
    for chosen in range(1, 2**N_ASSETS):
        held = [i for i in range(N_ASSETS) if chosen >> i & 1]
        inverse = np.linalg.inv(covariance[np.ix_(held, held)])
        safe, bold = inverse.sum(axis=1), inverse @ mu[held]
        spare = sigma_max**2 - 1.0 / safe.sum()
        if spare < 0:
            continue
        w, price = np.zeros(N_ASSETS), 0.0
        w[held] = safe / safe.sum()
        if len(held) > 1:
            mixed = bold.sum() / safe.sum()
            share = np.sqrt(spare / (mu[held] @ bold - mixed * bold.sum()))
            w[held] += share * (bold - mixed * safe)
            price = sigma_max / share
        if w.min() >= 0 and mu @ w > best:
            best, answer = mu @ w, [w, np.array(price)]
    return answer


RISKY = in_lanes(risky_solution, (1, 0))


@pytest.mark.parametrize("sigma_max", [0.15, 0.2])
def test_portfolio_notebook_one_problem(sigma_max: float) -> None:
    """The dual is the slope of the best return, as the notebook ends by showing."""
    layer, values = risky(), [MU, mx.array(sigma_max)]
    _, dual = check(layer, values, RISKY, lambda w, y: w[0] + y, step=1e-7, tolerance=1e-3)
    slope = mx.grad(lambda mu, s: mu @ layer(mx.stop_gradient(mu), s)[0], argnums=1)(*values)
    equal([slope], [dual.item()], 1e-4)


def test_portfolio_notebook_batch_of_forecasts() -> None:
    mu_batch, sigma_max = mx.abs(0.03 * normal((8, N_ASSETS), 0) + 0.06), mx.array(0.2)
    w_batch, dual_batch = check(
        risky(), [mu_batch, sigma_max], RISKY, lambda w, y: (w**2).sum() + y.sum(), 1e-7, 1e-3
    )
    assert w_batch.shape == (8, N_ASSETS)
    assert dual_batch.shape == (8,)
    equal([w_batch.sum(axis=1)], [np.ones(8)])


def test_portfolio_notebook_sweep_of_the_risk_budget() -> None:
    """One by one and in one batch; at the end the limit does not bind, and the dual is zero."""
    layer, budgets = risky(), mx.linspace(0.15, 0.45, 7)
    one_by_one = [layer(MU, budget) for budget in budgets]
    wanted = RISKY(host(MU), host(budgets))
    assert wanted[1][0] > 0.1
    assert wanted[1][-1] == 0.0
    equal([mx.stack(list(v)) for v in zip(*one_by_one, strict=True)], wanted)
    equal(layer(MU, budgets), wanted)


# --- geometric programs ---------------------------------------------------------------------


def log_log(order: Sequence[int] = (0, 1, 2)) -> tuple[CvxpyLayer, Any, list[Any], list[Any]]:
    """Maximize x y z with bounds on a sum of products and, by a power, on x."""
    x, y, z = positive()
    a, b, c = cp.Parameter(pos=True), cp.Parameter(pos=True), cp.Parameter()
    constraints = [a * (x * y + x * z + y * z) <= b, x >= y**c]
    problem = program(cp.Minimize(1 / (x * y * z)), constraints)
    assert problem.is_dgp(dpp=True)
    parameters = [[a, b, c][i] for i in order]
    layer = CvxpyLayer(problem, parameters=parameters, variables=[x, y, z], gp=True)
    return layer, problem, [a, b, c], [x, y, z]


def log_log_solution(a: Array, b: Array, c: Array) -> list[Array]:
    """With both constraints active only y is unknown, and the volume is stationary in it."""
    level = float(b / a)

    def slope(y: float) -> Any:
        others = y**c + y
        spare = level - y ** (1 + c)
        return (1 + c) / y - (1 + c) * y**c / spare - (c * y ** (c - 1) + 1) / others

    y: Any = brentq(slope, 1e-6, level ** (1 / (1 + c)) * (1 - 1e-12), xtol=1e-15)
    found = [y**c, y, (level - y ** (1 + c)) / (y**c + y)]
    return [np.array(v, dtype=np.float64).reshape(()) for v in found]


ABC = (mx.array(2.0), mx.array(1.0), mx.array(0.5))


def test_geometric_solving_and_differentiating() -> None:
    layer, problem, parameters, variables = log_log()
    check(layer, ABC, log_log_solution)
    # The closed form is what CVXPY finds.
    by_cvxpy = by_clarabel(problem, parameters, variables)(*(host(v) for v in ABC))
    np.testing.assert_allclose(by_cvxpy, log_log_solution(*map(host, ABC)), rtol=1e-6)


def test_geometric_readme_takes_the_values_of_parameters() -> None:
    """The README gives its parameters values, and its arrays are made of them."""
    x, y, z = positive()
    a = cp.Parameter(pos=True, value=2.0)
    b = cp.Parameter(pos=True, value=1.0)
    c = cp.Parameter(value=0.5)
    constraints = [a * (x * y + x * z + y * z) <= b, x >= y**c]
    problem = program(cp.Minimize(1 / (x * y * z)), constraints)
    layer = CvxpyLayer(problem, parameters=[a, b, c], variables=[x, y, z], gp=True)
    given: list[Any] = [p.value for p in (a, b, c)]
    check(layer, [mx.array(v) for v in given], log_log_solution)
    assert [p.value for p in (a, b, c)] == [2.0, 1.0, 0.5]


def test_geometric_parameters_in_another_order() -> None:
    layer, *_ = log_log((2, 1, 0))
    check(layer, ABC[::-1], lambda c, b, a: log_log_solution(a, b, c))


def test_geometric_batch() -> None:
    layer, *_ = log_log()
    values = [[2.0, 1.5, 2.5, 1.8], [1.0, 1.2, 0.8, 1.5], [0.5, 0.6, 0.4, 0.5]]
    outputs = check(layer, [mx.array(v) for v in values], in_lanes(log_log_solution, (0, 0, 0)))
    assert [v.shape for v in outputs] == [(4,)] * 3


def test_geometric_batch_with_shared_parameters() -> None:
    layer, *_ = log_log()
    values = [ABC[0], mx.array([1.0, 1.2, 0.8]), ABC[2]]
    check(layer, values, in_lanes(log_log_solution, (0, 0, 0)))


def test_geometric_duals() -> None:
    """The dual of the sum of products and of the power, beside a variable."""
    x, y, z = positive()
    a, b, c = cp.Parameter(pos=True), cp.Parameter(pos=True), cp.Parameter()
    constraints = [a * (x * y + x * z + y * z) <= b, x >= y**c]
    problem = program(cp.Minimize(1 / (x * y * z)), constraints)
    outputs = [x, *(constraint.dual_variables[0] for constraint in constraints)]
    layer = CvxpyLayer(problem, parameters=[a, b, c], variables=outputs, gp=True)

    def reference(a: Array, b: Array, c: Array) -> list[Array]:
        x, y, z = log_log_solution(a, b, c)
        first = (x * y + x * z + y * z) / (x * z + y * z)
        return [x, first, (x * y + x * z) / (x * z + y * z) - 1.0]

    check(layer, ABC, reference, lambda x, u, v: x + u + 2.0 * v)
    wanted = by_clarabel(problem, [a, b, c], outputs)(*(host(v) for v in ABC))
    equal(layer(*ABC), wanted)


def test_geometric_variables_must_be_positive() -> None:
    x, p = cp.Variable(), cp.Parameter(pos=True)
    problem = program(cp.Minimize(x), [x >= p])
    assert not problem.is_dgp(dpp=True)
    with pytest.raises(AssertionError):
        CvxpyLayer(problem, parameters=[p], variables=[x], gp=True)


def test_geometric_mean() -> None:
    """A weighted geometric mean under a budget spends in proportion to the weights."""
    x, prices, budget = cp.Variable(3, pos=True), cp.Parameter(3, pos=True), cp.Parameter(pos=True)
    problem = program(
        cp.Maximize(cp.geo_mean(x, [1, 2, 1])), [cp.sum(cp.multiply(prices, x)) <= budget]
    )
    assert problem.is_dgp(dpp=True)
    layer = CvxpyLayer(problem, parameters=[prices, budget], variables=[x], gp=True)

    def reference(prices: Array, budget: Array) -> list[Array]:
        return [budget * np.array([0.25, 0.5, 0.25]) / prices]

    values = [mx.array([0.5, 2.0, 1.5]), mx.array(3.0)]
    check(layer, values, reference, lambda x: x[0] + 2.0 * x[1] + 4.0 * x[2])


def test_geometric_perron_frobenius_eigenvalue() -> None:
    """A positive matrix of given diagonal, and product and ratio of the other entries."""
    X, bound = cp.Variable((2, 2), pos=True), cp.Variable(pos=True)
    diagonal, product, ratio = (cp.Parameter(n, pos=True) for n in (2, (), ()))
    constraints = [
        cp.pf_eigenvalue(X) <= bound,
        X[0, 0] >= diagonal[0],
        X[1, 1] >= diagonal[1],
        X[0, 1] * X[1, 0] >= product,
        X[0, 1] / X[1, 0] == ratio,
    ]
    problem = program(cp.Minimize(bound), constraints)
    assert problem.is_dgp(dpp=True)
    layer = CvxpyLayer(
        problem, parameters=[diagonal, product, ratio], variables=[X, bound], gp=True
    )

    def reference(diagonal: Array, product: Array, ratio: Array) -> list[Array]:
        upper, lower = np.sqrt(product * ratio), np.sqrt(product / ratio)
        matrix = np.array([[diagonal[0], upper], [lower, diagonal[1]]])
        return [matrix, np.array(np.linalg.eigvals(matrix).real.max())]

    values = [mx.array([1.0, 0.5]), mx.array(0.8), mx.array(2.0)]
    check(layer, values, reference, lambda X, bound: X[0, 1] + 2.0 * bound)


def box() -> CvxpyLayer:
    """Least surface of a box of given volume and shape."""
    w, h, d = positive()
    min_volume, aspect_max = cp.Parameter(pos=True), cp.Parameter(pos=True)
    constraints = [w * h * d >= min_volume, w <= aspect_max * h, h <= aspect_max * d]
    problem = program(cp.Minimize(2 * (w * h + h * d + d * w)), constraints)
    assert problem.is_dgp(dpp=True)
    return CvxpyLayer(problem, parameters=[min_volume, aspect_max], variables=[w, h, d], gp=True)


def surface(w: Any, h: Any, d: Any) -> Any:
    return (2 * (w * h + h * d + d * w)).sum()


def box_solution(volume: Array, aspect: Array) -> list[Array]:
    """A cube, stretched if the ratios must stay below one."""
    edge, ratio = np.cbrt(volume), np.minimum(aspect, 1.0)
    return [edge * ratio, edge, edge / ratio]


def test_geometric_optimal_sizing() -> None:
    layer, values = box(), [mx.array(100.0), mx.array(2.0)]
    check(layer, values, box_solution, surface, step=1e-4)
    slope = mx.grad(lambda volume, aspect: surface(*layer(volume, aspect)))(*values)
    equal([slope], [4.0 / np.cbrt(100.0)])


def test_geometric_optimal_sizing_where_the_shape_binds() -> None:
    """In a batch of volumes, as a further use of the page's layer."""
    check(box(), [mx.array([100.0, 8.0]), mx.array(0.8)], box_solution, surface, step=1e-4)


# The notebook gp_circuit_sizing.

ALPHA, BETA = np.array([1.0, 1.5, 0.8]), np.array([0.5, 0.8, 0.6])


def circuit() -> CvxpyLayer:
    w = cp.Variable(3, pos=True, name="widths")
    A_max = cp.Parameter(pos=True, name="area_budget")
    P_max = cp.Parameter(pos=True, name="power_budget")
    delay = sum(ALPHA[i] * cp.inv_pos(w[i]) for i in range(3))
    problem = program(cp.Minimize(delay), [cp.sum(w) <= A_max, BETA @ w <= P_max, w >= 0.1])
    assert problem.is_dgp(dpp=True)
    return CvxpyLayer(problem, parameters=[A_max, P_max], variables=[w], gp=True)


def circuit_solution(area: Array, power: Array) -> list[Array]:
    """Where one budget binds and the other does not: by Cauchy and Schwarz."""
    for costs, budget in ((np.ones(3), area), (BETA, power)):
        w = budget * np.sqrt(ALPHA / costs) / np.sqrt(ALPHA * costs).sum()
        if w.sum() <= area * (1 + 1e-12) and BETA @ w <= power * (1 + 1e-12):
            return [w]
    raise AssertionError("both budgets bind")


def delay(w: Any) -> Any:
    return sum((ALPHA[i].item() / w[..., i]).sum() for i in range(3))


def test_circuit_notebook_sensitivities() -> None:
    """Only power binds."""
    check(circuit(), [mx.array(5.0), mx.array(3.0)], circuit_solution, delay)


def test_circuit_notebook_sweep_of_the_area() -> None:
    """One by one and in one batch; the last area does not bind."""
    layer, areas, power = circuit(), mx.array([1.5, 3.0, 6.0, 10.0]), mx.array(5.0)
    one_by_one = mx.stack([layer(area, power)[0] for area in areas])
    reference = in_lanes(circuit_solution, (0, 0))
    equal([one_by_one], reference(host(areas), host(power)))
    check(layer, [areas, power], reference, delay)


# --- solvers --------------------------------------------------------------------------------


SCS_TUNING = {"eps": 1e-8, "max_iters": 10000, "acceleration_lookback": 0}


@pytest.mark.parametrize(
    ("solver", "settings"),
    [(cp.DIFFCP, SCS_TUNING), (cp.SCS, SCS_TUNING), (cp.CLARABEL, None)],
)
def test_solvers_by_name(solver: str, settings: dict[str, Any] | None) -> None:
    layer = least_squares(solver=solver)
    check(lambda *v: layer(*v, solver_args=settings), POSITIVE, NNLS)


def test_solvers_solve_method_of_diffcp() -> None:
    """Clarabel at construction, then SCS for one call."""
    layer = least_squares(solver=cp.DIFFCP, solver_args={"solve_method": cp.CLARABEL})
    check(layer, POSITIVE, NNLS)
    (x,) = layer(*POSITIVE, solver_args={"solve_method": cp.SCS})
    equal([x], NNLS(*(host(v) for v in POSITIVE)), 1e-3)


def test_solvers_tolerances_of_clarabel() -> None:
    """The names in the table of common arguments."""
    layer = least_squares(solver=cp.DIFFCP, solver_args={"solve_method": cp.CLARABEL})
    settings = {"tol_gap_abs": 1e-8, "tol_gap_rel": 1e-8, "tol_feas": 1e-8, "max_iter": 100}
    check(lambda *v: layer(*v, solver_args=settings), POSITIVE, NNLS)
