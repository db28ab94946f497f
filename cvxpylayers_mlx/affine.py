"""Sparse linear maps between parameters and problem data, differentiable to any order.

The map from parameters to (P, q, A, b) has about one nonzero a row. It is kept as indices and
values and applied by gather and scatter-add; its derivative is the transposed map, applied the
same way. (MLX's own scatter has no jvp, so both directions are custom functions of each other,
and what they compute inside is cut off from the transforms.)
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import scipy.sparse as sp

from mlxcone import on_cpu


class SparseMap:
    """y = M p for lanes of p, (B, columns) -> (B, rows).

    Args:
        matrix: SciPy sparse matrix or array, (rows, columns).
    """

    def __init__(self, matrix: Any) -> None:
        coo: Any = sp.coo_array(matrix)
        coo.sum_duplicates()
        self.shape = (int(coo.shape[0]), int(coo.shape[1]))
        self.rows = mx.array(coo.row.astype(np.int32))
        self.columns = mx.array(coo.col.astype(np.int32))
        self.values = mx.array(coo.data.astype(np.float64), dtype=mx.float64)
        self._forward = _linear(self, False)
        self._backward = _linear(self, True)

    def matrix(self) -> Any:
        """M, a SciPy CSR array."""
        rows, columns, values = (np.array(a) for a in (self.rows, self.columns, self.values))
        return sp.csr_array((values, (rows, columns)), shape=self.shape)

    def __reduce__(self) -> Any:
        # Custom functions do not pickle.
        return type(self), (self.matrix(),)

    def __call__(self, p: mx.array) -> mx.array:
        """M p per lane, (B, rows), in the dtype of ``p``, (B, columns)."""
        return self._forward(p)

    def _apply(self, p: mx.array, transposed: bool) -> mx.array:
        if 0 in self.shape:
            return mx.zeros((p.shape[0], self.shape[1 if transposed else 0]), dtype=p.dtype)
        sources, targets = (self.rows, self.columns) if transposed else (self.columns, self.rows)
        size = self.shape[1] if transposed else self.shape[0]
        # Lanes last: gather and scatter then move contiguous rows.
        moved = self.values.astype(p.dtype)[:, None] * mx.take(p.T, sources, axis=0)
        return mx.zeros((size, p.shape[0]), dtype=p.dtype).at[targets].add(moved).T


def _linear(owner: SparseMap, transposed: bool) -> Any:
    """The map, or its transpose, as a custom function with every rule."""

    @mx.custom_function
    @on_cpu
    def apply(p: mx.array) -> mx.array:
        # mx.jvp would walk through the scatter although the rule below is there.
        return owner._apply(mx.stop_gradient(p), transposed)

    @apply.vjp
    def apply_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        cotangent = cotangents[0] if isinstance(cotangents, (tuple, list)) else cotangents
        return (owner._forward if transposed else owner._backward)(cotangent)

    @apply.jvp
    def apply_jvp(primals: Any, tangents: Any) -> Any:
        return apply(tangents[0] if isinstance(tangents, (tuple, list)) else tangents)

    @apply.vmap
    @on_cpu
    def apply_vmap(inputs: Any, axes: Any) -> Any:
        p, axis = (v[0] if isinstance(v, (tuple, list)) else v for v in (inputs, axes))
        p = mx.moveaxis(p, axis, 0)
        out: Any = apply(p.reshape(-1, p.shape[-1]))
        return out.reshape(*p.shape[:2], -1), 0

    return apply
