"""The data of a program as affine functions of the components of parameters."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
import scipy.sparse as sp

import mlxcone


@dataclass(frozen=True)
class DataMap:
    """One of P, q, A, b as an affine function of the components of the parameters.

    ``matrix``, SciPy CSR (entries, total + 1), takes the flat components, one after the other, and
    a 1 to the flat entries, row by row, of an array of ``shape``; ``sizes`` are those of the
    components.
    """

    matrix: Any
    shape: tuple[int, ...]
    sizes: tuple[int, ...]

    @cached_property
    def uses(self) -> tuple[bool, ...]:
        """Whether it depends on each of the components."""
        touched = np.zeros(self.matrix.shape[1], dtype=bool)
        touched[self.matrix.indices] = True
        bounds = itertools.pairwise(np.cumsum([0, *self.sizes]))
        return tuple(bool(touched[low:high].any()) for low, high in bounds)

    @cached_property
    def offset(self) -> np.ndarray | None:
        """The flat entries where the components are zero; None if these are zero, too."""
        # In NumPy, which keeps float64 in a pickle.
        column = self.matrix[:, [-1]].toarray().ravel()
        return column if column.any() else None

    @cached_property
    def linear(self) -> mlxcone.SparseMap:
        """From those components that it depends on to the flat entries."""
        kept = np.repeat(self.uses, self.sizes)
        return mlxcone.SparseMap(self.matrix[:, np.flatnonzero(kept)])

    def constant(self, dtype: mx.Dtype) -> mx.array | None:
        """The array, if it depends on no component."""
        if any(self.uses):
            return None
        flat = np.zeros(self.matrix.shape[0]) if self.offset is None else self.offset
        return mx.array(flat.reshape(self.shape), dtype=dtype)

    def __call__(self, components: mx.array) -> mx.array:
        """The arrays, (B, *shape), from the flat components that it depends on, (B, size)."""
        flat = self.linear(components)
        if self.offset is not None:
            flat = flat + mx.array(self.offset, dtype=flat.dtype)
        return flat.reshape(flat.shape[0], *self.shape)

    @property
    def pattern(self) -> np.ndarray:
        """Where an entry may be other than zero, of the shape of the array."""
        return (np.diff(self.matrix.indptr) > 0).reshape(self.shape)

    def at(self, entries: np.ndarray) -> DataMap:
        """The map to an array of some of the entries, numbered row by row, or 0 for -1."""
        matrix: Any = self.matrix
        if (entries < 0).any():
            matrix = sp.vstack([matrix, sp.csr_array((1, matrix.shape[1]))], format="csr")
        return DataMap(matrix[entries.ravel()], entries.shape, self.sizes)
