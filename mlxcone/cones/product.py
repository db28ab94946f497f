"""The product cone: what the user names, and the groups of equal cones the solver works on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from operator import index
from typing import Any, cast

import mlx.core as mx

from mlxcone.cones.base import Cone, Interior, Spectral, half
from mlxcone.cones.box import Box
from mlxcone.cones.exponential import Exponential
from mlxcone.cones.linear import Linear
from mlxcone.cones.power import Power
from mlxcone.cones.power_nd import PowerND
from mlxcone.cones.second_order import SecondOrder
from mlxcone.cones.semidefinite import Semidefinite, Semidefinite2

_SCS_KEYS = {
    "z": "zero",
    "f": "zero",
    "l": "nonneg",
    "q": "soc",
    "s": "psd",
    "ep": "exp",
    "ed": "exp_dual",
    "p": "power",
    "pnd": "power_nd",
}
_NOT_SUPPORTED = ("cs",)


def _size(name: str, value: Any) -> int:
    try:
        # SCS's dictionaries hold Python and NumPy integers; a whole float does no harm.
        whole: Any = int(value) if isinstance(value, float) and value.is_integer() else value
        size = index(whole)
    except TypeError:
        size = -1
    if isinstance(value, bool) or size < 0:
        raise ValueError(f"cones: '{name}' must be a non-negative integer, got {value!r}")
    return size


def _listed(value: Any) -> list[Any]:
    """A list, or one of its entries; None and a bare zero mean none, as they do to SCS."""
    if value is None:
        return []
    if isinstance(value, Iterable) and not isinstance(value, str):
        with contextlib.suppress(TypeError):  # of an array of dimension 0
            return list(value)
    return [] if isinstance(value, Real) and value == 0 else [value]


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    return tuple(_size(name, v) for v in _listed(value))


def _exponent(value: Any) -> float:
    try:
        alpha = float(value)
    except (TypeError, ValueError, OverflowError):
        alpha = 0.0
    if not 0 < abs(alpha) < 1:
        raise ValueError(f"cones: 'power' must lie in (0, 1) or (-1, 0), got {value!r}")
    return alpha


def _exponent_list(value: Any) -> tuple[float, ...]:
    try:
        alphas = tuple(float(alpha) for alpha in value)
    except (TypeError, ValueError, OverflowError):
        alphas = ()
    total = math.fsum(alphas)
    if len(alphas) < 2 or not all(a > 0 for a in alphas) or not abs(total - 1.0) <= 1e-6:
        raise ValueError(
            "cones: 'power_nd' must be lists of two or more positive exponents of sum 1, "
            f"got {value!r}"
        )
    return tuple(alpha / total for alpha in alphas)


def _bounds(value: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if value is None:
        return None
    try:
        lower, upper = (tuple(float(v) for v in _listed(bound)) for bound in value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            "cones: 'box' must be a pair of lists of bounds, lower and upper"
        ) from None
    if len(lower) != len(upper):
        raise ValueError(f"cones: 'box' has {len(lower)} lower and {len(upper)} upper bounds")
    if not all(low <= high for low, high in zip(lower, upper, strict=True)):  # False for NaN
        raise ValueError("cones: 'box' has a lower bound that is not at most its upper bound")
    return (lower, upper) if lower else None


@dataclass(frozen=True)
class Cones:
    """Sizes of the cones, in the order of the rows of A (SCS's order).

    Args:
        zero (int): rows with s = 0 (equalities).
        nonneg (int): rows with s >= 0.
        box (tuple): None, or lower and upper bounds l, u of a box cone {(t, r): t l <= r <= t u,
            t >= 0}; it has one row more than bounds.
        soc (tuple[int, ...]): dimensions of second-order cones {(t, u): ||u|| <= t}.
        psd (tuple[int, ...]): orders k of semidefinite cones; k (k + 1) / 2 rows hold the lower
            triangle, column by column, with what is off the diagonal times sqrt 2.
        exp (int): number of exponential cones, closure of {(x, y, z): y e^(x/y) <= z, y > 0}.
        exp_dual (int): number of their duals.
        power (tuple[float, ...]): exponents a of power cones {(x, y, z): x^a y^(1-a) >= |z|,
            x, y >= 0}; -a stands for the dual of that cone.
        power_nd (tuple[tuple[float, ...], ...]): exponents a_1..a_k, positive and of sum 1, of
            each power cone {(w_1..w_k, z): prod w_i^a_i >= |z|, w >= 0}, k >= 2.

    Raises:
        ValueError: a size is negative or not an integer, an exponent or a bound is out of range.
    """

    zero: int = 0
    nonneg: int = 0
    box: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    soc: tuple[int, ...] = ()
    psd: tuple[int, ...] = ()
    exp: int = 0
    exp_dual: int = 0
    power: tuple[float, ...] = ()
    power_nd: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        for name in ("zero", "nonneg", "exp", "exp_dual"):
            object.__setattr__(self, name, _size(name, getattr(self, name)))
        for name, kind in (("soc", "second-order"), ("psd", "semidefinite")):
            sizes = _sizes(name, getattr(self, name))
            if 0 in sizes:
                raise ValueError(f"cones: a {kind} cone has at least one row, got 0")
            object.__setattr__(self, name, sizes)
        object.__setattr__(self, "box", _bounds(self.box))
        object.__setattr__(self, "power", tuple(_exponent(a) for a in _listed(self.power)))
        lists = tuple(_exponent_list(a) for a in _listed(self.power_nd))
        object.__setattr__(self, "power_nd", lists)

    @property
    def rows(self) -> int:
        """Number of rows of A."""
        return sum(count for _, count in _layout(self))

    @classmethod
    def of(cls, cones: Cones | Mapping[str, Any]) -> Cones:
        """Accept a `Cones`, an SCS dict or a dict of this class's names.

        SCS's keys are "z", "l", "bl" with "bu", "q", "s", "ep", "ed", "p"; "pnd", which SCS does
        not have, is short for "power_nd".

        Raises:
            ValueError: a key is unknown, or names a cone that is not supported.
        """
        if isinstance(cones, Cones):
            return cones
        if not isinstance(cones, Mapping):
            raise ValueError(f"cones: expected Cones or a dict, got {type(cones).__name__}")
        names = {f.name for f in fields(cls)}
        sizes: dict[str, Any] = {}
        bounds: dict[str, Any] = {}
        for key, value in cones.items():
            name = _SCS_KEYS.get(key, key)
            if value is None:
                continue
            if name in sizes:
                raise ValueError(f"cones: '{name}' is given twice")
            if key in ("bl", "bu"):
                bounds |= {key: value} if _listed(value) else {}
            elif name in names:
                sizes[name] = value
            elif key in _NOT_SUPPORTED:
                if _listed(value):
                    raise ValueError(f"cones: '{key}' is not supported; known: {_known()}")
            else:
                raise ValueError(f"cones: unknown cone '{key}'; known: {_known()}")
        if bounds:
            if "box" in sizes or len(bounds) != 2:
                raise ValueError("cones: a box has 'bl' and 'bu', or 'box', and not both")
            sizes["box"] = bounds["bl"], bounds["bu"]
        return cls(**sizes)


def _known() -> list[str]:
    return sorted([*_SCS_KEYS, "bl", "bu"])


def _layout(cones: Cones) -> list[tuple[Any, int]]:
    """The cones one by one in the user's order: what they are, and their rows.

    Equal ones compare equal and go into one group; the order of the groups is that of `_RANK`.
    """
    box = [] if cones.box is None else [(("box", cones.box), 1 + len(cones.box[0]))]
    return [
        (("zero",), cones.zero),
        (("nonneg",), cones.nonneg),
        *box,
        *((("soc", d) if d > 1 else ("nonneg",), d) for d in cones.soc),
        *((("psd", k) if k > 1 else ("nonneg",), k * (k + 1) // 2) for k in cones.psd),
        (("exp",), 3 * cones.exp),
        (("exp dual",), 3 * cones.exp_dual),
        (("power",), 3 * len(cones.power)),
        *((("power nd", len(alphas)), 1 + len(alphas)) for alphas in cones.power_nd),
    ]


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
        for kind, count in _layout(cones):
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
        """Projection onto K by Moreau's decomposition."""
        return w + self.project_dual(-w)

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

    def weights(self, atoms: list[Any], function: Spectral) -> mx.array:
        """Diagonal part of function(D) on the `straight` rows, (B or 1, rows)."""
        parts = []
        for (lo, hi), g, a in zip(self._bounds, self.groups, atoms, strict=True):
            if isinstance(g, Linear):
                parts.append(function(a.eigenvalues))
            elif isinstance(g, SecondOrder):
                parts.append(g.weights(a, function))
            elif hi <= self.straight:
                like = a.eigenvalues
                parts.append(mx.zeros((like.shape[0], hi - lo), dtype=like.dtype))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)

    def rest_of_gram(
        self, atoms: list[Any], function: Spectral, v: mx.array, straight: bool = True
    ) -> list[mx.array]:
        """What `weights` leave of v'function(D) v, v (B or 1, m, k), in summands (B, k, k).

        Everything if they are not taken out, with not ``straight``: they cost digits where
        function(D) spans many orders of magnitude.
        """
        parts = []
        for g, a, (lo, hi) in zip(self.groups, atoms, self._bounds, strict=True):
            rows = v[:, lo:hi]
            if straight and isinstance(g, Linear):
                continue
            if straight and isinstance(g, SecondOrder):
                c, V = g.corrections(a, function, rows)
                parts.append(mx.swapaxes(V, -1, -2) @ (c[..., None] * V))
                continue
            if isinstance(g, Exponential | Power | Semidefinite):
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
