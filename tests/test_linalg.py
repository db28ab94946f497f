"""LAPACK over several cores: the same numbers as on one, and no end of streams."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxcone.backend import linalg as _linalg

ORDER = 12


def batch(lanes: int) -> mx.array:
    root = np.random.default_rng(0).standard_normal((lanes, 2, ORDER, ORDER))
    return mx.array(root @ np.swapaxes(root, -1, -2) + np.eye(ORDER), dtype=mx.float64)


@pytest.mark.parametrize(
    "function",
    [_linalg.symmetric_eigen, _linalg.spd_root, _linalg.spd_inverse],
    ids=lambda function: function.__name__,
)
def test_lanes_over_cores(
    function: Callable[[mx.array], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_linalg, "_cores", lambda: 3)
    matrices = batch(100)
    made: list[int] = []
    real = _linalg._Streams.get
    monkeypatch.setattr(
        _linalg._Streams, "get", lambda self, count: made.append(count) or real(self, count)
    )
    together = function(matrices)
    assert made == [3]
    monkeypatch.setattr(_linalg, "_cores", lambda: 1)
    for found, expected in zip(together, function(matrices), strict=True):
        np.testing.assert_array_equal(np.array(found), np.array(expected))
    assert made == [3]


def test_a_bad_lane_stays_alone_among_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linalg, "_cores", lambda: 2)
    values = np.array(batch(100))
    values[7, 0, 0, 0], values[60, 1] = np.nan, -np.eye(ORDER)
    _, ok = _linalg.spd_root(mx.array(values, dtype=mx.float64))
    assert [tuple(at) for at in np.argwhere(~np.array(ok))] == [(7, 0), (60, 1)]


def test_threads_that_come_and_go_do_not_make_streams_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_linalg, "_cores", lambda: 2)
    most = _linalg._Streams.in_all + 6
    monkeypatch.setattr(_linalg, "_STREAMS_IN_ALL", most)
    matrices = np.array(batch(100))
    expected = np.linalg.eigvalsh(matrices)
    worst: list[float] = []

    def work() -> None:
        values, _ = _linalg.symmetric_eigen(mx.array(matrices, dtype=mx.float64))
        worst.append(float(np.abs(np.array(values) - expected).max()))

    for _ in range(10):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert max(worst) < 1e-9
    assert _linalg._Streams.in_all == most
