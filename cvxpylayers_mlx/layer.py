"""`CvxpyLayer`: a CVXPY problem as a layer of an MLX model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import mlx.core as mx

import mlxcone
from cvxpylayers_mlx import parameters as parameter_vector
from cvxpylayers_mlx import recover
from cvxpylayers_mlx.canonicalize import DataMap, canonicalize

if TYPE_CHECKING:
    import cvxpy as cp


class CvxpyLayer:
    r"""Solution map of a parametrized CVXPY problem, differentiable in its parameters.

    .. code-block:: python

        layer = CvxpyLayer(problem, parameters=[A, b], variables=[x])
        (x_star,) = layer(A_values, b_values)

    Args:
        problem (cvxpy.Problem): DPP; linear, quadratic or second-order cone.
        parameters (list): all parameters of the problem, in the order of the calls.
        variables (list): the variables whose values a call returns; dual variables of its
            constraints (``constraint.dual_variables``) may be among them.
        solver: None or "MLXCONE".
        gp (bool): the problem is a geometric program (log-log convex).
        verbose (bool): print CVXPY's compilation and the solver's table.
        canon_backend (str): CVXPY's canonicalization backend; None or "diffcp" for automatic.
        solver_args (dict): defaults for `mlxcone.Settings` ("eps", "max_iters", ...).
            "on_failure" is "raise" by default; "nan" fills lanes without a solution.

    Raises:
        AssertionError, ValueError: the problem is not DPP (one error that is both).
        ValueError: parameters, variables, solver or solver_args do not match.
        NotImplementedError: a feature that this release does not have.
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
        if solver is not None and str(solver).upper() != "MLXCONE":
            raise NotImplementedError(
                f"solver={solver!r}: only None and 'MLXCONE' are supported yet"
            )
        defaults: dict[str, Any] = {"on_failure": "raise", "verbose": verbose}
        self._settings = mlxcone.Settings().override({**defaults, **(solver_args or {})})
        self._canonical = canonicalize(
            problem, parameters, variables, gp=gp, verbose=verbose, canon_backend=canon_backend
        )
        self._shapes = [tuple(p.shape) for p in parameters]
        self._complex = [p.is_complex() for p in parameters]

    def __call__(
        self, *params: mx.array, solver_args: Mapping[str, Any] | None = None
    ) -> tuple[mx.array, ...]:
        """Solve for one tuple of parameters or a batch of them.

        Args:
            *params (mx.array): a value for each parameter, of its shape, or of that shape with a
                leading batch axis; those without one are shared by the batch.
            solver_args (dict): settings that replace the layer's for this call.

        Returns:
            tuple: a value for each variable, with a leading batch axis if any parameter has one,
            in the dtype of the parameters.

        Raises:
            ValueError: number, shapes or batch sizes of the parameters do not fit.
            mlxcone.SolverError: a problem of the batch has no solution (see "on_failure").
        """
        settings = self._settings.override(solver_args or {})
        checked = parameter_vector.check(params, self._shapes, self._complex)
        form = self._canonical
        selected = parameter_vector.select(checked, form.picks)
        P, q, A, b = (self._data(part, selected) for part in (form.P, form.q, form.A, form.b))
        solution = mlxcone.solve(P, q, A, b, form.cones, settings=settings)
        # Nothing batched reached the data of a batched call: every lane has the same answer.
        x, y = (v if v.ndim == 2 else v[None] for v in (solution.x, solution.y))
        found = [recover.value(x, y, v, checked.dtype) for v in form.variables]
        if checked.batch is None:
            return tuple(v[0] for v in found)
        return tuple(mx.broadcast_to(v, (checked.batch, *v.shape[1:])) for v in found)

    def forward(
        self, *params: mx.array, solver_args: Mapping[str, Any] | None = None
    ) -> tuple[mx.array, ...]:
        """The same as calling the layer."""
        return self(*params, solver_args=solver_args)

    def _data(self, part: DataMap | None, selected: parameter_vector.Checked) -> mx.array | None:
        """One of P, q, A, b; with a batch axis only if it depends on a batched parameter."""
        if part is None:
            return None
        batched = any(u and b for u, b in zip(part.uses, selected.batched, strict=True))
        lanes = (selected.batch or 1) if batched else 1
        picks = self._canonical.picks
        flat = part.linear(parameter_vector.flatten(selected, picks, part.uses, lanes))
        return flat.reshape(lanes, *part.shape) if batched else flat.reshape(part.shape)
