"""A CVXPY problem as sparse maps from parameters to (P, q, A, b). The only importer of CVXPY."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy import error, settings
from cvxpy.atoms.quad_form import QuadForm
from cvxpy.utilities import scopes

import mlxcone
from cvxpylayers_mlx import duals, leaves
from cvxpylayers_mlx.affine import DataMap
from cvxpylayers_mlx.leaves import Part
from cvxpylayers_mlx.parameters import Pick
from cvxpylayers_mlx.recover import Recovery, entries


class NotDPPError(AssertionError, ValueError):
    """The problem is not DPP: both what the documentation promises and what callers catch."""


@dataclass(frozen=True)
class Canonical:
    """Everything a layer needs of its problem; holds no CVXPY object.

    The user's objective is ``sign`` times that of the program plus ``constant``, or if
    ``logarithm`` e to the power of that. ``signs`` are those the parameters were declared with:
    what CVXPY found convex may not be so with another.
    """

    cones: mlxcone.Cones
    P: DataMap | None
    q: DataMap
    A: DataMap
    b: DataMap
    constant: DataMap
    sign: float
    logarithm: bool
    picks: tuple[Pick, ...]
    signs: tuple[int, ...]
    variables: tuple[Recovery, ...]


def _not_dpp(problem: Any, gp: bool) -> str:
    """Which rule is broken, by what, and what to do."""
    follows = "is_dgp" if gp else "is_dcp"
    parts = [problem.objective, *problem.constraints]
    # Whether it would be convex with numbers in the place of the parameters.
    if any(not getattr(part, follows)() for part in parts):
        rule = (
            "log-log convex (DGP), all variables and parameters positive" if gp else "convex (DCP)"
        )
        fault = f"It is not {rule}, whatever its parameters"
        fault += "" if gp or not problem.is_dgp() else ". It is log-log convex: pass gp=True"
        culprits = [part for part in parts if not getattr(part, follows)()]
        if any(QuadForm in part.atoms() and part.parameters() for part in culprits):
            fault += ". A parameter P of quad_form(x, P) has to be declared PSD=True"
    else:
        fault = (
            "Its parameters enter in a way that is convex, but not DPP: a product of two "
            "parameters, or a nonlinear function of one, needs a new parameter for the result"
        )
        culprits = [part for part in parts if not getattr(part, follows)(dpp=True)]
        if any(QuadForm in part.atoms() for part in culprits if part is not problem.objective):
            fault += (
                "; quad_form(x, P) with P a parameter may stand in the objective only, in a "
                "constraint write sum_squares(R @ x) with a parameter R, R'R = P"
            )
    shown = "; ".join(str(part) for part in culprits[:3])
    where = f" Look at: {shown[:200]}." if shown else ""
    kind = "log-log convex and DPP" if gp else "DPP"
    return f"Problem must be {kind}. {fault}.{where}"


def _validate(problem: Any, parameters: Any, variables: Any, gp: bool) -> None:
    if not isinstance(problem, cp.Problem):
        raise ValueError(f"problem: expected a cvxpy.Problem, got {type(problem).__name__}")
    # The solver takes P as data, so that it may be a parameter of a quadratic form.
    is_dpp: Any = problem.is_dpp
    if not (is_dpp("dgp") if gp else is_dpp(quad_form_dpp="qp")):
        raise NotDPPError(_not_dpp(problem, gp))
    for name, given in (("parameters", parameters), ("variables", variables)):
        if not isinstance(given, (list, tuple)):
            raise ValueError(f"The layer's {name} must be provided as a list or tuple")
        kind = cp.Parameter if name == "parameters" else cp.Variable
        for each in given:
            if not isinstance(each, kind):
                raise ValueError(
                    f"{name}: expected a list of cvxpy.{kind.__name__}, got a "
                    f"{type(each).__name__} in it"
                )
    given, wanted = [p.id for p in parameters], {p.id for p in problem.parameters()}
    faults = {
        "missing": [p for p in problem.parameters() if p.id not in given],
        "not in the problem": [p for p in parameters if p.id not in wanted],
        "given twice": [p for k, p in enumerate(parameters) if p.id in given[:k]],
    }
    if any(faults.values()):
        told = (f"{k}: {', '.join(p.name() for p in v)}" for k, v in faults.items() if v)
        raise ValueError(
            f"The layer's parameters must exactly match problem.parameters ({'; '.join(told)})"
        )
    own = {v.id for v in problem.variables()}
    own |= {d.id for c in problem.constraints for d in c.dual_variables}
    for variable in variables:
        if variable.id not in own:
            raise ValueError(
                f"Variable {variable} must be a subset of problem.variables or a constraint dual "
                "variable"
            )
    if not problem.variables():
        raise ValueError("problem: there is no variable to solve for")


class _Source(NamedTuple):
    """A canonical vector of CVXPY: its first column, and the entries it is made of."""

    start: int
    pick: Pick
    part: Part


def _sources(
    position: int, parameter: Any, lowered: dict[int, list[int]], starts: dict[int, int], gp: bool
) -> list[_Source]:
    """The canonical vectors made of a parameter."""
    names = lowered.get(parameter.id, [parameter.id])
    # An exponent of a geometric program has no logarithm, a parameter that is not used no names.
    found = {
        name: ("logarithm" if gp else part.component, part)
        for name, part in zip(names, leaves.parts(parameter, gp), strict=False)
    }
    if gp:
        # It may appear as its logarithm and, in an exponent, as itself.
        found[parameter.id] = "whole", leaves.parts(parameter)[0]
    return [
        _Source(starts[name], Pick(position, component, parameter.size), part)
        for name, (component, part) in found.items()
        if name in starts
    ]


def _unfolded(sources: list[_Source]) -> Any:
    """From the flat components and a 1 to CVXPY's canonical vectors and a 1, a SciPy CSR array."""
    total = sum(source.part.index.size for source in sources)
    rows, columns, values = [np.array([total])], [], []
    width = 0
    for source in sources:
        part = source.part
        # A symmetric parameter is read as the mean of both triangles: its gradient is symmetric.
        for index, value in ((part.index, 0.5), (part.mirror, 0.5 * part.sign)):
            rows.append(source.start + np.arange(index.size))
            columns.append(width + index)
            values.append(np.full(index.size, value))
        width += source.pick.size
    return sp.csr_array(
        (
            np.concatenate([[1.0], *values]),
            (np.concatenate(rows), np.concatenate([[width], *columns])),
        ),
        shape=(total + 1, width + 1),
    )


def _recovery(variable: Any, names: list[int], starts: dict[int, int], gp: bool) -> Recovery:
    """Where a variable of the problem stands in x."""
    found = {
        part.component: entries(variable.size, starts[name] if variable.size else 0, part)
        for name, part in zip(names, leaves.parts(variable, gp), strict=True)
    }
    real = found.get("real", found.get("whole"))
    return Recovery(tuple(variable.shape), real, found.get("imag"), logarithm=gp)


def _data_map(
    tensor: Any, rows: np.ndarray, shape: tuple[int, ...], unfolded: Any, sizes: tuple[int, ...]
) -> DataMap:
    """Rows of CVXPY's tensor, in our order, as a map of the components."""
    matrix = sp.csr_array(sp.csr_array(tensor)[rows] @ unfolded)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return DataMap(matrix, shape, sizes)


def canonicalize(
    problem: Any,
    parameters: Any,
    variables: Any,
    *,
    gp: bool = False,
    verbose: bool = False,
    canon_backend: str | None = None,
) -> Canonical:
    """Canonical form of a DPP problem.

    Args:
        problem (cvxpy.Problem): DPP.
        parameters (list): its parameters, in the order of the calls.
        variables (list): the variables to return.
        gp (bool): a geometric program, solved for the logarithms of its variables.
        verbose (bool): let CVXPY print.
        canon_backend (str): CVXPY's canonicalization backend; "diffcp" means automatic.

    Raises:
        NotDPPError: not DPP (an AssertionError and a ValueError).
        ValueError: parameters or variables do not match the problem.
        NotImplementedError: not convex and continuous, or CVXPY canonicalizes it in an unknown way.
    """
    _validate(problem, parameters, variables, gp)
    backend = None if canon_backend == "diffcp" else canon_backend
    # What CVXPY remembers of a problem belongs to the user: a problem of our own is compiled.
    problem = cp.Problem(problem.objective, problem.constraints)
    try:
        with scopes.quad_form_dpp_scope(), warnings.catch_warnings():
            # CVXPY's own reading of a sparse parameter, of which it warns its user.
            warnings.filterwarnings("ignore", "Reading from a sparse CVXPY expression")
            data, chain, inverse = problem.get_problem_data(
                solver=mlxcone.MLXCONE(), gp=gp, verbose=verbose, canon_backend=backend
            )
    except error.SolverError as refusal:
        # CVXPY found a cone or an attribute that MLXCONE does not list: integers, for example.
        raise NotImplementedError(
            f"the problem needs more than continuous variables and convex cones: {refusal}"
        ) from refusal
    program, dims = data[settings.PARAM_PROB], data["dims"]
    apart = [getattr(program, name, None) for name in ("dir_cones", "lower_bounds", "upper_bounds")]
    # A constraint that is overlooked gives a wrong answer, silently: better none.
    if any(part is not None and len(part) for part in apart):
        raise NotImplementedError("CVXPY kept constraints apart from A; this release is not known")
    n, m = program.x.size, program.constr_size
    lowered, moved = chain.compose_param_id_map(), chain.compose_var_id_map()
    sources = [
        source
        for position, parameter in enumerate(parameters)
        for source in _sources(position, parameter, lowered, program.param_id_to_col, gp)
    ]
    # A parameter whose entries are read in another order would give one, too.
    if sum(source.part.index.size for source in sources) != program.A.shape[1] - 1:
        raise NotImplementedError("CVXPY rewrites a parameter in a way that is not known here")
    picks = tuple(source.pick for source in sources)
    form = _unfolded(sources), tuple(pick.size for pick in picks)
    # CVXPY: A_c x + b_c in K, entries by columns, b_c as column n. Here A = -A_c, b = b_c.
    by_rows = np.arange(m * n).reshape(n, m).T.ravel()
    found = duals.locate(problem, variables, chain, inverse, n, m)
    for variable in variables:
        if variable.id not in found:
            names = moved.get(variable.id, [variable.id])
            found[variable.id] = _recovery(variable, names, program.var_id_to_col, gp)
    P = None
    if program.P is not None and program.P.nnz:
        P = _data_map(program.P, np.arange(n * n), (n, n), *form)
    return Canonical(
        cones=mlxcone.Cones.of(mlxcone.MLXCONE.cones_of(dims)),
        P=P,
        q=_data_map(program.q, np.arange(n), (n,), *form),
        A=_data_map(-program.A, by_rows, (m, n), *form),
        b=_data_map(program.A, n * m + np.arange(m), (m,), *form),
        constant=_data_map(program.q, np.array([n]), (1,), *form),
        sign=-1.0 if isinstance(problem.objective, cp.Maximize) else 1.0,
        logarithm=gp,
        picks=picks,
        signs=tuple(int(p.is_nonneg()) - int(p.is_nonpos()) for p in parameters),
        variables=tuple(found[v.id] for v in variables),
    )
