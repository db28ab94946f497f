"""The default device may be a GPU, which has no float64: only iterations go there.

The GPU is the pretended one, so that this is seen on any machine; all of the suite runs on it with
``MLXCONE_TEST_DEVICE=pretended``.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np
import pretended_gpu
import pytest
import scipy.sparse as sp
from mlx.utils import tree_flatten

import mlxcone
from cvxpylayers_mlx import CvxpyLayer
from mlxcone.backend import devices
from mlxcone.methods import loop

pytestmark = pytest.mark.skipif(
    os.environ.get("MLXCONE_TEST_DEVICE") == "gpu", reason="there is a real one"
)

CONES = {"z": 1, "l": 2, "q": [3], "s": [2], "ep": 1}
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture(autouse=True)
def gpu(_device_stays: None) -> Iterator[None]:
    if mx.default_device() == pretended_gpu.GPU:  # the suite is on one already
        yield
        return
    with pretended_gpu.switched_on():
        yield


@pytest.fixture
def iterated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Devices on which loops have iterated; what goes to the GPU must be evaluated by then."""
    found: list[Any] = []
    ready: set[int] = set()
    chunk, evaluate = loop._chunk, mx.eval

    def noted(*trees: Any) -> None:
        ready.update(id(leaf) for _, leaf in tree_flatten(trees))
        evaluate(*trees)

    def seen(*args: Any) -> Any:
        found.append(mx.default_device())
        if found[-1] == pretended_gpu.GPU:
            leaves = [leaf for _, leaf in tree_flatten(args) if isinstance(leaf, mx.array)]
            assert leaves and {id(leaf) for leaf in leaves} <= ready
        return chunk(*args)

    monkeypatch.setattr(loop, "_chunk", seen)
    monkeypatch.setattr(mx, "eval", noted)
    return found


def same_on_the_cpu(call: Callable[[], Any]) -> None:
    """A call gives arrays of the same numbers, to rounding, with the CPU for its device."""
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        expected = [np.array(leaf) for _, leaf in tree_flatten(call())]
    found = [np.array(leaf) for _, leaf in tree_flatten(call())]
    assert any(np.abs(v).max() > 0.01 for v in expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def data(dtype: type, lanes: int = 3) -> tuple[Any, ...]:
    """P, q, A and b of which zero is strictly feasible; q and b batched."""
    rng = np.random.default_rng(0)
    inside = [0.0, 1.0, 1.0, 2.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 2.0]
    values = np.eye(4), rng.standard_normal((lanes, 4)), rng.standard_normal((12, 4)), [inside]
    P, q, A, b = (np.asarray(v, dtype=dtype) for v in values)
    return P, q, A, np.repeat(b, lanes, axis=0)


def layer() -> tuple[CvxpyLayer, list[mx.array]]:
    X, A, b = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3)), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - A)), [X >> 0, cp.diag(X) <= b])
    rng = np.random.default_rng(1)
    values = rng.standard_normal((4, 3, 3)), rng.uniform(0.5, 1.0, (4, 3))
    return CvxpyLayer(problem, [A, b], [X]), [mx.array(v.astype(np.float32)) for v in values]


def test_the_pretended_gpu_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing below could fail."""
    assert mx.default_device() == pretended_gpu.GPU
    wide = mx.array(np.ones(2), dtype=mx.float64)
    calls: list[Callable[[], Any]] = [
        lambda: wide + 1.0,
        lambda: -wide,
        lambda: wide[0],
        lambda: wide[None].T,
        lambda: wide.astype(mx.float32),
        lambda: mx.zeros(2).astype(mx.float64),
        lambda: mx.zeros(2, dtype=mx.float64),
        lambda: mx.linalg.inv(mx.eye(2)),
        lambda: mx.custom_function(lambda v: v)(wide),
    ]
    monkeypatch.setattr(pretended_gpu, "_JUDGED", {__name__})
    for call in calls:
        with pytest.raises(ValueError, match="GPU"):
            call()
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        assert (wide + 1.0).tolist() == [2.0, 2.0]
    assert (mx.ones(2) + 1.0).tolist() == [2.0, 2.0]


@DTYPES
def test_a_solve_iterates_on_the_default_device(dtype: type, iterated: list[Any]) -> None:
    found = mlxcone.solve(*data(dtype), CONES)
    assert found.info.status.tolist() == [1, 1, 1]
    assert iterated[0] == pretended_gpu.GPU
    assert "3 solved" in str(found.info)


def test_a_stream_of_the_cpu_is_respected(iterated: list[Any]) -> None:
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        mlxcone.solve(*data(np.float32), CONES)
    assert set(map(str, iterated)) == {"Device(cpu, 0)"}


@DTYPES
def test_derivatives_and_transforms(dtype: type) -> None:
    P, q, A, b = (mx.array(v, dtype=getattr(mx, dtype.__name__)) for v in data(dtype))

    @mlxcone.on_cpu
    def loss(q: mx.array, b: mx.array) -> mx.array:
        return mx.sum(mx.square(mlxcone.solve(P, q, A, b, CONES).x))

    tangent = mx.array(np.ones(q.shape, dtype=dtype), dtype=q.dtype)
    same_on_the_cpu(lambda: mlxcone.on_cpu(mx.grad(loss, argnums=(0, 1)))(q, b))
    same_on_the_cpu(lambda: mx.vmap(lambda q, b: mlxcone.solve(P, q, A, b, CONES).x)(q, b))
    same_on_the_cpu(lambda: mx.jvp(lambda q: mlxcone.solve(P, q, A, b, CONES).x, [q], [tangent]))

    def fixed(q: mx.array) -> mx.array:
        return mlxcone.solve(P, q, A, b, CONES, fixed_iters=30).x

    same_on_the_cpu(lambda: mx.compile(fixed)(q))


def test_a_layer_learns(iterated: list[Any]) -> None:
    """As users write it: float32, no stream named."""
    one, values = layer()
    gradient = mx.grad(lambda *v: mx.sum(mx.square(one(*v)[0])), argnums=(0, 1))
    same_on_the_cpu(lambda: gradient(*values))
    same_on_the_cpu(lambda: mx.vmap(lambda *v: one(*v)[0])(*values))
    assert pretended_gpu.GPU in iterated


@DTYPES
def test_solvers_copy_and_cross_threads(dtype: type) -> None:
    P, q, A, b = data(dtype)
    twin = pickle.loads(pickle.dumps(mlxcone.Solver(P, A, CONES)))
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(twin.solve(q, b).x.tolist()))
    thread.start()
    thread.join()
    np.testing.assert_allclose(found[0], twin.solve(q, b).x.tolist(), atol=1e-6)


def test_a_large_sparse_program(iterated: list[Any]) -> None:
    n = 6000
    A = sp.vstack([sp.eye(n), -sp.eye(n)]).tocsr()
    q = np.random.default_rng(0).standard_normal(n)
    found = mlxcone.solve(sp.eye(n).tocsc(), q, A, np.full(2 * n, 0.5), {"l": 2 * n}, eps=1e-4)
    np.testing.assert_allclose(np.array(found.x), np.clip(-q, -0.5, 0.5), atol=1e-3)
    assert iterated[0] == pretended_gpu.GPU


def test_cvxpy_and_ready_layers() -> None:
    x = cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.norm(x - 1.0)), [cp.sum(x) <= 1.0])
    assert abs(problem.solve(solver=mlxcone.MLXCONE()) - 2.0 / np.sqrt(3.0)) < 1e-6
    nn: Any = mlxcone.nn
    v = mx.array([[0.3, 1.2, -0.4]])
    assert abs(mx.sum(nn.Simplex(3)(v)).item() - 1.0) < 1e-5
    mx.eval(mx.grad(lambda v: mx.sum(mx.square(nn.Sparsemax(3)(v))))(v))
    mx.eval(nn.Semidefinite(2)(mx.array([[1.0, 2.0], [2.0, -1.0]])))
    plan = nn.LinearMPC(2, 1, 4, 1.0)
    mx.eval(plan(mx.array([[1.0, 0.0]])))
    mx.eval(nn.QuadraticProgram(3, 4, 2)(mx.zeros((2, 3))))


def test_the_device_of_the_caller_comes_back_after_an_error() -> None:
    @mlxcone.on_cpu
    def fails() -> None:
        assert mx.default_device() == devices.CPU
        assert devices.iterations() == pretended_gpu.GPU
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert mx.default_device() == devices.iterations() == pretended_gpu.GPU
