"""The product cone: what the user names, and the groups of equal cones the solver works on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, fields
from operator import index
from typing import Any

import mlx.core as mx

from mlxcone.cones.base import Cone, Spectral
from mlxcone.cones.nonneg import NonNeg
from mlxcone.cones.second_order import SecondOrder
from mlxcone.cones.zero import Zero

_SCS_KEYS = {"z": "zero", "f": "zero", "l": "nonneg", "q": "soc"}
_NOT_YET = ("bu", "bl", "s", "ep", "ed", "p", "cs")


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


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    """A list of sizes, or one of them; a bare zero means none, as it does to SCS."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(_size(name, v) for v in value)
    size = _size(name, value)
    return (size,) if size else ()


@dataclass(frozen=True)
class Cones:
    """Sizes of the cones, in the order of the rows of A (SCS's order).

    Args:
        zero (int): rows with s = 0 (equalities).
        nonneg (int): rows with s >= 0.
        soc (tuple[int, ...]): dimensions of second-order cones {(t, u): ||u|| <= t}.

    Raises:
        ValueError: a size is negative or not an integer.
    """

    zero: int = 0
    nonneg: int = 0
    soc: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "zero", _size("zero", self.zero))
        object.__setattr__(self, "nonneg", _size("nonneg", self.nonneg))
        soc = _sizes("soc", self.soc)
        if 0 in soc:
            raise ValueError("cones: a second-order cone has at least one row, got 0")
        object.__setattr__(self, "soc", soc)

    @property
    def rows(self) -> int:
        """Number of rows of A."""
        return self.zero + self.nonneg + sum(self.soc)

    @classmethod
    def of(cls, cones: Cones | Mapping[str, Any]) -> Cones:
        """Accept a `Cones`, an SCS dict ({"z", "l", "q"}) or a dict of this class's names.

        Raises:
            ValueError: a key is unknown, or names a cone that is not supported.
        """
        if isinstance(cones, Cones):
            return cones
        if not isinstance(cones, Mapping):
            raise ValueError(f"cones: expected Cones or a dict, got {type(cones).__name__}")
        names = {f.name for f in fields(cls)}
        sizes: dict[str, Any] = {}
        for key, value in cones.items():
            name = _SCS_KEYS.get(key, key)
            if value is None:
                continue
            if name in sizes:
                raise ValueError(f"cones: '{name}' is given twice")
            if name in names:
                sizes[name] = value
            elif key in _NOT_YET:
                if _is_empty(value):
                    continue
                raise ValueError(f"cones: '{key}' is not supported; supported: z, l, q")
            else:
                raise ValueError(f"cones: unknown cone '{key}'; known: {sorted(_SCS_KEYS)}")
        return cls(**sizes)


def _is_empty(value: Any) -> bool:
    return len(value) == 0 if isinstance(value, Sized) else value == 0


class Product:
    """Groups of equal cones on consecutive rows.

    Second-order cones are sorted by size (those of one row are inequalities), so that all of a
    kind are projected in one call; ``order[i]`` is the user's row at internal row i, and
    ``inverse`` undoes it (both None when nothing moves).
    """

    def __init__(self, cones: Cones) -> None:
        self.cones = cones
        starts, row = [], cones.zero + cones.nonneg
        for dim in cones.soc:
            starts.append(row)
            row += dim
        singles = [start for start, dim in zip(starts, cones.soc, strict=True) if dim == 1]
        self.groups: list[Cone] = []
        if cones.zero:
            self.groups.append(Zero(cones.zero))
        if cones.nonneg or singles:
            self.groups.append(NonNeg(cones.nonneg + len(singles)))
        order = [*range(cones.zero + cones.nonneg), *singles]
        for dim in sorted(set(cones.soc) - {1}):
            mine = [s for s, d in zip(starts, cones.soc, strict=True) if d == dim]
            self.groups.append(SecondOrder(len(mine), dim))
            order += [row for start in mine for row in range(start, start + dim)]
        self.order: list[int] | None = None
        self.inverse: list[int] | None = None
        if order != list(range(cones.rows)):
            self.order = order
            self.inverse = [0] * len(order)
            for internal, user in enumerate(order):
                self.inverse[user] = internal
        self._bounds = []
        row = 0
        for group in self.groups:
            self._bounds.append((row, row + group.rows))
            row += group.rows

    @property
    def rows(self) -> int:
        """Number of rows of A."""
        return self.cones.rows

    @property
    def zero_rows(self) -> int:
        """Number of equality rows; they come first."""
        return self.cones.zero

    def with_equalities(self, count: int) -> Product:
        """These groups, in their internal order, after ``count`` further equality rows."""
        inequalities = sum(g.rows for g in self.groups if isinstance(g, NonNeg))
        blocks = [g for g in self.groups if isinstance(g, SecondOrder)]
        soc = tuple(g.dim for g in blocks for _ in range(g.count))
        return Product(Cones(zero=self.zero_rows + count, nonneg=inequalities, soc=soc))

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

    def spectral(self, atoms: list[Any], function: Spectral, v: mx.array) -> mx.array:
        """function(D) v for ``v`` (B, m) or (B or 1, m, k)."""
        columns = v if v.ndim == 3 else v[..., None]
        parts = [
            g.spectral(a, function, part)
            for g, a, part in zip(self.groups, atoms, self._each(columns), strict=True)
        ]
        out = self._join(parts, columns)
        return out if v.ndim == 3 else out[..., 0]

    def apply_derivative(self, atoms: list[Any], v: mx.array) -> mx.array:
        """D v."""
        return self.spectral(atoms, lambda eigenvalue: eigenvalue, v)

    def signature(self, atoms: list[Any]) -> mx.array:
        """Numbers (B, k) that move as D moves."""
        parts = [g.signature(a) for g, a in zip(self.groups, atoms, strict=True)]
        return mx.concatenate(parts, axis=1) if parts else mx.zeros((1, 0))

    def uniform(self, weights: mx.array) -> mx.array:
        """Row weights (B, m) made constant inside each cone."""
        parts = [g.uniform(v) for g, v in zip(self.groups, self._each(weights), strict=True)]
        return self._join(parts, weights)
