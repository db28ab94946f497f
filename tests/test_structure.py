"""What zeros of shared matrices allow: found as they are, and the same answers with as without."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxcone
from mlxcone import solver
from mlxcone.cones.description import Cones
from mlxcone.cones.product import Product
from mlxcone.kkt import low_rank
from mlxcone.kkt import reduced as kkt
from mlxcone.kkt.splitting_factor import Explicit
from mlxcone.methods.admm import Fused, Operator, State, advance, row_weights
from mlxcone.program import equilibrate, structure
from mlxcone.program.operators import Rectangular, Sparsity
from mlxcone.program.pairs import Pairs
from mlxcone.program.problem import Program
from mlxcone.program.structure import Structure
from mlxcone.testing import verify_solution

pytestmark = pytest.mark.usefixtures("on_cpu")

N = 12


def wide(value: Any) -> mx.array:
    return mx.array(np.asarray(value, dtype=np.float64), dtype=mx.float64)


def rows(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, axis=0)


EYE = np.eye(N)
DENSE = np.random.default_rng(0).standard_normal((3, N))


@pytest.mark.parametrize(
    ("A", "places"),
    [
        (EYE, ((0, 0, N),)),
        (rows(DENSE, -EYE), ((3, 0, N),)),
        (rows(EYE, DENSE, 2.0 * EYE), ((0, 0, N), (N + 3, 0, N))),
        (rows(EYE, EYE), ((0, 0, N), (N, 0, N))),
        (EYE[2:11], ((0, 2, 9),)),
        (rows(DENSE, EYE[2:11], DENSE), ((3, 2, 9),)),
        (rows(EYE[:3], DENSE), ()),
        (EYE[::-1].copy(), ()),
        (DENSE, ()),
        (np.zeros((N, N)), ()),
        (rows(EYE[:8], np.zeros((1, N)), EYE[8:]), ((0, 0, 8),)),
    ],
)
def test_rows_with_one_entry(A: np.ndarray, places: Any) -> None:
    assert structure.find(None, wide(A)).sparsity.places == places
    # The products are those of the matrix.
    operator, plain = Rectangular.of(wide(A), Sparsity(places)), Rectangular.of(wide(A))
    rng = np.random.default_rng(1)
    x, y = wide(rng.standard_normal((4, N))), wide(rng.standard_normal((4, A.shape[0])))
    np.testing.assert_allclose(np.array(operator.times(x)), np.array(plain.times(x)), atol=1e-14)
    back, expected = (np.array(one.transpose_times(y)) for one in (operator, plain))
    np.testing.assert_allclose(back, expected, atol=1e-14)
    assert operator.others == A.shape[0] - sum(k for _, _, k in places)


def scattered(m: int, n: int, entries: int) -> np.ndarray:
    """One entry in some of the rows, in no order, and none in the others."""
    rng, A = np.random.default_rng(3), np.zeros((m, n))
    A[rng.permutation(m)[:entries], rng.permutation(entries) % n] = rng.uniform(1.0, 2.0, entries)
    return A


@pytest.mark.parametrize(
    ("A", "single"),
    [
        (scattered(40, 9, 9), (True, True)),
        (scattered(40, 9, 7), (True, True)),
        (scattered(40, 9, 30), (True, False)),
        (scattered(40, 9, 30).T.copy(), (False, True)),
        (np.zeros((40, 9)), (False, False)),
        (scattered(40, 5, 5), (False, True)),  # too few columns to be worth it
        (scattered(40, 9, 9) + np.eye(40, 9)[::-1], (False, False)),
    ],
)
def test_one_entry_at_most_is_found_by_gathering(A: np.ndarray, single: tuple[bool, bool]) -> None:
    found = structure.find(None, wide(A))
    assert tuple(known is not None for known in found.sparsity.single) == single
    # To the last bit: a sum of one product has no rounding.
    operator, plain = Rectangular.of(wide(A), found.sparsity), Rectangular.of(wide(A))
    assert tuple(part is not None for part in operator.single) == single
    rng = np.random.default_rng(1)
    x, y = (wide(rng.standard_normal((4, size))) for size in A.shape[::-1])
    if single[0]:
        np.testing.assert_array_equal(operator.times(x), plain.times(x))
    if single[1]:
        np.testing.assert_array_equal(operator.transpose_times(y), plain.transpose_times(y))
    # What has to have every derivative does without.
    assert found.of_derivatives.single == found.of_factors.single == (None, None)


@pytest.mark.parametrize("quadratic", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_equilibration_is_the_same_with_blocks(batched: bool, quadratic: bool) -> None:
    cones, rng = Product(Cones(zero=3, nonneg=N, soc=(9,))), np.random.default_rng(4)
    A = np.concatenate([DENSE, -1e3 * EYE, 1e-2 * rng.standard_normal((9, N))])
    A *= 10.0 ** rng.uniform(-2.0, 2.0, N)
    P = 1e2 * np.diag(rng.uniform(0.1, 9.0, N))
    matrix = A * rng.uniform(0.5, 2.0, (4, 1, 1)) if batched else A
    made = [
        equilibrate.setup(
            Program(
                wide(P) if quadratic else None,
                wide(rng.standard_normal((4, N))),
                Rectangular.of(wide(matrix), Sparsity(places)),
                wide(np.ones((4, A.shape[0]))),
            ),
            cones,
            True,
        )
        for places in ((), ((3, 0, N),))
    ]
    assert np.ptp(np.array(made[0].d)) > 0  # something was done
    np.testing.assert_array_equal(made[0].d, made[1].d)
    np.testing.assert_array_equal(made[0].e, made[1].e)


def test_diagonals() -> None:
    A = wide(EYE)
    assert structure.find(wide(EYE), A).diagonal
    assert structure.find(wide(0.0 * EYE), A).diagonal
    assert not structure.find(wide(DENSE.T @ DENSE), A).diagonal
    assert not structure.find(None, A).diagonal


def test_a_batch_has_no_structure() -> None:
    """What the lanes beside it are must not change how a lane is solved."""
    A = mx.broadcast_to(wide(EYE), (3, N, N))
    assert structure.find(wide(EYE), A) == Structure()
    assert not structure.find(mx.broadcast_to(wide(EYE), (3, N, N)), wide(EYE)).diagonal


def test_no_values_no_structure() -> None:
    seen = []

    def look(A: mx.array) -> mx.array:
        seen.append(structure.find(None, A))
        return A

    mx.vmap(look)(wide(np.stack([EYE, EYE])))
    assert seen == [Structure()]


def instance(P: np.ndarray | None, A: np.ndarray, zero: int, seed: int = 2) -> Any:
    """Data with a known solution: q and b for a complementary pair."""
    rng = np.random.default_rng(seed)
    m = A.shape[0]
    x, z = rng.standard_normal((4, N)), rng.standard_normal((4, m))
    y = np.where(np.arange(m) < zero, z, np.maximum(z, 0.0))
    s = np.where(np.arange(m) < zero, 0.0, np.maximum(-z, 0.0))
    Px = 0.0 if P is None else x @ P
    return wide(-(Px + y @ A)), wide(x @ A.T + s), (x, y, s)


DIAGONAL = np.diag(np.linspace(0.5, 3.0, N))
FULL = DENSE.T @ DENSE + np.eye(N)


@pytest.mark.parametrize("P", [DIAGONAL, FULL, None], ids=["diagonal", "full", "none"])
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_the_same_answers(P: np.ndarray | None, zero: int, monkeypatch: Any) -> None:
    A = rows(DENSE, -EYE)
    q, b, _ = instance(P, A, zero)
    cones = {"z": zero, "l": A.shape[0] - zero}
    arguments = (None if P is None else wide(P), q, wide(A), b, cones)
    found = mlxcone.solve(*arguments)
    monkeypatch.setattr(solver.structure, "find", lambda *_: Structure())
    expected = mlxcone.solve(*arguments)
    assert found.info.status.tolist() == expected.info.status.tolist() == [1] * 4
    for k in range(4):
        x, y, s = (np.array(v[k]) for v in found[:3])
        assert verify_solution(P, np.array(q[k]), A, np.array(b[k]), cones, x, y, s).worst < 1e-8
    if P is not None:
        np.testing.assert_allclose(np.array(found.x), np.array(expected.x), atol=1e-9)


@pytest.mark.parametrize("cones", [{"z": 1, "l": 14}, {"l": 12, "q": [3]}, {"z": 3, "q": [12]}])
@pytest.mark.parametrize("through", ["solve", "Solver"])
def test_a_pattern_gives_a_batch_structure(cones: Any, through: str, monkeypatch: Any) -> None:
    rng = np.random.default_rng(9)
    mask = rows(np.ones((3, N), dtype=bool), EYE > 0)
    mask = np.roll(mask, -3, axis=0) if cones == {"l": 12, "q": [3]} else mask
    A = np.where(mask, rng.standard_normal((4, *mask.shape)), 0.0)
    zero = cones.get("z", 0)
    x, y, s = (rng.standard_normal((4, k)) for k in (N, N + 3, N + 3))
    s[:, :zero] = 0.0
    at = zero
    for kind in ("l", "q"):
        for size in [cones.get("l", 0)] if kind == "l" else cones.get("q", []):
            part = slice(at, at + size)
            if kind == "l":
                y[:, part], s[:, part] = np.maximum(y[:, part], 0), np.maximum(-y[:, part], 0)
            else:  # on the boundary, opposite each other
                length = np.linalg.norm(y[:, part][:, 1:], axis=1)
                y[:, at], s[:, at] = length, length
                s[:, part][:, 1:] = -y[:, part][:, 1:]
            at += size
    P = np.eye(N) + 0.1
    q = -(x @ P + np.einsum("kij,ki->kj", A, y))
    b = np.einsum("kij,kj->ki", A, x) + s
    data = [wide(v) for v in (P, q, A, b)]

    def solve(pattern: Any) -> mlxcone.Solution:
        if through == "Solver":
            return mlxcone.Solver(data[0], data[2], cones, pattern=pattern).solve(data[1], data[3])
        return mlxcone.solve(*data, cones, pattern=pattern)

    found, seen = solve(None), []
    real = structure.find
    monkeypatch.setattr(solver.structure, "find", lambda *v: seen.append(real(*v)) or seen[-1])
    again = solve(mask)
    assert seen[0].sparsity.places
    for u, v in zip(found[:3], again[:3], strict=True):
        np.testing.assert_allclose(np.array(u), np.array(v), atol=1e-8)
    np.testing.assert_allclose(np.array(again.x), x, atol=1e-7)


@pytest.mark.parametrize("pattern", [np.ones((2, 2)), np.ones((3, 2), dtype=bool), "A"])
def test_a_pattern_that_does_not_fit(pattern: Any) -> None:
    with pytest.raises(ValueError, match=r"pattern: expected a boolean array of shape \(2, 2\)"):
        mlxcone.solve(None, wide([1, 1]), wide(-np.eye(2)), wide([0, 0]), {"l": 2}, pattern=pattern)


def test_a_batch_that_breaks_its_pattern_is_refused() -> None:
    A = np.stack([EYE, EYE])
    arguments = (wide(EYE), wide(np.ones((2, N))), wide(-A), wide(np.ones((2, N))), {"l": N})
    assert mlxcone.solve(*arguments, pattern=EYE > 0).info.status.tolist() == [1, 1]
    A[1, 3, 5] = 1e-3
    with pytest.raises(ValueError, match="pattern: A is not zero where it is False"):
        mlxcone.solve(*arguments[:2], wide(-A), *arguments[3:], pattern=EYE > 0)
    A[1, 3, 5] = np.nan
    found = mlxcone.solve(*arguments[:2], wide(-A), *arguments[3:], pattern=EYE > 0)
    assert found.info.status.tolist() == [1, -4]


def test_derivatives_see_entries_that_are_zero() -> None:
    """Zeros of the data are variables: first and second derivatives move them."""
    A = rows(DENSE[:1], -EYE)
    q, b, _ = instance(DIAGONAL, A, 1)
    P, A, q, b = wide(DIAGONAL), wide(A), q[0], b[0]
    rng = np.random.default_rng(7)
    dA, dP = wide(rng.standard_normal(A.shape)), rng.standard_normal((N, N))
    dP = wide(dP + dP.T)
    cones = {"z": 1, "l": N}
    with mx.stream(mx.cpu):

        def along(t: mx.array) -> mx.array:
            return mx.sum(mx.power(mlxcone.solve(P + t * dP, q, A + t * dA, b, cones).x, 3))

        h, zero = 1e-6, wide(0.0)
        # Beside zero there is no structure to find, at zero there is.
        ends = [along(wide(t)).item() for t in (h, -h)]
        assert mx.grad(along)(zero).item() == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5)
        bends = [mx.grad(along)(wide(t)).item() for t in (h, -h)]
        second = mx.grad(mx.grad(along))(zero).item()
        assert second == pytest.approx((bends[0] - bends[1]) / (2 * h), rel=1e-4)


def sparse_rows(m: int, n: int, seed: int = 5) -> np.ndarray:
    """Two entries a row, and a few rows more with ten, one without any."""
    rng = np.random.default_rng(seed)
    A = np.zeros((m, n))
    for i in range(m):
        count = 10 if i % 25 == 3 else 2
        A[i, rng.choice(n, count, replace=False)] = rng.uniform(0.5, 2.0, count)
    A[m // 2] = 0.0
    return A


@pytest.mark.parametrize("some", [90, 40])
def test_gram_matrices_from_pairs_of_entries(some: int) -> None:
    A = sparse_rows(90, 60)
    pairs = Pairs.of(A != 0)
    assert pairs is not None
    weights = np.random.default_rng(6).uniform(0.0, 3.0, (3, some))
    expected = [A[:some].T @ (w[:, None] * A[:some]) for w in weights]
    np.testing.assert_allclose(pairs.gram(wide(A), wide(weights)), expected, atol=1e-13)
    assert pairs == Pairs.of(A != 0) != Pairs.of(A[::-1] != 0)
    assert hash(pairs) == hash(Pairs.of(A != 0))


def test_pairs_are_for_sparse_matrices() -> None:
    assert Pairs.of(np.ones((90, 60), dtype=bool)) is None
    assert Pairs.of(np.eye(20, dtype=bool)) is None  # nothing to gain
    pairs = Pairs.of(sparse_rows(90, 60) != 0)
    assert pairs is not None
    assert pairs.pay(90)
    assert not pairs.pay(5)
    assert structure.find(None, wide(sparse_rows(90, 60))).sparsity.pairs == pairs


@pytest.mark.parametrize("newton", [0, 8], ids=["interior points", "newton"])
def test_the_same_answers_from_pairs(newton: int, monkeypatch: Any) -> None:
    n, m, zero = 60, 90, 20
    A, rng = sparse_rows(m, n), np.random.default_rng(7)
    x, z = rng.standard_normal((2, n)), rng.standard_normal((2, m))
    free = np.arange(m) < zero
    y, s = np.where(free, z, np.maximum(z, 0.0)), np.where(free, 0.0, np.maximum(-z, 0.0))
    P, cones = np.eye(n), {"z": zero, "l": m - zero}
    data = wide(P), wide(-(x + y @ A)), wide(A), wide(x @ A.T + s), cones
    used, real = [], Pairs.gram
    monkeypatch.setattr(Pairs, "gram", lambda *a: used.append(1) or real(*a))
    # Without a handover nothing is left to Newton's method.
    how: dict[str, Any] = {"newton_iters": newton, "max_iters": 25}
    found = mlxcone.solve(*data, **how)
    assert used
    assert found.info.status.tolist() == [1, 1]
    np.testing.assert_allclose(found.x, x, atol=1e-7)
    for k in range(2):
        point = (np.array(v[k]) for v in found[:3])
        q, b = np.array(data[1][k]), np.array(data[3][k])
        assert verify_solution(P, q, A, b, cones, *point).worst < 1e-8


@pytest.mark.parametrize("dense", [0, 1, 3])
@pytest.mark.parametrize("lanes", [1, 5])
def test_low_rank_inverses(dense: int, lanes: int) -> None:
    A = rows(DENSE[:dense], EYE)
    places = structure.find(None, wide(A)).sparsity.places
    rng = np.random.default_rng(3)
    weights = wide(rng.uniform(0.0, 2.0, (lanes, A.shape[0])))
    vector = wide(rng.standard_normal((5, N)))
    operator = Rectangular.of(wide(A), Sparsity(places))
    b = wide(np.zeros((5, A.shape[0])))
    program = Program(wide(DIAGONAL), vector, operator, b, wide(np.diag(DIAGONAL)))
    assert low_rank.fits(program)
    found = low_rank.factor(program, weights, 1e-3)
    H = DIAGONAL + 1e-3 * np.eye(N) + A.T @ (np.array(weights)[..., None] * A)
    expected = np.linalg.solve(H, np.array(vector)[..., None])[..., 0]
    np.testing.assert_allclose(np.array(found.times(vector)), expected, rtol=1e-10, atol=1e-12)
    assert np.array(found.ok).all()


@pytest.mark.parametrize("dense", [0, 2])
@pytest.mark.parametrize(("count", "dim"), [(1, N), (2, 4)])
def test_low_rank_inverses_with_second_order_cones(dense: int, count: int, dim: int) -> None:
    A = rows(DENSE[:dense], EYE, EYE[: count * dim])
    places = structure.find(None, wide(A)).sparsity.places
    cones = Product(Cones(zero=dense, nonneg=N, soc=(dim,) * count))
    rng = np.random.default_rng(3)
    z, vector = (wide(rng.standard_normal((5, k))) for k in (cones.rows, N))
    nothing = wide(np.zeros((5, A.shape[0])))
    program = Program(None, vector, Rectangular.of(wide(A), Sparsity(places)), nothing)
    atoms = cones.derivative(z)
    assert isinstance(kkt.factor(program, cones, atoms), low_rank.LowRank)

    def penalty(eigenvalue: mx.array) -> mx.array:
        return eigenvalue / (1.001 - eigenvalue)

    pair = cones.corrections(atoms, penalty, program.A.matrix[None])
    weights = cones.weights(atoms, penalty, cones.rows)
    found = low_rank.factor(program, weights, 1e-3, *pair)
    W = np.array(cones.spectral(atoms, penalty, wide(np.eye(cones.rows)[None])))
    H = 1e-3 * np.eye(N) + A.T @ W @ A
    image = np.array(found.times(vector))
    np.testing.assert_allclose((H @ image[..., None])[..., 0], vector, rtol=0, atol=1e-7)


def test_low_rank_inverses_say_where_there_is_none() -> None:
    A = rows(DENSE[:1], EYE)
    places = structure.find(None, wide(A)).sparsity.places
    weights = np.ones((3, N + 1))
    weights[1] = np.nan
    q, b = wide(np.zeros((3, N))), wide(np.zeros((3, N + 1)))
    operator = Rectangular.of(wide(A), Sparsity(places))
    program = Program(wide(DIAGONAL), q, operator, b, wide(np.diag(DIAGONAL)))
    found = low_rank.factor(program, wide(weights), 1e-3).or_zero()
    assert found.ok.tolist() == [True, False, True]
    image = np.array(found.times(wide(np.ones((3, N)))))
    assert (image[1] == 0).all() and (image[[0, 2]] != 0).all()


@pytest.mark.parametrize("zero", [0, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_fused_steps_are_steps_from_one_x(zero: int, shared: bool) -> None:
    n, m, lanes = 5, 7, 3
    rng = np.random.default_rng(4)
    shape = () if shared else (lanes,)
    root, A = rng.standard_normal((*shape, n, n)), rng.standard_normal((*shape, m, n))
    P = root @ np.swapaxes(root, -1, -2)
    q, b = (wide(rng.standard_normal((lanes, k))) for k in (n, m))
    program = Program(wide(P), q, Rectangular.of(wide(A)), b)
    cones = Product(Cones(zero=zero, nonneg=m - zero))
    assert Fused.fits(program, cones)
    weights = row_weights(mx.full((lanes, 1), 0.7, dtype=mx.float64), cones)
    R = np.array(weights[0])
    inverse = wide(np.linalg.inv(P + 1e-3 * np.eye(n) + np.swapaxes(A, -1, -2) @ (R[:, None] * A)))
    fused = Fused.of(program, cones, inverse, weights, 1e-3, 1.6)
    plain = Operator(program, Explicit(inverse), weights, 1.6)
    start = State(*(wide(rng.standard_normal((lanes, k))) for k in (n, m)))
    found, _ = advance(cones, plain._replace(fused=fused), start, None, 6, 6)
    w, after = start.w, start
    for _ in range(7):  # the last for x alone
        before, (after, _) = w, advance(cones, plain, State(start.x, w), None, 1, 1)
        w = after.w
    x = start.x + (after.x - start.x) / 1.6
    for u, v in zip(found, (x, before), strict=True):
        np.testing.assert_allclose(np.array(u), np.array(v), rtol=1e-10, atol=1e-10)
