"""What is refused at the door, and what fails one lane: one test for each kind of mistake.

Shapes, cones and the plain ranges of settings are in test_solve and test_cones; anything at all is
in test_fuzz.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np
import pytest

import mlxcone
from cvxpylayers_mlx import CvxpyLayer
from mlxcone import SolverError
from mlxcone.testing import verify_solution

DATA: tuple[Any, ...] = (np.eye(2), np.array([1.0, -1.0]), -np.eye(2), np.zeros(2), {"l": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_iters": 2.5}, "max_iters must be an integer of at least 0, got 2.5"),
        ({"max_iters": "10"}, "max_iters must be an integer of at least 0, got '10'"),
        ({"max_iters": None}, "max_iters must be an integer"),
        ({"newton_iters": True}, "newton_iters must be an integer of at least 0, got True"),
        ({"check_interval": math.nan}, "check_interval must be an integer of at least 1"),
        ({"derivative_sweeps": [4]}, "derivative_sweeps must be an integer of at least 2"),
        ({"eps": "1e-6"}, "eps must be a number of at least 0, got '1e-6'"),
        ({"eps_rel": None}, "eps_rel must be a number of at least 0, got None"),
        ({"eps_abs": math.inf}, "eps_abs must be a number of at least 0, got inf"),
        ({"scale": 1j}, "scale must be a positive number"),
        ({"rho_x": np.array([1.0, 2.0])}, "rho_x must be a positive number"),
        ({"eps_infeas": 10**400}, "eps_infeas must be a positive number"),
        ({"refine": None}, "refine must be True or False, got None"),
        ({"verbose": "yes"}, "verbose must be True or False, got 'yes'"),
        ({"on_failure": None}, "on_failure must be 'return', 'raise' or 'nan', got None"),
        ({"on_failure": np.array(["nan", "nan"])}, "on_failure must be"),
    ],
    ids=str,
)
def test_settings_of_a_wrong_type(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"settings: {message}"):
        mlxcone.solve(*DATA, **change)


def test_settings_of_numpy_and_whole_floats_are_plain_numbers() -> None:
    given = mlxcone.Settings(
        max_iters=1e4,  # type: ignore[arg-type]
        newton_iters=np.int64(3),  # type: ignore[arg-type]
        eps_abs=np.float32(0.5),  # type: ignore[arg-type]
        verbose=np.bool_(True),  # type: ignore[arg-type]
        time_limit_secs=math.inf,
    )
    plain = (given.max_iters, given.newton_iters, given.eps_abs, given.verbose)
    assert plain == (10_000, 3, 0.5, True)
    assert [type(v) for v in plain] == [int, int, float, bool]


def test_settings_that_are_none() -> None:
    with pytest.raises(TypeError, match=r"settings: expected mlxcone.Settings, got dict"):
        mlxcone.solve(*DATA, settings={"eps": 1e-6})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="settings: expected"):
        mlxcone.Solver(DATA[0], DATA[2], DATA[4], settings=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [[1.0, [2.0]], None, "12", {"q": 1}, object(), [None, 1.0]])
def test_what_is_no_array_is_named(value: Any) -> None:
    P, q, A, b, cones = DATA
    with pytest.raises(TypeError, match="q: expected a real array, got"):
        mlxcone.solve(P, value, A, b, cones)
    with pytest.raises(TypeError, match="A: expected a real array, got"):
        mlxcone.solve(P, q, value, b, cones)


@pytest.mark.parametrize("dtype", [">f8", ">f4", np.longdouble, np.float16, ">i4", bool])
def test_every_real_dtype_of_numpy(dtype: Any) -> None:
    P, q, A, b = (np.asarray(v).astype(dtype) for v in (np.eye(2), [1, 0], np.eye(2), [1, 1]))
    found = mlxcone.solve(P, q, A, b, {"l": 2})
    assert found.info.status.item() == mlxcone.Status.SOLVED
    wide = np.dtype(dtype).kind == "f" and np.dtype(dtype).itemsize >= 8
    assert found.x.dtype == (mx.float64 if wide else mx.float32)
    verdict = verify_solution(
        *(np.asarray(v, dtype=float) for v in (P, q, A, b)),
        {"l": 2},
        *(np.array(v) for v in found[:3]),
    )
    assert verdict.worst <= 1e-6


def test_numbers_too_large_for_float32_fail_their_lane() -> None:
    P, q, A, b, cones = DATA
    costs = mx.array(np.stack([q, q]).astype(np.float32)) * mx.array([[1.0], [3e38]]) * 10.0
    found = mlxcone.solve(P.astype(np.float32), costs, A.astype(np.float32), b[:2] * 0.0, cones)
    assert found.info.status.tolist() == [mlxcone.Status.SOLVED, mlxcone.Status.FAILED]


@pytest.mark.parametrize("start", [True, "x", 3, {"x": 1}, lambda: None])
def test_warm_starts_that_are_none(start: Any) -> None:
    with pytest.raises(ValueError, match="warm_start: expected a Solution"):
        mlxcone.solve(*DATA, warm_start=start)


@pytest.mark.parametrize("size", [1e-4, 1e-9])
def test_a_small_P_is_no_proof_of_unboundedness(size: float) -> None:
    """Its curvature is small beside q, not beside itself."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((3, 3))
    P, A = size * root @ root.T, rng.standard_normal((4, 3))
    b, q, cones = np.array([1.4, 1.1, 1.0, 1.0]), rng.standard_normal(3), {"l": 1, "q": [3]}
    found = mlxcone.solve(P, q, A, b, cones)
    assert found.info.status.item() == mlxcone.Status.SOLVED
    verdict = verify_solution(P, q, A, b, cones, *(np.array(v) for v in found[:3]))
    assert verdict.worst <= 1e-8


def test_a_small_A_is_no_proof_of_infeasibility() -> None:
    """x of size 1e10 satisfies it."""
    A, b = 1e-10 * np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([1.0, 1.0])
    found = mlxcone.solve(None, np.zeros(2), A, b, {"z": 2})
    if found.info.status.item() > 0:
        np.testing.assert_allclose(A @ np.array(found.x), b, atol=1e-6)
    assert found.info.status.item() not in (-2, -7)


# --- layers ---------------------------------------------------------------------------------------


def shrunk(solver: str | None = None) -> CvxpyLayer:
    """Nearest point with ``p ||x||_1 <= 1``, which is convex for p >= 0 alone."""
    x, p, c = cp.Variable(2), cp.Parameter(nonneg=True, name="weight"), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [p * cp.norm1(x) <= 1])
    return CvxpyLayer(problem, [p, c], [x], solver=solver)


WEIGHTS, POINT = mx.array([1.0, 0.0, -1.0]), mx.array([1.0, 2.0])
NAN: dict[str, Any] = {"on_failure": "nan"}


@pytest.mark.parametrize("solver", [None, "CLARABEL"])
def test_a_parameter_of_the_wrong_sign_fails_its_lane(solver: str | None) -> None:
    layer = shrunk(solver)
    found = layer.solve(WEIGHTS, POINT, solver_args=NAN)
    status: Any = found.info.status.tolist()
    assert status[:2] == [mlxcone.Status.SOLVED] * 2
    assert status[2] == mlxcone.Status.FAILED
    x = np.array(found.variables[0])
    np.testing.assert_allclose(x[:2], [[0.0, 1.0], [1.0, 2.0]], atol=1e-3)
    assert np.isnan(x[2]).all()
    name = r"parameter 0 \(weight\)"
    with pytest.raises(mlxcone.SolverError, match=rf"lane 2: FAILED \({name} has to be nonneg"):
        layer(WEIGHTS, POINT)


def test_a_shared_parameter_of_the_wrong_sign_fails_every_lane() -> None:
    points = mx.array([[1.0, 2.0], [3.0, 4.0]])
    found = shrunk().solve(mx.array(-1.0), points, solver_args=NAN)
    assert found.info.status.tolist() == [mlxcone.Status.FAILED] * 2


def test_wrong_signs_under_transforms() -> None:
    layer = shrunk()

    def total(p: mx.array) -> mx.array:
        return mx.sum(layer(p, POINT, solver_args=NAN)[0])

    each = mx.vmap(lambda p: layer(p, POINT, solver_args=NAN)[0])(WEIGHTS)
    assert np.isnan(np.array(each)).tolist() == [[False] * 2, [False] * 2, [True] * 2]
    gradient = np.array(mx.grad(total)(WEIGHTS))
    # x = (0, 1 / p) at p = 1.
    np.testing.assert_allclose(gradient[:2], [-1.0, 0.0], atol=1e-4)
    assert np.isnan(gradient[2])


def test_what_is_wrong_with_a_parameter_is_said() -> None:
    with pytest.raises(mlxcone.SolverError, match=r"lane 1: FAILED \(parameter 1 \(.*NaN or inf"):
        shrunk()(mx.array(1.0), mx.array([[1.0, 2.0], [np.nan, 2.0]]))
    with pytest.raises(mlxcone.SolverError, match=r"lane 0: .*weight.*; lane 1: .*weight"):
        shrunk()(mx.array(-1.0), mx.array([[1.0, 2.0], [3.0, 2.0]]))
    x, p = cp.Variable(pos=True), cp.Parameter(pos=True, name="width")
    layer = CvxpyLayer(cp.Problem(cp.Minimize(x), [x >= p]), [p], [x], gp=True)
    with pytest.raises(mlxcone.SolverError, match=r"lane 1: .*\(width\) has to be positive"):
        layer(mx.array([1.0, 0.0]))


def test_where_numbers_cannot_be_looked_at_the_status_is_all_that_is_said() -> None:
    with pytest.raises(mlxcone.SolverError, match=r"lane 2: FAILED .*declared sign"):
        mx.eval(mx.vmap(lambda p: shrunk()(p, POINT)[0])(WEIGHTS))
    x, w, idle = cp.Variable(2), cp.Parameter(2, nonneg=True), cp.Parameter()
    layer = CvxpyLayer(cp.Problem(cp.Minimize(w @ cp.square(x) + idle)), [w, idle], [x])
    with pytest.raises(mlxcone.SolverError, match=r"lane 0: FAILED .*declared sign"):
        mx.vmap(lambda i: layer(-POINT, i)[0])(WEIGHTS)


def test_rounding_has_no_sign() -> None:
    x, w = cp.Variable(3), cp.Parameter(3, nonpos=True)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x) + w @ x)), [w], [x])
    (found,) = layer(mx.array([-2.0, 0.0, 1e-7]))
    np.testing.assert_allclose(np.array(found), [1.0, 0.0, 0.0], atol=1e-6)
    with pytest.raises(mlxcone.SolverError, match="FAILED"):
        layer(mx.array([-2.0, 0.0, 1e-3]))


def test_lists_of_the_wrong_things() -> None:
    x, c = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)))
    with pytest.raises(ValueError, match=r"parameters: expected a list of cvxpy.Parameter"):
        CvxpyLayer(problem, [None], [x])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"variables: expected a list of cvxpy.Variable"):
        CvxpyLayer(problem, [c], ["x"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="solver_args: expected a dict"):
        CvxpyLayer(problem, [c], [x], solver_args=3)  # type: ignore[arg-type]
    layer = CvxpyLayer(problem, [c], [x])
    with pytest.raises(TypeError, match="solver_args: expected a dict"):
        layer(POINT, solver_args="eps")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="parameter 0: expected a real array, got None"):
        layer(None)  # type: ignore[arg-type]


def test_a_P_that_is_not_semidefinite_is_told_from_other_faults() -> None:
    P = mx.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]]])
    q, A, b = mx.ones((2, 2)), mx.eye(2), mx.ones((2,))
    with pytest.raises(mlxcone.SolverError, match=r"lane 1: FAILED \(P is not positive semi"):
        mlxcone.solve(P, q, A, b, {"l": 2}, on_failure="raise")
    x, Q = cp.Variable(2), cp.Parameter((2, 2), PSD=True)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.quad_form(x, Q)), [x >= 1]), [Q], [x])
    with pytest.raises(mlxcone.SolverError, match=r"lane 1: FAILED \(P is not positive semi"):
        layer(P)


def test_a_quadratic_form_wants_its_parameter_declared() -> None:
    x, Q = cp.Variable(2), cp.Parameter((2, 2), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, Q)), [x >= 1])
    with pytest.raises(ValueError, match="has to be declared PSD=True"):
        CvxpyLayer(problem, [Q], [x])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cones": {"l": 3}}, "A: expected 3 rows"),
        ({"P": np.eye(3)}, r"P: expected shape \(2, 2\)"),
        ({"A": np.ones(2)}, "A: expected shape"),
    ],
)
def test_a_solver_is_looked_at_when_it_is_made(change: dict[str, Any], message: str) -> None:
    given = {"P": np.eye(2), "A": np.eye(2), "cones": {"l": 2}} | change
    with pytest.raises(ValueError, match=message):
        mlxcone.Solver(given["P"], given["A"], given["cones"])


# --- what a new user met on a first evening ------------------------------------------------------


def two_parameters(**how: Any) -> CvxpyLayer:
    """A layer of A (3, 3) and p (3,)."""
    x, A, p = cp.Variable(3), cp.Parameter((3, 3), name="A"), cp.Parameter(3, name="p")
    problem: Any = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - p)), [x >= 0])
    return CvxpyLayer(problem, [A, p], [x], **how)


def ones(*shape: int) -> mx.array:
    return mx.ones(shape)


def norm_layer(solver: Any) -> CvxpyLayer:
    x, p = cp.Variable(3), cp.Parameter(3)
    problem: Any = cp.Problem(cp.Minimize(cp.norm(x - p)), [cp.sum(x) == 1, x >= 0])
    return CvxpyLayer(problem, [p], [x], solver=solver)


def no_program(**how: Any) -> Any:
    q, A, b = mx.array([1.0, math.nan]), -mx.eye(2), mx.zeros(2)
    return mlxcone.solve(how.pop("P", None), how.pop("q", q), A, b, {"l": 2}, **how)


EVENING: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "swapped": (lambda: two_parameters()(ones(3), ones(3, 3)), ValueError, r"A takes \(3, 3\)"),
    "column": (lambda: two_parameters()(ones(3, 3), ones(3, 1)), ValueError, r"\(batch, 3\)"),
    "batches": (lambda: two_parameters()(ones(9, 3, 3), ones(4, 3)), ValueError, "for A, p"),
    "axes": (lambda: two_parameters()(ones(2, 2, 3, 3), ones(3)), ValueError, "mx.vmap"),
    "missing": (lambda: two_parameters()(ones(3, 3)), ValueError, "expected 2: A, p"),
    "tol": (lambda: no_program(tol=1e-4), ValueError, "did you mean 'eps'"),
    "solver_args": (lambda: no_program(solver_args={}), ValueError, "by name"),
    "NaN": (lambda: no_program(on_failure="raise"), SolverError, "NaN or infinity in q"),
    "zero P": (lambda: no_program(P=0), ValueError, "or None for zero"),
    "foreign": (lambda: norm_layer("OSQP")(ones(3)), ValueError, "OSQP does not take this"),
    "empty box": (lambda: mlxcone.nn.BoxSimplex(4, 0.5, 0.4, 2.0), ValueError, "upper: expected"),
    "solution": (lambda: mlxcone.plots.residuals(no_program()), TypeError, "mlxcone.History"),  # type: ignore[arg-type]
    "tuple": (lambda: mlxcone.plots.statuses((1,)), TypeError, "layer.solve"),  # type: ignore[arg-type]
    "order": (lambda: mlxcone.solve(None, *DATA[1:4], {"l": 3}), ValueError, "P, q, A, b, cones"),
}


@pytest.mark.parametrize("name", EVENING)
def test_a_message_leads_to_the_fix(name: str) -> None:
    call, kind, words = EVENING[name]
    with pytest.raises(kind, match=words):
        call()


def test_what_was_meant_is_understood() -> None:
    assert mlxcone.Settings(eps=1e-4) == mlxcone.Settings(eps_abs=1e-4, eps_rel=1e-4)
    info = no_program(q=ones(2)).info
    assert mlxcone.Status(info.status) is mlxcone.Status.SOLVED
    with pytest.raises(ValueError, match="valid Status"):
        mlxcone.Status(ones(2))
    for solver in (mlxcone.MLXCONE(), mlxcone.MLXCONE):
        found = norm_layer(solver)(ones(3))[0]
        np.testing.assert_allclose(np.array(found), 1 / 3, atol=1e-6)
    scores = np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32)  # the third is at the edge
    assert mlxcone.nn.Sparsemax(4)(scores).tolist() == [0.0, 0.0, 0.0, 1.0]
    assert mlxcone.nn.SoftTopK(4, k=2)(scores).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_a_sparse_parameter_is_no_reason_to_warn(recwarn: pytest.WarningsRecorder) -> None:
    x, P = cp.Variable(2), cp.Parameter((2, 2), sparsity=([0, 1], [0, 1]))
    problem: Any = cp.Problem(cp.Minimize(cp.sum_squares(P @ x - 1)))
    np.testing.assert_allclose(np.array(CvxpyLayer(problem, [P], [x])(mx.eye(2))[0]), 1.0)
    assert not recwarn.list
