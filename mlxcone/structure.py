"""What the zeros of matrices allow: rows with one entry, a diagonal P."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxcone.operators import Place

_LEAST = 8  # rows that a block of rows with one entry must have to be worth it


class Structure(NamedTuple):
    """Places of the diagonal blocks of A, in the order of its rows, and whether P is diagonal."""

    places: tuple[Place, ...] = ()
    diagonal: bool = False


def find(P: mx.array | None, A: mx.array, pattern: np.ndarray | None = None) -> Structure:
    """The structure of P (n, n) and A (m, n); none where they have no values.

    What has a batch axis is not looked at: a lane must not be solved in another way because of
    the zeros of the lanes beside it. ``pattern`` (m, n) says where A, batched or not, may be other
    than zero.
    """
    if A.size == 0 or (A.ndim == 3 and pattern is None):
        return Structure()
    places: tuple[Place, ...] = ()
    try:
        places = _runs(np.array(A) != 0 if pattern is None else pattern)
        shared = A.ndim == 2 and P is not None and P.ndim == 2
        diagonal = shared and _is_diagonal(np.array(P))
    except (RuntimeError, ValueError) as error:
        if "transform" not in str(error):
            raise
        return Structure(places)
    return Structure(places, diagonal)


def _is_diagonal(P: np.ndarray) -> bool:
    return bool(np.count_nonzero(P) == np.count_nonzero(np.diagonal(P)))


def _runs(full: np.ndarray) -> tuple[Place, ...]:
    """Runs of rows with one entry each, one column further in each row."""
    alone = full.sum(axis=1) == 1
    if not alone.any():
        return ()
    column = np.where(alone, full.argmax(axis=1), -2)
    rows = np.arange(full.shape[0])
    # Along a run, row - column stays.
    begins = np.flatnonzero(alone & np.append(True, (np.diff(column) != 1) | ~alone[:-1]))
    ends = np.append(begins[1:], full.shape[0])
    places = []
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        length = int(np.argmin(np.append(alone[begin:end], False)))
        if length >= _LEAST:
            places.append((int(rows[begin]), int(column[begin]), length))
    return tuple(places)
