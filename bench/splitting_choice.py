"""Which splitting makes the better first rung: with the homogenizing variable tau, or without?

    python bench/splitting_choice.py
    python bench/splitting_choice.py --dtype float64 --output without_rounding
    python bench/splitting_choice.py --rho-x 1e-2 --equality-factor 1e2

Three iterations run on the same equilibrated data with the same row weights R, proximal weight on
x, over-relaxation, scale rule (off and on) and Anderson acceleration (off and on), in float32:

- plain: Douglas-Rachford splitting of the optimality conditions as `mlxcone.admm.step` has it;
- direct: the same iterates as papers write them, which round more;
- embedding: the homogeneous embedding of SCS 3 (O'Donoghue, arXiv 2004.02177), in this file. In
  float64 its iterates agree with SCS 3.3.1's to 1e-10 where both run with the same settings. It
  rounds as the direct one does: --dtype float64 compares them where rounding plays no part.

Measured, in original units:

- iterations until the relative residual is 1e-3 (about where Newton takes over) and 1e-5, checked
  after every 5 to 10, on manufactured programs and on the canonical programs of the layer problems:
  median and 90th percentile, and the share of lanes that missed it within the budget;
- iterations until a certificate of violation 1e-4 is visible on infeasible and unbounded programs
  (scaled to b'y = -1 or q'x = -1), checked after every 25: the embedding's iterate, or what the
  others moved by over the last 25. "false" is the share of feasible lanes that show one before they
  reach 1e-3. (The solver looks for less: it polishes a rough direction and verifies the result.)
- milliseconds per iteration without the checks: the three alternate in one run, evaluated every 25
  iterations; ratios are medians of paired ratios.

A lane that missed counts as infinitely many iterations, so a median or percentile may be ">1000".
Everything lands in bench/results/splitting_choice.json and, if matplotlib is there, .png.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np

from mlxcone.cones.description import Cones
from mlxcone.cones.product import Product
from mlxcone.kkt import splitting_factor
from mlxcone.kkt.splitting_factor import Explicit as Factor
from mlxcone.methods import admm, anderson
from mlxcone.methods.anderson import Memory
from mlxcone.program import equilibrate, residuals
from mlxcone.program.equilibrate import Scaling
from mlxcone.program.operators import Rectangular
from mlxcone.program.problem import Program
from mlxcone.program.residuals import dot, norm
from mlxcone.settings import Settings
from mlxcone.testing import manufacture

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
CPU = cast(Any, mx.cpu)  # float64 exists there only

ALPHA, SCALE, BAND = 1.6, 0.1, 5.0  # as in SCS
GROUPS = (10, 10, 5)  # iterations between accelerated steps; together those between rebalances
LOOKBACK = 5
TOLERANCES = (1e-3, 1e-5)
QUALITY = 1e-4

Triple = tuple[mx.array, mx.array, mx.array]


class Knobs(NamedTuple):
    """Dtype of the iterations, weight on x, R on equality rows over R elsewhere, weight on tau."""

    dtype: mx.Dtype
    rho_x: float
    equality: float
    tau: float


class Data(NamedTuple):
    """An equilibrated batch: ``program`` in float64 for factors, the rest in the knobs' dtype."""

    program: Program
    cones: Product
    small: Program
    scaling: Scaling
    knobs: Knobs

    def factor(self, scale: mx.array) -> tuple[mx.array, Factor]:
        """R (B, m) and (P + rho_x I + A'R A)^-1, in float64."""
        rows = mx.arange(self.cones.rows)
        unit = mx.where(rows < self.cones.zero_rows, self.knobs.equality, 1.0).astype(mx.float64)
        factor = splitting_factor.explicit(self.program, scale, unit, self.knobs.rho_x)
        return scale * unit, factor


class Mode(NamedTuple):
    """What every splitting gets or does without."""

    adaptive: bool
    accelerated: bool

    @property
    def name(self) -> str:
        parts = ("adaptive" if self.adaptive else "fixed", "Anderson" if self.accelerated else "")
        return " + ".join(part for part in parts if part)


MODES = tuple(
    Mode(adaptive, accelerated) for adaptive in (False, True) for accelerated in (False, True)
)


# --- the splittings -------------------------------------------------------------------------


class Plain:
    """The solver's splitting; states are (x, w) side by side, (B, n + m)."""

    name = "plain"

    def __init__(self, data: Data, scale: mx.array) -> None:
        self.data, self.scale = data, scale
        with mx.stream(CPU):
            self.weights, self.factor = data.factor(scale)
            narrow = [v.astype(data.knobs.dtype) for v in (self.factor, self.weights)]
            self.op = admm.Operator(data.small, *cast(Any, narrow), ALPHA)

    def cold(self) -> mx.array:
        program = self.data.small
        return mx.zeros((program.lanes, program.n + program.m), dtype=self.data.knobs.dtype)

    def _state(self, flat: mx.array) -> admm.State:
        n = self.data.small.n
        return admm.State(flat[:, :n], flat[:, n:])

    def step(self, flat: mx.array) -> mx.array:
        state = self._state(flat)
        after, _ = admm.step(self.data.cones, self.op, state, self.op.slack(state.x))
        return mx.concatenate([*after], axis=1)

    def tidy(self, flat: mx.array) -> mx.array:
        return flat

    def point(self, flat: mx.array) -> Triple:
        return admm.split(self.data.cones, self.op.weights, self._state(flat))

    def carried(self, flat: mx.array, new: Plain) -> mx.array:
        """The state for the weights of ``new`` with the same x, y and s."""
        return mx.concatenate([*admm.join(new.op.weights, *self.point(flat))], axis=1)

    @staticmethod
    def ray(before: Triple, now: Triple) -> tuple[mx.array, mx.array]:
        return now[0] - before[0], now[1] - before[1]


class Direct(Plain):
    """The plain splitting solved for x~ itself, as papers write it: same iterates, more rounding.

        x~ = (P + rho_x I + A'R A)^-1 (rho_x x - q + A'R (b - 2 s + w)).

    It saves two products, P x and A x, but the factor and R amplify the rounding of large terms.
    """

    name = "direct"

    def step(self, flat: mx.array) -> mx.array:
        x, w = self._state(flat)
        program, s = self.data.small, self.data.cones.project(w)
        rows = program.A.transpose_times(self.op.weights * (program.b - 2.0 * s + w))
        x_new = self.op.factor.times(self.data.knobs.rho_x * x - program.q + rows)
        s_new = program.b - program.A.times(x_new)
        return flat + ALPHA * mx.concatenate([x_new - x, s_new - s], axis=1)


class Embedding:
    """SCS 3's splitting; states are w = (w_x, w_y, w_tau) side by side, (B, n + m + 1).

    With M = [P, A'; -A, 0], h = (q, b), N = diag(rho_x I, 1/R), r = (N + M)^-1 h, one iteration is

        p = (N + M)^-1 N w_xy,   tau~ = the root below,   u~ = (p - tau~ r, tau~),
        u = projection of 2 u~ - w onto R^n x K* x R_+,   w <- w + alpha (u - u~),

    and s is the y part of N (u + w - 2 u~). tau~ is the nonnegative root of a t^2 + b t + c with
    a = d + r'N r, b = r'N (w_xy - 2 p) - d w_tau, c = -p'M p, d the weight of tau in SCS's R. The
    linear system is the plain splitting's: p_x = (P + rho_x I + A'R A)^-1 (rho_x w_x - A'w_y),
    p_y = w_y + R A p_x.
    """

    name = "embedding"

    def __init__(self, data: Data, scale: mx.array) -> None:
        self.data, self.scale = data, scale
        program = data.program
        with mx.stream(CPU):
            weights, factor = data.factor(scale)
            r_x = factor.times(program.q - program.A.transpose_times(weights * program.b))
            Nr_y = program.b + program.A.times(r_x)
            r = mx.concatenate([r_x, weights * Nr_y], axis=1)
            Nr = mx.concatenate([data.knobs.rho_x * r_x, Nr_y], axis=1)
            a = data.knobs.tau + dot(r, Nr)[:, None]
            narrow = (v.astype(data.knobs.dtype) for v in (weights, r, Nr, a))
            self.weights, self.r, self.Nr, self.a = narrow
            self.factor = factor.astype(data.knobs.dtype)

    def cold(self) -> mx.array:
        # SCS starts at (0, 0, 1) and holds tau at 1 for one iteration; this is where that leads.
        n, y = self.data.small.n, self.r[:, self.data.small.n :]
        moved = [-self.r[:, :n], self.data.cones.project_dual(-2.0 * y) + y]
        return mx.concatenate([ALPHA * v for v in moved] + [mx.ones_like(self.a)], axis=1)

    def _halves(self, w: mx.array) -> tuple[mx.array, mx.array]:
        """u~ and u."""
        program, knobs, n = self.data.small, self.data.knobs, self.data.small.n
        w_xy, w_tau = w[:, :-1], w[:, -1:]
        w_x, w_y = w_xy[:, :n], w_xy[:, n:]
        p_x = self.factor.times(knobs.rho_x * w_x - program.A.transpose_times(w_y))
        Ap_x = program.A.times(p_x)
        p = mx.concatenate([p_x, w_y + self.weights * Ap_x], axis=1)
        b = mx.sum(self.Nr * (w_xy - 2.0 * p), axis=1, keepdims=True) - knobs.tau * w_tau
        if program.P is None:
            tau = mx.maximum(-b / self.a, 0.0)
        else:
            # p'M p = p'N (w_xy - p), whose y part is -p_y'A p_x: nothing is divided by a weight.
            both = mx.concatenate([knobs.rho_x * (p_x - w_x), Ap_x], axis=1)
            c = mx.minimum(mx.sum(p * both, axis=1, keepdims=True), 0.0)
            root = mx.sqrt(b * b - 4.0 * self.a * c)
            # The form of the root that does not cancel.
            stable = -2.0 * c / mx.maximum(b + root, 1e-30)
            tau = mx.where(b < 0.0, (root - b) / (2.0 * self.a), stable)
        z = p - tau * self.r
        reflected = 2.0 * z - w_xy
        y = self.data.cones.project_dual(reflected[:, n:])
        u = mx.concatenate([reflected[:, :n], y, mx.maximum(2.0 * tau - w_tau, 0.0)], axis=1)
        return mx.concatenate([z, tau], axis=1), u

    def step(self, w: mx.array) -> mx.array:
        half, u = self._halves(w)
        return w + ALPHA * (u - half)

    def tidy(self, w: mx.array) -> mx.array:
        # Any positive multiple of w is as good; SCS keeps its size too.
        size = mx.sqrt(mx.sum(mx.square(w), axis=1, keepdims=True))
        return w * (math.sqrt(w.shape[1]) / mx.maximum(size, 1e-30))

    def _dual_slack(self, w: mx.array, half: mx.array, u: mx.array) -> mx.array:
        """R s."""
        return (u + w - 2.0 * half)[:, self.data.small.n : -1]

    def point(self, w: mx.array) -> Triple:
        # A state alone does not show (x, y, s): half an iteration more than the plain one gets.
        n = self.data.small.n
        half, u = self._halves(w)
        tau = mx.maximum(u[:, -1:], 1e-8)
        s = self._dual_slack(w, half, u) / self.weights
        return u[:, :n] / tau, u[:, n:-1] / tau, s / tau

    def carried(self, w: mx.array, new: Embedding) -> mx.array:
        """The state for the weights of ``new`` with the same u~, u and s."""
        n = self.data.small.n
        half, u = self._halves(w)
        slack = self._dual_slack(w, half, u) * (new.weights / self.weights)
        y = (2.0 * half - u)[:, n:-1] + slack
        return mx.concatenate([w[:, :n], y, w[:, -1:]], axis=1)

    @staticmethod
    def ray(before: Triple, now: Triple) -> tuple[mx.array, mx.array]:
        return now[0], now[1]


Splitting = Plain | Direct | Embedding
KINDS: tuple[type[Splitting], ...] = (Plain, Direct, Embedding)


# --- the loop, the same for all ----------------------------------------------------------------


def advance(
    splitting: Splitting, state: mx.array, memory: Memory | None, steps: int
) -> tuple[mx.array, Memory | None]:
    """Some iterations, accelerated and safeguarded per lane as in `admm.advance`."""
    state = splitting.tidy(state)
    if memory is not None:
        plain = splitting.step(state)
        memory, candidate = anderson.accelerate(memory, state, plain)
        trial = splitting.step(candidate)
        before = mx.sum(mx.square(plain - state), axis=1, keepdims=True)
        good = mx.sum(mx.square(trial - candidate), axis=1, keepdims=True) <= before
        memory = memory.forget(mx.logical_not(good))
        state = mx.where(good, trial, plain)
        steps -= 2
    for _ in range(steps):
        state = splitting.step(state)
    return state, memory


def _memory(state: mx.array, mode: Mode) -> Memory | None:
    return Memory.empty(state, LOOKBACK) if mode.accelerated else None


def violations(data: Data, dx: mx.array, dy: mx.array) -> mx.array:
    """How far a ray is from proving infeasibility and unboundedness, (B, 2), original units."""
    program, scaling, cones = data.small, data.scaling, data.cones
    y = cones.project_dual(dy)
    value = dot(program.b / scaling.primal, y)
    off = norm(program.A.transpose_times(y) / scaling.d)
    infeasible = mx.where(value < 0, off / mx.maximum(-value, 1e-30), mx.inf)
    value = dot(program.q / scaling.dual, dx)
    Ax = program.A.times(dx)
    row = norm((Ax + cones.project(-Ax)) / scaling.e)
    off = mx.maximum(row, norm(program.P_times(dx) * scaling.primal / scaling.dual / scaling.d))
    unbounded = mx.where(value < 0, off / mx.maximum(-value, 1e-30), mx.inf)
    return mx.stack([infeasible, unbounded], axis=1)


class Trace(NamedTuple):
    """Iterations per lane, infinite if never: to each tolerance, to a certificate of each kind."""

    reached: np.ndarray
    certified: np.ndarray


def run(kind: type[Splitting], data: Data, mode: Mode, budget: int, wanted: str) -> Trace:
    """Iterate until every lane shows what is ``wanted`` ("solved" or a kind of certificate)."""
    lanes = data.small.lanes
    splitting = kind(data, mx.full((lanes, 1), SCALE, dtype=mx.float64))
    state = splitting.cold()
    memory, before = _memory(state, mode), splitting.point(state)
    reached = np.full((lanes, len(TOLERANCES)), np.inf)
    certified = np.full((lanes, 2), np.inf)
    for start in range(0, budget, sum(GROUPS)):
        relative, done = [], []
        for some in GROUPS:
            state, memory = advance(splitting, state, memory, some)
            now = splitting.point(state)
            result = residuals.measure(data.small, data.scaling, *now, 0.0, 1.0)
            relative.append(result.relative)
            done.append((done[-1] if done else start) + some)
        proof = violations(data, *splitting.ray(before, now))
        mx.eval(state, memory, now, relative, proof)
        for count, value in zip(done, relative, strict=True):
            small = np.array(value)[:, None] <= np.array(TOLERANCES)
            reached = np.where(small, np.minimum(reached, count), reached)
        seen = np.array(proof) <= QUALITY
        certified = np.where(seen, np.minimum(certified, done[-1]), certified)
        outcome = {"solved": reached[:, -1], "infeasible": certified[:, 0]}
        active = np.isinf(outcome.get(wanted, certified[:, 1]))
        if not active.any():
            break
        if mode.adaptive:
            splitting, state, changed = rebalance(splitting, state, result, active)
            memory = memory and memory.forget(changed)
        before = now
    return Trace(reached, certified)


def rebalance(
    splitting: Splitting, state: mx.array, result: residuals.Residuals, active: np.ndarray
) -> tuple[Splitting, mx.array, mx.array]:
    """New scales for the lanes that are off by more than the band; which lanes changed, (B, 1)."""
    with mx.stream(CPU):
        balance = (result.primal_relative, result.dual_relative)
        scale = splitting.scale
        wanted = admm.rebalanced(scale, *(r[:, None].astype(mx.float64) for r in balance))
        off = mx.maximum(wanted / scale, scale / wanted) > BAND
        changed = mx.array(active)[:, None] & mx.isfinite(wanted) & off
        scale = mx.where(changed, wanted, scale)
    if not mx.any(changed).item():
        return splitting, state, changed
    new = type(splitting)(splitting.data, scale)
    state = mx.where(changed, splitting.carried(state, cast(Any, new)), state)
    return new, state, changed


# --- problems -----------------------------------------------------------------------------------


Shape = tuple[int, dict[str, Any], int]
"""Variables, cones, rank of P."""


class Arrays(NamedTuple):
    """A batch in original units: P (B, n, n) or None, q (B, n), A (B, m, n), b (B, m)."""

    P: np.ndarray | None
    q: np.ndarray
    A: np.ndarray
    b: np.ndarray


def equilibrated(arrays: Arrays, cones: dict[str, Any], knobs: Knobs) -> Data:
    product = Product(Cones.of(cones))
    order = product.order or list(range(product.rows))
    with mx.stream(CPU):
        P, q, A, b = (None if v is None else mx.array(v, dtype=mx.float64) for v in arrays)
        assert q is not None and A is not None and b is not None
        rows = mx.array(order)
        original = Program(P, q, Rectangular.of(A[:, rows]), b[:, rows])
        setup = equilibrate.setup(original, product, True)
        scaling, program = equilibrate.normalize(setup, original, True)
        small, factors = program.astype(knobs.dtype), scaling.astype(knobs.dtype)
        mx.eval(program, small, factors)
    return Data(program, product, small, factors, knobs)


def random_shape(rng: np.random.Generator, family: str) -> Shape:
    """Between 10 and 60 variables and rows."""
    n, m = (int(rng.integers(10, 61)) for _ in range(2))
    zero = int(rng.integers(0, min(n, m) // 3 + 1))
    left, soc = m - zero, []
    while family in ("SOCP", "mixed") and left > 8 and len(soc) < 6:
        soc.append(int(rng.integers(3, 9)))
        left -= soc[-1]
    rank = int(rng.integers(n // 2, n)) if family in ("QP", "mixed") else 0
    return n, {"z": zero, "l": left, "q": soc}, rank


def manufactured(
    rng: np.random.Generator, wanted: str, shape: Shape, lanes: int, knobs: Knobs
) -> Data:
    """A batch of programs of one shape with this outcome."""
    n, cones, rank = shape
    make = manufacture.feasible
    if wanted != "solved":
        make = {"infeasible": manufacture.infeasible, "unbounded": manufacture.unbounded}[wanted]
    made = [make(rng, n, cones, quadratic_rank=rank) for _ in range(lanes)]
    q, A, b = (np.stack([getattr(i, k) for i in made]) for k in ("q", "A", "b"))
    P = np.stack([i.P for i in made]) if rank else None
    return equilibrated(Arrays(P, q, A, b), cones, knobs)


def layer_programs(seed: int, lanes: int, knobs: Knobs) -> Iterator[Data]:
    """The canonical programs of tests/layer_problems.py at random parameters."""
    sys.path.insert(0, str(ROOT / "tests"))
    from layer_problems import LAYER_PROBLEMS  # pyright: ignore[reportMissingImports]

    from cvxpylayers_mlx.canonicalize import canonicalize

    for problem in LAYER_PROBLEMS:
        rng = np.random.default_rng([seed, *problem.name.encode()])
        drawn = zip(*(problem.sample(rng) for _ in range(lanes)), strict=True)
        form = canonicalize(*problem.build())
        columns = []
        for pick, values in zip(form.picks, drawn, strict=True):
            flat = np.stack(values).reshape(lanes, -1)
            mirror = pick.index if pick.mirror is None else pick.mirror
            columns.append(0.5 * (flat[:, np.array(pick.index)] + flat[:, np.array(mirror)]))
        vector = np.concatenate([*columns, np.ones((lanes, 1))], axis=1)
        with mx.stream(CPU):
            parameters = mx.array(vector, dtype=mx.float64)
            parts = [
                p and np.array(p.linear(parameters)).reshape(lanes, *p.shape)
                for p in (form.P, form.q, form.A, form.b)
            ]
        yield equilibrated(Arrays(*cast(Any, parts)), form.cones, knobs)


# --- measurements -------------------------------------------------------------------------------


def spread(counts: np.ndarray) -> dict[str, float]:
    """Median, 90th percentile and share of lanes that never got there."""
    middle, late = (float(np.percentile(counts, k, method="higher")) for k in (50, 90))
    return {"median": middle, "p90": late, "missed": float(np.isinf(counts).mean())}


def compare(
    batches: Sequence[Data], mode: Mode, budget: int, wanted: str
) -> Iterator[dict[str, Any]]:
    """A row for each splitting, all on the same lanes."""
    traces = []
    for kind in KINDS:
        found = [run(kind, data, mode, budget, wanted) for data in batches]
        traces.append(Trace(*(np.concatenate(part) for part in zip(*found, strict=True))))
    goals = [f"{t:g}" for t in TOLERANCES] if wanted == "solved" else ["certificate"]
    for kind, trace in zip(KINDS, traces, strict=True):
        row: dict[str, Any] = {"mode": mode.name, "splitting": kind.name, "wanted": wanted}
        row["lanes"] = len(trace.reached)
        for column, goal in enumerate(goals):
            counts, other = (_counts(t, wanted, column) for t in (trace, traces[-1]))
            better = {"fewer": counts < other, "more": counts > other}
            shares = {f"{k}_than_embedding": float(v.mean()) for k, v in better.items()}
            row[goal] = spread(counts) | shares
        if wanted == "solved":
            early = trace.certified.min(axis=1) < trace.reached[:, 0]
            row["false"] = float(early.mean())
        yield row


def _counts(trace: Trace, wanted: str, column: int) -> np.ndarray:
    if wanted == "solved":
        return trace.reached[:, column]
    return trace.certified[:, int(wanted == "unbounded")]


def chunk_times(data: Data, mode: Mode, compiled: bool, repeats: int) -> np.ndarray:
    """Milliseconds per iteration, (splittings, repeats)."""
    scale = mx.full((data.small.lanes, 1), SCALE, dtype=mx.float64)
    splittings, states = [], []
    for kind in KINDS:
        splitting = kind(data, scale)
        # Somewhere in the middle of a run, where no projection is trivial.
        state = splitting.cold()
        for _ in range(50):
            state = splitting.step(state)
        if compiled:
            # An assignment to a method is what pyright forbids and ruff asks for.
            setattr(splitting, "step", mx.compile(cast(Any, splitting.step)))  # noqa: B010
        splittings.append(splitting)
        states.append((state, _memory(state, mode)))
    warm_up = 2
    times = np.zeros((len(KINDS), repeats + warm_up))
    for repeat in range(repeats + warm_up):
        # Each takes each place in turn, so that no one always runs on another's warm cache.
        for which in np.roll(np.arange(len(KINDS)), repeat):
            state, memory = states[which]
            mx.eval(state, memory)
            start = time.perf_counter()
            for some in GROUPS:
                state, memory = advance(splittings[which], state, memory, some)
            mx.eval(state, memory)
            times[which, repeat] = 1e3 * (time.perf_counter() - start) / sum(GROUPS)
    return times[:, warm_up:]


def timings(seed: int, repeats: int, knobs: Knobs) -> Iterator[dict[str, Any]]:
    shape = (30, {"z": 8, "l": 32, "q": [4, 4, 6, 6]}, 15)
    for lanes in (1, 16, 128):
        data = manufactured(np.random.default_rng(seed), "solved", shape, lanes, knobs)
        for name, accelerated, compiled in (
            ("eager", False, False),
            ("eager + Anderson", True, False),
            ("compiled step", False, True),
        ):
            times = chunk_times(data, Mode(False, accelerated), compiled, repeats)
            row: dict[str, Any] = {"lanes": lanes, "how": name}
            for kind, own in zip(KINDS, times, strict=True):
                row[kind.name] = float(np.median(own))
                row[f"{kind.name}_ratio"] = float(np.median(own / times[0]))
            yield row


# --- report -------------------------------------------------------------------------------------


def print_header(goals: Sequence[str], last: str = "") -> None:
    line = f"{'':10s} {'mode':19s} {'lanes':>5s} {'splitting':11s}"
    print(line + "".join(f" | {goal:>7s}: p50   p90 missed" for goal in goals) + last)


def print_row(row: dict[str, Any], goals: Sequence[str], budget: int) -> None:
    line = f"{row['family']:10s} {row['mode']:19s} {row['lanes']:5d} {row['splitting']:11s}"
    for goal in goals:
        one = row[goal]
        counts = (
            f">{budget}" if math.isinf(one[k]) else f"{one[k]:.0f}" for k in ("median", "p90")
        )
        line += " | " + "".join(f"{c:>{w}s}" for c, w in zip(counts, (12, 6), strict=True))
        line += f"{one['missed']:7.2f}"
    print(line + (f" | {row['false']:.2f}" if "false" in row else ""), flush=True)


def plot(content: dict[str, Any], path: Path) -> bool:
    """Draw the solver's own mode and the times; False if there is nothing to draw with."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return False
    budget = content["settings"]["budget"]
    rows = [r for r in content["rows"] if r["mode"] == MODES[-1].name]
    families = list(dict.fromkeys(r["family"] for r in rows))
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), width_ratios=[3, 2])
    for position, kind in enumerate(KINDS):
        shift = 0.27 * (position - 1)
        mine = [r for r in rows if r["splitting"] == kind.name]
        cells = [
            r[f"{TOLERANCES[0]:g}" if r["wanted"] == "solved" else "certificate"] for r in mine
        ]
        middle = [min(c["median"], budget) for c in cells]
        late = [min(c["p90"], budget) - m for c, m in zip(cells, middle, strict=True)]
        places = np.arange(len(families)) + shift
        left.bar(places, middle, 0.25, label=kind.name, yerr=[[0] * len(late), late], capsize=2)
        times = content["milliseconds"]
        heights = [1e3 * row[kind.name] / row["lanes"] for row in times]
        right.bar(np.arange(len(times)) + shift, heights, 0.25)
    left.set_xticks(np.arange(len(families)), families)
    left.set_yscale("log")
    left.set_ylabel(f"iterations, median and 90th percentile (at most {budget})")
    left.set_title(f"to {TOLERANCES[0]:g} or a certificate ({MODES[-1].name})")
    left.legend()
    names = [f"{row['lanes']}\n{row['how'].replace(' ', chr(10))}" for row in times]
    right.set_xticks(np.arange(len(names)), names, fontsize=6)
    right.set_yscale("log")
    right.set_ylabel("µs per lane and iteration")
    right.set_title("n = 30, m = 60; lanes below")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return True


def finite(value: Any) -> Any:
    """JSON has no infinity: null stands for "not within the budget"."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Plain splitting or homogeneous embedding?")
    parser.add_argument("--draws", type=int, default=3, help="random shapes per family")
    parser.add_argument("--lanes", type=int, default=8, help="programs per shape")
    parser.add_argument("--budget", type=int, default=1000, help="iterations per lane")
    parser.add_argument("--repeats", type=int, default=15, help="of every timing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--rho-x", type=float, default=Settings().rho_x)
    parser.add_argument("--equality-factor", type=float, help="default: the solver's")
    parser.add_argument("--tau-weight", type=float, default=10.0, help="default: SCS's")
    parser.add_argument("--output", default="splitting_choice", help="name under bench/results/")
    parser.add_argument("--skip-layers", action="store_true", help="manufactured programs only")
    options = parser.parse_args(arguments)
    if min(options.draws, options.lanes, options.budget, options.repeats) < 1:
        parser.error("--draws, --lanes, --budget and --repeats must be positive")
    if options.equality_factor is None:
        one = mx.ones((1, 1), dtype=mx.float32)
        options.equality_factor = admm.row_weights(one, Product(Cones(zero=1))).item()
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and report."""
    options = parse_options(arguments)
    if options.dtype == "float64":
        mx.set_default_device(CPU)
    weights = options.equality_factor, options.tau_weight
    knobs = Knobs(getattr(mx, options.dtype), options.rho_x, *weights)
    began, budget = time.perf_counter(), options.budget

    def batches(wanted: str, family: str) -> list[Data]:
        rng = np.random.default_rng([options.seed, *wanted.encode(), *family.encode()])
        shapes = [random_shape(rng, family) for _ in range(options.draws)]
        return [manufactured(rng, wanted, shape, options.lanes, knobs) for shape in shapes]

    rows: list[dict[str, Any]] = []

    def report(name: str, data: list[Data], modes: Sequence[Mode], wanted: str) -> None:
        for mode in modes:
            for row in compare(data, mode, budget, wanted):
                rows.append({"family": name} | row)
                print_row(rows[-1], goals, budget)

    families = ("LP", "QP", "SOCP", "mixed")
    goals = [f"{t:g}" for t in TOLERANCES]
    print_header(goals, " | false")
    for family in families:
        report(family, batches("solved", family), MODES, "solved")
    if not options.skip_layers:
        # Many small programs: the two ends of the list of modes are enough.
        data = list(layer_programs(options.seed, 2, knobs))
        report("layers", data, (MODES[0], MODES[-1]), "solved")
    goals = ["certificate"]
    print_header(goals)
    for wanted in ("infeasible", "unbounded"):
        data = [one for family in families for one in batches(wanted, family)]
        report(wanted, data, (MODES[0], MODES[-1]), wanted)
    times = list(timings(options.seed, options.repeats, knobs))
    print("milliseconds per iteration, n = 30, m = 60 (over plain)")
    for row in times:
        cells = (f"{k.name} {row[k.name]:.3f} ({row[f'{k.name}_ratio']:.2f})" for k in KINDS)
        print(f"{row['lanes']:5d} {row['how']:18s} " + "  ".join(cells))
    path = RESULTS / f"{options.output}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "settings": vars(options),
        "machine": platform.machine(),
        "versions": {"python": platform.python_version(), "mlx": version("mlx")},
        "rows": rows,
        "milliseconds": times,
    }
    path.write_text(json.dumps(finite(content), indent=2) + "\n")
    drawn = plot(content, path.with_suffix(".png"))
    note = "" if drawn else " (no plot: matplotlib is missing)"
    print(f"{time.perf_counter() - began:.0f} s; results in {path}{note}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
