"""A hundred thousand points a cone: corners, what lies close to them, and noise, at all scales.

Hypothesis draws batches of `BATCH` points: 40 of them here, 400 with
``MLXCONE_TEST_PROFILE=thorough``, which makes 10^5 points of each row of the cone table. The
reference is `mlxcone.testing`, plain NumPy, point by point.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cones import TABLE, Array, Row, corner_points, dense, project_dual

from mlxcone.testing import project_dual_cone

THOROUGH = os.environ.get("MLXCONE_TEST_PROFILE") == "thorough"
BATCH = 250 if THOROUGH else 40
MIXTURES = [row for row in TABLE if row.name.startswith("product")]
ALONE = [row for row in TABLE if row not in MIXTURES]
each_cone = pytest.mark.parametrize("row", ALONE, ids=lambda row: row.name)


class Draw(NamedTuple):
    """What hypothesis chooses of a batch; the rest is noise of the seed."""

    seed: int
    scale: float
    closeness: float
    narrow: bool


draws = st.builds(
    Draw,
    st.integers(0, 2**32 - 1),
    st.integers(-12, 12).map(lambda k: 10.0**k),
    st.integers(0, 17).map(lambda k: 10.0**-k),
    st.booleans(),
)
_corners: dict[str, Array] = {}


def batch(row: Row, drawn: Draw) -> Array:
    """Points of size ``scale`` in turn noise, corners, and ``closeness`` away from corners."""
    if row.name not in _corners:
        listed = [z for name, z in corner_points(row).items() if "e+" not in name]
        unit = [z / (np.abs(z).max() or 1.0) for z in listed]
        _corners[row.name] = np.stack(unit)
    rng = np.random.default_rng(drawn.seed)
    corners = _corners[row.name]
    chosen = corners[rng.integers(len(corners), size=BATCH)]
    noise = rng.standard_normal((BATCH, row.rows))
    away = np.array([0.0, drawn.closeness, drawn.closeness, 1.0])[np.arange(BATCH) % 4]
    z = np.where((away == 1.0)[:, None], noise, chosen + away[:, None] * noise) * drawn.scale
    return z.astype(np.float32).astype(np.float64) if drawn.narrow else z


def sizes(z: Array) -> Array:
    return np.abs(z).max(axis=-1, keepdims=True)


@each_cone
@given(drawn=draws)
def test_projections(row: Row, drawn: Draw) -> None:
    """To 1e-12 of the point in float64, 1e-6 in float32 (of the largest eigenvalue's bound)."""
    z = batch(row, drawn)
    expected = np.stack([project_dual_cone(row.scs, v) for v in z])
    assert (np.abs(project_dual(row, z) - expected) <= 1e-12 * sizes(z)).all()
    if drawn.narrow:
        # Eigenvalues may exceed the entries of a matrix, and so does their rounding.
        bound = 1e-6 * max([2, *row.scs.get("s", [])]) / 2
        assert (np.abs(project_dual(row, z, mx.float32) - expected) <= bound * sizes(z)).all()


@each_cone
@given(drawn=draws)
def test_derivatives(row: Row, drawn: Draw) -> None:
    """Symmetric, between 0 and 1, and D z = Pi(z), as for any cone (Euler)."""
    z = batch(row, drawn)
    D = dense(row, z)
    assert np.abs(D - D.swapaxes(-1, -2)).max() <= 1e-14
    values = np.linalg.eigvalsh(D)
    assert values.min() >= -1e-13
    assert values.max() <= 1.0 + 1e-13
    image = (D @ z[..., None])[..., 0]
    assert (np.abs(image - project_dual(row, z)) <= 1e-11 * sizes(z)).all()


@each_cone
@given(drawn=draws)
def test_derivatives_along_a_direction(row: Row, drawn: Draw) -> None:
    """Central differences of the projection to 1e-6, wherever they settle as steps shrink."""
    z = batch(row, drawn)
    rng = np.random.default_rng(drawn.seed + 1)
    direction = rng.standard_normal(z.shape)

    def difference(step: float) -> Array:
        moved = step * sizes(z) * direction
        ahead, behind = (project_dual(row, z + sign * moved) for sign in (1.0, -1.0))
        return (ahead - behind) / (2.0 * step * np.where(sizes(z) > 0, sizes(z), 1.0))

    near, wide = difference(1e-5), difference(4e-5)
    settled = (np.abs(near - wide) <= 1e-7).all(axis=-1) & (sizes(z)[:, 0] > 0)
    found = (dense(row, z) @ direction[..., None])[..., 0]
    error = np.abs(found - near).max(axis=-1)
    # At a kink D is that of some face that meets there.
    wrong = settled & (error > 1e-6) & (_sides_differ_by(row, z, direction) <= 1e-6)
    assert not wrong.any(), z[wrong]
    if drawn.closeness == 1.0:
        assert settled.mean() > 0.2, "hardly a smooth point among them"


def _sides_differ_by(row: Row, z: Array, direction: Array) -> Array:
    """How much the one-sided differences at z disagree."""
    step = 1e-7 * np.where(sizes(z) > 0, sizes(z), 1.0)
    here = project_dual(row, z)
    ahead = project_dual(row, z + step * direction) - here
    behind = here - project_dual(row, z - step * direction)
    return np.asarray((np.abs(ahead - behind) / step).max(axis=-1))
