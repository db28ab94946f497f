"""One step of the operator splitting, in the verbs of the papers.

Douglas-Rachford splitting of the optimality conditions (Stellato et al. 2020, OSQP; Garstka et
al. 2021, COSMO; O'Donoghue 2021, SCS 3, without the homogenizing variable; docs/mathematics.md,
equation 4). The state is (x, w), w = s - y / rho, so that s = Pi_K(w) and y = rho (s - w) are
complementary by construction:

    x~ = x - (P + rho_x I + A'R A)^-1 (P x + q + A'R (A x - b + 2 s - w)),      s~ = b - A x~,
    x <- x + alpha (x~ - x),      w <- w + alpha (s~ - s),      R = diag(rho).

Solving for the step x~ - x, not for x~, keeps float32's rounding relative to the step: large terms
of the right-hand side cancel before they are multiplied (bench/splitting_choice.py).
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlxcone import anderson, lanes
from mlxcone.anderson import Memory
from mlxcone.cones.product import Product
from mlxcone.operators import row_times
from mlxcone.problem import Program, take_lanes
from mlxcone.settings import Settings
from mlxcone.splitting_factor import Explicit, Factor

# Equality rows are always active and weigh more. Rounding moves y by R ulp(b) in every step, so in
# float32 a larger factor (OSQP and SCS: 1e3) costs the digits that refinement starts from.
_EQUALITY_FACTOR = 10.0
_SEMIDEFINITE = 0.05  # of the scale: y is a matrix, whose norm grows with its order
_SMALL = 12.0  # largest n m / (n + m) for which a step is one product
_LEAST_SCALE, _MOST_SCALE = 1e-6, 1e4


class State(NamedTuple):
    """Iterate of every lane: x (B, n), w (B, m)."""

    x: mx.array
    w: mx.array


class Fused(NamedTuple):
    """A step of a small program with linear cones as one product.

    With u = 2 s - w for w, and x for x, both in one vector v = (x, w), (x~, s~) = u G + h:
    x~ = u (rho_x K ; -R A K) - K (q - A'R b),  s~ = b - A x~,  K = (P + rho_x I + A'R A)^-1.
    As (x, s) = (u + v) / 2, a step is v <- (1 - alpha / 2) v + u (alpha G - alpha / 2 I) + alpha h.
    ``product`` is that matrix, its rows of equalities, where u = -w, with the other sign;
    ``constant`` is alpha h; ``sign`` is -1 for inequalities, where u = |w|, and 1 elsewhere.
    """

    product: mx.array
    constant: mx.array
    sign: mx.array

    @classmethod
    def of(
        cls,
        program: Program,
        cones: Product,
        inverse: mx.array,
        weights: mx.array,
        rho_x: float,
        alpha: float,
    ) -> Fused:
        """From K, (n, n) or (B, n, n), and R, (1 or B, m)."""
        A, n = program.A, program.n
        shared = inverse.ndim == 2
        R = weights[0][:, None] if shared else weights[..., None]
        top = mx.concatenate([rho_x * inverse, -(R * (A.matrix @ inverse))], axis=-2)
        x = -row_times(program.q - A.transpose_times(weights * program.b), inverse)
        product = mx.concatenate([top, -(top @ A.transposed)], axis=-1)
        product = alpha * product - 0.5 * alpha * mx.eye(n + program.m, dtype=x.dtype)
        constant = alpha * mx.concatenate([x, program.b - A.times(x)], axis=1)
        k = cones.zero_rows
        signs = [[1.0] * n + [-1.0] * k + [1.0] * (program.m - k)]
        signs += [[1.0] * (n + k) + [-1.0] * (program.m - k)]
        rows, sign = (mx.array(v, dtype=x.dtype) for v in signs)
        return cls(rows[:, None] * product, constant, sign)

    @staticmethod
    def fits(program: Program, cones: Product) -> bool:
        """Whether one product is no more work than the step's own."""
        n, m = program.n, program.m
        return cones.polyhedral and m > 0 and n * m <= _SMALL * (n + m)

    def take(self, chosen: mx.array) -> Fused:
        """Some lanes."""
        product = take_lanes(self.product, chosen, 3)
        return self._replace(product=product, constant=self.constant[chosen])

    def put(self, chosen: mx.array, new: Fused) -> Fused:
        """With those of some lanes replaced."""
        product = lanes.put(self.product, chosen, new.product)
        return self._replace(
            product=product, constant=lanes.put(self.constant, chosen, new.constant)
        )

    def advance(self, state: State, alpha: float, steps: int) -> State:
        """``steps`` iterations."""
        flat, constant = _flat(state), self.constant
        alone = self.product.ndim == 3  # row vectors, each with a matrix of its own
        flat, constant = (v[:, None, :] if alone else v for v in (flat, constant))
        stays = 1.0 - 0.5 * alpha
        for _ in range(steps):
            u = mx.maximum(flat, self.sign * flat)
            flat = mx.addmm(constant + stays * flat, u, self.product)
        return _unflat(flat[:, 0] if alone else flat, state.x.shape[1])


class Operator(NamedTuple):
    """What one step needs.

    The program, (P + rho_x I + A'R A)^-1, R (B, m), alpha, and for small ones the step `Fused`.
    """

    program: Program
    factor: Factor
    weights: mx.array
    alpha: float
    fused: Fused | None = None

    def slack(self, x: mx.array) -> mx.array:
        """B - A x."""
        return self.program.b - self.program.A.times(x)

    def take(self, chosen: mx.array, program: Program) -> Operator:
        """Some lanes, of which ``program`` is the program."""
        return self._replace(
            program=program,
            factor=self.factor.take(chosen),
            weights=self.weights[chosen],
            fused=None if self.fused is None else self.fused.take(chosen),
        )

    def put(self, chosen: mx.array, new: Operator) -> Operator:
        """With some lanes, whose programs are the same, from another."""
        assert isinstance(self.factor, Explicit) and isinstance(new.factor, Explicit)
        fused = self.fused
        if fused is not None and new.fused is not None:
            fused = fused.put(chosen, new.fused)
        return self._replace(
            factor=self.factor.put(chosen, new.factor),
            weights=lanes.put(self.weights, chosen, new.weights),
            fused=fused,
        )


def unit_weights(cones: Product, dtype: mx.Dtype = mx.float64) -> mx.array:
    """R at scale 1, (m,)."""
    rows = mx.arange(cones.rows)
    return mx.where(rows < cones.zero_rows, _EQUALITY_FACTOR, 1.0).astype(dtype)


def first_scale(settings: Settings, cones: Product) -> float:
    """The weight of the constraints to begin with."""
    return settings.scale * (_SEMIDEFINITE if cones.semidefinite else 1.0)


def row_weights(scale: mx.array, cones: Product) -> mx.array:
    """R from the scale (B, 1) of each lane, (B, m)."""
    return scale * unit_weights(cones, scale.dtype)


def step(cones: Product, op: Operator, state: State, slack: mx.array) -> tuple[State, mx.array]:
    """One iteration, and b - A x after it, given that before it."""
    program = op.program
    s = cones.project(state.w)
    reflected = op.weights * (2.0 * s - state.w - slack)
    gradient = program.q + program.A.transpose_times(reflected)
    if program.P is not None:
        gradient = gradient + program.P_times(state.x)
    back = op.alpha * op.factor.times(gradient)
    gained = program.A.times(back)
    w = state.w + op.alpha * (slack - s) + gained
    return State(state.x - back, w), slack + gained


def split(cones: Product, weights: mx.array, state: State) -> tuple[mx.array, mx.array, mx.array]:
    """x, y and s of a state."""
    s = cones.project(state.w)
    return state.x, weights * (s - state.w), s


def join(weights: mx.array, x: mx.array, y: mx.array, s: mx.array) -> State:
    """The state that has these x, y and s."""
    return State(x, s - y / weights)


def _flat(state: State) -> mx.array:
    return mx.concatenate([state.x, state.w], axis=1)


def _unflat(point: mx.array, n: int) -> State:
    return State(point[:, :n], point[:, n:])


def advance(
    cones: Product, op: Operator, state: State, memory: Memory | None, steps: int, interval: int
) -> tuple[State, Memory | None]:
    """``steps`` iterations, with an accelerated point every ``interval`` if there is a memory."""
    if op.fused is not None and memory is None:
        return op.fused.advance(state, op.alpha, steps), memory
    slack = op.slack(state.x)
    while steps > 0:
        some = min(steps, interval)
        steps -= some
        if memory is not None and some > 1:
            state, slack, memory = _accelerated(cones, op, state, slack, memory)
            some -= 2
        if op.fused is not None:
            state = op.fused.advance(state, op.alpha, some)
            slack = op.slack(state.x) if steps else slack
            continue
        for _ in range(some):
            state, slack = step(cones, op, state, slack)
    return state, memory


def _accelerated(
    cones: Product, op: Operator, state: State, slack: mx.array, memory: Memory
) -> tuple[State, mx.array, Memory]:
    """Two iterations, the second from an accelerated point.

    That is safeguarded per lane: it stands only if the iteration moves no further from it than it
    moved before; else the plain iterate goes on and the memory is empty.
    """
    image, slack = step(cones, op, state, slack)
    point, plain = _flat(state), _flat(image)
    memory, candidate = anderson.accelerate(memory, point, plain)
    there = _unflat(candidate, op.program.n)
    tried, slack_there = step(cones, op, there, op.slack(there.x))
    trial = _flat(tried)
    before = mx.sum(mx.square(plain - point), axis=1, keepdims=True)
    after = mx.sum(mx.square(trial - candidate), axis=1, keepdims=True)
    good = after <= before  # False for NaN
    state = _unflat(mx.where(good, trial, plain), op.program.n)
    return state, mx.where(good, slack_there, slack), memory.forget(mx.logical_not(good))


def rebalanced(scale: mx.array, primal: mx.array, dual: mx.array) -> mx.array:
    """Scale that evens out the relative residuals (OSQP, section 5.2), all (B, 1)."""
    ratio = mx.sqrt(mx.maximum(primal, 1e-12) / mx.maximum(dual, 1e-12))
    return mx.clip(scale * ratio, _LEAST_SCALE, _MOST_SCALE)
