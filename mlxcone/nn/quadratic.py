"""The quadratic program of OptNet, with every matrix learnable."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxcone.backend.devices import on_cpu
from mlxcone.nn import checks
from mlxcone.program.problem import as_array
from mlxcone.solver import solve


class QuadraticProgram(nn.Module):
    r"""A layer whose output minimizes a learnable quadratic over a learnable polyhedron.

    \[
    \text{minimize } \tfrac12 z^T (L L^T + \epsilon I) z + p^T z \quad
    \text{subject to } A z = A z_0, \; G z \le G z_0 + s_0, \; s_0 > 0
    \]

    Amos and Kolter 2017, arXiv 1703.00443, equations 2 and section 4: the right-hand sides keep z0
    feasible whatever is learned. Parameters of the module: L (``factor``), G (``inequality``), A
    (``equality``, if there are any), ``interior`` z0 and the logarithm of ``slack`` s0.

    Args:
        size (int): entries of z and of the input p.
        inequalities (int): rows of G.
        equalities (int): rows of A, fewer than ``size``.
        curvature (float): epsilon, least curvature of the objective.
        **settings: of the solver, see `mlxcone.Settings`.

    Raises:
        ValueError: sizes do not fit.
    """

    def __init__(
        self,
        size: int,
        inequalities: int,
        equalities: int = 0,
        curvature: float = 1e-2,
        **settings: Any,
    ) -> None:
        super().__init__()
        n, m = checks.size("size", size), checks.size("inequalities", inequalities)
        if not 0 <= equalities < n:
            raise ValueError(f"equalities: expected 0 to {n - 1}, got {equalities!r}")
        self._curvature, self._settings = curvature, settings
        scale = n**-0.5
        self.factor = mx.tril(mx.random.uniform(-scale, scale, (n, n))) + mx.eye(n)
        self.inequality = mx.random.uniform(-scale, scale, (m, n))
        if equalities:
            self.equality = mx.random.uniform(-scale, scale, (equalities, n))
        self.interior = mx.zeros((n,))
        self.slack = mx.zeros((m,))

    @on_cpu
    def __call__(self, p: mx.array) -> mx.array:
        """The minimizers for p ``(..., size)``, of its shape.

        Raises:
            ValueError: the last axis has another size.
        """
        n, p = self.interior.size, as_array("p", p)
        if p.ndim < 1 or p.shape[-1] != n:
            raise ValueError(f"p: expected shape (..., {n}), got {p.shape}")
        L, G = mx.tril(self.factor), self.inequality
        P = L @ L.T + self._curvature * mx.eye(n, dtype=L.dtype)
        A, level = G, G @ self.interior + mx.exp(self.slack)
        equalities = 0
        if "equality" in self:
            equalities = self.equality.shape[0]
            A = mx.concatenate([self.equality, G])
            level = mx.concatenate([self.equality @ self.interior, level])
        cones = {"z": equalities, "l": G.shape[0]}
        found = solve(P, p.reshape(-1, n), A, level, cones, **self._settings)
        return found.x.reshape(p.shape)
