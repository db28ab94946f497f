"""Device switch, hypothesis profiles and fixtures of the whole suite.

``MLXCONE_TEST_DEVICE=gpu`` runs everything with MLX's default device set to the GPU, ``pretended``
with one that refuses what GPUs do not have; the default is the CPU. What tests do themselves, in
float64, is done on the CPU. ``MLXCONE_TEST_PROFILE=thorough`` draws ten times as many examples, and
new ones each time.
"""

import os
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pretended_gpu
import pytest
from hypothesis import HealthCheck, settings

import mlxcone

_SUPPRESSED = (HealthCheck.too_slow, HealthCheck.data_too_large)

settings.register_profile(
    "suite",
    deadline=None,
    max_examples=40,
    derandomize=True,
    print_blob=True,
    suppress_health_check=_SUPPRESSED,
)
settings.register_profile(
    "thorough",
    deadline=None,
    max_examples=400,
    print_blob=True,
    suppress_health_check=_SUPPRESSED,
)
settings.load_profile(os.environ.get("MLXCONE_TEST_PROFILE", "suite"))

_DEVICES = {"cpu": mx.DeviceType.cpu, "gpu": mx.DeviceType.gpu, "pretended": mx.DeviceType.gpu}


def _wanted_device() -> str:
    name = os.environ.get("MLXCONE_TEST_DEVICE", "cpu").lower()
    if name not in _DEVICES:
        known = ", ".join(_DEVICES)
        raise pytest.UsageError(f"MLXCONE_TEST_DEVICE: expected one of {known}, got {name!r}")
    return name


def pytest_configure(config: pytest.Config) -> None:
    """Choose the device before anything is collected; a missing one is an error, not a skip."""
    if _wanted_device() == "pretended":
        pretended_gpu.switch_on()
    device = mx.Device(_DEVICES[_wanted_device()])
    if not mx.is_available(device):
        raise pytest.UsageError(f"MLXCONE_TEST_DEVICE: {_wanted_device()} is not available here")
    mx.set_default_device(device)


def pytest_report_header(config: pytest.Config) -> str:
    """Name the device in pytest's header."""
    return f"mlx {mx.__version__}, default device {mx.default_device()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` run only where the GPU was asked for."""
    if _wanted_device() == "gpu":
        return
    skip = pytest.mark.skip(reason="needs MLXCONE_TEST_DEVICE=gpu")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """On a GPU, a test's own arithmetic is done on the CPU; solves inside iterate on the GPU."""
    if _wanted_device() == "gpu" and isinstance(item, pytest.Function):
        item.obj = mlxcone.on_cpu(item.obj)


@pytest.fixture(autouse=True)
def _device_stays() -> Iterator[None]:
    """No test and no product code may leave another default device behind."""
    before = mx.default_device()
    yield
    after = mx.default_device()
    mx.set_default_device(before)
    assert after == before, "the default device was changed"


@pytest.fixture
def on_cpu() -> Iterator[None]:
    """For tests of what solves do inside, in float64, which exists on the CPU alone."""
    with mx.stream(mx.cpu):  # type: ignore[arg-type]
        yield


@pytest.fixture
def device() -> mx.Device:
    """The device under test."""
    return mx.default_device()


@pytest.fixture
def rng() -> np.random.Generator:
    """The same randomness for every test."""
    return np.random.default_rng(0)
