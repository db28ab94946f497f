"""`mlxcone.solve` under every MLX transform, against differences of itself and against loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxcone
from mlxcone.testing import Instance, manufacture, project_dual_cone

CONES = {"z": 1, "l": 4, "q": [3, 1, 4]}
N, M = 5, 13
NAMES = "PqAb"
WRONG = 1e-6  # relative, against central differences


# --- problems -----------------------------------------------------------------------------------


def jacobian(instance: Instance, quadratic: bool) -> tuple[np.ndarray, np.ndarray]:
    """Condition matters: J of the optimality system at the known solution, and its D."""
    z, h = instance.y - instance.s, 1e-6
    project = partial(project_dual_cone, instance.cones)
    D = np.array([project(z + h * e) - project(z - h * e) for e in np.eye(z.size)]).T / (2 * h)
    P = instance.P if quadratic else 0.0 * instance.P
    A = instance.A
    return np.block([[P, A.T @ D], [A, D - np.eye(z.size)]]), D


@cache
def regular(number: int, quadratic: bool = True) -> Instance:
    """A well-conditioned problem with a second-order cone at its boundary, away from kinks."""
    seen, seed = 0, 0
    while True:
        rng = np.random.default_rng(seed)
        rank = N if quadratic else 0
        instance = manufacture.feasible(rng, N, CONES, quadratic_rank=rank)
        J, D = jacobian(instance, quadratic)
        eigenvalues = np.linalg.eigvalsh(D)
        curved = np.any((eigenvalues > 0.05) & (eigenvalues < 0.95))
        z = instance.y - instance.s
        rows = np.abs(z[1:5]).min() > 0.1 and abs(z[8]) > 0.1
        cones = [abs(abs(v[0]) - np.linalg.norm(v[1:])) > 0.1 for v in (z[5:8], z[9:])]
        seed += 1
        if np.linalg.cond(J) < 500 and curved and rows and all(cones):
            if seen == number:
                return instance
            seen += 1


def arrays(instance: Instance, dtype: mx.Dtype = mx.float64) -> dict[str, mx.array]:
    return {name: mx.array(getattr(instance, name), dtype=dtype) for name in NAMES}


def stacked(instances: list[Instance], names: str = NAMES) -> dict[str, mx.array]:
    """Some arguments with a batch axis, the others of the first instance."""
    out = arrays(instances[0])
    for name in names:
        values = np.stack([getattr(i, name) for i in instances])
        out[name] = mx.array(values, dtype=mx.float64)
    return out


def siblings(count: int = 3, quadratic: bool = True) -> list[Instance]:
    """Neighbours of one problem: any mix of their P, q, A and b has a solution."""
    base, rng = regular(0, quadratic), np.random.default_rng(1)
    out = [base]
    for _ in range(count - 1):
        factor = rng.standard_normal((N, N)) * 0.02
        moved = {name: 0.005 * rng.standard_normal(getattr(base, name).shape) for name in "qAb"}
        data = {name: getattr(base, name) + step for name, step in moved.items()}
        out.append(replace(base, P=base.P + factor @ factor.T, **data))
    return out


def random_like(array: Any, seed: int = 0) -> mx.array:
    values = np.random.default_rng(seed).standard_normal(tuple(array.shape))
    return mx.array(values, dtype=array.dtype)


def motion(data: dict[str, mx.array], name: str, seed: int = 0) -> mx.array:
    """A direction in which the data may move: P stays symmetric."""
    v = random_like(data[name], seed)
    return 0.5 * (v + v.T) if name == "P" else v


@cache
def weights() -> tuple[mx.array, mx.array, mx.array]:
    """A random linear functional of x, y and s."""
    rng = np.random.default_rng(99)
    return tuple(mx.array(rng.standard_normal(k), dtype=mx.float64) for k in (N, M, M))


def solve(P: Any, q: Any, A: Any, b: Any) -> tuple[mx.array, mx.array, mx.array]:
    return tuple(mlxcone.solve(P, q, A, b, CONES)[:3])


def functional(P: Any, q: Any, A: Any, b: Any) -> mx.array:
    """One number from x, y and s of every lane."""
    return sum((mx.sum(w * v) for w, v in zip(weights(), solve(P, q, A, b), strict=True)), 0.0)


def close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Equal relative to the largest entry expected."""
    found, expected = np.array(found), np.array(expected)
    assert found.shape == expected.shape
    assert np.isfinite(expected).all()
    scale = max(np.max(np.abs(expected), initial=0.0), 1e-3)
    error = np.max(np.abs(found - expected), initial=0.0) / scale
    assert error <= tolerance, f"relative error {error:.1e}"


def differences(
    data: dict[str, Any], name: str, outputs: Callable[..., list[np.ndarray]], h: float = 1e-4
) -> np.ndarray:
    """Fourth-order central differences of the functional in every entry, all in one batch."""
    base = np.array(data[name])
    shifts = np.concatenate([k * h * np.eye(base.size) for k in (1, -1, 2, -2)])
    shifts = shifts.reshape(-1, *base.shape)
    if name == "P":  # which is symmetric
        shifts = 0.5 * (shifts + np.swapaxes(shifts, 1, 2))
    batch = base + shifts
    values = outputs(**(data | {name: mx.array(batch, dtype=mx.float64)}))
    total = sum(np.array(v) @ np.array(w) for v, w in zip(values, weights(), strict=True))
    plus, minus, plus2, minus2 = total.reshape(4, -1)
    slope = (8.0 * (plus - minus) - (plus2 - minus2)) / (12.0 * h)
    return slope.reshape(base.shape)


# --- derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_against_differences(name: str, number: int) -> None:
    data = arrays(regular(number))
    gradient = mx.grad(lambda v: functional(**(data | {name: v})))(data[name])
    expected = differences(data, name, solve)
    close(gradient, expected, WRONG)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("name", "qAb")
def test_gradient_without_P_against_differences(name: str, number: int) -> None:
    data: dict[str, Any] = arrays(regular(number, quadratic=False)) | {"P": None}
    gradient = mx.grad(lambda v: functional(**(data | {name: v})))(data[name])
    close(gradient, differences(data, name, solve), WRONG)


@pytest.mark.parametrize("field", [0, 1, 2], ids=["x", "y", "s"])
@pytest.mark.parametrize("name", NAMES)
def test_each_output_against_differences(name: str, field: int) -> None:
    data = arrays(regular(0))

    def one(**some: Any) -> list[mx.array]:
        return [v if k == field else 0.0 * v for k, v in enumerate(solve(**some))]

    gradient = mx.grad(lambda v: mx.sum(weights()[field] * solve(**(data | {name: v}))[field]))
    expected = differences(data, name, one)
    close(gradient(data[name]), expected, WRONG)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("quadratic", [True, False])
def test_tangent_and_adjoint_are_transposes(number: int, quadratic: bool) -> None:
    """<J v, w> = <v, J'w>, all arguments at once."""
    data = arrays(regular(number, quadratic))
    names = NAMES if quadratic else "qAb"
    primals = [data[name] for name in names]

    def some(*values: mx.array) -> tuple[mx.array, ...]:
        return solve(**({"P": None} | dict(zip(names, values, strict=True))))

    v = [random_like(p, seed) for seed, p in enumerate(primals)]
    outputs, tangents = mx.jvp(some, primals, v)
    w = [random_like(o, 10 + seed) for seed, o in enumerate(outputs)]
    _, cotangents = mx.vjp(some, primals, w)
    left = sum(mx.sum(a * b).item() for a, b in zip(tangents, w, strict=True))
    right = sum(mx.sum(a * b).item() for a, b in zip(cotangents, v, strict=True))
    size = sum(float(mx.sum(mx.abs(a * b)).item()) for a, b in zip(tangents, w, strict=True))
    assert abs(left - right) <= 1e-10 * size


@pytest.mark.parametrize("name", NAMES)
def test_jvp_against_differences(name: str) -> None:
    data = arrays(regular(0))
    v = motion(data, name)
    outputs, tangents = mx.jvp(lambda value: solve(**(data | {name: value})), [data[name]], [v])
    h = 1e-4
    shifted = [solve(**(data | {name: data[name] + k * h * v})) for k in (1, -1, 2, -2)]
    for tangent, (a, b, c, d) in zip(tangents, zip(*shifted, strict=True), strict=True):
        expected = (8.0 * (np.array(a) - np.array(b)) - (np.array(c) - np.array(d))) / (12 * h)
        close(tangent, expected, WRONG)
    for output, expected in zip(outputs, solve(**data), strict=True):
        close(output, expected, 1e-12)


def test_value_and_grad() -> None:
    data = arrays(regular(0))
    value, gradients = mx.value_and_grad(functional, argnums=(0, 1, 2, 3))(*data.values())
    close(value, functional(**data), 1e-12)
    for found, (name, array) in zip(gradients, data.items(), strict=True):
        close(found, mx.grad(lambda v, n=name: functional(**(data | {n: v})))(array), 1e-12)


def test_gradient_through_what_surrounds_the_solve() -> None:
    """Chain rule: data are functions of a parameter, and the solution goes on into a loss."""
    data = arrays(regular(0))

    def loss(t: mx.array) -> mx.array:
        x, y, s = solve(data["P"] * t, data["q"] * mx.square(t), data["A"], data["b"] + t)
        return mx.sum(mx.tanh(x)) + mx.sum(y * s) + mx.sum(mx.square(s))

    one, h = mx.array(1.0, dtype=mx.float64), 1e-5
    expected = (loss(one + h) - loss(one - h)).item() / (2 * h)
    assert mx.grad(loss)(one).item() == pytest.approx(expected, rel=1e-6)


def test_gradient_of_the_objective_is_x() -> None:
    """Envelope theorem: d objective / d q = x, d objective / d b = -y."""
    data = arrays(regular(0))
    x, y, _ = solve(**data)

    def objective(q: mx.array, b: mx.array) -> mx.array:
        return mlxcone.solve(data["P"], q, data["A"], b, CONES).info.objective

    q_bar, b_bar = mx.grad(objective, argnums=(0, 1))(data["q"], data["b"])
    close(q_bar, x)
    close(b_bar, -y)


def test_gradient_with_permuted_rows() -> None:
    """The cones' sizes decrease, so rows are permuted inside, and gradients must come back."""
    cones = {"z": 1, "l": 1, "q": [4, 1, 3]}
    rng = np.random.default_rng(0)
    instance = manufacture.feasible(rng, 4, cones, unique=True)
    data = arrays(instance)
    w = random_like(data["b"])

    def loss(b: mx.array) -> mx.array:
        return mx.sum(w * mlxcone.solve(*arrays(instance).values(), cones).y) + mx.sum(
            w * mlxcone.solve(data["P"], data["q"], data["A"], b, cones).s
        )

    gradient, h = np.array(mx.grad(loss)(data["b"])), 1e-5
    for row in range(data["b"].size):
        e = mx.array(h * np.eye(data["b"].size)[row], dtype=mx.float64)
        expected = (loss(data["b"] + e) - loss(data["b"] - e)).item() / (2 * h)
        assert gradient[row] == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("names", ["q", "qb", "A", "P", "PqAb"])
def test_gradients_of_shared_arguments_are_sums_over_the_lanes(names: str) -> None:
    instances = siblings()
    together = stacked(instances, names)
    order = list(together.values())
    found = mx.grad(functional, argnums=(0, 1, 2, 3))(*order)
    lanes = []
    for lane in range(len(instances)):
        own = [v[lane] if name in names else v for name, v in together.items()]
        assert int(mlxcone.solve(*own, CONES).info.status) == 1
        lanes.append(mx.grad(functional, argnums=(0, 1, 2, 3))(*own))
    for name, bar, parts in zip(NAMES, found, zip(*lanes, strict=True), strict=True):
        per_lane = np.stack([np.array(p) for p in parts])
        close(bar, per_lane if name in names else per_lane.sum(axis=0))


def test_float32_gradients_are_float32() -> None:
    exact = mx.grad(functional, argnums=(0, 1, 2, 3))(*arrays(regular(0)).values())
    narrow = list(arrays(regular(0), mx.float32).values())

    def loss(*data: mx.array) -> mx.array:
        x, y, s = solve(*data)
        parts = zip(weights(), (x, y, s), strict=True)
        return sum((mx.sum(w.astype(mx.float32) * v) for w, v in parts), 0.0)

    for found, expected in zip(mx.grad(loss, argnums=(0, 1, 2, 3))(*narrow), exact, strict=True):
        assert found.dtype == mx.float32
        close(found.astype(mx.float64), expected, 1e-4)


def test_mixed_dtypes_keep_their_own() -> None:
    data = arrays(regular(0))
    data["A"] = data["A"].astype(mx.float32)
    gradients = mx.grad(functional, argnums=(0, 1, 2, 3))(*data.values())
    assert [g.dtype for g in gradients] == [mx.float64, mx.float64, mx.float32, mx.float64]


def test_solver_has_the_same_gradient() -> None:
    data = arrays(regular(0))
    solver = mlxcone.Solver(data["P"], data["A"], CONES)

    def loss(q: mx.array, b: mx.array) -> mx.array:
        solution = solver.solve(q, b)
        return sum((mx.sum(w * v) for w, v in zip(weights(), solution[:3], strict=True)), 0.0)

    for _ in range(2):  # the second time from the cache
        found = mx.grad(loss, argnums=(0, 1))(data["q"], data["b"])
        expected = mx.grad(functional, argnums=(1, 3))(*data.values())
        for u, v in zip(found, expected, strict=True):
            close(u, v, 1e-10)


def test_solver_has_a_gradient_in_the_matrices_it_was_given() -> None:
    data = arrays(regular(0))

    def loss(P: mx.array, A: mx.array) -> mx.array:
        solution = mlxcone.Solver(P, A, CONES).solve(data["q"], data["b"])
        return sum((mx.sum(w * v) for w, v in zip(weights(), solution[:3], strict=True)), 0.0)

    found = mx.grad(loss, argnums=(0, 1))(data["P"], data["A"])
    expected = mx.grad(functional, argnums=(0, 2))(*data.values())
    for u, v in zip(found, expected, strict=True):
        close(u, v, 1e-10)


def test_warm_start_has_no_gradient_and_leaves_the_others() -> None:
    data = arrays(regular(0))
    known = solve(**data)

    def loss(q: mx.array, start: mx.array) -> mx.array:
        warm = (start, known[1], known[2])
        found = mlxcone.solve(data["P"], q, data["A"], data["b"], CONES, warm_start=warm)
        return sum((mx.sum(w * v) for w, v in zip(weights(), found[:3], strict=True)), 0.0)

    q_bar, start_bar = mx.grad(loss, argnums=(0, 1))(data["q"], known[0])
    close(q_bar, mx.grad(functional, argnums=1)(*data.values()))
    assert start_bar.tolist() == [0.0] * N


def test_checkpoint() -> None:
    data = arrays(regular(0))
    # A checkpointed function takes arrays alone.
    wrapped = mx.checkpoint(functional)
    found = mx.grad(wrapped, argnums=(0, 1, 2, 3))(*data.values())
    expected = mx.grad(functional, argnums=(0, 1, 2, 3))(*data.values())
    for u, v in zip(found, expected, strict=True):
        close(u, v, 1e-12)


# --- vmap ---------------------------------------------------------------------------------------


def loop(function: Callable[..., Any], data: dict[str, mx.array], names: str) -> list[np.ndarray]:
    """What vmap over axis 0 of some arguments must equal."""
    count = data[names[0]].shape[0]
    lanes = []
    for lane in range(count):
        out = function(*(v[lane] if name in names else v for name, v in data.items()))
        lanes.append([np.array(v) for v in out])
    return [np.stack(parts) for parts in zip(*lanes, strict=True)]


@pytest.mark.parametrize("names", ["P", "q", "A", "b", "PA", "qb", "PqAb"])
def test_vmap_is_a_loop(names: str) -> None:
    data = stacked(siblings(), names)
    axes = tuple(0 if name in names else None for name in NAMES)
    found = mx.vmap(solve, in_axes=axes)(*data.values())
    for u, v in zip(found, loop(solve, data, names), strict=True):
        close(u, v)


@pytest.mark.parametrize("names", ["P", "q", "A", "b", "PqAb"])
def test_vmap_over_the_last_axis(names: str) -> None:
    data = stacked(siblings(), names)
    axes = tuple(data[name].ndim - 1 if name in names else None for name in NAMES)
    moved = [mx.moveaxis(v, 0, -1) if name in names else v for name, v in data.items()]
    found = mx.vmap(solve, in_axes=axes)(*moved)
    for u, v in zip(found, loop(solve, data, names), strict=True):
        close(u, v)


def test_vmap_over_a_middle_axis_and_out_axes() -> None:
    data = stacked(siblings(), "A")
    moved = [data["P"], data["q"], mx.moveaxis(data["A"], 0, 1), data["b"]]
    found = mx.vmap(solve, in_axes=(None, None, 1, None), out_axes=(1, 0, 1))(*moved)
    expected = loop(solve, data, "A")
    close(found[0], expected[0].T)
    close(found[1], expected[1])
    close(found[2], expected[2].T)


def test_nested_vmap_is_a_double_loop() -> None:
    """b along one axis, q along the other."""
    data = arrays(regular(0))
    rng = np.random.default_rng(0)
    qs = mx.array(regular(0).q + 0.01 * rng.standard_normal((2, N)), dtype=mx.float64)
    bs = mx.array(regular(0).b + 0.01 * rng.random((3, M)), dtype=mx.float64)
    inner = mx.vmap(lambda q, b: solve(data["P"], q, data["A"], b), in_axes=(None, 0))
    found = mx.vmap(inner, in_axes=(0, None))(qs, bs)
    assert found[0].shape == (2, 3, N)
    for i in range(2):
        for j in range(3):
            expected = solve(data["P"], qs[i], data["A"], bs[j])
            for u, v in zip(found, expected, strict=True):
                close(u[i, j], v)


def test_nested_vmap_over_one_argument() -> None:
    data = arrays(regular(0))
    rng = np.random.default_rng(0)
    qs = mx.array(regular(0).q + 0.01 * rng.standard_normal((2, 3, N)), dtype=mx.float64)
    one = partial(lambda q: solve(data["P"], q, data["A"], data["b"])[0])
    found = mx.vmap(mx.vmap(one, in_axes=1), in_axes=0)(mx.moveaxis(qs, 2, 1))
    expected = np.stack([[np.array(one(qs[i, j])) for j in range(3)] for i in range(2)])
    # in_axes=1 of (N, 3) inside, axis 0 outside.
    close(found, expected)


def test_vmap_over_data_that_have_a_batch_axis_of_their_own() -> None:
    data = arrays(regular(0))
    rng = np.random.default_rng(0)
    qs = mx.array(regular(0).q + 0.01 * rng.standard_normal((2, 3, N)), dtype=mx.float64)
    bs = mx.array(regular(0).b + 0.01 * rng.random((3, M)), dtype=mx.float64)
    found = mx.vmap(lambda q: solve(data["P"], q, data["A"], bs))(qs)
    assert found[1].shape == (2, 3, M)
    for i in range(2):
        for u, v in zip(found, solve(data["P"], qs[i], data["A"], bs), strict=True):
            close(u[i], v)


def test_vmap_over_a_shared_matrix_beside_a_batch() -> None:
    """The mapped argument has no batch axis inside, another one has."""
    data = stacked(siblings(), "A")
    rng = np.random.default_rng(0)
    bs = mx.array(regular(0).b + 0.01 * rng.random((2, M)), dtype=mx.float64)
    P, q = data["P"], data["q"]
    found = mx.vmap(lambda A: solve(P, q, A, bs))(data["A"])
    assert found[0].shape == (3, 2, N)
    for k in range(3):
        for u, v in zip(found, solve(P, q, data["A"][k], bs), strict=True):
            close(u[k], v)


def test_vmap_without_P() -> None:
    data = stacked(siblings(quadratic=False))
    found = mx.vmap(lambda q, A, b: solve(None, q, A, b))(data["q"], data["A"], data["b"])
    for k in range(3):
        expected = solve(None, data["q"][k], data["A"][k], data["b"][k])
        for u, v in zip(found, expected, strict=True):
            close(u[k], v)


def test_vmap_with_lanes_without_a_solution() -> None:
    rng = np.random.default_rng(0)
    instances = [regular(0), manufacture.infeasible(rng, N, CONES), regular(1)]
    data = stacked(instances)
    found = mx.vmap(lambda *v: mlxcone.solve(*v, CONES).info.status)(*data.values())
    assert found.tolist() == [1, -2, 1]


def test_vmap_with_lanes_without_a_solution_can_raise() -> None:
    instances = [regular(0), manufacture.infeasible(np.random.default_rng(0), N, CONES)]
    data = stacked(instances)
    with pytest.raises(mlxcone.SolverError, match="lane 1: INFEASIBLE"):
        mx.eval(mx.vmap(lambda *v: mlxcone.solve(*v, CONES, on_failure="raise").x)(*data.values()))


def test_vmap_with_warm_start() -> None:
    data = stacked(siblings())
    known = solve(**data)

    def warm(P: Any, q: Any, A: Any, b: Any, x: Any, y: Any, s: Any) -> mx.array:
        return mlxcone.solve(P, q, A, b, CONES, warm_start=(x, y, s)).x

    close(mx.vmap(warm)(*data.values(), *known), known[0])


def test_vmap_of_a_solver() -> None:
    data = arrays(regular(0))
    rng = np.random.default_rng(0)
    qs = mx.array(regular(0).q + 0.01 * rng.standard_normal((3, N)), dtype=mx.float64)
    solver = mlxcone.Solver(data["P"], data["A"], CONES)
    found = mx.vmap(lambda q: solver.solve(q, data["b"]).x)(qs)
    close(found, solve(data["P"], qs, data["A"], data["b"])[0])


@pytest.mark.parametrize("names", ["q", "A", "P", "PqAb"])
def test_vmap_of_grad_is_a_loop(names: str) -> None:
    data = stacked(siblings(), names)
    axes = tuple(0 if name in names else None for name in NAMES)
    gradients = mx.grad(functional, argnums=(0, 1, 2, 3))
    found = mx.vmap(gradients, in_axes=axes)(*data.values())
    for u, v in zip(found, loop(gradients, data, names), strict=True):
        close(u, v)


def test_grad_of_vmap_is_vmap_of_grad() -> None:
    data = stacked(siblings(), "qb")
    axes = (None, 0, None, 0)

    def total(*values: mx.array) -> mx.array:
        return mx.sum(mx.vmap(functional, in_axes=axes)(*values))

    found = mx.grad(total, argnums=(0, 1, 2, 3))(*data.values())
    each = mx.vmap(mx.grad(functional, argnums=(0, 1, 2, 3)), in_axes=axes)(*data.values())
    close(found[0], np.array(each[0]).sum(axis=0))
    close(found[1], each[1])
    close(found[2], np.array(each[2]).sum(axis=0))
    close(found[3], each[3])


def test_vmap_of_jvp_and_of_vjp() -> None:
    """Jacobians by rows and by columns are the same matrix."""
    data = arrays(regular(0))

    def x_of(q: mx.array) -> mx.array:
        return solve(data["P"], q, data["A"], data["b"])[0]

    eye, q = mx.eye(N, dtype=mx.float64), data["q"]
    columns = mx.vmap(lambda v: mx.jvp(x_of, [q], [v])[1][0])(eye)
    rows = mx.vmap(lambda w: mx.vjp(x_of, [q], [w])[1][0])(eye)
    close(columns, np.array(rows).T)
    one_by_one = [np.array(mx.jvp(x_of, [q], [eye[k]])[1][0]) for k in range(N)]
    close(columns, np.stack(one_by_one))


def test_vmap_of_jvp_over_data() -> None:
    data = stacked(siblings())
    tangents = [random_like(v, seed) for seed, v in enumerate(data.values())]

    def moved(*both: mx.array) -> list[mx.array]:
        return mx.jvp(solve, list(both[:4]), list(both[4:]))[1]

    found = mx.vmap(moved)(*data.values(), *tangents)
    for k in range(3):
        expected = moved(*(v[k] for v in data.values()), *(t[k] for t in tangents))
        for u, v in zip(found, expected, strict=True):
            close(u[k], v)


# --- lanes without a solution ---------------------------------------------------------------------


def broken_batch() -> tuple[dict[str, mx.array], list[int]]:
    """Solved, infeasible, unbounded, NaN, solved; and the lanes that are solved."""
    rng = np.random.default_rng(0)
    failed = regular(1)
    instances = [
        regular(0),
        manufacture.infeasible(rng, N, CONES),
        manufacture.unbounded(rng, N, CONES),
        failed,
        regular(2),
    ]
    data = {name: np.stack([getattr(i, name) for i in instances]) for name in NAMES}
    data["q"][3, 0] = np.nan
    return {k: mx.array(v, dtype=mx.float64) for k, v in data.items()}, [0, 4]


def masked(keep: list[int]) -> Callable[..., mx.array]:
    """The functional of some lanes alone; selected by indices, so that NaN does not spread."""
    index = mx.array(keep, dtype=mx.int32)

    def function(*data: mx.array) -> mx.array:
        parts = zip(weights(), solve(*data), strict=True)
        return sum((mx.sum(w * v[index]) for w, v in parts), 0.0)

    return function


def test_no_cotangent_no_gradient_in_lanes_without_a_solution() -> None:
    data, solved = broken_batch()
    found = mx.grad(masked(solved), argnums=(0, 1, 2, 3))(*data.values())
    for bar in found:
        for lane in set(range(5)) - set(solved):
            assert not np.array(bar[lane]).any(), lane
    for lane in solved:
        alone = mx.grad(functional, argnums=(0, 1, 2, 3))(*(v[lane] for v in data.values()))
        for bar, expected in zip(found, alone, strict=True):
            close(bar[lane], expected)


def test_gradient_of_a_lane_without_a_solution_is_nan_and_stays_there() -> None:
    data, solved = broken_batch()
    found = mx.grad(functional, argnums=(0, 1, 2, 3))(*data.values())
    clean = mx.grad(masked(solved), argnums=(0, 1, 2, 3))(*data.values())
    for bar, expected in zip(found, clean, strict=True):
        for lane in range(5):
            if lane in solved:
                close(bar[lane], expected[lane], 1e-12)
            else:
                assert np.isnan(np.array(bar[lane])).all(), lane


def test_shared_data_of_a_lane_without_a_solution() -> None:
    """The gradient of a shared matrix is NaN if and only if a failed lane contributes."""
    base = arrays(regular(0))
    qs = mx.stack([base["q"], mx.full((N,), mx.nan, dtype=mx.float64)])
    data = (base["P"], qs, base["A"], base["b"])
    clean = mx.grad(masked([0]), argnums=(0, 2, 3))(*data)
    alone = mx.grad(functional, argnums=(0, 2, 3))(*base.values())
    for found, expected in zip(clean, alone, strict=True):
        close(found, expected)
    for found in mx.grad(functional, argnums=(0, 2, 3))(*data):
        assert np.isnan(np.array(found)).all()


def test_tangent_of_a_lane_without_a_solution_is_nan_and_stays_there() -> None:
    data, solved = broken_batch()
    v = [random_like(d, seed) for seed, d in enumerate(data.values())]
    _, found = mx.jvp(solve, list(data.values()), v)
    for lane in range(5):
        if lane in solved:
            _, alone = mx.jvp(solve, [d[lane] for d in data.values()], [t[lane] for t in v])
            for tangent, expected in zip(found, alone, strict=True):
                close(tangent[lane], expected)
        else:
            assert all(np.isnan(np.array(t[lane])).all() for t in found)


def test_gradient_with_failed_lanes_as_nan() -> None:
    """on_failure="nan" fills outputs; the other lanes keep their gradients."""
    data, solved = broken_batch()

    def loss(*values: mx.array) -> mx.array:
        x = mlxcone.solve(*values, CONES, on_failure="nan").x
        return mx.sum(x[mx.array(solved, dtype=mx.int32)])

    found = mx.grad(loss, argnums=1)(*data.values())
    for lane in range(5):
        assert np.isfinite(np.array(found[lane])).all()
        assert np.array(found[lane]).any() == (lane in solved)


# --- second derivatives ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_grad_of_grad_against_differences_of_grad(name: str) -> None:
    """The second-order cone at its boundary makes these nonzero."""
    data = arrays(regular(0))
    w = random_like(data[name], 5)
    gradient = mx.grad(lambda v: functional(**(data | {name: v})))
    found = mx.grad(lambda v: mx.sum(w * gradient(v)))(data[name])
    v, h = motion(data, name, 6), 1e-4
    shifted = [np.sum(np.array(w * gradient(data[name] + k * h * v))) for k in (1, -1, 2, -2)]
    expected = (8.0 * (shifted[0] - shifted[1]) - (shifted[2] - shifted[3])) / (12.0 * h)
    assert abs(expected) > 1e-3
    assert mx.sum(found * v).item() == pytest.approx(expected, rel=1e-5)


def test_mixed_second_derivative() -> None:
    """d/db of the gradient in q."""
    data = arrays(regular(0))
    w, v, h = random_like(data["q"], 5), random_like(data["b"], 6), 1e-4

    def slope(b: mx.array) -> mx.array:
        gradient = mx.grad(lambda q: functional(data["P"], q, data["A"], b))(data["q"])
        return mx.sum(w * gradient)

    found = mx.sum(mx.grad(slope)(data["b"]) * v).item()
    values = [slope(data["b"] + k * h * v).item() for k in (1, -1, 2, -2)]
    expected = (8.0 * (values[0] - values[1]) - (values[2] - values[3])) / (12.0 * h)
    assert abs(expected) > 1e-3
    assert found == pytest.approx(expected, rel=1e-5)


def test_jvp_of_grad_is_the_hessian_times_a_vector() -> None:
    data = arrays(regular(0))
    gradient = mx.grad(lambda q: functional(data["P"], q, data["A"], data["b"]))
    v, h = random_like(data["q"], 6), 1e-4
    _, (found,) = mx.jvp(gradient, [data["q"]], [v])
    values = [np.array(gradient(data["q"] + k * h * v)) for k in (1, -1, 2, -2)]
    expected = (8.0 * (values[0] - values[1]) - (values[2] - values[3])) / (12.0 * h)
    close(found, expected, 1e-5)


# --- mx.compile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["value", "grad", "status", "vmap"])
def test_compile_raises_and_never_returns_numbers(what: str) -> None:
    data = arrays(regular(0))

    def status(q: mx.array) -> mx.array:
        return mlxcone.solve(data["P"], q, data["A"], data["b"], CONES).info.status

    def value(q: mx.array) -> mx.array:
        return functional(data["P"], q, data["A"], data["b"])

    cases = {"value": value, "grad": mx.grad(value), "status": status, "vmap": mx.vmap(value)}
    q = data["q"][None] if what == "vmap" else data["q"]
    with pytest.raises((RuntimeError, ValueError)):
        mx.eval(mx.compile(cases[what])(q))


def test_compile_of_what_surrounds_the_solve() -> None:
    """Data known while tracing: the solve runs then, and the rest is compiled."""
    data = arrays(regular(0))
    x = solve(**data)[0]
    found = mx.compile(lambda t: t * solve(**data)[0])(mx.array(2.0, dtype=mx.float64))
    close(found, 2.0 * np.array(x))
