"""The product cone: the groups of equal cones that the solver works on."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import numpy as np

from mlxcone.cones.base import Cone, Interior, Spectral, half
from mlxcone.cones.box import Box
from mlxcone.cones.description import Cones, layout
from mlxcone.cones.exponential import Exponential
from mlxcone.cones.linear import Linear
from mlxcone.cones.power import Power
from mlxcone.cones.power_nd import PowerND
from mlxcone.cones.second_order import SecondOrder
from mlxcone.cones.semidefinite import Semidefinite, Semidefinite2

_RANK = ("zero", "nonneg", "box", "soc", "psd", "exp", "exp dual", "power", "power nd")


def _group(cones: Cones, kind: tuple[Any, ...], rows: int) -> Cone:
    """The group of all cones of one kind."""
    match kind:
        case ("zero",):
            return Linear(rows, 0)
        case ("nonneg",):
            return Linear(0, rows)
        case ("box", (lower, upper)):
            return Box(lower, upper)
        case ("soc", dim):
            return SecondOrder(rows // dim, dim)
        case ("psd", 2):
            return Semidefinite2(rows // 3)
        case ("psd", order):
            return Semidefinite(rows * 2 // (order * (order + 1)), order)
        case ("exp",):
            return Exponential(rows // 3, dual=False)
        case ("exp dual",):
            return Exponential(rows // 3, dual=True)
        case ("power",):
            return Power(cones.power)
        case _:
            same = [alphas for alphas in cones.power_nd if len(alphas) == kind[1]]
            return PowerND(tuple(same))


def uniform(cone: Cone, weights: mx.array) -> mx.array:
    """Row weights (B, rows) made constant inside each cone (maximum), so that scaling keeps K."""
    if cone.count == cone.rows:
        return weights
    blocks = weights.reshape(weights.shape[0], cone.count, -1)
    largest = mx.max(blocks, axis=-1, keepdims=True)
    return mx.broadcast_to(largest, blocks.shape).reshape(weights.shape)


class Product:
    """Groups of equal cones on consecutive rows.

    Cones of a kind are brought together (those of one row are inequalities), so that each kind is
    projected in one call; ``order[i]`` is the user's row at internal row i, and ``inverse`` undoes
    it (both None when nothing moves).
    """

    def __init__(self, cones: Cones) -> None:
        self.cones = cones
        places: dict[Any, list[int]] = {}
        row = 0
        for kind, count in layout(cones):
            if count:
                places.setdefault(kind, []).extend(range(row, row + count))
            row += count
        kinds = sorted(places, key=lambda kind: (_RANK.index(kind[0]), kind[1:]))
        order = [user for kind in kinds for user in places[kind]]
        self.order: list[int] | None = None
        self.inverse: list[int] | None = None
        if order != list(range(row)):
            self.order = order
            self.inverse = [0] * len(order)
            for internal, user in enumerate(order):
                self.inverse[user] = internal
        self._use([_group(cones, kind, len(places[kind])) for kind in kinds])

    def _use(self, groups: list[Cone]) -> None:
        first = groups[0] if groups else None
        while len(groups) > 1 and isinstance(first, Linear) and not first.nonneg:
            # Equalities and the inequalities after them are one group.
            after = groups[1]
            if not isinstance(after, Linear):
                break
            first = Linear(first.zero + after.zero, after.nonneg)
            groups = [first, *groups[2:]]
        self.groups = groups
        self._bounds = []
        row = 0
        for group in groups:
            self._bounds.append((row, row + group.rows))
            row += group.rows
        self.rows = row

    @property
    def symmetric(self) -> bool:
        """Whether no cone is exponential or a power cone."""
        return not any(isinstance(g, Exponential | Power | PowerND) for g in self.groups)

    @property
    def semidefinite(self) -> bool:
        """Whether a cone is one of matrices."""
        return any(isinstance(g, Semidefinite | Semidefinite2) for g in self.groups)

    @property
    def costly(self) -> bool:
        """Whether a projection takes longer than the rest of an iteration."""
        return not self.symmetric or any(isinstance(g, Semidefinite) for g in self.groups)

    @property
    def polyhedral(self) -> bool:
        """Whether D is diagonal, for there are equalities and inequalities only."""
        return all(isinstance(g, Linear) for g in self.groups)

    @property
    def zero_rows(self) -> int:
        """Number of equality rows; they come first."""
        return sum(g.zero for g in self.groups if isinstance(g, Linear))

    def with_equalities(self, count: int) -> Product:
        """These groups, in their internal order, after ``count`` further equality rows."""
        more = Product(Cones())
        more._use([Linear(count, 0), *self.groups])
        return more

    def _each(self, v: mx.array) -> list[mx.array]:
        return [v[:, lo:hi] for lo, hi in self._bounds]

    def _join(self, parts: list[mx.array], like: mx.array) -> mx.array:
        if not parts:
            return like
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)

    def project_dual(self, z: mx.array) -> mx.array:
        """Projection of the rows of ``z`` (B, m) onto K*."""
        parts = [g.project_dual(v) for g, v in zip(self.groups, self._each(z), strict=True)]
        return self._join(parts, z)

    def project(self, w: mx.array) -> mx.array:
        """Projection onto K: by Moreau's decomposition where a cone has none of its own."""
        parts = [
            g.project(v) if isinstance(g, Linear | SecondOrder) else v + g.project_dual(-v)
            for g, v in zip(self.groups, self._each(w), strict=True)
        ]
        return self._join(parts, w)

    def derivative(self, z: mx.array) -> list[Any]:
        """Atoms of D = derivative of the projection onto K*, a list with one entry a group."""
        return [g.derivative(v) for g, v in zip(self.groups, self._each(z), strict=True)]

    def linearize(self, z: mx.array) -> tuple[mx.array, list[Any]]:
        """`project_dual` and `derivative`, with what they have in common computed once."""
        both = [
            g.linearize(v)
            if isinstance(g, Exponential | Power | Semidefinite)
            else (g.project_dual(v), g.derivative(v))
            for g, v in zip(self.groups, self._each(z), strict=True)
        ]
        return self._join([y for y, _ in both], z), [atoms for _, atoms in both]

    def spectral(self, atoms: list[Any], function: Spectral, v: mx.array) -> mx.array:
        """function(D) v for ``v`` (B, m) or (B or 1, m, k)."""
        columns = v if v.ndim == 3 else v[..., None]
        parts = [
            g.spectral(a, function, part)
            for g, a, part in zip(self.groups, atoms, self._each(columns), strict=True)
        ]
        out = self._join(parts, columns)
        return out if v.ndim == 3 else out[..., 0]

    @property
    def straight(self) -> int:
        """Rows up to the last of a group whose D is diagonal, or diagonal but for its rank."""
        pairs = zip(self._bounds, self.groups, strict=True)
        return max((hi for (_, hi), g in pairs if isinstance(g, Linear | SecondOrder)), default=0)

    @property
    def linear(self) -> int:
        """Rows of the first group if its D is diagonal; no other group has such a D."""
        return self.groups[0].rows if self.groups and isinstance(self.groups[0], Linear) else 0

    def weights(self, atoms: list[Any], function: Spectral, most: int) -> mx.array:
        """Diagonal part of function(D) on the `straight` or `linear` rows, (B or 1, ``most``)."""
        parts = []
        for (lo, hi), g, a in zip(self._bounds, self.groups, atoms, strict=True):
            if hi > most:
                break
            if isinstance(g, Linear):
                parts.append(function(a.eigenvalues))
            elif isinstance(g, SecondOrder):
                parts.append(g.weights(a, function))
            else:
                like = a.eigenvalues
                parts.append(mx.zeros((like.shape[0], hi - lo), dtype=like.dtype))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)

    @property
    def corrected(self) -> int:
        """Rank of what `weights` leave of function(D) on the `straight` rows."""
        return sum(2 * g.count for g in self.groups if isinstance(g, SecondOrder))

    def corrections(self, atoms: list[Any], function: Spectral, v: mx.array) -> list[tuple]:
        """What `weights` leave of v'function(D) v, for an increasing function and `straight` rows.

        Returns:
            list: c (B, k) and V (B, k, columns), where V'diag(c) V is to be added, and the same
            for what is to be taken away.
        """
        parts = [
            g.corrections(a, function, v[:, lo:hi])
            for g, a, (lo, hi) in zip(self.groups, atoms, self._bounds, strict=True)
            if isinstance(g, SecondOrder)
        ]
        c, V = (mx.concatenate(list(part), axis=1) for part in zip(*parts, strict=True))
        return [
            (mx.maximum(sign * c[:, k::2], 0.0), V[:, k::2]) for k, sign in ((0, 1.0), (1, -1.0))
        ]

    def rest_of_gram(
        self,
        atoms: list[Any],
        function: Spectral,
        v: mx.array,
        rows_of: np.ndarray | None,
        taken: int,
    ) -> list[mx.array]:
        """What `weights` on the first rows leave of v'function(D) v, in summands (B, k, k).

        Args:
            atoms (list): of D.
            function: of its eigenvalues.
            v (mx.array): (B or 1, m, k).
            rows_of (np.ndarray): the rows of the entries of each column of v, (k, most), -1 where
                there are fewer, if they are few.
            taken (int): that many rows have been taken account of by their weights: those that are
                `straight`, or, as they cost digits where function(D) spans many orders of
                magnitude, only the `linear` ones, or none.
        """
        parts = []
        for g, a, (lo, hi) in zip(self.groups, atoms, self._bounds, strict=True):
            rows = v[:, lo:hi]
            if hi <= taken and isinstance(g, Linear):
                continue
            if hi <= taken and isinstance(g, SecondOrder):
                c, V = g.corrections(a, function, rows)
                parts.append(mx.swapaxes(V, -1, -2) @ (c[..., None] * V))
                continue
            if isinstance(g, Semidefinite):
                V = g.half(a, function, rows, None if rows_of is None else rows_of - lo)
            elif isinstance(g, Exponential | Power | PowerND):
                V = g.half(a, function, rows)
            else:
                V = half(g, a, function, rows)
            parts.append(V @ mx.swapaxes(V, -1, -2))
        return parts

    def apply_derivative(self, atoms: list[Any], v: mx.array) -> mx.array:
        """D v."""
        return self.spectral(atoms, lambda eigenvalue: eigenvalue, v)

    def signature(self, atoms: list[Any]) -> mx.array:
        """Numbers (B, k) that move as D moves."""
        parts = [g.signature(a) for g, a in zip(self.groups, atoms, strict=True)]
        return mx.concatenate(parts, axis=1) if parts else mx.zeros((1, 0))

    def uniform(self, weights: mx.array) -> mx.array:
        """Row weights (B, m) made constant inside each cone."""
        parts = [uniform(g, v) for g, v in zip(self.groups, self._each(weights), strict=True)]
        return self._join(parts, weights)

    @property
    def _interiors(self) -> list[Interior]:
        """The groups; none of them is a box where this is asked for."""
        return [cast(Interior, g) for g in self.groups]

    @property
    def degree(self) -> float:
        """Degree of the barrier of K*."""
        return sum(g.degree for g in self._interiors)

    def centre(self, dtype: mx.Dtype) -> mx.array:
        """A point (m,) on the central path, inside of K and K*."""
        parts = [g.centre(dtype) for g in self._interiors]
        return mx.concatenate(parts) if parts else mx.zeros((0,), dtype=dtype)

    def barrier_inverse(self, y: mx.array) -> mx.array:
        """Minus the gradient of the barrier of K* at y (B, m)."""
        parts = [g.inverse(v) for g, v in zip(self._interiors, self._each(y), strict=True)]
        return self._join(parts, y)

    def scaling(self, s: mx.array, y: mx.array, mu: mx.array) -> list[Any]:
        """Atoms of W^2 at s and y (B, m)."""
        pairs = zip(self._interiors, self._each(s), self._each(y), strict=True)
        return [g.scaling(a, b, mu) for g, a, b in pairs]

    def turned(self, atoms: list[Any], v: mx.array, back: bool = False) -> mx.array:
        """The columns of v (B or 1, m, k) in eigenvectors of W^2, or ``back`` from there.

        Rows of cones that do not offer these stay as they are.
        """
        parts = [
            g.turned(a, part, back) if isinstance(g, Semidefinite) else part
            for g, a, part in zip(self.groups, atoms, self._each(v), strict=True)
        ]
        lanes = max((part.shape[0] for part in parts), default=1)
        return self._join([mx.broadcast_to(p, (lanes, *p.shape[1:])) for p in parts], v)

    @property
    def undiagonal(self) -> list[int]:
        """Rows that `turned` leaves as they are although W^2 is not diagonal there."""
        pairs = zip(self._bounds, self.groups, strict=True)
        left = [b for b, g in pairs if not isinstance(g, Linear | Semidefinite)]
        return [row for lo, hi in left for row in range(lo, hi)]

    def diagonal(self, atoms: list[Any]) -> mx.array:
        """W^2 on the rows that `turned` makes diagonal, (B, m); NaN elsewhere, 0 on equalities."""
        parts = []
        for (lo, hi), g, a in zip(self._bounds, self.groups, atoms, strict=True):
            if isinstance(g, Linear):
                parts.append(a.eigenvalues * g.inequalities(a.eigenvalues.dtype))
            elif isinstance(g, Semidefinite):
                parts.append(g.diagonal(a))
            else:
                like = a[0]
                parts.append(mx.full((like.shape[0], hi - lo), mx.nan, dtype=like.dtype))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)

    def correction(self, atoms: list[Any], y: mx.array, ds: mx.array, dy: mx.array) -> mx.array:
        """What a step (ds, dy) leaves of s = mu g(y) in second order, (B, m)."""
        triples = zip(*(self._each(v) for v in (y, ds, dy)), strict=True)
        groups = zip(self._interiors, atoms, triples, strict=True)
        return self._join([g.correction(a, *rows) for g, a, rows in groups], y)

    def room(self, v: mx.array, dv: mx.array, dual: bool) -> mx.array:
        """Longest step along dv, (B, 1), within K, or K* if ``dual``."""
        pairs = zip(self._interiors, self._each(v), self._each(dv), strict=True)
        steps = [g.room(a, b, dual) for g, a, b in pairs]
        if not steps:
            return mx.full((v.shape[0], 1), mx.inf, dtype=v.dtype)
        return mx.min(mx.concatenate(steps, axis=1), axis=1, keepdims=True)

    def without_boxes(self) -> Product:
        """These groups with inequalities for boxes, t first, then lower and upper bounds."""
        more = Product(Cones())
        more._use([g.inequalities if isinstance(g, Box) else g for g in self.groups])
        return more

    @property
    def boxes(self) -> list[tuple[int, int, Box | None]]:
        """First row and end of each group, and the group if it is a box."""
        pairs = zip(self._bounds, self.groups, strict=True)
        return [(lo, hi, g if isinstance(g, Box) else None) for (lo, hi), g in pairs]
