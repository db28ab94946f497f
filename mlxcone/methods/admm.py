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

from mlxcone.backend import lanes
from mlxcone.cones.product import Product
from mlxcone.kkt.splitting_factor import Explicit, Factor
from mlxcone.methods import anderson
from mlxcone.methods.anderson import Memory
from mlxcone.program.operators import row_times
from mlxcone.program.problem import Program, take_lanes
from mlxcone.settings import Settings

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
    """Steps of a small program with linear cones as one product each.

    With K = (P + rho_x I + A'R A)^-1 and x_0 the x to begin with, x~ = x^ - K A'R u where
    x^ = rho_x K x_0 - K (q - A'R b) and u = 2 s - w, and s~ = b - A x~. As s = (u + w) / 2, a step
    is w <- (1 - alpha / 2) w + u (alpha R A K A' - alpha / 2 I) + alpha (b - A x^): x is what w
    makes it, and the proximal term stays at x_0 for as many steps as are made at once.
    ``product`` is that matrix and ``turn`` is -R A K, their rows of equalities, where u = -w, with
    the other sign; ``sign`` is -1 for inequalities, where u = |w|, and 1 elsewhere; ``pull`` is
    rho_x K, and ``centre`` x^ where x_0 is 0.
    """

    product: mx.array
    turn: mx.array
    sign: mx.array
    pull: mx.array
    centre: mx.array

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
        A, k = program.A, cones.zero_rows
        shared = inverse.ndim == 2
        R = weights[0][:, None] if shared else weights[..., None]
        turn = -(R * (A.matrix @ inverse))
        eye = mx.eye(program.m, dtype=turn.dtype)
        product = -alpha * (turn @ A.transposed) - 0.5 * alpha * eye
        centre = row_times(A.transpose_times(weights * program.b) - program.q, inverse)
        equality = mx.arange(program.m) < k
        rows = mx.where(equality, -1.0, 1.0).astype(turn.dtype)[:, None]
        return cls(rows * product, rows * turn, -rows[:, 0], rho_x * inverse, centre)

    @staticmethod
    def fits(program: Program, cones: Product) -> bool:
        """Whether one product is no more work than the step's own."""
        n, m = program.n, program.m
        return cones.polyhedral and m > 0 and n * m <= _SMALL * (n + m)

    def take(self, chosen: mx.array) -> Fused:
        """Some lanes."""
        product, turn, pull = (take_lanes(a, chosen, 3) for a in self._matrices)
        return Fused(product, turn, self.sign, pull, self.centre[chosen])

    def put(self, chosen: mx.array, new: Fused) -> Fused:
        """With those of some lanes replaced."""
        old = zip((*self._matrices, self.centre), (*new._matrices, new.centre), strict=True)
        product, turn, pull, centre = (lanes.put(a, chosen, b) for a, b in old)
        return Fused(product, turn, self.sign, pull, centre)

    @property
    def _matrices(self) -> tuple[mx.array, mx.array, mx.array]:
        return self.product, self.turn, self.pull

    def advance(self, program: Program, state: State, alpha: float, steps: int) -> State:
        """``steps`` iterations."""
        start = self.centre + row_times(state.x, self.pull)
        w, constant = state.w, alpha * (program.b - program.A.times(start))
        alone = self.product.ndim == 3  # row vectors, each with a matrix of its own
        w, constant = (v[:, None, :] if alone else v for v in (w, constant))
        stays = 1.0 - 0.5 * alpha
        for _ in range(steps):
            u = mx.maximum(w, self.sign * w)
            w = mx.addmm(constant + stays * w, u, self.product)
        w = w[:, 0] if alone else w
        return State(start + row_times(mx.maximum(w, self.sign * w), self.turn), w)


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
    slack = None if op.fused is not None else op.slack(state.x)
    while steps > 0:
        some = min(steps, interval)
        steps -= some
        if memory is not None and some > 1:
            state, slack, memory = _accelerated(cones, op, state, slack, memory)
            some -= 2
        if some:
            state, slack = _plain(cones, op, state, slack, some)
    return state, memory


def _plain(
    cones: Product, op: Operator, state: State, slack: mx.array | None, steps: int
) -> tuple[State, mx.array | None]:
    """``steps`` iterations, and b - A x after them, given that before; None if steps are fused."""
    if slack is None:
        assert op.fused is not None
        return op.fused.advance(op.program, state, op.alpha, steps), None
    for _ in range(steps):
        state, slack = step(cones, op, state, slack)
    return state, slack


def _accelerated(
    cones: Product, op: Operator, state: State, slack: mx.array | None, memory: Memory
) -> tuple[State, mx.array | None, Memory]:
    """Two iterations, the second from an accelerated point.

    That is safeguarded per lane: it stands only if the iteration moves no further from it than it
    moved before; else the plain iterate goes on and the memory is empty.
    """
    image, slack = _plain(cones, op, state, slack, 1)
    point, plain = _flat(state), _flat(image)
    memory, candidate = anderson.accelerate(memory, point, plain)
    there = _unflat(candidate, op.program.n)
    before_it = None if slack is None else op.slack(there.x)
    tried, slack_there = _plain(cones, op, there, before_it, 1)
    trial = _flat(tried)
    before = mx.sum(mx.square(plain - point), axis=1, keepdims=True)
    after = mx.sum(mx.square(trial - candidate), axis=1, keepdims=True)
    good = after <= before  # False for NaN
    state = _unflat(mx.where(good, trial, plain), op.program.n)
    if slack is not None and slack_there is not None:
        slack = mx.where(good, slack_there, slack)
    return state, slack, memory.forget(mx.logical_not(good))


def rebalanced(scale: mx.array, primal: mx.array, dual: mx.array) -> mx.array:
    """Scale that evens out the relative residuals (OSQP, section 5.2), all (B, 1)."""
    ratio = mx.sqrt(mx.maximum(primal, 1e-12) / mx.maximum(dual, 1e-12))
    return mx.clip(scale * ratio, _LEAST_SCALE, _MOST_SCALE)
