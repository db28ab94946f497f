"""Hypothesis strategies for cone programs with a known answer.

What is drawn is small: sizes, a cone dictionary, a rank, a density and a seed. Sizes are drawn
first, so a failing example shrinks to few variables and rows before anything else, and its
``repr`` is the call that makes it again.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        "mlxcone.testing.strategies needs hypothesis: pip install hypothesis"
    ) from error

from mlxcone.testing import manufacture, scaling
from mlxcone.testing.manufacture import Expect, Instance
from mlxcone.testing.projections import cone_rows
from mlxcone.testing.structure import Structure

Draw = Callable[[st.SearchStrategy[Any]], Any]

_MAX_BLOCKS = 5
# Eight to one to one: solutions are where solvers differ most.
_MIX: tuple[Expect, ...] = ("solved",) * 8 + ("infeasible", "unbounded")
_DECADES = (0.0, 0.0, 0.0, 1.0, 3.0, 6.0)
_MAKERS: dict[Expect, Callable[..., Instance]] = {
    "solved": manufacture.feasible,
    "infeasible": manufacture.infeasible,
    "unbounded": manufacture.unbounded,
}


# Pairs (lower, upper); 1e20 is infinite, to SCS too, and can be read back from a recipe.
_BOUNDS = (
    (-1.0, 1.0),
    (0.0, 1.0),
    (0.5, 2.0),
    (-2.0, -0.5),
    (1.0, 1.0),
    (0.0, 0.0),
    (-1.0, 1e20),
    (-1e20, 0.5),
    (-1e20, 1e20),
)


def _draw_count(draw: Draw, room: int) -> tuple[int, int]:
    rows = draw(st.integers(0, room))
    return rows, rows


def _draw_box(draw: Draw, room: int) -> tuple[dict[str, list[float]], int]:
    # One row is for t.
    size = draw(st.integers(0, max(room - 1, 0)))
    pairs = draw(st.lists(st.sampled_from(_BOUNDS), min_size=size, max_size=size))
    bounds = {"bl": [low for low, _ in pairs], "bu": [high for _, high in pairs]}
    return bounds, 1 + size if size else 0


def _draw_second_order(draw: Draw, room: int) -> tuple[list[int], int]:
    sizes: list[int] = []
    for _ in range(draw(st.integers(0, _MAX_BLOCKS))):
        left = room - sum(sizes)
        if left < 1:
            break
        # Sizes one and two are special cases in most code, so they get their own share.
        sizes.append(draw(st.integers(1, min(2, left)) | st.integers(1, left)))
    return sizes, sum(sizes)


def _draw_semidefinite(draw: Draw, room: int) -> tuple[list[int], int]:
    orders: list[int] = []
    rows = 0
    for _ in range(draw(st.integers(0, _MAX_BLOCKS))):
        fitting = [k for k in range(1, 9) if rows + k * (k + 1) // 2 <= room]
        if not fitting:
            break
        orders.append(draw(st.sampled_from(fitting)))
        rows += orders[-1] * (orders[-1] + 1) // 2
    return orders, rows


def _draw_exponential(draw: Draw, room: int) -> tuple[int, int]:
    count = draw(st.integers(0, min(_MAX_BLOCKS, room // 3)))
    return count, 3 * count


def _draw_power(draw: Draw, room: int) -> tuple[list[float], int]:
    count = draw(st.integers(0, min(_MAX_BLOCKS, room // 3)))
    exponent = st.sampled_from((0.5, 0.1, 0.9)) | st.floats(0.02, 0.98)
    signed = st.builds(lambda a, sign: sign * a, exponent, st.sampled_from((1, -1)))
    return draw(st.lists(signed, min_size=count, max_size=count)), 3 * count


def _draw_power_nd(draw: Draw, room: int) -> tuple[list[list[float]], int]:
    cones: list[list[float]] = []
    rows = 0
    for _ in range(draw(st.integers(0, _MAX_BLOCKS))):
        left = room - rows
        if left < 3:
            break
        size = draw(st.integers(2, min(6, left - 1)))
        weights = draw(st.lists(st.sampled_from((1, 2, 5, 50)), min_size=size, max_size=size))
        cones.append([weight / sum(weights) for weight in weights])
        rows += size + 1
    return cones, rows


class _Kind(NamedTuple):
    """A kind of cone: how to draw its value within a number of rows, and how many it took.

    ``least`` is the smallest value and ``least_rows`` its rows.
    """

    draw: Callable[[Draw, int], tuple[Any, int]]
    least: Any
    least_rows: int


_KINDS: dict[str, _Kind] = {
    "z": _Kind(_draw_count, 1, 1),
    "l": _Kind(_draw_count, 1, 1),
    "box": _Kind(_draw_box, {"bl": [-1.0], "bu": [1.0]}, 2),
    "q": _Kind(_draw_second_order, [1], 1),
    "s": _Kind(_draw_semidefinite, [1], 1),
    "ep": _Kind(_draw_exponential, 1, 3),
    "ed": _Kind(_draw_exponential, 1, 3),
    "p": _Kind(_draw_power, [0.5], 3),
    "pnd": _Kind(_draw_power_nd, [[0.5, 0.5]], 3),
}


@st.composite
def cones(draw: Draw, max_rows: int = 60, kinds: Sequence[str] = ("z", "l", "q")) -> dict[str, Any]:
    """Draw a cone dictionary with 1 to ``max_rows`` rows.

    Args:
        draw: Supplied by hypothesis.
        max_rows: Bound on the number of rows, at least 1.
        kinds: SCS's keys that may occur, "z", "l", "q", "s", "ep", "ed" and "p", "box" for "bl"
            with "bu", and "pnd". Sizes one and two, infinite and equal bounds and dual power cones
            (negative exponents) are among what is drawn.

    Returns:
        An SCS dictionary without empty entries.

    Raises:
        ValueError: an unknown kind, no kind at all, or no room for a row.
    """
    unknown = [kind for kind in kinds if kind not in _KINDS]
    if unknown or not kinds:
        raise ValueError(f"kinds: expected some of {', '.join(_KINDS)}, got {tuple(kinds)}")
    smallest = min(kinds, key=lambda kind: _KINDS[kind].least_rows)
    if max_rows < _KINDS[smallest].least_rows:
        least = _KINDS[smallest].least_rows
        raise ValueError(f"max_rows: expected at least {least} for {smallest!r}, got {max_rows}")
    drawn: dict[str, Any] = {}
    room = max_rows
    for position, kind in enumerate(kinds):
        # An even share of what is left, so that the first kind does not starve the others.
        value, rows = _KINDS[kind].draw(draw, -(-room // (len(kinds) - position)))
        room -= rows
        if rows:
            drawn |= _entries(kind, value)
    return drawn or _entries(smallest, _KINDS[smallest].least)


def _entries(kind: str, value: Any) -> dict[str, Any]:
    return dict(value) if kind == "box" else {kind: value}


@st.composite
def instances(
    draw: Draw,
    max_n: int = 60,
    max_m: int = 60,
    expect: Expect | None = None,
    kinds: Sequence[str] = ("z", "l", "q"),
) -> Instance:
    """Draw a cone program with a known solution or certificate.

    Args:
        draw: Supplied by hypothesis.
        max_n: Bound on the number of variables, at least 1.
        max_m: Bound on the number of rows, at least 1.
        expect: "solved", "infeasible" or "unbounded"; None for about 80, 10 and 10 in a hundred.
        kinds: Cones that may occur, as in `cones`.

    Returns:
        An `mlxcone.testing.Instance`; ``recipe`` is the call that makes it again.

    Raises:
        ValueError: an argument out of range.
    """
    n = draw(st.integers(1, max_n))
    cone = draw(cones(max_m, kinds))
    outcome = draw(st.sampled_from(_MIX)) if expect is None else expect
    largest = n - 1 if outcome == "unbounded" else n
    # Both ends matter: no quadratic term at all, and as much as there can be.
    rank = draw(st.sampled_from((0, largest)) | st.integers(0, largest))
    density = draw(st.sampled_from((1.0, 0.5, 0.2)))
    seed = draw(st.integers(0, 2**32 - 1))
    maker = _MAKERS[outcome]
    instance = maker(np.random.default_rng(seed), n, cone, density=density, quadratic_rank=rank)
    recipe = (
        f"manufacture.{maker.__name__}(np.random.default_rng({seed}), {n}, {cone}, "
        f"density={density}, quadratic_rank={rank})"
    )
    return replace(instance, recipe=recipe)


@st.composite
def structures(draw: Draw, n: int, m: int) -> Structure:
    """Draw what is degenerate about constraints of this shape; nothing half of the time.

    Args:
        draw: Supplied by hypothesis.
        n: Number of variables.
        m: Number of rows.

    Returns:
        A `mlxcone.testing.structure.Structure`.
    """
    if not draw(st.booleans()):
        return Structure()
    some = st.sampled_from((0, 0, 1, 2))
    return Structure(
        rank=draw(st.none() | st.integers(0, min(m, n))),
        repeated_rows=draw(some),
        zero_rows=min(draw(some), m),
        zero_columns=min(draw(some), n),
        thin=draw(st.integers(0, 3)) == 0,
    )


@st.composite
def batches(
    draw: Draw,
    max_n: int = 15,
    max_m: int = 30,
    max_lanes: int = 4,
    kinds: Sequence[str] = ("z", "l", "q"),
) -> list[Instance]:
    """Draw programs of one shape and one cone, each with its own outcome, structure and units.

    Half of the programs are degenerate (`structures`), and rows, columns, right-hand side
    and cost are each scaled by up to 0, 1, 3 or 6 decades.

    Args:
        draw: Supplied by hypothesis.
        max_n: Bound on the number of variables, at least 1.
        max_m: Bound on the number of rows, at least 1.
        max_lanes: Bound on the number of programs, at least 1.
        kinds: Cones that may occur, as in `cones`.

    Returns:
        1 to ``max_lanes`` instances with their ``condition`` and ``recipe``; what the cone does not
        allow (only equalities without a variable to contradict) is drawn as "solved".

    Raises:
        ValueError: an argument out of range.
    """
    n = draw(st.integers(1, max_n))
    cone = draw(cones(max_m, kinds))
    count = draw(st.integers(1, max_lanes))
    return [draw(_lanes(n, cone)) for _ in range(count)]


@st.composite
def _lanes(draw: Draw, n: int, cone: dict[str, Any]) -> Instance:
    m = cone_rows(cone)
    outcome = draw(st.sampled_from(("solved", "solved", "infeasible", "unbounded")))
    largest = n - 1 if outcome == "unbounded" else n
    rank = draw(st.sampled_from((0, largest)) | st.integers(0, largest))
    density = draw(st.sampled_from((1.0, 0.5, 0.2)))
    structure = draw(structures(n, m))
    units = {name: draw(st.sampled_from(_DECADES)) for name in ("rows", "columns", "right", "cost")}
    seed = draw(st.integers(0, 2**32 - 1))
    maker = _MAKERS[outcome]
    rng = np.random.default_rng(seed)
    try:
        instance = maker(rng, n, cone, density=density, quadratic_rank=rank, structure=structure)
    except ValueError:
        # The cone has no nonzero dual point, so nothing is infeasible.
        maker = manufacture.feasible
        rng = np.random.default_rng(seed)
        instance = maker(rng, n, cone, density=density, quadratic_rank=rank, structure=structure)
    instance = scaling.rescale_at_random(rng, manufacture.with_condition(instance), **units)
    recipe = (
        f"scaling.rescale_at_random(rng := np.random.default_rng({seed}), "
        f"manufacture.with_condition(manufacture.{maker.__name__}(rng, {n}, {cone}, "
        f"density={density}, quadratic_rank={rank}, structure={structure})), **{units})"
    )
    return replace(instance, recipe=recipe)
