"""Gradients where the solution map has none: bounded, least-norm, and no trouble for other lanes.

The judge is dense NumPy: the least-norm solution, in x and y, of the linear system of the
optimality conditions at the point that the solver returned. Where a row is at a kink (its
multiplier and its slack are both zero) either derivative of the projection will do, and the bound
is the largest of them all.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import hypothesis.strategies as st
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given

import mlxcone
from mlxcone.testing import verify_solution

pytestmark = pytest.mark.filterwarnings("error::mlxcone.DerivativeWarning")

Array = np.ndarray
TIMES = 10.0  # how much longer than the least-norm answer a gradient may be
ZERO = {"float32": 1e-5, "float64": 1e-7}  # below this, an entry of y or s is zero
NOISE = {"float32": 1e-4, "float64": 1e-6}  # beside cotangents of size 1, where the answer is zero


class Hard(NamedTuple):
    """Minimize 1/2 x'P x + q'x subject to A x + s = b: s = 0 in ``zero`` rows, else s >= 0."""

    P: Array | None
    q: Array
    A: Array
    b: Array
    zero: int

    @property
    def cones(self) -> dict[str, int]:
        return {"z": self.zero, "l": self.b.size - self.zero}

    @property
    def data(self) -> list[Array]:
        P = np.zeros((self.q.size, self.q.size)) if self.P is None else self.P
        return [P, self.q, self.A, self.b]


def _box(n: int, lower: float, upper: float) -> tuple[Array, Array]:
    return np.vstack([-np.eye(n), np.eye(n)]), np.repeat([-lower, upper], n)


def _transport() -> Hard:
    """The assignment of three to three: one equality too many, and vertices of five zeros more."""
    rows = [np.kron(np.eye(3)[i], np.ones(3)) for i in range(3)]
    columns = [np.kron(np.ones(3), np.eye(3)[i]) for i in range(3)]
    cost = np.array([1.0, 4, 5, 6, 2, 7, 8, 9, 3])
    A = np.vstack([*rows, *columns, -np.eye(9)])
    return Hard(None, cost, A, np.repeat([1.0, 0.0], [6, 9]), 6)


def _cases() -> dict[str, Hard]:
    corner = np.array([[-1.0, 0], [0, -1], [-1, -1]])
    square, ones = _box(2, -1.0, 1.0)
    plane = np.array([[1.0, 1, 1]])
    flat = np.diag([1.0, 0.0])
    return {
        "optimal face is an edge": Hard(None, np.ones(2), corner, np.array([0.0, 0, -1]), 0),
        "no objective": Hard(None, np.zeros(2), square, ones, 0),
        "no objective, quadratic": Hard(flat, np.zeros(2), square, ones, 0),
        "three constraints at a vertex of the plane": Hard(
            None, np.array([1.0, 2]), corner, np.zeros(3), 0
        ),
        "assignment": _transport(),
        "dependent equalities": Hard(
            np.eye(3), np.array([1.0, 2, 3]), np.vstack([plane, plane, 2 * plane]), [1.0, 1, 2], 3
        ),
        "repeated inequality": Hard(
            np.eye(2), np.array([-3.0, 0]), np.array([[1.0, 0], [1, 0], [2, 0]]), [1.0, 1, 2], 0
        ),
        "repeated inequality without P": Hard(
            None, np.array([-3.0, 1]), np.vstack([[[1.0, 0]] * 3, [[0.0, -1]]]), [1.0, 1, 1, 0], 0
        ),
        "free direction": Hard(flat, np.array([-1.0, 0]), np.array([[1.0, 0]]), [0.5], 0),
        "free direction, seen by an inactive row": Hard(
            flat, np.array([-1.0, 0]), np.vstack([[[1.0, 0]], 3 * square]), [0.5, 3, 3, 3, 3], 0
        ),
        "column of zeros": Hard(
            None, np.array([-1.0, 0]), np.array([[1.0, 0], [-1, 0]]), [1.0, 1], 0
        ),
        "kinks": Hard(np.eye(3), np.array([0.0, 1, 0]), -np.eye(3), np.zeros(3), 0),
        "kink at a vertex": Hard(np.eye(2), np.array([1.0, 0]), corner, np.zeros(3), 0),
        "kink without P": Hard(
            None, np.array([1.0, 0]), np.vstack([-np.eye(2), [[0.0, 1]]]), [0.0, 0, 0], 0
        ),
    }


CASES = {name: case._replace(b=np.asarray(case.b, dtype=float)) for name, case in _cases().items()}


def to_mlx(values: Array, dtype: str) -> mx.array:
    return mx.array(np.ascontiguousarray(values), dtype=getattr(mx, dtype))


def to_numpy(values: Any) -> list[Array]:
    return [np.array(v).astype(np.float64) for v in values]


def solve(case: Hard, *data: mx.array, **options: Any) -> tuple[mx.array, ...]:
    P = None if case.P is None else data[0]
    return mlxcone.solve(P, *data[1:], case.cones, **options)[:3]


def projections(case: Hard, y: Array, s: Array, dtype: str) -> Iterator[Array]:
    """The diagonals of D at a point: one, or every choice at the kinks."""
    small = ZERO[dtype] * max(1.0, np.abs(y).max(), np.abs(s).max())
    D = (y > s).astype(float)
    D[: case.zero] = 1.0
    kinks = [i for i in range(case.zero, y.size) if max(abs(y[i]), abs(s[i])) <= small]
    for choice in itertools.product((0.0, 1.0), repeat=len(kinks)):
        D[kinks] = choice
        yield D


def jacobian(case: Hard, D: Array) -> Array:
    P, _, A, _ = case.data
    return np.block([[P, A.T * D], [A, np.diag(D - 1.0)]])


def least_norm(matrix: Array, right: Array) -> Array:
    return np.linalg.lstsq(matrix, right, rcond=1e-9)[0]


def reduced(case: Hard, active: Array) -> Array:
    """The optimality conditions in x and the multipliers of active rows; slacks follow from x."""
    P, _, A, _ = case.data
    zero = np.zeros((active.sum(), active.sum()))
    return np.block([[P, A[active].T], [A[active], zero]])


def adjoint(case: Hard, D: Array, bars: list[Array]) -> tuple[Array, Array]:
    """Gradients in q and b: the transpose of `tangent`."""
    x_bar, y_bar, s_bar = bars
    active, s_bar = D > 0, (1.0 - D) * s_bar
    right = -np.concatenate([x_bar - case.A.T @ s_bar, y_bar[active]])
    g, h = np.split(least_norm(reduced(case, active), right), [x_bar.size])
    b_bar = s_bar.copy()
    b_bar[active] = -h
    return g, b_bar


def tangent(case: Hard, D: Array, x: Array, y: Array, moved: list[Array]) -> list[Array]:
    """Derivatives of x, y and s: the shortest change of (x, y), and the slack that goes with it."""
    dP, dq, dA, db = moved
    active = D > 0
    r, t = dP @ x + dA.T @ y + dq, dA @ x - db
    dx, h = np.split(least_norm(reduced(case, active), -np.concatenate([r, t[active]])), [x.size])
    dy = np.zeros_like(y)
    dy[active] = h
    return [dx, dy, -(1.0 - D) * (case.A @ dx + t)]


def size(parts: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.square(p)) for p in parts)))


def check_bounded(case: Hard, dtype: str, seed: int, **options: Any) -> None:
    """Adjoint and tangent of one program, along random directions."""
    rng = np.random.default_rng(seed)
    n, m = case.q.size, case.b.size
    data = [to_mlx(v, dtype) for v in case.data]
    bars = [rng.standard_normal(k) for k in (n, m, m)]
    if seed % 2:
        bars[1:] = [np.zeros(m), np.zeros(m)]
    moved = [rng.standard_normal(v.shape) for v in case.data]
    moved[0] = np.zeros((n, n)) if case.P is None else moved[0] + moved[0].T

    def call(*values: mx.array) -> list[mx.array]:
        return list(solve(case, *values, **options))

    outputs, gradients = mx.vjp(call, data, [to_mlx(v, dtype) for v in bars])
    _, slopes = mx.jvp(call, data, [to_mlx(v, dtype) for v in moved])
    x, y, s = to_numpy(outputs)
    tolerance = 1e-6 if dtype == "float64" else 1e-4
    verdict = verify_solution(case.P, case.q, case.A, case.b, case.cones, x, y, s)
    assert verdict.worst <= tolerance, verdict
    choices = [D.copy() for D in projections(case, y, s, dtype)]
    longest = max(size(adjoint(case, D, bars)) for D in choices)
    assert size(to_numpy([gradients[1], gradients[3]])) <= TIMES * longest + NOISE[dtype]
    longest = max(size(tangent(case, D, x, y, moved)) for D in choices)
    assert size(to_numpy(slopes)) <= TIMES * longest + NOISE[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_bounded_by_the_least_norm_answer(name: str, dtype: str) -> None:
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        for seed in range(2):
            check_bounded(CASES[name], dtype, seed)


@pytest.mark.parametrize("normalize", [True, False])
def test_tie_of_vertices_has_no_gradient(normalize: bool) -> None:
    """The least of three equal numbers, as a linear program and as its dual: nothing moves."""
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        ones = to_mlx(np.ones(3), "float64")
        A = np.vstack([np.ones(3), -np.eye(3)])
        b = np.array([1.0, 0.0, 0.0, 0.0])

        def choice(q: mx.array) -> mx.array:
            return mlxcone.solve(None, q, A, b, {"z": 1, "l": 3}, normalize=normalize).x[0]

        def multiplier(c: mx.array) -> mx.array:
            dual = None, -np.ones(1), np.ones((3, 1)), c, {"l": 3}
            return mlxcone.solve(*dual, normalize=normalize).y[0]

        for function in (choice, multiplier):
            (gradient,) = to_numpy([mx.grad(function)(ones)])
            assert np.abs(gradient).max() < 1e-9  # the rounding of 1 / SIGMA


def test_without_equilibration() -> None:
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        for name in ("optimal face is an edge", "assignment", "dependent equalities"):
            check_bounded(CASES[name], "float64", 0, normalize=False)


@st.composite
def hard_programs(draw: st.DrawFn) -> Hard:
    """A known solution with kinks, repeated rows, and a P and costs of any rank."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, zero, rows = (draw(st.integers(*range_)) for range_ in ((1, 5), (0, 2), (1, 7)))
    A = rng.integers(-2, 3, size=(zero + rows, n)).astype(float)
    for _ in range(draw(st.integers(0, 3))):
        A[rng.integers(len(A))] = draw(st.sampled_from([0.0, 1.0, 2.0])) * A[rng.integers(len(A))]
    kinds = [draw(st.sampled_from(["active", "inactive", "kink"])) for _ in range(rows)]
    y = rng.standard_normal(zero + rows)
    y[zero:] = [rng.uniform(0.5, 2.0) * (kind == "active") for kind in kinds]
    s = np.zeros(zero + rows)
    s[zero:] = [rng.uniform(0.5, 2.0) * (kind == "inactive") for kind in kinds]
    half = rng.integers(-1, 2, size=(draw(st.integers(0, n)), n)).astype(float)
    x = rng.integers(-1, 2, size=n).astype(float)
    P = half.T @ half
    q = -P @ x - A.T @ y
    return Hard(P if draw(st.booleans()) or half.size else None, q, A, A @ x + s, zero)


@given(hard_programs(), st.integers(0, 1))
def test_bounded_for_random_programs(case: Hard, seed: int) -> None:
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        check_bounded(case, "float64", seed)


def regular(like: Hard, seed: int) -> Hard:
    """A strictly convex program of the same shape, away from kinks."""
    rng = np.random.default_rng(seed)
    n, m = like.q.size, like.b.size
    while True:
        A = rng.standard_normal((m, n))
        signs = np.where(rng.random(m) < 0.5 * min(1.0, n / m), 1.0, -1.0)
        signs[: like.zero] = 1.0
        y, s = (np.maximum(side * signs, 0.0) * rng.uniform(0.5, 2.0, m) for side in (1, -1))
        x, P = rng.standard_normal(n), np.eye(n)
        case = Hard(P, -P @ x - A.T @ y, A, A @ x + s, like.zero)
        if np.linalg.cond(jacobian(case, (signs > 0).astype(float))) < 1e3:
            return case


# Programs with as many independent equalities as a regular one of the shape can have, and a P.
PAIRED = (
    "no objective, quadratic",
    "repeated inequality",
    "free direction, seen by an inactive row",
    "kinks",
    "kink at a vertex",
)


@pytest.mark.parametrize("way", ["batch", "vmap"])
@pytest.mark.parametrize("name", PAIRED)
def test_regular_neighbour_keeps_its_gradient(name: str, way: str) -> None:
    hard = CASES[name]
    lanes = [regular(hard, 0), hard, regular(hard, 1)]
    n, m = hard.q.size, hard.b.size
    rng = np.random.default_rng(2)
    bars = [rng.standard_normal((3, k)) for k in (n, m, m)]

    def call(*values: mx.array) -> list[mx.array]:
        return list(solve(lanes[0], *values))

    def pulled(*values: mx.array) -> list[mx.array]:
        return mx.vjp(call, list(values[:4]), list(values[4:]))[1]

    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        arrays = [
            to_mlx(np.stack(v), "float64") for v in zip(*(c.data for c in lanes), strict=True)
        ]
        arrays += [to_mlx(v, "float64") for v in bars]
        gradients = to_numpy((pulled if way == "batch" else mx.vmap(pulled))(*arrays))
        points = to_numpy(call(*arrays[:4]))
    for lane in (0, 2):
        x, y, s = (v[lane] for v in points)
        (D,) = projections(lanes[lane], y, s, "float64")
        full = -np.concatenate([bars[0][lane], D * bars[1][lane] + (D - 1) * bars[2][lane]])
        g = np.linalg.solve(jacobian(lanes[lane], D).T, full)
        P_bar, A_bar = np.outer(g[:n], x), np.outer(y, g[:n]) + np.outer(g[n:], x)
        expected = [0.5 * (P_bar + P_bar.T), g[:n], A_bar, -g[n:]]
        largest = max(np.abs(e).max() for e in expected)
        for found, wanted in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(found[lane], wanted, rtol=0, atol=1e-9 * largest)
    x, y, s = (v[1] for v in points)
    choices = [D.copy() for D in projections(hard, y, s, "float64")]
    longest = max(size(adjoint(hard, D, [v[1] for v in bars])) for D in choices)
    assert size([gradients[1][1], gradients[3][1]]) <= TIMES * longest + NOISE["float64"]


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_are_finite(name: str) -> None:
    case = CASES[name]
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        data = [to_mlx(v, "float64") for v in case.data]

        def slope(q: mx.array) -> mx.array:
            def loss(q: mx.array) -> mx.array:
                x, y, _ = solve(case, data[0], q, *data[2:])
                return mx.sum(x**2) + mx.sum(x) + mx.sum(y)

            return mx.sum(mx.grad(loss)(q) ** 2)

        (found,) = to_numpy([mx.grad(slope)(data[1])])
    assert np.abs(found).max() < 1e4


def test_idle_kink_survives_rounding_of_the_data() -> None:
    """x_1 and x_2 are held at zero by two rows; a third passes there and holds nothing.

    So x = (0, 0, -(q_3 + ...) / P_33), whatever D is in the third row, for data 1e-12 away too.
    """
    P = np.array([[2.0, 0.5, 0.3], [0.5, 2.0, -0.4], [0.3, -0.4, 1.6]])
    A = np.array([[-1.0, 0, 0], [0, -1, 0], [-1, -1, 0]])
    case = Hard(P, np.array([3.0, 4, 0.8]), A, np.zeros(3), 0)
    rng = np.random.default_rng(0)
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        for scale in (0.0, *[1e-12] * 6):
            moved = [v + scale * rng.standard_normal(v.shape) for v in case.data]
            moved[0] = 0.5 * (moved[0] + moved[0].T)
            data = [to_mlx(v, "float64") for v in moved]

            def loss(P: mx.array, q: mx.array, data: list[mx.array] = data) -> mx.array:
                return mx.sum(solve(case, P, q, *data[2:])[0] * to_mlx(np.ones(3), "float64"))

            P_bar, q_bar = to_numpy(mx.grad(loss, argnums=(0, 1))(*data[:2]))
            np.testing.assert_allclose(q_bar, [0, 0, -1 / 1.6], rtol=0, atol=1e-8)
            np.testing.assert_allclose(np.diag(P_bar), [0, 0, 0.5 / 1.6], rtol=0, atol=1e-8)


# Curvature over three powers of ten, and a row whose multiplier is small: slow sweeps.
SLOW = Hard(
    np.diag([1.0, 1e-3, 3e-5]),
    np.array([-1.0, -2e-3, -3e-5]),
    np.array([[1.0, 1.0, 1.0], [-1.0, 0.0, 0.0]]),
    np.array([2.5, 1.0]),
    0,
)


def slow_gradient(**options: Any) -> tuple[Array, list[warnings.WarningMessage]]:
    """Gradient in q of the sum of x of a fast and a slow lane, and the warnings."""
    fast = SLOW._replace(P=np.eye(3))
    with mx.stream(mx.cpu), warnings.catch_warnings(record=True) as caught:  # type: ignore[arg-type]
        warnings.simplefilter("always")
        P, q, A, b = (
            to_mlx(np.stack(v), "float64") for v in zip(fast.data, SLOW.data, strict=True)
        )
        weights = to_mlx(np.array([1.0, -2.0, 0.5]), "float64")

        def loss(q: mx.array) -> mx.array:
            return mx.sum(solve(SLOW, P, q, A, b, normalize=False, **options)[0] * weights)

        (found,) = to_numpy([mx.grad(loss)(q)])
    return found[1], [w for w in caught if w.category is mlxcone.DerivativeWarning]


def slow_reference() -> Array:
    """The inequality x_1 + x_2 + x_3 <= 2.5 holds with equality, the other one does not."""
    D = np.array([1.0, 0.0])
    bars = [np.array([1.0, -2.0, 0.5]), np.zeros(2), np.zeros(2)]
    return adjoint(SLOW, D, bars)[0]


def test_more_sweeps_smaller_error() -> None:
    wanted = slow_reference()
    errors = [
        np.abs(slow_gradient(derivative_sweeps=k)[0] - wanted).max() / np.abs(wanted).max()
        for k in (2, 3, 4)
    ]
    assert errors[0] > 50 * errors[1] > 2500 * errors[2]
    assert errors[2] < 1e-9


def test_warning_names_the_lane_that_did_not_converge() -> None:
    _, caught = slow_gradient(derivative_sweeps=2)
    (warning,) = caught
    assert list(warning.message.residuals) == [1]  # type: ignore[union-attr]
    assert "lane 1" in str(warning.message)
    assert not slow_gradient()[1]
    assert not slow_gradient(derivative_sweeps=2, derivative_eps=0.0)[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("derivative_sweeps", 1), ("derivative_eps", -1.0), ("derivative_eps", np.nan)],
)
def test_settings_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        mlxcone.Settings(**{name: value})
