"""What the zeros of matrices allow: rows with one entry, columns with few, a diagonal P."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxcone.program.operators import Columns, Entries, Place, Sparsity
from mlxcone.program.pairs import Pairs

_LEAST = 8  # rows that a block of rows with one entry must have to be worth it
_FEW = 8  # a column has few entries if they are in so small a part of its rows


class Structure(NamedTuple):
    """Zeros of A, rows in internal order, and whether P is diagonal.

    Derivatives may make use of ``sparsity`` if it is ``constant``: else zeros of A are variables,
    like all of its entries.
    """

    sparsity: Sparsity = Sparsity()
    diagonal: bool = False
    constant: bool = False

    @property
    def of_derivatives(self) -> Sparsity:
        """What they may make use of: nothing that scatters, which has no rule for ``jvp``."""
        return self.of_factors if self.constant else Sparsity()

    @property
    def of_factors(self) -> Sparsity:
        """What their factors, which are constants, may make use of."""
        return self.sparsity._replace(pairs=None, single=(None, None))


def find(P: mx.array | None, A: mx.array, pattern: np.ndarray | None = None) -> Structure:
    """The structure of P (n, n) and A (m, n); none where they have no values.

    What has a batch axis is not looked at: a lane must not be solved in another way because of
    the zeros of the lanes beside it. ``pattern`` (m, n) says where A, batched or not, may be other
    than zero.
    """
    if A.size == 0 or (A.ndim == 3 and pattern is None):
        return Structure()
    sparsity, constant = Sparsity(), pattern is not None
    try:
        values = np.array(A) != 0 if A.ndim == 2 else None
        full = values if pattern is None else pattern
        assert full is not None
        sparsity = Sparsity(_runs(full))
        if values is not None:
            columns, pairs = _columns(values), Pairs.of(values)
            single = _columns(values.T, 1), _columns(values, 1)
            few = _FEW * int(np.count_nonzero(values)) <= values.size
            entries = Entries(values) if few else None
            sparsity = Sparsity(sparsity.places, columns, pairs, single, entries)
        shared = A.ndim == 2 and P is not None and P.ndim == 2
        diagonal = shared and _is_diagonal(np.array(P))
    except (RuntimeError, ValueError) as error:
        if "transform" not in str(error):
            raise
        return Structure(sparsity, constant=constant)
    return Structure(sparsity, diagonal, constant)


def _is_diagonal(P: np.ndarray) -> bool:
    return bool(np.count_nonzero(P) == np.count_nonzero(np.diagonal(P)))


def _columns(full: np.ndarray, wanted: int | None = None) -> Columns | None:
    """The entries of each column, if there are few, and the most in one as many as wanted."""
    counts = full.sum(axis=0)
    most = int(counts.max())
    if most * _FEW > full.shape[0] or wanted not in (None, most):
        return None
    first = np.cumsum(counts) - counts
    column, row = np.nonzero(full.T)
    rows = np.full((full.shape[1], most), -1, dtype=np.int32)
    rows[column, np.arange(column.size) - first[column]] = row
    return Columns(rows)


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
