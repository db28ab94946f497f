"""CVXPY's own solvers as the forward pass, problem by problem on the CPU: for debugging."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np

import mlxcone
from cvxpylayers_mlx.canonicalize import Canonical
from cvxpylayers_mlx.program import Read, Whole, spoiled

_STATUS = {
    cp.OPTIMAL: mlxcone.Status.SOLVED,
    cp.OPTIMAL_INACCURATE: mlxcone.Status.SOLVED_INACCURATE,
    cp.INFEASIBLE: mlxcone.Status.INFEASIBLE,
    cp.INFEASIBLE_INACCURATE: mlxcone.Status.INFEASIBLE_INACCURATE,
    cp.UNBOUNDED: mlxcone.Status.UNBOUNDED,
    cp.UNBOUNDED_INACCURATE: mlxcone.Status.UNBOUNDED_INACCURATE,
    cp.USER_LIMIT: mlxcone.Status.INDETERMINATE,
}
# Whatever the other solver ended with is the point to differentiate at.
_AS_GIVEN = {"max_iters": 0, "refine": False, "eps": 1e30, "on_failure": "return"}


class Foreign:
    """A solver of CVXPY in the place of ours; the derivative at its answer is still ours.

    Args:
        form (Canonical): the program.
        name (str): CVXPY's name of the solver.
        options (dict): of ``cvxpy.Problem.solve``, and "on_failure".

    Raises:
        ValueError: CVXPY has no such solver here.
    """

    def __init__(self, form: Canonical, name: str, options: Mapping[str, Any]) -> None:
        if name not in cp.installed_solvers():
            known = ", ".join(["MLXCONE", *cp.installed_solvers()])
            raise ValueError(f"solver: {name!r} is not installed; there are {known}")
        self._program, self._name, self._options = Whole(form), name, dict(options)

    def __call__(
        self, read: Read, options: Mapping[str, Any], wrong: mx.array | None
    ) -> mlxcone.Solution:
        """Solve for the data that ``read`` gives; lanes that are ``wrong`` fail.

        Raises:
            RuntimeError: under ``mx.vmap`` or ``mx.compile``, where arrays cannot be read.
            mlxcone.SolverError: a problem has no solution, unless "on_failure" says otherwise.
            ValueError: the solver does not take such problems.
        """
        options = {**self._options, **options}
        on_failure = options.pop("on_failure", "raise")
        cones, data = self._program.cones, spoiled(self._program.read(read), wrong)[:4]
        arrays = [None if a is None else _read(a, self._name) for a in data]
        ranks = (2, 1, 2, 1)
        batched = [a is not None and a.ndim > rank for a, rank in zip(arrays, ranks, strict=True)]
        sizes = {len(a) for a, b in zip(arrays, batched, strict=True) if a is not None and b}
        answers = []
        for lane in range(sizes.pop() if sizes else 1):
            each = [
                a if a is None or not b else a[lane] for a, b in zip(arrays, batched, strict=True)
            ]
            answers.append(_solve(each, cones, self._name, options))
        failed = {lane: a[0] for lane, a in enumerate(answers) if a[0] <= 0}
        if failed and on_failure == "raise":
            gave_up = f"{self._name} gave up, or the data hold NaN or infinity"
            raise mlxcone.SolverError(failed, dict.fromkeys(failed, gave_up))
        status = np.array([int(a[0]) for a in answers], dtype=np.int32)
        point = [np.stack([a[i] for a in answers]) for i in (1, 2, 3)]
        if not any(batched):
            status, point = status[0], [v[0] for v in point]
        P, q, A, b = data
        found = mlxcone.solve(P, q, A, b, cones, warm_start=tuple(point), **_AS_GIVEN)
        code = mx.array(status)
        # A product, for the gradient of such a problem is NaN too.
        mark = mx.where(code > 0, 1.0, mx.nan)[..., None]
        x, y, s = (v * mark.astype(v.dtype) for v in found[:3])
        return mlxcone.Solution(x, y, s, found.info._replace(status=code))


def _read(array: mx.array, name: str) -> np.ndarray:
    try:
        return np.array(array, dtype=np.float64)
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(
            f"solver={name!r} works on numbers, which mx.vmap and mx.compile do not have; "
            "leave solver out, or batch the parameters"
        ) from error


def _solve(
    data: list[np.ndarray | None], cones: mlxcone.Cones, name: str, options: dict[str, Any]
) -> tuple[mlxcone.Status, np.ndarray, np.ndarray, np.ndarray]:
    """Status, x, y and s of one problem; NaN if it has no solution."""
    P, q, A, b = data
    assert q is not None and A is not None and b is not None
    none = np.full(q.size, np.nan), np.full(b.size, np.nan), np.full(b.size, np.nan)
    if not all(np.isfinite(part).all() for part in data if part is not None):
        return (mlxcone.Status.FAILED, *none)  # CVXPY would refuse the whole batch
    x = cp.Variable(q.size)
    s = b - A @ x
    objective = q @ x
    if P is not None:
        objective = objective + 0.5 * cp.quad_form(x, cp.psd_wrap(0.5 * (P + P.T)))
    parts = _constraints(s, cones)
    problem = cp.Problem(cp.Minimize(objective), [constraint for constraint, _ in parts])
    status = mlxcone.Status.FAILED
    try:
        problem.solve(solver=name, **options)
        status = _STATUS.get(problem.status, status)
    except cp.SolverError:
        # It gave up: FAILED, unless it was never asked.
        try:
            problem.get_problem_data(name)
        except cp.SolverError as error:
            raise ValueError(f"solver: {name} does not take this problem: {error}") from None
    if status <= 0 or x.value is None:
        return (status, *none)
    duals = [np.zeros(0), *(dual(constraint) for constraint, dual in parts)]
    return status, x.value, np.concatenate(duals), b - A @ x.value


def _constraints(s: Any, cones: mlxcone.Cones) -> list[tuple[Any, Any]]:
    """Constraints for s in K, by rows, and what reads y from each."""
    parts: list[tuple[Any, Any]] = []
    row = 0

    def take(count: int) -> Any:
        nonlocal row
        row += count
        return s[row - count : row]

    def stacked(constraint: Any) -> np.ndarray:
        values = [np.atleast_1d(d.value) for d in constraint.dual_variables]
        return np.stack(values, axis=-1).ravel()

    def joined(constraint: Any) -> np.ndarray:
        return np.concatenate([np.ravel(d.value, order="F") for d in constraint.dual_variables])

    if cones.zero:
        parts.append((take(cones.zero) == 0, lambda c: -np.atleast_1d(c.dual_value)))
    if cones.nonneg:
        parts.append((take(cones.nonneg) >= 0, joined))
    for size in cones.soc:
        rows = take(size)
        parts.append((cp.SOC(rows[0], rows[1:]) if size > 1 else rows >= 0, joined))
    for order in cones.psd:
        to_matrix = _to_matrix(order)
        rows = take(order * (order + 1) // 2)
        matrix = cp.reshape(to_matrix @ rows, (order, order), order="F")
        parts.append((matrix >> 0, lambda c, M=to_matrix: M.T @ c.dual_value.ravel(order="F")))
    if cones.exp:
        rows = take(3 * cones.exp)
        parts.append((cp.ExpCone(rows[::3], rows[1::3], rows[2::3]), stacked))
    if cones.power:
        rows = take(3 * len(cones.power))
        alpha = np.array(cones.power)
        parts.append((cp.PowCone3D(rows[::3], rows[1::3], rows[2::3], alpha), stacked))
    for alpha in cones.power_nd:
        rows, k = take(len(alpha) + 1), len(alpha)
        parts.append((cp.PowConeND(rows[:k], rows[k], np.array(alpha)), joined))
    assert row == cones.rows, "CVXPY's problems have no box and no dual exponential cones"
    return parts


def _to_matrix(order: int) -> np.ndarray:
    """From scaled lower triangles, column by column, to whole matrices."""
    out = np.zeros((order * order, order * (order + 1) // 2))
    lower = [(i, j) for j in range(order) for i in range(j, order)]
    for k, (i, j) in enumerate(lower):
        out[[i + j * order, j + i * order], k] = 1.0 if i == j else math.sqrt(0.5)
    return out
