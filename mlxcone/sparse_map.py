"""A sparse linear map between lanes of vectors, differentiable to any order.

Its derivative is the transposed map, applied in the same way: by gathering. Both directions are
custom functions of each other, and what they compute inside is cut off from the transforms.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import scipy.sparse as sp

from mlxcone.backend.devices import on_cpu
from mlxcone.program.sparse import Slabs


class SparseMap:
    """y = M p for lanes of p, (B, columns) -> (B, rows), in the dtype of p.

    Works under every transform of MLX; no entry of p reaches an entry of y to which M does not
    connect it, NaN included.

    Args:
        matrix: SciPy sparse matrix or array, (rows, columns).
    """

    def __init__(self, matrix: Any) -> None:
        self.matrix: Any = sp.csr_array(matrix, dtype=np.float64, copy=True)
        self.matrix.sum_duplicates()
        self.shape: tuple[int, int] = self.matrix.shape
        # Made when they are needed, and as often as threads come at once: all the same.
        self._slabs: dict[tuple[bool, mx.Dtype], Slabs] = {}
        self._forward = _linear(self, False)
        self._backward = _linear(self, True)

    def __reduce__(self) -> Any:
        # Custom functions do not pickle.
        return type(self), (self.matrix,)

    def __call__(self, p: mx.array) -> mx.array:
        """M p per lane, (B, rows).

        Raises:
            ValueError: p has another number of columns.
        """
        if p.ndim != 2 or p.shape[1] != self.shape[1]:
            raise ValueError(f"p: expected shape (B, {self.shape[1]}), got {p.shape}")
        return self._forward(p)

    def _apply(self, p: mx.array, transposed: bool) -> mx.array:
        if 0 in self.shape:
            return mx.zeros((p.shape[0], self.shape[1 if transposed else 0]), dtype=p.dtype)
        key = transposed, p.dtype
        if key not in self._slabs:
            matrix = self.matrix.T.tocsr() if transposed else self.matrix
            slabs = Slabs.of(matrix, matrix.shape[1]).map(lambda v: v.astype(p.dtype))
            mx.eval([slab.values for slab in slabs.slabs])
            self._slabs[key] = slabs
        slabs = self._slabs[key]
        # Padding is zero times a zero of its own: any entry may be NaN.
        return slabs.times(mx.pad(p, [(0, 0), (0, 1)]) if slabs.padded else p)


def _linear(owner: SparseMap, transposed: bool) -> Any:
    """The map, or its transpose, as a custom function with every rule."""

    @mx.custom_function
    @on_cpu
    def apply(p: mx.array) -> mx.array:
        # mx.jvp would walk through the gathers although the rule below is there.
        return owner._apply(mx.stop_gradient(p), transposed)

    @apply.vjp
    @on_cpu
    def apply_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        cotangent = cotangents[0] if isinstance(cotangents, (tuple, list)) else cotangents
        return (owner._forward if transposed else owner._backward)(cotangent)

    @apply.jvp
    @on_cpu
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
