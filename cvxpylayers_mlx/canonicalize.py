"""A CVXPY problem as sparse maps from parameters to (P, q, A, b). The only importer of CVXPY."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import cvxpy as cp
import mlx.core as mx
import numpy as np
import scipy.sparse as sp
from cvxpy import error, settings

from cvxpylayers_mlx.affine import SparseMap
from cvxpylayers_mlx.parameters import Pick
from mlxcone import MLXCONE


class NotDPPError(AssertionError, ValueError):
    """The problem is not DPP: both what the documentation promises and what callers catch."""


@dataclass(frozen=True)
class DataMap:
    """One of P, q, A, b as an affine function of the canonical parameters.

    ``linear`` maps (B, total + 1) to the flat entries, row by row, of an array of ``shape``;
    ``uses[i]`` says whether it depends on parameter i.
    """

    linear: SparseMap
    shape: tuple[int, ...]
    uses: tuple[bool, ...]


@dataclass(frozen=True)
class Recovery:
    """Where the entries of a variable stand in x, or those of a dual variable in y.

    Index 0 means the constant 0, k means ``factor`` times entry k - 1 of the vector.
    """

    index: mx.array
    shape: tuple[int, ...]
    is_dual: bool = False
    factor: mx.array | None = None


class Source(NamedTuple):
    """A canonical parameter: the user's parameter it comes from, and whether as its logarithm."""

    parameter: int
    logarithm: bool


@dataclass(frozen=True)
class Canonical:
    """Everything a layer needs of its problem; holds no CVXPY object."""

    cones: dict[str, Any]
    P: DataMap | None
    q: DataMap
    A: DataMap
    b: DataMap
    picks: tuple[Pick, ...]
    variables: tuple[Recovery, ...]
    sources: tuple[Source, ...]
    geometric: bool


def _validate(problem: Any, parameters: Any, variables: Any, gp: bool) -> None:
    if not isinstance(problem, cp.Problem):
        raise ValueError(f"problem: expected a cvxpy.Problem, got {type(problem).__name__}")
    disciplined: Any = problem.is_dgp if gp else problem.is_dcp
    if not disciplined(dpp=True):
        raise NotDPPError(f"Problem must be {'log-log convex and ' if gp else ''}DPP.")
    for name, given in (("parameters", parameters), ("variables", variables)):
        if not isinstance(given, (list, tuple)):
            raise ValueError(f"The layer's {name} must be provided as a list or tuple")
    wanted = {p.id for p in problem.parameters()}
    if wanted != {p.id for p in parameters} or len(parameters) != len(wanted):
        raise ValueError("The layer's parameters must exactly match problem.parameters")
    own = {v.id for v in problem.variables()}
    duals = {d.id for c in problem.constraints for d in c.dual_variables}
    for variable in variables:
        if gp and variable.id in duals:
            raise NotImplementedError(
                f"Variable {variable} is a dual variable of a geometric program; not supported yet"
            )
        if variable.id not in own and variable.id not in duals:
            raise ValueError(
                f"Variable {variable} must be a subset of problem.variables or a constraint dual "
                "variable"
            )
        if variable.is_complex():
            raise NotImplementedError(f"Variable {variable} is complex; not supported yet")


def _kept(leaf: Any) -> tuple[np.ndarray, np.ndarray]:
    """Row-major positions of the entries CVXPY keeps of a leaf, in its order, and their mirrors.

    The mirrors are the same positions unless the leaf is symmetric.
    """
    if any(leaf.attributes[a] for a in ("symmetric", "PSD", "NSD")):
        rows, columns = np.triu_indices(leaf.shape[0])
    elif leaf.attributes["diag"]:
        rows = columns = np.arange(leaf.shape[0])
    elif leaf.attributes["sparsity"]:
        flat = np.ravel_multi_index(leaf.sparse_idx, leaf.shape)
        return flat, flat
    else:
        flat = np.arange(leaf.size).reshape(leaf.shape).ravel(order="F")
        return flat, flat
    order = leaf.shape[0]
    return rows * order + columns, columns * order + rows


def _pick(parameter: Any) -> Pick:
    index, mirror = _kept(parameter)
    own = mx.array(index.astype(np.int32))
    # A symmetric parameter is read as the mean of both triangles: its gradient is symmetric.
    same = np.array_equal(index, mirror)
    return Pick(own, None if same else mx.array(mirror.astype(np.int32)))


def _recovery(variable: Any, start: int) -> Recovery:
    index, mirror = _kept(variable)
    places = np.zeros(variable.size, dtype=np.int32)
    places[mirror] = places[index] = start + 1 + np.arange(index.size)
    return Recovery(mx.array(places), tuple(variable.shape))


def _duals(
    problem: Any, variables: Any, chain: Any, inverse: Any, n: int, m: int
) -> dict[int, Recovery]:
    """For each dual variable among ``variables`` where it stands in y, by its id.

    CVXPY's way back from y is linear, with one entry of y for each entry of a dual value. Two
    vectors y show which and by what factor, and a third proves it.
    """
    wanted = {v.id for v in variables}
    constraints = [c for c in problem.constraints if wanted & {d.id for d in c.dual_variables}]
    places = np.arange(1.0, m + 1.0)
    check = np.random.default_rng(0).standard_normal(m)
    seen = [_dual_values(constraints, chain, inverse, n, y) for y in (np.ones(m), places, check)]
    duals = {}
    for identity in set(seen[0]) & wanted:
        factor, located, image = (values[identity] for values in seen)
        index = np.rint(located / np.where(factor == 0, 1.0, factor)).astype(np.int32)
        index = np.where(factor == 0, 0, index)
        if not np.allclose(factor * np.append(0.0, check)[index], image, rtol=1e-9, atol=1e-12):
            raise NotImplementedError("CVXPY combines several entries of y in one dual value")
        with mx.stream(mx.cpu):  # type: ignore[arg-type]
            scale = mx.array(factor.ravel(), dtype=mx.float64)
        duals[identity] = Recovery(mx.array(index.ravel()), factor.shape, True, scale)
    return duals


def _dual_values(
    constraints: list[Any], chain: Any, inverse: Any, n: int, y: np.ndarray
) -> dict[int, np.ndarray]:
    """The dual variables of constraints, by id, at one y; leaves the constraints as they were."""
    if not constraints:
        return {}
    reply = chain.invert(MLXCONE.answer(np.zeros(n), y), inverse)
    values = {}
    for constraint in constraints:
        before = [d.value for d in constraint.dual_variables]
        constraint.save_dual_value(reply.dual_vars[constraint.id])
        for variable, old in zip(constraint.dual_variables, before, strict=True):
            values[variable.id] = np.asarray(variable.value, dtype=np.float64)
            variable.save_value(old)
    return values


def _data_map(tensor: Any, rows: np.ndarray, shape: tuple[int, ...], spans: list[slice]) -> DataMap:
    """Rows of CVXPY's tensor, in our order, as a map of our parameter order."""
    picked = sp.csr_array(tensor)[rows]
    total = picked.shape[1] - 1
    columns = [np.arange(s.start, s.stop) for s in spans] + [np.array([total])]
    ordered = sp.csr_array(picked[:, np.concatenate(columns)])
    ordered.eliminate_zeros()
    touched = np.unique(ordered.indices)
    uses, at = [], 0
    for span in spans:
        size = span.stop - span.start
        uses.append(bool(np.any((touched >= at) & (touched < at + size))))
        at += size
    return DataMap(SparseMap(ordered), shape, tuple(uses))


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
        NotImplementedError: a cone or kind of variable that is not supported yet.
    """
    _validate(problem, parameters, variables, gp)
    backend = None if canon_backend == "diffcp" else canon_backend
    try:
        data, chain, inverse = problem.get_problem_data(
            solver=MLXCONE(), gp=gp, verbose=verbose, canon_backend=backend
        )
    except error.SolverError as refusal:
        raise NotImplementedError(
            f"the problem needs more than continuous variables and convex cones: {refusal}"
        ) from refusal
    program, dims = data[settings.PARAM_PROB], data["dims"]
    if program.dir_cones or program.lower_bounds is not None or program.upper_bounds is not None:
        raise NotImplementedError("CVXPY kept constraints apart from A; this release is not known")
    n, m = program.x.size, program.constr_size
    lowered = chain.compose_param_id_map()
    sources, picks, spans = [], [], []
    for position, parameter in enumerate(parameters):
        # In a geometric program one parameter may appear as itself (an exponent) and as its log.
        for name in dict.fromkeys([parameter.id, *lowered.get(parameter.id, [])]):
            start = program.param_id_to_col.get(name)
            if start is not None:
                sources.append(Source(position, gp and name != parameter.id))
                picks.append(_pick(parameter))
                spans.append(slice(start, start + picks[-1].index.size))
    # CVXPY: A_c x + b_c in K, entries by columns, b_c as column n. Here A = -A_c, b = b_c.
    by_rows = np.arange(m * n).reshape(n, m).T.ravel()
    moved = chain.compose_var_id_map()
    duals = _duals(problem, variables, chain, inverse, n, m)
    found = [
        duals.get(v.id) or _recovery(v, program.var_id_to_col[moved.get(v.id, [v.id])[0]])
        for v in variables
    ]
    P = None
    if program.P is not None and program.P.nnz:
        P = _data_map(program.P, np.arange(n * n), (n, n), spans)
    return Canonical(
        cones=MLXCONE.cones_of(dims),
        P=P,
        q=_data_map(program.q, np.arange(n), (n,), spans),
        A=_data_map(-program.A, by_rows, (m, n), spans),
        b=_data_map(program.A, n * m + np.arange(m), (m,), spans),
        picks=tuple(picks),
        variables=tuple(found),
        sources=tuple(sources),
        geometric=gp,
    )
