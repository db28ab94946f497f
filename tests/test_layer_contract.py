"""The contract of `CvxpyLayer`: what it accepts, what it refuses and how, and what it returns."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cvxpy as cp
import layer_reference
import mlx.core as mx
import numpy as np
import pytest
import scipy.sparse as sp
from layer_problems import LAYER_PROBLEMS, sample_batch

import mlxcone
from cvxpylayers_mlx import CvxpyLayer
from cvxpylayers_mlx.canonicalize import NotDPPError

Array = np.ndarray
Built = tuple[Any, list[Any], list[Any]]

TABLE = {problem.name: problem for problem in LAYER_PROBLEMS}


@pytest.fixture
def cpu() -> Iterator[None]:
    """Run on the CPU, the only place that has float64."""
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        yield


# --- helpers -------------------------------------------------------------------------------


def array(values: Any, dtype: mx.Dtype = mx.float32) -> mx.array:
    """An array that keeps its type."""
    return mx.array(np.asarray(values), dtype=dtype)


def host(values: mx.array) -> Array:
    """NumPy, in float64."""
    return np.array(values.astype(mx.float32) if values.dtype == mx.bfloat16 else values).astype(
        np.float64
    )


def close(got: mx.array, wanted: Any, tolerance: float = 1e-5) -> None:
    """Same shape; the largest error over the largest entry, or over one, is within tolerance."""
    wanted = np.asarray(wanted, dtype=np.float64)
    assert tuple(got.shape) == wanted.shape
    error = np.abs(host(got) - wanted).max(initial=0.0)
    assert error <= tolerance * max(1.0, np.abs(wanted).max(initial=0.0))


def layer_of(built: Built, **options: Any) -> CvxpyLayer:
    """The layer of a problem, its parameters and its variables."""
    problem, parameters, variables = built
    return CvxpyLayer(problem, parameters=parameters, variables=variables, **options)


def cvxpy_values(built: Built, params: Sequence[Any]) -> list[Array]:
    """What `problem.solve` with Clarabel finds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return layer_reference.solve_clarabel(built, params)


def check_against_cvxpy(built: Built, params: Sequence[Any], tolerance: float = 1e-5) -> None:
    """The layer, in float32, and CVXPY agree on every variable."""
    outputs = layer_of(built)(*(array(p) for p in params))
    for got, wanted in zip(outputs, cvxpy_values(built, params), strict=True):
        close(got, wanted, tolerance)


def nonneg_projection(size: int = 3) -> Built:
    """Nearest nonnegative point."""
    x, p = cp.Variable(size), cp.Parameter(size)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), [p], [x]


def least_squares() -> Built:
    """Nonnegative least squares with both A (3, 2) and b (3,) as parameters."""
    x, A, b = cp.Variable(2), cp.Parameter((3, 2)), cp.Parameter(3)
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0]), [A, b], [x]


def interval() -> Built:
    """Nearest point of an interval with parametrized ends; infeasible if they are crossed."""
    x, p, low, high = cp.Variable(3), cp.Parameter(3), cp.Parameter(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= low, x <= high])
    return problem, [p, low, high], [x]


def positive_prices() -> Built:
    """Cheapest nonnegative point of a half-space; unbounded if a price is negative."""
    x, prices = cp.Variable(2), cp.Parameter(2)
    return cp.Problem(cp.Minimize(prices @ x), [x >= 0, cp.sum(x) >= 1]), [prices], [x]


# --- signatures ----------------------------------------------------------------------------

CONSTRUCTOR = [
    ("self", inspect.Parameter.empty),
    ("problem", inspect.Parameter.empty),
    ("parameters", inspect.Parameter.empty),
    ("variables", inspect.Parameter.empty),
    ("solver", None),
    ("gp", False),
    ("verbose", False),
    ("canon_backend", None),
    ("solver_args", None),
]


def described(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Names, defaults and kinds of the arguments, in order."""
    return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]


def test_constructor_signature() -> None:
    assert [(name, default) for name, default, _ in described(CvxpyLayer.__init__)] == CONSTRUCTOR
    kinds = {kind for _, _, kind in described(CvxpyLayer.__init__)}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize("method", ["__call__", "forward"])
def test_call_signature(method: str) -> None:
    empty, kind = inspect.Parameter.empty, inspect.Parameter
    assert described(getattr(CvxpyLayer, method)) == [
        ("self", empty, kind.POSITIONAL_OR_KEYWORD),
        ("params", empty, kind.VAR_POSITIONAL),
        ("solver_args", None, kind.KEYWORD_ONLY),
    ]


@pytest.mark.parametrize("method", ["__init__", "__call__", "forward"])
def test_signatures_equal_the_peers(method: str) -> None:
    peer = pytest.importorskip("cvxpylayers.mlx").CvxpyLayer
    assert described(getattr(CvxpyLayer, method)) == described(getattr(peer, method))


def test_arguments_by_position() -> None:
    problem, parameters, variables = nonneg_projection()
    args = {"on_failure": "nan"}
    layer = CvxpyLayer(problem, parameters, variables, None, False, False, None, args)
    assert bool(mx.all(mx.isnan(layer(array([np.nan, 1, 2]))[0])))


def test_tuples_of_parameters_and_variables() -> None:
    problem, parameters, variables = nonneg_projection()
    layer = CvxpyLayer(problem, tuple(parameters), tuple(variables))
    close(layer(array([1.0, -2.0, 3.0]))[0], [1.0, 0.0, 3.0])


def test_forward_is_the_call() -> None:
    layer = layer_of(interval())
    values = array([[-2.0, 0.1, 2.0]] * 2), array([-1.0, 0.0]), array(1.0)
    assert mx.array_equal(layer.forward(*values)[0], layer(*values)[0])
    nan = layer.forward(values[0], array(2.0), array(1.0), solver_args={"on_failure": "nan"})
    assert bool(mx.all(mx.isnan(nan[0])))


def test_a_tuple_is_returned_even_for_one_variable() -> None:
    outputs = layer_of(nonneg_projection())(array([1.0, -2.0, 3.0]))
    assert isinstance(outputs, tuple)
    assert [type(v) for v in outputs] == [mx.array]


# --- refusals of the constructor -----------------------------------------------------------


def product_of_parameters() -> Built:
    """A product of two parameters: convex, but not DPP."""
    x, a, b = cp.Variable(), cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
    return cp.Problem(cp.Minimize(a * b * cp.abs(x - 1))), [a, b], [x]


@pytest.mark.parametrize("error", [AssertionError, ValueError])
def test_a_problem_that_is_not_dpp(error: type[Exception]) -> None:
    with pytest.raises(error, match=r"Problem must be DPP\. Its parameters enter .* param"):
        layer_of(product_of_parameters())


def test_a_problem_that_is_not_convex() -> None:
    x, p = cp.Variable(), cp.Parameter()
    problem = cp.Problem(cp.Maximize(cp.square(x - p)))
    with pytest.raises(ValueError, match=r"DPP\. It is not convex .* Look at: maximize"):
        CvxpyLayer(problem, [p], [x])


def test_something_else_than_a_problem() -> None:
    with pytest.raises(ValueError, match=r"expected a cvxpy.Problem, got str"):
        CvxpyLayer("minimize x", [], [])  # type: ignore[arg-type]


MATCH = r"must exactly match problem\.parameters"


def test_a_missing_parameter() -> None:
    problem, (A, b), variables = least_squares()
    with pytest.raises(ValueError, match=rf"{MATCH} \(missing: {b.name()}\)"):
        CvxpyLayer(problem, [A], variables)


def test_a_foreign_parameter() -> None:
    problem, parameters, variables = least_squares()
    with pytest.raises(ValueError, match=rf"{MATCH} \(not in the problem: weights\)"):
        CvxpyLayer(problem, [*parameters, cp.Parameter(2, name="weights")], variables)


def test_a_repeated_parameter() -> None:
    problem, (A, b), variables = least_squares()
    with pytest.raises(ValueError, match=rf"{MATCH} \(given twice: {b.name()}\)"):
        CvxpyLayer(problem, [A, b, b], variables)


def test_a_foreign_variable() -> None:
    problem, parameters, variables = least_squares()
    with pytest.raises(ValueError, match=r"must be a subset of problem\.variables"):
        CvxpyLayer(problem, parameters, [*variables, cp.Variable(2)])


@pytest.mark.parametrize("wrap", [set, iter, dict.fromkeys], ids=["set", "iterator", "dict"])
def test_parameters_that_are_no_list(wrap: Callable[[Any], Any]) -> None:
    problem, parameters, variables = least_squares()
    with pytest.raises(ValueError, match="parameters must be provided as a list or tuple"):
        CvxpyLayer(problem, wrap(parameters), variables)


@pytest.mark.parametrize("wrap", [set, iter, dict.fromkeys], ids=["set", "iterator", "dict"])
def test_variables_that_are_no_list(wrap: Callable[[Any], Any]) -> None:
    problem, parameters, variables = least_squares()
    with pytest.raises(ValueError, match="variables must be provided as a list or tuple"):
        CvxpyLayer(problem, parameters, wrap(variables))


def test_a_single_parameter_without_a_list() -> None:
    problem, (p,), variables = nonneg_projection()
    with pytest.raises(ValueError, match="parameters must be provided as a list or tuple"):
        CvxpyLayer(problem, p, variables)  # type: ignore[arg-type]


def test_what_is_not_a_geometric_program_says_so() -> None:
    x, p = cp.Variable(), cp.Parameter()
    with pytest.raises(NotDPPError, match="log-log convex and DPP"):
        CvxpyLayer(cp.Problem(cp.Minimize(x), [x >= p]), [p], [x], gp=True)
    assert issubclass(NotDPPError, ValueError) and issubclass(NotDPPError, AssertionError)


def test_a_geometric_program_without_gp_says_so() -> None:
    x, p = cp.Variable(pos=True), cp.Parameter(pos=True)
    problem = cp.Problem(cp.Minimize(1 / x), [x**0.5 * p <= 1, x * x * x**0.1 <= 2])
    with pytest.raises(NotDPPError, match="It is log-log convex: pass gp=True"):
        CvxpyLayer(problem, [p], [x])


def test_a_quadratic_form_in_a_constraint_says_what_to_write() -> None:
    x, P = cp.Variable(2), cp.Parameter((2, 2), PSD=True)
    problem = cp.Problem(cp.Minimize(cp.sum(x)), [cp.quad_form(x, P) <= 1])
    with pytest.raises(NotDPPError, match=r"write sum_squares\(R @ x\) with a parameter R"):
        CvxpyLayer(problem, [P], [x])
    # One that is not to blame is not mentioned.
    a, b = cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(a * b * cp.sum(x)), [cp.quad_form(x, np.eye(2)) <= 1])
    with pytest.raises(NotDPPError, match="a product of two parameters") as caught:
        CvxpyLayer(problem, [a, b], [x])
    assert "quad_form" not in str(caught.value)


def test_a_parameter_that_is_an_exponent_and_a_factor() -> None:
    """minimize x subject to a x^a >= 2: x = (2 / a)^(1 / a)."""
    x, a = cp.Variable(pos=True), cp.Parameter(pos=True)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(x), [a * x**a >= 2]), [a], [x], gp=True)
    values = np.array([0.5, 1.0, 3.0])
    close(layer(array(values))[0], array((2.0 / values) ** (1.0 / values)), 1e-5)


def test_a_solver_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="'NONSENSE' is not installed; there are MLXCONE"):
        layer_of(nonneg_projection(), solver="NONSENSE")


CONES: dict[str, Callable[[Any], list[Any]]] = {
    "exponential": lambda x: [cp.exp(x) <= 3],
    "semidefinite": lambda x: [cp.diag(x) >> 0],
    "power": lambda x: [cp.PowCone3D(x[0], x[1], x[2], 0.3)],
}


@pytest.mark.parametrize("cone", CONES)
def test_cones_of_every_kind(cone: str) -> None:
    x, p = cp.Variable(3), cp.Parameter(3, value=[-0.5, 2.0, 3.0])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), CONES[cone](x))
    (found,) = CvxpyLayer(problem, [p], [x])(array(p.value))
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    close(found, array(x.value), 1e-5)
    assert np.abs(x.value - p.value).max() > 0.1, "the constraint does nothing"


def test_integer_variables_say_so() -> None:
    x, p = cp.Variable(3, integer=True), cp.Parameter(3)
    with pytest.raises(NotImplementedError, match="integer"):
        CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p))), [p], [x])


# --- refusals of the call ------------------------------------------------------------------


def test_too_few_arrays() -> None:
    with pytest.raises(ValueError, match="A tensor must be provided for each CVXPY parameter"):
        layer_of(least_squares())(mx.ones((3, 2), dtype=mx.float32))


def test_too_many_arrays() -> None:
    message = "A tensor must be provided for each CVXPY parameter.*received 3.*expected 2"
    with pytest.raises(ValueError, match=message):
        layer_of(least_squares())(*[mx.ones((3, 2), dtype=mx.float32)] * 3)


WRONG_ARRAYS: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "shape": ((3, 2), (4,), r"Invalid parameter shape for parameter 1.*\(3,\).*Got: \(4,\)"),
    "transposed": ((2, 3), (3,), r"Invalid parameter shape for parameter 0.*Got: \(2, 3\)"),
    "batched_shape": (
        (5, 3, 2),
        (5, 4),
        r"Invalid parameter shape for parameter 1.*\(batch_size, 3\).*Got: \(5, 4\)",
    ),
    "too_many_axes": (
        (3, 2),
        (2, 5, 3),
        r"Invalid parameter dimensionality for parameter 1.*Expected 1 or 2.*Got: 3",
    ),
    "too_few_axes": (
        (3, 2),
        (),
        r"Invalid parameter dimensionality for parameter 1.*Expected 1 or 2.*Got: 0",
    ),
    "batch_sizes": ((4, 3, 2), (5, 3), r"Inconsistent batch sizes.*\[4, 5\]"),
    "batch_of_one_and_many": ((1, 3, 2), (5, 3), r"Inconsistent batch sizes.*\[1, 5\]"),
    "empty_batch": ((0, 3, 2), (0, 3), "batch.*empty"),
}


@pytest.mark.parametrize("case", WRONG_ARRAYS)
def test_arrays_that_do_not_fit(case: str) -> None:
    first, second, message = WRONG_ARRAYS[case]
    with pytest.raises(ValueError, match=message):
        layer_of(least_squares())(
            mx.ones(first, dtype=mx.float32), mx.ones(second, dtype=mx.float32)
        )


def test_the_peer_refuses_the_same_arrays_with_the_words_that_ours_begin_with() -> None:
    peer = pytest.importorskip("cvxpylayers.mlx").CvxpyLayer
    problem, parameters, variables = least_squares()
    layers = CvxpyLayer(problem, parameters, variables), peer(problem, parameters, variables)
    for case in ("shape", "batched_shape", "too_many_axes", "too_few_axes", "batch_sizes"):
        arrays = [mx.ones(shape, dtype=mx.float32) for shape in WRONG_ARRAYS[case][:2]]
        texts = []
        for layer in layers:
            with pytest.raises(ValueError) as caught:
                layer(*arrays)
            texts.append(str(caught.value).replace(",)", ")").replace(" ", ""))
        assert texts[0].startswith(texts[1])


# --- settings ------------------------------------------------------------------------------


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[mlxcone.Settings]:
    """The settings of every solve, in order."""
    seen: list[mlxcone.Settings] = []
    solve = mlxcone.solve

    def spy(*args: Any, settings: mlxcone.Settings, **kwargs: Any) -> Any:
        seen.append(settings)
        return solve(*args, settings=settings, **kwargs)

    monkeypatch.setattr(mlxcone, "solve", spy)
    return seen


POINT = np.array([1.0, -2.0, 3.0])


def test_settings_of_the_constructor_hold_for_every_call(used: list[mlxcone.Settings]) -> None:
    layer = layer_of(nonneg_projection(), solver_args={"alpha": 1.3, "max_iters": 77})
    layer(array(POINT))
    layer(array(POINT))
    assert [(s.alpha, s.max_iters) for s in used] == [(1.3, 77)] * 2


def test_settings_of_a_call_override_for_that_call_only(used: list[mlxcone.Settings]) -> None:
    layer = layer_of(nonneg_projection(), solver_args={"alpha": 1.3, "max_iters": 77})
    layer(array(POINT), solver_args={"alpha": 1.1})
    layer(array(POINT))
    assert [(s.alpha, s.max_iters) for s in used] == [(1.1, 77), (1.3, 77)]


def test_eps_sets_both_tolerances(used: list[mlxcone.Settings]) -> None:
    layer = layer_of(nonneg_projection(), solver_args={"eps": 1e-5})
    layer(array(POINT))
    layer(array(POINT), solver_args={"eps": 1e-4})
    assert [(s.eps_abs, s.eps_rel) for s in used] == [(1e-5, 1e-5), (1e-4, 1e-4)]


def test_settings_reach_the_solver() -> None:
    layer = layer_of(least_squares())
    values = array([[1.0, 2.0], [0.5, -1.0], [0.3, 0.2]]), array([1.0, 2.0, 3.0])
    little = {"max_iters": 1, "refine": False}
    layer(*values)
    with pytest.raises(mlxcone.SolverError, match="max_iters"):
        layer(*values, solver_args=little)


def test_the_dictionary_of_settings_is_not_changed() -> None:
    given = {"eps": 1e-7}
    layer_of(nonneg_projection(), solver_args=given)(array(POINT), solver_args=given)
    assert given == {"eps": 1e-7}


def test_changing_the_dictionary_later_has_no_effect(used: list[mlxcone.Settings]) -> None:
    given = {"alpha": 1.3}
    layer = layer_of(nonneg_projection(), solver_args=given)
    given["alpha"] = 1.9
    layer(array(POINT))
    assert used[0].alpha == 1.3


UNKNOWN = r"unknown solver argument 'epsilon'.*alpha.*eps,.*max_iters.*on_failure.*warm_start"


def test_an_unknown_setting_of_the_constructor() -> None:
    with pytest.raises(ValueError, match=UNKNOWN):
        layer_of(nonneg_projection(), solver_args={"epsilon": 1e-5})


def test_an_unknown_setting_of_a_call() -> None:
    with pytest.raises(ValueError, match=UNKNOWN):
        layer_of(nonneg_projection())(array(POINT), solver_args={"epsilon": 1e-5})


@pytest.mark.parametrize(("name", "value"), [("on_failure", "ignore"), ("alpha", 2.5), ("eps", -1)])
def test_a_setting_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"settings: {name} must"):
        layer_of(nonneg_projection())(array(POINT), solver_args={name: value})


def test_a_misspelt_setting_is_recognized() -> None:
    with pytest.raises(ValueError, match=r"'warmstart' \(did you mean 'warm_start'\?\)"):
        layer_of(nonneg_projection(), solver_args={"warmstart": True})


@pytest.mark.parametrize("solver", [None, "MLXCONE", "mlxcone"])
def test_names_of_our_solver(solver: str | None) -> None:
    close(layer_of(nonneg_projection(), solver=solver)(array(POINT))[0], [1.0, 0.0, 3.0])


@pytest.mark.parametrize("backend", [None, "diffcp", "CPP", "SCIPY"])
def test_canonicalization_backends(backend: str | None) -> None:
    built, A = least_squares(), np.array([[1.0, 2.0], [0.5, -1.0], [0.3, 0.2]])
    b = np.array([1.0, 2.0, 3.0])
    (x,) = layer_of(built, canon_backend=backend)(array(A), array(b))
    close(x, cvxpy_values(built, [A, b])[0])


def test_the_backend_is_handed_to_cvxpy(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = cp.Problem.get_problem_data

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs.get("canon_backend"))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(cp.Problem, "get_problem_data", spy)
    for backend in ("SCIPY", "CPP", "diffcp", None):
        layer_of(nonneg_projection(), canon_backend=backend)
    assert seen == ["SCIPY", "CPP", None, None]


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        layer_of(nonneg_projection(), canon_backend="nonsense")


def test_silent_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    mx.eval(layer_of(nonneg_projection())(array(POINT)))
    assert capfd.readouterr() == ("", "")


def test_verbose_call_prints_the_table(capfd: pytest.CaptureFixture[str]) -> None:
    mx.eval(layer_of(nonneg_projection())(array(POINT), solver_args={"verbose": True}))
    text = capfd.readouterr().out
    assert "pri res" in text
    assert "1 solved" in text


def test_verbose_layer_prints_at_every_call(capfd: pytest.CaptureFixture[str]) -> None:
    layer = layer_of(nonneg_projection(), verbose=True)
    capfd.readouterr()
    mx.eval(layer(array(POINT)))
    assert "pri res" in capfd.readouterr().out
    mx.eval(layer(array(POINT), solver_args={"verbose": False}))
    assert capfd.readouterr().out == ""


# --- lanes without a solution --------------------------------------------------------------

NAN = {"on_failure": "nan"}


def crossed_ends(lanes: int, failed: Sequence[int]) -> list[mx.array]:
    """Arguments of `interval` that are infeasible in the given lanes."""
    p = np.random.default_rng(0).normal(size=(lanes, 3))
    low, high = np.full(lanes, -0.5), np.full(lanes, 0.75)
    low[list(failed)], high[list(failed)] = 1.0, -1.0
    return [array(p), array(low), array(high)]


def test_infeasible_lanes_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"lane 1: INFEASIBLE.*lane 4: INFEASIBLE") as caught:
        layer_of(interval())(*crossed_ends(6, [1, 4]))
    assert isinstance(caught.value, mlxcone.SolverError)
    infeasible = mlxcone.Status.INFEASIBLE
    assert caught.value.statuses == {1: infeasible, 4: infeasible}


def test_unbounded_lanes_are_named() -> None:
    prices = array([[1.0, 2.0], [1.0, -1.0], [0.5, 1.0]])
    with pytest.raises(mlxcone.SolverError, match="lane 1: UNBOUNDED") as caught:
        layer_of(positive_prices())(prices)
    assert caught.value.statuses == {1: mlxcone.Status.UNBOUNDED}


def test_nan_lanes_are_named() -> None:
    values = array([[1.0, 2.0, 3.0], [1.0, np.nan, 2.0]])
    with pytest.raises(mlxcone.SolverError, match="lane 1: FAILED") as caught:
        layer_of(nonneg_projection())(values)
    assert caught.value.statuses == {1: mlxcone.Status.FAILED}


def test_an_infinite_parameter_fails() -> None:
    with pytest.raises(mlxcone.SolverError, match="FAILED"):
        layer_of(nonneg_projection())(array([1.0, np.inf, 2.0]))


def test_an_unbatched_infeasible_problem_raises() -> None:
    with pytest.raises(mlxcone.SolverError, match="INFEASIBLE"):
        layer_of(interval())(array(POINT), array(1.0), array(-1.0))


def test_an_unbatched_unbounded_problem_fills_nan() -> None:
    (x,) = layer_of(positive_prices(), solver_args=NAN)(array([1.0, -1.0]))
    assert np.isnan(host(x)).all()


def test_failed_lanes_are_nan_and_the_others_as_alone() -> None:
    failed, kept = [1, 4], [0, 2, 3, 5]
    values = crossed_ends(6, failed)
    layer = layer_of(interval())
    x = host(layer(*values, solver_args=NAN)[0])
    alone = host(layer(*(v[mx.array(kept)] for v in values))[0])
    assert np.isnan(x[failed]).all()
    np.testing.assert_allclose(x[kept], alone, rtol=0, atol=1e-7)


def test_nan_from_the_constructor() -> None:
    layer = layer_of(interval(), solver_args=NAN)
    values = crossed_ends(3, [1])
    assert np.isnan(host(layer(*values)[0])).any(axis=1).tolist() == [False, True, False]
    with pytest.raises(mlxcone.SolverError):
        layer(*values, solver_args={"on_failure": "raise"})


def lane_gradients(
    layer: CvxpyLayer, values: Sequence[mx.array], weights: Array
) -> tuple[Array, list[Array]]:
    """Values, and gradients of a weighted sum of squares of the solution."""
    cotangent = array(weights)
    (x,), gradients = mx.vjp(lambda *v: layer(*v, solver_args=NAN), list(values), [cotangent])
    return host(x), [host(g) for g in gradients]


def test_gradients_beside_failed_lanes_are_those_alone() -> None:
    failed, kept = [1, 4], [0, 2, 3, 5]
    values, weights = crossed_ends(6, failed), np.random.default_rng(1).normal(size=(6, 3))
    layer = layer_of(interval())
    _, gradients = lane_gradients(layer, values, weights)
    alone = lane_gradients(layer, [v[mx.array(kept)] for v in values], weights[kept])[1]
    for got, wanted in zip(gradients, alone, strict=True):
        np.testing.assert_allclose(got[kept], wanted, rtol=0, atol=1e-7)


def test_gradients_of_failed_lanes_are_nan_where_asked_for() -> None:
    values, weights = crossed_ends(4, [2]), np.ones((4, 3))
    _, gradients = lane_gradients(layer_of(interval()), values, weights)
    # A zero here would be a silent lie.
    assert np.isnan(gradients[0][2]).all()
    assert np.isfinite(gradients[0][[0, 1, 3]]).all()


def test_failed_lanes_that_a_loss_leaves_out_do_not_touch_shared_gradients() -> None:
    p, low, high = crossed_ends(5, [3])
    shared, layer = array(0.3), layer_of(interval())
    high = mx.where(mx.arange(5) == 3, mx.array(-1.0, dtype=mx.float32), high)
    low = shared
    weights = np.ones((5, 3))
    weights[3] = 0.0
    gradient = lane_gradients(layer, [p, low, high], weights)[1][1]
    kept = mx.array([0, 1, 2, 4])
    alone = lane_gradients(layer, [p[kept], low, high[kept]], np.ones((4, 3)))[1][1]
    assert alone > 0
    np.testing.assert_allclose(gradient, alone, rtol=1e-6)


@pytest.mark.parametrize("name", ["least_squares", "interval", "portfolio"])
def test_two_bad_lanes_among_32_leave_the_others_untouched(name: str) -> None:
    """One lane with NaN, one without a solution; values and gradients of the other 30."""
    built, good, bad = BESIDE[name]()
    layer, rng = layer_of(built), np.random.default_rng(2)
    mixed = [g.copy() for g in good]
    for g, replacement in zip(mixed, bad, strict=True):
        g[20] = replacement
    mixed[0][7] = np.nan
    kept = [i for i in range(32) if i not in (7, 20)]
    weights = rng.normal(size=(32, *built[2][0].shape))
    x, gradients = lane_gradients(layer, [array(g) for g in mixed], weights)
    clean, wanted = lane_gradients(layer, [array(g) for g in good], weights)
    assert np.isnan(x[7]).all()
    assert np.isnan(x[20]).all() == (name != "least_squares")
    np.testing.assert_allclose(x[kept], clean[kept], rtol=1e-7, atol=1e-7)
    for got, full in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(got[kept], full[kept], rtol=1e-6, atol=1e-7)


def _beside_least_squares() -> tuple[Built, list[Array], list[Array]]:
    rng = np.random.default_rng(3)
    good = [rng.normal(size=(32, 3, 2)), rng.normal(size=(32, 3))]
    # It has no infeasible data: two lanes hold NaN here.
    return least_squares(), good, [np.full((3, 2), 1.0), np.ones(3)]


def _beside_interval() -> tuple[Built, list[Array], list[Array]]:
    rng = np.random.default_rng(4)
    good = [rng.normal(size=(32, 3)), -rng.random(32), rng.random(32)]
    return interval(), good, [np.zeros(3), np.array(1.0), np.array(-1.0)]


def _beside_portfolio() -> tuple[Built, list[Array], list[Array]]:
    problem = TABLE["risk_limited_portfolio"]
    good = sample_batch(problem, 32, seed=5)
    bad = [g[0].copy() for g in good]
    bad[2] = np.array(1e-3)  # no portfolio has as little risk
    return problem.build(), good, bad


BESIDE: dict[str, Callable[[], tuple[Built, list[Array], list[Array]]]] = {
    "least_squares": _beside_least_squares,
    "interval": _beside_interval,
    "portfolio": _beside_portfolio,
}


# --- CVXPY's caches ------------------------------------------------------------------------


def digest(program: Any) -> str:
    """Hash of the parametrized program that CVXPY caches, and of the order of its parts."""
    whole = hashlib.sha256()
    for matrix in (program.A, program.P, program.q):
        if matrix is None:
            continue
        csc = sp.csc_array(matrix)
        for part in (csc.data, csc.indices, csc.indptr, np.array(csc.shape)):
            whole.update(np.ascontiguousarray(part).tobytes())
    ids = [c.id for c in program.constraints], list(program.param_id_to_col.items())
    whole.update(repr(ids).encode())
    return whole.hexdigest()


def cached(problem: cp.Problem) -> Any:
    """The parametrized program that CVXPY keeps with a problem."""
    assert problem._cache.param_prog is not None
    return problem._cache.param_prog


@pytest.mark.parametrize("name", ["several_variables", "risk_limited_portfolio", "vertex_lp"])
def test_what_cvxpy_caches_is_never_written(name: str) -> None:
    built = TABLE[name].build()
    problem = built[0]
    values = [array(v) for v in sample_batch(TABLE[name], 2, seed=0)]
    problem.get_problem_data(cp.CLARABEL)
    theirs = cached(problem)
    before = digest(theirs)
    first = layer_of(built)
    ours = cached(problem)
    ours_before = digest(ours)
    mx.eval(first(*values), layer_of(built)(*values))
    assert digest(theirs) == before
    assert digest(ours) == ours_before


def test_building_a_layer_leaves_parameter_values_alone() -> None:
    built = least_squares()
    for parameter, value in zip(built[1], (np.ones((3, 2)), np.arange(3.0)), strict=True):
        parameter.value = value
    layer_of(built)(array(np.zeros((3, 2)) + 2.0), array(np.ones(3)))
    assert np.array_equal(built[1][0].value, np.ones((3, 2)))
    assert np.array_equal(built[1][1].value, np.arange(3.0))


@pytest.mark.parametrize("name", ["several_variables", "risk_limited_portfolio", "matrix_weights"])
def test_two_layers_and_cvxpy_on_one_problem(name: str) -> None:
    """CVXPY before, between and after; every answer right."""
    built = TABLE[name].build()
    batch = sample_batch(TABLE[name], 3, seed=1)
    points = [[v[i] for v in batch] for i in range(3)]
    wanted = [cvxpy_values(TABLE[name].build(), p) for p in points]

    def agree(got: Sequence[Any], i: int) -> None:
        for value, expected in zip(got, wanted[i], strict=True):
            np.testing.assert_allclose(np.array(value), expected, rtol=1e-5, atol=1e-5)

    agree(cvxpy_values(built, points[0]), 0)
    first = layer_of(built)
    agree(cvxpy_values(built, points[1]), 1)
    second = layer_of(built)
    for i in range(3):
        agree(first(*(array(v) for v in points[i])), i)
        agree(second(*(array(v) for v in points[i])), i)
    agree(cvxpy_values(built, points[2]), 2)


def test_problems_that_differ_only_in_constants() -> None:
    def shifted(shift: float) -> Built:
        x, p = cp.Variable(3), cp.Parameter(3)
        return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= shift]), [p], [x]

    low, high = layer_of(shifted(0.0)), layer_of(shifted(2.0))
    for _ in range(2):
        close(low(array(POINT))[0], [1.0, 0.0, 3.0])
        close(high(array(POINT))[0], [2.0, 2.0, 3.0])


def test_a_constant_changed_in_place_between_two_layers() -> None:
    bound = np.zeros(3)

    def bounded() -> Built:
        x, p = cp.Variable(3), cp.Parameter(3)
        return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= bound]), [p], [x]

    first = layer_of(bounded())
    bound[:] = 2.0
    second = layer_of(bounded())
    close(first(array(POINT))[0], [1.0, 0.0, 3.0])
    close(second(array(POINT))[0], [2.0, 2.0, 3.0])


# --- orders --------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(1, 0, 3, 2), (3, 2, 1, 0), (2, 3, 0, 1)])
def test_parameters_in_another_order(order: tuple[int, ...]) -> None:
    problem, parameters, variables = TABLE["several_variables"].build()
    values = [array(v) for v in sample_batch(TABLE["several_variables"], 2, seed=0)]
    bars = [mx.ones((2, *v.shape), dtype=mx.float32) for v in variables]
    plain = CvxpyLayer(problem, parameters, variables)
    moved = CvxpyLayer(problem, [parameters[i] for i in order], variables)
    outputs, gradients = mx.vjp(plain, values, bars)
    again, permuted = mx.vjp(moved, [values[i] for i in order], bars)
    for got, wanted in zip(again, outputs, strict=True):
        close(got, wanted, 1e-6)
    for got, i in zip(permuted, order, strict=True):
        close(got, gradients[i], 1e-6)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1,), (2, 0)])
def test_variables_in_another_order_or_only_some(order: tuple[int, ...]) -> None:
    problem, parameters, variables = TABLE["several_variables"].build()
    values = [array(v) for v in sample_batch(TABLE["several_variables"], 2, seed=0)]
    outputs = CvxpyLayer(problem, parameters, variables)(*values)
    chosen = CvxpyLayer(problem, parameters, [variables[i] for i in order])(*values)
    assert len(chosen) == len(order)
    for got, i in zip(chosen, order, strict=True):
        close(got, outputs[i], 1e-6)


def test_a_variable_asked_for_twice() -> None:
    problem, parameters, (x,) = nonneg_projection()
    layer = CvxpyLayer(problem, parameters, [x, x])
    first, second = layer(array(POINT))
    assert mx.array_equal(first, second)
    gradient = mx.grad(lambda p: mx.sum(layer(p)[0]) + 2 * mx.sum(layer(p)[1]))(array(POINT))
    close(gradient, [3.0, 0.0, 3.0])


# --- kinds of parameters and variables -----------------------------------------------------


def symmetric_projection() -> Built:
    """Symmetric matrix with given trace nearest a symmetric parameter; values are skewed."""
    X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    objective = cp.sum_squares(X - C) + cp.norm1(X @ np.array([1.0, -2.0, 0.5]))
    return cp.Problem(cp.Minimize(objective), [cp.trace(X) == 1]), [C], [X]


SYMMETRIC = np.array([[1.0, 0.5, -0.7], [0.5, -0.2, 0.9], [-0.7, 0.9, 0.3]])


def test_a_symmetric_variable_is_symmetric() -> None:
    check_against_cvxpy(symmetric_projection(), [SYMMETRIC])
    (X,) = layer_of(symmetric_projection())(array(SYMMETRIC))
    assert mx.array_equal(X, X.T)


def test_the_gradient_of_a_symmetric_parameter_is_symmetric() -> None:
    built, bar = symmetric_projection(), np.random.default_rng(0).normal(size=(3, 3))
    _, (gradient,) = mx.vjp(layer_of(built), [array(SYMMETRIC)], [array(bar)])
    wanted = layer_reference.gradient(built, [SYMMETRIC], [bar.astype(np.float32)])
    assert mx.array_equal(gradient, gradient.T)
    close(gradient, 0.5 * (wanted.values[0] + wanted.values[0].T), 1e-6)


def test_the_gradient_of_a_symmetric_parameter_is_the_peers() -> None:
    peer = pytest.importorskip("cvxpylayers.mlx").CvxpyLayer
    bar = np.random.default_rng(0).normal(size=(3, 3))
    _, (ours,) = mx.vjp(layer_of(symmetric_projection()), [array(SYMMETRIC)], [array(bar)])
    problem, parameters, variables = symmetric_projection()
    theirs = peer(problem, parameters, variables, solver_args={"eps": 1e-9})
    _, (other,) = mx.vjp(theirs, [array(SYMMETRIC)], [array(bar)])
    close(ours, 0.5 * (host(other) + host(other).T), 1e-4)


def diagonal_projection() -> Built:
    """Nonnegative diagonal matrix nearest a diagonal parameter."""
    X, C = cp.Variable((3, 3), diag=True), cp.Parameter((3, 3), diag=True)
    return cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [cp.diag(X) >= 0]), [C], [X]


def test_diagonal_parameters_and_variables() -> None:
    layer, value = layer_of(diagonal_projection()), np.diag([1.0, -2.0, 3.0])
    (X,), (gradient,) = mx.vjp(layer, [array(value)], [array(np.full((3, 3), 2.0))])
    close(X, np.diag([1.0, 0.0, 3.0]))
    close(gradient, np.diag([2.0, 0.0, 2.0]))


def test_batches_of_diagonal_parameters() -> None:
    values = np.array([np.diag([1.0, -2.0, 3.0]), np.diag([-1.0, 4.0, 0.5])])
    close(layer_of(diagonal_projection())(array(values))[0], np.maximum(values, 0.0))


PATTERN = [(0, 1, 1), (2, 0, 3)]  # rows, columns


def sparse_projection() -> Built:
    """Nearest point to a parameter of which only three entries count, and below a bound."""
    X, C = cp.Variable((2, 4)), cp.Parameter((2, 4), sparsity=PATTERN)
    weights = np.arange(1.0, 9.0).reshape(2, 4)
    constraints = [X <= 1.5, cp.sum(cp.multiply(weights, X)) <= 5]
    return cp.Problem(cp.Minimize(cp.sum_squares(X - C)), constraints), [C], [X]


@pytest.mark.filterwarnings("ignore:(Reading from|Writing to) a sparse CVXPY:RuntimeWarning")
def test_parameters_with_a_sparsity_pattern() -> None:
    built, value, mask = sparse_projection(), np.zeros((2, 4)), np.zeros((2, 4))
    value[PATTERN[0], PATTERN[1]] = [2.0, -0.7, 0.4]
    mask[PATTERN[0], PATTERN[1]] = 1.0
    bar = np.random.default_rng(0).normal(size=(2, 4))
    (X,), (gradient,) = mx.vjp(layer_of(built), [array(value)], [array(bar)])
    problem, (C,), (variable,) = built
    C.value_sparse = sp.coo_array((value[PATTERN[0], PATTERN[1]], PATTERN), shape=(2, 4))
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    close(X, variable.value)
    full = dense_twin(built)
    wanted = layer_reference.gradient(full, [value], [bar]).values[0]
    close(gradient, wanted * mask, 1e-6)


def dense_twin(built: Built) -> Built:
    """`sparse_projection` with an ordinary parameter."""
    X, C = cp.Variable((2, 4)), cp.Parameter((2, 4))
    weights = np.arange(1.0, 9.0).reshape(2, 4)
    constraints = [X <= 1.5, cp.sum(cp.multiply(weights, X)) <= 5]
    return cp.Problem(cp.Minimize(cp.sum_squares(X - C)), constraints), [C], [X]


@pytest.mark.filterwarnings("ignore:(Reading from|Writing to) a sparse CVXPY:RuntimeWarning")
def test_entries_outside_the_pattern_do_not_count() -> None:
    layer, value = layer_of(sparse_projection()), np.zeros((2, 4))
    value[PATTERN[0], PATTERN[1]] = [2.0, -0.7, 0.4]
    assert mx.array_equal(layer(array(value))[0], layer(array(np.where(value == 0, 9, value)))[0])


def test_a_variable_with_a_sparsity_pattern() -> None:
    X, C = cp.Variable((2, 4), sparsity=PATTERN), cp.Parameter((2, 4))
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - C))), [C], [X])
    value = np.arange(1.0, 9.0).reshape(2, 4)
    wanted = np.zeros((2, 4))
    wanted[PATTERN[0], PATTERN[1]] = value[PATTERN[0], PATTERN[1]]
    close(layer(array(value))[0], wanted)


def test_nonnegative_parameters() -> None:
    x, p, weight = cp.Variable(3), cp.Parameter(3), cp.Parameter(3, nonneg=True)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - p) + weight @ cp.abs(x)))
    p_value, weight_value = np.array([2.0, -1.0, 0.3]), np.array([0.5, 0.25, 1.0])
    layer = CvxpyLayer(problem, [p, weight], [x])
    (got,), gradients = mx.vjp(
        layer, [array(p_value), array(weight_value)], [mx.ones((3,), dtype=mx.float32)]
    )
    # Soft thresholding: sign(p) max(|p| - weight, 0).
    close(got, [1.5, -0.75, 0.0])
    close(gradients[0], [1.0, 1.0, 0.0])
    close(gradients[1], [-1.0, 1.0, 0.0])


def test_nonpositive_parameters() -> None:
    x, p, weight = cp.Variable(2), cp.Parameter(2), cp.Parameter(nonpos=True)
    problem = cp.Problem(cp.Maximize(weight * cp.norm1(x) - 0.5 * cp.sum_squares(x - p)))
    (got,), gradients = mx.vjp(
        CvxpyLayer(problem, [p, weight], [x]),
        [array([2.0, -0.1]), array(-0.5)],
        [array([1.0, 1.0])],
    )
    close(got, [1.5, 0.0])
    close(gradients[0], [1.0, 0.0])
    close(gradients[1], 1.0)


@pytest.mark.parametrize(
    "attribute", [{"nonneg": True}, {"bounds": [0.0, 5.0]}], ids=["nonneg", "bounds"]
)
def test_variables_with_a_sign_or_bounds(attribute: dict[str, Any]) -> None:
    x, p = cp.Variable(3, **attribute), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)))
    layer = CvxpyLayer(problem, [p], [x])
    close(layer(array([1.0, -2.0, 3.0]))[0], [1.0, 0.0, 3.0])


def scalar_problem() -> Built:
    """Scalar variable and parameters: min (x - a)^2 + w |x|, at max(a - w / 2, 0) for a > 0."""
    x, a, w = cp.Variable(), cp.Parameter(), cp.Parameter(nonneg=True)
    return cp.Problem(cp.Minimize(cp.square(x - a) + w * cp.abs(x))), [a, w], [x]


def test_scalars() -> None:
    (x,), gradients = mx.vjp(layer_of(scalar_problem()), [array(2.0), array(1.0)], [array(1.0)])
    close(x, 1.5)
    close(gradients[0], 1.0)
    close(gradients[1], -0.5)


def test_batches_of_scalars() -> None:
    a, w = np.array([2.0, 1.0, 0.2]), np.array([1.0, 0.5, 1.0])
    (x,), gradients = mx.vjp(
        layer_of(scalar_problem()), [array(a), array(w)], [mx.ones((3,), dtype=mx.float32)]
    )
    close(x, [1.5, 0.75, 0.0])
    close(gradients[0], [1.0, 1.0, 0.0])
    close(gradients[1], [-0.5, -0.5, 0.0])


def test_a_batch_of_one_scalar_and_a_shared_one() -> None:
    (x,) = layer_of(scalar_problem())(array([2.0]), array(1.0))
    close(x, [1.5])


def test_parameters_of_one_entry_keep_their_axes() -> None:
    X, p = cp.Variable((1, 1)), cp.Parameter((1, 1))
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - p))), [p], [X])
    close(layer(array([[2.0]]))[0], [[2.0]])
    close(layer(array([[[2.0]], [[3.0]]]))[0], [[[2.0]], [[3.0]]])


def _matrix_product() -> Built:
    X, A, C = cp.Variable((2, 3)), cp.Parameter((4, 2)), cp.Parameter((4, 3))
    right = np.array([[1.0, 0.2], [-0.5, 1.5], [0.7, -1.0]])
    constraints = [X[0] <= X[1] + 1, X @ right <= np.array([[0.5, 1.0], [1.5, 0.1]])]
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ X - C)), constraints), [A, C], [X]


def _transposed() -> Built:
    X, A, C = cp.Variable((3, 2)), cp.Parameter((2, 4)), cp.Parameter((3, 4))
    return cp.Problem(cp.Minimize(cp.norm1(X @ A - C) + cp.sum_squares(X.T))), [A, C], [X]


def _stacked() -> Built:
    X, A, C = cp.Variable((2, 3)), cp.Parameter((4, 2)), cp.Parameter((4, 3))
    tall = cp.vstack([A @ X, cp.hstack([C[:2, :], C[2:, :]])[:, 1:4]])
    constraints = [cp.sum(X, axis=0) == np.array([1.0, 2.0, 3.0]), X >= -2]
    return cp.Problem(cp.Minimize(cp.sum_squares(tall)), constraints), [A, C], [X]


def _reshaped(order: str) -> Built:
    X, A, C = cp.Variable((2, 3)), cp.Parameter((4, 2)), cp.Parameter((4, 3))
    flat = cp.vec(C, order=order)[:6]
    other = cp.reshape(X, (3, 2), order=order)
    slopes = np.array([[1.0, -2.0, 0.5]])
    objective = cp.sum_squares(cp.vec(X, order=order) - flat) + cp.sum(slopes @ other)
    constraints = [cp.reshape(A, (2, 4), order=order)[:, :2] @ X <= 1.0]
    return cp.Problem(cp.Minimize(objective), constraints), [A, C], [X]


MATRICES: dict[str, Callable[[], Built]] = {
    "product": _matrix_product,
    "transposed": _transposed,
    "stacked": _stacked,
    "reshaped_F": lambda: _reshaped("F"),
    "reshaped_C": lambda: _reshaped("C"),
}


def matrix_values(built: Built, lanes: tuple[int, ...] = ()) -> list[Array]:
    """Parameter values without symmetry, rounded to float32."""
    rng = np.random.default_rng(11)
    drawn = [rng.normal(size=(*lanes, *p.shape)) for p in built[1]]
    return [d.astype(np.float32).astype(np.float64) for d in drawn]


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_that_are_not_square(name: str) -> None:
    built = MATRICES[name]()
    values = matrix_values(built, (2,))
    (X,) = layer_of(built)(*(array(v) for v in values))
    for lane in range(2):
        close(X[lane], cvxpy_values(built, [v[lane] for v in values])[0])


@pytest.mark.parametrize("name", MATRICES)
def test_gradients_of_matrices_that_are_not_square(name: str) -> None:
    built = MATRICES[name]()
    values = matrix_values(built)
    bar = np.random.default_rng(1).normal(size=built[2][0].shape).astype(np.float32)
    _, gradients = mx.vjp(layer_of(built), [array(v) for v in values], [array(bar)])
    wanted = layer_reference.gradient(built, values, [bar])
    assert wanted.error < 1e-6
    for got, expected in zip(gradients, wanted.values, strict=True):
        close(got, expected, 1e-5)


# --- objectives and constraints ------------------------------------------------------------


def test_maximization() -> None:
    x, c = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Maximize(c @ x - 0.5 * cp.sum_squares(x)), [x <= 1])
    layer = CvxpyLayer(problem, [c], [x])
    (got,), (gradient,) = mx.vjp(layer, [array([0.5, 3.0])], [mx.ones((2,), dtype=mx.float32)])
    close(got, [0.5, 1.0])
    close(gradient, [1.0, 0.0])


def test_a_constant_objective() -> None:
    x, A, b = cp.Variable(2), cp.Parameter((2, 2)), cp.Parameter(2)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(0), [A @ x == b]), [A, b], [x])
    A_value, b_value = np.array([[2.0, 1.0], [0.5, 3.0]]), np.array([1.0, -2.0])
    (got,), (_, gradient) = mx.vjp(layer, [array(A_value), array(b_value)], [array([1.0, 0.0])])
    close(got, np.linalg.solve(A_value, b_value))
    close(gradient, np.linalg.inv(A_value)[0])


def test_a_constant_term_in_the_objective_changes_nothing() -> None:
    x, p = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p) + 7 + cp.sum(p)), [x >= 0])
    (got,), (gradient,) = mx.vjp(
        CvxpyLayer(problem, [p], [x]), [array(POINT)], [mx.ones((3,), dtype=mx.float32)]
    )
    close(got, [1.0, 0.0, 3.0])
    close(gradient, [1.0, 0.0, 1.0])


@pytest.mark.parametrize("lanes", [(), (3,)])
def test_no_constraints_at_all(lanes: tuple[int, ...]) -> None:
    """The canonical form has no rows either."""
    x, p = cp.Variable(2), cp.Parameter(2)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x) + p @ x)), [p], [x])
    value = np.random.default_rng(0).normal(size=(*lanes, 2))
    (got,), (gradient,) = mx.vjp(layer, [array(value)], [array(np.ones((*lanes, 2)))])
    close(got, -0.5 * value)
    close(gradient, np.full((*lanes, 2), -0.5))


def test_no_constraints_but_rows_in_the_canonical_form() -> None:
    x, p = cp.Variable(2), cp.Parameter(2)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(2 * x - p))), [p], [x])
    close(layer(array([1.0, -3.0]))[0], [0.5, -1.5])


def test_no_parameters() -> None:
    x = cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - POINT)), [x >= 0])
    (got,) = CvxpyLayer(problem, [], [x])()
    assert got.dtype == mx.float32
    close(got, [1.0, 0.0, 3.0])


def test_a_parameter_that_does_not_reach_the_solution() -> None:
    x, p, offset = cp.Variable(3), cp.Parameter(3), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p) + offset), [x >= 0])
    layer = CvxpyLayer(problem, [p, offset], [x])
    (got,), (_, gradient) = mx.vjp(
        layer, [array(POINT), array([5.0, 6.0])], [mx.ones((2, 3), dtype=mx.float32)]
    )
    close(got, [[1.0, 0.0, 3.0]] * 2)
    close(gradient, [0.0, 0.0])


def test_only_a_parameter_without_influence_is_batched() -> None:
    x, p, offset = cp.Variable(3), cp.Parameter(3), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p) + offset), [x >= 0])
    layer = CvxpyLayer(problem, [p, offset], [x])
    gradient = mx.grad(lambda v: mx.sum(layer(v, array([5.0, 6.0]))[0]))(array(POINT))
    close(gradient, [2.0, 0.0, 2.0])


@pytest.mark.parametrize(
    "name",
    ["optnet_qp", "vertex_lp", "group_lasso", "mpc_step", "matrix_weights", "svm_soft_margin"],
)
def test_the_answer_is_that_of_problem_solve(name: str) -> None:
    params = [v[0] for v in sample_batch(TABLE[name], 1, seed=3)]
    check_against_cvxpy(TABLE[name].build(), params)


# --- batches, types and kinds of arrays ----------------------------------------------------


def test_batch_of_one_and_no_batch() -> None:
    problem = TABLE["several_variables"]
    built, batch = problem.build(), [array(v) for v in sample_batch(problem, 1, seed=0)]
    layer = layer_of(built)
    whole, single = layer(*batch), layer(*(v[0] for v in batch))
    assert [tuple(v.shape) for v in single] == [v.shape for v in built[2]]
    assert [tuple(v.shape) for v in whole] == [(1, *v.shape) for v in built[2]]
    for one, other in zip(whole, single, strict=True):
        close(one[0], other, 1e-6)


@pytest.mark.parametrize("name", ["several_variables", "lasso", "risk_limited_portfolio"])
def test_a_lane_alone_is_the_lane_in_a_batch(name: str) -> None:
    built, batch = TABLE[name].build(), [array(v) for v in sample_batch(TABLE[name], 5, seed=0)]
    layer = layer_of(built)
    together = layer(*batch)
    for lane in range(5):
        for whole, alone in zip(together, layer(*(v[lane] for v in batch)), strict=True):
            close(whole[lane], alone, 1e-6)


def test_numpy_arrays() -> None:
    A, b = np.array([[1.0, 2.0], [0.5, -1.0], [0.3, 0.2]]), np.array([1.0, 2.0, 3.0])
    layer = layer_of(least_squares())
    (x,) = layer(A.astype(np.float32), b.astype(np.float32))
    assert x.dtype == mx.float32
    close(x, layer(array(A), array(b))[0], 1e-7)


@pytest.mark.usefixtures("cpu")
def test_numpy_float64_stays_float64() -> None:
    A, b = np.array([[1.0, 2.0], [0.5, -1.0], [0.3, 0.2]]), np.array([1.0, 2.0, 3.0])
    built = least_squares()
    (x,) = layer_of(built)(A, b)
    assert x.dtype == mx.float64
    close(x, layer_reference.solve(built, [A, b])[0], 1e-10)


def test_numpy_arrays_in_fortran_order() -> None:
    A, b = np.array([[1.0, 2.0], [0.5, -1.0], [0.3, 0.2]]), np.array([1.0, 2.0, 3.0])
    layer = layer_of(least_squares())
    inputs = np.asfortranarray(A.astype(np.float32)), b.astype(np.float32)
    close(layer(*inputs)[0], layer(array(A), array(b))[0], 1e-7)


def test_numpy_arrays_with_negative_strides() -> None:
    A, b = np.array([[1.0, 2.0], [0.5, -1.0], [0.3, 0.2]]), np.array([1.0, 2.0, 3.0])
    layer = layer_of(least_squares())
    turned = A.astype(np.float32)[::-1], b.astype(np.float32)[::-1]
    close(layer(*turned)[0], layer(*(array(v.copy()) for v in turned))[0], 1e-7)


def test_views_of_mlx_arrays() -> None:
    A, b = np.array([[1.0, 2.0], [0.5, -1.0], [0.3, 0.2]]), np.array([1.0, 2.0, 3.0])
    layer = layer_of(least_squares())
    reversed_twice = array(A)[::-1][::-1], mx.concatenate([array(b), array(b)])[:3]
    close(layer(array(A.T).T, reversed_twice[1])[0], layer(array(A), array(b))[0], 1e-7)
    close(layer(*reversed_twice)[0], layer(array(A), array(b))[0], 1e-7)


def test_numbers_and_integers() -> None:
    layer = layer_of(scalar_problem())
    assert layer(2.0, 1)[0].dtype == mx.float32  # type: ignore[arg-type]
    close(layer(2.0, 1)[0], 1.5)  # type: ignore[arg-type]
    integers = layer(mx.array([2, 3], dtype=mx.int32), array(1.0))[0]
    assert integers.dtype == mx.float32
    close(integers, [1.5, 2.5])


@pytest.mark.usefixtures("cpu")
def test_float64_in_is_float64_out() -> None:
    problem = TABLE["lasso"]
    built, params = problem.build(), [v[0] for v in sample_batch(problem, 1, seed=0)]
    bar = np.random.default_rng(0).normal(size=6)
    (x,), gradients = mx.vjp(
        layer_of(built), [array(p, mx.float64) for p in params], [array(bar, mx.float64)]
    )
    assert {v.dtype for v in (x, *gradients)} == {mx.float64}
    # Beyond what float32 holds.
    close(x, layer_reference.solve(built, params)[0], 1e-10)


HALVES = pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])


@HALVES
def test_half_precision_computes_in_float32(dtype: mx.Dtype) -> None:
    """The answer is that of float32 for the same numbers, rounded once at the end."""
    layer = layer_of(TABLE["lasso"].build())
    params = [array(v).astype(dtype) for v in sample_batch(TABLE["lasso"], 4, seed=0)]
    (x,) = layer(*params)
    (single,) = layer(*(p.astype(mx.float32) for p in params))
    assert x.dtype == dtype
    assert mx.array_equal(x, single.astype(dtype))


@HALVES
def test_gradients_in_half_precision(dtype: mx.Dtype) -> None:
    layer = layer_of(TABLE["lasso"].build())
    params = [array(v).astype(dtype) for v in sample_batch(TABLE["lasso"], 4, seed=0)]
    bar = array(np.random.default_rng(0).normal(size=(4, 6))).astype(dtype)
    _, gradients = mx.vjp(layer, params, [bar])
    wanted = mx.vjp(layer, [p.astype(mx.float32) for p in params], [bar.astype(mx.float32)])[1]
    for got, single in zip(gradients, wanted, strict=True):
        assert got.dtype == dtype
        close(got, single, 2e-3 if dtype == mx.float16 else 1.6e-2)


@pytest.mark.usefixtures("cpu")
def test_mixed_types_answer_in_the_widest_and_differentiate_in_their_own() -> None:
    layer = layer_of(scalar_problem())
    values = [array(2.0, mx.float32), array(1.0, mx.float64)]
    (x,), gradients = mx.vjp(layer, values, [array(1.0, mx.float64)])
    assert x.dtype == mx.float64
    assert [g.dtype for g in gradients] == [mx.float32, mx.float64]


def test_float16_beside_float32_answers_in_float32() -> None:
    (x,) = layer_of(scalar_problem())(array(2.0, mx.float16), array(1.0))
    assert x.dtype == mx.float32


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_badly_scaled_parameters(scale: float) -> None:
    """The projection onto the nonnegative numbers is positively homogeneous."""
    (x,) = layer_of(nonneg_projection())(array(scale * POINT))
    np.testing.assert_allclose(host(x), scale * np.array([1.0, 0.0, 3.0]), atol=1e-6 * scale)
