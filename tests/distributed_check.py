"""Run in several processes by test_distributed.py: answers and gradients of one process.

Prints OK from the first process if everything is right; raises where it is not.
"""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np

import mlxcone
from cvxpylayers_mlx import CvxpyLayer
from mlxcone import distributed

GROUP = mx.distributed.init(strict=True)


def same(found: Any, wanted: Any, tolerance: float) -> None:
    for f, w in zip(found, wanted, strict=True):
        assert f.shape == w.shape and f.dtype == w.dtype, (f.shape, w.shape)
        assert np.abs(np.array(w)).max() > 1e-3, "zero proves nothing"
        np.testing.assert_allclose(np.array(f), np.array(w), rtol=tolerance, atol=tolerance)


def layer_of(lanes: int, dtype: mx.Dtype, tolerance: float) -> None:
    """A layer with a batched and a shared parameter."""
    x, A, b = cp.Variable(3), cp.Parameter((5, 3)), cp.Parameter(5)
    problem: Any = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    layer = CvxpyLayer(problem, [A, b], [x])
    shared_out = distributed.sharded(layer, in_axes=(0, None))
    random = np.random.default_rng(0)
    values = [
        mx.array(0.5 + random.standard_normal(s), dtype=dtype)
        for s in ((lanes, 5, 3), (5,), (lanes, 3))
    ]

    def loss(solve: Any) -> Any:
        return lambda A, b: mx.sum(values[2] * solve(A, b)[0])

    same(shared_out(*values[:2]), layer(*values[:2]), tolerance)
    found, wanted = (mx.grad(loss(f), argnums=(0, 1))(*values[:2]) for f in (shared_out, layer))
    same(found, wanted, tolerance)
    directions = [mx.ones_like(v) for v in values[:2]]
    found, wanted = (
        mx.jvp(lambda A, b, f=f: f(A, b)[0], values[:2], directions) for f in (shared_out, layer)
    )
    same(found[0] + found[1], wanted[0] + wanted[1], tolerance)


def infeasible_lane() -> None:
    """Its status arrives everywhere, and an error in one process ends the call in all."""
    A, q = np.array([[1.0], [-1.0]]), np.array([1.0])
    b = np.array([[1.0, 0.0], [1.0, 0.0], [2.0, -1.0], [-1.0, 0.0]])  # x <= 1, x >= 0 ...
    wanted = [1, 1, 1, -2]
    found = distributed.solve(None, q, A, b, {"l": 2})
    assert found.info.status.tolist() == wanted, found.info.status
    np.testing.assert_allclose(np.array(found.x)[:3, 0], [0.0, 0.0, 1.0], atol=1e-8)
    try:
        distributed.solve(None, q, A, b, {"l": 2}, on_failure="raise")
    except mlxcone.SolverError as error:
        assert GROUP.rank() == GROUP.size() - 1
        assert list(error.statuses) == [3], "as the batch counts"
    except RuntimeError as error:
        assert "1 of" in str(error) and GROUP.rank() < GROUP.size() - 1
    else:
        raise AssertionError("an infeasible lane went unnoticed")


def cone_program(cones: dict[str, int], **settings: Any) -> None:
    A, b = np.vstack([np.ones((1, 2)), -np.eye(2)]), np.array([1.0, 0.0, 0.0])
    distributed.solve(np.eye(2), np.ones((4, 2)), A, b, cones, **settings)


def errors() -> None:
    first = GROUP.rank() == 0
    own = mx.random.normal((6, 2), key=mx.random.key(GROUP.rank()))
    for call, words in (
        (lambda: distributed.sharded(lambda a: a, (0, 0))(mx.ones((2, 2))), "1 entries"),
        (lambda: distributed.sharded(lambda a: a, None)(mx.ones((2, 2))), "one batch size"),
        (lambda: distributed.sharded(lambda a: a, 2)(mx.ones((2, 2))), "no axis 2"),
        # What works in one process alone: its share instead of the batch, its own data.
        (lambda: distributed.sharded(lambda a: a)(mx.ones((11 if first else 4, 2))), "[11, 4"),
        (lambda: distributed.sharded(lambda a: a)(mx.ones((2, 2 if first else 3))), "dtypes"),
        (lambda: distributed.sharded(lambda a: a)(own), "numbers"),
        (lambda: cone_program({"z": 1, "l": 2} if first else {"l": 3}), "options"),
        (lambda: cone_program({"l": 3}, eps=1e-6 if first else 1e-7), "options"),
    ):
        try:
            call()
        except ValueError as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)
    try:
        mx.vmap(distributed.sharded(lambda a: a))(mx.ones((2, 3, 2)))
    except RuntimeError as error:
        assert "vmap" in str(error), error
    else:
        raise AssertionError("nothing is sent under vmap")
    # One process alone is wrong.
    try:
        distributed.sharded(lambda a: a, 0 if first else None)(mx.ones((2, 2)))
    except RuntimeError as error:
        assert first and "failed" in str(error)
    except ValueError:
        assert not first
    else:
        raise AssertionError("one that is wrong went unnoticed")
    # Other rounding is no other data, and NaN in a lane is none of ours.
    near = mx.array([[1.0, 2.0 + 1e-6 * GROUP.rank()], [mx.nan, 1.0]])
    doubled = np.array(distributed.sharded(lambda a: 2.0 * a)(near))
    np.testing.assert_allclose(doubled, [[2.0, 4.0], [np.nan, 2.0]], rtol=1e-5)


for count in (1, 4, 7):
    layer_of(count, mx.float32, 1e-6)
layer_of(5, mx.float64, 1e-12)
infeasible_lane()
errors()
if GROUP.rank() == 0:
    print("OK", GROUP.size(), flush=True)
