"""Sparse programs that are not factored: answers by the verifier, products by SciPy."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import scipy.sparse as sp

import mlxcone
from mlxcone import large
from mlxcone.backend.linalg import on_cpu
from mlxcone.kkt.conjugate import Blocks, Conjugate
from mlxcone.program.sparse import Sparse
from mlxcone.testing import manufacture, verify_solution

EPS = 1e-5


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "_DENSE", 0)


def wide(value: Any) -> mx.array:
    return mx.array(np.asarray(value, dtype=np.float64), dtype=mx.float64)


def uneven(rng: np.random.Generator, m: int, n: int) -> sp.csr_matrix:
    """Rows of many lengths, one of them empty and one full."""
    matrix = rng.standard_normal((m, n)) * (rng.random((m, n)) < rng.random((m, 1)) ** 3)
    matrix[0], matrix[m // 2] = 0.0, rng.standard_normal(n)
    return sp.csr_matrix(matrix)


@on_cpu
def test_products_are_those_of_scipy(rng: np.random.Generator) -> None:
    for m, n in ((1, 1), (7, 3), (40, 25)):
        matrix = uneven(rng, m, n)
        A, dense = Sparse.of(matrix), matrix.toarray()
        x, y = rng.standard_normal((3, n)), rng.standard_normal((3, m))
        left, right = rng.uniform(0.5, 2.0, m), rng.uniform(0.5, 2.0, n)
        pairs = [
            (A.times(wide(x)), x @ dense.T),
            (A.transpose_times(wide(y)), y @ dense),
            (A.rows.largest(wide(right)), np.abs(dense * right).max(axis=1)),
            (A.columns.largest(wide(left)), np.abs(dense.T * left).max(axis=1)),
            (A.square_columns(wide(np.abs(y))), np.abs(y) @ dense**2),
        ]
        scaled = A.scaled(wide(left), wide(right))
        pairs.append((scaled.times(wide(x)), x @ (left[:, None] * dense * right).T))
        pairs.append((scaled.transpose_times(wide(y)), y @ (left[:, None] * dense * right)))
        for found, expected in pairs:
            np.testing.assert_allclose(np.array(found), expected, rtol=1e-12, atol=1e-13)
    square = uneven(rng, 9, 9)
    np.testing.assert_allclose(np.array(Sparse.of(square).diagonal()), square.diagonal())


def some_matrices(rng: np.random.Generator, kind: str) -> tuple[Any, sp.csr_matrix]:
    """P and A (34, 16), of whose variables none, one, a few or all but one are eliminated."""
    if kind == "none":
        return sp.csr_matrix(np.ones((16, 16)) + np.eye(16)), uneven(rng, 34, 16)
    P = sp.csr_matrix(np.diag(rng.uniform(0.0, 2.0, 16)))
    if kind == "all":
        return P, sp.csr_matrix(np.vstack([np.eye(16), np.eye(16), np.zeros((2, 16))]))
    if kind == "one":
        return P, uneven(rng, 34, 16)
    # r = F x - b in the first rows, |x| <= t in the others.
    F, one, zero = uneven(rng, 10, 3), np.eye(10), np.zeros((12, 10))
    bounds = np.vstack([np.eye(3), -np.eye(3)] * 2)
    slack = -np.vstack([np.eye(3), np.eye(3)] * 2)
    top = [F.toarray(), np.zeros((10, 3)), -one]
    A = np.block([top, [bounds, slack, zero], [np.zeros((12, 3)), np.zeros((12, 3)), zero]])
    return P, sp.csr_matrix(A)


@pytest.mark.parametrize(
    ("kind", "count"), [("none", 0), ("one", 1), ("few", 13), ("all", 15)], ids=lambda k: str(k)
)
@on_cpu
def test_conjugate_gradients_solve_each_lane_by_itself(
    rng: np.random.Generator, kind: str, count: int
) -> None:
    P, A = some_matrices(rng, kind)
    blocks = Blocks.of(P, A)
    assert count == (0 if blocks.gone is None else blocks.gone.places.shape[0])
    weights, v = rng.uniform(0.1, 3.0, (3, 34)), rng.standard_normal((3, 16))
    v[1] *= 1e6
    solver = Conjugate.of(blocks, wide(weights), 1e-2, 1e-10, 100)
    found = np.array(solver.times(wide(v)))
    for lane in range(3):
        K = P.toarray() + 1e-2 * np.eye(16) + A.T @ (weights[lane][:, None] * A.toarray())
        np.testing.assert_allclose(found[lane], np.linalg.solve(K, v[lane]), rtol=1e-7, atol=1e-12)
        alone = solver.take(mx.array([lane])).times(wide(v[lane][None]))
        assert np.array(alone)[0].tobytes() == found[lane].tobytes()
    d, e = rng.uniform(0.5, 2.0, 16), rng.uniform(0.5, 2.0, 34)
    scaled = Conjugate.of(blocks.scaled(wide(d), wide(e)), wide(weights[:1]), 1e-2, 1e-10, 100)
    P, A = d[:, None] * P.toarray() * d, e[:, None] * A.toarray() * d
    K = P + 1e-2 * np.eye(16) + A.T @ (weights[0][:, None] * A)
    np.testing.assert_allclose(
        np.array(scaled.times(wide(v)))[2], np.linalg.solve(K, v[2]), rtol=1e-7, atol=1e-12
    )


CONES: list[dict[str, Any]] = [
    {"z": 3, "l": 8},
    {"l": 4, "q": [4, 3]},
    {"l": 3, "s": [3]},
    {"z": 1, "l": 3, "ep": 1},
]


@pytest.mark.parametrize("cones", CONES, ids=lambda cones: "-".join(cones))
@pytest.mark.parametrize("quadratic", [True, False], ids=["P", "no P"])
def test_answers_are_right(cones: dict[str, Any], quadratic: bool) -> None:
    rng = np.random.default_rng(0)
    made = manufacture.feasible(rng, 8, cones, quadratic_rank=8 if quadratic else 0)
    P = sp.csr_matrix(made.P) if quadratic else None
    A = sp.csr_matrix(made.A)
    found = mlxcone.solve(P, made.q, A, made.b, cones, eps=EPS, max_iters=20000)
    assert found.info.status.item() == 1
    x, y, s = (np.array(v) for v in found[:3])
    worst = verify_solution(made.P if quadratic else None, *made.data[1:], x, y, s).worst
    assert worst <= 10.0 * EPS
    again = mlxcone.solve(P, made.q, A, made.b, cones, eps=EPS, warm_start=found)
    assert int(again.info.iterations.item()) <= 25


def test_each_lane_has_its_verdict() -> None:
    """x >= 1 and x <= b: solved, infeasible, and spoiled; then unbounded."""
    A = sp.csr_matrix(np.array([[-1.0], [1.0]]))
    b = np.array([[-1.0, 2.0], [-1.0, 0.0], [-1.0, np.nan]])
    found = mlxcone.solve(None, np.array([1.0]), A, b, {"l": 2}, eps=EPS)
    assert found.info.status.tolist() == [1, -2, -4]
    assert np.array(found.x)[0, 0] == pytest.approx(1.0, abs=1e-4)
    y = np.array(found.y)[1]
    assert y @ b[1] == pytest.approx(-1.0) and np.abs(A.T @ y).max() <= 1e-6 and (y >= 0).all()
    assert np.isnan(np.array(found.x)[2]).all()
    free = mlxcone.solve(None, np.array([-1.0]), A[:1], np.array([-1.0]), {"l": 1}, eps=EPS)
    assert free.info.status.item() == -1
    assert np.array(free.x)[0] == pytest.approx(1.0)
    with pytest.raises(mlxcone.SolverError, match="INFEASIBLE"):
        mlxcone.solve(None, np.array([1.0]), A, b[1], {"l": 2}, eps=EPS, on_failure="raise")


def test_derivatives_are_refused() -> None:
    A = sp.csr_matrix(np.array([[-1.0], [1.0]]))
    b = mx.array([-1.0, 2.0])

    def along(q: mx.array) -> mx.array:
        return mx.sum(mlxcone.solve(None, q, A, b, {"l": 2}, eps=EPS).x)

    with pytest.raises(NotImplementedError, match="no derivative"):
        mx.grad(along)(mx.array([1.0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.zeros(3)}, r"q: expected shape \(2,\) or \(B, 2\)"),
        ({"b": np.zeros((2, 4))}, r"b: expected shape \(3,\) or \(B, 3\)"),
        ({"P": sp.eye(3)}, r"P: expected shape \(2, 2\)"),
        ({"P": sp.csr_matrix([[1.0, 1.0], [0.0, 1.0]])}, "P: expected a symmetric matrix"),
        ({"A": sp.csr_matrix(np.full((3, 2), np.nan))}, "A: expected finite entries"),
        ({"cones": {"l": 4}}, "A: expected 4 rows"),
        ({"q": np.zeros((2, 2)), "b": np.zeros((3, 3))}, "inconsistent batch sizes"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    data: dict[str, Any] = {
        "P": None,
        "q": np.zeros(2),
        "A": sp.csr_matrix(np.ones((3, 2))),
        "b": np.ones(3),
        "cones": {"l": 3},
    }
    with pytest.raises(ValueError, match=message):
        mlxcone.solve(**{**data, **change})
