"""Batches shared out over processes on the loopback address: same answers as in one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxcone import distributed

CHECK = Path(__file__).with_name("distributed_check.py")
ROOT = CHECK.parent.parent


def free_port(count: int) -> int:
    """A port with some room after it, to begin at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(probe.getsockname()[1], 65000 - count)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_answers_and_gradients_are_those_of_one_process(processes: int) -> None:
    launch = [str(Path(sys.executable).with_name("mlx.launch")), "--backend", "ring"]
    launch += ["--starting-port", str(free_port(processes)), "-n", str(processes)]
    done = subprocess.run(
        [*launch, sys.executable, str(CHECK)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert f"OK {processes}" in done.stdout, done.stdout + done.stderr


def test_one_process_needs_no_launch() -> None:
    A, b = np.vstack([np.ones((1, 2)), -np.eye(2)]), np.array([1.0, 0.0, 0.0])
    found = distributed.solve(np.eye(2), np.zeros((3, 2)), A, b, {"z": 1, "l": 2})
    np.testing.assert_allclose(np.array(found.x), 0.5, atol=1e-9)
    single = distributed.solve(np.eye(2), np.zeros(2), A, b, {"z": 1, "l": 2})
    np.testing.assert_allclose(np.array(single.x), 0.5, atol=1e-9)
    assert single.x.dtype == mx.float64
