"""The smoothed derivative against a barrier method in plain NumPy, which shares no code with it.

The reference knows the barriers by their formulas; gradients are complex steps, and Hessians
differences of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cvxpy as cp
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlxcone
from cvxpylayers_mlx import CvxpyLayer
from mlxcone import Cones, Settings
from mlxcone import cascade as ladder
from mlxcone.cones.product import Product
from mlxcone.derivatives import implicit as derivative
from mlxcone.derivatives import smoothing
from mlxcone.derivatives.implicit import Anchor
from mlxcone.methods import centring
from mlxcone.program.operators import Rectangular
from mlxcone.program.problem import Program

Array = np.ndarray
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "linear": ({"l": 10}, False),
    "quadratic": ({"z": 2, "l": 8}, True),
    "second-order": ({"z": 1, "l": 2, "q": [3, 4]}, False),
    "semidefinite": ({"l": 2, "s": [2, 3]}, True),
    "exponential": ({"z": 1, "ep": 2, "ed": 1}, True),
    "power": ({"l": 2, "p": [0.3, -0.6], "pnd": [[0.2, 0.3, 0.5]]}, True),
}
PROFILE: Any = settings.default
every_case = pytest.mark.parametrize("name", CASES)
N = 5


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:  # float64 exists nowhere else
    with mx.stream(mx.cpu):
        yield


def wide(v: Any) -> mx.array:
    return mx.array(np.asarray(v), dtype=mx.float64)


# Barriers of K*, by rows; each takes complex numbers.


def of_linear(v: Array) -> Any:
    return -np.sum(np.log(v))


def of_second_order(v: Array) -> Any:
    return -np.log(v[0] ** 2 - np.sum(v[1:] ** 2))


def matrix_of(v: Array) -> Array:
    order = (math.isqrt(8 * v.size + 1) - 1) // 2
    M = np.zeros((order, order), dtype=v.dtype)
    columns, rows = np.triu_indices(order)  # the lower triangle, column by column
    M[rows, columns] = np.where(rows == columns, v, v / math.sqrt(2))
    return M + np.tril(M, -1).T


def of_semidefinite(v: Array) -> Any:
    return -np.log(np.linalg.det(matrix_of(v)))


def of_exponential(v: Array) -> Any:
    x, y, z = v
    return -np.log(y * np.log(z / y) - x) - np.log(y) - np.log(z)


def of_exponential_dual(v: Array) -> Any:
    x, y, z = v
    return -np.log(y - x - x * np.log(z / -x)) - np.log(-x) - np.log(z)


def of_power(alphas: Array, scale: Array) -> Callable[[Array], Any]:
    def barrier(v: Array) -> Any:
        product = np.prod((v[:-1] / scale) ** (2 * alphas))
        return -np.log(product - v[-1] ** 2) - np.sum((1 - alphas) * np.log(v[:-1]))

    return barrier


class Block(NamedTuple):
    """Rows lo to hi, the barrier of K* and whether a point is inside of K* there."""

    lo: int
    hi: int
    barrier: Callable[[Array], Any]
    inside: Callable[[Array], bool]


def blocks_of(scs: dict[str, Any]) -> list[Block]:
    found: list[Block] = []
    at = scs.get("z", 0)

    def add(rows: int, barrier: Callable[[Array], Any], inside: Callable[[Array], bool]) -> None:
        nonlocal at
        found.append(Block(at, at + rows, barrier, inside))
        at += rows

    def is_positive(v: Array) -> bool:
        return bool(np.all(v > 0))

    for _ in range(scs.get("l", 0)):
        add(1, of_linear, is_positive)
    for d in scs.get("q", []):
        add(d, of_second_order, lambda v: bool(v[0] > np.linalg.norm(v[1:])))
    for k in scs.get("s", []):
        add(
            k * (k + 1) // 2,
            of_semidefinite,
            lambda v: bool(np.linalg.eigvalsh(matrix_of(v))[0] > 0),
        )
    for _ in range(scs.get("ep", 0)):
        add(
            3,
            of_exponential_dual,
            lambda v: v[0] < 0 < v[2] and v[1] - v[0] - v[0] * math.log(v[2] / -v[0]) > 0,
        )
    for _ in range(scs.get("ed", 0)):
        add(3, of_exponential, lambda v: min(v[1:]) > 0 and v[1] * math.log(v[2] / v[1]) > v[0])
    powers = [(abs(a), 1 - abs(a), a > 0) for a in scs.get("p", [])]
    for *exponents, scaled in [*powers, *((*a, True) for a in scs.get("pnd", []))]:
        alphas = np.array(exponents)
        scale = alphas if scaled else np.ones_like(alphas)

        def inside(v: Array, alphas: Array = alphas, scale: Array = scale) -> bool:
            return is_positive(v[:-1]) and np.prod((v[:-1] / scale) ** alphas) > abs(v[-1])

        add(alphas.size + 1, of_power(alphas, scale), inside)
    return found


def slope(barrier: Callable[[Array], Any], v: Array) -> Array:
    """The gradient, by complex steps: exact to rounding."""
    out = np.empty(v.size)
    for i in range(v.size):
        moved = v.astype(complex)
        moved[i] += 1e-30j
        out[i] = np.imag(barrier(moved)) / 1e-30
    return out


def bend(barrier: Callable[[Array], Any], v: Array) -> Array:
    step = 1e-5 / np.abs(slope(barrier, v)).max()  # the boundary is not closer than its inverse
    columns = [
        (slope(barrier, v + step * e) - slope(barrier, v - step * e)) / (2 * step)
        for e in np.eye(v.size)
    ]
    return 0.5 * (np.array(columns) + np.array(columns).T)


class Data(NamedTuple):
    """One program, and a strictly feasible x and y of it."""

    P: Array
    q: Array
    A: Array
    b: Array
    x: Array
    y: Array

    def moved(self, by: tuple[Array, ...], step: float) -> Data:
        P, q, A, b = (v + step * d for v, d in zip(self[:4], by, strict=True))
        return Data(P, q, A, b, self.x, self.y)


def reference(data: Data, scs: dict[str, Any], mu: float, far: float = 1.0) -> tuple[Array, Array]:
    """x and y on the central path, by damped Newton steps on P x + A'y + q, A x + mu g(y) - b.

    ``far`` is the mu to begin with.
    """
    blocks, n, m = blocks_of(scs), data.q.size, data.b.size
    x, y, goal, mu = data.x.copy(), data.y.copy(), mu, max(mu, far)
    for _ in range(100):
        g, H = np.zeros(m), np.zeros((m, m))
        for lo, hi, barrier, _ in blocks:
            g[lo:hi] = -slope(barrier, y[lo:hi])
            H[lo:hi, lo:hi] = bend(barrier, y[lo:hi])
        residual = np.concatenate(
            [data.P @ x + data.A.T @ y + data.q, data.A @ x + mu * g - data.b]
        )
        K = np.block([[data.P, data.A.T], [data.A, -mu * H]])
        step = np.linalg.solve(K, -residual)
        decrement = math.sqrt(max(step[n:] @ H @ step[n:], 0.0))
        if mu == goal and decrement < 1e-12:
            return x, y
        length = 1.0 if decrement < 0.2 else 1 / (1 + decrement)
        while not all(inside(y[lo:hi] + length * step[n:][lo:hi]) for lo, hi, _, inside in blocks):
            length /= 2
        x, y = x + length * step[:n], y + length * step[n:]
        if length == 1.0:
            mu = max(0.2 * mu, goal)
    raise AssertionError("the reference does not converge")


def draw(seed: int, scs: dict[str, Any], quadratic: bool) -> Data:
    """A program with strictly feasible x, s and y; the centres of the cones are known to be."""
    rng = np.random.default_rng(seed)
    product = Product(Cones.of(scs))
    assert product.order is None
    centre, equal = np.array(product.centre(mx.float64)), scs.get("z", 0)
    A = rng.standard_normal((product.rows, N))
    half = rng.standard_normal((N, N - 2)) * quadratic
    P, x = half @ half.T, rng.standard_normal(N)
    s, y = (centre + 0.1 * rng.standard_normal(centre.size) for _ in range(2))
    s[:equal] = 0.0
    return Data(P, -P @ x - A.T @ y, A, A @ x + s, x, y)


class Smooth(NamedTuple):
    """A batch, solved and centred."""

    program: Program
    product: Product
    anchor: Anchor
    central: centring.Central
    mu: float

    def tangent(self, dP: Any, dq: Any, dA: Any, db: Any) -> tuple[Array, ...]:
        moved = smoothing.tangent(
            self.program,
            self.product,
            self.anchor,
            self.central,
            self.mu,
            None if self.program.P is None else wide(dP),
            *(wide(v) for v in (dq, dA, db)),
        )
        return tuple(np.array(v) for v in moved)

    def adjoint(self, *bars: Any) -> derivative.Gradients:
        wider = (v if isinstance(v, mx.array) else wide(v) for v in bars)
        return smoothing.adjoint(
            self.program, self.product, self.anchor, self.central, self.mu, *wider
        )

    def y(self) -> Array:
        """y in original units, of programs without boxes."""
        scaling = self.anchor.scaling
        return np.array(self.central.y * scaling.e / scaling.dual)


def smooth(
    P: Any, q: Any, A: Any, b: Any, scs: dict[str, Any], mu: float, **overrides: Any
) -> Smooth:
    """Of a batch; P and A may be shared."""
    product = Product(Cones.of(scs))
    P = None if P is None or not np.any(P) else wide(P)
    program = Program(P, wide(q), Rectangular.of(wide(A)), wide(b))
    done = ladder.run(program, product, Settings(**overrides), mx.Device(mx.cpu))
    anchor = Anchor(done.x, done.y, done.s, done.scaling)
    codes: Any = done.status.tolist()
    which = [lane for lane, code in enumerate(codes) if code > 0]
    central = centring.centre(program, done.scaling, product, *anchor[:3], mu, which)
    return Smooth(program, product, anchor, central, mu)


def smooth_of(data: list[Data], scs: dict[str, Any], mu: float, **overrides: Any) -> Smooth:
    P, q, A, b = (np.stack(part) for part in list(zip(*data, strict=True))[:4])
    return smooth(P, q, A, b, scs, mu, **overrides)


@every_case
def test_point_is_that_of_the_reference(name: str) -> None:
    (scs, quadratic), mu = CASES[name], 1e-3
    data = [draw(seed, scs, quadratic) for seed in range(2)]
    found = smooth_of(data, scs, mu)
    assert found.central.centred.tolist() == [True] * 2
    for lane, one in enumerate(data):
        x, y = reference(one, scs, mu)
        np.testing.assert_allclose(np.array(found.central.x)[lane], x, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.y()[lane], y, rtol=1e-9, atol=1e-9)


@settings(max_examples=PROFILE.max_examples // 4)
@given(
    # Few shapes: each new one costs the solver a compilation.
    name=st.sampled_from(list(CASES)),
    seed=st.integers(0, 2**32 - 1),
    magnitude=st.floats(-5.0, 3.0),
)
def test_every_drawn_program_is_centred(name: str, seed: int, magnitude: float) -> None:
    """There is a strictly feasible x and y, hence x_mu: its equations hold, by the formulas."""
    scs, quadratic = CASES[name]
    mu, data = 10.0**magnitude, draw(seed, scs, quadratic)
    found = smooth_of([data], scs, mu)
    assert found.central.centred.tolist() == [True]
    x, y = np.array(found.central.x)[0], found.y()[0]
    s = data.b - data.A @ x
    size = np.abs(data.A).max() * np.abs(y).sum() + np.abs(data.P).sum() * np.abs(x).max()
    np.testing.assert_allclose(data.P @ x + data.A.T @ y + data.q, 0.0, atol=1e-12 * (1 + size))
    rounding = 1e-13 * (1 + np.abs(data.A).max() * np.abs(x).sum())
    np.testing.assert_allclose(s[: scs.get("z", 0)], 0.0, atol=10 * rounding)
    for lo, hi, barrier, inside in blocks_of(scs):
        assert inside(y[lo:hi])
        # What rounding of s = b - A x is worth, in s and, through the barrier, in y.
        wanted = -mu * slope(barrier, y[lo:hi])
        np.testing.assert_allclose(s[lo:hi], wanted, rtol=1e-8, atol=max(rounding, 1e-10 * mu))


@pytest.mark.parametrize("name", ["linear", "quadratic", "second-order", "semidefinite"])
def test_point_minimizes_the_objective_and_the_barrier(name: str) -> None:
    """Of self-dual cones, whose own barrier is known; along the equalities."""
    scs, quadratic = CASES[name]
    data, mu = draw(3, scs, quadratic), 0.1
    x = np.array(smooth_of([data], scs, mu).central.x)[0]
    s, gradient = data.b - data.A @ x, data.P @ x + data.q
    for lo, hi, barrier, inside in blocks_of(scs):
        assert inside(s[lo:hi])
        gradient = gradient - mu * data.A[lo:hi].T @ slope(barrier, s[lo:hi])
    equalities = data.A[: scs.get("z", 0)]
    np.testing.assert_allclose(s[: len(equalities)], 0.0, atol=1e-11)
    left = gradient - equalities.T @ np.linalg.lstsq(equalities.T, gradient)[0]
    np.testing.assert_allclose(left, 0.0, atol=1e-10 * np.abs(data.q).max())


@every_case
def test_tangent_is_a_difference_of_the_reference(name: str) -> None:
    (scs, quadratic), mu = CASES[name], 0.03
    data, rng = draw(4, scs, quadratic), np.random.default_rng(5)
    turn = rng.standard_normal((N, N)) * quadratic
    by = (turn + turn.T, *(rng.standard_normal(v.shape) for v in data[1:4]))
    found = smooth_of([data], scs, mu)
    dx, dy, ds = (v[0] for v in found.tangent(*(v[None] for v in by)))
    x, y = reference(data, scs, mu)

    def rise(step: float) -> tuple[Array, Array]:
        near = [data.moved(by, h)._replace(x=x, y=y) for h in (step, -step)]
        ends = [reference(one, scs, mu, mu) for one in near]
        return tuple((a - b) / (2 * step) for a, b in zip(*ends, strict=True))  # type: ignore

    # Two steps: what is left of the error is of fourth order.
    coarse, fine = rise(2e-4 * mu**0.5), rise(1e-4 * mu**0.5)
    rx, ry = ((4 * b - a) / 3 for a, b in zip(coarse, fine, strict=True))
    np.testing.assert_allclose(dx, rx, rtol=1e-6, atol=1e-6 * np.abs(rx).max())
    np.testing.assert_allclose(dy, ry, rtol=1e-6, atol=1e-6 * np.abs(ry).max())
    rs = by[3] - by[2] @ x - data.A @ rx
    np.testing.assert_allclose(ds, rs, rtol=1e-6, atol=1e-6 * np.abs(rs).max())


BOXED = {"z": 1, "l": 2, "bl": [-1.0, -math.inf, 0.0], "bu": [2.0, 1.0, math.inf]}


def boxed(seed: int) -> tuple[Array, ...]:
    """A batch of three with P and A shared, and a box with t = 1."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((7, N))
    A[3] = 0.0
    b = np.abs(rng.standard_normal((3, 7))) + 0.5
    b[:, 0], b[:, 3], b[:, 4:] = 0.0, 1.0, 0.5
    return np.eye(N), rng.standard_normal((3, N)), A, b


@pytest.mark.parametrize(
    ("name", "shared"),
    [*((name, False) for name in CASES), ("quadratic", True), ("box", False), ("box", True)],
)
def test_adjoint_is_the_transpose_of_the_tangent(name: str, shared: bool) -> None:
    rng = np.random.default_rng(6)
    if name == "box":
        P, q, A, b = boxed(6)
        scs = BOXED
    else:
        scs, quadratic = CASES[name]
        data = draw(6, scs, quadratic)
        P, A = data.P, data.A
        q, b = np.stack([data.q] * 3), np.stack([data.b] * 3)
        q = q + 0.01 * rng.standard_normal(q.shape)
    if not shared:
        P, A = np.stack([P] * 3), np.stack([A] * 3)
    found = smooth(P, q, A, b, scs, 1e-2)
    assert found.central.centred.tolist() == [True] * 3
    turn = rng.standard_normal(P.shape) * np.any(P)
    dP = turn + np.swapaxes(turn, -1, -2)
    by = (dP, *(rng.standard_normal(v.shape) for v in (q, A, b)))
    moved = found.tangent(*by)
    bars = [rng.standard_normal(v.shape) for v in moved]
    g = found.adjoint(*bars)
    left = sum(np.sum(a * b) for a, b in zip(bars, moved, strict=True))
    right = sum(np.sum(np.array(a) * d) for a, d in zip(g, by, strict=True) if a is not None)
    assert left == pytest.approx(right, rel=1e-10)
    assert g.A.shape == A.shape


def test_point_does_not_depend_on_equilibration() -> None:
    scs, _ = CASES["second-order"]
    data = draw(7, scs, True)
    # Units that equilibration has something to do with.
    units = np.array([1e-3, 1.0, 50.0, 1e2, 1.0])
    data = Data(data.P * units[:, None] * units, data.q * units, data.A * units, data.b, *data[4:])
    ends = [smooth_of([data], scs, 0.1, normalize=on) for on in (True, False)]
    assert np.ptp(np.array(ends[0].anchor.scaling.d)) > 0  # there was something to scale
    first, second = (np.array(e.central.x)[0] * units for e in ends)
    np.testing.assert_allclose(first, second, rtol=1e-10)
    rng = np.random.default_rng(8)
    bars = [rng.standard_normal((1, k)) for k in (N, data.b.size, data.b.size)]
    for a, b in zip(*(e.adjoint(*bars) for e in ends), strict=True):
        largest = np.abs(np.array(b)).max()
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-8, atol=1e-9 * largest)


def test_box_counts_as_its_inequalities() -> None:
    P, q, A, b = boxed(9)
    box = smooth(P, q, A, b, BOXED, 0.05)
    # Rows r of the box: r + 1 >= 0, r >= 0 at the last; 2 - r, 1 - r >= 0.
    T = np.zeros((7, 7))
    T[:3, :3] = np.eye(3)
    T[3, 4] = T[4, 6] = 1.0
    T[5, 4] = T[6, 5] = -1.0
    offset = np.array([0, 0, 0, 1.0, 0, 2.0, 1.0])
    flat = smooth(P, q, T @ A, b @ T.T + offset, {"z": 1, "l": 6}, 0.05)
    assert box.central.centred.tolist() == flat.central.centred.tolist() == [True] * 3
    np.testing.assert_allclose(np.array(box.central.x), np.array(flat.central.x), rtol=1e-9)
    x_bar = np.random.default_rng(10).standard_normal(q.shape)
    ours, theirs = (f.adjoint(x_bar, np.zeros((3, 7)), np.zeros((3, 7))) for f in (box, flat))
    np.testing.assert_allclose(np.array(ours.q), np.array(theirs.q), rtol=1e-8, atol=1e-10)
    rows = [0, 1, 2, 4, 5, 6]  # all but t, whose motion moves the bounds
    chained = np.array(theirs.A).T @ T
    np.testing.assert_allclose(np.array(ours.A)[rows], chained.T[rows], rtol=1e-8, atol=1e-10)


def test_small_mu_gives_the_ordinary_derivative() -> None:
    """Where the active set is clear: both differ from the exact ones by a multiple of mu."""
    scs, _ = CASES["quadratic"]
    data = [draw(seed, scs, True) for seed in range(4)]
    rng = np.random.default_rng(11)
    bars = [rng.standard_normal((4, k)) for k in (N, data[0].b.size, data[0].b.size)]
    points, slopes = [], []
    for mu in (1e-4, 1e-6):
        found = smooth_of(data, scs, mu)
        points.append(np.abs(np.array(found.central.x - found.anchor.x)).max())
        exact = derivative.adjoint(
            found.program, found.product, found.anchor, *(wide(v) for v in bars)
        )
        gap = np.array(found.adjoint(*bars).q - exact.q)
        slopes.append(np.abs(gap).max() / np.abs(np.array(exact.q)).max())
    assert 50 < points[0] / points[1] < 200
    assert points[1] < 1e-4
    assert 50 < slopes[0] / slopes[1] < 200
    assert slopes[1] < 1e-3


def test_lane_without_a_centre_keeps_the_ordinary_derivative() -> None:
    """Beside a good lane: x_0 fixed by two inequalities, unbounded solutions, infeasible."""
    A = np.array([[1.0, 0], [-1.0, 0], [0, 1.0], [0, -1.0]])
    q = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    b = np.array([[1.0, 1, 1, 1], [1, -1, 1, 1], [1.0, 1, 1, 1], [-1.0, -1, 1, 1]])
    A = np.stack([A] * 4)
    A[2, 2:] = [[0, -1.0], [0, -1.0]]  # only x_1 >= -1, which costs nothing
    found = smooth(None, q, A, b, {"l": 4}, 0.1)
    assert found.central.centred.tolist() == [True, False, False, False]
    bars = [np.ones((4, k)) for k in (2, 4, 4)]
    bars = [np.where([[True], [True], [True], [False]], v, 0.0) for v in bars]
    ours = found.adjoint(*bars)
    plain = derivative.adjoint(found.program, found.product, found.anchor, *(wide(v) for v in bars))
    alone = smooth(None, q[:1], A[:1], b[:1], {"l": 4}, 0.1).adjoint(*(v[:1] for v in bars))
    assert np.abs(np.array(alone.q)).min() > 0
    for a, ordinary, single in zip(ours[1:], plain[1:], alone[1:], strict=True):
        np.testing.assert_array_equal(np.array(a)[1:], np.array(ordinary)[1:])
        np.testing.assert_allclose(np.array(a)[:1], np.array(single), rtol=1e-10)


def test_deadline_leaves_lanes_as_they_are() -> None:
    scs, quadratic = CASES["linear"]
    data = [draw(seed, scs, quadratic) for seed in range(2)]
    done = smooth_of(data, scs, 1.0)
    late = centring.centre(
        done.program, done.anchor.scaling, done.product, *done.anchor[:3], 1.0, [0, 1], 0.0
    )
    assert late.centred.tolist() == [False, False]


def test_training_at_vertices_of_a_linear_program() -> None:
    """Costs are predicted from features; the loss is the true cost of what is chosen with them."""
    rng = np.random.default_rng(12)
    lanes, n, k = 24, 6, 4
    features = rng.standard_normal((lanes, k))
    costs = features @ rng.standard_normal((k, n)) + 0.1 * rng.standard_normal((lanes, n))
    # Choose two of six: 0 <= x <= 1, sum x = 2.
    A = np.concatenate([np.ones((1, n)), -np.eye(n), np.eye(n)])
    b = np.tile(np.concatenate([[2.0], np.zeros(n), np.ones(n)]), (lanes, 1))
    zeros = np.zeros(b.shape)
    least = np.sum(np.sort(costs, axis=1)[:, :2]) / lanes

    def step(weights: Array) -> tuple[float, Array, Array]:
        """The loss, its smoothed and its exact gradient."""
        found = smooth(None, features @ weights, A, b, {"z": 1, "l": 2 * n}, 0.3)
        assert bool(mx.all(found.central.centred).item())
        loss = float(np.sum(costs * np.array(found.anchor.x))) / lanes
        exact = derivative.adjoint(
            found.program, found.product, found.anchor, wide(costs), wide(zeros), wide(zeros)
        )
        smoothed, exact = (np.array(g.q) for g in (found.adjoint(costs, zeros, zeros), exact))
        return loss, features.T @ smoothed / lanes, features.T @ exact / lanes

    weights = 0.5 * rng.standard_normal((k, n))
    first, signal, exact = step(weights)
    assert np.abs(exact).max() < 1e-9  # nothing to learn from
    assert np.abs(signal).max() > 1e-3
    for _ in range(12):
        weights = weights - 2.0 * step(weights)[1]
    last = step(weights)[0]
    assert first - least > 1.0
    assert last - least < 0.2 * (first - least)


def test_derivatives_under_vmap_are_those_of_a_loop() -> None:
    scs, quadratic = {"z": 1, "l": 2, "q": [3], "s": [3], "ep": 1, "p": [0.3]}, True
    data = [draw(seed, scs, quadratic) for seed in range(3)]
    found = smooth_of(data, scs, 0.1)
    rng = np.random.default_rng(13)
    bars = [wide(rng.standard_normal((4, 3, k))) for k in (N, *[found.program.m] * 2)]

    def pull(*bars: mx.array) -> Any:
        return tuple(found.adjoint(*bars))

    mapped = mx.vmap(pull)(*bars)
    for index in range(4):
        single = pull(*(v[index] for v in bars))
        for a, b in zip(mapped, single, strict=True):
            np.testing.assert_allclose(np.array(a[index]), np.array(b), rtol=1e-10, atol=1e-11)


def test_second_derivatives_are_refused() -> None:
    """A silent zero would be worse."""
    scs, quadratic = CASES["linear"]
    found = smooth_of([draw(0, scs, quadratic)], scs, 0.1)
    x_bar, rows = wide(np.ones((1, N))), wide(np.zeros((1, found.program.m)))

    def loss(x: mx.array) -> mx.array:
        moved = found._replace(central=found.central._replace(x=x))
        return mx.sum(moved.adjoint(x_bar, rows, rows).A)

    for again in (
        lambda: mx.grad(loss)(found.central.x),
        lambda: mx.jvp(loss, [found.central.x], [x_bar]),
    ):
        with pytest.raises(NotImplementedError, match="smoothing=0"):
            again()


# --- through mlxcone.solve and a layer: choose two of six at least cost -----------------------

CHOICE = {"z": 1, "l": 12}
CHOICE_A = np.concatenate([np.ones((1, 6)), -np.eye(6), np.eye(6)])
CHOICE_B = np.concatenate([[2.0], np.zeros(6), np.ones(6)])


def choice(q: mx.array, **settings: Any) -> mx.array:
    """x, of the dtype of q."""
    A, b = (mx.array(v, dtype=q.dtype) for v in (CHOICE_A, CHOICE_B))
    return mlxcone.solve(None, q, A, b, CHOICE, **{"smoothing": 0.3, **settings}).x


def choice_loss(q: mx.array, weights: mx.array) -> mx.array:
    return mx.sum(choice(q) * weights)


@pytest.fixture(scope="module")
def costs() -> tuple[mx.array, mx.array, mx.array]:
    """Costs, cotangents and the gradient."""
    rng = np.random.default_rng(14)
    with mx.stream(mx.cpu):
        q, weights = (wide(rng.standard_normal((4, 6))) for _ in range(2))
        return q, weights, mx.grad(choice_loss)(q, weights)


def test_the_answer_stays_exact(costs: tuple[mx.array, ...]) -> None:
    exact = choice(costs[0], smoothing=0.0)
    np.testing.assert_array_equal(np.array(choice(costs[0])), np.array(exact))
    plain = mx.grad(lambda q: mx.sum(choice(q, smoothing=0.0) * costs[1]))(costs[0])
    assert float(mx.max(mx.abs(plain)).item()) < 1e-9
    assert float(mx.max(mx.abs(costs[2])).item()) > 1e-3


@pytest.mark.parametrize(
    "transform",
    [
        lambda q, w: mx.vmap(mx.grad(choice_loss))(q, w),
        lambda q, w: mx.grad(lambda q: mx.sum(mx.vmap(choice_loss)(q, w)))(q),
        lambda q, w: mx.grad(mx.checkpoint(choice_loss))(q, w),
        lambda q, w: mx.stack([mx.grad(choice_loss)(a, b) for a, b in zip(q, w, strict=True)]),
    ],
    ids=["vmap of grad", "grad of vmap", "checkpoint", "loop"],
)
def test_transforms_agree(transform: Any, costs: tuple[mx.array, ...]) -> None:
    q, weights, gradient = costs
    found = np.array(transform(q, weights))
    np.testing.assert_allclose(found, np.array(gradient), rtol=1e-9, atol=1e-10)


def test_forward_mode_agrees(costs: tuple[mx.array, ...]) -> None:
    q, weights, gradient = costs
    direction = wide(np.random.default_rng(15).standard_normal(q.shape))
    moved = mx.jvp(choice, [q], [direction])[1][0]
    along = float(mx.sum(gradient * direction).item())
    assert float(mx.sum(moved * weights).item()) == pytest.approx(along, rel=1e-9)


def test_float32(costs: tuple[mx.array, ...]) -> None:
    q, weights, gradient = costs
    found = mx.grad(choice_loss)(q.astype(mx.float32), weights.astype(mx.float32))
    np.testing.assert_allclose(np.array(found), np.array(gradient), rtol=1e-4, atol=1e-5)


def test_of_a_layer(costs: tuple[mx.array, ...]) -> None:
    q, weights, gradient = costs
    x, c = cp.Variable(6), cp.Parameter(6)
    problem = cp.Problem(cp.Minimize(c @ x), [x >= 0, x <= 1, cp.sum(x) == 2])
    layer = CvxpyLayer(problem, [c], [x], solver_args={"smoothing": 0.3})
    found = mx.grad(lambda q: mx.sum(layer(q)[0] * weights))(q)
    np.testing.assert_allclose(np.array(found), np.array(gradient), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "again",
    [
        lambda q, w: mx.grad(lambda q: mx.sum(mx.square(mx.grad(choice_loss)(q, w))))(q),
        lambda q, w: mx.jvp(lambda q: mx.grad(choice_loss)(q, w), [q], [q])[1][0],
        lambda q, w: mx.grad(lambda q: mx.sum(mx.jvp(choice, [q], [w])[1][0]))(q),
    ],
    ids=["grad of grad", "jvp of grad", "grad of jvp"],
)
def test_second_derivatives_of_a_solve_are_refused(again: Any, costs: tuple[mx.array, ...]) -> None:
    with pytest.raises(NotImplementedError, match="smoothing=0"):
        again(*costs[:2])


def test_fixed_length_rules_it_out() -> None:
    with pytest.raises(ValueError, match="smoothing"):
        Settings(smoothing=0.3, fixed_iters=10)
