"""The real problems of data/conic: status, accuracy and time, beside SCS and Clarabel.

    python bench/real_problems.py --data ../shared/data/conic [--only NAME ...] [--peers] [--add]

Public test sets (Maros-Meszaros, Netlib, SDPLIB, DIMACS, CBLIB) in SCS's form with known optima.
Float64 data, default settings, one process a problem. Answers are judged by `mlxcone.testing` from
x, y, s and the data alone: KKT residual (the worst of primal, dual, gap and distances to the cones,
relative) and error of the objective. The core set has n <= 600 and m <= 2500. Writes the rows, a
table of them and a picture to bench/results. The exit code is 1 for a wrong "infeasible" or
"unbounded", or a crash.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlxcone.testing import verify_infeasible, verify_solution, verify_unbounded

RESULTS = Path(__file__).resolve().parent / "results"
EXPECTED = {"solved": 1, "primal_infeasible": -2, "dual_infeasible": -1}
LIMIT = 60.0


def load(path: Path) -> dict[str, Any]:
    """P, q, A, b, cones, meta and the reference objective of a problem."""
    with np.load(path) as file:
        d = dict(file)
    m, n = (int(v) for v in d["shape"])
    cones: dict[str, Any] = {"z": int(d["cone_z"]), "l": int(d["cone_l"])}
    if d["cone_bl"].size:
        cones |= {"bl": d["cone_bl"].tolist(), "bu": d["cone_bu"].tolist()}
    cones |= {"q": d["cone_q"].tolist(), "s": d["cone_s"].tolist()}
    cones |= {"ep": int(d["cone_ep"]), "ed": int(d["cone_ed"]), "p": d["cone_p"].tolist()}
    P = sp.csc_matrix((d["P_data"], d["P_indices"], d["P_indptr"]), shape=(n, n))
    return {
        "P": P if P.nnz else None,
        "A": sp.csc_matrix((d["A_data"], d["A_indices"], d["A_indptr"]), shape=(m, n)),
        "q": d["q"],
        "b": d["b"],
        "cones": cones,
        "meta": json.loads(str(d["meta"])),
        "objective": float(d["ref_obj"]),
    }


def by_mlxcone(problem: dict[str, Any]) -> dict[str, Any]:
    """Status, x, y, s and effort."""
    import mlx.core as mx

    import mlxcone

    mx.set_default_device(mx.cpu)
    args = [problem[k] for k in ("P", "q", "A", "b")]
    found = mlxcone.solve(*args, problem["cones"])
    mx.eval(found)
    x, y, s = (np.array(v, dtype=np.float64) for v in found[:3])
    info = found.info
    return {
        "status": int(info.status.item()),
        "iterations": int(info.iterations.item()),
        "factorizations": int(info.factorizations.item()),
        "point": (x, y, s),
    }


def by_scs(problem: dict[str, Any], eps: float = 1e-6) -> dict[str, Any]:
    """SCS at 1e-6."""
    import scs

    data = {"A": problem["A"], "b": problem["b"], "c": problem["q"]}
    if problem["P"] is not None:
        data["P"] = sp.triu(problem["P"], format="csc")
    cones = {k: v for k, v in problem["cones"].items() if v}
    solver = scs.SCS(
        data, cones, eps_abs=eps, eps_rel=eps, time_limit_secs=LIMIT, max_iters=10**6, verbose=False
    )
    out = solver.solve()
    info = out["info"]
    return {
        "status": int(info["status_val"]),
        "iterations": int(info["iter"]),
        "factorizations": 0,
        "point": (out["x"], out["y"], out["s"]),
    }


def by_clarabel(problem: dict[str, Any]) -> dict[str, Any]:
    """Clarabel at its defaults, through CVXPY-free calls; it has no box cone and none is needed."""
    import clarabel

    A, b, cones, back = _without_box(problem)
    n = A.shape[1]
    P = problem["P"] if problem["P"] is not None else sp.csc_matrix((n, n))
    # Clarabel's triangles are the upper ones, column by column.
    order = np.arange(A.shape[0])
    row = cones["z"] + cones["l"] + sum(cones["q"])
    kinds: list[Any] = []
    if cones["z"]:
        kinds.append(clarabel.ZeroConeT(cones["z"]))
    if cones["l"]:
        kinds.append(clarabel.NonnegativeConeT(cones["l"]))
    kinds += [clarabel.SecondOrderConeT(k) for k in cones["q"]]
    for k in cones["s"]:
        places = [(i, j) for j in range(k) for i in range(j, k)]
        lower = {place: p for p, place in enumerate(places)}
        upper = [lower[j, i] for j in range(k) for i in range(j + 1)]
        order[row : row + len(upper)] = row + np.array(upper)
        row += len(upper)
        kinds.append(clarabel.PSDTriangleConeT(k))
    kinds += [clarabel.ExponentialConeT()] * cones["ep"]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.time_limit = LIMIT
    solver = clarabel.DefaultSolver(
        sp.triu(P, format="csc"), problem["q"], A[order].tocsc(), b[order], kinds, settings
    )
    out = solver.solve()
    codes = {"Solved": 1, "AlmostSolved": 2, "PrimalInfeasible": -2, "DualInfeasible": -1}
    codes |= {"AlmostPrimalInfeasible": -7, "AlmostDualInfeasible": -6}
    y, s = np.zeros(A.shape[0]), np.zeros(A.shape[0])
    y[order], s[order] = out.z, out.s
    return {
        "status": codes.get(str(out.status), -4),
        "iterations": int(out.iterations),
        "factorizations": int(out.iterations),
        "point": (np.array(out.x), *back(y, s)),
    }


def _without_box(problem: dict[str, Any]) -> tuple[Any, np.ndarray, dict[str, Any], Any]:
    """The box cone as inequalities t l <= r <= t u, t >= 0, and the way back of y and s."""
    A, b, cones = problem["A"].tocsr(), problem["b"], problem["cones"]
    if "bl" not in cones:
        return A, b, cones, lambda y, s: (y, s)
    low, high = np.array(cones["bl"]), np.array(cones["bu"])
    at = cones["z"] + cones["l"]
    rows = np.arange(at + 1, at + 1 + low.size)
    below, above = np.abs(low) < 1e15, np.abs(high) < 1e15
    pick = sp.eye_array(A.shape[0], format="csr")
    parts = [pick[: at + 1]]
    if below.any():
        parts.append(pick[rows[below]] - sp.csr_array(low[below][:, None]) @ pick[[at]])
    if above.any():
        parts.append(-pick[rows[above]] + sp.csr_array(high[above][:, None]) @ pick[[at]])
    parts.append(pick[at + 1 + low.size :])
    M = sp.vstack(parts, format="csr")
    count = int(below.sum() + above.sum())
    fewer = {k: v for k, v in cones.items() if k not in ("bl", "bu")}
    fewer["l"] = cones["l"] + 1 + count

    def back(y: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        full = M.T @ y
        whole = np.zeros(A.shape[0])
        whole[: at + 1], whole[at + 1 + low.size :] = s[: at + 1], s[at + 1 + count :]
        found = np.zeros(low.size)
        found[below] = s[at + 1 : at + 1 + below.sum()] + low[below] * s[at]
        other = above & ~below
        upper = np.full(low.size, np.nan)
        upper[above] = high[above] * s[at] - s[at + 1 + below.sum() : at + 1 + count]
        found[other] = upper[other]
        whole[at + 1 : at + 1 + low.size] = found
        return full, whole

    return sp.csr_matrix(M @ A), M @ b, fewer, back


SOLVERS = {"mlxcone": by_mlxcone, "scs": by_scs, "clarabel": by_clarabel}


def judge(problem: dict[str, Any], answer: dict[str, Any]) -> dict[str, float]:
    """KKT residual and error of the objective, or how far a certificate is from one."""
    x, y, s = answer["point"]
    P, q, A, b, cones = (problem[k] for k in ("P", "q", "A", "b", "cones"))
    if answer["status"] in (-2, -7):
        return {"kkt": verify_infeasible(A, b, cones, y), "objective": np.nan}
    if answer["status"] in (-1, -6):
        return {"kkt": verify_unbounded(P, q, A, cones, x, s), "objective": np.nan}
    verdict = verify_solution(P, q, A, b, cones, x, y, s)
    reference = problem["objective"]
    error = abs(verdict.objective - reference) / (1.0 + abs(reference))
    return {"kkt": verdict.worst, "objective": error}


def run_one(path: Path, solver: str) -> None:
    """Solve one problem in this process and print the row."""
    problem = load(path)
    begun = time.perf_counter()
    answer = SOLVERS[solver](problem)
    seconds = time.perf_counter() - begun
    row = {k: answer[k] for k in ("status", "iterations", "factorizations")}
    print("ROW " + json.dumps({**row, "seconds": seconds, **judge(problem, answer)}))


def run(path: Path, solver: str, limit: float) -> dict[str, Any]:
    """The row of one problem, solved in a process of its own."""
    problem = load(path)
    m, n = problem["A"].shape
    expected = EXPECTED[problem["meta"]["expect"]]
    base = {"name": path.stem, "solver": solver, "n": n, "m": m, "expected": expected}
    command = [sys.executable, __file__, "--one", str(path), "--solver", solver]
    failed = {"status": -5, "iterations": 0, "factorizations": 0, "kkt": np.inf}
    failed |= {"objective": np.inf, "seconds": limit}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {**base, **failed, "note": "time"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("ROW ")]
    if not lines:
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        return {**base, **failed, "note": f"crash: {last}"}
    return {**base, **json.loads(lines[-1][4:]), "note": ""}


def is_right(row: dict[str, Any]) -> bool:
    """Whether the status is the expected one."""
    return row["status"] == row["expected"] or (row["expected"] == 1 and row["status"] == 2)


def is_exact(row: dict[str, Any]) -> bool:
    """Right, to 1e-6 in the KKT conditions and 1e-5 in the objective."""
    close = row["expected"] != 1 or row["objective"] <= 1e-5
    return is_right(row) and row["kkt"] <= 1e-6 and close


def is_wrong(row: dict[str, Any]) -> bool:
    """Whether it claims a certificate that cannot be."""
    return row["status"] in (-1, -2, -6, -7) and not is_right(row)


def is_core(row: dict[str, Any]) -> bool:
    """The set that the figures are about."""
    return row["n"] <= 600 and row["m"] <= 2500


def summary(rows: list[dict[str, Any]]) -> str:
    """Counts per solver, on the core set and on the rest."""
    lines = []
    for solver in dict.fromkeys(row["solver"] for row in rows):
        for name, core in (("core", True), ("rest", False)):
            part = [r for r in rows if r["solver"] == solver and is_core(r) is core]
            if part:
                wrong = [r["name"] for r in part if is_wrong(r)]
                lines.append(
                    f"{solver} {name}: {len(part)} problems, status right "
                    f"{sum(map(is_right, part))}, exact {sum(map(is_exact, part))}, "
                    f"{sum(r['seconds'] for r in part):.0f} s"
                    + (f", wrong verdicts: {wrong}" if wrong else "")
                )
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown: a line for each problem, and for each solver how it ended."""
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    found = {(row["name"], row["solver"]): row for row in rows}
    lines = ["| problem | n | m | " + " | ".join(solvers) + " |", "|---" * (3 + len(solvers)) + "|"]
    for name in sorted({row["name"] for row in rows}):
        cells = [_cell(found.get((name, solver))) for solver in solvers]
        first = next(row for row in rows if row["name"] == name)
        lines.append(f"| {name} | {first['n']} | {first['m']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    verdict = "exact" if is_exact(row) else "right" if is_right(row) else "missed"
    verdict = "**wrong**" if is_wrong(row) else verdict
    size = f", {row['kkt']:.0e}" if np.isfinite(row["kkt"]) else ""
    return f"{verdict}{size}, {row['seconds']:.1f} s"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """How many problems of the core set are solved exactly within a time."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    core = [row for row in rows if is_core(row)]
    if not core:
        return
    figure, axis = plt.subplots(figsize=(6.5, 4))
    for solver in dict.fromkeys(row["solver"] for row in core):
        times = sorted(r["seconds"] for r in core if r["solver"] == solver and is_exact(r))
        if times:
            axis.step([*times, LIMIT], [*range(1, len(times) + 1), len(times)], label=solver)
    axis.axhline(len({row["name"] for row in core}), color="0.7", linewidth=0.8)
    axis.set(xscale="log", xlabel="seconds", ylabel="problems solved to 1e-6 (objective 1e-5)")
    axis.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/conic"))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--core", action="store_true", help="n <= 600 and m <= 2500 only")
    parser.add_argument("--rest", action="store_true", help="all others")
    parser.add_argument("--peers", action="store_true", help="SCS and Clarabel in the same run")
    parser.add_argument("--limit", type=float, default=LIMIT + 20.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--add", action="store_true", help="to the results that there are")
    parser.add_argument("--one", type=Path)
    parser.add_argument("--solver", default="mlxcone", choices=SOLVERS)
    args = parser.parse_args()
    if args.one:
        run_one(args.one, args.solver)
        return 0
    paths = sorted(args.data.glob("*.npz"))
    if not paths:
        print(f"{args.data}: no problems there")
        return 0
    paths = [p for p in paths if not args.only or p.stem in args.only]
    if args.core or args.rest:
        shapes = {p: load(p)["A"].shape for p in paths}
        small = {p: shapes[p][1] <= 600 and shapes[p][0] <= 2500 for p in paths}
        paths = [p for p in paths if small[p] == args.core]
    solvers = list(SOLVERS) if args.peers else [args.solver]
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(args.workers) as pool:
        jobs = [pool.submit(run, p, solver, args.limit) for p in paths for solver in solvers]
        for job in jobs:
            row = job.result()
            rows.append(row)
            mark = "ok  " if is_exact(row) else ("near" if is_right(row) else "MISS")
            print(
                f"{mark} {row['name']:22} {row['solver']:8} n={row['n']:5} m={row['m']:5} "
                f"status {row['status']:3} kkt {row['kkt']:8.1e} objective {row['objective']:8.1e} "
                f"iters {row['iterations']:6} factors {row['factorizations']:4} "
                f"{row['seconds']:6.1f} s {row['note']}",
                flush=True,
            )
    print(summary(rows))
    RESULTS.mkdir(exist_ok=True)
    path, every = RESULTS / "real_problems.json", rows
    if args.add and path.exists():
        new = {(row["name"], row["solver"]) for row in rows}
        every = [r for r in json.loads(path.read_text()) if (r["name"], r["solver"]) not in new]
        every = sorted(every + rows, key=lambda row: list(SOLVERS).index(row["solver"]))
    path.write_text(json.dumps(every, indent=1))
    path.with_suffix(".md").write_text(table(every))
    draw(every, path.with_suffix(".png"))
    bad = [
        r["name"]
        for r in rows
        if r["solver"] == "mlxcone" and (r["note"].startswith("crash") or is_wrong(r))
    ]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
