"""mlxcone as a solver of CVXPY: ``problem.solve(solver=mlxcone.MLXCONE())``.

CVXPY hands over min 1/2 x'Px + q'x + d s.t. A x + s = b, s in K, with its rows in SCS's order, its
exponential cone in SCS's argument order, and PSD blocks (once it is told so below) in SCS's scaled
lower-triangular svec. So nothing is permuted here, and y is the dual of CVXPY's constraints as it
stands: CVXPY negates the rows of equalities, which turns their duals to its own sign.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from cvxpy import settings as names
from cvxpy.atoms.geo_mean import GeoMean
from cvxpy.constraints.exponential import ExpCone
from cvxpy.constraints.nonpos import NonNeg
from cvxpy.constraints.power import PowCone3D, PowConeND
from cvxpy.constraints.psd import SvecPSD
from cvxpy.constraints.second_order import SOC
from cvxpy.constraints.zero import Zero
from cvxpy.reductions.solution import Solution as Reply
from cvxpy.reductions.solution import failure_solution
from cvxpy.reductions.solvers.conic_solvers.conic_solver import ConicSolver
from cvxpy.reductions.solvers.utilities import extract_dual_value, get_dual_values
from cvxpy.utilities.psd_utils import TriangleKind

from mlxcone.backend.devices import on_cpu
from mlxcone.settings import Settings
from mlxcone.solution import Info, Solution
from mlxcone.solver import Solver
from mlxcone.status import Status

_STATUS = {
    Status.SOLVED: names.OPTIMAL,
    Status.SOLVED_INACCURATE: names.OPTIMAL_INACCURATE,
    Status.UNBOUNDED: names.UNBOUNDED,
    Status.UNBOUNDED_INACCURATE: names.UNBOUNDED_INACCURATE,
    Status.INFEASIBLE: names.INFEASIBLE,
    Status.INFEASIBLE_INACCURATE: names.INFEASIBLE_INACCURATE,
    Status.INDETERMINATE: names.USER_LIMIT,
    Status.INTERRUPTED: names.USER_LIMIT,
    Status.FAILED: names.SOLVER_ERROR,
}


def cones_of(dims: Any) -> dict[str, Any]:
    """SCS's cone dict for CVXPY's ``ConeDims``, whose rows stand in the same order.

    Args:
        dims (ConeDims): ``data["dims"]`` of ``problem.get_problem_data(solver=MLXCONE())``.
    """
    cones = {
        "z": dims.zero,
        "l": dims.nonneg,
        "q": list(dims.soc),
        "s": list(dims.psd),
        "ep": dims.exp,
        "p": list(dims.p3d),
    }
    # A key that SCS does not know stands only where it is needed.
    return cones | {"pnd": [list(alphas) for alphas in dims.pnd]} if dims.pnd else cones


def _power_sizes(problem: Any) -> set[int]:
    """Numbers of exponents of the n-dimensional power cones that a problem leads to."""
    constraints = [c for c in problem.constraints if isinstance(c, PowConeND)]
    sizes = {c.alpha.shape[c.axis] for c in constraints}
    nodes = [problem.objective.expr, *(arg for c in problem.constraints for arg in c.args)]
    while nodes:
        node = nodes.pop()
        nodes.extend(node.args)
        # The approximation by second-order cones is a class of its own.
        if type(node) is GeoMean:
            sizes.add(len(node.w))
    return sizes - {1}


class _Answer(NamedTuple):
    """What `MLXCONE.solve_via_data` gives to `MLXCONE.invert`."""

    solution: Solution
    setup_time: float
    solve_time: float


class _Kept(NamedTuple):
    """The last solution of a problem and the sizes it fits."""

    shape: tuple[int, ...]
    cones: dict[str, Any]
    solution: Solution


class MLXCONE(ConicSolver):
    """mlxcone as a CVXPY solver: quadratic objective, every cone of CVXPY, all duals.

    Settings are the fields of `mlxcone.Settings` (and ``eps``), as keywords of
    ``problem.solve``; an unknown one raises `ValueError` with the list. The solve runs in float64
    on the CPU. After it, ``problem.solver_stats.extra_stats`` is the `mlxcone.Info`, with
    ``setup_time`` the conversion of CVXPY's data and ``solve_time`` all the rest, in seconds.
    With ``warm_start=True``, CVXPY's default, a problem solved before starts from its last
    solution.
    """

    MIP_CAPABLE = False
    REQUIRES_CONSTR = False
    cones_of = staticmethod(cones_of)
    # What is not here (plain PSD, ...) CVXPY rewrites exactly. Lists, because CVXPY's are.
    SUPPORTED_CONSTRAINTS = [Zero, NonNeg, SOC, SvecPSD, ExpCone, PowCone3D, PowConeND]  # noqa: RUF012
    EXP_CONE_ORDER = [0, 1, 2]  # noqa: RUF012
    PSD_TRIANGLE_KIND = TriangleKind.LOWER
    PSD_SQRT2_SCALING = True

    # CVXPY keys its compiled problems and its warm starts by the solver object.
    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    def name(self) -> str:
        return "MLXCONE"

    def can_solve(self, problem_form: Any) -> bool:
        """Whether the cones of a problem are supported; called before it is canonicalized."""
        supported = list(type(self).SUPPORTED_CONSTRAINTS)
        # CVXPY fails to list power cones of unequal sizes; it can split them.
        if len(_power_sizes(problem_form._problem)) > 1:
            supported.remove(PowConeND)
        self.SUPPORTED_CONSTRAINTS = supported
        return super().can_solve(problem_form)

    def import_solver(self) -> None:
        """Nothing to do: whoever holds this class has imported the solver."""

    def supports_quad_obj(self) -> bool:
        return True

    def cite(self, data: Any) -> str:
        """BibTeX of the methods; the software itself has no paper."""
        return _CITATION

    @on_cpu
    def solve_via_data(
        self,
        data: dict[str, Any],
        warm_start: bool,
        verbose: bool,
        solver_opts: dict[str, Any],
        solver_cache: dict[str, Any] | None = None,
    ) -> _Answer:
        """Solve CVXPY's canonical data.

        Raises:
            ValueError: an option is not a setting; the message lists the valid ones.
        """
        # CVXPY has used this one already, to choose the canonical form.
        options = {k: v for k, v in solver_opts.items() if k != "use_quad_obj"}
        settings = Settings(verbose=verbose).override(options)
        cones = cones_of(data[self.DIMS])
        P, A = data.get(names.P), data[names.A]
        has_P = P is not None and P.nnz > 0
        kept = None if solver_cache is None else solver_cache.get(self.name())
        start = None
        if warm_start and kept is not None and (kept.shape, kept.cones) == (A.shape, cones):
            start = kept.solution
        began = time.perf_counter()
        solver = Solver(P if has_P else None, A, cones, settings)
        ready = time.perf_counter()
        solution = solver.solve(data[names.C], data[names.B], warm_start=start)
        mx.eval(solution)
        done = time.perf_counter()
        if solver_cache is not None and solution.info.status.item() == Status.SOLVED:
            solver_cache[self.name()] = _Kept(A.shape, cones, solution)
        return _Answer(solution, setup_time=ready - began, solve_time=done - ready)

    @staticmethod
    @on_cpu
    def answer(x: np.ndarray, y: np.ndarray) -> _Answer:
        """What a solve that ended at x and y would have returned, for `invert`."""
        zero = mx.zeros((), dtype=mx.int32)
        nothing = mx.array(0.0)
        info = Info(zero + Status.SOLVED, zero, zero, *[nothing] * 4)
        point = [mx.array(v, dtype=mx.float64) for v in (x, y, 0.0 * y)]
        return _Answer(Solution(point[0], point[1], point[2], info), 0.0, 0.0)

    def invert(self, solution: _Answer, inverse_data: Any) -> Reply:
        """CVXPY's solution: variables, duals or a certificate of infeasibility, statistics."""
        info = solution.solution.info
        x, y = (np.array(v) for v in (solution.solution.x, solution.solution.y))
        code: Any = info.status.item()
        status = _STATUS[Status(code)]
        if status == names.USER_LIMIT and not np.all(np.isfinite(x)):
            status = names.SOLVER_ERROR
        statistics = {
            names.SOLVE_TIME: solution.solve_time,
            names.SETUP_TIME: solution.setup_time,
            names.NUM_ITERS: info.iterations.item(),
            names.EXTRA_STATS: info,
        }
        # For an unbounded problem y means nothing.
        duals = {}
        if status in (*names.SOLUTION_PRESENT, names.INFEASIBLE, names.INFEASIBLE_INACCURATE):
            constraints = [*inverse_data[self.EQ_CONSTR], *inverse_data[self.NEQ_CONSTR]]
            duals = get_dual_values(y, extract_dual_value, constraints)
        if status not in names.SOLUTION_PRESENT:
            return failure_solution(status, statistics, duals)
        objective: Any = info.objective.item()
        value = objective + inverse_data[names.OFFSET]
        return Reply(status, value, {inverse_data[self.VAR_ID]: x}, duals, statistics)


_CITATION = """
@misc{odonoghue2020,
  author = {O'Donoghue, Brendan},
  title = {Operator splitting for a homogeneous embedding of the linear complementarity problem},
  year = {2020},
  eprint = {2004.02177},
  archivePrefix = {arXiv}
}
@misc{busseti2018,
  author = {Busseti, Enzo and Moursi, Walaa M. and Boyd, Stephen},
  title = {Solution refinement at regular points of conic problems},
  year = {2018},
  eprint = {1811.02157},
  archivePrefix = {arXiv}
}
"""
