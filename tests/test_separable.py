"""H's factor where cones of three rows have variables of their own, against dense matrices."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxcone import Cones
from mlxcone.cones.product import Product
from mlxcone.kkt import reduced as kkt
from mlxcone.kkt import separable
from mlxcone.kkt.separable import Separable
from mlxcone.program import structure
from mlxcone.program.operators import Rectangular
from mlxcone.program.problem import Program

pytestmark = pytest.mark.usefixtures("on_cpu")

COUNT, LANES = 12, 5


def wide(array: Any) -> mx.array:
    return mx.array(np.asarray(array), dtype=mx.float64)


def cones_of(bounds: int) -> Product:
    half = COUNT // 2
    return Product(Cones(nonneg=bounds, exp=half, power=(0.3,) * (COUNT - half)))


def matrix_of(widths: tuple[int, ...], border: int, bounds: int, together: bool) -> np.ndarray:
    """Cones over variables of their own, in turn so many, and over those of the border.

    If ``together``, the last two cones have the same variable.
    """
    rng = np.random.default_rng(7)
    sizes = [widths[k % len(widths)] for k in range(COUNT)]
    if together:
        sizes[-1] = sizes[-2] = 1
    starts = np.cumsum([0, *sizes]) + border
    if together:
        starts[-2] = starts[-3]
    n = int(starts[-2]) + sizes[-1]
    A = np.zeros((bounds + 3 * COUNT, n))
    A[np.arange(bounds), n - 1 - np.arange(bounds)] = 1.5
    for k, size in enumerate(sizes):
        rows = slice(bounds + 3 * k, bounds + 3 * k + 3)
        A[rows, starts[k] : starts[k] + size] = rng.standard_normal((3, size))
        A[bounds + 3 * k, :border] = rng.standard_normal(border)
    return A[:, rng.permutation(n)]


def program_of(A: np.ndarray, P: np.ndarray | None) -> Program:
    m, n = A.shape
    sparsity = structure.find(None, wide(A)).sparsity
    q, b = wide(np.zeros((LANES, n))), wide(np.zeros((LANES, m)))
    diagonal = None if P is None else wide(np.diagonal(P))
    return Program(
        None if P is None else wide(P), q, Rectangular.of(wide(A), sparsity), b, diagonal
    )


@pytest.mark.parametrize("quadratic", [False, True])
@pytest.mark.parametrize("bounds", [0, 4])
@pytest.mark.parametrize(
    ("widths", "border", "together"),
    [
        ((1,), 0, False),
        ((1,), 2, False),
        ((2, 1), 1, False),
        ((3, 2, 1), 2, False),
        ((1,), 1, True),
    ],
)
def test_inverses(
    widths: tuple[int, ...], border: int, together: bool, bounds: int, quadratic: bool
) -> None:
    A, cones = matrix_of(widths, border, bounds, together), cones_of(bounds)
    n = A.shape[1]
    P = np.diag(np.linspace(0.5, 2.0, n)) if quadratic else None
    program = program_of(A, P)
    plan = separable.plan(program, cones)
    assert plan is not None
    rng = np.random.default_rng(1)
    atoms = cones.derivative(wide(rng.standard_normal((LANES, A.shape[0]))))
    assert isinstance(kkt.factor(program, cones, atoms), Separable)

    def penalty(eigenvalue: mx.array) -> mx.array:
        return eigenvalue / (1.001 - eigenvalue)

    found = separable.factor(program, cones, atoms, penalty, plan, 1e-3)
    W = np.array(cones.spectral(atoms, penalty, wide(np.eye(cones.rows)[None])))
    H = 1e-3 * np.eye(n) + A.T @ W @ A + (0.0 if P is None else P)
    v = rng.standard_normal((LANES, n))
    expected = np.linalg.solve(H, v[..., None])[..., 0]
    size = np.abs(expected).max()
    np.testing.assert_allclose(np.array(found.times(wide(v))), expected, rtol=0, atol=1e-9 * size)
    assert np.array(found.ok).all()
    some = found.take(mx.array([3, 1]))
    np.testing.assert_array_equal(
        some.times(wide(v[[3, 1]])), found.times(wide(v))[mx.array([3, 1])]
    )


def test_lanes_without_an_inverse() -> None:
    A, cones = matrix_of((2, 1), 1, 4, False), cones_of(4)
    program = program_of(A, None)
    z = np.random.default_rng(1).standard_normal((LANES, A.shape[0]))
    atoms = cones.derivative(wide(z))
    broken = np.array(atoms[1].eigenvalues)
    broken[2, 0] = np.nan
    atoms[1] = atoms[1]._replace(eigenvalues=wide(broken))
    factor = kkt.factor(program, cones, atoms)
    assert isinstance(factor, Separable)
    assert factor.ok.tolist() == [True, True, False, True, True]
    image = np.array(factor.times(wide(np.ones((LANES, A.shape[1])))))
    assert (image[2] == 0).all() and np.isfinite(image).all() and (image[[0, 1, 3, 4]] != 0).any()


@pytest.mark.parametrize("case", ["wide", "dense", "coupled", "batched", "other cones"])
def test_what_is_not_separable(case: str) -> None:
    A, cones = matrix_of((2, 1), 1, 4, False), cones_of(4)
    if case == "wide":  # cones that share variables two by two are one block
        A = np.zeros((4 + 3 * COUNT, 2 * COUNT + 2))
        for k in range(COUNT):
            A[4 + 3 * k : 7 + 3 * k, 2 * k : 2 * k + 3] = 1.0
    elif case == "dense":
        A = np.ones_like(A)
    elif case == "coupled":
        A[0] = 1.0
    elif case == "other cones":
        cones = Product(Cones(nonneg=4, soc=(3,) * COUNT))
    program = program_of(A, None)
    if case == "batched":
        program = program._replace(
            A=Rectangular.of(wide(np.stack([A] * LANES)), program.A.sparsity)
        )
    assert separable.plan(program, cones) is None
