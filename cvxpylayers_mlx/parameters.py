"""From the arrays of a call to one vector of their components."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxcone import as_array

_ROUNDING = 1e-6  # below zero, relative to the largest entry


class Checked(NamedTuple):
    """Validated parameters.

    ``values`` have one float dtype, for computing, or are complex64; ``dtype`` is the one to
    answer in; ``batch`` is None for an unbatched call, and ``batched`` says which parameters carry
    the batch axis.
    """

    values: list[mx.array]
    dtype: mx.Dtype
    batch: int | None
    batched: list[bool]


class Pick(NamedTuple):
    """A component of a parameter: "whole", "logarithm", "real" or "imag", and its size."""

    parameter: int
    component: str
    size: int


def check(
    values: tuple[Any, ...],
    shapes: list[tuple[int, ...]],
    is_complex: Sequence[bool],
    names: Sequence[str],
) -> Checked:
    """Validate the arrays of a call against the shapes of the parameters, and their names.

    Messages begin as those of cvxpylayers, which people match.

    Raises:
        ValueError: number, shape, dimensionality or batch sizes do not fit.
        TypeError: not numeric, or complex for a real parameter.
    """
    if len(values) != len(shapes):
        raise ValueError(
            "A tensor must be provided for each CVXPY parameter; "
            f"received {len(values)} tensors, expected {len(shapes)}: {', '.join(names)}"
        )
    arrays = [
        _array(f"parameter {i}", v, c)
        for i, (v, c) in enumerate(zip(values, is_complex, strict=True))
    ]
    sizes: list[int] = []
    for i, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        got = tuple(array.shape)
        if len(got) not in (len(shape), len(shape) + 1):
            raise ValueError(
                f"Invalid parameter dimensionality for parameter {i}. Expected {len(shape)} or "
                f"{len(shape) + 1} dimensions, Got: {len(got)} dimensions. {_told(names[i], shape)}"
            )
        batched = len(got) > len(shape)
        if got[len(got) - len(shape) :] != shape:
            wanted = f"(batch_size, {', '.join(map(str, shape))})" if batched else str(shape)
            kind = "Expected batched shape" if batched else "Expected"
            raise ValueError(
                f"Invalid parameter shape for parameter {i}. {kind}: {wanted}, Got: {got}. "
                f"{_told(names[i], shape)}"
            )
        sizes.append(got[0] if batched else -1)
    present = {size for size in sizes if size >= 0}
    if len(present) > 1:
        raise ValueError(
            "Inconsistent batch sizes. Expected all batched parameters to have the same batch "
            f"size, but got: {[max(size, 0) for size in sizes]} for {', '.join(names)}"
        )
    batch = present.pop() if present else None
    if batch == 0:
        raise ValueError("Inconsistent batch sizes. The batch is empty.")
    floats = [mx.float32 if _is_complex(a) else a.dtype for a in arrays]
    answer = floats[0] if floats else mx.float32
    for dtype in floats[1:]:
        answer = mx.result_type(mx.zeros((), dtype=answer), mx.zeros((), dtype=dtype))
    compute = mx.float64 if answer == mx.float64 else mx.float32
    arrays = [a if _is_complex(a) else a.astype(compute) for a in arrays]
    return Checked(arrays, answer, batch, [size >= 0 for size in sizes])


def _told(name: str, shape: tuple[int, ...]) -> str:
    """What a parameter takes."""
    batch = ", ".join(map(str, ("batch", *shape)))
    return f"{name} takes {shape} or ({batch}{',' * (not shape)}); mx.vmap maps over further axes"


def wrong_sign(checked: Checked, signs: Sequence[int]) -> mx.array | None:
    """Lanes, () or (B,), in which a parameter has not its declared sign; None if none has one.

    Args:
        checked (Checked): the parameters.
        signs (tuple): for each 1 (nonnegative), -1 (nonpositive) or 0 (either).
    """
    wrong = None
    for value, sign, batched in zip(checked.values, signs, checked.batched, strict=True):
        if not sign or not value.size:
            continue
        here = _below_zero(sign * _flat(value, batched))
        here = here if batched else here[0]
        wrong = here if wrong is None else mx.logical_or(wrong, here)
    return wrong


def have_numbers(arrays: Sequence[mx.array | None]) -> bool:
    """Whether arrays can be evaluated; not under ``mx.vmap`` and ``mx.compile``."""
    try:
        mx.eval(arrays)
    except (RuntimeError, ValueError) as error:
        if "transform" not in str(error):
            raise
        return False
    return True


def _flat(value: mx.array, batched: bool) -> mx.array:
    return value.reshape(value.shape[0] if batched else 1, -1)


def _below_zero(flat: mx.array) -> mx.array:
    """Whether an entry is, beyond rounding; not for NaN."""
    return mx.min(flat, axis=1) < -_ROUNDING * mx.max(mx.abs(flat), axis=1)


def faults(
    checked: Checked, signs: Sequence[int], picks: Sequence[Pick], names: Sequence[str]
) -> dict[int, str]:
    """What is wrong with the parameters of the lanes, as far as one sees it by looking at them.

    Evaluates them, if that can be done. Arguments as for `wrong_sign` and `select`, and the names
    of the parameters.
    """
    if not have_numbers(checked.values):
        return {}
    logarithms = {p.parameter for p in picks if p.component == "logarithm"}
    found: dict[int, str] = {}
    for i, (value, sign) in enumerate(zip(checked.values, signs, strict=True)):
        if not value.size:
            continue
        flat = _flat(value, checked.batched[i])
        kinds = {"holds NaN or infinity": mx.logical_not(mx.all(mx.isfinite(flat), axis=1))}
        if i in logarithms:
            kinds["has to be positive"] = mx.min(flat, axis=1) <= 0
        elif sign:
            kind = "has to be nonnegative" if sign > 0 else "has to be nonpositive"
            kinds[kind] = _below_zero(sign * flat)
        for kind, here in kinds.items():
            holds: Any = here.tolist()
            lanes = holds if checked.batched[i] else holds * (checked.batch or 1)
            for lane, fault in enumerate(lanes):
                if fault:
                    found.setdefault(lane, f"parameter {i} ({names[i]}) {kind}")
    return found


def _is_complex(array: mx.array) -> bool:
    return array.dtype == mx.complex64


def _array(name: str, value: Any, may_be_complex: bool) -> mx.array:
    if may_be_complex and not isinstance(value, mx.array):
        value = value.toarray() if hasattr(value, "toarray") else value
        with contextlib.suppress(TypeError, ValueError):  # `as_array` says what is wrong
            host = np.asarray(value)
            value = mx.array(host.astype(np.complex64)) if host.dtype.kind == "c" else value
    if may_be_complex and isinstance(value, mx.array) and _is_complex(value):
        return value
    return as_array(name, value)


def _component(value: mx.array, component: str, dtype: mx.Dtype) -> mx.array:
    if component == "logarithm":
        return mx.log(value)
    if component in ("real", "imag") and _is_complex(value):
        return (mx.real(value) if component == "real" else mx.imag(value)).astype(dtype)
    return mx.zeros_like(value) if component == "imag" else value


def select(checked: Checked, picks: Sequence[Pick]) -> Checked:
    """The components that the program is made of, one for each pick."""
    dtype = mx.float64 if checked.dtype == mx.float64 else mx.float32
    values = [_component(checked.values[p.parameter], p.component, dtype) for p in picks]
    return checked._replace(values=values, batched=[checked.batched[p.parameter] for p in picks])


def flatten(selected: Checked, used: tuple[bool, ...], lanes: int) -> mx.array:
    """The components that are used, flat and one after the other, (lanes, their size).

    Args:
        selected (Checked): the components of the picks.
        used (tuple): which of them; the others need not be there, so that what is computed from
            the used ones alone does not carry the batch axis of the rest.
        lanes (int): rows of the result.
    """
    pieces = [
        _flat(value, batched)
        for value, wanted, batched in zip(selected.values, used, selected.batched, strict=True)
        if wanted
    ]
    if len(pieces) == 1:
        return pieces[0]
    wide = (mx.broadcast_to(piece, (lanes, piece.shape[1])) for piece in pieces)
    return mx.concatenate(list(wide), axis=1)
