"""Telling whether an operator moved whose eigenvectors may turn while it does not."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlxcone.cones.base import Cone


def images(cone: Cone, atoms: Any, dtype: mx.Dtype) -> mx.array:
    """D applied to two fixed vectors, (B, 2 rows): its eigenvectors do not show."""
    places = mx.arange(cone.rows, dtype=mx.float32).astype(dtype)
    probes = mx.stack([mx.cos(places * places), mx.sin(1.0 + places * places)], axis=-1)
    image = cone.spectral(atoms, lambda eigenvalue: eigenvalue, probes[None])
    return image.reshape(image.shape[0], -1)
