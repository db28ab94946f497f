"""J reduced to n x n: factor and solve (docs/mathematics.md, equation 6).

With sigma, eps > 0 in place of the zero blocks, M = J + diag(sigma I, -eps I) has
E = (1 + eps) I - D in its corner, which is easy to invert cone by cone. With W = D E^-1 (so that
E^-1 = (I + W) / (1 + eps)) and H = P + sigma I + A'W A (symmetric positive definite),

    M (dx, dz) = (r, t):    H dx = r + A'W t,            dz = E^-1 (A dx - t),
    M'(gx, gz) = (r, t):    H gx = r + A'E^-1 t,         gz = W A gx - E^-1 t.

Sweeps of iterative refinement on J itself remove the bias of sigma and eps.

Where J is singular, one solve with M divides what lies in its kernel by sigma or eps, and every
sweep adds that again. `Jacobian.solve_range` leaves it out. There the right-hand side is (r, D v),
so that with C = D^-1 - I (infinite where D is 0) the system is symmetric and quasi-definite,

    K = [ P, A' ; A, -C ],    M = K + S,    S = diag(sigma I, -eps D^-1),

and its kernel is a sum of two: directions of x alone (P x = 0, D A x = 0: the solution is not
unique) and multipliers alone (D z = z, A'z = 0: active constraints depend on each other). On it
X = K M^-1 is 0, elsewhere nearly 1, and Y = I - X is a contraction if sigma = eps, as K S^-1 is
monotone. After k sweeps what is left of a right-hand side is Y^k of it, which tends to its part in
the kernel, and M^-1 of that is what each sweep has added in vain. Without it, the sum is

    K^-1 (I - Y^k) - k M^-1 Y^k = M^-1 (I + 2 Y + 3 Y^2 + ... + k Y^(k-1)) X,

which is zero on the kernel and tends to the pseudoinverse of K, with the error (I + k X) Y^k. Its
terms are large there, and what their rounding leaves is taken out, too: I - (M^-1 S)^k is zero on
the kernel and I - Y^k elsewhere. A lane whose steps have become small beside their sum has no part
in a kernel, for that would be in all of them: its sum is left as it is. The graph is the same for
regular and singular lanes, but for those that are known to be done where there are values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxcone.backend import lanes
from mlxcone.backend.linalg import spd_root
from mlxcone.cones.base import Spectral
from mlxcone.cones.product import Product
from mlxcone.kkt import low_rank, separable
from mlxcone.kkt.low_rank import LowRank
from mlxcone.kkt.separable import Separable
from mlxcone.program import residual_map
from mlxcone.program.operators import Rectangular, padded, row_times
from mlxcone.program.pairs import Pairs
from mlxcone.program.problem import Program, take_lanes
from mlxcone.program.residual_map import Pair

EPSILON = 1e-6  # on the cone block; equal to SIGMA, the product far above rounding
SIGMA = 1e-6  # on the x block
_FIRST_SWEEPS = 4  # in every lane: second derivatives converge later than first ones
_SETTLED = 1e-9  # last step, beside the whole, of a lane that needs no more
_ROUNDING = 1e-2  # of a solve where J is singular, relative; a hundred times its size


def normal_matrix(program: Program, weighted: mx.array, sigma: float | mx.array) -> mx.array:
    """P + sigma I + A'(weighted), where ``weighted`` is W A, (m, n) or (B, m, n)."""
    eye = mx.eye(program.n, dtype=program.q.dtype)
    base = sigma * eye if program.P is None else program.P + sigma * eye
    if program.m == 0:  # MLX multiplies no empty matrices
        return base + mx.zeros((*weighted.shape[:-2], 1, 1), dtype=base.dtype)
    return base + program.A.transpose_product(weighted)


def _penalty(eps: float) -> Spectral:
    return lambda eigenvalue: eigenvalue / ((1.0 + eps) - eigenvalue)


def _with_values(function: Spectral, atoms: list[Any]) -> Spectral:
    """The function, with its values at the eigenvalues of D made once.

    `mx.compile` loses a part of a graph that makes the same of one array three times.
    """
    known = {id(a.eigenvalues): (a.eigenvalues, function(a.eigenvalues)) for a in atoms}
    return lambda e: known[id(e)][1] if id(e) in known else function(e)


class Root(NamedTuple):
    """R (B, n, n), lower triangular, with R'R = H^-1: a product more than H^-1, but soon made."""

    root: mx.array

    def times(self, v: mx.array) -> mx.array:
        """H^-1 v, (B, n)."""
        return row_times(row_times(v, mx.swapaxes(self.root, -1, -2)), self.root)

    def take(self, chosen: mx.array) -> Root:
        """Some lanes."""
        return Root(take_lanes(self.root, chosen, 3))


Factor = Root | LowRank | Separable


def gram(
    program: Program, cones: Product, atoms: list[Any], function: Any, fine: bool = False
) -> mx.array:
    """A'function(D) A, (B, n, n), to the last digit of its largest entries.

    If ``fine``, to the last digit of all that a cone adds.
    """
    A, n = program.A, program.n
    k = cones.linear if fine else cones.straight
    pairs = _pairs(A, A.others)
    if k == 0 or (fine and pairs is None):
        parts = cones.rest_of_gram(atoms, function, _with_lanes(A.matrix), _rows(A), 0)
        return functools.reduce(mx.add, parts)
    parts = cones.rest_of_gram(atoms, function, _with_lanes(A.matrix), _rows(A), k)
    w = cones.weights(atoms, function, k)
    if pairs is not None:
        parts.append(pairs.gram(A.matrix, w))
    elif A.places:
        w = padded(w, 0, program.m)
        parts.append(low_rank.slopes(program, w)[..., None] * mx.eye(n, dtype=w.dtype))
        if A.dense is not None:
            parts.append(A.dense[1] @ (A.other_rows(w)[..., None] * A.dense[0]))
    else:
        rows, columns = A.matrix[..., :k, :], A.transposed[..., :k]
        parts.append(columns @ (w[..., None] * rows))
    return functools.reduce(mx.add, parts)


def _pairs(A: Rectangular, rows: int) -> Pairs | None:
    """Those of a shared A where they are less work than ``rows`` of it."""
    pairs = A.sparsity.pairs if A.matrix.ndim == 2 else None
    return pairs if pairs is not None and pairs.pay(rows) else None


def _rows(A: Rectangular) -> np.ndarray | None:
    return None if A.sparsity.columns is None else A.sparsity.columns.rows


def _with_lanes(matrix: mx.array) -> mx.array:
    return matrix if matrix.ndim == 3 else matrix[None]


def root(
    program: Program, cones: Product, atoms: list[Any], eps: float = EPSILON, sigma: float = SIGMA
) -> tuple[Root, mx.array]:
    """H's factor, zero where it has none, and whether there is one, (B,)."""
    H = sigma * mx.eye(program.n, dtype=program.q.dtype)
    H = H if program.P is None else H + program.P
    if program.m:
        H = H + gram(program, cones, atoms, _penalty(eps))
    H = mx.broadcast_to(H, (program.lanes, program.n, program.n))
    R, ok = spd_root(H)
    return Root(mx.where(ok[:, None, None], R, 0.0)), ok


def factor(program: Program, cones: Product, atoms: list[Any]) -> Factor:
    """H's factor in the form that fits the program; zero in lanes where H has none."""
    penalty, further = _penalty(EPSILON), cones.corrected
    flat = program.diagonal is not None if cones.polyhedral else cones.straight == cones.rows
    if flat and low_rank.fits(program, further):
        weights = cones.weights(atoms, penalty, cones.rows)
        pair = cones.corrections(atoms, penalty, _with_lanes(program.A.matrix)) if further else ()
        return low_rank.factor(program, weights, SIGMA, *pair).or_zero()
    if (blocks := separable.plan(program, cones)) is not None:
        return separable.factor(program, cones, atoms, penalty, blocks, SIGMA).or_zero()
    return root(program, cones, atoms)[0]


class Jacobian:
    """J at one point, with an approximate H^-1, ready to solve with J and J'.

    Args:
        program (Program): equilibrated program.
        cones (Product): its cones.
        atoms (list): D at the point.
        factor (Factor): of H there or near it.
        sweeps (int): sweeps of iterative refinement.
    """

    def __init__(
        self,
        program: Program,
        cones: Product,
        atoms: list[Any],
        factor: Factor,
        sweeps: int = 2,
        eps: float = EPSILON,
    ) -> None:
        self.program, self.cones, self.atoms = program, cones, atoms
        self.factor, self.sweeps, self.eps = factor, sweeps, eps
        self._penalty = _with_values(_penalty(eps), atoms)

    def _weight(self, v: mx.array) -> mx.array:
        return self.cones.spectral(self.atoms, self._penalty, v)

    def _reduced(self, r: mx.array, t: mx.array) -> Pair:
        A = self.program.A
        dx = self.factor.times(r + A.transpose_times(self._weight(t)))
        v = A.times(dx) - t
        return dx, (v + self._weight(v)) / (1.0 + self.eps)

    def _reduced_transpose(self, r: mx.array, t: mx.array) -> Pair:
        A = self.program.A
        u = (t + self._weight(t)) / (1.0 + self.eps)
        gx = self.factor.times(r + A.transpose_times(u))
        return gx, self._weight(A.times(gx)) - u

    def solve(self, r: mx.array, t: mx.array) -> Pair:
        """(dx, dz) with J (dx, dz) = (r, t)."""
        return self._refine(self._reduced, residual_map.jacobian_times, (r, t))

    def solve_transpose(self, r: mx.array, t: mx.array) -> Pair:
        """(gx, gz) with J'(gx, gz) = (r, t)."""
        return self._refine(self._reduced_transpose, residual_map.transpose_times, (r, t))

    def solve_range(self, r: mx.array, t: mx.array, look: bool = False) -> tuple[Pair, mx.array]:
        """J'(gx, gz) = (r, t) for t in the range of D; least-norm where J is singular.

        Args:
            r, t (mx.array): (B, n) and (B, m).
            look (bool): leave out what changes nothing, where there are values to tell by.

        Returns:
            tuple: the pair (gx, gz), and per lane, (B,), an estimate of what the sweeps left of
            the part of (r, t) that can be matched, relative to (r, t).
        """
        left, w = (r, t), (mx.zeros_like(r), mx.zeros_like(t))
        images, settled = [left], mx.zeros((r.shape[0],), dtype=mx.bool_)
        for sweep in range(self.sweeps):
            step, image = self._sweep(left)
            w, left = _unless(settled, _add(w, 1.0, step), w), _add(left, -1.0, image)
            images.append(image)
            if sweep + 1 < _FIRST_SWEEPS:
                continue
            # Where J is regular, steps become small; what lies in the kernel is in all of them.
            small = mx.stop_gradient(_size(step) <= _SETTLED * _size(w))
            settled = mx.logical_or(settled, small)
            if look and (rest := lanes.few(settled)) is not None:
                remainder = mx.stop_gradient(_remainder(images, left))
                return self._finish(rest, r, t, w, remainder)
        # Every sweep has added M^-1 of the same: what cannot be matched.
        found, w = w, _add(w, -float(self.sweeps), self._reduced_transpose(*left))
        # M^-1 has made 1e6 times as much of the rounding of what is left. What of that is in the
        # kernel, (M^-1 S)^k leaves as it is; of the rest it leaves as much as the sweeps, Y^k.
        kernel = w
        for _ in range(self.sweeps):
            kernel = self._reduced_transpose(SIGMA * kernel[0], -self.eps * kernel[1])
        w = _unless(settled, _add(w, -1.0, kernel), found)
        return w, mx.stop_gradient(_remainder(images, left))

    def _finish(
        self, rest: list[int], r: mx.array, t: mx.array, w: Pair, remainder: mx.array
    ) -> tuple[Pair, mx.array]:
        """`solve_range` of the lanes that are left, by themselves."""
        if not rest:
            return w, remainder
        total = r.shape[0]
        chosen = lanes.bucket(rest, total)
        again, more = self.take(chosen).solve_range(r[chosen], t[chosen])
        # By gathers alone, which have every derivative.
        row = dict(zip(rest, range(total, total + len(rest)), strict=True))
        at = mx.array([row.get(lane, lane) for lane in range(total)])
        parts = zip((*w, remainder), (*again, more), strict=True)
        gx, gz, left = (mx.concatenate(list(both), axis=0)[at] for both in parts)
        return (gx, gz), left

    def take(self, chosen: mx.array) -> Jacobian:
        """Some lanes."""
        return Jacobian(
            self.program.take(chosen),
            self.cones,
            lanes.take_tree(self.atoms, chosen),
            self.factor.take(chosen),
            self.sweeps,
            self.eps,
        )

    def _sweep(self, left: Pair) -> tuple[Pair, Pair]:
        """A step towards what is left, and what it matches."""
        step = self._reduced_transpose(*left)
        return step, residual_map.transpose_times(self.program, self.cones, self.atoms, step)

    def _refine(self, solve: Callable[..., Pair], product: Callable[..., Pair], rhs: Pair) -> Pair:
        w = solve(*rhs)
        for _ in range(self.sweeps):
            image = product(self.program, self.cones, self.atoms, w)
            step = solve(rhs[0] - image[0], rhs[1] - image[1])
            w = (w[0] + step[0], w[1] + step[1])
        return w


def _add(left: Pair, factor: float, right: Pair) -> Pair:
    return left[0] + factor * right[0], left[1] + factor * right[1]


def _unless(lanes: mx.array, new: Pair, old: Pair) -> Pair:
    """The old pair in some lanes, (B,)."""
    keep = lanes[:, None]
    return mx.where(keep, old[0], new[0]), mx.where(keep, old[1], new[1])


def _size(pair: Pair) -> mx.array:
    """Euclidean norm of a pair, (B,)."""
    return mx.sqrt(mx.sum(mx.square(pair[0]), axis=1) + mx.sum(mx.square(pair[1]), axis=1))


def _remainder(images: list[Pair], left: Pair) -> mx.array:
    """What one more sweep would match, going by the last two, relative to the first of all."""
    whole, before, last = (_size(images[k]) for k in (0, -2, -1))
    tiny = mx.array(1e-300, dtype=last.dtype)
    expected = len(images) * last * mx.minimum(last / mx.maximum(before, tiny), 1.0)
    # Beside what cannot be matched, this is rounding.
    return mx.maximum(expected - _ROUNDING * _size(left), 0.0) / mx.maximum(whole, tiny)
