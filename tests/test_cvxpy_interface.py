"""mlxcone as a CVXPY solver: CVXPY's own standard problems, and what they do not look at."""

import inspect
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np
import pytest
from cvxpy import settings as names
from cvxpy.tests import solver_test_helpers as helpers

import mlxcone
from mlxcone import MLXCONE
from mlxcone.cvxpy_interface import cones_of

# Not for us, and why. Their problems are solved below all the same.
NOT_OURS = {
    "test_lp_7": "asks for SDPA's Python package",
    "test_lp_bound_attr": "asks that bounds stay out of A",
    "test_qp_bound_attr": "asks that bounds stay out of A",
}
CLASSES = ("LPs", "QPs", "SOCPs", "SDPs", "ECPs", "MixedCPs", "PCPs", "InfeasibleProblems")


def standard_tests() -> list[Any]:
    found = []
    for suffix in CLASSES:
        group = getattr(helpers, "StandardTest" + suffix)
        for name, function in inspect.getmembers(group, callable):
            continuous = name.startswith("test_") and not name.startswith("test_mi_")
            if continuous and name not in NOT_OURS:
                found.append(pytest.param(function, id=f"{suffix}-{name}"))
    return found


def test_every_class_has_tests() -> None:
    classes = {str(p.id).partition("-")[0] for p in standard_tests()}
    assert classes == set(CLASSES)


@pytest.mark.parametrize("run", standard_tests())
def test_standard_problem_of_cvxpy(run: Callable[..., Any]) -> None:
    run(MLXCONE())


@pytest.mark.parametrize("name", ["lp_bound_attr", "qp_bound_attr"])
def test_bounds_of_variables_become_rows(name: str) -> None:
    case = getattr(helpers, name)()
    data, _, _ = case.prob.get_problem_data(MLXCONE())
    assert data[names.LOWER_BOUNDS] is None and data[names.UPPER_BOUNDS] is None
    case.solve(MLXCONE())
    case.verify_objective(6)
    case.verify_primal_values(6)


def test_ill_posed_linear_program() -> None:
    case = helpers.lp_7()
    case.solve(MLXCONE())
    case.verify_objective(4)
    case.check_primal_feasibility(4)


# Every cone, in the shapes CVXPY allows, with the Karush-Kuhn-Tucker conditions as the judge.


def soc_by_rows() -> helpers.SolverTestHelper:
    X, t = cp.Variable((2, 3)), cp.Variable(2)
    target = np.array([[1.0, 2.0, -1.0], [0.5, -0.5, 3.0]])
    cones = [cp.SOC(t, X, axis=1), t <= np.array([1.0, 2.0]), cp.sum(X, axis=0)[0] == 0.3]
    return case_of(cp.Minimize(cp.sum_squares(X - target) + cp.sum(t)), cones)


def matrix_of_exponentials() -> helpers.SolverTestHelper:
    X, Y, Z = (cp.Variable((2, 2)) for _ in range(3))
    sizes = np.array([[1.0, 2.0], [0.5, 3.0]])
    rows = [cp.ExpCone(X, Y, Z), sizes + Y == 2 * sizes, cp.sum(Z) <= 12]
    return case_of(cp.Maximize(cp.sum(cp.multiply(sizes, X)) - 0.1 * cp.sum_squares(X)), rows)


def powers_of_several_exponents() -> helpers.SolverTestHelper:
    x, y, z = (cp.Variable(3) for _ in range(3))
    rows = [cp.PowCone3D(x, y, z, [0.2, 0.5, 0.9]), x + 2 * y <= np.array([1.0, 2.0, 3.0])]
    return case_of(cp.Minimize(cp.sum_squares(z - 2)), rows)


def semidefinite_3() -> helpers.SolverTestHelper:
    X = cp.Variable((3, 3), symmetric=True)
    C = np.array([[1.0, 2.0, -1.0], [2.0, -1.0, 0.5], [-1.0, 0.5, 0.3]])
    rows = [X >> 0, cp.trace(X) == 2, X[0, 1] >= 0.1]
    return case_of(cp.Minimize(cp.sum_squares(X - C) + cp.trace(C @ X)), rows)


def every_cone() -> helpers.SolverTestHelper:
    x = cp.Variable(6)
    M = cp.bmat([[x[0], x[1]], [x[1], x[2]]])
    rows = [
        cp.sum(x) == 4,
        x <= 2.5,
        cp.SOC(x[0], x[3:5]),
        M >> 0.2 * np.eye(2),
        cp.ExpCone(x[3], x[4] + 1, x[2]),
        cp.PowCone3D(x[0], x[2], x[5], 0.3),
    ]
    return case_of(cp.Minimize(cp.sum_squares(x - np.array([1, -1, 2, 2, -1, 3.0]))), rows)


def case_of(objective: Any, constraints: list[Any]) -> helpers.SolverTestHelper:
    return helpers.SolverTestHelper((objective, None), [], [(c, None) for c in constraints])


@pytest.mark.parametrize(
    "build",
    [
        soc_by_rows,
        matrix_of_exponentials,
        powers_of_several_exponents,
        semidefinite_3,
        every_cone,
    ],
)
def test_duals_satisfy_the_optimality_conditions(build: Callable[[], Any]) -> None:
    case = build()
    case.solve(MLXCONE())
    assert case.prob.status == cp.OPTIMAL
    case.check_stationary_lagrangian(6)
    case.check_complementarity(6)
    for constraint in case.constraints:
        duals = constraint.dual_variables
        arguments = constraint.args if len(duals) > 1 else [constraint]
        # Squeezed: CVXPY gives the dual of a single cone's vector as one column.
        shapes = [np.squeeze(np.zeros(a.shape)).shape for a in arguments]
        assert [np.squeeze(d.value).shape for d in duals] == shapes


def test_dual_cones_hold_the_duals() -> None:
    # By hand: CVXPY's own check solves another problem with the default solver for each cone.
    case = every_cone()
    case.solve(MLXCONE())
    equality, upper, soc, psd, exponential, power = case.constraints
    assert np.ndim(equality.dual_value) == 0
    assert np.min(upper.dual_value) >= -1e-8
    t, u = (np.ravel(v) for v in soc.dual_value)
    assert t[0] - np.linalg.norm(u) >= -1e-7
    assert np.min(np.linalg.eigvalsh(psd.dual_value)) >= -1e-7
    np.testing.assert_allclose(psd.dual_value, psd.dual_value.T, atol=1e-12)
    # Dual exponential cone: w e >= -u exp(v / u), u < 0, or u = 0 and v, w >= 0.
    u, v, w = (float(np.squeeze(a)) for a in exponential.dual_value)
    assert (w * np.e + u * np.exp(v / u) if u < -1e-9 else min(v, w)) >= -1e-7
    # Dual power cone: (u/a)^a (v/(1-a))^(1-a) >= |w|.
    u, v, w = (float(np.squeeze(a)) for a in power.dual_value)
    assert min(u, v) >= -1e-8
    assert (max(u, 0) / 0.3) ** 0.3 * (max(v, 0) / 0.7) ** 0.7 - abs(w) >= -1e-7


def test_power_cone_of_many_variables_is_split() -> None:
    x, z = cp.Variable(3), cp.Variable()
    alpha = np.array([0.2, 0.3, 0.5])
    budget = cp.sum(x) <= 2
    problem = cp.Problem(cp.Maximize(z), [cp.PowConeND(x, z, alpha), budget])
    problem.solve(MLXCONE())
    # The weighted geometric mean under a budget spends in proportion to the weights.
    np.testing.assert_allclose(x.value, 2 * alpha, atol=1e-7)
    best = np.prod(alpha**alpha)
    assert problem.value == pytest.approx(2 * best, abs=1e-8)
    assert budget.dual_value == pytest.approx(best, abs=1e-7)


def test_hermitian_semidefinite() -> None:
    X = cp.Variable((2, 2), hermitian=True)
    C = np.array([[1.0, 1j], [-1j, 1.0]])
    problem = cp.Problem(cp.Minimize(cp.real(cp.trace(C @ X))), [X >> 0, cp.trace(X) == 1])
    problem.solve(MLXCONE())
    assert problem.value == pytest.approx(np.min(np.linalg.eigvalsh(C)), abs=1e-8)


def test_geometric_program() -> None:
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    problem = cp.Problem(cp.Minimize(x + y), [x * y >= 4])
    problem.solve(MLXCONE(), gp=True)
    assert (x.value, y.value) == (pytest.approx(2, abs=1e-6), pytest.approx(2, abs=1e-6))


# What goes in and comes out.


def quadratic() -> tuple[cp.Problem, cp.Variable]:
    rng = np.random.default_rng(3)
    x = cp.Variable(6)
    fit = cp.sum_squares(rng.normal(size=(8, 6)) @ x - rng.normal(size=8))
    return cp.Problem(cp.Minimize(fit), [cp.sum(x) == 1, x >= 0]), x


def test_solution_has_double_precision() -> None:
    problem, x = quadratic()
    problem.solve(MLXCONE())
    other, y = quadratic()
    other.solve(cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    assert x.value.dtype == np.float64
    np.testing.assert_allclose(x.value, y.value, atol=1e-8)
    assert abs(np.sum(x.value) - 1) < 1e-12


def test_quadratic_objective_stays_quadratic() -> None:
    problem, _ = quadratic()
    data, _, _ = problem.get_problem_data(MLXCONE())
    assert data[names.P].nnz > 0 and not data["dims"].soc


def test_quadratic_objective_as_a_cone() -> None:
    problem, x = quadratic()
    value = problem.solve(MLXCONE())
    native = x.value
    assert problem.solve(MLXCONE(), use_quad_obj=False) == pytest.approx(value, abs=1e-7)
    np.testing.assert_allclose(x.value, native, atol=1e-6)


def test_problem_without_constraints() -> None:
    x = cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - np.arange(3.0)) + 7))
    assert problem.solve(MLXCONE()) == pytest.approx(7, abs=1e-12)
    np.testing.assert_allclose(x.value, np.arange(3.0), atol=1e-12)


def test_unbounded_problem() -> None:
    x = cp.Variable(2)
    bound = x <= 1
    problem = cp.Problem(cp.Minimize(cp.sum(x)), [bound])
    assert problem.solve(MLXCONE()) == -np.inf
    assert problem.status == cp.UNBOUNDED
    assert x.value is None and bound.dual_value is None


def test_limit_of_iterations_is_reported() -> None:
    x = cp.Variable(4)
    data = np.random.default_rng(0).normal(size=(6, 4))
    problem = cp.Problem(cp.Minimize(cp.norm(data @ x - 1)), [cp.norm(x) <= 0.1])
    with pytest.warns(UserWarning, match="inaccurate"):
        problem.solve(MLXCONE(), max_iters=1, refine=False)
    assert problem.status == cp.USER_LIMIT
    assert problem.solver_stats.num_iters <= 1


def ended(answer: Any, code: mlxcone.Status) -> Any:
    """The same answer with another status."""
    info = answer.solution.info._replace(status=mx.array(int(code)))
    return answer._replace(solution=answer.solution._replace(info=info))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (mlxcone.Status.SOLVED, cp.OPTIMAL),
        (mlxcone.Status.SOLVED_INACCURATE, cp.OPTIMAL_INACCURATE),
        (mlxcone.Status.INFEASIBLE, cp.INFEASIBLE),
        (mlxcone.Status.INFEASIBLE_INACCURATE, cp.INFEASIBLE_INACCURATE),
        (mlxcone.Status.UNBOUNDED, cp.UNBOUNDED),
        (mlxcone.Status.UNBOUNDED_INACCURATE, cp.UNBOUNDED_INACCURATE),
        (mlxcone.Status.INDETERMINATE, cp.USER_LIMIT),
        (mlxcone.Status.INTERRUPTED, cp.USER_LIMIT),
        (mlxcone.Status.FAILED, cp.SOLVER_ERROR),
    ],
)
def test_each_status_has_a_name_in_cvxpy(code: mlxcone.Status, expected: str) -> None:
    problem, _ = quadratic()
    data, _, inverse = problem.get_problem_data(MLXCONE())
    answer = ended(MLXCONE().solve_via_data(data, False, False, {}), code)
    reply = MLXCONE().invert(answer, inverse[-1])
    assert reply.status == expected
    has_x = expected in names.SOLUTION_PRESENT
    assert bool(reply.primal_vars) == has_x
    assert bool(reply.dual_vars) == (has_x or "infeasible" in expected)


def test_every_status_is_tested() -> None:
    marks = test_each_status_has_a_name_in_cvxpy.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == set(mlxcone.Status)


def test_limit_without_an_iterate_is_an_error() -> None:
    problem, _ = quadratic()
    data, _, inverse = problem.get_problem_data(MLXCONE())
    answer = MLXCONE().solve_via_data(data, False, False, {})
    answer = ended(answer, mlxcone.Status.INDETERMINATE)
    lost = answer.solution._replace(x=mx.full((data[names.C].size,), mx.nan))
    answer = answer._replace(solution=lost)
    assert MLXCONE().invert(answer, inverse[-1]).status == cp.SOLVER_ERROR


def test_statistics() -> None:
    problem, _ = quadratic()
    problem.solve(MLXCONE())
    stats = problem.solver_stats
    assert stats.solver_name == "MLXCONE"
    assert stats.solve_time > 0 and stats.setup_time > 0
    info = stats.extra_stats
    assert isinstance(info, mlxcone.Info)
    assert info.iterations.item() == stats.num_iters > 0
    assert info.status.item() == mlxcone.Status.SOLVED
    assert 0 <= info.primal_residual.item() < 1e-8 and 0 <= info.gap.item() < 1e-8


def test_settings_reach_the_solver() -> None:
    problem, _ = quadratic()
    problem.solve(MLXCONE(), eps=1e-3, refine=False, check_interval=7)
    assert problem.solver_stats.num_iters % 7 == 0
    assert problem.solver_stats.extra_stats.factorizations.item() <= 3


def test_unknown_setting_is_refused() -> None:
    problem, _ = quadratic()
    with pytest.raises(ValueError, match=r"'max_iter'.*eps_abs.*max_iters"):
        problem.solve(MLXCONE(), max_iter=10)


@pytest.mark.parametrize("verbose", [False, True])
def test_verbose_prints_the_table(verbose: bool, capsys: pytest.CaptureFixture[str]) -> None:
    problem, _ = quadratic()
    problem.solve(MLXCONE(), verbose=verbose)
    assert ("1 solved in" in capsys.readouterr().out) == verbose


def test_mixed_integer_problem_is_refused() -> None:
    x = cp.Variable(integer=True)
    with pytest.raises(cp.SolverError, match="MIP"):
        cp.Problem(cp.Minimize(x), [x >= 0.5]).solve(MLXCONE())


def test_default_device_stays() -> None:
    problem, _ = quadratic()
    before = mx.default_device(), mx.default_stream(mx.default_device())
    problem.solve(MLXCONE())
    assert (mx.default_device(), mx.default_stream(mx.default_device())) == before


# Warm starts.


def test_second_solve_starts_warm() -> None:
    x, target = cp.Variable(5), cp.Parameter(5)
    matrix = np.random.default_rng(1).normal(size=(9, 5))
    problem = cp.Problem(cp.Minimize(cp.norm(matrix @ x - 1) + target @ x), [cp.norm(x, 1) <= 1])
    target.value = np.linspace(-1, 1, 5)
    splitting = {"refine": False, "eps": 1e-5, "check_interval": 5}
    problem.solve(MLXCONE(), **splitting)
    cold = problem.solver_stats.num_iters, x.value
    # Another object of this class is the same solver: nothing is compiled anew.
    problem.solve(MLXCONE(), **splitting)
    assert problem.solver_stats.num_iters < cold[0]
    np.testing.assert_allclose(x.value, cold[1], atol=1e-3)
    problem.solve(MLXCONE(), warm_start=False, **splitting)
    assert problem.solver_stats.num_iters == cold[0]


def test_warm_start_of_another_size_is_left_alone() -> None:
    cache: dict[str, Any] = {}
    for size in (3, 4, 3):
        x = cp.Variable(size)
        problem = cp.Problem(cp.Maximize(cp.sum(x)), [x <= 1])
        data, _, _ = problem.get_problem_data(MLXCONE())
        answer = MLXCONE().solve_via_data(data, True, False, {}, cache)
        np.testing.assert_allclose(np.array(answer.solution.x), 1, atol=1e-9)


def test_failed_solve_is_no_warm_start() -> None:
    x, bound = cp.Variable(), cp.Parameter(value=-1.0)
    problem = cp.Problem(cp.Minimize(x), [x >= 0, x <= bound])
    problem.solve(MLXCONE())
    assert problem.status == cp.INFEASIBLE
    assert problem._solver_cache == {}
    bound.value = 1.0
    assert problem.solve(MLXCONE()) == pytest.approx(0, abs=1e-9)


# The canonical form, as the layer reads it.


def test_cones_of_a_program_with_every_cone() -> None:
    data, _, _ = every_cone().prob.get_problem_data(MLXCONE())
    cones = cones_of(data["dims"])
    # CVXPY adds an equality for each of the six squares; a 2 x 2 matrix has three rows.
    assert cones == {"z": 7, "l": 6, "q": [3], "s": [2], "ep": 1, "p": [0.3]}
    assert data[names.A].shape[0] == 7 + 6 + 3 + 3 + 3 + 3


def test_attributes_of_variables_stay_in_the_constraints() -> None:
    x, X = cp.Variable(2, nonneg=True), cp.Variable((2, 2), PSD=True)
    problem = cp.Problem(cp.Minimize(cp.sum(x) + cp.trace(X)), [X[0, 1] == 1, x >= 1])
    data, _, _ = problem.get_problem_data(MLXCONE())
    # CVXPY 1.9.2 has no such thing.
    assert not getattr(data[names.PARAM_PROB], "dir_cones", None)
    assert cones_of(data["dims"]) == {"z": 1, "l": 4, "q": [], "s": [2], "ep": 0, "p": []}
