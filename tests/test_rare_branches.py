"""Branches that ordinary problems do not take, forced by settings or odd input."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import scipy.sparse as sp

import mlxcone
from mlxcone import Cones, Status, large
from mlxcone.testing import manufacture, verifier

SIZES = {"z": 2, "l": 6, "q": [4], "s": [3]}


def solved(instance: manufacture.Instance, **settings: Any) -> mlxcone.Solution:
    data = instance.P, instance.q, instance.A, instance.b
    return mlxcone.solve(*data, instance.cones, **settings)


def test_multipliers_finish_what_nothing_else_may() -> None:
    """Ten iterations, no Newton steps and no interior points before them."""
    instance = manufacture.feasible(np.random.default_rng(0), 6, SIZES)
    found = solved(instance, max_iters=10, newton_iters=0, interior_iters=0)
    assert found.info.status.item() in (Status.SOLVED, Status.SOLVED_INACCURATE)
    instance.check(*(np.array(v) for v in found[:3]), tolerance=1e-6)
    none = solved(instance, max_iters=10, newton_iters=0, interior_iters=0, multiplier_iters=0)
    assert none.info.status.item() == Status.INDETERMINATE


def test_few_interior_steps_are_not_enough() -> None:
    instance = manufacture.feasible(np.random.default_rng(0), 6, {"l": 12}, quadratic_rank=0)
    settings = {"max_iters": 5, "newton_iters": 0, "multiplier_iters": 0}
    assert solved(instance, interior_iters=1, **settings).info.status.item() == -3
    found = solved(instance, interior_iters=80, **settings)
    instance.check(*(np.array(v) for v in found[:3]), tolerance=1e-7)


@pytest.mark.parametrize(
    ("cones", "message"),
    [
        ({"power": [None]}, "'power' must lie in"),
        ({"power": ["half"]}, "'power' must lie in"),
        ({"power_nd": [1.0]}, "'power_nd' must be lists"),
        ({"box": 3}, "'box'"),
        ({"box": (["a"], [1.0])}, "'box'"),
    ],
)
def test_odd_sizes_of_cones(cones: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cones(**cones)


def test_cones_print_what_there_is() -> None:
    assert str(Cones()) == "no rows"
    cones = Cones(zero=2, box=((0.0,), (1.0,)), soc=(3,) * 9, psd=(2,), exp=1, power=(0.5,))
    assert str(cones) == "zero 2, box 2, 9 soc, psd [2], exp 1, power [0.5]"
    assert Cones(soc=None, power=0) == Cones()  # type: ignore[arg-type]


def test_solver_of_cvxpy_is_one_and_has_a_citation() -> None:
    first, second = mlxcone.MLXCONE(), mlxcone.MLXCONE()
    assert first == second
    assert hash(first) == hash(second)
    assert "eprint" in first.cite({})


class TestLarge:
    """Sparse programs that are not factored: what they refuse."""

    @pytest.fixture(autouse=True)
    def _everything_is_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(large, "_DENSE", 0)

    A = sp.csr_matrix(np.vstack([np.ones((1, 4)), -np.eye(4)]))
    b = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    q = np.arange(4.0)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"A": A * 1j}, TypeError, "A: expected a real matrix"),
            ({"q": np.zeros((0, 4))}, ValueError, "the batch is empty"),
            ({"P": sp.eye(3)}, ValueError, r"P: expected shape \(4, 4\)"),
        ],
    )
    def test_wrong_data(self, change: dict[str, Any], error: Any, message: str) -> None:
        data = {"P": None, "q": self.q, "A": self.A, "b": self.b} | change
        with pytest.raises(error, match=message):
            mlxcone.solve(*data.values(), {"z": 1, "l": 4})

    def test_solver_and_transforms_are_refused(self) -> None:
        with pytest.raises(NotImplementedError, match="too large to factor"):
            mlxcone.Solver(None, self.A, {"z": 1, "l": 4})
        with pytest.raises(NotImplementedError, match="no vmap"):
            mx.vmap(lambda q: mlxcone.solve(None, q, self.A, self.b, {"z": 1, "l": 4}).x)(
                mx.zeros((2, 4))
            )

    def test_limits_and_failures(self) -> None:
        how = {"z": 1, "l": 4}
        few = mlxcone.solve(None, self.q, self.A, self.b, how, max_iters=1)
        assert few.info.status.item() == Status.INDETERMINATE
        loose = mlxcone.solve(None, self.q, self.A, self.b, how, max_iters=100, eps=1e-14)
        assert loose.info.status.item() in (Status.SOLVED, Status.SOLVED_INACCURATE)
        broken = np.stack([self.q, np.full(4, np.nan)])
        found = mlxcone.solve(None, broken, self.A, self.b, how, eps=1e-5, on_failure="nan")
        assert found.info.status.tolist() == [1, -4]
        assert np.isnan(np.array(found.x)[1]).all()
        assert np.isfinite(np.array(found.x)[0]).all()


def test_judge_names_what_does_not_fit() -> None:
    A, b = np.eye(2), np.ones(2)
    with pytest.raises(ValueError, match="A: expected a matrix"):
        verifier.verify_infeasible(np.ones(2), b, {"l": 2}, b)
    with pytest.raises(ValueError, match=r"P: expected shape \(2, 2\)"):
        verifier.verify_unbounded(np.eye(3), b, A, {"l": 2}, b)
