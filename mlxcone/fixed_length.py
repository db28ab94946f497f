"""A solve of fixed length, as one graph: nothing is evaluated, so `mx.compile` can have it.

The same step, factor and Newton step as in the ladder, but every lane goes the whole way and the
best Newton iterate of each is kept. There are no certificates: a lane without a solution is
INDETERMINATE.
"""

from __future__ import annotations

import mlx.core as mx

from mlxcone import cascade as ladder
from mlxcone.backend.devices import on_cpu
from mlxcone.cascade import Setup
from mlxcone.cones.product import Product
from mlxcone.methods import admm, refine
from mlxcone.methods.admm import State
from mlxcone.methods.outcomes import Outcome
from mlxcone.program import equilibrate, residuals
from mlxcone.program.equilibrate import Scaling
from mlxcone.program.problem import Program, not_finite, without
from mlxcone.program.residuals import Residuals
from mlxcone.settings import Settings
from mlxcone.status import Status


def _splitting(
    program: Program,
    setup: Setup,
    cones: Product,
    settings: Settings,
    device: mx.Device,
    start: State,
) -> State:
    """``fixed_iters`` iterations in float32 on the device."""
    lanes = program.lanes
    scale = mx.full((lanes, 1), admm.first_scale(settings, cones), dtype=mx.float64)
    op = admm.Operator(
        program.astype(mx.float32),
        setup.factor.astype(mx.float32),
        admm.row_weights(scale, cones).astype(mx.float32),
        settings.alpha,
    )
    state = State(start.x.astype(mx.float32), start.w.astype(mx.float32))
    with mx.stream(device):
        steps = settings.fixed_iters
        state, _ = admm.advance(cones, op, state, None, steps, steps)
    return State(state.x.astype(mx.float64), state.w.astype(mx.float64))


@on_cpu
def run(
    program: Program,
    cones: Product,
    settings: Settings,
    device: mx.Device,
    warm: tuple[mx.array, mx.array, mx.array] | None = None,
    setup: Setup | None = None,
    precision: float = 0.0,
) -> Outcome:
    """Solve every lane in ``fixed_iters`` iterations and ``newton_iters`` Newton steps.

    Arguments and result as `ladder.run`; the result is a graph of the program.
    """
    bad = not_finite(program)
    original = without(program, bad)
    setup = setup or ladder.prepare(original, cones, settings)
    scaling, scaled = equilibrate.normalize(setup.matrices, original, settings.normalize)
    first = mx.full((program.lanes, 1), admm.first_scale(settings, cones), dtype=mx.float64)
    weights = admm.row_weights(first, cones)
    start = State(mx.zeros_like(scaled.q), mx.zeros_like(scaled.b))
    if warm is not None:
        start = admm.join(
            weights, *scaling.scale(*(mx.where(mx.isfinite(v), v, 0.0) for v in warm))
        )
    state = _splitting(scaled, setup, cones, settings, device, start)
    x, y, s = admm.split(cones, weights, state)
    z = y - s

    eps = settings.eps_abs, settings.eps_rel

    def judged(x: mx.array, z: mx.array, eps_abs: float, eps_rel: float) -> Residuals:
        y = cones.project_dual(z)
        return residuals.measure(scaled, scaling, x, y, y - z, eps_abs, eps_rel)

    steps = settings.newton_iters if settings.refine else 0
    best_x, best_z, best = x, z, judged(x, z, *eps).violation
    for _ in range(steps):
        x, z = refine.newton_step(scaled, cones, x, z, *cones.linearize(z))
        now = judged(x, z, *eps).violation
        better = now < best  # False for NaN
        best_x = mx.where(better[:, None], x, best_x)
        best_z = mx.where(better[:, None], z, best_z)
        best = mx.where(better, now, best)
    y = cones.project_dual(best_z)
    result = judged(best_x, best_z, *eps)
    status = mx.full((program.lanes,), int(Status.INDETERMINATE), dtype=mx.int32)
    tolerances = ((settings.loose, Status.SOLVED_INACCURATE), (2.0 * precision, Status.SOLVED))
    for at_least, verdict in (*tolerances, (0.0, Status.SOLVED)):
        good = judged(best_x, best_z, *(max(e, at_least) for e in eps)).violation <= 1.0
        status = mx.where(good, int(verdict), status)
    x, y, s = (mx.where(bad[:, None], mx.nan, v) for v in scaling.unscale(best_x, y, y - best_z))
    count = mx.zeros_like(status)
    d, e = (mx.broadcast_to(a, (program.lanes, a.shape[1])) for a in scaling[:2])
    return Outcome(
        x,
        y,
        s,
        mx.where(bad, int(Status.FAILED), status),
        count + settings.fixed_iters,
        count + steps,
        result.primal,
        result.dual,
        result.gap,
        Scaling(d, e, scaling.primal, scaling.dual),
    )
