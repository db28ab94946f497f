"""Where operations run: float64 and LAPACK on the CPU, float32 iterations where the caller is.

MLX has float64 and factorizations on the CPU alone: on a GPU they raise when the graph is built,
and a GPU is the default device of every Mac. So whatever is not an iteration is done under
`on_cpu`, and iterations go to `iterations`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import mlx.core as mx

CPU: Any = mx.Device(mx.DeviceType.cpu)  # MLX's stubs call the kind `mx.cpu` a device


_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")


class _Caller(threading.local):
    """The default device of this thread before the outermost `on_cpu`, inside of it."""

    device: Any = None


_caller = _Caller()


def on_cpu(function: Callable[_Params, _Result]) -> Callable[_Params, _Result]:
    """Run every operation of a function on the CPU stream, where MLX has float64.

    A decorator, for functions of float64 arrays on a machine whose default device is a GPU. Solves
    inside of it still iterate on that device.
    """

    @functools.wraps(function)
    def wrapped(*args: _Params.args, **kwargs: _Params.kwargs) -> _Result:
        before = _caller.device
        try:
            if before is None:
                _caller.device = mx.default_device()
            with mx.stream(CPU):
                return function(*args, **kwargs)
        finally:
            _caller.device = before

    return wrapped


def iterations() -> Any:
    """The device on which float32 iterates: the default one where the outermost `on_cpu` began."""
    return mx.default_device() if _caller.device is None else _caller.device
