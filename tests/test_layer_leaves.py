"""Attributes and shapes of variables and parameters: values and gradients against Clarabel's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np
import pytest
import scipy.sparse as sp

from cvxpylayers_mlx import CvxpyLayer

TIGHT = {"tol_gap_abs": 1e-13, "tol_gap_rel": 1e-13, "tol_feas": 1e-13}
RNG = np.random.default_rng(11)
C = RNG.standard_normal((3, 3)) + 1j * RNG.standard_normal((3, 3))
G = RNG.standard_normal((2, 3)) + 1j * RNG.standard_normal((2, 3))
S = C.real + C.real.T
WHERE = (np.array([0, 2, 2]), np.array([1, 0, 2]))
pytestmark = pytest.mark.filterwarnings(
    "ignore:Solution may be inaccurate",
    "ignore:The problem has an expression with dimension",
    "ignore:Reading from a sparse",
)
Built = tuple[Any, Any, list[Any]]


def nearest(x: Any, p: Any, target: Any, *constraints: Any) -> Built:
    return cp.Problem(cp.Minimize(cp.sum_squares(x - target)), list(constraints)), p, [x]


def of_variable(total: float = 1.0, **attributes: Any) -> Built:
    X, p = cp.Variable((3, 3), **attributes), cp.Parameter((3, 3), value=C.real)
    return nearest(X, p, p, cp.sum(X) == total)


def of_parameter(value: Any, **attributes: Any) -> Built:
    X, p = cp.Variable((3, 3)), cp.Parameter((3, 3), value=value, **attributes)
    return nearest(X, p, p @ S, cp.sum(X[0]) <= -5, X <= 4)


REAL: dict[str, Callable[[], Built]] = {
    "symmetric variable": lambda: of_variable(symmetric=True),
    "PSD variable": lambda: of_variable(PSD=True),
    "NSD variable": lambda: of_variable(-1.0, NSD=True),
    "diagonal variable": lambda: of_variable(diag=True),
    "sparse variable": lambda: of_variable(sparsity=WHERE),
    "nonneg variable": lambda: of_variable(nonneg=True),
    "nonpos variable": lambda: nearest(
        X := cp.Variable((3, 3), nonpos=True), p := cp.Parameter((3, 3), value=S), p - X[0, 0]
    ),
    "bounded variable": lambda: of_variable(bounds=[-0.5, 0.7]),
    "symmetric parameter": lambda: of_parameter(S, symmetric=True),
    "PSD parameter": lambda: of_parameter(S @ S, PSD=True),
    "NSD parameter": lambda: of_parameter(-S @ S, NSD=True),
    "diagonal parameter": lambda: of_parameter(np.diag([1.0, -2.0, 0.5]), diag=True),
    "nonneg parameter": lambda: of_parameter(np.abs(S), nonneg=True),
    "nonpos parameter": lambda: of_parameter(-np.abs(S), nonpos=True),
    "three axes": lambda: nearest(
        x := cp.Variable((2, 3, 2)),
        p := cp.Parameter((2, 3, 2), value=np.arange(12.0).reshape(2, 3, 2)),
        p,
        cp.sum(x, axis=1) <= 2,
    ),
}
COMPLEX: dict[str, Callable[[], Built]] = {
    "complex": lambda: nearest(
        x := cp.Variable(3, complex=True),
        p := cp.Parameter(3, complex=True, value=C[0]),
        p,
        G @ x == 1 + 1j,
        cp.abs(x) <= 2,
    ),
    # CVXPY has no sum of squares of what is imaginary alone.
    "imaginary": lambda: nearest(
        x := cp.Variable(3, imag=True),
        p := cp.Parameter(3, imag=True, value=1j * C[0].imag),
        p + 0.5,
        cp.imag(cp.sum(x)) == 1,
    ),
    "hermitian": lambda: nearest(
        X := cp.Variable((3, 3), hermitian=True),
        p := cp.Parameter((3, 3), hermitian=True, value=C + C.conj().T),
        p,
        X >> 0,
        cp.real(cp.trace(X)) == 1,
    ),
    "real variable of a complex parameter": lambda: nearest(
        x := cp.Variable(3), p := cp.Parameter(3, complex=True, value=C[0]), p, x <= 0.2
    ),
}


def value(problem: Any, p: Any, variables: list[Any], at: Any) -> list[Any]:
    # Differences leave the set of values that an attribute allows by a rounding.
    p.save_value(at)
    problem.solve(solver=cp.CLARABEL, **TIGHT)
    return [v.value.toarray() if sp.issparse(v.value) else np.array(v.value) for v in variables]


def directions(p: Any) -> list[Any]:
    """Two random steps that keep the attributes."""
    found = []
    for _ in range(2):
        d = RNG.standard_normal(p.shape) + (1j * RNG.standard_normal(p.shape) * p.is_complex())
        if p.attributes["hermitian"]:
            d = d + d.conj().T
        elif p.attributes["imag"]:
            d = 1j * d.imag
        elif p.attributes["diag"]:
            d = np.diag(np.diag(d))
        elif any(p.attributes[a] for a in ("symmetric", "PSD", "NSD")):
            d = d + d.T
        found.append(d if p.is_complex() else np.real(d))
    return found


def cotangents(values: list[np.ndarray]) -> list[Any]:
    return [
        RNG.standard_normal(v.shape) + 1j * RNG.standard_normal(v.shape) * np.iscomplexobj(v)
        for v in values
    ]


@pytest.mark.parametrize("name", [*REAL, *COMPLEX])
def test_values_and_gradients(name: str) -> None:
    """Values to 1e-6 of Clarabel's, gradients along random steps to 1e-4 of differences.

    Differences are those of the layer in double precision, or Clarabel's for want of it.
    """
    problem, p, variables = {**REAL, **COMPLEX}[name]()
    at = np.array(p.value)
    expected = value(problem, p, variables, at)
    assert np.abs(expected[0] - at[: expected[0].shape[0]]).max() > 1e-2, "nothing to solve"
    bars = cotangents(expected)
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        dtype = mx.complex64 if p.is_complex() else mx.float64
        given = mx.array(at.astype(np.complex64) if p.is_complex() else at, dtype=dtype)
        weights = [
            mx.array(b.astype(np.complex64)) if np.iscomplexobj(v) else mx.array(b.real)
            for v, b in zip(expected, bars, strict=True)
        ]
        layer = CvxpyLayer(problem, [p], variables)
        found, (gradient,) = mx.vjp(layer, [given], weights)
        for got, want in zip(found, expected, strict=True):
            assert np.iscomplexobj(np.array(got)) == np.iscomplexobj(want)
            np.testing.assert_allclose(np.array(got), want, atol=1e-6)
        step = 1e-3 if p.is_complex() else 1e-5
        for d in directions(p):
            ahead, behind = (
                value(problem, p, variables, at + s * d)
                if p.is_complex()
                else [np.array(v) for v in layer(mx.array(at + s * d, dtype=dtype))]
                for s in (step, -step)
            )
            difference = sum(
                np.real(np.vdot(b, u - w)) / (2 * step)
                for b, u, w in zip(bars, ahead, behind, strict=True)
            )
            slope = np.real(np.vdot(np.array(gradient), d))
            assert slope == pytest.approx(difference, rel=1e-4, abs=1e-4)


def test_a_complex_equality_has_a_complex_dual() -> None:
    problem, p, _ = COMPLEX["complex"]()
    dual = problem.constraints[0].dual_variables[0]
    expected = value(problem, p, [dual], np.array(p.value))[0]
    (found,) = CvxpyLayer(problem, [p], [dual])(mx.array(p.value.astype(np.complex64)))
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-5)


def test_a_real_array_for_a_complex_parameter_and_the_reverse() -> None:
    problem, p, variables = COMPLEX["complex"]()
    layer = CvxpyLayer(problem, [p], variables)
    real = np.array([0.5, -1.0, 2.0], dtype=np.float32)
    (found,), (as_complex,) = layer(mx.array(real)), layer(mx.array(real + 0j))
    np.testing.assert_allclose(np.array(found), np.array(as_complex), atol=1e-6)
    problem, p, variables = REAL["nonneg variable"]()
    with pytest.raises(TypeError, match="complex"):
        CvxpyLayer(problem, [p], variables)(mx.ones((3, 3), dtype=mx.complex64))


def test_a_batch_of_complex_parameters() -> None:
    problem, p, variables = COMPLEX["hermitian"]()
    layer = CvxpyLayer(problem, [p], variables)
    one = np.array(p.value).astype(np.complex64)
    (found,) = layer(mx.array(np.stack([one, 2 * one])))
    for lane, scale in enumerate((1, 2)):
        expected = value(problem, p, variables, scale * one)[0]
        np.testing.assert_allclose(np.array(found[lane]), expected, atol=1e-5)


def test_an_empty_parameter_and_an_empty_constraint() -> None:
    x, p, nothing = cp.Variable(2), cp.Parameter(2), cp.Parameter((0, 2))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [nothing @ x == np.zeros(0), x <= 1])
    (found,) = CvxpyLayer(problem, [p, nothing], [x])(mx.array([2.0, -1.0]), mx.zeros((0, 2)))
    np.testing.assert_allclose(np.array(found), [1.0, -1.0], atol=1e-6)


def test_an_empty_variable() -> None:
    x, nothing, p = cp.Variable(2), cp.Variable((0,)), cp.Parameter(2)
    objective = cp.sum_squares(x - p) + cp.sum(nothing)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(objective), [x <= 1]), [p], [nothing, x])
    empty, found = layer(mx.array([[2.0, -1.0]]))
    assert empty.shape == (1, 0)
    np.testing.assert_allclose(np.array(found), [[1.0, -1.0]], atol=1e-6)


@pytest.mark.parametrize("constraints", [True, False])
def test_constants_only(constraints: bool) -> None:
    """A problem without parameters is a layer without arguments."""
    x = cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [x <= 0.5] if constraints else [])
    (found,) = CvxpyLayer(problem, [], [x])()
    np.testing.assert_allclose(np.array(found), np.full(3, 0.5 if constraints else 1.0), atol=1e-6)


@pytest.mark.parametrize("kind", ["PSD", "NSD"])
def test_quadratic_form_of_a_parameter(kind: str) -> None:
    """minimize x'Px + p'x (or maximize, for NSD): x = -P^-1 p / 2, and its gradient in P."""
    x, p = cp.Variable(3), cp.Parameter(3)
    P = cp.Parameter((3, 3), PSD=kind == "PSD", NSD=kind == "NSD")
    objective = cp.quad_form(x, P) + p @ x
    sense = cp.Minimize if kind == "PSD" else cp.Maximize
    layer = CvxpyLayer(cp.Problem(sense(objective), [cp.norm(x, "inf") <= 50]), [P, p], [x])
    root = C.real
    matrix = (root @ root.T + np.eye(3)) * (1 if kind == "PSD" else -1)
    vector, bar = np.array([1.0, -2.0, 0.5]), np.array([0.3, 1.0, -0.7])
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        wide = [mx.array(v, dtype=mx.float64) for v in (matrix, vector, bar)]
        (found,), (in_P, in_p) = mx.vjp(layer, wide[:2], wide[2:])
        expected = -0.5 * np.linalg.solve(matrix, vector)
        np.testing.assert_allclose(np.array(found), expected, atol=1e-9)
        sensitivity = np.linalg.solve(matrix, bar)
        np.testing.assert_allclose(np.array(in_p), -0.5 * sensitivity, atol=1e-7)
        outer = -np.outer(sensitivity, expected)
        np.testing.assert_allclose(np.array(in_P), 0.5 * (outer + outer.T), atol=1e-7)
