"""The same problem in other units: rows, columns, right-hand side and cost of any size.

A problem whose numbers span twelve decades has the answer of the problem it came from, in
other units. Factors are powers of two, so nothing is rounded on the way.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from mlxcone.testing.manufacture import Instance
from mlxcone.testing.projections import Array, as_vector, row_groups


def rescale(
    instance: Instance,
    rows: ArrayLike | None = None,
    columns: ArrayLike | None = None,
    *,
    right: float = 1.0,
    cost: float = 1.0,
) -> Instance:
    """Change the units of a problem and of its known answer.

    With E = diag(rows) and D = diag(columns) the new problem has ``A' = E A D``,
    ``b' = right E b``, ``q' = cost D q`` and ``P' = (cost / right) D P D``.

    Args:
        instance: Any instance.
        rows: Positive factors, shape (m,), equal inside each cone but "z" and "l"; None for one.
        columns: Positive factors, shape (n,); None for one.
        right: Positive factor of b (and of x and s).
        cost: Positive factor of q (and of y).

    Returns:
        The new `mlxcone.testing.Instance`, without a recipe.

    Raises:
        ValueError: a shape does not fit, a factor is not positive, or rows of one cone differ.
    """
    m, n = instance.A.shape
    E = as_vector(np.ones(m) if rows is None else rows, "rows", m)
    D = as_vector(np.ones(n) if columns is None else columns, "columns", n)
    factors = np.concatenate([E, D, [right, cost]])
    if not (np.all(factors > 0.0) and np.all(np.isfinite(factors))):
        raise ValueError("rows, columns, right and cost: expected positive numbers")
    for group in row_groups(instance.cones):
        if np.any(E[group] != E[group.start]):
            one, last = group.start, group.stop - 1
            raise ValueError(f"rows: expected one factor for rows {one} to {last}")
    # A certificate is scaled to -1 with the side that it is about.
    x_unit = 1.0 / cost if instance.expect == "unbounded" else right
    y_unit = 1.0 / right if instance.expect == "infeasible" else cost
    return replace(
        instance,
        P=(cost / right) * D[:, None] * instance.P * D,
        q=cost * D * instance.q,
        A=E[:, None] * instance.A * D,
        b=right * E * instance.b,
        x=x_unit * instance.x / D,
        y=y_unit * instance.y / E,
        s=x_unit * E * instance.s,
        recipe="",
        spread=instance.spread * float(np.max(factors, initial=1.0) / np.min(factors, initial=1.0)),
    )


def rescale_at_random(
    rng: np.random.Generator,
    instance: Instance,
    *,
    rows: float = 0.0,
    columns: float = 0.0,
    right: float = 0.0,
    cost: float = 0.0,
) -> Instance:
    """Change the units by random powers of two.

    Args:
        rng: Source of randomness.
        instance: Any instance.
        rows: The factors of `rescale` lie within this many decades of one.
        columns: The same for columns.
        right: The same for the right-hand side.
        cost: The same for the cost.

    Returns:
        The new `mlxcone.testing.Instance`.
    """
    groups = row_groups(instance.cones)

    def powers(count: int, decades: float) -> Array:
        reach = decades * np.log2(10.0)
        return np.exp2(np.round(rng.uniform(-reach, reach, count)))

    sizes = [group.stop - group.start for group in groups]
    return rescale(
        instance,
        np.repeat(powers(len(groups), rows), sizes),
        powers(instance.q.size, columns),
        right=float(powers(1, right)[0]),
        cost=float(powers(1, cost)[0]),
    )
