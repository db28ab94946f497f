"""Hypothesis strategies for cone programs with a known answer.

What is drawn is small: sizes, a cone dictionary, a rank, a density and a seed. Sizes are drawn
first, so a failing example shrinks to few variables and rows before anything else, and its
``repr`` is the call that makes it again.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mlxcone.testing import manufacture
from mlxcone.testing.manufacture import Expect, Instance

Draw = Callable[[st.SearchStrategy[Any]], Any]

_MAX_BLOCKS = 5
# Eight to one to one: solutions are where solvers differ most.
_MIX: tuple[Expect, ...] = ("solved",) * 8 + ("infeasible", "unbounded")
_MAKERS: dict[Expect, Callable[..., Instance]] = {
    "solved": manufacture.feasible,
    "infeasible": manufacture.infeasible,
    "unbounded": manufacture.unbounded,
}


def _draw_count(draw: Draw, room: int) -> tuple[int, int]:
    rows = draw(st.integers(0, room))
    return rows, rows


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


# One entry per kind of cone: draw its value within a number of rows, and say how many it took.
_DRAWS: dict[str, Callable[[Draw, int], tuple[Any, int]]] = {
    "z": _draw_count,
    "l": _draw_count,
    "q": _draw_second_order,
    "s": _draw_semidefinite,
}


@st.composite
def cones(draw: Draw, max_rows: int = 60, kinds: Sequence[str] = ("z", "l", "q")) -> dict[str, Any]:
    """Draw a cone dictionary with 1 to ``max_rows`` rows.

    Args:
        draw: Supplied by hypothesis.
        max_rows: Bound on the number of rows, at least 1.
        kinds: Keys that may occur; "z", "l", "q" (sizes one, two and larger) and "s".

    Returns:
        An SCS dictionary without empty entries.

    Raises:
        ValueError: an unknown kind, no kind at all, or no room for a row.
    """
    unknown = [kind for kind in kinds if kind not in _DRAWS]
    if unknown or not kinds:
        raise ValueError(f"kinds: expected some of {', '.join(_DRAWS)}, got {tuple(kinds)}")
    if max_rows < 1:
        raise ValueError(f"max_rows: expected at least 1, got {max_rows}")
    drawn: dict[str, Any] = {}
    room = max_rows
    for position, kind in enumerate(kinds):
        # An even share of what is left, so that the first kind does not starve the others.
        value, rows = _DRAWS[kind](draw, -(-room // (len(kinds) - position)))
        room -= rows
        if rows:
            drawn[kind] = value
    if drawn:
        return drawn
    return {kinds[0]: 1 if kinds[0] in ("z", "l") else [1]}


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
        kinds: Cones that may occur, as in :func:`cones`.

    Returns:
        An :class:`~mlxcone.testing.Instance`; ``recipe`` is the call that makes it again.

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
