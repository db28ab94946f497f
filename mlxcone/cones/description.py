"""What the user says of cones: kinds and sizes, by SCS's names or ours."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from operator import index
from typing import Any

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

    def __str__(self) -> str:
        """The kinds there are: sizes, or how many where they are many."""
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "box" and value:
                parts.append(f"box {len(value[0]) + 1}")
            elif isinstance(value, tuple) and len(value) > 4:
                parts.append(f"{len(value)} {field.name}")
            elif value:
                parts.append(f"{field.name} {value if isinstance(value, int) else list(value)}")
        return ", ".join(parts) or "no rows"

    @property
    def rows(self) -> int:
        """Number of rows of A."""
        return sum(count for _, count in layout(self))

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


def _known() -> str:
    scs = [key for key in _SCS_KEYS if key != "f"]  # SCS's old name of "z"
    names = [field.name for field in fields(Cones)]
    return f"{', '.join([*scs, 'bl with bu'])}; or {', '.join(names)}"


def layout(cones: Cones) -> list[tuple[Any, int]]:
    """The cones one by one in the user's order: what they are, and their rows.

    Equal ones compare equal and go into one group.
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
