"""A sparse lasso or flow problem of a million entries, through conjugate gradients.

    python bench/sparse_size.py [--kind lasso|flow] [--size 33334] [--eps 1e-4] [--peers]

lasso: minimize 1/2 |r|^2 + lambda 1't subject to F x - r = b, |x| <= t; F is (size, size) with 27
entries a row, so that n = m = 3 size. flow: the cheapest flow through a network of ``size`` arcs
that have capacities. Prints seconds, iterations, peak memory, and what the verifier finds; with
--peers also the same for SCS (its indirect solver) and Clarabel, each in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from typing import Any

import mlx.core as mx
import numpy as np
import scipy.sparse as sp

import mlxcone
from mlxcone.testing import verify_solution

SOLVERS = ("mlxcone", "scs", "clarabel")
Data = tuple[Any, np.ndarray, Any, np.ndarray, dict[str, Any]]


def lasso(size: int, rng: np.random.Generator, width: int = 27) -> Data:
    """The penalty is a tenth of the smallest with x = 0; the x behind b has 5 % of entries."""
    F: Any = sp.random(
        size, size, density=width / size, random_state=rng, data_rvs=rng.standard_normal
    )
    truth = np.where(rng.random(size) < 0.05, rng.standard_normal(size), 0.0)
    b = F @ truth + 0.1 * rng.standard_normal(size)
    penalty = 0.1 * np.abs(F.T @ b).max()
    one, none = sp.eye(size), sp.csr_matrix((size, size))
    P = sp.block_diag([none, none, one]).tocsc()
    q = np.concatenate([np.zeros(size), np.full(size, penalty), np.zeros(size)])
    A: Any = sp.bmat([[F, None, -one], [one, -one, None], [-one, -one, None]])
    return P, q, A.tocsc(), np.concatenate([b, np.zeros(2 * size)]), {"z": size, "l": 2 * size}


def flow(size: int, rng: np.random.Generator) -> Data:
    """A random network with five arcs to a node, one cycle through all nodes among them."""
    nodes = size // 5
    tail = np.concatenate([np.arange(nodes), rng.integers(0, nodes, size - nodes)])
    head = (tail + 1 + rng.integers(0, nodes - 1, size)) % nodes
    head[:nodes] = (np.arange(nodes) + 1) % nodes
    arcs, one = np.arange(size), sp.eye(size)
    sign = np.concatenate([np.ones(size), -np.ones(size)])
    places = np.concatenate([tail, head]), np.concatenate([arcs, arcs])
    network = sp.csr_matrix((sign, places), shape=(nodes, size))
    some = rng.uniform(0.0, 1.0, size) * (rng.random(size) < 0.3)
    capacity = some + rng.uniform(0.1, 1.0, size)
    A: Any = sp.vstack([network, -one, one])
    b = np.concatenate([network @ some, np.zeros(size), capacity])
    return None, rng.uniform(0.5, 2.0, size), A.tocsc(), b, {"z": nodes, "l": 2 * size}


def by_mlxcone(data: Data, eps: float, verbose: bool) -> tuple[Any, int, str]:
    found = mlxcone.solve(*data, eps=eps, verbose=verbose)
    mx.eval(found)
    point = [np.array(v, dtype=np.float64) for v in found[:3]]
    return point, int(found.info.iterations.item()), mlxcone.Status(found.info.status.item()).name


def by_scs(data: Data, eps: float, verbose: bool) -> tuple[Any, int, str]:
    import scs

    P, q, A, b, cones = data
    given = {"A": A, "b": b, "c": q} | ({} if P is None else {"P": P})
    tolerances = {"eps_abs": eps, "eps_rel": eps, "max_iters": 2000}
    how = scs.LinearSolver.CPU_INDIRECT
    found = scs.SCS(given, cones, linear_solver=how, verbose=verbose, **tolerances).solve()
    info = found["info"]
    return (found["x"], found["y"], found["s"]), info["iter"], info["status"]


def by_clarabel(data: Data, eps: float, verbose: bool) -> tuple[Any, int, str]:
    import clarabel

    P, q, A, b, cones = data
    P = sp.csc_matrix(A.shape[1:] * 2) if P is None else sp.triu(P).tocsc()
    settings = clarabel.DefaultSettings()
    settings.verbose = verbose
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = eps
    kinds = [clarabel.ZeroConeT(cones["z"]), clarabel.NonnegativeConeT(cones["l"])]
    found = clarabel.DefaultSolver(P, q, A, b, kinds, settings).solve()
    return (found.x, found.z, found.s), found.iterations, str(found.status)


def one(solver: str, kind: str, size: int, eps: float, verbose: bool) -> bool:
    """Solve, verify, print; whether the answer is as good as asked for."""
    rng = np.random.default_rng(0)
    data = lasso(size, rng) if kind == "lasso" else flow(size, rng)
    by = {"mlxcone": by_mlxcone, "scs": by_scs, "clarabel": by_clarabel}[solver]
    begin = time.perf_counter()
    point, iterations, status = by(data, eps, verbose)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = peak / 2**20 if sys.platform == "linux" else peak / 2**30
    verdict = verify_solution(*data, *point)
    n, m, entries = data[2].shape[1], data[2].shape[0], data[2].nnz
    size = f"n {n} m {m} entries {entries}"
    cost = f"{seconds:7.1f} s, {iterations} iterations, {peak:.2f} GiB"
    end = f"{status}, worst {verdict.worst:.1e}, objective {verdict.objective:.6g}"
    print(f"{solver:8} {kind} {size}: {cost}, {end}", flush=True)
    return verdict.worst <= eps


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", choices=("lasso", "flow"), default="lasso")
    parser.add_argument("--size", type=int, default=33334)
    parser.add_argument("--eps", type=float, default=1e-4)
    parser.add_argument("--solver", choices=SOLVERS, default=SOLVERS[0])
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for a peer")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    good = one(args.solver, args.kind, args.size, args.eps, args.verbose)
    same = ["--kind", args.kind, "--size", str(args.size), "--eps", str(args.eps)]
    for peer in SOLVERS[1:] if args.peers else ():
        command = [sys.executable, __file__, *same, "--solver", peer]
        try:
            code = subprocess.run(command, timeout=args.limit, check=False).returncode
            if code < 0:
                print(
                    f"{peer:8} {args.kind}: killed by signal {-code} (9: out of memory)", flush=True
                )
        except subprocess.TimeoutExpired:
            print(f"{peer:8} {args.kind}: over {args.limit:.0f} s", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
