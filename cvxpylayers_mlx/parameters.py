"""From the arrays of a call to one vector of canonical parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import mlx.core as mx

from mlxcone import as_array


class Checked(NamedTuple):
    """Validated parameters.

    ``values`` have one float dtype, for computing; ``dtype`` is the one to answer in; ``batch`` is
    None for an unbatched call, and ``batched`` says which parameters carry the batch axis.
    """

    values: list[mx.array]
    dtype: mx.Dtype
    batch: int | None
    batched: list[bool]


class Pick(NamedTuple):
    """Which entries of a parameter's row-major flat array are canonical, in order.

    Each is the mean of the entries at ``index`` and at ``mirror`` if there is one.
    """

    index: mx.array
    mirror: mx.array | None


def check(values: tuple[Any, ...], shapes: list[tuple[int, ...]]) -> Checked:
    """Validate the arrays of a call against the shapes of the parameters.

    Raises:
        ValueError: number, shape, dimensionality or batch sizes do not fit.
    """
    if len(values) != len(shapes):
        raise ValueError(
            "A tensor must be provided for each CVXPY parameter; "
            f"received {len(values)} tensors, expected {len(shapes)}"
        )
    arrays = [as_array(f"parameter {i}", v) for i, v in enumerate(values)]
    sizes: list[int] = []
    for i, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        got = tuple(array.shape)
        if len(got) not in (len(shape), len(shape) + 1):
            raise ValueError(
                f"Invalid parameter dimensionality for parameter {i}. Expected {len(shape)} or "
                f"{len(shape) + 1} dimensions, Got: {len(got)} dimensions"
            )
        batched = len(got) > len(shape)
        if got[len(got) - len(shape) :] != shape:
            wanted = f"(batch_size, {', '.join(map(str, shape))})" if batched else str(shape)
            kind = "batched shape" if batched else "shape"
            raise ValueError(
                f"Invalid parameter shape for parameter {i}. Expected {kind}: {wanted}, Got: {got}"
                if batched
                else f"Invalid parameter shape for parameter {i}. Expected: {wanted}, Got: {got}"
            )
        sizes.append(got[0] if batched else -1)
    present = {size for size in sizes if size >= 0}
    if len(present) > 1:
        raise ValueError(
            "Inconsistent batch sizes. Expected all batched parameters to have the same batch "
            f"size, but got: {[max(size, 0) for size in sizes]}"
        )
    batch = present.pop() if present else None
    if batch == 0:
        raise ValueError("Inconsistent batch sizes. The batch is empty.")
    answer = arrays[0].dtype if arrays else mx.float32
    for array in arrays[1:]:
        answer = mx.result_type(mx.zeros((), dtype=answer), mx.zeros((), dtype=array.dtype))
    compute = mx.float64 if answer == mx.float64 else mx.float32
    return Checked(
        [a.astype(compute) for a in arrays], answer, batch, [size >= 0 for size in sizes]
    )


def select(checked: Checked, sources: Iterable[tuple[int, bool]]) -> Checked:
    """The canonical parameters: for each (position, logarithm) that array, or its logarithm."""
    chosen = list(sources)
    values = [mx.log(checked.values[i]) if log else checked.values[i] for i, log in chosen]
    return checked._replace(values=values, batched=[checked.batched[i] for i, _ in chosen])


def flatten(
    checked: Checked, picks: tuple[Pick, ...], used: tuple[bool, ...], lanes: int
) -> mx.array:
    """Canonical parameter vector, (lanes, total + 1), with the constant 1 last.

    Args:
        checked (Checked): the arrays.
        picks (tuple): for each parameter its canonical entries.
        used (tuple): parameters to fill in; the others are left at zero, so that what is
            computed from the used ones alone need not carry the batch axis of the rest.
        lanes (int): rows of the result.
    """
    dtype = checked.values[0].dtype if checked.values else mx.float32
    pieces = []
    for value, pick, wanted, batched in zip(
        checked.values, picks, used, checked.batched, strict=True
    ):
        if not wanted:
            pieces.append(mx.zeros((lanes, pick.index.size), dtype=dtype))
            continue
        flat = value.reshape(value.shape[0] if batched else 1, -1)
        piece = mx.take(flat, pick.index, axis=1)
        if pick.mirror is not None:
            piece = 0.5 * (piece + mx.take(flat, pick.mirror, axis=1))
        pieces.append(mx.broadcast_to(piece, (lanes, pick.index.size)))
    return mx.concatenate([*pieces, mx.ones((lanes, 1), dtype=dtype)], axis=1)
