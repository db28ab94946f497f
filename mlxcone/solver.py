"""The public entry points: `solve`, and `Solver` for what stays the same between solves."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from mlxcone import large
from mlxcone.backend.devices import on_cpu
from mlxcone.cones.description import Cones
from mlxcone.cones.product import Product
from mlxcone.derivatives.transforms import Cache, custom
from mlxcone.program import problem, structure
from mlxcone.program.problem import reorder
from mlxcone.program.structure import Structure
from mlxcone.settings import Settings
from mlxcone.solution import Info, Solution, evaluated

_shared_custom = functools.lru_cache(maxsize=256)(custom)


@on_cpu
def solve(
    P: Any,
    q: Any,
    A: Any,
    b: Any,
    cones: Cones | Mapping[str, Any],
    *,
    warm_start: Solution | tuple[mx.array, mx.array, mx.array] | None = None,
    pattern: Any = None,
    settings: Settings | None = None,
    **overrides: Any,
) -> Solution:
    r"""Solve a batch of cone programs, differentiably.

    \[
    \text{minimize } \tfrac12 x^T P x + q^T x \quad
    \text{subject to } A x + s = b,\ s \in K
    \]

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
            batch axis is shared by all problems. Where P and A are SciPy sparse and A has more than
            2^24 places, only their entries are kept: such a solve is for tolerances of 1e-3 to 1e-5
            (``eps=1e-4``) and has no derivatives.
        cones: `Cones` or an SCS dict; rows of A in that order.
        warm_start: a previous `Solution` or (x, y, s) of this shape; carries no gradient.
        pattern: None, or a boolean array ``(m, n)`` that is True where A may be other than zero; A
            must be zero elsewhere, and second derivatives may take it for constant there. The zeros
            of a batch are of use only if they are known from it, those of a shared A are found.
        settings (Settings): see there; ``overrides`` replace single ones.

    Returns:
        Solution: x, y, s of the dtype of the data (float64 if any argument is), ``info`` with a
        status per problem. Never raises for a problem without a solution unless
        ``on_failure="raise"``. The gradient of such a lane is NaN, or zero if its cotangent is.

    Raises:
        ValueError: a shape, a cone, the pattern or a setting does not fit; the message names it.
        TypeError: an argument is not a real numeric array.
        SolverError: with ``on_failure="raise"``, naming the lanes.
    """
    cones = Cones.of(cones)
    settings = Settings.of(settings, overrides)
    if large.applies(P, A):
        return large.solve(P, q, A, b, cones, settings, warm_start)
    return _solve(P, q, A, b, cones, warm_start, settings, _shared_custom, pattern)


class Solver:
    """P and A set up once (equilibrated and factored), for many q and b.

    Args:
        P: None, ``(n, n)`` or ``(B, n, n)``.
        A: ``(m, n)`` or ``(B, m, n)``.
        cones: `Cones` or an SCS dict.
        settings (Settings): see there; ``overrides`` replace single ones.
        pattern: of A, as for `solve`.

    Raises:
        ValueError, TypeError: as `solve`; a P that is not symmetric at the first `Solver.solve`.
    """

    def __init__(
        self,
        P: Any,
        A: Any,
        cones: Cones | Mapping[str, Any],
        settings: Settings | None = None,
        *,
        pattern: Any = None,
        **overrides: Any,
    ) -> None:
        self.cones, self.pattern = Cones.of(cones), pattern
        self.settings = Settings.of(settings, overrides)
        self._set(P, A)

    @on_cpu
    def _set(self, P: Any, A: Any) -> None:
        if large.applies(P, A):
            raise NotImplementedError(
                "Solver: A is sparse and too large to factor; mlxcone.solve takes it"
            )
        P, A = None if P is None else problem.as_array("P", P), problem.as_array("A", A)
        q, b = (mx.zeros(A.shape[axis : axis + 1 or None]) for axis in (-1, -2))
        problem.validate(P, q, A, b, self.cones.rows)
        # A factor made for one P and A must not meet another, even if this is interrupted or a
        # thread comes between: they change in one assignment, and functions go with their cache.
        functions = functools.lru_cache(functools.partial(custom, cache=Cache()))
        self._now: tuple[Any, Any, Any] = (*evaluated((P, A)), functions)

    @property
    def P(self) -> mx.array | None:
        """The P of the next solve, None or an array of the shape it was given in."""
        return self._now[0]

    @property
    def A(self) -> mx.array:
        """The A of the next solve, in the shape it was given in."""
        return self._now[1]

    @on_cpu
    def __reduce__(self) -> Any:
        # In NumPy, which keeps float64 where MLX's pickles do not. The factor is made again.
        one = mx.zeros(1)  # NumPy has no bfloat16
        wide = (a if a is None else a.astype(mx.result_type(a, one)) for a in self._now[:2])
        P, A = (a if a is None else np.array(a) for a in wide)
        make = functools.partial(type(self), pattern=self.pattern)
        return make, (P, A, self.cones, self.settings)

    def update(self, *, P: Any = None, A: Any = None) -> None:
        """Replace P or A; the next solve sets up again.

        Args:
            P: as for `Solver`; None leaves it as it is.
            A: the same.

        Raises:
            ValueError, TypeError: as `Solver`; both stay what they were.
        """
        self._set(self.P if P is None else P, self.A if A is None else A)

    @on_cpu
    def solve(self, q: Any, b: Any, *, warm_start: Any = None) -> Solution:
        """Solve for some q and b, differentiably in P, A, q and b; as `mlxcone.solve`.

        Args:
            q: ``(n,)`` or ``(B, n)``.
            b: ``(m,)`` or ``(B, m)``.
            warm_start: a previous `Solution` or (x, y, s) of this shape; carries no gradient.

        Returns:
            Solution: with a batch axis if P, A, q or b has one.

        Raises:
            ValueError, TypeError, SolverError: as `mlxcone.solve`.
        """
        P, A, functions = self._now
        how = self.settings, functions, self.pattern
        return _solve(P, q, A, b, self.cones, warm_start, *how)


def _solve(
    P: Any,
    q: Any,
    A: Any,
    b: Any,
    cones: Cones,
    start: Any,
    settings: Settings,
    functions: Any,
    pattern: Any = None,
) -> Solution:
    args = problem.validate(P, q, A, b, cones.rows)
    product = Product(cones)
    # P = None still needs a place among the arguments.
    none = mx.zeros((1, 1), dtype=args.q.dtype)
    rows = reorder(args.A, product.order, -2), reorder(args.b, product.order, -1)
    data = [none if args.P is None else args.P, args.q, *rows]
    if start is not None:
        data += _warm(start, args, product)
    # A solve of fixed length may be compiled, and used with other numbers.
    mask = None if pattern is None else _mask(pattern, args, product)
    found = Structure() if settings.fixed_iters else structure.find(args.P, data[2], mask)
    outputs = functions(cones, settings, args.P is not None, start is not None, found)(*data)
    return evaluated(_solution(outputs, args, product, settings))


def _mask(pattern: Any, args: problem.Arguments, product: Product) -> np.ndarray:
    """The pattern of A, its rows in internal order."""
    mask, shape = np.asarray(pattern), args.A.shape[-2:]
    if mask.dtype != bool or mask.shape != tuple(shape):
        raise ValueError(
            f"pattern: expected a boolean array of shape {tuple(shape)}, got {mask.dtype} of shape "
            f"{mask.shape}"
        )
    return mask if product.order is None else mask[product.order]


def _warm(start: Any, args: problem.Arguments, product: Product) -> list[mx.array]:
    m, n = args.A.shape[-2:]
    if not isinstance(start, (tuple, list)) or len(start) not in (3, len(Solution._fields)):
        kind = type(start).__name__
        raise ValueError(
            "warm_start: expected a Solution or (x, y, s), for a layer True or what its "
            f"solve(...) returned, got a value of type {kind}"
        )
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
    objective = mx.where(solved[:, 0], objective, nothing).astype(args.q.dtype)
    primal, dual, gap = (mx.where(solved[:, 0], r, nothing).astype(args.q.dtype) for r in residuals)
    info = Info(status, iterations, factorizations, primal, dual, gap, objective)
    x, y, s = (v.astype(args.q.dtype) for v in (x, y, s))
    if args.batch is None:
        x, y, s, *info = (mx.squeeze(v, 0) for v in (x, y, s, *info))
        return Solution(x, y, s, Info(*info))
    return Solution(x, y, s, info)
