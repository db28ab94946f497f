"""Which splitting makes the better first rung: with the homogenizing variable tau, or without?

    python bench/splitting_choice.py
    python bench/splitting_choice.py --draws 6 --seed 1

Two iterations run on the same equilibrated float32 data with the same row weights R, proximal
weight on x, over-relaxation, scale rule (off and on) and Anderson acceleration (off and on):

- plain: Douglas-Rachford splitting of the optimality conditions, `mlxcone.admm`, what the solver
  does; a certificate is what the iterate moved by over the last 25 iterations;
- embedding: the homogeneous embedding of SCS 3 (O'Donoghue, arXiv 2004.02177, algorithm 5.1), in
  this file; a certificate is the iterate itself.

Measured, in original units:

- iterations until the relative residual is 1e-3 (where the solver hands over to Newton) and 1e-5,
  checked after every 5 to 10, on manufactured programs and on the canonical programs of the layer
  problems; "missed" is the share of lanes that have not got there within the budget;
- iterations until a certificate of violation 1e-4 is visible on infeasible and unbounded programs
  (scaled to b'y = -1 or q'x = -1), checked after every 25, and "false", the share of feasible lanes
  that show one before they reach 1e-3;
- milliseconds per iteration, without the checks: the two alternate in one run, evaluated every 25
  iterations; ratios are medians of paired ratios.

"more" is the median over lanes of the embedding's iterations over the plain splitting's. A lane
that missed counts as infinitely many, so a median or percentile may be ">1000". Everything lands in
bench/results/splitting_choice.json and, if matplotlib is there, splitting_choice.png.
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

from mlxcone import admm, anderson, equilibrate, residuals, splitting_factor
from mlxcone.anderson import Memory
from mlxcone.cones.product import Cones, Product
from mlxcone.equilibrate import Scaling
from mlxcone.operators import Rectangular
from mlxcone.problem import Program
from mlxcone.residuals import dot, norm
from mlxcone.testing import manufacture

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
CPU = cast(Any, mx.cpu)  # float64 exists there only

RHO_X, ALPHA, SCALE, BAND = 1e-3, 1.6, 0.1, 5.0  # the solver's defaults
TAU_WEIGHT = 10.0  # SCS's weight on tau in R
GROUPS = (10, 10, 5)  # iterations between accelerated steps; together those between rebalances
LOOKBACK = 5
TOLERANCES = (1e-3, 1e-5)
QUALITY = 1e-4

Triple = tuple[mx.array, mx.array, mx.array]


class Data(NamedTuple):
    """An equilibrated batch: in float64 for factors, in float32 for iterations."""

    program: Program
    cones: Product
    small: Program
    scaling: Scaling


class Mode(NamedTuple):
    """What both splittings get or do without."""

    adaptive: bool
    accelerated: bool

    @property
    def name(self) -> str:
        parts = ("adaptive" if self.adaptive else "fixed", "Anderson" if self.accelerated else "")
        return " + ".join(part for part in parts if part)


MODES = tuple(Mode(adaptive, accelerated) for adaptive in (False, True) for accelerated in (False, True))


# --- the two splittings -------------------------------------------------------------------------


class Plain:
    """The solver's splitting; states are (x, w) side by side, (B, n + m)."""

    name = "plain"

    def __init__(self, data: Data, scale: mx.array) -> None:
        self.data, self.scale = data, scale
        with mx.stream(CPU):
            weights, factor = _factor(data, scale)
            parameters = (mx.array(v, dtype=mx.float32) for v in (RHO_X, ALPHA))
            self.op = admm.Operator(data.small, factor, weights.astype(mx.float32), *parameters)

    def cold(self) -> mx.array:
        program = self.data.small
        return mx.zeros((program.lanes, program.n + program.m), dtype=mx.float32)

    def _state(self, flat: mx.array) -> admm.State:
        n = self.data.small.n
        return admm.State(flat[:, :n], flat[:, n:])

    def step(self, flat: mx.array) -> mx.array:
        return mx.concatenate(admm.step(self.data.cones, self.op, self._state(flat)), axis=1)

    def tidy(self, flat: mx.array) -> mx.array:
        return flat

    def point(self, flat: mx.array) -> Triple:
        return admm.split(self.data.cones, self.op.weights, self._state(flat))

    def carried(self, flat: mx.array, new: Plain) -> mx.array:
        """The state for the weights of ``new`` with the same x, y and s."""
        return mx.concatenate(admm.join(new.op.weights, *self.point(flat)), axis=1)

    @staticmethod
    def ray(before: Triple, now: Triple) -> tuple[mx.array, mx.array]:
        return now[0] - before[0], now[1] - before[1]


class Embedding:
    """SCS 3's splitting; states are w = (w_x, w_y, w_tau) side by side, (B, n + m + 1).

    With M = [P, A'; -A, 0], h = (q, b), N = diag(rho_x I, 1/R) and r = (N + M)^-1 h, one iteration is

        p = (N + M)^-1 N w_xy,   tau~ = the root below,   u~ = (p - tau~ r, tau~),
        u = projection of 2 u~ - w onto R^n x K* x R_+,   w <- w + alpha (u - u~),

    and s is the y part of N (u + w - 2 u~). tau~ is the nonnegative root of a t^2 + b t + c with
    a = d + r'N r, b = r'N (w_xy - 2 p) - d w_tau, c = -p'M p, d the weight of tau. The linear system
    is the plain splitting's: p_x = (P + rho_x I + A'R A)^-1 (rho_x w_x - A'w_y), p_y = w_y + R A p_x.
    """

    name = "embedding"

    def __init__(self, data: Data, scale: mx.array) -> None:
        self.data, self.scale = data, scale
        program = data.program
        with mx.stream(CPU):
            weights, factor = _factor(data, scale, mx.float64)
            r_x = factor.times(program.q - program.A.transpose_times(weights * program.b))
            Nr_y = program.b + program.A.times(r_x)
            r = mx.concatenate([r_x, weights * Nr_y], axis=1)
            Nr = mx.concatenate([RHO_X * r_x, Nr_y], axis=1)
            a = TAU_WEIGHT + dot(r, Nr)[:, None]
            arrays = (v.astype(mx.float32) for v in (weights, r, Nr, a))
            self.weights, self.r, self.Nr, self.a = arrays
            self.factor = factor.astype(mx.float32)

    def cold(self) -> mx.array:
        # SCS starts at (0, 0, 1) and holds tau at 1 for one iteration; this is where that leads.
        n, y = self.data.small.n, self.r[:, self.data.small.n :]
        moved = [-self.r[:, :n], self.data.cones.project_dual(-2.0 * y) + y]
        return mx.concatenate([ALPHA * v for v in moved] + [mx.ones_like(self.a)], axis=1)

    def _halves(self, w: mx.array) -> tuple[mx.array, mx.array]:
        """u~ and u."""
        program, n = self.data.small, self.data.small.n
        w_xy, w_tau = w[:, :-1], w[:, -1:]
        w_x, w_y = w_xy[:, :n], w_xy[:, n:]
        p_x = self.factor.times(RHO_X * w_x - program.A.transpose_times(w_y))
        Ap_x = program.A.times(p_x)
        p = mx.concatenate([p_x, w_y + self.weights * Ap_x], axis=1)
        b = mx.sum(self.Nr * (w_xy - 2.0 * p), axis=1, keepdims=True) - TAU_WEIGHT * w_tau
        if program.P is None:
            tau = mx.maximum(-b / self.a, 0.0)
        else:
            # p'M p = p'N (w_xy - p), whose y part is -p_y'A p_x: nothing is divided by a weight.
            both = mx.concatenate([RHO_X * (p_x - w_x), Ap_x], axis=1)
            c = mx.minimum(mx.sum(p * both, axis=1, keepdims=True), 0.0)
            root = mx.sqrt(b * b - 4.0 * self.a * c)
            # The form of the root that does not cancel.
            stable = -2.0 * c / mx.maximum(b + root, 1e-30)
            tau = mx.where(b < 0.0, (root - b) / (2.0 * self.a), stable)
        reflected = 2.0 * (p - tau * self.r) - w_xy
        y = self.data.cones.project_dual(reflected[:, n:])
        u = mx.concatenate([reflected[:, :n], y, mx.maximum(2.0 * tau - w_tau, 0.0)], axis=1)
        return mx.concatenate([p - tau * self.r, tau], axis=1), u

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


Splitting = Plain | Embedding
KINDS: tuple[type[Plain], type[Embedding]] = (Plain, Embedding)


def _factor(
    data: Data, scale: mx.array, dtype: mx.Dtype = mx.float32
) -> tuple[mx.array, splitting_factor.Explicit]:
    unit = admm.unit_weights(data.cones)
    factor = splitting_factor.explicit(data.program, scale, unit, RHO_X)
    return admm.row_weights(scale, data.cones), factor.astype(dtype)


# --- the loop, the same for both ----------------------------------------------------------------


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


class Arrays(NamedTuple):
    """A batch in original units: P (B, n, n) or None, q (B, n), A (B, m, n), b (B, m)."""

    P: np.ndarray | None
    q: np.ndarray
    A: np.ndarray
    b: np.ndarray


def equilibrated(arrays: Arrays, cones: dict[str, Any]) -> Data:
    product = Product(Cones.of(cones))
    order = product.order or list(range(product.rows))
    with mx.stream(CPU):
        P, q, A, b = (None if v is None else mx.array(v, dtype=mx.float64) for v in arrays)
        assert q is not None and A is not None and b is not None
        rows = mx.array(order)
        original = Program(P, q, Rectangular.of(A[:, rows]), b[:, rows])
        setup = equilibrate.setup(original, product, True)
        scaling, program = equilibrate.normalize(setup, original, True)
        small, factors = program.astype(mx.float32), scaling.astype(mx.float32)
        mx.eval(program, small, factors)
    return Data(program, product, small, factors)


def random_shape(rng: np.random.Generator, family: str) -> tuple[int, dict[str, Any], int]:
    """Variables, cones and rank of P: n and m between 10 and 60."""
    n, m = (int(rng.integers(10, 61)) for _ in range(2))
    zero = int(rng.integers(0, min(n, m) // 3 + 1))
    left, soc = m - zero, []
    while family in ("SOCP", "mixed") and left > 8 and len(soc) < 6:
        soc.append(int(rng.integers(3, 9)))
        left -= soc[-1]
    rank = int(rng.integers(n // 2, n)) if family in ("QP", "mixed") else 0
    return n, {"z": zero, "l": left, "q": soc}, rank


def manufactured(
    rng: np.random.Generator, wanted: str, family: str, lanes: int, shape: Any = None
) -> Data:
    """A batch of programs of one shape with this outcome."""
    n, cones, rank = shape or random_shape(rng, family)
    make = manufacture.feasible
    if wanted != "solved":
        make = {"infeasible": manufacture.infeasible, "unbounded": manufacture.unbounded}[wanted]
    made = [make(rng, n, cones, quadratic_rank=rank) for _ in range(lanes)]
    q, A, b = (np.stack([getattr(i, k) for i in made]) for k in ("q", "A", "b"))
    P = np.stack([i.P for i in made]) if rank else None
    return equilibrated(Arrays(P, q, A, b), cones)


def layer_programs(seed: int, lanes: int) -> Iterator[Data]:
    """The canonical programs of tests/layer_problems.py at random parameters."""
    sys.path.insert(0, str(ROOT / "tests"))
    from layer_problems import LAYER_PROBLEMS

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
        yield equilibrated(Arrays(*cast(Any, parts)), form.cones)


# --- measurements -------------------------------------------------------------------------------


def spread(counts: np.ndarray) -> dict[str, float]:
    """Median, 90th percentile and share of lanes that never got there."""
    middle, late = (float(np.percentile(counts, k, method="higher")) for k in (50, 90))
    return {"median": middle, "p90": late, "missed": float(np.isinf(counts).mean())}


def ratio(plain: np.ndarray, embedding: np.ndarray) -> float:
    """Median of embedding / plain over the lanes on which at least one of them arrived."""
    either = np.isfinite(plain) | np.isfinite(embedding)
    if not either.any():
        return math.nan
    plain, embedding = plain[either], embedding[either]
    quotients = np.where(np.isinf(plain), 0.0, embedding / np.where(np.isinf(plain), 1.0, plain))
    return float(np.percentile(quotients, 50, method="higher"))


def compare(batches: Sequence[Data], mode: Mode, budget: int, wanted: str) -> dict[str, Any]:
    """Both splittings on the same lanes."""
    traces = []
    for kind in KINDS:
        found = [run(kind, data, mode, budget, wanted) for data in batches]
        traces.append(Trace(*(np.concatenate(part) for part in zip(*found, strict=True))))
    row: dict[str, Any] = {"mode": mode.name, "wanted": wanted, "lanes": len(traces[0].reached)}
    if wanted != "solved":
        counts = [t.certified[:, int(wanted == "unbounded")] for t in traces]
        row["certificate"] = _side_by_side(counts)
        return row
    for column, tolerance in enumerate(TOLERANCES):
        row[f"{tolerance:g}"] = _side_by_side([t.reached[:, column] for t in traces])
    for kind, trace in zip(KINDS, traces, strict=True):
        early = trace.certified.min(axis=1) < trace.reached[:, 0]
        row[f"false_{kind.name}"] = float(early.mean())
    return row


def _side_by_side(counts: list[np.ndarray]) -> dict[str, Any]:
    named = {kind.name: spread(c) for kind, c in zip(KINDS, counts, strict=True)}
    better = float((counts[0] < counts[1]).mean()), float((counts[1] < counts[0]).mean())
    return named | {"more": ratio(*counts), "plain_fewer": better[0], "embedding_fewer": better[1]}


def chunk_times(
    data: Data, mode: Mode, compiled: bool, repeats: int
) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds per iteration of each repeat, plain and embedding."""
    scale = mx.full((data.small.lanes, 1), SCALE, dtype=mx.float64)
    chunks, states = [], []
    for kind in KINDS:
        splitting = kind(data, scale)
        # Warm: a state from the middle of a run, and kernels that exist.
        state = splitting.cold()
        for _ in range(50):
            state = splitting.step(state)
        if compiled:
            splitting.step = mx.compile(splitting.step)  # type: ignore[method-assign]
        states.append((state, _memory(state, mode)))
        chunks.append(splitting)
    times = np.zeros((2, repeats + 2))
    for repeat in range(repeats + 2):
        for which in (0, 1) if repeat % 2 else (1, 0):
            state, memory = states[which]
            mx.eval(state, memory)
            start = time.perf_counter()
            for some in GROUPS:
                state, memory = advance(chunks[which], state, memory, some)
            mx.eval(state, memory)
            times[which, repeat] = 1e3 * (time.perf_counter() - start) / sum(GROUPS)
    return times[0, 2:], times[1, 2:]


def timings(seed: int, repeats: int) -> list[dict[str, Any]]:
    rows = []
    shape = (30, {"z": 8, "l": 32, "q": [4, 4, 6, 6]}, 15)
    for lanes in (1, 16, 128):
        data = manufactured(np.random.default_rng(seed), "solved", "mixed", lanes, shape)
        for name, accelerated, compiled in (
            ("eager", False, False),
            ("eager + Anderson", True, False),
            ("compiled step", False, True),
        ):
            pair = chunk_times(data, Mode(False, accelerated), compiled, repeats)
            medians = [float(np.median(t)) for t in pair]
            row = {"lanes": lanes, "how": name, "ratio": float(np.median(pair[1] / pair[0]))}
            rows.append(row | {k.name: t for k, t in zip(KINDS, medians, strict=True)})
    return rows


# --- report -------------------------------------------------------------------------------------


def count(value: float, budget: int) -> str:
    return f">{budget}" if math.isinf(value) else f"{value:.0f}"


def cell(both: dict[str, Any], budget: int) -> str:
    parts = []
    for kind in KINDS:
        one = both[kind.name]
        parts.append(f"{count(one['median'], budget):>6s}{count(one['p90'], budget):>6s}")
        parts.append(f"{one['missed']:6.2f}")
    return "".join(parts) + f"{both['more']:6.2f}"


def print_rows(rows: list[dict[str, Any]], keys: Sequence[str], budget: int) -> None:
    for row in rows:
        line = f"{row['family']:10s} {row['mode']:19s}{row['lanes']:5d} "
        line += " | ".join(cell(row[key], budget) for key in keys)
        if "false_plain" in row:
            line += f" | {row['false_plain']:5.2f}{row['false_embedding']:6.2f}"
        print(line, flush=True)


def header(titles: Sequence[str], last: str = "") -> None:
    columns = "  plain   p90  miss embed   p90  miss  more"
    print(" " * 36 + " | ".join(f"{title:^{len(columns)}s}" for title in titles) + last)
    print(f"{'':10s} {'mode':19s}{'lanes':>5s} " + " | ".join(columns for _ in titles))


def plot(content: dict[str, Any], path: Path) -> bool:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return False
    rows = [r for r in content["feasible"] if r["mode"] == MODES[-1].name]
    rows += [r for r in content["certificates"] if r["mode"] == MODES[-1].name]
    budget = content["settings"]["budget"]
    keys = ["0.001" if r["wanted"] == "solved" else "certificate" for r in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=[3, 2])
    places = np.arange(len(rows))
    for offset, kind in zip((-0.2, 0.2), KINDS, strict=True):
        cells = [row[key][kind.name] for row, key in zip(rows, keys, strict=True)]
        middle = [min(c["median"], budget) for c in cells]
        late = [min(c["p90"], budget) - m for c, m in zip(cells, middle, strict=True)]
        left.bar(places + offset, middle, 0.38, label=kind.name, yerr=[[0] * len(late), late])
    left.set_xticks(places, [r["family"] for r in rows])
    left.set_ylabel(f"iterations, median and 90th percentile (at most {budget})")
    left.set_title(f"to 1e-3, or to a certificate ({MODES[-1].name})")
    left.legend()
    times = content["milliseconds"]
    for offset, kind in zip((-0.2, 0.2), KINDS, strict=True):
        heights = [1e3 * row[kind.name] / row["lanes"] for row in times]
        right.bar(np.arange(len(times)) + offset, heights, 0.38)
    right.set_yscale("log")
    right.set_xticks(np.arange(len(times)), [f"{r['lanes']}\n{r['how']}" for r in times], fontsize=6)
    right.set_ylabel("µs per lane and iteration")
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Plain splitting or homogeneous embedding?")
    parser.add_argument("--draws", type=int, default=4, help="random shapes per family")
    parser.add_argument("--lanes", type=int, default=16, help="programs per shape")
    parser.add_argument("--budget", type=int, default=1000, help="iterations per lane")
    parser.add_argument("--repeats", type=int, default=15, help="of every timing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-layers", action="store_true", help="manufactured programs only")
    options = parser.parse_args(arguments)
    began, budget = time.perf_counter(), options.budget
    content: dict[str, Any] = {
        "settings": vars(options),
        "machine": platform.machine(),
        "versions": {"python": platform.python_version(), "mlx": version("mlx")},
        "feasible": [],
        "certificates": [],
    }
    families = ("LP", "QP", "SOCP", "mixed")

    def batches(wanted: str, family: str) -> list[Data]:
        rng = np.random.default_rng([options.seed, *wanted.encode(), *family.encode()])
        return [manufactured(rng, wanted, family, options.lanes) for _ in range(options.draws)]

    keys = [f"{t:g}" for t in TOLERANCES]
    header([f"iterations to {key}" for key in keys], " | false certificates")
    tasks = [(family, batches("solved", family)) for family in families]
    if not options.skip_layers:
        tasks.append(("layers", list(layer_programs(options.seed, 4))))
    for family, data in tasks:
        rows = [{"family": family} | compare(data, mode, budget, "solved") for mode in MODES]
        content["feasible"] += rows
        print_rows(rows, keys, budget)
    header([f"iterations to a certificate of {QUALITY:g}"])
    for wanted in ("infeasible", "unbounded"):
        data = [one for family in families for one in batches(wanted, family)]
        rows = [{"family": wanted} | compare(data, mode, budget, wanted) for mode in MODES]
        content["certificates"] += rows
        print_rows(rows, ["certificate"], budget)
    content["milliseconds"] = timings(options.seed, options.repeats)
    print("milliseconds per iteration, n = 30, m = 60: lanes, plain, embedding, ratio")
    for row in content["milliseconds"]:
        line = f"{row['lanes']:5d} {row['how']:18s} {row['plain']:8.3f} {row['embedding']:8.3f}"
        print(f"{line} {row['ratio']:6.2f}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "splitting_choice.json"
    path.write_text(json.dumps(finite(content), indent=2) + "\n")
    drawn = plot(content, path.with_suffix(".png"))
    note = "" if drawn else " (no plot: matplotlib is missing)"
    print(f"{time.perf_counter() - began:.0f} s; results in {path}{note}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
