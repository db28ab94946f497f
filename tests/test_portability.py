"""What iterates runs anywhere: float32, and only primitives that Metal and CUDA have.

`mx.export_function` hands over every primitive of a traced graph, so no GPU is needed to see this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from mlxcone.cones.description import Cones
from mlxcone.cones.product import Product
from mlxcone.kkt import splitting_factor
from mlxcone.methods import admm, loop
from mlxcone.methods.anderson import Memory
from mlxcone.program import residuals
from mlxcone.program.equilibrate import Scaling
from mlxcone.program.operators import Rectangular
from mlxcone.program.problem import Program

# Primitives of mx.linalg; MLX implements them on the CPU alone.
CPU_ONLY = {
    "LUF",
    "QRF",
    "SVD",
    "Inverse",
    "Cholesky",
    "CholeskyInverse",
    "Eig",
    "Eigh",
    "CustomTransforms",
}
DTYPES = {mx.float32, mx.bool_, mx.int32, mx.uint32}

MIX = {"z": 2, "l": 3, "q": [4, 1, 2, 4, 3]}
SETS = [{"z": 3}, {"l": 3}, {"q": [3, 3]}, MIX]
LANES, N = 3, 5


class Trace(NamedTuple):
    """Names of the primitives and dtypes of all arrays of a graph."""

    primitives: list[str]
    dtypes: set[mx.Dtype]


def trace(function: Callable[..., Any], *arguments: mx.array) -> Trace:
    primitives: list[str] = []
    dtypes: set[mx.Dtype] = set()

    def listen(entry: dict[str, Any]) -> None:
        if entry["type"] == "primitive":
            primitives.append(entry["name"])
        for _, *description in [*entry.get("inputs", ()), *entry.get("outputs", ())]:
            dtypes.add(description[-1])
        for _, constant in entry.get("constants", ()):
            dtypes.add(constant.dtype)

    mx.export_function(listen, function, *arguments)
    return Trace(primitives, dtypes)


def assert_portable(found: Trace) -> None:
    assert not CPU_ONLY & set(found.primitives), "a primitive that GPUs do not have"
    assert found.dtypes <= DTYPES, "an array of another type than float32"
    assert mx.float32 in found.dtypes


def narrow(values: Any) -> mx.array:
    return mx.array(values, dtype=mx.float32)


def chunk_arguments(cones: Product, shared: bool, quadratic: bool) -> list[mx.array]:
    """P, q, A, A', b, inverse, weights, x and w in float32."""
    rng, m = np.random.default_rng(0), cones.rows
    lead = () if shared else (LANES,)
    A = rng.standard_normal((*lead, m, N))
    P = np.broadcast_to(np.eye(N), (*lead, N, N)) if quadratic else None
    with mx.stream(mx.cpu):
        wide = [mx.array(v, dtype=mx.float64) for v in (A, np.zeros((LANES, N)))]
        unit, scale = admm.unit_weights(cones), mx.full((LANES, 1), 0.1, dtype=mx.float64)
        program = Program(
            None if P is None else mx.array(P, dtype=mx.float64),
            wide[1],
            Rectangular.of(wide[0]),
            mx.zeros((LANES, m), dtype=mx.float64),
        )
        one = scale[:1] if shared else scale
        inverse = np.array(splitting_factor.explicit(program, one, unit, 1e-3).inverse)
        weights = np.array(scale * unit)
    vectors = [rng.standard_normal((LANES, k)) for k in (N, m, N, m)]
    P = np.zeros((1, 1)) if P is None else P
    matrices = (A, A.swapaxes(-1, -2))  # the contiguous copy of A' is not exportable
    values = (P, vectors[0], *matrices, vectors[1], inverse, weights, *vectors[2:])
    return [narrow(v) for v in values]


def operator(quadratic: bool, *arrays: mx.array) -> admm.Operator:
    """From the first seven of the arguments."""
    P, q, A, transposed, b, inverse, weights = arrays
    program = Program(P if quadratic else None, q, Rectangular(A, transposed), b)
    factor = splitting_factor.Explicit(inverse)
    return admm.Operator(program, factor, weights, 1.6)


every_mix = pytest.mark.parametrize("scs", SETS, ids=str)
every_sharing = pytest.mark.parametrize("shared", [True, False], ids=["shared", "batched"])
every_memory = pytest.mark.parametrize("lookback", [0, 5], ids=["plain", "accelerated"])
either_objective = pytest.mark.parametrize("quadratic", [True, False], ids=["P", "no P"])


def chunk(
    cones: Product, quadratic: bool, lookback: int, steps: int
) -> Callable[..., tuple[mx.array, ...]]:
    """One chunk of iterations as a function of arrays alone."""

    def run(*arrays: mx.array) -> tuple[mx.array, ...]:
        op, state = operator(quadratic, *arrays[:7]), admm.State(*arrays[7:9])
        memory = None
        if lookback:
            # A memory that is not empty, or half of the graph is multiplied by zero.
            point = mx.concatenate(state, axis=1)
            memory = Memory.empty(point, lookback)
            memory = memory._replace(started=mx.ones_like(memory.started))
        state, memory = admm.advance(cones, op, state, memory, steps, steps)
        return (*state, *(memory or ()))

    return run


@every_mix
@every_sharing
@every_memory
@either_objective
def test_a_chunk_of_iterations_runs_on_a_gpu(
    scs: dict[str, Any], shared: bool, lookback: int, quadratic: bool
) -> None:
    cones = Product(Cones.of(scs))
    arguments = chunk_arguments(cones, shared, quadratic)
    run = chunk(cones, quadratic, lookback, steps=6)
    found = trace(run, *arguments)
    assert_portable(found)
    # Two products a step (and two more per accelerated point), or something was not traced.
    assert found.primitives.count("Matmul") >= 3 * 6
    outputs = run(*arguments)
    assert all(v.dtype == mx.float32 and np.isfinite(np.array(v)).all() for v in outputs)


def test_scales_of_their_own_with_shared_matrices_run_on_a_gpu() -> None:
    """Lanes that share P and A are diagonalized together; the solves stay products."""
    values = [narrow(np.random.default_rng(0).standard_normal(s)) for s in ((N, N), (LANES, N))]

    def solve(basis: mx.array, v: mx.array) -> mx.array:
        damping = 1.0 / (1.0 + mx.square(v))
        return splitting_factor.Spectral(basis, basis, damping).times(v)

    found = trace(solve, *values)
    assert_portable(found)
    assert found.primitives.count("Matmul") == 2


@every_mix
@every_sharing
@either_objective
def test_a_check_runs_on_a_gpu(scs: dict[str, Any], shared: bool, quadratic: bool) -> None:
    """Iterate, residuals in original units and the test for drifts, as between two chunks."""
    cones = Product(Cones.of(scs))
    arguments = chunk_arguments(cones, shared, quadratic)
    factors = [mx.ones((LANES, k), dtype=mx.float32) for k in (N, cones.rows, 1, 1)]

    def check(*arrays: mx.array) -> tuple[mx.array, ...]:
        op, scaling = operator(quadratic, *arrays[:7]), Scaling(*arrays[9:])
        x, y, s = admm.split(cones, op.weights, admm.State(*arrays[7:9]))
        result = residuals.measure(op.program, scaling, x, y, s, 0.0, 1.0)
        drifts = loop._drifts(op.program, cones, x, y, 0.5 * x, 0.5 * y)
        return (*result, result.relative, drifts)

    found = trace(check, *arguments, *factors)
    assert_portable(found)
    assert "Matmul" in found.primitives


@pytest.mark.parametrize("scs", SETS, ids=str)
def test_projection_and_derivative_run_on_a_gpu(scs: dict[str, Any]) -> None:
    cones = Product(Cones.of(scs))

    def derivative(z: mx.array, v: mx.array) -> tuple[mx.array, ...]:
        atoms = cones.derivative(z)
        return cones.project(z), cones.apply_derivative(atoms, v), cones.signature(atoms)

    z = narrow(np.random.default_rng(0).standard_normal((LANES, cones.rows)))
    assert_portable(trace(derivative, z, z))


# --- the tests above can fail ---------------------------------------------------------------------


def spd() -> mx.array:
    return mx.eye(3, dtype=mx.float32)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("Cholesky", lambda a: mx.linalg.cholesky(a, stream=mx.cpu)),
        ("Inverse", lambda a: mx.linalg.inv(a, stream=mx.cpu)),
        ("QRF", lambda a: mx.linalg.qr(a, stream=mx.cpu)[1]),
        ("SVD", lambda a: mx.linalg.svd(a, stream=mx.cpu)[1]),
        ("Eigh", lambda a: mx.linalg.eigh(a, stream=mx.cpu)[0]),
    ],
)
def test_factorizations_are_seen(name: str, function: Callable[[mx.array], mx.array]) -> None:
    found = trace(lambda a: mx.maximum(function(a) + 1.0, 0.0), spd())
    assert name in found.primitives
    with pytest.raises(AssertionError, match="a primitive that GPUs do not have"):
        assert_portable(found)


def test_a_factorization_of_the_solver_is_seen() -> None:
    """The chunk with its factorization inside."""
    cones = Product(Cones.of(MIX))
    arguments = chunk_arguments(cones, shared=False, quadratic=True)
    run = chunk(cones, quadratic=True, lookback=0, steps=2)

    def factored(*arrays: mx.array) -> Any:
        P, q, A, transposed, b, _, weights = arrays[:7]
        program = Program(P, q, Rectangular(A, transposed), b)
        with mx.stream(mx.cpu):
            factor = splitting_factor.explicit(program, weights[:, :1], weights[0], 1e-3)
        return run(*arrays[:5], factor.inverse, *arrays[6:])

    with pytest.raises(AssertionError, match="a primitive that GPUs do not have"):
        assert_portable(trace(factored, *arguments))


def test_double_precision_is_seen() -> None:
    with mx.stream(mx.cpu):
        inside = trace(lambda a: (a.astype(mx.float64) * 2.0).astype(mx.float32), spd())
        constant = mx.array([1.0, 2.0, 3.0], dtype=mx.float64)
        captured = trace(lambda a: (a * constant).astype(mx.float32), spd())
    for found in (inside, captured):
        assert mx.float64 in found.dtypes
        with pytest.raises(AssertionError, match="another type than float32"):
            assert_portable(found)


def test_double_precision_in_a_chunk_is_seen() -> None:
    cones = Product(Cones.of(MIX))
    arguments = chunk_arguments(cones, shared=True, quadratic=True)
    with mx.stream(mx.cpu):
        arguments[6] = arguments[6].astype(mx.float64)
        found = trace(chunk(cones, quadratic=True, lookback=0, steps=2), *arguments)
    with pytest.raises(AssertionError, match="another type than float32"):
        assert_portable(found)
