"""What a solve shows: table, history, bar, summary, pictures, and ``python -m mlxcone``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxcone

ROOT = Path(__file__).resolve().parent.parent
LANES, N, M = 12, 8, 24
INFEASIBLE, BROKEN = 3, 5


@pytest.fixture
def data(rng: np.random.Generator) -> tuple[Any, ...]:
    """Linear programs around the origin; one without a feasible point, one with a NaN."""
    A = rng.standard_normal((LANES, M, N))
    b = rng.uniform(0.1, 1.0, (LANES, M))
    # Opposite rows with a gap between them.
    A[INFEASIBLE, 1], b[INFEASIBLE, :2] = -A[INFEASIBLE, 0], -1.0
    b[BROKEN, 0] = np.nan
    q = -np.einsum("bij,bi->bj", A, rng.uniform(0.1, 1.0, (LANES, M)))
    return None, q, A, b, {"l": M}


def test_history_knows_every_lane_by_its_place(data: tuple[Any, ...]) -> None:
    with mlxcone.History() as history:
        batch = mlxcone.solve(*data)
        mlxcone.solve(None, data[1][0], data[2][0], data[3][0], {"l": M})
    mlxcone.solve(None, data[1][0], data[2][0], data[3][0], {"l": M})  # unseen
    assert history.statuses == [batch.info.status.tolist(), [1]]
    assert history.statuses[0][INFEASIBLE] == -2
    assert history.statuses[0][BROKEN] == -4
    seen = {lane for check in history.checks if check.solve == 0 for lane in check.lanes}
    assert seen == set(range(LANES)) - {BROKEN}
    for check in history.checks:
        assert sorted(set(check.lanes)) == check.lanes, "a lane twice"
        assert len(check.lanes) == len(check.primal) == len(check.dual)
        assert all(np.isfinite(check.primal)) and all(np.isfinite(check.dual))
    # A lane's residuals are its own: alone it passes through nearly the same ones.
    for lane in (0, LANES - 1):
        with mlxcone.History() as alone:
            mlxcone.solve(None, data[1][lane], data[2][lane], data[3][lane], {"l": M})
        first = next(c for c in history.checks if lane in c.lanes)
        assert alone.checks[0].iteration == first.iteration
        wanted = first.primal[first.lanes.index(lane)]
        np.testing.assert_allclose(alone.checks[0].primal[0], wanted, rtol=1e-3)
    times = [check.seconds for check in history.checks if check.solve == 0]
    assert times == sorted(times)
    assert {name for _, name, _, _ in history.rungs} >= {"newton"}


def test_table(data: tuple[Any, ...], capsys: pytest.CaptureFixture[str]) -> None:
    mlxcone.solve(*data, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"mlxcone: {LANES} problem(s), n = {N}, m = {M}, nonneg {M}"
    assert lines[1].split() == ["rung", "iter", "active", "pri", "res", "dua", "res", "time"]
    assert lines[2].split()[:3] == ["splitting", "25", str(LANES - 1)]
    assert f"{LANES - 2} solved, 1 infeasible, 1 failed in" in lines[-1]


def test_progress(data: tuple[Any, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with mlxcone.Progress(desc="linear programs"):
        mlxcone.solve(*data)
    shown = capsys.readouterr().err
    assert "linear programs" in shown
    assert f"{LANES}/{LANES}" in shown
    assert f"{LANES - 2} solved, 1 infeasible, 1 failed" in shown


def test_watchers_are_told_of_vmap_and_gone_after_an_error(data: tuple[Any, ...]) -> None:
    P, q, A, b, cones = data
    with mlxcone.History() as history:
        found = mx.vmap(lambda q: mlxcone.solve(P, q, A[0], b[0], cones).x)(mx.array(q))
        mx.eval(found)
    assert [len(codes) for codes in history.statuses] == [LANES]
    with pytest.raises(mlxcone.SolverError), mlxcone.History() as failing:
        mlxcone.solve(*data, on_failure="raise")
    assert len(failing.statuses) == 1
    mlxcone.solve(*data)
    assert len(failing.statuses) == 1


def test_info_prints_as_a_table(data: tuple[Any, ...]) -> None:
    info = mlxcone.solve(*data).info
    lines = str(info).splitlines()
    assert lines[0] == f"status: {LANES - 2} solved, 1 infeasible, 1 failed"
    assert lines[1].split() == ["median", "least", "largest"]
    objective = np.array(info.objective)[np.isfinite(np.array(info.objective))]
    shown = [float(v) for v in lines[-1].split()[1:]]
    wanted = [np.median(objective), objective.min(), objective.max()]
    np.testing.assert_allclose(shown, wanted, rtol=1e-4)
    single = mlxcone.solve(None, data[1][0], data[2][0], data[3][0], {"l": M}).info
    assert str(single).splitlines()[0] == "status: 1 solved"
    assert len(str(single).splitlines()) == 7
    seen = []
    A, b = data[2][0], data[3][0]
    mx.vmap(lambda q: seen.append(repr(mlxcone.solve(None, q, A, b, {"l": M}).info)) or q)(
        mx.array(data[1])
    )
    assert "not evaluated" in seen[0]


def test_pictures(data: tuple[Any, ...]) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from mlxcone import plots

    with mlxcone.History() as history:
        solution = mlxcone.solve(*data)
    axes = plots.residuals(history)
    curves = [line for line in axes.lines if line.get_marker() == "."]
    assert len(curves) == LANES - 1
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["solved", "infeasible"]
    bars = plots.statuses(solution)
    assert [bar.get_width() for bar in bars.patches] == [LANES - 2, 1, 1]
    assert plots.statuses(solution.info, axes=bars) is bars
    with pytest.raises(ValueError, match="solve: expected 0 to 0, got 1"):
        plots.residuals(history, solve=1)
    with pytest.raises(ValueError, match="history: no solve was seen"):
        plots.residuals(mlxcone.History())


@pytest.mark.parametrize(
    ("name", "make", "extra"),
    [
        ("tqdm.auto", lambda: mlxcone.Progress(), "progress"),
        (
            "matplotlib.pyplot",
            lambda: __import__("mlxcone.plots").plots.statuses(
                mlxcone.solve(np.eye(1), np.ones(1), np.eye(1), np.ones(1), {"l": 1})
            ),
            "plot",
        ),
    ],
)
def test_what_is_missing_is_named(
    name: str, make: Any, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"mlxcone\[{extra}\]"):
        make()


def test_self_check_passes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlxcone", "--no-benchmark"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok") == 6
    assert f"mlxcone {mlxcone.__version__}" in done.stdout
    assert "all answers right" in done.stdout
