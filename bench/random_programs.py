"""Statuses, solutions and certificates on random programs with a known answer.

    python bench/random_programs.py --draws 500

Draws programs over zero, nonnegative and second-order cones with n and m up to 60, a tenth each
infeasible and unbounded, and judges every answer with `mlxcone.testing`, which shares no code with
the solver. Each program is solved alone and again as one lane of a batch of four whose other lanes
are NaN, infeasible and another program; the two answers must have the same status, both must pass,
and where the solution is unique they must agree to 1e-9. `--solver` judges SCS or Clarabel
on the same draws instead. The exit code is 1 when a program fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import scipy.sparse as sp

import mlxcone
from mlxcone.testing import Instance, claims, manufacture
from mlxcone.testing.manufacture import Expect

CODES: dict[Expect, int] = {"solved": 1, "infeasible": -2, "unbounded": -1}
KINDS = ["feasible"] * 8 + ["infeasible", "unbounded"]
RESULTS = Path(__file__).resolve().parent / "results"


def draw_cones(rng: np.random.Generator, n: int, m: int) -> dict[str, Any]:
    """Cones that fill m rows; at most n equalities."""
    zero = int(rng.integers(0, min(n, m) + 1)) if rng.random() < 0.5 else 0
    rest = m - zero
    nonneg = int(rng.integers(0, rest + 1)) if rng.random() < 0.8 else 0
    rest -= nonneg
    soc = []
    while rest:
        soc.append(int(rng.integers(1, min(rest, 12) + 1)))
        rest -= soc[-1]
    return {"z": zero, "l": nonneg, "q": soc}


def draw(seed: int) -> tuple[str, Instance, Instance | None, Instance | None] | None:
    """A program and two neighbours of its shape; None where the kind cannot have that shape."""
    rng = np.random.default_rng(seed)
    n, m = (int(rng.integers(1, 61)) for _ in range(2))
    cones, kind = draw_cones(rng, n, m), str(rng.choice(KINDS))
    density = float(rng.choice([1.0, 0.3]))
    rank = None if rng.random() < 0.5 else int(rng.integers(0, n))

    def make(kind: str) -> Instance | None:
        try:
            return getattr(manufacture, kind)(rng, n, cones, quadratic_rank=rank, density=density)
        except ValueError:  # no infeasible program has these cones, for example
            return None

    instance = make(kind)
    return None if instance is None else (kind, instance, make("feasible"), make("infeasible"))


def judge(instance: Instance, status: int, point: list[np.ndarray], tolerance: float) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if status != CODES[instance.expect]:
        return f"status {status}"
    x, y, s = point
    return claims.find_fault(instance, instance.expect, x, y, s, tolerance=tolerance)


def solve_mlxcone(instances: list[Instance | None]) -> tuple[list[int], list[list[np.ndarray]]]:
    """All as one batch; None is a lane of NaN."""
    real = next(i for i in instances if i is not None)
    data = []
    for name in "PqAb":
        like = np.full_like(getattr(real, name), np.nan)
        data.append(np.stack([like if i is None else getattr(i, name) for i in instances]))
    solution = mlxcone.solve(*data, real.cones)
    points = [np.array(v) for v in solution[:3]]
    codes: Any = solution.info.status.tolist()
    return codes, [[v[lane] for v in points] for lane in range(len(instances))]


def solve_alone(instance: Instance) -> tuple[int, list[np.ndarray], int]:
    """Status, (x, y, s) and iterations of one program in mlxcone."""
    solution = mlxcone.solve(instance.P, instance.q, instance.A, instance.b, instance.cones)
    iterations: Any = solution.info.iterations.item()
    status: Any = solution.info.status.item()
    return status, [np.array(v) for v in solution[:3]], iterations


def solve_scs(instance: Instance) -> tuple[int, list[np.ndarray], int]:
    """The same with SCS at its tightest sensible tolerance."""
    import scs

    data = {
        "P": sp.csc_matrix(np.triu(instance.P)),
        "A": sp.csc_matrix(instance.A),
        "b": instance.b,
        "c": instance.q,
    }
    options = {"eps_abs": 1e-9, "eps_rel": 1e-9, "eps_infeas": 1e-9, "verbose": False}
    found = scs.SCS(data, instance.cones, max_iters=20000, **options).solve()
    info = found["info"]
    return info["status_val"], [found[k] for k in "xys"], info["iter"]


def solve_clarabel(instance: Instance) -> tuple[int, list[np.ndarray], int]:
    """The same with Clarabel at 1e-9."""
    import clarabel

    kinds = [
        clarabel.ZeroConeT(instance.cones["z"]),
        clarabel.NonnegativeConeT(instance.cones["l"]),
    ]
    kinds += [clarabel.SecondOrderConeT(d) for d in instance.cones["q"]]
    options = clarabel.DefaultSettings()
    options.verbose = False
    for name in ("tol_gap_abs", "tol_gap_rel", "tol_feas", "tol_infeas_abs", "tol_infeas_rel"):
        setattr(options, name, 1e-9)
    P, A = (sp.csc_matrix(v) for v in (np.triu(instance.P), instance.A))
    found = clarabel.DefaultSolver(P, instance.q, A, instance.b, kinds, options).solve()
    names = {"Solved": 1, "PrimalInfeasible": -2, "DualInfeasible": -1}
    point = [np.array(v) for v in (found.x, found.z, found.s)]
    status = names.get(str(found.status), 0)
    if status == -2:
        point[1] = point[1] / -(instance.b @ point[1])
    if status == -1:
        scale = -(instance.q @ point[0])
        point = [point[0] / scale, point[1], point[2] / scale]
    return status, point, found.iterations


ALONE = {"mlxcone": solve_alone, "scs": solve_scs, "clarabel": solve_clarabel}


def neighbours_change(
    instance: Instance, status: int, point: list[np.ndarray], others: list[Instance | None]
) -> str:
    """What neighbours do to a lane; empty if nothing."""
    codes, points = solve_mlxcone([instance, None, *others])
    wrong = judge(instance, codes[0], points[0], 1e-8)
    if codes[0] != status or wrong:
        return f"in a batch: {wrong or codes[0]}"
    if codes[1] != mlxcone.Status.FAILED:
        return "a lane of NaN did not fail"
    known = [instance.x, instance.y, instance.s]
    if instance.expect != "solved" or any(k is None for k in known):
        return ""

    def apart(left: list[np.ndarray], right: list[Any]) -> float:
        pairs = zip(left, right, strict=True)
        return max(np.abs(u - v).max(initial=0) / (1 + np.abs(v).max(initial=0)) for u, v in pairs)

    # A program with many solutions shows it by an answer that is not the manufactured one.
    unique = apart(point, known) <= 1e-7
    moved = apart(points[0], point)
    return f"in a batch: moved by {moved:.1e}" if unique and moved > 1e-9 else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1000, help="of the first draw")
    parser.add_argument("--solver", choices=sorted(ALONE), default="mlxcone")
    parser.add_argument("--tolerance", type=float, default=1e-8)
    parser.add_argument("--alone", action="store_true", help="leave the batches out")
    options = parser.parse_args()
    mx.set_default_device(mx.cpu)

    rows: list[dict[str, Any]] = []
    began, seed = time.perf_counter(), options.seed
    while len(rows) < options.draws:
        drawn = draw(seed)
        seed += 1
        if drawn is None:
            continue
        _, instance, *others = drawn
        start = time.perf_counter()
        status, point, iterations = ALONE[options.solver](instance)
        seconds = time.perf_counter() - start
        wrong = judge(instance, status, point, options.tolerance)
        if not wrong and options.solver == "mlxcone" and not options.alone:
            wrong = neighbours_change(instance, status, point, others)
        rows.append(
            {
                "seed": seed - 1,
                "n": len(instance.q),
                "cones": instance.cones,
                "expect": instance.expect,
                "status": status,
                "iterations": iterations,
                "seconds": seconds,
                "wrong": wrong,
            }
        )
        if wrong:
            print(f"seed {seed - 1}: {instance.expect}, {instance.cones}: {wrong}", flush=True)
        if len(rows) % 50 == 0:
            clock = time.perf_counter() - began
            print(f"{len(rows)} of {options.draws} programs, {clock:.0f} s", flush=True)
    failed = sum(bool(row["wrong"]) for row in rows)
    for expect in CODES:
        mine = [row for row in rows if row["expect"] == expect]
        middle = {k: np.median([row[k] for row in mine]) for k in ("iterations", "seconds")}
        right = sum(not row["wrong"] for row in mine)
        print(
            f"{expect:<11}{right:>4} of {len(mine):>4} right; median {middle['iterations']:.0f} "
            f"iterations, {1e3 * middle['seconds']:.0f} ms"
        )
    print(f"{options.solver}: {len(rows) - failed} of {len(rows)} right at {options.tolerance:g}")
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"random_programs-{options.solver}.json"
    target.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"results in {target}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
