"""Sparse and soft choices among scores: projections in the place of softmax."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxcone.backend.devices import on_cpu
from mlxcone.nn import checks
from mlxcone.nn.projections import BoxSimplex, Simplex
from mlxcone.program.problem import as_array


class Sparsemax(nn.Module):
    """Probabilities with exact zeros: the projection of scores on the simplex.

    Martins and Astudillo 2016, arXiv 1602.02068, equation 1.

    Args:
        size (int): number of scores.
        temperature (float): the scores are divided by it; small ones choose fewer.
        **settings: of the solver, see `mlxcone.Settings`.

    Raises:
        ValueError: size or temperature is not positive, or a setting does not fit.
    """

    def __init__(self, size: int, temperature: float = 1.0, **settings: Any) -> None:
        super().__init__()
        self._temperature = checks.positive("temperature", temperature)
        self._project = Simplex(size, **settings)

    @on_cpu
    def __call__(self, scores: mx.array) -> mx.array:
        """Probabilities of scores ``(..., size)``, along the last axis.

        Raises:
            ValueError: the last axis has another size.
        """
        return self._project(as_array("scores", scores) / self._temperature)


class SoftTopK(nn.Module):
    """Weights between 0 and 1 that sum to k, the largest scores first.

    The projection on {0 <= x <= 1, sum x = k}, as in Amos et al. 2019, arXiv 1906.08707,
    with a quadratic in the place of their entropy: weights are 0 and 1 exactly where scores are far
    apart, and the gradient is not zero where they are close.

    Args:
        size (int): number of scores.
        k (int): how many to choose.
        temperature (float): the scores are divided by it; small ones choose harder.
        **settings: of the solver, see `mlxcone.Settings`.

    Raises:
        ValueError: temperature is not positive, k does not lie in (0, size], or a setting does not
            fit.
    """

    def __init__(self, size: int, k: int, temperature: float = 1.0, **settings: Any) -> None:
        super().__init__()
        self._temperature = checks.positive("temperature", temperature)
        if not 0 < k <= size:
            raise ValueError(f"k: expected a number above 0, at most size = {size}, got {k!r}")
        self._project = BoxSimplex(size, 0.0, 1.0, float(k), **settings)

    @on_cpu
    def __call__(self, scores: mx.array) -> mx.array:
        """Weights of scores ``(..., size)``, along the last axis.

        Raises:
            ValueError: the last axis has another size.
        """
        return self._project(as_array("scores", scores) / self._temperature)
