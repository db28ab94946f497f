"""Model-predictive control with learnable dynamics and costs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlxcone.backend.devices import on_cpu
from mlxcone.nn import checks
from mlxcone.program.problem import as_array
from mlxcone.solver import solve


class Plan(NamedTuple):
    """Controls ``(..., horizon, controls)``, and states ``(..., horizon, states)`` after them."""

    controls: mx.array
    states: mx.array


class LinearMPC(nn.Module):
    r"""Optimal controls of a linear system over a horizon, within limits.

    \[
    \text{minimize } \tfrac12 \sum_{t=1}^{T} (x_t - r)^T Q (x_t - r)
    + \tfrac12 \sum_{t=0}^{T-1} u_t^T R u_t \quad
    \text{subject to } x_{t+1} = A x_t + B u_t, \; |u_t| \le u_{max}
    \]

    Amos et al. 2018, arXiv 1810.13400, with linear dynamics and states eliminated, so that the
    program has the controls as its only variables. Q and R are diagonal. Parameters of the module:
    ``dynamics`` A, ``control`` B, and the logarithms ``state_cost`` and ``control_cost``.

    Args:
        states (int): entries of the state.
        controls (int): entries of the control.
        horizon (int): T, number of steps.
        limit (float): largest control, in absolute value.
        **settings: of the solver, see `mlxcone.Settings`.

    Raises:
        ValueError: sizes or the limit are not positive.
    """

    def __init__(
        self, states: int, controls: int, horizon: int, limit: float, **settings: Any
    ) -> None:
        super().__init__()
        n, m = checks.size("states", states), checks.size("controls", controls)
        self._horizon = checks.size("horizon", horizon)
        self._limit = checks.positive("limit", limit)
        self._settings = settings
        self.dynamics = mx.eye(n)
        self.control = 0.1 * mx.random.normal((n, m))
        self.state_cost = mx.zeros((n,))
        self.control_cost = mx.zeros((m,))

    def _response(self) -> tuple[mx.array, mx.array]:
        """Matrices F, G of x_1, ..., x_T = F x_0 + G (u_0, ..., u_T-1), float64."""
        A, B = self.dynamics.astype(mx.float64), self.control.astype(mx.float64)
        free, forced = [A], [B]
        for _ in range(self._horizon - 1):
            free.append(A @ free[-1])
            forced.append(A @ forced[-1])
        none = mx.zeros_like(B)
        rows = [
            mx.concatenate(forced[t::-1] + [none] * (self._horizon - 1 - t), axis=1)
            for t in range(self._horizon)
        ]
        return mx.concatenate(free), mx.concatenate(rows)

    def _program(self, state: mx.array, target: mx.array | None) -> tuple[mx.array, ...]:
        """P, q, A and b of the controls, float64: powers of A may grow beyond float32's digits."""
        n, m = self.control.shape
        T = self._horizon
        F, G = self._response()
        costs = (v.astype(mx.float64) for v in (self.state_cost, self.control_cost))
        # An exact exponential: MLX's has float32's digits in float64, too.
        Q, R = (mx.tile(mx.power(mx.array(math.e, dtype=mx.float64), v), T) for v in costs)
        P = G.T @ (Q[:, None] * G) + mx.diag(R)
        away = state.reshape(-1, n).astype(mx.float64) @ F.T
        if target is not None:
            wanted = mx.broadcast_to(target, state.shape).reshape(-1, n)
            away = away - mx.tile(wanted.astype(mx.float64), (1, T))
        eye = mx.eye(T * m, dtype=mx.float64)
        level = mx.full((2 * T * m,), self._limit, dtype=mx.float64)
        return 0.5 * (P + P.T), (Q * away) @ G, mx.concatenate([eye, -eye]), level

    @on_cpu
    def __call__(self, state: mx.array, target: mx.array | None = None) -> Plan:
        """Plan from states, towards a target.

        Args:
            state (mx.array): ``(..., states)``.
            target (mx.array): of that shape or ``(states,)``; None for zero.

        Returns:
            Plan: in the dtype of the state.

        Raises:
            ValueError: the shapes do not fit.
        """
        n, m = self.control.shape
        T = self._horizon
        state = as_array("state", state)
        target = None if target is None else as_array("target", target)
        for name, value in (("state", state), ("target", target)):
            if value is not None and value.shape not in (state.shape, (n,)):
                raise ValueError(f"{name}: expected shape {state.shape}, got {value.shape}")
        if state.ndim < 1 or state.shape[-1] != n:
            raise ValueError(f"state: expected shape (..., {n}), got {state.shape}")
        P, q, A, b = self._program(state, target)
        controls = solve(P, q, A, b, {"l": 2 * T * m}, **self._settings).x
        start = state.reshape(-1, n).astype(mx.float64)
        F, G = self._response()
        states = start @ F.T + controls @ G.T
        leading, dtype = state.shape[:-1], state.dtype
        return Plan(
            controls.reshape(*leading, T, m).astype(dtype),
            states.reshape(*leading, T, n).astype(dtype),
        )
