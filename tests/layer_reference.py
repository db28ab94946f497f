"""Reference solutions and gradients of small parametrized convex problems, in NumPy.

Clarabel solves the program that CVXPY makes of a problem; a dense Newton method on the optimality
conditions then removes what an interior-point method leaves, so that values are right to about
1e-14. Derivatives are central differences of such values: they use no implicit differentiation.
Power cones of more than three dimensions are written with those of three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import cvxpy as cp
import numpy as np
from cvxpy.constraints.power import PowConeND
from cvxpy.reductions.solution import Solution
from cvxpy.reductions.solvers.conic_solvers.clarabel_conif import CLARABEL
from reference_cones import Cones

Array = np.ndarray
ProblemTuple = tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]

DEFAULT_STEP = 1e-4
"""Step of the difference quotients, relative to the largest entry of a parameter."""

_RESIDUAL_TOLERANCE = 1e-12
_RANK_TOLERANCE = 1e-10
_LEVELS = (1, -1, 2, -2, 4, -4)
# Fourth-order central differences with step h and with step 2h over the levels above.
_FINE = np.array([8, -8, -1, 1, 0, 0]) / 12.0
_COARSE = np.array([0, 0, 8, -8, -1, 1]) / 24.0
_CHUNK = 192
_CLARABEL_LOOSENING = (1e-12, 1e-10, 1e-8)


class ReferenceError(RuntimeError):
    """No solution could be certified to the accuracy that a reference needs."""


class Derivative(NamedTuple):
    """Derivative values, and the relative difference between two step sizes."""

    values: list[Array]
    error: float


class Regularity(NamedTuple):
    """How far a point is from the places where the solution map is not smooth.

    Attributes:
        kink: Smallest change of one parameter entry, relative to the largest entry of its
            parameter, at which (to first order) the set of active constraints changes.
        sensitivity: Largest relative change of the solution per relative change of an entry;
            infinite where the solution is not unique.
        condition: Condition number of the Jacobian of the optimality conditions, leaving out
            its null space.
        nullity: Dimension of that null space.
        size: Largest entry of the solution.
    """

    kink: float
    sensitivity: float
    condition: float
    nullity: int
    size: float


class _Data(NamedTuple):
    """Minimize 1/2 x'Px + q'x subject to Ax + s = b, s in K; leading axes are batch axes."""

    P: Array
    q: Array
    A: Array
    b: Array


class _Point(NamedTuple):
    """Primal x, and z = y - s from which the dual y and the slack s follow by projection."""

    x: Array
    z: Array


def _residual(data: _Data, cones: Cones, point: _Point) -> Array:
    """Optimality residual; zero exactly at a primal and dual solution."""
    y = cones.project(point.z)
    dual = np.einsum("...ij,...j->...i", data.P, point.x) + data.q
    dual = dual + np.einsum("...ji,...j->...i", data.A, y)
    primal = np.einsum("...ij,...j->...i", data.A, point.x) + y - point.z - data.b
    return np.concatenate([dual, primal], axis=-1)


def _jacobian(data: _Data, cones: Cones, point: _Point) -> Array:
    """Jacobian of the residual at one point."""
    D = cones.derivative(point.z)
    return np.block([[data.P, data.A.T @ D], [data.A, D - np.eye(point.z.size)]])


def _scale(data: _Data, point: _Point) -> Array:
    """Magnitude against which a residual counts as rounding error."""
    largest = 1.0 + np.abs(data.q).max(-1, initial=0.0) + np.abs(data.b).max(-1, initial=0.0)
    return largest + np.abs(point.x).max(-1, initial=0.0) + np.abs(point.z).max(-1, initial=0.0)


def _newton(data: _Data, cones: Cones, point: _Point, iterations: int = 25) -> _Point:
    """Run Newton's method from a point, keeping the best iterate."""
    n = point.x.size
    best, best_norm, stalled = point, np.inf, 0
    for _ in range(iterations):
        residual = _residual(data, cones, point)
        norm = float(np.abs(residual).max())
        stalled = 0 if norm < 0.5 * best_norm else stalled + 1
        if norm < best_norm:
            best, best_norm = point, norm
        if norm == 0.0 or stalled >= 3:
            break
        step = np.linalg.lstsq(_jacobian(data, cones, point), -residual, rcond=_RANK_TOLERANCE)[0]
        point = _Point(point.x + step[:n], point.z + step[n:])
    return best


class _Clarabel(CLARABEL):
    """Clarabel without its power cones of many dimensions."""

    SUPPORTED_CONSTRAINTS = [c for c in CLARABEL.SUPPORTED_CONSTRAINTS if c is not PowConeND]  # noqa: RUF012

    def name(self) -> str:
        return "CLARABEL_3D"


class _Canonical:
    """The cone program of one CVXPY problem as an affine function of its parameter entries."""

    def __init__(self, problem_tuple: ProblemTuple) -> None:
        problem, self.parameters, self.variables = problem_tuple
        self._problem = ref(problem)
        self._chain: Any = None
        self.shapes = [tuple(p.shape) for p in self.parameters]
        self.sizes = [int(np.prod(shape, dtype=int)) for shape in self.shapes]
        self.symmetric = [is_symmetric_parameter(p) for p in self.parameters]
        base = self._origin()
        self._assign(base)
        data, self._chain, self._inverse = problem.get_problem_data(_Clarabel())
        self._program = data["param_prob"]
        self.cones = Cones(data["dims"])
        origin = self._read()
        slopes = [self._slope(base, origin, i) for i in range(sum(self.sizes))]
        self._slopes = _Data(*(np.array(parts) for parts in zip(*slopes, strict=True)))
        flat = np.concatenate([value.ravel() for value in base])
        self._offset = _Data(
            *(o - np.tensordot(flat, s, 1) for o, s in zip(origin, self._slopes, strict=True))
        )
        self._recover, self._recover_offset = self._recovery(origin.q.size)

    def is_for(self, parameters: Sequence[cp.Parameter], variables: Sequence[cp.Variable]) -> bool:
        """Whether parameters and variables are the ones this was made for, in their order."""
        mine, theirs = [*self.parameters, *self.variables], [*parameters, *variables]
        return [leaf.id for leaf in mine] == [leaf.id for leaf in theirs]

    def _origin(self) -> list[Array]:
        """Parameter values that respect sign attributes and round nothing."""
        return [
            np.full(shape, 1.0 if p.is_nonneg() else -1.0 if p.is_nonpos() else 0.0)
            for p, shape in zip(self.parameters, self.shapes, strict=True)
        ]

    def _assign(self, params: Sequence[Array]) -> None:
        for parameter, value in zip(self.parameters, params, strict=True):
            parameter.value = value
        for reduction in self._chain.reductions if self._chain is not None else ():
            reduction.update_parameters(self._problem())

    def _read(self) -> _Data:
        """Cone program at the current parameter values, through CVXPY."""
        data, _ = self._chain.solver.apply(self._program)
        n = data["c"].size
        P = data["P"].toarray() if data.get("P") is not None else np.zeros((n, n))
        # Clarabel is handed an upper triangle: what lies below the diagonal does not matter.
        P = np.triu(P) + np.triu(P, 1).T
        return _Data(P, data["c"].copy(), data["A"].toarray(), data["b"].copy())

    def _slope(self, base: list[Array], origin: _Data, index: int) -> _Data:
        """Change of the cone program per unit of one parameter entry."""
        unit = np.zeros(sum(self.sizes))
        sign = -1.0 if self.parameters[self._owner(index)].is_nonpos() else 1.0
        unit[index] = sign
        moved = [v + d for v, d in zip(base, self.symmetrize(self.split(unit)), strict=True)]
        self._assign(moved)
        return _Data(*(sign * (new - old) for new, old in zip(self._read(), origin, strict=True)))

    def _owner(self, index: int) -> int:
        return int(np.searchsorted(np.cumsum(self.sizes), index, side="right"))

    def _recovery(self, n: int) -> tuple[Array, Array]:
        """Affine map from the canonical x to the concatenated variable values."""
        offset = self._invert(np.zeros(n))
        columns = [self._invert(unit) - offset for unit in np.eye(n)]
        return np.array(columns).T, offset

    def _invert(self, x: Array) -> Array:
        solution = Solution(cp.OPTIMAL, 0.0, {self._program.x.id: x}, {}, {})
        steps = list(zip(self._chain.reductions, self._inverse, strict=True))[:-1]
        for reduction, inverse in reversed(steps):
            solution = reduction.invert(solution, inverse)
        values = [np.asarray(solution.primal_vars[v.id], float).ravel() for v in self.variables]
        return np.concatenate(values)

    def split(self, flat: Array) -> list[Array]:
        """Cut a vector over all parameter entries into arrays of the parameters' shapes."""
        cuts = np.split(flat, np.cumsum(self.sizes)[:-1])
        return [cut.reshape(shape) for cut, shape in zip(cuts, self.shapes, strict=True)]

    def symmetrize(self, arrays: Sequence[Array]) -> list[Array]:
        """Project the arrays of symmetric parameters onto the symmetric matrices."""
        return [
            0.5 * (a + a.T) if symmetric else np.asarray(a)
            for a, symmetric in zip(arrays, self.symmetric, strict=True)
        ]

    def flatten(self, params: Sequence[Array]) -> Array:
        """Concatenate parameter values, checking their shapes."""
        arrays = [np.asarray(value, dtype=np.float64) for value in params]
        if [a.shape for a in arrays] != self.shapes:
            raise ValueError(f"expected shapes {self.shapes}, got {[a.shape for a in arrays]}")
        return np.concatenate([a.ravel() for a in self.symmetrize(arrays)])

    def data(self, flat: Array) -> _Data:
        """Cone program at one vector or at rows of vectors of parameter entries."""
        pairs = zip(self._slopes, self._offset, strict=True)
        return _Data(*(np.tensordot(flat, slope, 1) + offset for slope, offset in pairs))

    def values(self, x: Array) -> Array:
        """Concatenated variable values (row-major) for rows of canonical x."""
        return self.linear_values(x) + self._recover_offset

    def linear_values(self, x: Array) -> Array:
        """Change of the variable values for rows of changes of canonical x."""
        return x @ self._recover.T

    def split_values(self, flat: Array) -> list[Array]:
        """Cut concatenated variable values into arrays of the variables' shapes."""
        cuts = np.split(flat, np.cumsum([v.size for v in self.variables])[:-1])
        return [
            cut.reshape(v.shape, order="C") for cut, v in zip(cuts, self.variables, strict=True)
        ]

    def clarabel(self, params: Sequence[Array]) -> _Point:
        """Solve through CVXPY and Clarabel, as tightly as Clarabel manages."""
        self._assign(params)
        data, _ = self._chain.solver.apply(self._program)
        raw = None
        for tolerance in _CLARABEL_LOOSENING:
            options = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), tolerance)
            raw = self._chain.solver.solve_via_data(data, False, False, options)
            if str(raw.status) == "Solved":
                break
            if "Infeasible" in str(raw.status):
                raise ReferenceError(f"Clarabel: {raw.status}")
        assert raw is not None
        return _Point(np.array(raw.x), np.array(raw.z) - np.array(raw.s))

    def solve(self, params: Sequence[Array]) -> tuple[_Data, _Point]:
        """Certified solution at one parameter value."""
        flat = self.flatten(params)
        data, rough = self.data(flat), self.clarabel(self.symmetrize(params))
        point = _newton(data, self.cones, rough)
        worst = float(np.abs(_residual(data, self.cones, point)).max())
        if not worst <= _RESIDUAL_TOLERANCE * _scale(data, point):
            raise ReferenceError(f"optimality residual {worst:.1e} after polishing")
        moved = np.abs(self.values(point.x) - self.values(rough.x)).max()
        if moved > 1e-4 * (1.0 + np.abs(self.values(point.x)).max()):
            raise ReferenceError(f"polishing moved Clarabel's solution by {moved:.1e}")
        return data, point

    def continue_from(self, data: _Data, point: _Point, flats: Array) -> Array:
        """Variable values at rows of parameter entries close to those of a known solution."""
        inverse = np.linalg.pinv(_jacobian(data, self.cones, point), rcond=_RANK_TOLERANCE)
        chunks = [flats[i : i + _CHUNK] for i in range(0, len(flats), _CHUNK)]
        return np.concatenate([self._continue_chunk(point, inverse, rows) for rows in chunks])

    def _continue_chunk(self, start: _Point, inverse: Array, rows: Array) -> Array:
        """Newton's method with one factor for all rows; each row is certified at the end."""
        data, n = self.data(rows), start.x.size
        point = _Point(np.tile(start.x, (len(rows), 1)), np.tile(start.z, (len(rows), 1)))
        for _ in range(8):
            step = -_residual(data, self.cones, point) @ inverse.T
            point = _Point(point.x + step[:, :n], point.z + step[:, n:])
        worst = np.abs(_residual(data, self.cones, point)).max(-1)
        values = self.values(point.x)
        for i in np.flatnonzero(~(worst <= 1e-2 * _RESIDUAL_TOLERANCE * _scale(data, point))):
            values[i] = self._continue_one(_Data(*(d[i] for d in data)), start, rows[i])
        return values

    def _continue_one(self, data: _Data, start: _Point, flat: Array) -> Array:
        """Full Newton steps, and Clarabel again where those do not arrive."""
        point = _newton(data, self.cones, start)
        worst = float(np.abs(_residual(data, self.cones, point)).max())
        if not worst <= _RESIDUAL_TOLERANCE * _scale(data, point):
            _, point = self.solve(self.split(flat))
        return self.values(point.x)

    def parameter_scales(self, flat: Array) -> Array:
        """Largest entry of the parameter to which each entry belongs."""
        largest = [max(float(np.abs(a).max(initial=0.0)), 1e-2) for a in self.split(flat)]
        return np.repeat(largest, self.sizes)

    def tangents(self, data: _Data, point: _Point) -> Array:
        """Derivative of (x, z) with respect to every parameter entry, one column each."""
        slopes, y = self._slopes, self.cones.project(point.z)
        dual = slopes.P @ point.x + np.einsum("pji,j->pi", slopes.A, y) + slopes.q
        primal = slopes.A @ point.x - slopes.b
        right = -np.concatenate([dual, primal], axis=1).T
        return np.linalg.lstsq(_jacobian(data, self.cones, point), right, rcond=_RANK_TOLERANCE)[0]


_CANONICAL: WeakKeyDictionary[cp.Problem, _Canonical] = WeakKeyDictionary()


def _canonical(problem_tuple: ProblemTuple) -> _Canonical:
    """The cone program of a problem, made once."""
    problem, parameters, variables = problem_tuple
    known = _CANONICAL.get(problem)
    if known is None or not known.is_for(parameters, variables):
        known = _CANONICAL[problem] = _Canonical(problem_tuple)
    return known


def is_symmetric_parameter(parameter: cp.Parameter) -> bool:
    """Whether only the symmetric part of a gradient with respect to a parameter is defined."""
    return any(parameter.attributes.get(name) for name in ("symmetric", "PSD", "NSD"))


def solve(problem_tuple: ProblemTuple, params: Sequence[Array]) -> list[Array]:
    """Solve one problem to about 1e-14.

    Args:
        problem_tuple: Problem, its parameters, and the variables to return.
        params: One float64 array per parameter.

    Returns:
        One array per variable.

    Raises:
        ReferenceError: If no solution with an optimality residual near rounding was found.
    """
    canonical = _canonical(problem_tuple)
    _, point = canonical.solve(params)
    return canonical.split_values(canonical.values(point.x))


def solve_clarabel(problem_tuple: ProblemTuple, params: Sequence[Array]) -> list[Array]:
    """Solve one problem by `Problem.solve` and Clarabel alone, as a check on `solve`."""
    problem, parameters, variables = problem_tuple
    for parameter, value in zip(parameters, params, strict=True):
        parameter.value = value
    options = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-11)
    problem.solve(solver=cp.CLARABEL, **options)
    return [np.asarray(variable.value) for variable in variables]


def _differences(canonical: _Canonical, params: Sequence[Array], steps: Array) -> list[Array]:
    """Fine and coarse differences of all values, one row per row of steps."""
    flat = canonical.flatten(params)
    data, point = canonical.solve(params)
    offsets = np.multiply.outer(np.array(_LEVELS, float), steps).reshape(-1, flat.size)
    values = canonical.continue_from(data, point, flat + offsets)
    values = values.reshape(len(_LEVELS), len(steps), -1)
    return [np.tensordot(weights, values, 1) for weights in (_FINE, _COARSE)]


def _relative(fine: Array, coarse: Array) -> float:
    """Largest difference over the largest entry; zero derivatives count as exact."""
    largest = float(np.abs(fine).max(initial=0.0))
    return float(np.abs(fine - coarse).max(initial=0.0)) / max(largest, 1e-12)


def directional_derivative(
    problem_tuple: ProblemTuple,
    params: Sequence[Array],
    direction: Sequence[Array],
    step: float = DEFAULT_STEP,
) -> Derivative:
    """Derivative of every variable along one direction of parameter space.

    Args:
        problem_tuple: Problem, its parameters, and the variables to differentiate.
        params: One float64 array per parameter.
        direction: One array per parameter; the symmetric part counts for symmetric parameters.
        step: Multiple of the direction by which the parameters are moved.

    Returns:
        One array per variable, and the relative difference between steps `step` and `2 step`.
        That difference is far from rounding only where the solution is not smooth.
    """
    canonical = _canonical(problem_tuple)
    move = step * canonical.flatten(direction)
    fine, coarse = (d[0] / step for d in _differences(canonical, params, move[None]))
    return Derivative(canonical.split_values(fine), _relative(fine, coarse))


def gradient(
    problem_tuple: ProblemTuple,
    params: Sequence[Array],
    cotangents: Sequence[Array],
    step: float = DEFAULT_STEP,
) -> Derivative:
    """Gradient of the inner product of the variables with cotangents.

    Args:
        problem_tuple: Problem, its parameters, and the variables to differentiate.
        params: One float64 array per parameter.
        cotangents: One array per variable.
        step: Difference step relative to the largest entry of each parameter.

    Returns:
        One array per parameter (symmetric for a symmetric parameter), and the relative
        difference between steps `step` and `2 step`.
    """
    canonical = _canonical(problem_tuple)
    weights = np.concatenate([np.asarray(c, np.float64).ravel() for c in cotangents])
    sizes = step * canonical.parameter_scales(canonical.flatten(params))
    moves = np.array([_entry_move(canonical, i, size) for i, size in enumerate(sizes)])
    fine, coarse = (d @ weights / sizes for d in _differences(canonical, params, moves))
    return Derivative(canonical.split(fine), _relative(fine, coarse))


def _entry_move(canonical: _Canonical, index: int, size: float) -> Array:
    """Move of one entry, and of its mirror image in a symmetric parameter."""
    unit = np.zeros(sum(canonical.sizes))
    unit[index] = size
    return canonical.flatten(canonical.split(unit))


def regularity(problem_tuple: ProblemTuple, params: Sequence[Array]) -> Regularity:
    """How smooth the solution map is around one parameter value.

    Args:
        problem_tuple: Problem, its parameters, and its variables.
        params: One float64 array per parameter.
    """
    canonical = _canonical(problem_tuple)
    data, point = canonical.solve(params)
    n = point.x.size
    scales = canonical.parameter_scales(canonical.flatten(params))
    tangents = canonical.tangents(data, point) * scales
    values, gradients = canonical.cones.kinks(point.z)
    speeds = np.abs(gradients @ tangents[n:]).max(1, initial=0.0)
    kink = float((np.abs(values) / np.maximum(speeds, 1e-12)).min(initial=np.inf))
    _, spectrum, rows = np.linalg.svd(_jacobian(data, canonical.cones, point))
    rank = int(np.sum(spectrum > _RANK_TOLERANCE * spectrum[0]))
    size = float(np.abs(canonical.values(point.x)).max())
    moved = np.abs(canonical.linear_values(tangents[:n].T)).max(initial=0.0)
    free = np.abs(canonical.linear_values(rows[rank:, :n])).max(initial=0.0)
    sensitivity = np.inf if free > 1e-8 else float(moved) / max(size, 1e-3)
    condition = float(spectrum[0] / spectrum[rank - 1])
    return Regularity(kink, sensitivity, condition, spectrum.size - rank, size)
