"""Programs with sparse P and A that are too large to factor: splitting with conjugate gradients.

The same iteration as everywhere (`loop`), in float32 to what float32 can do, then in float64; its
linear system is solved by conjugate gradients (`conjugate`). There is no Newton's method at the
end, so tolerances of 1e-3 to 1e-5 are what this is for, and there are no derivatives.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxcone.backend import devices, lanes
from mlxcone.backend.devices import on_cpu
from mlxcone.backend.repeated import EAGER
from mlxcone.cones.description import Cones
from mlxcone.cones.product import Product
from mlxcone.kkt.conjugate import Blocks, Conjugate
from mlxcone.methods import admm, loop
from mlxcone.methods.loop import Loop, Point, Splitting
from mlxcone.methods.refine import met
from mlxcone.program import equilibrate, problem, residuals
from mlxcone.program.equilibrate import Scaling
from mlxcone.program.residuals import Residuals, dot, norm
from mlxcone.program.sparse import Sparse, SparseProgram
from mlxcone.report import Report
from mlxcone.settings import Settings
from mlxcone.solution import Info, Solution, evaluated
from mlxcone.status import SolverError, Status

_RTOL = 1e-3  # of the conjugate gradients, relative to the right-hand side; 1e-2 may not converge
_MOST = 120  # iterations of theirs
_SINGLE = 1e-5  # relative residual that float32 reaches
_ASYMMETRY = 1e-9  # of P, relative, that may be rounding

_custom_function: Any = mx.custom_function  # the stubs of MLX say that it returns objects


_DENSE = 2**24  # entries of an A that is better kept dense


def applies(P: Any, A: Any) -> bool:
    """Whether P and A are SciPy's sparse matrices, and too large for anything else."""
    if not hasattr(A, "tocsr") or not (P is None or hasattr(P, "tocsr")) or len(A.shape) != 2:
        return False
    return A.shape[0] * A.shape[1] > _DENSE


def _validate(P: Any, q: mx.array, A: Any, b: mx.array, rows: int) -> int | None:
    """The batch size, None for none; raises where something does not fit."""
    m, n = A.shape
    if m != rows:
        raise ValueError(f"A: expected {rows} rows, the sum of the cones, got shape {A.shape}")
    if P is not None and P.shape != (n, n):
        raise ValueError(f"P: expected shape ({n}, {n}), got {P.shape}")
    for name, matrix in (("P", P), ("A", A)):
        if matrix is None:
            continue
        if matrix.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected a real matrix, got dtype {matrix.dtype}")
        if not np.isfinite(matrix.tocsr().data).all():
            raise ValueError(f"{name}: expected finite entries")
    if P is not None and abs(P - P.T).max() > _ASYMMETRY * abs(P).max():
        raise ValueError("P: expected a symmetric matrix, with both triangles")
    sizes = set()
    for name, vector, size in (("q", q, n), ("b", b, m)):
        if vector.ndim not in (1, 2) or vector.shape[-1] != size:
            raise ValueError(
                f"{name}: expected shape ({size},) or (B, {size}), got {tuple(vector.shape)}"
            )
        sizes |= {vector.shape[0]} if vector.ndim == 2 else set()
    if len(sizes) > 1:
        raise ValueError(f"inconsistent batch sizes: {sorted(sizes)}")
    batch = sizes.pop() if sizes else None
    if batch == 0:
        raise ValueError("q, b: the batch is empty")
    return batch


def _refuse(*_: Any) -> Any:
    raise NotImplementedError(
        f"P and A are sparse, with more than {_DENSE} places: such a solve has no derivative yet, "
        "and no vmap"
    )


def solve(
    P: Any, q: Any, A: Any, b: Any, cones: Cones, settings: Settings, warm: Any = None
) -> Solution:
    """`solver.solve` for what `applies`."""
    q, b = problem.as_array("q", q), problem.as_array("b", b)
    batch = _validate(P, q, A, b, cones.rows)
    product = Product(cones)
    device = devices.iterations()
    dtype = mx.float64 if mx.float64 in (q.dtype, b.dtype) else mx.float32
    A = A.tocsr() if product.order is None else A.tocsr()[list(product.order)]
    lanes_ = batch or 1

    @_custom_function
    @on_cpu
    def forward(q: mx.array, b: mx.array) -> tuple[mx.array, ...]:
        wide = [mx.broadcast_to(v.astype(mx.float64), (lanes_, v.shape[-1])) for v in (q, b)]
        try:
            mx.eval(wide)
        except (RuntimeError, ValueError) as error:
            if "transform" in str(error):
                _refuse()
            raise
        rows = problem.reorder(wide[1], product.order, -1)
        program = SparseProgram(None if P is None else Sparse.of(P), wide[0], Sparse.of(A), rows)
        start = None if warm is None else _start(warm, product, lanes_)
        found = run(program, Blocks.of(P, A), product, settings, device, start)
        values = found.residuals
        y, s = (problem.reorder(v, product.inverse, -1) for v in (found.y, found.s))
        info = values.primal, values.dual, values.gap, values.objective
        solved = found.status > 0
        out = [mx.where(solved, v, mx.nan).astype(dtype) for v in info]
        if settings.on_failure == "nan":
            points = [mx.where(solved[:, None], v, mx.nan) for v in (found.x, y, s)]
        else:
            points = [found.x, y, s]
        return *(v.astype(dtype) for v in points), found.status, found.iterations, *out

    forward.vjp(_refuse)
    forward.jvp(_refuse)
    x, y, s, status, iterations, *rest = forward(q, b)
    codes: Any = status.tolist()
    failed = {lane: Status(code) for lane, code in enumerate(codes) if code <= 0}
    if failed and settings.on_failure == "raise":
        raise SolverError(failed)
    info = Info(status, iterations, mx.zeros_like(status), *rest)
    if batch is None:
        return evaluated(Solution(x[0], y[0], s[0], Info(*(v[0] for v in info))))
    return evaluated(Solution(x, y, s, info))


def _start(warm: Any, product: Product, total: int) -> Point:
    """(x, y, s) of a warm start, every lane, rows in internal order."""
    x, y, s = (problem.as_array(f"warm_start.{k}", v) for k, v in zip("xys", warm, strict=False))
    y, s = (problem.reorder(v, product.order, -1) for v in (y, s))
    x, y, s = (mx.broadcast_to(v.astype(mx.float64), (total, v.shape[-1])) for v in (x, y, s))
    return x, y, s


class Answer(NamedTuple):
    """x (B, n), y and s (B, m) in original units, status and iterations (B,), and residuals."""

    x: mx.array
    y: mx.array
    s: mx.array
    status: mx.array
    iterations: mx.array
    residuals: Residuals


class _Iteration(Loop):
    """The splitting loop with conjugate gradients in place of a factor."""

    def __init__(self, blocks: Blocks, *args: Any) -> None:
        super().__init__(*args)
        self.blocks = blocks
        self.costly, self.fuses = True, False

    def _factor(self, scale: mx.array) -> Conjugate:
        same = bool(mx.all(scale == scale[0]).item())
        weights = (scale[:1] if same else scale) * self.unit
        return Conjugate.of(self.blocks, weights, self.settings.rho_x, _RTOL, _MOST)


@on_cpu
def run(
    program: SparseProgram,
    blocks: Blocks,
    cones: Product,
    settings: Settings,
    device: mx.Device,
    warm: Point | None = None,
) -> Answer:
    """Solve every lane.

    Args:
        program (SparseProgram): float64, original units, rows in internal order, finite.
        blocks (Blocks): of its matrices.
        cones (Product): its cones.
        settings (Settings): how; what concerns refinement does not matter.
        device (mx.Device): where the float32 iterations run.
        warm (tuple): x, y and s to start from.
    """
    deadline = time.monotonic() + (settings.time_limit_secs or float("inf"))
    report = Report.start(settings.verbose)
    report.begin(program.lanes, program.n, program.m, cones.cones)
    finite = mx.all(mx.isfinite(program.q), axis=1) & mx.all(mx.isfinite(program.b), axis=1)
    bad = mx.logical_not(finite)[:, None]
    program = program._replace(q=mx.where(bad, 0.0, program.q), b=mx.where(bad, 0.0, program.b))
    scaling, scaled = equilibrate.sparse(program, cones, settings.normalize)
    if warm is None:
        work = loop.cold(scaled, cones, settings)
    else:
        start = [mx.where(mx.isfinite(v), v, 0.0) for v in scaling.scale(*warm)]
        work = loop.warm(scaled, cones, settings, *start)
    blocks = blocks.scaled(scaling.d[0], scaling.e[0])
    found = _Search(scaled, blocks, scaling, cones, settings, finite)
    tolerance = max(settings.eps_abs, settings.eps_rel)
    for dtype, handover in (
        (mx.float32, _SINGLE if tolerance < _SINGLE else 0.0),
        (mx.float64, 0.0),
    ):
        work = found.iterate(work, dtype, handover, device, report, deadline)
    outcome = found.answer(work, time.monotonic() > deadline)
    report.end(outcome.status)
    return outcome


class _Search:
    """One solve: what is open, and verdicts."""

    def __init__(
        self,
        program: SparseProgram,
        blocks: Blocks,
        scaling: Scaling,
        cones: Product,
        settings: Settings,
        finite: mx.array,
    ) -> None:
        self.program, self.blocks = program, blocks
        self.scaling, self.cones = scaling, cones
        self.settings = settings
        good: Any = finite.tolist()
        self.status: list[Status | None] = [None if g else Status.FAILED for g in good]
        self.rays: dict[int, Point] = {}

    def open_lanes(self) -> list[int]:
        """Lanes without a verdict."""
        return [lane for lane, status in enumerate(self.status) if status is None]

    def iterate(
        self,
        work: Splitting,
        dtype: mx.Dtype,
        handover: float,
        device: mx.Device,
        report: Report,
        deadline: float,
    ) -> Splitting:
        """Iterate in one dtype until each lane is where that dtype can bring it."""
        near: set[int] = set()
        while which := [k for k in self.open_lanes() if k not in near]:
            spent: Any = work.iterations.tolist()
            budget = self.settings.max_iters - max(spent[k] for k in which)
            if budget <= 0 or time.monotonic() > deadline:
                break
            chosen = lanes.some(which, self.program.lanes)
            local = self.program if chosen is None else self.program.take(chosen)
            scaling = self.scaling if chosen is None else self.scaling.take(chosen)
            how = self.cones, self.settings, dtype, device, handover, True, EAGER
            one = _Iteration(self.blocks, local, scaling, *how)
            part = one.run(lanes.take(work, chosen), None, budget, report.of(chosen), deadline)
            work = Splitting(*(lanes.put(a, chosen, v) for a, v in zip(work, part, strict=True)))
            self._judge(work, which)
            # What has come as near as this dtype allows does not drift.
            drifts: Any = work.drifts.tolist()
            near |= {k for k in which if not drifts[k]}
        return work

    def _point(self, work: Splitting) -> Point:
        weights = admm.row_weights(work.scale, self.cones)
        return admm.split(self.cones, weights, admm.State(work.x, work.w))

    def _measure(self, work: Splitting) -> Residuals:
        eps = self.settings.eps_abs, self.settings.eps_rel
        return residuals.measure(self.program, self.scaling, *self._point(work), *eps)

    def _judge(self, work: Splitting, which: list[int]) -> None:
        solved: Any = (self._measure(work).violation <= 1.0).tolist()
        for lane in which:
            if solved[lane]:
                self.status[lane] = Status.SOLVED
        infeasible, unbounded, y, x, s = self._certificates(work)
        for lane in which:
            if self.status[lane] is None and infeasible[lane]:
                self.status[lane] = Status.INFEASIBLE
                nothing = mx.full(x[lane].shape, mx.nan, dtype=x.dtype)
                self.rays[lane] = nothing, y[lane], mx.full(y[lane].shape, mx.nan, dtype=y.dtype)
            elif self.status[lane] is None and unbounded[lane]:
                self.status[lane] = Status.UNBOUNDED
                nothing = mx.full(y[lane].shape, mx.nan, dtype=y.dtype)
                self.rays[lane] = x[lane], nothing, s[lane]

    def _certificates(self, work: Splitting) -> tuple[Any, Any, mx.array, mx.array, mx.array]:
        """Lanes whose last steps prove something, and those steps in original units.

        y in K* with b'y = -1 and |A'y| <= eps; x with q'x = -1, |P x| <= eps and A x + s = 0, s in
        K, to eps.
        """
        program, scaling, cones = self.program, self.scaling, self.cones
        eps, one = self.settings.eps_infeas, mx.array(1e-300, dtype=mx.float64)
        ray = cones.project_dual(work.dy)
        value = -dot(program.b / scaling.primal, ray)[:, None]
        y = ray / mx.maximum(value, one)
        off = norm(program.A.transpose_times(y) / scaling.d)
        infeasible: Any = ((value[:, 0] > 0) & (off <= eps) & mx.isfinite(off)).tolist()
        value = -dot(program.q / scaling.dual, work.dx)[:, None]
        x = work.dx / mx.maximum(value, one)
        Ax = program.A.times(x)
        s = cones.project(-Ax)
        bend = norm(program.P_times(x) * scaling.primal / scaling.dual / scaling.d)
        off = mx.maximum(norm((Ax + s) / scaling.e), bend)
        unbounded: Any = ((value[:, 0] > 0) & (off <= eps) & mx.isfinite(off)).tolist()
        return infeasible, unbounded, y * scaling.e, x * scaling.d, s / scaling.e

    def answer(self, work: Splitting, late: bool) -> Answer:
        """Verdicts and points in original units."""
        result = self._measure(work)
        loose: Any = met(result, self.settings, self.settings.loose).tolist()
        for lane in self.open_lanes():
            if loose[lane]:
                self.status[lane] = Status.SOLVED_INACCURATE
            else:
                self.status[lane] = Status.INTERRUPTED if late else Status.INDETERMINATE
        x, y, s = self.scaling.unscale(*self._point(work))
        failed = [lane for lane, status in enumerate(self.status) if status == Status.FAILED]
        for lane in failed:
            self.rays[lane] = x[lane] * mx.nan, y[lane] * mx.nan, s[lane] * mx.nan
        for lane, ray in self.rays.items():
            here = mx.array([lane])
            x, y, s = (lanes.put(v, here, r[None]) for v, r in zip((x, y, s), ray, strict=True))
        codes = [int(status or Status.INDETERMINATE) for status in self.status]
        return Answer(x, y, s, mx.array(codes, dtype=mx.int32), work.iterations, result)
