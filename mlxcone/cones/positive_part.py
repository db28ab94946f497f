"""The positive part of symmetric matrices, and functions of its derivative, differentiable.

With X = Q diag(l) Q', the derivative D of X_+ = Q diag(max(l, 0)) Q' takes V to Q (t * W) Q',
where W = Q'VQ and t_ij is the divided difference of max(l, 0) between l_i and l_j (Malick, Sendov
2006); f(D) has f(t) for t. Eigenvectors have no derivative where eigenvalues meet, f(D) has one
there all the same: by the rule of Daleckii and Krein, taken once more, it moves with X along
Q E Q' by Q (T + T') Q' with

    T_ij = sum_k E_ik W_kj C_ikj,      C_ikj = (f(t_kj) - f(t_ij)) / (l_k - l_i),

where C is found without the subtractions. So D, and everything solved with D, has derivatives;
MLX's own eigenvectors have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from mlxcone.backend.devices import on_cpu
from mlxcone.backend.linalg import symmetric_eigen
from mlxcone.cones.base import Spectral

# Between nearer arguments (relative to what is left to 1, where the functions of the solver have
# their pole) the slope in the middle is better than a difference quotient.
_NEAR = 1e-5

_custom_function: Any = mx.custom_function  # the stubs of MLX say that it returns objects


class Eigen(NamedTuple):
    """Matrices (B, count, n, n), their eigenvalues (B, count, n) and eigenvectors, as constants.

    Derivatives go through ``matrix`` alone.
    """

    matrix: mx.array
    values: mx.array
    vectors: mx.array


def decompose(matrix: mx.array) -> Eigen:
    """Eigenvalues and eigenvectors of symmetric matrices, (B, count, n, n)."""
    return Eigen(matrix, *symmetric_eigen(mx.stop_gradient(matrix)))


def slopes(values: mx.array) -> mx.array:
    """Divided differences of max(x, 0) between eigenvalues, (..., n) to (..., n, n)."""
    positive, size = mx.maximum(values, 0.0), mx.abs(values)
    # Nothing cancels, and equal eigenvalues need no case of their own.
    above = positive[..., :, None] + positive[..., None, :]
    whole = size[..., :, None] + size[..., None, :]
    return above / mx.where(whole > 0, whole, 1.0)


def _second_slopes(values: mx.array) -> mx.array:
    """Second divided differences of max(x, 0), (..., n) to (..., n, n, n), symmetric.

    With d alone on one side of zero and p, q on the other: |d| / ((|d| + |p|) (|d| + |q|)).
    """
    three = (values[..., :, None, None], values[..., None, :, None], values[..., None, None, :])
    total = mx.zeros((), dtype=values.dtype)
    for i in range(3):
        d, p, q = (three[(i + k) % 3] for k in range(3))
        alone = (mx.sign(d) * mx.sign(p) < 0) & (mx.sign(d) * mx.sign(q) < 0)
        first, second = (mx.where(alone, mx.abs(d) + mx.abs(other), 1.0) for other in (p, q))
        total = total + mx.where(alone, mx.abs(d) / first / second, 0.0)
    return total


def _quotient(function: Spectral, a: mx.array, b: mx.array) -> mx.array:
    """(f(b) - f(a)) / (b - a), and the derivative of f where a and b meet; a, b in [0, 1]."""
    middle = 0.5 * (a + b)
    near = mx.abs(b - a) <= _NEAR * (1.0 - mx.maximum(a, b))
    _, slope = mx.jvp(lambda t: function(t), [middle], [mx.ones_like(middle)])
    return mx.where(near, slope[0], (function(b) - function(a)) / mx.where(near, 1.0, b - a))


def _bends(function: Spectral, values: mx.array) -> mx.array:
    """C_ikj, with j first: (..., j, i, k)."""
    t = mx.swapaxes(slopes(values), -1, -2)
    return _quotient(function, t[..., :, None], t[..., None, :]) * _second_slopes(values)


def _transpose(matrices: mx.array) -> mx.array:
    return mx.swapaxes(matrices, -1, -2)


def _turn(vectors: mx.array, matrices: mx.array) -> mx.array:
    """Q V Q'."""
    return vectors @ matrices @ _transpose(vectors)


def _by_lanes(function: Any) -> Callable[[Any, Any], Any]:
    """The vmap rule of a function of arrays with lanes first: the mapped axis joins the lanes."""

    @on_cpu
    def rule(arguments: Any, axes: Any) -> Any:
        pairs = list(zip(arguments, axes, strict=True))
        size = next(a.shape[axis] for a, axis in pairs if axis is not None)
        stacked = [
            mx.broadcast_to(a[None], (size, *a.shape)) if axis is None else mx.moveaxis(a, axis, 0)
            for a, axis in pairs
        ]
        out = function(*(a.reshape(-1, *a.shape[2:]) for a in stacked))
        return out.reshape(size, -1, *out.shape[1:]), 0

    return rule


def _last(value: mx.array, matrix: mx.array) -> mx.array:
    """``value``, which moves with ``matrix`` in a way that is not known here."""

    @_custom_function
    def last(value: mx.array, matrix: mx.array) -> mx.array:
        return value

    def refuse(*_: Any) -> Any:
        raise NotImplementedError(
            "third derivatives of the projection onto semidefinite matrices are not implemented"
        )

    last.vjp(refuse)
    last.jvp(refuse)
    last.vmap(_by_lanes(last))
    return last(value, matrix)


def _applied(function: Spectral) -> Any:
    """f(D) V as a custom function of X, f(t), V (B, count, k, n, n), and l and Q."""

    @_custom_function
    def apply(
        matrix: mx.array, weights: mx.array, V: mx.array, values: mx.array, vectors: mx.array
    ) -> mx.array:
        Q = vectors[:, :, None]
        return _turn(Q, weights[:, :, None] * _turn(_transpose(Q), V))

    @apply.vjp
    @on_cpu
    def vjp(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
        matrix, weights, V, values, vectors = primals
        bar = 0.5 * (cotangent + _transpose(cotangent))
        Qt = _transpose(vectors)[:, :, None]
        W, S = _turn(Qt, V), _turn(Qt, bar)
        # sum_j C_ikj sum_columns S_ij W_kj, with j first
        left, right = (mx.transpose(a, (0, 1, 4, 3, 2)) for a in (S, W))
        E = mx.sum(_bends(function, values) * (left @ _transpose(right)), axis=2)
        bent = _turn(vectors, E + _transpose(E))
        return (
            _last(bent, matrix),
            mx.sum(S * W, axis=2),
            apply(matrix, weights, bar, values, vectors),
            mx.zeros_like(values),
            mx.zeros_like(vectors),
        )

    @apply.jvp
    @on_cpu
    def jvp(primals: Any, tangents: Any) -> mx.array:
        matrix, weights, V, values, vectors = primals
        d_matrix, d_weights, dV = tangents[:3]
        moved = mx.zeros_like(V)
        if dV is not None:
            moved = moved + apply(matrix, weights, dV, values, vectors)
        if d_weights is not None:
            moved = moved + apply(matrix, d_weights, V, values, vectors)
        if d_matrix is not None:
            Q = vectors[:, :, None]
            W, E = _turn(_transpose(Q), V), _turn(_transpose(vectors), d_matrix)
            columns = mx.transpose(W, (0, 1, 4, 3, 2))  # j, k, column
            T = (_bends(function, values) * E[:, :, None]) @ columns  # j, i, column
            T = mx.transpose(T, (0, 1, 4, 3, 2))
            moved = moved + _last(_turn(Q, T + _transpose(T)), matrix)
        return moved

    apply.vmap(_by_lanes(apply))
    return apply


@on_cpu
def derivative_times(
    eigen: Eigen, eigenvalues: mx.array, function: Spectral, V: mx.array
) -> mx.array:
    """function(D) V for symmetric V, (B or 1, count, k, n, n); differentiable once in X and V.

    ``eigenvalues`` are those of D, the `slopes`.
    """
    # Outside of the rules, so that what the function captures has its derivative, too.
    weights = function(eigenvalues)
    V = mx.broadcast_to(V, (weights.shape[0], *V.shape[1:]))
    return _applied(function)(eigen.matrix, weights, V, eigen.values, eigen.vectors)


@_custom_function
def _value(matrix: mx.array, values: mx.array, vectors: mx.array) -> mx.array:
    scaled = vectors * mx.maximum(values, 0.0)[..., None, :]
    return scaled @ _transpose(vectors)


def _moved(primals: Any, direction: mx.array) -> mx.array:
    """D times one direction, (B, count, n, n); D is symmetric."""
    symmetric = 0.5 * (direction + _transpose(direction))
    eigen = Eigen(*primals)
    V = symmetric[:, :, None]
    return derivative_times(eigen, slopes(eigen.values), lambda t: t, V)[:, :, 0]


@_value.vjp
@on_cpu
def _value_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
    return _moved(primals, cotangent), mx.zeros_like(primals[1]), mx.zeros_like(primals[2])


@_value.jvp
@on_cpu
def _value_jvp(primals: Any, tangents: Any) -> mx.array:
    return mx.zeros_like(primals[0]) if tangents[0] is None else _moved(primals, tangents[0])


_value.vmap(_by_lanes(_value))


@on_cpu
def value(eigen: Eigen) -> mx.array:
    """X_+; differentiable twice in X."""
    return _value(*eigen)
