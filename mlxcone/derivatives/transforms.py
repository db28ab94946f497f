"""The solution map under every MLX transform: the one place that knows `mx.custom_function`.

The custom function takes the data as explicit arguments (an array captured by closure would get
gradient zero) and returns everything the derivatives need. Its forward pass runs the loop on
detached inputs if they can be evaluated. Under vmap they cannot: it then returns placeholders of
the right shapes, and the vmap rule solves the whole batch on real arrays. A placeholder that is
evaluated after all (mx.compile) raises.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import mlx.core as mx

from mlxcone import cascade as ladder
from mlxcone import fixed_length as unrolled
from mlxcone.backend import lanes
from mlxcone.backend.devices import iterations, on_cpu
from mlxcone.backend.linalg import poison
from mlxcone.backend.repeated import Repeated
from mlxcone.cascade import Setup
from mlxcone.cones.description import Cones
from mlxcone.cones.product import Product
from mlxcone.derivatives import implicit as derivative
from mlxcone.derivatives import smoothing
from mlxcone.derivatives.implicit import Accuracy, Anchor, Gradients
from mlxcone.methods import centring
from mlxcone.methods.centring import Central
from mlxcone.methods.outcomes import Outcome
from mlxcone.program import problem
from mlxcone.program.equilibrate import Scaling
from mlxcone.program.operators import Rectangular, Sparsity
from mlxcone.program.problem import Program
from mlxcone.program.structure import Structure
from mlxcone.settings import Settings
from mlxcone.solution import evaluated
from mlxcone.status import SolverError, Status

# Ranks of the arguments P, q, A, b and of the warm start x, y, s without a batch axis.
_RANKS = (2, 1, 2, 1, 1, 1, 1)
_DIFFERENTIABLE = 3  # x, y and s come first in the outcome
_ORDINARY = 13  # entries of the outcome without smoothing


def _detached(array: mx.array) -> mx.array:
    """A copy that remembers no graph; raises where arrays cannot be evaluated."""
    if array.size == 0:
        return mx.zeros(array.shape, dtype=array.dtype)
    # MLX's stubs leave out that arrays are buffers.
    view: Any = memoryview(array)  # type: ignore[arg-type]
    return mx.array(view, dtype=array.dtype)


def _lanes(arguments: tuple[mx.array, ...]) -> int:
    sizes = [a.shape[0] for a, rank in zip(arguments, _RANKS, strict=False) if a.ndim > rank]
    return sizes[0] if sizes else 1


@on_cpu
def _program(
    arguments: tuple[mx.array, ...], has_P: bool, sparsity: Sparsity, diagonal: bool = False
) -> Program:
    """Float64 program with every vector batched; a float64 graph of the arguments."""
    total = _lanes(arguments)
    P, q, A, b = (a.astype(mx.float64) for a in arguments[:4])
    if P.ndim == 3 or has_P:
        P = 0.5 * (P + mx.swapaxes(P, -1, -2))
    q, b = (mx.broadcast_to(v, (total, v.shape[-1])) for v in (q, b))
    matrices = P if has_P else None, Rectangular.of(A, sparsity)
    return Program(matrices[0], q, matrices[1], b, mx.diagonal(P) if diagonal else None)


@on_cpu
def _start(arguments: tuple[mx.array, ...]) -> tuple[mx.array, mx.array, mx.array]:
    """The warm start, float64, every vector batched."""
    total = _lanes(arguments)
    x, y, s = (mx.broadcast_to(v.astype(mx.float64), (total, v.shape[-1])) for v in arguments[4:])
    return x, y, s


def _flat(outcome: Outcome) -> tuple[mx.array, ...]:
    return (*outcome[:9], *outcome.scaling)


def _anchor(primals: Any, outputs: Any, structure: Structure, traced: bool) -> Anchor:
    d, e, primal, dual = outputs[9:_ORDINARY]
    if primals[0].ndim == 2 and primals[2].ndim == 2:
        d, e = d[:1], e[:1]  # all the same, and P and A stay shared
    x, y, s = outputs[:3]
    return Anchor(x, y, s, Scaling(d, e, primal, dual), structure, traced)


def _central(outputs: Any) -> Central:
    return Central(*outputs[_ORDINARY:])


def _smoothed(
    program: Program, product: Product, settings: Settings, outcome: Outcome, deadline: float
) -> tuple[mx.array, ...]:
    """What a smoothed derivative needs besides, if there is one."""
    if not settings.smoothing:
        return ()
    which = lanes.where_true(outcome.status > 0)
    return centring.centre(
        program, outcome.scaling, product, *outcome[:3], settings.smoothing, which, deadline
    )


def _placeholder(lanes: int, n: int, m: int, smooth_rows: int | None) -> tuple[mx.array, ...]:
    """Arrays of the shapes and dtypes of `_flat` and `_smoothed`, which raise when evaluated."""
    raises = poison()
    wide = [(lanes, n), (lanes, m), (lanes, m)]
    counts = [(lanes,)] * 3
    rest = [(lanes,)] * 3 + [(lanes, n), (lanes, m), (lanes, 1), (lanes, 1)]

    def like(shape: tuple[int, ...], dtype: mx.Dtype = mx.float64) -> mx.array:
        return mx.broadcast_to(raises.astype(dtype), shape)

    plain = (*map(like, wide), *(like(c, mx.int32) for c in counts), *map(like, rest))
    if smooth_rows is None:
        return plain
    smooth = [(lanes, n), (lanes, smooth_rows), (lanes, smooth_rows), (lanes, n, n)]
    return (*plain, *map(like, smooth), like((lanes,), mx.bool_))


def _check(program: Program, outcome: Outcome, settings: Settings) -> None:
    if settings.on_failure != "raise":
        return
    codes: Any = outcome.status.tolist()
    failed = {lane: Status(code) for lane, code in enumerate(codes) if code <= 0}
    if failed:
        raise SolverError(failed, problem.faults(program, failed))


class Cache:
    """Holds the `Setup` of a `Solver` between solves.

    There is one for each shape of its matrices: vmap over them makes another.
    """

    def __init__(self) -> None:
        self._setups: dict[Any, Setup] = {}

    def get(self, program: Program, product: Product, settings: Settings) -> Setup:
        """The setup, made on first use."""
        key = program.A.matrix.shape, None if program.P is None else program.P.shape
        if key not in self._setups:
            self._setups[key] = evaluated(ladder.prepare(program, product, settings))
        return self._setups[key]


def custom(
    cones: Cones,
    settings: Settings,
    has_P: bool,
    warm: bool,
    structure: Structure,
    cache: Cache | None = None,
) -> Any:
    """The custom function of (P, q, A, b[, x, y, s]) for one kind of problem."""
    product = Product(cones)
    repeated = Repeated(settings.compile_after_secs)
    smooth_rows = product.without_boxes().rows if settings.smoothing else None

    @on_cpu
    def forward(*arguments: mx.array) -> tuple[mx.array, ...]:
        deadline = time.monotonic() + (settings.time_limit_secs or float("inf"))
        try:
            # A solve of fixed length is a graph like any other.
            cut = mx.stop_gradient if settings.fixed_iters else _detached
            detached = tuple(cut(a) for a in arguments)
        except (RuntimeError, ValueError) as error:
            if "transform" not in str(error):
                raise
            size = arguments[1].shape[-1]
            return _placeholder(_lanes(arguments), size, product.rows, smooth_rows)
        if has_P and not settings.fixed_iters:
            problem.check_symmetric(detached[0])
        problem.check_places(detached[2], structure.sparsity.places)
        start = _start(detached) if warm else None
        program = _program(detached, has_P, structure.sparsity, structure.diagonal)
        setup = None if cache is None else cache.get(program, product, settings)
        rounding = settings.data_rounding or mx.finfo(arguments[1].dtype).eps
        how = settings, iterations(), start, setup, rounding
        if settings.fixed_iters:
            outcome = unrolled.run(program, product, *how)
        else:
            outcome = ladder.run(program, product, *how, repeated)
        _check(program, outcome, settings)
        return *_flat(outcome), *_smoothed(program, product, settings, outcome, deadline)

    solve = mx.custom_function(forward)

    @solve.vjp
    def solve_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return _pull_back(primals, cotangents, outputs, product, has_P, structure, settings)

    @solve.jvp
    @on_cpu
    def solve_jvp(primals: Any, tangents: Any) -> Any:
        outputs = solve(*primals)
        return _push_forward(primals, tangents, outputs, product, has_P, structure, settings)

    @solve.vmap
    @on_cpu
    def solve_vmap(arguments: Any, axes: Any) -> Any:
        mapped, size, lanes = _merge(arguments, axes)
        outputs: Any = solve(*mapped)
        split = tuple(o.reshape(size, lanes, *o.shape[1:]) for o in outputs)
        return split, tuple(0 for _ in split)

    return solve


def _merge(arguments: Any, axes: Any) -> tuple[list[mx.array], int, int]:
    """Fold the mapped axis into the batch axis; returns the mapped and the inner batch size."""
    moved = [
        (a if axis is None else mx.moveaxis(a, axis, 0), axis is not None)
        for a, axis in zip(arguments, axes, strict=True)
    ]
    size = next(a.shape[0] for a, mapped in moved if mapped)
    inner = [
        a.shape[1 if mapped else 0]
        for (a, mapped), rank in zip(moved, _RANKS, strict=False)
        if a.ndim - mapped > rank
    ]
    lanes = inner[0] if inner else 1
    merged = []
    for (a, mapped), rank in zip(moved, _RANKS, strict=False):
        core = a.shape[a.ndim - rank :]
        batched = a.ndim - mapped > rank
        if mapped or batched:
            if not mapped:
                a = a[None]
            elif not batched:
                a = a[:, None]
            a = mx.broadcast_to(a, (size, lanes, *core)).reshape(size * lanes, *core)
        merged.append(a)
    return merged, size, lanes


@on_cpu
def _pull_back(
    primals: Any,
    cotangents: Any,
    outputs: Any,
    product: Product,
    has_P: bool,
    structure: Structure,
    settings: Settings,
) -> tuple[mx.array, ...]:
    """Cotangents of the arguments, in their shapes and dtypes."""
    program = _program(primals[:4], has_P, structure.of_derivatives)
    anchor = _anchor(primals, outputs, structure, traced=False)
    solved = (outputs[3] > 0)[:, None]
    bars = [c.astype(mx.float64) for c in cotangents[:_DIFFERENTIABLE]]
    touched = functools.reduce(
        mx.logical_or, (mx.any(c != 0, axis=1, keepdims=True) for c in bars if c.shape[1])
    )
    # A lane without a solution has no gradient: NaN if one is asked for, nothing if not.
    anchor = _harmless(anchor, solved)
    bars = [mx.where(solved, c, 0.0) for c in bars]
    accuracy = Accuracy.of(settings)
    if mu := settings.smoothing:
        central = _central(outputs)
        grads = smoothing.adjoint(program, product, anchor, central, mu, *bars, accuracy=accuracy)
    else:
        grads = derivative.adjoint(program, product, anchor, *bars, accuracy=accuracy)
    sound = mx.logical_or(mx.logical_not(touched), solved)
    if not lanes.all_true(sound):
        grads = _poisoned(grads, mx.where(sound, 0.0, mx.nan))
    P_bar = mx.zeros_like(primals[0]) if grads.P is None else grads.P
    shaped = []
    for bar, argument in zip((P_bar, *grads[1:]), primals, strict=False):
        summed = mx.sum(bar, axis=0) if bar.ndim > argument.ndim else bar
        shaped.append(summed.astype(argument.dtype))
    return (*shaped, *(mx.zeros_like(a) for a in primals[4:]))


def _poisoned(grads: Gradients, poison: mx.array) -> Gradients:
    """NaN, (B, 1), added to what a lane has a share in."""

    def matrix(bar: mx.array) -> mx.array:
        return bar + (mx.sum(poison) if bar.ndim == 2 else poison[..., None])

    P = None if grads.P is None else matrix(grads.P)
    return Gradients(P, grads.q + poison, matrix(grads.A), grads.b + poison)


def _harmless(anchor: Anchor, solved: mx.array) -> Anchor:
    """NaN must not meet the products of the lanes beside it."""
    x, y, s = (mx.where(solved, v, 0.0) for v in anchor[:3])
    return anchor._replace(x=x, y=y, s=s)


@on_cpu
def _push_forward(
    primals: Any,
    tangents: Any,
    outputs: Any,
    product: Product,
    has_P: bool,
    structure: Structure,
    settings: Settings,
) -> tuple[mx.array, ...]:
    """Tangents of the outputs; what is not x, y or s has none."""
    program = _program(primals[:4], has_P, structure.of_derivatives)
    # A look at a value in the rule of mx.jvp would cut the graph of mx.grad.
    anchor = _anchor(primals, outputs, structure, traced=True)
    solved = (outputs[3] > 0)[:, None]
    dP, dq, dA, db = (
        mx.zeros(p.shape, dtype=mx.float64) if t is None else t.astype(mx.float64)
        for p, t in zip(primals[:4], tangents, strict=False)
    )
    anchor, data = _harmless(anchor, solved), (dP if has_P else None, dq, dA, db)
    accuracy = Accuracy.of(settings)
    if mu := settings.smoothing:
        central = _central(outputs)
        moved = smoothing.tangent(program, product, anchor, central, mu, *data, accuracy=accuracy)
    else:
        moved = derivative.tangent(program, product, anchor, *data, accuracy=accuracy)
    first = tuple(mx.where(solved, v, mx.nan) for v in moved)
    return (*first, *(mx.zeros_like(o) for o in outputs[_DIFFERENTIABLE:]))
