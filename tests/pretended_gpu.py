"""A GPU pretended on the CPU: it refuses what MLX refuses on Metal and CUDA.

There, an operation on float64 and every function of `mx.linalg` raise unless a stream of the CPU
is named. ``switch_on`` wraps MLX's operations so that they do the same here where the packages call
them, with every result as on the CPU: what works on the pretended device neither makes nor touches
float64 outside of the CPU stream. ``default_device``, ``set_default_device`` and ``stream`` know of
it. Operations of anybody else, such as a test that compares float64, are left alone.

    python tests/pretended_gpu.py SCRIPT    runs a script so, its own operations judged, too
"""

from __future__ import annotations

import contextlib
import runpy
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.utils

_JUDGED = {"mlxcone", "cvxpylayers_mlx"}
_KIND = type(mx.add)
GPU, CPU = mx.Device(mx.DeviceType.gpu), mx.Device(mx.DeviceType.cpu)

# Methods that run no operation: they make, describe or read an array.
_NO_METHOD = {
    *("__new__", "__init__", "__module__", "__doc__", "__repr__", "__format__", "__len__"),
    *("__bool__", "__int__", "__float__", "__copy__", "__deepcopy__", "__getstate__"),
    *("__setstate__", "__array__", "__array_namespace__", "__dlpack__", "__dlpack_device__"),
    *("item", "tolist", "shape", "dtype", "ndim", "size", "nbytes", "itemsize", "at"),
}


class _Where(threading.local):
    """The devices of the streams that are entered, and the default device (of every thread)."""

    default = CPU

    def __init__(self) -> None:
        self.entered: list[mx.Device] = []

    def now(self) -> mx.Device:
        return self.entered[-1] if self.entered else _Where.default


_where = _Where()


def _device(stream: Any) -> mx.Device:
    if stream is None:
        return _where.now()
    if isinstance(stream, mx.DeviceType):
        return mx.Device(stream)
    return stream if isinstance(stream, mx.Device) else stream.device


def _wide(tree: Any) -> bool:
    return any(
        isinstance(leaf, mx.array) and leaf.dtype == mx.float64
        for _, leaf in mlx.utils.tree_flatten(tree)
    )


def _refusing(function: Callable[..., Any], linalg: bool = False) -> Callable[..., Any]:
    """An operation, as on a GPU."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        stream = kwargs.get("stream")
        caller = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
        if _device(stream) != GPU or caller not in _JUDGED:
            return function(*args, **kwargs)
        if linalg:
            raise ValueError(f"[linalg::{wrapped.__name__}] This op is not yet supported on GPU")
        if stream is not None:
            kwargs["stream"] = CPU
        result = function(*args, **kwargs)
        if result is not NotImplemented and _wide([list(args), kwargs, result]):
            raise ValueError("float64 is not supported on the GPU")
        return result

    wrapped.__name__ = str(getattr(function, "__name__", "property"))
    wrapped.__doc__ = function.__doc__
    return wrapped


@contextlib.contextmanager
def _stream(stream: Any, real: Callable[[Any], Any]) -> Iterator[None]:
    device = _device(stream)
    _where.entered.append(device)
    try:
        with real(CPU if device == GPU else stream):
            yield
    finally:
        _where.entered.pop()


def _operations(module: Any) -> list[str]:
    """Names of the functions that take a stream to run on."""
    functions = {n: f for n, f in vars(module).items() if type(f) is _KIND}
    return [n for n, f in functions.items() if "stream: StreamOrDevice" in (f.__doc__ or "")]


@contextlib.contextmanager
def switched_on() -> Iterator[None]:
    """The pretended GPU is the default device inside."""
    undo = switch_on()
    try:
        yield
    finally:
        undo()


def switch_on() -> Callable[[], None]:
    """Make the pretended GPU the default device; returns what undoes it."""
    before: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, value: Any) -> None:
        before.append((owner, name, owner.__dict__[name]))
        setattr(owner, name, value)

    for name in _operations(mx):
        put(mx, name, _refusing(getattr(mx, name)))
    for module in (mx.fft, mx.random):
        for name in _operations(module):
            put(module, name, _refusing(getattr(module, name)))
    for name in _operations(mx.linalg):
        elementwise = name in ("norm", "cross")
        put(mx.linalg, name, _refusing(getattr(mx.linalg, name), linalg=not elementwise))
    for name, member in list(vars(mx.array).items()):
        if name in _NO_METHOD:
            continue
        if isinstance(member, property) and member.fget is not None:
            put(mx.array, name, property(_refusing(member.fget)))
        elif callable(member):
            put(mx.array, name, _refusing(member))
    # What they give is an operation, too, on the stream of the caller whatever is done inside.
    put(mx.custom_function, "__call__", _refusing(mx.custom_function.__call__))
    real = mx.stream
    put(mx, "stream", lambda stream: _stream(stream, real))
    put(mx, "default_device", _where.now)
    put(mx, "is_available", lambda device: True)
    default_stream = mx.default_stream
    put(mx, "default_stream", lambda device: default_stream(CPU))

    def choose(device: Any) -> None:
        _Where.default = _device(device)

    put(mx, "set_default_device", choose)
    choose(GPU)

    def undo() -> None:
        choose(CPU)
        for owner, name, value in reversed(before):
            setattr(owner, name, value)

    return undo


if __name__ == "__main__":
    _JUDGED.add("__main__")
    switch_on()
    runpy.run_path(sys.argv[1], run_name="__main__")
