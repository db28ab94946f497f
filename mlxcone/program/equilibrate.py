"""Ruiz equilibration and normalization (Ruiz 2001; O'Donoghue 2021, section 5; uniform in a cone).

Equation 5 of docs/mathematics.md. With d, e > 0 and scalars beta (primal) and gamma (dual):

    A^ = E A D,  P^ = (gamma / beta) D P D,  q^ = gamma D q,  b^ = beta E b,
    x = D x^ / beta,  y = E y^ / gamma,  s = E^-1 s^ / beta.

All factors are powers of two, so scaling and unscaling are exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from mlxcone.cones.product import Product
from mlxcone.program.operators import Rectangular, padded
from mlxcone.program.problem import Program, take_lanes
from mlxcone.program.sparse import SparseProgram

_PASSES = 10
_EVEN = 8.0  # norms of rows and columns that differ by no more are left alone
_LEAST, _MOST = 2.0**-14, 2.0**14
_WELL_ABOVE = 1e-3  # zero: entries of an equilibrated P that may be divided by


class Scaling(NamedTuple):
    """d (1 or B, n), e (1 or B, m), primal and dual (B, 1)."""

    d: mx.array
    e: mx.array
    primal: mx.array
    dual: mx.array

    def take(self, lanes: mx.array) -> Scaling:
        """The factors of some lanes."""
        d, e = (take_lanes(a, lanes, 2) for a in (self.d, self.e))
        return Scaling(d, e, self.primal[lanes], self.dual[lanes])

    def astype(self, dtype: mx.Dtype) -> Scaling:
        """In another dtype; powers of two survive."""
        return Scaling(*(a.astype(dtype) for a in self))

    def neutral(self) -> Scaling:
        """All factors 1: residuals measured with it are those of the equilibrated program."""
        return Scaling(*(mx.ones_like(a) for a in self))

    def unscale(self, x: mx.array, y: mx.array, s: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """From equilibrated to original variables."""
        return x * self.d / self.primal, y * self.e / self.dual, s / (self.e * self.primal)

    def scale(self, x: mx.array, y: mx.array, s: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """From original to equilibrated variables."""
        return x * self.primal / self.d, y * self.dual / self.e, s * self.e * self.primal


def _power_of_two(value: mx.array) -> mx.array:
    return mx.power(mx.array(2.0, dtype=value.dtype), mx.round(mx.log2(value)))


def _inverse_root(norms: mx.array) -> mx.array:
    """1 / sqrt(norm), 1 where a row or column is empty."""
    return mx.where(norms > 0, mx.rsqrt(mx.maximum(norms, 1e-30)), 1.0)


def _largest(matrix: mx.array, axis: int) -> mx.array:
    """Over an axis of (m, n, lanes), as (lanes, the other)."""
    return mx.max(matrix, axis=axis).T if matrix.size else mx.zeros((matrix.shape[2], 1))


def _lanes_last(array: mx.array) -> mx.array:
    return mx.contiguous(mx.moveaxis(array, 0, -1))


# For d and e: largest entry of each column of (D P D ; E A D), and of each row of E A D, uniform
# in K.
_Norms = Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]


def _dense(program: Program, cones: Product) -> tuple[_Norms, mx.array]:
    """The norms of a dense program, and the factor that makes its A of size 1."""

    def sizes(array: mx.array, axes: int) -> mx.array:
        # float32 is plenty for factors that are rounded to powers of two.
        found = mx.abs(array).astype(mx.float32)
        return found if found.ndim == axes else found[None]

    A, n = program.A, program.n
    rest = A.matrix if not A.places else None if A.dense is None else A.dense[0]
    P, rest = (None if v is None else sizes(v, 3) for v in (program.P, rest))
    entries = [sizes(v, 2) for v in A.entries]
    flat = [] if rest is None else [rest.reshape(rest.shape[0], rest.shape[1] * n)]
    size = _normalizer(*entries, *flat)
    lanes = max(size.shape[0], 1 if P is None else P.shape[0])
    # With the lanes last, maxima of rows and columns run along them, twice as fast.
    P, rest = (None if v is None else _lanes_last(v) for v in (P, rest))
    entries = [_lanes_last(v) for v in entries]

    def norms(d: mx.array, e: mx.array) -> tuple[mx.array, mx.array]:
        parts: list[mx.array] = []
        others = None
        across, down = _lanes_last(d), _lanes_last(e)
        if rest is not None:
            some = _lanes_last(A.other_rows(e)) if A.places else down
            scaled = rest * some[:, None] * across[None]
            others = _largest(scaled, 1)
            parts.append(_largest(scaled, 0))
        blocks = []
        for (i, j, k), entry in zip(A.places, entries, strict=True):
            block = (entry * down[i : i + k] * across[j : j + k]).T
            blocks.append(block)
            parts.append(padded(block, j, n))
        if P is not None:
            parts.append(_largest(P * across[:, None] * across[None], 0))
        rows = others if not A.places else A.in_order(blocks, others)
        assert rows is not None
        return functools.reduce(mx.maximum, parts), cones.uniform(rows)

    return norms, mx.broadcast_to(size, (lanes, 1))


def _sparse(program: SparseProgram, cones: Product) -> tuple[_Norms, mx.array]:
    """The same of a sparse one."""
    A = program.A.astype(mx.float32)
    P = None if program.P is None else program.P.astype(mx.float32)

    def norms(d: mx.array, e: mx.array) -> tuple[mx.array, mx.array]:
        column = d * A.columns.largest(e[0])[None]
        if P is not None:
            column = mx.maximum(column, d * P.rows.largest(d[0])[None])
        return column, cones.uniform(e * A.rows.largest(d[0])[None])

    return norms, _normalizer(A.rows.largest(mx.ones((program.n,)))[None])


def _ruiz(norms: _Norms, size: mx.array, n: int, m: int, look: bool) -> tuple[mx.array, mx.array]:
    """D and E, (1 or B, .), for a program whose A is made of size 1 by ``size`` (1 or B, 1)."""
    lanes = size.shape[0]
    # The bounds below hold relative to the size of A as a whole.
    first = mx.ones((lanes, n), dtype=mx.float32), mx.broadcast_to(size, (lanes, m))
    found = norms(*first)
    fine = mx.logical_and(_even(found[0]), _even(found[1]))
    if look and bool(mx.all(fine).item()):
        return first
    d, e = first
    for left in reversed(range(_PASSES)):
        column, row = found
        d = mx.clip(d * _inverse_root(column), _LEAST, _MOST)
        e = mx.clip(e * _inverse_root(row), _LEAST * size, _MOST * size)
        found = norms(d, e) if left else found
    e = _power_of_two(mx.where(found[1] > 0, e, 1.0))
    return mx.where(fine, first[0], _power_of_two(d)), mx.where(fine, first[1], e)


def _even(norms: mx.array) -> mx.array:
    """Whether the norms of a lane are about 1, (B, 1)."""
    near = mx.logical_and(norms >= 1.0 / _EVEN, norms <= _EVEN)
    return mx.all(mx.logical_or(near, norms == 0), axis=1, keepdims=True)


def _normalizer(*vectors: mx.array) -> mx.array:
    """1 / largest entry, as a power of two; 1 when all is zero."""
    whole = mx.concatenate([mx.abs(v) for v in vectors], axis=1)
    if whole.size == 0:
        return mx.ones((whole.shape[0], 1), dtype=whole.dtype)
    largest = mx.max(whole, axis=1, keepdims=True)
    return mx.where(largest > 0, _power_of_two(1.0 / mx.maximum(largest, 1e-30)), 1.0)


class Setup(NamedTuple):
    """What depends on P and A alone: d (1 or B, n), e (1 or B, m), P^ and A^.

    ``diagonal`` is that of P^ if P^ is diagonal and well away from zero.
    """

    d: mx.array
    e: mx.array
    P: mx.array | None
    A: Rectangular
    diagonal: mx.array | None = None

    def program(self, q: mx.array, b: mx.array) -> Program:
        """With these q and b."""
        return Program(self.P, q, self.A, b, self.diagonal)


def setup(program: Program, cones: Product, normalize: bool, look: bool = True) -> Setup:
    """Equilibrate the matrices of a float64 program; all factors 1 if ``normalize`` is off.

    Lanes whose rows and columns are of one size already are left alone; without ``look``, that
    they all may be is no reason to evaluate anything.
    """
    dtype = program.q.dtype
    if normalize:
        size = program.n, program.m
        d, e = (a.astype(dtype) for a in _ruiz(*_dense(program, cones), *size, look))
    else:
        d, e = (mx.ones((1, size), dtype=dtype) for size in (program.n, program.m))
    P, A = _scaled_matrices(program, d, e)
    made = Program(P, program.q, A, program.b)
    if program.diagonal is not None:
        made = with_diagonal(made)
    return Setup(d, e, P, A, made.diagonal)


def with_diagonal(program: Program) -> Program:
    """An equilibrated program whose shared P is diagonal, told so if it may be divided by."""
    assert program.P is not None
    diagonal = mx.diagonal(program.P)
    usable = bool(mx.all(diagonal >= _WELL_ABOVE).item())
    return program._replace(diagonal=diagonal if usable else None)


def sparse(program: SparseProgram, cones: Product, enabled: bool) -> tuple[Scaling, SparseProgram]:
    """The factors of a sparse float64 program, and that program equilibrated."""
    d, e = (mx.ones((1, size), dtype=program.q.dtype) for size in (program.n, program.m))
    if enabled:
        size = program.n, program.m
        d, e = (a.astype(d.dtype) for a in _ruiz(*_sparse(program, cones), *size, True))
    A = program.A.scaled(e[0], d[0])
    P = None if program.P is None else program.P.scaled(d[0], d[0])
    scaling = _of_vectors(d, e, P is None, program.q, program.b, enabled)
    q, b = program.q * d * scaling.dual, program.b * e * scaling.primal
    return scaling, SparseProgram(P, q, A, b)


def normalize(setup: Setup, program: Program, enabled: bool) -> tuple[Scaling, Program]:
    """Add the factors that depend on q and b; returns them and the equilibrated program."""
    d, e = setup.d, setup.e
    scaling = _of_vectors(d, e, program.P is None, program.q, program.b, enabled)
    return scaling, setup.program(program.q * d * scaling.dual, program.b * e * scaling.primal)


def _of_vectors(
    d: mx.array, e: mx.array, linear: bool, q: mx.array, b: mx.array, enabled: bool
) -> Scaling:
    """D and e with the factors that depend on q and b."""
    primal = dual = mx.ones((q.shape[0], 1), dtype=q.dtype)
    if enabled and linear:
        primal, dual = _normalizer(b * e), _normalizer(q * d)
    elif enabled:
        # One factor for both keeps P^ = D P D: a shared P stays shared.
        primal = dual = _normalizer(b * e, q * d)
    return Scaling(d, e, primal, dual)


def apply(scaling: Scaling, program: Program) -> Program:
    """The equilibrated program, as a graph of its data."""
    d, e = scaling.d, scaling.e
    P, A = _scaled_matrices(program, d, e)
    return Program(P, program.q * d * scaling.dual, A, program.b * e * scaling.primal)


def _scaled_matrices(
    program: Program, d: mx.array, e: mx.array
) -> tuple[mx.array | None, Rectangular]:
    """D P D and E A D; shared if both the matrix and the factors are."""
    one = d.shape[0] == 1

    def scaled(matrix: mx.array, left: mx.array, right: mx.array) -> mx.array:
        if matrix.ndim == 2 and one:
            return matrix * left[0][:, None] * right[0][None, :]
        return matrix * left[:, :, None] * right[:, None, :]

    P = None if program.P is None else scaled(program.P, d, d)
    return P, Rectangular.of(scaled(program.A.matrix, e, d), program.A.sparsity)
