"""The layers that solvers are timed on: seven problems of the field, each with its data.

Every parameter is batched. Names and sizes are those of the tables that the peers publish.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np

Array = np.ndarray


class Case(NamedTuple):
    """A layer: its problem, and how parameter values are drawn.

    ``build()`` gives problem, parameters and variables; ``draw(rng, batch)`` arrays with a leading
    batch axis, one for each parameter.
    """

    name: str
    build: Callable[[], tuple[cp.Problem, list[Any], list[Any]]]
    draw: Callable[[np.random.Generator, int], list[Array]]

    def values(self, batch: int, seed: int = 0) -> list[Array]:
        """Parameter values in float32."""
        drawn = self.draw(np.random.default_rng(seed), batch)
        return [np.ascontiguousarray(v, dtype=np.float32) for v in drawn]


def _quadratic(n: int = 10, m: int = 20) -> Case:
    def build() -> tuple[cp.Problem, list[Any], list[Any]]:
        x = cp.Variable(n)
        root, q = cp.Parameter((n, n)), cp.Parameter(n)
        A, b = cp.Parameter((m, n)), cp.Parameter(m)
        objective = 0.5 * cp.sum_squares(root @ x) + q @ x
        return cp.Problem(cp.Minimize(objective), [A @ x <= b]), [root, q, A, b], [x]

    def draw(rng: np.random.Generator, batch: int) -> list[Array]:
        root = rng.normal(size=(batch, n, n)) / np.sqrt(n) + 0.5 * np.eye(n)
        A = rng.normal(size=(batch, m, n))
        inside = A @ rng.normal(size=(batch, n, 1)) * 0.3
        b = inside[..., 0] + rng.uniform(0.1, 1.0, size=(batch, m))
        return [root, rng.normal(size=(batch, n)), A, b]

    return Case("dense QP", build, draw)


def _least_squares(rows: int = 20, columns: int = 10) -> Case:
    def build() -> tuple[cp.Problem, list[Any], list[Any]]:
        x, A, b = cp.Variable(columns), cp.Parameter((rows, columns)), cp.Parameter(rows)
        return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0]), [A, b], [x]

    def draw(rng: np.random.Generator, batch: int) -> list[Array]:
        return [rng.normal(size=(batch, rows, columns)), rng.normal(size=(batch, rows))]

    return Case("nonnegative least squares", build, draw)


def _simplex(n: int = 100) -> Case:
    def build() -> tuple[cp.Problem, list[Any], list[Any]]:
        x, p = cp.Variable(n), cp.Parameter(n)
        return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0]), [p], [x]

    return Case("simplex projection", build, lambda rng, batch: [rng.normal(size=(batch, n))])


def _portfolio(n: int = 50, factors: int = 10) -> Case:
    def build() -> tuple[cp.Problem, list[Any], list[Any]]:
        w, mu = cp.Variable(n), cp.Parameter(n)
        F, own = cp.Parameter((factors, n)), cp.Parameter(n, nonneg=True)
        risk = cp.norm(cp.hstack([F @ w, cp.multiply(own, w)]), 2)
        objective = cp.Maximize(mu @ w - risk)
        return cp.Problem(objective, [cp.sum(w) == 1, w >= 0]), [mu, F, own], [w]

    def draw(rng: np.random.Generator, batch: int) -> list[Array]:
        mu = 0.1 * rng.normal(size=(batch, n))
        F = 0.3 * rng.normal(size=(batch, factors, n)) / np.sqrt(factors)
        return [mu, F, rng.uniform(0.1, 0.4, size=(batch, n))]

    return Case("portfolio, second-order cone", build, draw)


def _entropy(n: int = 20) -> Case:
    def build() -> tuple[cp.Problem, list[Any], list[Any]]:
        x, c = cp.Variable(n), cp.Parameter(n)
        objective = cp.Maximize(c @ x + cp.sum(cp.entr(x)))
        return cp.Problem(objective, [cp.sum(x) == 1]), [c], [x]

    return Case(
        "softmax, exponential cones", build, lambda rng, batch: [rng.normal(size=(batch, n))]
    )


def _max_cut(n: int) -> Case:
    def build() -> tuple[cp.Problem, list[Any], list[Any]]:
        X, C = cp.Variable((n, n), PSD=True), cp.Parameter((n, n), symmetric=True)
        return cp.Problem(cp.Maximize(cp.trace(C @ X)), [cp.diag(X) == 1]), [C], [X]

    def draw(rng: np.random.Generator, batch: int) -> list[Array]:
        upper = np.triu(rng.uniform(size=(batch, n, n)) < 0.5, 1) * rng.uniform(size=(batch, n, n))
        weights = upper + np.swapaxes(upper, 1, 2)
        return [0.25 * (np.eye(n) * weights.sum(axis=2)[:, None, :] - weights)]

    return Case(f"max-cut SDP, n = {n}", build, draw)


CASES = {
    "qp": _quadratic(),
    "nnls": _least_squares(),
    "simplex": _simplex(),
    "portfolio": _portfolio(),
    "entropy": _entropy(),
    "maxcut10": _max_cut(10),
    "maxcut20": _max_cut(20),
}
