"""The public solve, under every MLX transform: the one place that knows `mx.custom_function`.

The custom function takes the data as explicit arguments (an array captured by closure would get
gradient zero) and returns everything the derivatives need. Its forward pass runs the loop on
detached inputs if they can be evaluated. Under vmap they cannot: it then returns placeholders of
the right shapes, and the vmap rule solves the whole batch on real arrays. A placeholder that is
evaluated after all (mx.compile) raises.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from mlxcone import centring, derivative, ladder, lanes, problem, smoothing, unrolled
from mlxcone._linalg import on_cpu, poison
from mlxcone.centring import Central
from mlxcone.cones.product import Cones, Product
from mlxcone.derivative import Anchor
from mlxcone.equilibrate import Scaling
from mlxcone.ladder import Outcome, Setup
from mlxcone.operators import Rectangular
from mlxcone.problem import Program, reorder
from mlxcone.settings import Settings
from mlxcone.solution import Info, Solution
from mlxcone.status import SolverError, Status

# Ranks of the arguments P, q, A, b and of the warm start x, y, s without a batch axis.
_RANKS = (2, 1, 2, 1, 1, 1, 1)
_DIFFERENTIABLE = 3  # x, y and s come first in the outcome
_ORDINARY = 14  # entries of the outcome without smoothing


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
def _program(arguments: tuple[mx.array, ...], has_P: bool) -> Program:
    """Float64 program with every vector batched; a float64 graph of the arguments."""
    total = _lanes(arguments)
    P, q, A, b = (a.astype(mx.float64) for a in arguments[:4])
    if P.ndim == 3 or has_P:
        P = 0.5 * (P + mx.swapaxes(P, -1, -2))
    q, b = (mx.broadcast_to(v, (total, v.shape[-1])) for v in (q, b))
    return Program(P if has_P else None, q, Rectangular.of(A), b)


@on_cpu
def _start(arguments: tuple[mx.array, ...]) -> tuple[mx.array, mx.array, mx.array]:
    """The warm start, float64, every vector batched."""
    total = _lanes(arguments)
    x, y, s = (mx.broadcast_to(v.astype(mx.float64), (total, v.shape[-1])) for v in arguments[4:])
    return x, y, s


def _flat(outcome: Outcome) -> tuple[mx.array, ...]:
    return (*outcome[:9], *outcome.scaling, outcome.inverse)


def _anchor(outputs: Any) -> Anchor:
    x, y, s = outputs[:3]
    return Anchor(x, y, s, Scaling(*outputs[9:13]), outputs[13])


def _central(outputs: Any) -> Central:
    return Central(*outputs[_ORDINARY:])


def _smoothed(
    program: Program, product: Product, settings: Settings, outcome: Outcome
) -> tuple[mx.array, ...]:
    """What a smoothed derivative needs besides, if there is one."""
    if not settings.smoothing:
        return ()
    which = lanes.where_true(outcome.status > 0)
    return centring.centre(
        program, outcome.scaling, product, *outcome[:3], settings.smoothing, which
    )


def _placeholder(lanes: int, n: int, m: int, smooth_rows: int | None) -> tuple[mx.array, ...]:
    """Arrays of the shapes and dtypes of `_flat` and `_smoothed`, which raise when evaluated."""
    with mx.stream(mx.Device(mx.DeviceType.cpu)):
        raises = poison()
        wide = [(lanes, n), (lanes, m), (lanes, m)]
        counts = [(lanes,)] * 3
        rest = [(lanes,)] * 3 + [(lanes, n), (lanes, m), (lanes, 1), (lanes, 1), (lanes, n, n)]

        def like(shape: tuple[int, ...], dtype: mx.Dtype = mx.float64) -> mx.array:
            return mx.broadcast_to(raises.astype(dtype), shape)

        plain = (*map(like, wide), *(like(c, mx.int32) for c in counts), *map(like, rest))
        if smooth_rows is None:
            return plain
        smooth = [(lanes, n), (lanes, smooth_rows), (lanes, smooth_rows), (lanes, n, n)]
        return (*plain, *map(like, smooth), like((lanes,), mx.bool_))


def _check(outcome: Outcome, settings: Settings) -> None:
    if settings.on_failure != "raise":
        return
    codes: Any = outcome.status.tolist()
    failed = {lane: Status(code) for lane, code in enumerate(codes) if code <= 0}
    if failed:
        raise SolverError(failed)


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
            self._setups[key] = ladder.prepare(program, product, settings)
        return self._setups[key]


def _custom(
    cones: Cones, settings: Settings, has_P: bool, warm: bool, cache: Cache | None = None
) -> Any:
    """The custom function of (P, q, A, b[, x, y, s]) for one kind of problem."""
    product = Product(cones)
    smooth_rows = product.without_boxes().rows if settings.smoothing else None

    def forward(*arguments: mx.array) -> tuple[mx.array, ...]:
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
        start = _start(detached) if warm else None
        program = _program(detached, has_P)
        setup = None if cache is None else cache.get(program, product, settings)
        rounding = mx.finfo(arguments[1].dtype).eps
        climb = unrolled.run if settings.fixed_iters else ladder.run
        outcome = climb(
            program,
            product,
            settings,
            # MLX's stubs say that there may be none.
            mx.default_device(),  # type: ignore[arg-type]
            start,
            setup,
            rounding,
        )
        _check(outcome, settings)
        return *_flat(outcome), *_smoothed(program, product, settings, outcome)

    solve = mx.custom_function(forward)

    @solve.vjp
    def solve_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return _pull_back(primals, cotangents, outputs, product, has_P, settings.smoothing)

    @solve.jvp
    def solve_jvp(primals: Any, tangents: Any) -> Any:
        outputs = solve(*primals)
        return _push_forward(primals, tangents, outputs, product, has_P, settings.smoothing)

    @solve.vmap
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
    primals: Any, cotangents: Any, outputs: Any, product: Product, has_P: bool, mu: float
) -> tuple[mx.array, ...]:
    """Cotangents of the arguments, in their shapes and dtypes."""
    program, anchor = _program(primals[:4], has_P), _anchor(outputs)
    solved = (outputs[3] > 0)[:, None]
    bars = [c.astype(mx.float64) for c in cotangents[:_DIFFERENTIABLE]]
    touched = functools.reduce(
        mx.logical_or, (mx.any(c != 0, axis=1, keepdims=True) for c in bars if c.shape[1])
    )
    # A lane without a solution has no gradient: NaN if one is asked for, nothing if not.
    anchor = _harmless(anchor, solved)
    bars = [mx.where(solved, c, 0.0) for c in bars]
    if mu:
        grads = smoothing.adjoint(program, product, anchor, _central(outputs), mu, *bars)
    else:
        grads = derivative.adjoint(program, product, anchor, *bars)
    poisoned = mx.where(mx.logical_and(touched, mx.logical_not(solved)), mx.nan, 0.0)
    q_bar, b_bar = grads.q + poisoned, grads.b + poisoned
    whole = poisoned[..., None]
    A_bar = grads.A + (mx.sum(whole) if grads.A.ndim == 2 else whole)
    if grads.P is None:
        P_bar = mx.zeros_like(primals[0])
    else:
        P_bar = grads.P + (mx.sum(whole) if grads.P.ndim == 2 else whole)
    shaped = []
    for bar, argument in zip((P_bar, q_bar, A_bar, b_bar), primals, strict=False):
        summed = mx.sum(bar, axis=0) if bar.ndim > argument.ndim else bar
        shaped.append(summed.astype(argument.dtype))
    return (*shaped, *(mx.zeros_like(a) for a in primals[4:]))


def _harmless(anchor: Anchor, solved: mx.array) -> Anchor:
    """NaN must not meet the products of the lanes beside it."""
    x, y, s = (mx.where(solved, v, 0.0) for v in anchor[:3])
    return anchor._replace(x=x, y=y, s=s)


@on_cpu
def _push_forward(
    primals: Any, tangents: Any, outputs: Any, product: Product, has_P: bool, mu: float
) -> tuple[mx.array, ...]:
    """Tangents of the outputs; what is not x, y or s has none."""
    program, anchor = _program(primals[:4], has_P), _anchor(outputs)
    solved = (outputs[3] > 0)[:, None]
    dP, dq, dA, db = (
        mx.zeros(p.shape, dtype=mx.float64) if t is None else t.astype(mx.float64)
        for p, t in zip(primals[:4], tangents, strict=False)
    )
    anchor, data = _harmless(anchor, solved), (dP if has_P else None, dq, dA, db)
    if mu:
        moved = smoothing.tangent(program, product, anchor, _central(outputs), mu, *data)
    else:
        moved = derivative.tangent(program, product, anchor, *data)
    first = tuple(mx.where(solved, v, mx.nan) for v in moved)
    return (*first, *(mx.zeros_like(o) for o in outputs[_DIFFERENTIABLE:]))


_shared_custom = functools.lru_cache(maxsize=256)(_custom)


def solve(
    P: Any,
    q: Any,
    A: Any,
    b: Any,
    cones: Cones | Mapping[str, Any],
    *,
    warm_start: Solution | tuple[mx.array, mx.array, mx.array] | None = None,
    settings: Settings | None = None,
    **overrides: Any,
) -> Solution:
    r"""Solve a batch of cone programs, differentiably.

    .. math::
        \text{minimize } \tfrac12 x^T P x + q^T x \quad
        \text{subject to } A x + s = b,\ s \in K

    Operator splitting in float32 (O'Donoghue 2021, arXiv 2004.02177; Stellato et al. 2020), then
    semismooth Newton in float64, and interior-point steps (arXiv 2405.12762) where that stalls;
    derivatives by the implicit function theorem (arXiv 1904.09043).
    Works under ``mx.grad``, ``value_and_grad``, ``vjp``, ``jvp``, ``vmap`` and ``checkpoint``, and
    with ``fixed_iters`` under ``mx.compile``; without it, evaluating what was compiled raises.

    Args:
        P: None, ``(n, n)`` or ``(B, n, n)``; symmetric, positive semidefinite.
        q: ``(n,)`` or ``(B, n)``.
        A: ``(m, n)`` or ``(B, m, n)``.
        b: ``(m,)`` or ``(B, m)``. Each may be an mx.array, NumPy or SciPy sparse; what has no
            batch axis is shared by all problems.
        cones: `Cones` or an SCS dict; rows of A in that order.
        warm_start: a previous `Solution` or (x, y, s) of this shape; carries no gradient.
        settings (Settings): see there; ``overrides`` replace single ones.

    Returns:
        Solution: x, y, s of the dtype of the data (float64 if any argument is), ``info`` with a
        status per problem. Never raises for a problem without a solution unless
        ``on_failure="raise"``. The gradient of such a lane is NaN, or zero if its cotangent is.

    Raises:
        ValueError: a shape, a cone or a setting does not fit; the message names it.
        TypeError: an argument is not a real numeric array.
        SolverError: with ``on_failure="raise"``, naming the lanes.
    """
    cones = Cones.of(cones)
    settings = (settings or Settings()).override(overrides)
    return _solve(P, q, A, b, cones, warm_start, settings, _shared_custom)


class Solver:
    """P and A set up once (equilibrated and factored), for many q and b.

    Args:
        P: None, ``(n, n)`` or ``(B, n, n)``.
        A: ``(m, n)`` or ``(B, m, n)``.
        cones: `Cones` or an SCS dict.
        settings (Settings): see there; ``overrides`` replace single ones.

    Raises:
        ValueError, TypeError: as `solve`, from the first call of `Solver.solve` at the latest.
    """

    def __init__(
        self,
        P: Any,
        A: Any,
        cones: Cones | Mapping[str, Any],
        settings: Settings | None = None,
        **overrides: Any,
    ) -> None:
        self.cones = Cones.of(cones)
        self.settings = (settings or Settings()).override(overrides)
        self.P = None if P is None else problem.as_array("P", P)
        self.A = problem.as_array("A", A)
        self._reset()

    def _reset(self) -> None:
        cache = Cache()
        # A factor made for one P and A must not meet another: functions go with their cache.
        self._functions = functools.lru_cache(functools.partial(_custom, cache=cache))

    def update(self, *, P: Any = None, A: Any = None) -> None:
        """Replace P or A (what is None stays); the next solve sets up again."""
        self.P = self.P if P is None else problem.as_array("P", P)
        self.A = self.A if A is None else problem.as_array("A", A)
        self._reset()

    def solve(self, q: Any, b: Any, *, warm_start: Any = None) -> Solution:
        """Solve for q ``(n,)`` or ``(B, n)`` and b ``(m,)`` or ``(B, m)``; as `mlxcone.solve`."""
        return _solve(self.P, q, self.A, b, self.cones, warm_start, self.settings, self._functions)


def _solve(
    P: Any,
    q: Any,
    A: Any,
    b: Any,
    cones: Cones,
    warm_start: Any,
    settings: Settings,
    functions: Any,
) -> Solution:
    args = problem.validate(P, q, A, b, cones.rows)
    product = Product(cones)
    # P = None still needs a place among the arguments.
    none = mx.zeros((1, 1), dtype=args.q.dtype)
    rows = reorder(args.A, product.order, -2), reorder(args.b, product.order, -1)
    data = [none if args.P is None else args.P, args.q, *rows]
    if warm_start is not None:
        data += _warm(warm_start, args, product)
    outputs = functions(cones, settings, args.P is not None, warm_start is not None)(*data)
    return _solution(outputs, args, product, settings)


def _warm(start: Any, args: problem.Arguments, product: Product) -> list[mx.array]:
    m, n = args.A.shape[-2:]
    if len(start) not in (3, len(Solution._fields)):
        raise ValueError(f"warm_start: expected x, y and s, got {len(start)} arrays")
    out = []
    for name, value, size in zip("xys", start, (n, m, m), strict=False):
        array = problem.as_array(f"warm_start.{name}", value)
        shapes = [(size,)] + ([] if args.batch is None else [(args.batch, size)])
        if tuple(array.shape) not in shapes:
            raise ValueError(f"warm_start.{name}: expected shape {shapes[-1]}, got {array.shape}")
        out.append(array if name == "x" else reorder(array, product.order, -1))
    return out


@on_cpu
def _solution(
    outputs: Any, args: problem.Arguments, product: Product, settings: Settings
) -> Solution:
    x, y, s, status, iterations, factorizations, *residuals = outputs[:9]
    y, s = (reorder(v, product.inverse, -1) for v in (y, s))
    solved = (status > 0)[:, None]
    if settings.on_failure == "nan":
        # Added, not chosen: the cotangent still arrives, and the gradient is NaN where it is used.
        blot = mx.where(solved, mx.array(0.0, dtype=mx.float64), mx.nan)
        x, y, s = (v + blot for v in (x, y, s))
    # An ordinary expression of x and the data: it is differentiable like them.
    q = args.q.astype(mx.float64)
    objective = mx.sum(q * x, axis=1)
    if args.P is not None:
        P = args.P.astype(mx.float64)
        Px = x @ P if P.ndim == 2 else (x[:, None, :] @ P)[:, 0]
        objective = objective + 0.5 * mx.sum(x * Px, axis=1)
    nothing = mx.array(mx.nan, dtype=mx.float64)
    objective = mx.where(solved[:, 0], objective, nothing)
    primal, dual, gap = (mx.where(solved[:, 0], r, nothing).astype(args.q.dtype) for r in residuals)
    info = Info(
        status,
        iterations,
        factorizations,
        primal,
        dual,
        gap,
        objective.astype(args.q.dtype),
    )
    x, y, s = (v.astype(args.q.dtype) for v in (x, y, s))
    if args.batch is None:
        return Solution(x[0], y[0], s[0], Info(*(v[0] for v in info)))
    return Solution(x, y, s, info)
