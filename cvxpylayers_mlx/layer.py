"""`CvxpyLayer`: a CVXPY problem as a layer of an MLX model."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx

import mlxcone
from cvxpylayers_mlx import parameters as parameter_vector
from cvxpylayers_mlx import recover
from cvxpylayers_mlx.affine import DataMap
from cvxpylayers_mlx.canonicalize import canonicalize
from cvxpylayers_mlx.foreign import Foreign
from cvxpylayers_mlx.native import Native
from mlxcone import on_cpu

if TYPE_CHECKING:
    import cvxpy as cp


class LayerSolution(NamedTuple):
    """What `CvxpyLayer.solve` returns.

    ``variables`` are what a call of the layer returns; ``info`` has the status, iterations,
    residuals and the objective (that of the problem as the user wrote it, differentiable like the
    variables), shape (B,) or (); ``canonical`` is the solution of the cone program, a warm start.
    """

    variables: tuple[mx.array, ...]
    info: mlxcone.Info
    canonical: mlxcone.Solution


def _options(solver_args: Any) -> Mapping[str, Any]:
    if solver_args is not None and not isinstance(solver_args, Mapping):
        kind = type(solver_args).__name__
        raise TypeError(f"solver_args: expected a dict of settings, got a value of type {kind}")
    return solver_args or {}


def _solver_name(solver: Any) -> str:
    """CVXPY's name of a solver, or of the object that is one."""
    name = getattr(solver() if isinstance(solver, type) else solver, "name", None)
    return str(name() if callable(name) else solver).upper()


class CvxpyLayer:
    r"""Solution map of a parametrized CVXPY problem, differentiable in its parameters.

    ```python
    layer = CvxpyLayer(problem, parameters=[A, b], variables=[x])
    (x_star,) = layer(A_values, b_values)
    ```

    Layers copy and pickle, hold nothing of CVXPY, and have no parameters for an optimizer to
    find: as an attribute of an ``mlx.nn.Module`` one is neither trained nor saved.

    Args:
        problem (cvxpy.Problem): DPP, with any convex cone of CVXPY; ``quad_form(x, P)`` with P a
            parameter may stand in the objective.
        parameters (list): all parameters of the problem, in the order of the calls.
        variables (list): the variables whose values a call returns; dual variables of its
            constraints (``constraint.dual_variables``) may be among them.
        solver: None, "MLXCONE" or `mlxcone.MLXCONE`; another solver of CVXPY (``cp.CLARABEL``, ...)
            makes it solve the problems of a batch one by one, with our derivatives at its
            answers. Meant for debugging: slow, and not for ``mx.vmap`` and ``mx.compile``.
        gp (bool): the problem is a geometric program (log-log convex).
        verbose (bool): print CVXPY's compilation and the solver's table.
        canon_backend (str): CVXPY's canonicalization backend; None or "diffcp" for automatic.
        solver_args (dict): defaults for `mlxcone.Settings` ("eps", "max_iters", ...).
            "on_failure" is "raise" by default; "nan" fills lanes without a solution.
            "warm_start" may be True, to begin where the last call ended, or a `LayerSolution`.
            For another solver: arguments of ``cvxpy.Problem.solve``, and "on_failure".

    Raises:
        AssertionError, ValueError: the problem is not DPP (one error that is both).
        ValueError: parameters, variables, solver or solver_args do not match.
        TypeError: solver_args is not a dict.
        NotImplementedError: the problem is not convex and continuous.
    """

    def __init__(
        self,
        problem: cp.Problem,
        parameters: list[cp.Parameter],
        variables: list[cp.Variable],
        solver: str | None = None,
        gp: bool = False,
        verbose: bool = False,
        canon_backend: str | None = None,
        solver_args: dict[str, Any] | None = None,
    ) -> None:
        options = {"verbose": bool(verbose), **_options(solver_args)}
        name = "MLXCONE" if solver is None else _solver_name(solver)
        form = self._canonical = canonicalize(
            problem, parameters, variables, gp=gp, verbose=verbose, canon_backend=canon_backend
        )
        native = name == "MLXCONE"
        self._solver = Native(form, options) if native else Foreign(form, name, options)
        self._names = [p.name() for p in parameters]
        self._shapes = [tuple(p.shape) for p in parameters]
        self._complex = [p.is_complex() for p in parameters]

    def __call__(
        self, *params: mx.array, solver_args: Mapping[str, Any] | None = None
    ) -> tuple[mx.array, ...]:
        """Solve for one tuple of parameters or a batch of them.

        Args:
            *params (mx.array): a value for each parameter, of its shape, or of that shape with a
                leading batch axis; those without one are shared by the batch. A problem fails if
                one of its parameters has not the sign it was declared with. Of a symmetric, PSD
                or diagonal parameter the symmetric part or the diagonal is used.
            solver_args (dict): settings that replace the layer's for this call.

        Returns:
            tuple: a value for each variable, with a leading batch axis if any parameter has one,
            in the dtype of the parameters.

        Raises:
            ValueError: number, shapes or batch sizes of the parameters, or a setting, do not fit.
            TypeError: a parameter is not a numeric array, or solver_args not a dict.
            mlxcone.SolverError: a problem of the batch has no solution (see "on_failure").
        """
        return self.solve(*params, solver_args=solver_args).variables

    def forward(
        self, *params: mx.array, solver_args: Mapping[str, Any] | None = None
    ) -> tuple[mx.array, ...]:
        """The same as calling the layer with these ``params`` and ``solver_args``."""
        return self(*params, solver_args=solver_args)

    @on_cpu
    def solve(
        self, *params: mx.array, solver_args: Mapping[str, Any] | None = None
    ) -> LayerSolution:
        """Call the layer and learn how the solve went, too.

        Args:
            *params (mx.array): as in a call.
            solver_args (dict): as in a call; with ``{"on_failure": "return"}`` or "nan",
                ``info.status`` tells which problems have a solution.

        Returns:
            LayerSolution: the variables, and status, objective and residuals of every problem.

        Raises:
            ValueError, TypeError, mlxcone.SolverError: as a call.
        """
        checked = parameter_vector.check(params, self._shapes, self._complex, self._names)
        form = self._canonical
        selected = parameter_vector.select(checked, form.picks)
        wrong = parameter_vector.wrong_sign(checked, form.signs)
        read = functools.partial(self._data, selected)
        # CVXPY took its sign for granted, so there is no problem to solve: the lane fails.
        try:
            found = self._solver(read, _options(solver_args), wrong)
        except mlxcone.SolverError as error:
            told = parameter_vector.faults(checked, form.signs, form.picks, self._names)
            raise mlxcone.SolverError(error.statuses, {**error.faults, **told}) from None
        # Nothing batched reached the data of a batched call: every lane has the same answer.
        x, y = (v if v.ndim == 2 else v[None] for v in (found.x, found.y))
        values = [recover.value(x, y, v, checked.dtype) for v in form.variables]
        info = found.info._replace(objective=self._objective(found, selected))
        if checked.batch is None:
            return mlxcone.evaluated(
                LayerSolution(tuple(mx.squeeze(v, 0) for v in values), info, found)
            )
        batch = checked.batch
        values = [mx.broadcast_to(v, (batch, *v.shape[1:])) for v in values]
        info = mlxcone.Info(*(mx.broadcast_to(v, (batch,)) for v in info))
        return mlxcone.evaluated(LayerSolution(tuple(values), info, found))

    def _objective(self, found: mlxcone.Solution, selected: parameter_vector.Checked) -> mx.array:
        form = self._canonical
        constant = self._data(selected, form.constant)
        value = form.sign * (found.info.objective + mx.squeeze(constant, -1))
        value = recover.exp(value) if form.logarithm else value
        return value.astype(selected.dtype)

    def _data(self, selected: parameter_vector.Checked, part: DataMap) -> mx.array:
        """The array of a map; with a batch axis only if it depends on a batched parameter."""
        constant = part.constant(mx.float64 if selected.dtype == mx.float64 else mx.float32)
        if constant is not None:
            return constant
        batched = any(u and b for u, b in zip(part.uses, selected.batched, strict=True))
        lanes = (selected.batch or 1) if batched else 1
        found = part(parameter_vector.flatten(selected, part.uses, lanes))
        return found if batched else mx.squeeze(found, 0)
