"""Which entries of a variable or parameter CVXPY keeps, in its order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Part(NamedTuple):
    """One canonical vector made from a leaf.

    ``component`` is "whole", or for complex leaves "real" or "imag". Entry k stands at the
    row-major positions ``index[k]`` and, times ``sign``, ``mirror[k]``; the two are the same
    unless the component is symmetric (sign 1) or skew (sign -1).
    """

    component: str
    index: np.ndarray
    mirror: np.ndarray
    sign: float = 1.0


def parts(leaf: Any, plain: bool = False) -> list[Part]:
    """The canonical vectors of a leaf: one, or two if it is complex.

    They follow ``cvxpy.reductions.cvx_attr2constr.lower_value`` and, for complex leaves,
    ``Complex2RealCanonMethods``, whose order of real and imaginary part this is.

    Args:
        leaf (cvxpy Leaf): variable or parameter.
        plain (bool): every entry is kept, whatever the attributes: logarithms have none.
    """
    flat = np.arange(leaf.size).reshape(leaf.shape)
    if plain:
        return [_full("whole", flat)]
    if not leaf.is_complex():
        return [Part("whole", *_kept(leaf, flat))]
    if leaf.is_imag():
        return [_full("imag", flat)]
    if not leaf.is_hermitian():
        return [_full("real", flat), _full("imag", flat)]
    real = Part("real", *_upper(flat, 0))
    return [real, Part("imag", *_upper(flat, 1), -1.0)] if leaf.shape[0] > 1 else [real]


def _kept(leaf: Any, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if any(leaf.attributes[a] for a in ("symmetric", "PSD", "NSD")):
        return _upper(flat, 0)
    if leaf.attributes["diag"]:
        index = np.diag(flat)
    elif leaf.attributes["sparsity"]:
        index = flat[leaf.sparse_idx]
    else:
        index = flat.ravel(order="F")
    return index, index


def _upper(flat: np.ndarray, above: int) -> tuple[np.ndarray, np.ndarray]:
    """Upper triangle of the last two axes, and its mirror image."""
    rows, columns = np.triu_indices(flat.shape[-1], k=above)
    upper, lower = flat[..., rows, columns], flat[..., columns, rows]
    return upper.ravel(order="F"), lower.ravel(order="F")


def _full(component: str, flat: np.ndarray) -> Part:
    index = flat.ravel(order="F")
    return Part(component, index, index)
