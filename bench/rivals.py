"""Ways to solve a batch of one layer, each behind the same two calls.

``prepare(case, batch)`` builds the layer of a way and its parameter values in the types that this
way wants, outside of what is timed, and gives a `Way`: ``forward()`` solves the batch,
``both()`` also gives the gradients of the sum of squares of the answer in every parameter.
Both have finished when they return. A way that cannot solve a case raises `NotImplementedError`
from ``prepare``, and the comparison goes on without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import scipy.sparse as sp
from cases import Case

import mlxcone
from cvxpylayers_mlx import CvxpyLayer

Array = np.ndarray


class Way(NamedTuple):
    """Two calls, of which ``forward`` gives the first variable, (B, ...), and maybe statistics."""

    forward: Callable[[], Array]
    both: Callable[[], Any] | None
    statistics: Callable[[], dict[str, Any]] = dict


def ours(case: Case, batch: int) -> Way:
    """`CvxpyLayer` of this project, default settings, float32 in and out.

    Compiled from the second call on, as it is after a minute by itself.
    """
    options = {"on_failure": "return", "compile_after_secs": 1e-9}
    layer = CvxpyLayer(*case.build(), solver_args=options)
    values = [mx.array(v) for v in case.values(batch)]
    which = list(range(len(values)))
    both = mx.value_and_grad(lambda *p: mx.sum(mx.square(layer(*p)[0])), argnums=which)

    def forward() -> Array:
        (x, *_) = layer(*values)
        mx.eval(x)
        return np.array(x)

    def gradients() -> Any:
        found = both(*values)
        mx.eval(found)
        return found

    def statistics() -> dict[str, Any]:
        info = layer.solve(*values).info
        status, iterations = np.array(info.status), np.array(info.iterations)
        return {
            "solved": float((status == mlxcone.Status.SOLVED).mean()),
            "iterations": float(iterations.mean()),
            "factorizations": float(np.array(info.factorizations).mean()),
        }

    return Way(forward, gradients, statistics)


def cvxpylayers(case: Case, batch: int) -> Way:
    """`cvxpylayers.mlx`, default settings: SCS in a pool of threads, diffcp's derivatives."""
    from cvxpylayers.mlx import CvxpyLayer as Peer

    layer = Peer(*case.build())
    values = [mx.array(v) for v in case.values(batch)]
    which = list(range(len(values)))
    both = mx.value_and_grad(lambda *p: mx.sum(mx.square(layer(*p)[0])), argnums=which)

    def forward() -> Array:
        (x, *_) = layer(*values)
        mx.eval(x)
        return np.array(x)

    def gradients() -> Any:
        found = both(*values)
        mx.eval(found)
        return found

    return Way(forward, gradients)


class _Canonical(NamedTuple):
    """Cone programs of a batch in float64, P and A on their joint patterns, and what x holds."""

    P: Array
    P_pattern: sp.csr_matrix
    q: Array
    A: Array
    A_pattern: sp.csr_matrix
    b: Array
    cones: mlxcone.Cones
    recover: Callable[[Array], Array]


@mlxcone.on_cpu
def _canonical(case: Case, batch: int) -> _Canonical:
    layer: Any = CvxpyLayer(*case.build())
    values = [mx.array(v, dtype=mx.float64) for v in case.values(batch)]
    from cvxpylayers_mlx import parameters, recover

    checked = parameters.check(tuple(values), layer._shapes, layer._complex)
    form = layer._canonical
    selected = parameters.select(checked, form.picks)
    P, q, A, b = (
        None if part is None else np.array(layer._data(selected, part))
        for part in (form.P, form.q, form.A, form.b)
    )
    n = q.shape[-1]
    P = np.zeros((n, n)) if P is None else P
    P, A = (np.broadcast_to(v, (batch, *v.shape[-2:])) for v in (P, A))
    q, b = (np.broadcast_to(v, (batch, v.shape[-1])) for v in (q, b))

    def pattern(matrices: Array) -> sp.csr_matrix:
        return sp.csr_matrix((matrices != 0).any(axis=0).astype(float))

    def packed(matrices: Array, where: sp.csr_matrix) -> Array:
        rows = np.repeat(np.arange(where.shape[0]), np.diff(where.indptr))
        return np.ascontiguousarray(matrices[:, rows, where.indices])

    P_pattern, A_pattern = pattern(P + np.swapaxes(P, 1, 2)), pattern(A)
    variable = form.variables[0]

    @mlxcone.on_cpu
    def first(x: Array) -> Array:
        wide = mx.array(x, dtype=mx.float64)
        return np.array(recover.value(wide, wide, variable, mx.float64))

    return _Canonical(
        packed(P, P_pattern), P_pattern, q, packed(A, A_pattern), A_pattern, b, form.cones, first
    )


def _triangles(orders: tuple[int, ...], start: int) -> Array:
    """Rows of semidefinite cones, lower triangles by columns, as upper triangles by columns."""
    moved = []
    for k in orders:
        place = {}
        for j in range(k):
            for i in range(j, k):
                place[i, j] = len(place)
        moved += [start + place[j, i] for j in range(k) for i in range(j + 1)]
        start += k * (k + 1) // 2
    return np.array(moved, dtype=int)


def moreau(case: Case, batch: int) -> Way:
    """Moreau through torch, default settings, on data canonicalized beforehand.

    It gets cone programs for nothing, and gives gradients in these: less than the others do.
    """
    import moreau as peer
    import moreau.torch as peer_torch
    import torch

    data = _canonical(case, batch)
    cones = data.cones
    if cones.box or cones.exp_dual or cones.power_nd or any(a < 0 for a in cones.power):
        raise NotImplementedError("Moreau has no box, dual or n-dimensional power cones")
    # Exponential cones are the same triples in another order nowhere: SCS's is Moreau's.
    keep = np.arange(cones.rows)
    first = cones.zero + cones.nonneg + sum(cones.soc)
    if cones.psd:
        moved = _triangles(cones.psd, first)
        keep[first : first + moved.size] = moved
    A = sp.csr_matrix(
        (np.arange(1.0, data.A.shape[1] + 1), data.A_pattern.indices, data.A_pattern.indptr),
        shape=data.A_pattern.shape,
    )[keep]
    order = A.data.astype(int) - 1
    theirs = peer.Cones(
        num_zero_cones=cones.zero,
        num_nonneg_cones=cones.nonneg,
        so_cone_dims=list(cones.soc),
        num_exp_cones=cones.exp,
        power_alphas=list(cones.power),
        psd_dims=list(cones.psd),
    )
    settings = peer.Settings(device="cpu", batch_size=batch, enable_grad=True)

    def index(array: Array) -> Any:
        return torch.tensor(array.astype(np.int64))

    solver = peer_torch.Solver(
        data.q.shape[1],
        data.b.shape[1],
        index(data.P_pattern.indptr),
        index(data.P_pattern.indices),
        index(A.indptr),
        index(A.indices),
        theirs,
        settings,
    )
    P, values, q, b = (
        torch.tensor(np.array(v)) for v in (data.P, data.A[:, order], data.q, data.b[:, keep])
    )

    def solve(track: bool) -> tuple[Any, list[Any]]:
        inputs = [v.clone().requires_grad_(track) for v in (P, values, q, b)]
        return solver.solve(*inputs), inputs

    def forward() -> Array:
        with torch.no_grad():
            return data.recover(solve(False)[0].x.numpy())

    def both() -> Any:
        found, inputs = solve(True)
        found.x.square().sum().backward()
        return [v.grad for v in inputs]

    return Way(forward, both)


def qpth(case: Case, batch: int) -> Way:
    """Qpth's batched interior points, float64, for the QP alone."""
    if case.name != "dense QP":
        raise NotImplementedError("qpth: quadratic programs with inequalities only")
    import torch
    from qpth.qp import QPFunction

    inputs = [torch.tensor(v, dtype=torch.float64) for v in case.values(batch)]
    none = torch.Tensor().double()

    def solve(root: Any, q: Any, A: Any, b: Any) -> Any:
        Q = root.transpose(1, 2) @ root
        return QPFunction(verbose=-1, check_Q_spd=False)(Q, q, A, b, none, none)

    def forward() -> Array:
        with torch.no_grad():
            return solve(*inputs).numpy()

    def both() -> Any:
        leaves = [v.clone().requires_grad_() for v in inputs]
        solve(*leaves).square().sum().backward()
        return [v.grad for v in leaves]

    return Way(forward, both)


def _one_by_one(solve: Callable[[_Canonical, int], Array]) -> Callable[[Case, int], Way]:
    def prepare(case: Case, batch: int) -> Way:
        data = _canonical(case, batch)

        def forward() -> Array:
            return data.recover(np.stack([solve(data, lane) for lane in range(batch)]))

        return Way(forward, None)

    return prepare


def _matrices(data: _Canonical, lane: int) -> tuple[sp.csc_matrix, sp.csc_matrix]:
    P, A = (
        sp.csr_matrix((values[lane], where.indices, where.indptr), shape=where.shape).tocsc()
        for values, where in ((data.P, data.P_pattern), (data.A, data.A_pattern))
    )
    return P, A


def _scs(data: _Canonical, lane: int) -> Array:
    import scs

    P, A = _matrices(data, lane)
    c = data.cones
    cone = {"z": c.zero, "l": c.nonneg, "q": list(c.soc), "s": list(c.psd), "ep": c.exp}
    program = {"P": sp.triu(P).tocsc(), "A": A, "b": data.b[lane].copy(), "c": data.q[lane].copy()}
    return scs.SCS(program, cone, verbose=False, eps_abs=1e-6, eps_rel=1e-6).solve()["x"]


def _clarabel(data: _Canonical, lane: int, tolerance: float = 1e-8) -> Array:
    import clarabel

    P, A = _matrices(data, lane)
    c, b = data.cones, data.b[lane]
    first = c.zero + c.nonneg + sum(c.soc)
    keep = np.arange(c.rows)
    moved = _triangles(c.psd, first)
    keep[first : first + moved.size] = moved
    cones: list[Any] = [clarabel.ZeroConeT(c.zero)] if c.zero else []
    cones += [clarabel.NonnegativeConeT(c.nonneg)] if c.nonneg else []
    cones += [clarabel.SecondOrderConeT(k) for k in c.soc]
    cones += [clarabel.PSDTriangleConeT(k) for k in c.psd]
    cones += [clarabel.ExponentialConeT()] * c.exp
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
    A = A.tocsr()[keep].tocsc()
    return np.array(
        clarabel.DefaultSolver(sp.triu(P).tocsc(), data.q[lane], A, b[keep], cones, settings)
        .solve()
        .x
    )


WAYS: dict[str, Callable[[Case, int], Way]] = {
    "mlxcone": ours,
    "cvxpylayers.mlx": cvxpylayers,
    "moreau": moreau,
    "qpth": qpth,
    "scs": _one_by_one(_scs),
    "clarabel": _one_by_one(_clarabel),
}


def exact(case: Case, batch: int, lanes: int) -> Array:
    """Clarabel's answers to the first lanes of a batch, at tight tolerances."""
    data = _canonical(case, batch)
    return data.recover(np.stack([_clarabel(data, lane, 1e-12) for lane in range(lanes)]))


def relative_error(found: Array, reference: Array) -> float:
    """Largest over the batch, relative to the largest entry of each."""
    found, reference = (v.reshape(len(v), -1) for v in (found, reference))
    size = np.maximum(np.abs(reference).max(axis=1), math.ulp(1.0))
    return float((np.abs(found - reference).max(axis=1) / size).max())
