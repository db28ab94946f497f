"""Certificates of infeasibility and unboundedness, found by projection and then verified.

A certificate is a solution of a cone program of its own, which the method of multipliers solves
to full precision from the direction in which the splitting drifts (Banjac et al. 2019;
docs/mathematics.md, equations 9 and 10):

    infeasible:  A'y = 0, b'y = -1, y in K*       the dual of  min t  s.t.  A w + b t + s = 0,
    unbounded:   P x = 0, q'x = -1, A x + s = 0, s in K.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlxcone.backend.lanes import bucket, put_tree, where_true
from mlxcone.cones.product import Product
from mlxcone.methods import multipliers
from mlxcone.methods.multipliers import Best, Judge
from mlxcone.program.equilibrate import Scaling
from mlxcone.program.operators import Rectangular
from mlxcone.program.problem import Program
from mlxcone.program.residuals import dot, norm

_ROUNDING = 1e-15  # of a ray, relative to its size
_LOOSE = 100.0  # eps that the rounding of a drift's own terms may come to
_SIGN = 1e-12  # of the terms of a value: less may be zero
# From zero, certificates have taken 17 rounds without halving the violation.
_EFFORT = multipliers.Effort(patience=24)
_AIM = 1e-4  # share of eps aimed at: the certificate then hardly depends on where it started


class Certificate(NamedTuple):
    """Certificate vectors in original units and their violation (B,); at most 1 is valid.

    ``x`` and ``s`` belong to unboundedness, ``y`` to infeasibility; what does not apply is NaN.
    No point has a relative residual, in the sense of a solution's, below ``margin`` (B,).
    """

    x: mx.array
    y: mx.array
    s: mx.array
    violation: mx.array
    margin: mx.array


def _margin(ray: mx.array, data: mx.array) -> mx.array:
    """Least r / (1 + |data|) over all points.

    With A'y = 0, b'y = -1 and y in K*, A x + s = b + r means y'r >= 1: |r| is at least 1 / |y|_1.
    """
    return 1.0 / (mx.sum(mx.abs(ray), axis=1) * (1.0 + norm(data)))


def _normalized(direction: mx.array, value: mx.array) -> mx.array:
    """Direction / -value where value < 0, else zero: a start, not yet a certificate."""
    good = value < -1e-12
    return mx.where(good, direction / mx.where(good, -value, 1.0), 0.0)


class _Ray(NamedTuple):
    """What makes a direction a certificate, (B,).

    Its value, to be negative, and the sum of the sizes of that value's terms; its drift, the sum of
    the sizes of the drift's terms, and its own size in original units; drift and size equilibrated.
    """

    value: mx.array
    terms: mx.array
    drift: mx.array
    drift_terms: mx.array
    size: mx.array
    bare_drift: mx.array
    bare_size: mx.array

    def violation(self, eps: float) -> mx.array:
        """At most 1 for a certificate found with aim ``_AIM * eps``.

        Where ``value`` is scaled to -1 the drift, in original units, is at most eps, and
        equilibrated it is at most eps of the certificate's own size and that of the matrices: the
        first alone would let large q or b, or a small A or P, pass for unboundedness or
        infeasibility. A value that could be a rounding of
        zero, or a ray so long that its own rounding is a drift, proves nothing; nor does a drift
        whose terms are so large that no double could tell it from zero.
        """
        scale = mx.maximum(-self.value, 1e-300)
        rounding = _ROUNDING * mx.maximum(_AIM * self.size, self.drift_terms / _LOOSE)
        absolute = mx.maximum(self.drift, rounding) / scale
        relative = self.bare_drift / mx.maximum(self.bare_size, 1e-300)
        negative = self.value < -_SIGN * self.terms
        return mx.where(negative, mx.maximum(absolute, relative) / (_AIM * eps), mx.inf)


def _size(matrix: mx.array) -> mx.array:
    """Largest entry, () or (B,), at most 1: equilibration stops short of very small matrices."""
    if matrix.size == 0:
        return mx.array(1.0, dtype=matrix.dtype)
    largest = mx.max(mx.abs(matrix), axis=(-2, -1))
    return mx.where(largest > 0, mx.minimum(largest, 1.0), 1.0)


def _absolute(A: Rectangular) -> Rectangular:
    """The matrix of the sizes of its entries."""
    return Rectangular.of(mx.abs(A.matrix))


def _per_lane(matrix: mx.array, lanes: int) -> mx.array:
    return mx.broadcast_to(matrix[None], (lanes, *matrix.shape)) if matrix.ndim == 2 else matrix


def _polished(
    program: Program,
    cones: Product,
    x: mx.array,
    y: mx.array,
    judge: Judge,
    most: int,
    deadline: float,
) -> Best:
    """The method of multipliers on the lanes whose (x, y) is not a certificate as it stands."""
    total = program.lanes
    violation = judge(mx.arange(total), x, y, y)
    best = Best(x, y, y, violation)
    poor = where_true(mx.logical_not(violation * _AIM <= 1.0))
    if poor:
        chosen = bucket(poor, total)

        def local(some: mx.array, x: mx.array, y: mx.array, s: mx.array) -> mx.array:
            return judge(chosen[some], x, y, s)

        part = program.take(chosen)
        start = x[chosen], y[chosen]
        found, _ = multipliers.solve(part, cones, *start, local, most, deadline, _EFFORT)
        best = put_tree(best, chosen, found)
    return best


def infeasible(
    program: Program,
    scaling: Scaling,
    cones: Product,
    direction: mx.array,
    eps: float,
    most: int,
    deadline: float,
) -> Certificate:
    """Look for y with A'y = 0, b'y = -1, y in K*.

    Args:
        program (Program): equilibrated, float64.
        scaling (Scaling): its factors.
        cones (Product): the cones.
        direction (mx.array): where to start from, equilibrated y, (B, m).
        eps (float): largest |A'y| in original units with b'y = -1.
        most (int): factorizations per lane.
        deadline (float): value of ``time.monotonic()`` at which to stop.
    """
    lanes, dtype = program.lanes, program.q.dtype
    A = _per_lane(program.A.matrix, lanes)
    q = mx.concatenate([mx.zeros_like(program.q), mx.ones((lanes, 1), dtype=dtype)], axis=1)
    homogeneous = Program(
        None,
        q,
        Rectangular.of(mx.concatenate([A, program.b[..., None]], axis=2)),
        mx.zeros_like(program.b),
    )

    def judge(some: mx.array, x: mx.array, y: mx.array, s: mx.array) -> mx.array:
        local, factors = program.take(some), scaling.take(some)
        terms, Aty = local.b * y / factors.primal, local.A.transpose_times(y)
        value, magnitude = mx.sum(terms, axis=1), mx.sum(mx.abs(terms), axis=1)
        # y is a projection of something larger, perhaps of that one's rounding.
        off = norm((y - cones.project_dual(y)) * factors.e)
        drift, size = mx.maximum(norm(Aty / factors.d), off), norm(y * factors.e)
        sizes = norm(_absolute(local.A).transpose_times(mx.abs(y)) / factors.d)
        bare = norm(Aty) / _size(local.A.matrix)
        return _Ray(value, magnitude, drift, sizes, size, bare, norm(y)).violation(eps)

    y = cones.project_dual(direction)
    y = _normalized(y, dot(program.b, y)[:, None])
    best = _polished(homogeneous, cones, mx.zeros_like(q), y, judge, most, deadline)
    y = best.y * scaling.e
    value = dot(program.b / scaling.primal, best.y)[:, None]
    y = y / mx.maximum(-value, 1e-300)
    margin = _margin(y, program.b / (scaling.e * scaling.primal))
    nothing = mx.full(program.q.shape, mx.nan, dtype=dtype)
    slack = mx.full(y.shape, mx.nan, dtype=dtype)
    return Certificate(nothing, y, slack, _AIM * best.violation, margin)


def unbounded(
    program: Program,
    scaling: Scaling,
    cones: Product,
    direction: mx.array,
    eps: float,
    most: int,
    deadline: float,
) -> Certificate:
    """Look for x with P x = 0, q'x = -1, A x + s = 0, s in K.

    Arguments as in `infeasible`, with an equilibrated x (B, n) as direction.
    """
    lanes, dtype = program.lanes, program.q.dtype
    rows = [program.q[:, None, :], _per_lane(program.A.matrix, lanes)]
    values = [-mx.ones((lanes, 1), dtype=dtype), mx.zeros_like(program.b)]
    if program.P is not None:
        rows.insert(0, _per_lane(program.P, lanes))
        values.insert(0, mx.zeros_like(program.q))
    extended = cones.with_equalities(sum(r.shape[1] for r in rows) - program.m)
    ray = Program(
        None,
        mx.zeros_like(program.q),
        Rectangular.of(mx.concatenate(rows, axis=1)),
        mx.concatenate(values, axis=1),
    )

    def judge(some: mx.array, x: mx.array, y: mx.array, s: mx.array) -> mx.array:
        local, factors = program.take(some), scaling.take(some)
        # With x = D x^: q'x = q^'x^ / gamma, A x = E^-1 A^ x^, P x = (beta / gamma) D^-1 P^ x^.
        terms, Ax = local.q * x / factors.dual, local.A.times(x)
        value, magnitude = mx.sum(terms, axis=1), mx.sum(mx.abs(terms), axis=1)
        row, Px = Ax + cones.project(-Ax), local.P_times(x)
        bend = norm(Px * factors.primal / factors.dual / factors.d)
        drift = mx.maximum(norm(row / factors.e), bend)
        bare = norm(row) / _size(local.A.matrix)
        if local.P is not None:
            bare = mx.maximum(bare, norm(Px) / _size(local.P))
        size = norm(Ax / factors.e)
        sizes = norm(_absolute(local.A).times(mx.abs(x)) / factors.e)
        return _Ray(value, magnitude, drift, sizes, size, bare, norm(x)).violation(eps)

    x = _normalized(direction, dot(program.q, direction)[:, None])
    y = mx.zeros((lanes, extended.rows), dtype=dtype)
    best = _polished(ray, extended, x, y, judge, most, deadline)
    value = dot(program.q, best.x)[:, None] / scaling.dual
    s = cones.project(-program.A.times(best.x)) / scaling.e
    size = mx.maximum(-value, 1e-300)
    x, s = best.x * scaling.d / size, s / size
    margin = _margin(x, program.q / (scaling.d * scaling.dual))
    nothing = mx.full(program.b.shape, mx.nan, dtype=dtype)
    return Certificate(x, nothing, s, _AIM * best.violation, margin)
