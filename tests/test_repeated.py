"""Compiled graphs: when they take over, and the same answers with them as without."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

import mlxcone
from mlxcone.backend import repeated
from mlxcone.backend.repeated import EAGER, Calls, Repeated
from mlxcone.testing import manufacture, verify_solution

ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = 1e-9  # seconds: from the second solve
# Building the kernels of one takes a minute or three: one for each kind of code where time allows.
SMALL: dict[str, Any] = {"z": 1, "l": 4}
FAMILIES: list[dict[str, Any]] = [SMALL]
if os.environ.get("MLXCONE_TEST_PROFILE") == "thorough":
    FAMILIES += [{"z": 1, "l": 4, "q": [3]}, {"l": 2, "s": [3]}, {"l": 2, "ep": 1}, {"p": [0.3]}]


def batch(cones: dict[str, Any], lanes: int = 3, n: int = 3) -> tuple[list[Any], list[np.ndarray]]:
    """Programs with an answer, and P, q, A and b of all."""
    rng = np.random.default_rng(0)
    made = [manufacture.feasible(rng, n, cones) for _ in range(lanes)]
    return made, [np.stack([getattr(i, k) for i in made]) for k in "PqAb"]


@pytest.mark.parametrize("cones", FAMILIES, ids=lambda cones: "-".join(cones))
def test_the_same_answers_compiled(cones: dict[str, Any]) -> None:
    made, data = batch(cones)
    plain = mlxcone.solve(*data, made[0].cones, compile_after_secs=0.0)
    for _ in range(3):
        fast = mlxcone.solve(*data, made[0].cones, compile_after_secs=AT_ONCE)
        assert fast.info.status.tolist() == plain.info.status.tolist() == [1] * len(made)
        for lane, instance in enumerate(made):
            x, y, s = (np.array(v[lane]) for v in fast[:3])
            assert verify_solution(*instance.data, x, y, s).worst <= 1e-8
            np.testing.assert_allclose(x, np.array(plain.x[lane]), rtol=1e-9, atol=1e-9)


def test_compiled_functions_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above compares what it says it compares."""
    made, data = batch(SMALL)
    used: list[str] = []
    real = repeated._Compiled.__call__

    def counted(self: Any, leaves: Any) -> Any:
        used.append("compiled")
        return real(self, leaves)

    monkeypatch.setattr(repeated._Compiled, "__call__", counted)
    solver = mlxcone.Solver(data[0], data[2], made[0].cones, compile_after_secs=AT_ONCE)
    solver.solve(data[1], data[3])
    assert not used
    solver.solve(data[1], data[3])
    assert used
    used.clear()
    never = mlxcone.Solver(data[0], data[2], made[0].cones, compile_after_secs=0.0)
    for _ in range(3):
        never.solve(data[1], data[3])
    assert not used


class Clock:
    """Seconds that pass only when told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_graphs_take_over_when_a_shape_has_taken_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(repeated, "time", clock)
    kind = Repeated(after=5.0)

    def spend(shape: str, seconds: float) -> bool:
        with kind.solve(shape) as calls:
            clock.now += seconds
        return calls is not EAGER

    assert [spend("a", 2.0) for _ in range(5)] == [False, False, False, True, True]
    assert not spend("b", 100.0)
    assert spend("b", 1.0)
    never = Repeated(after=0.0)
    for _ in range(3):
        with never.solve("a") as calls:
            clock.now += 100.0
        assert calls is EAGER


class Pair(NamedTuple):
    """A tree with everything a tree may have."""

    left: mx.array
    right: list[Any]
    note: str | None = None


def test_trees_come_back_as_they_are() -> None:
    def function(power: int, shift: float, pair: Pair, other: mx.array | None) -> Pair:
        left = pair.left**power + shift
        last = left if other is None else left * other
        return Pair(last, [pair.right[0] - 1.0, (left, None)], pair.note)

    calls = Calls({})
    for size in (3, 4, 3):
        for power in (1, 2):
            for note in (None, "a"):
                for other in (None, mx.arange(size, dtype=mx.float32)):
                    start = mx.arange(size, dtype=mx.float32)
                    trees = Pair(start, [2.0 * start], note), other
                    one = calls.call(function, (power, 0.5), *trees)
                    two = function(power, 0.5, *trees)
                    assert type(one) is Pair and one.note == two.note
                    assert one.right[1][1] is None
                    pairs = zip(
                        (one.left, one.right[0], one.right[1][0]),
                        (two.left, two.right[0], two.right[1][0]),
                        strict=True,
                    )
                    for a, b in pairs:
                        np.testing.assert_allclose(np.array(a), np.array(b))


def test_threads_share_a_solver() -> None:
    made, data = batch(SMALL)
    solver = mlxcone.Solver(data[0], data[2], made[0].cones, compile_after_secs=AT_ONCE)
    expected = np.array(solver.solve(data[1], data[3]).x)

    def work(_: int) -> list[np.ndarray]:
        return [np.array(solver.solve(data[1], data[3]).x) for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(4)):
            for x in found:
                np.testing.assert_allclose(x, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [RuntimeError, IndexError])
def test_what_cannot_be_compiled_runs_as_it_is(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some versions of MLX raise when a kernel cannot be built, or a graph not joined."""
    tries: list[str] = []

    def refuse(function: Any) -> Any:
        def graph(leaves: Any) -> Any:
            tries.append("compile")
            raise kind("[compile] no compiler")

        return graph

    monkeypatch.setattr(mx, "compile", refuse)
    calls = Calls({})

    def double(a: mx.array) -> tuple[mx.array]:
        return (2.0 * a,)

    for k in range(3):
        assert calls.call(double, (), mx.array([float(k)]))[0].tolist() == [2.0 * k]
    assert len(tries) == 1


SCRIPT = """
import mlx.core as mx, mlxcone, numpy as np
from mlxcone.testing import manufacture
instance = manufacture.feasible(np.random.default_rng(0), 4, {"z": 1, "l": 5})
solver = mlxcone.Solver(instance.P, instance.A, instance.cones, compile_after_secs=1e-9)
for _ in range(3):
    found = solver.solve(instance.q, instance.b)
    assert found.info.status.item() == 1
    instance.check(*(np.array(v) for v in found[:3]), tolerance=1e-8)
print("solved")
"""


def test_no_compiler_is_needed(tmp_path: Path) -> None:
    # An empty directory of temporary files holds no kernels that were built before.
    env = {**os.environ, "PATH": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "solved"
