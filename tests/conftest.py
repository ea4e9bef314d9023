"""Set-up of all tests: eight simulated CPU devices, and where the optional shared folder lies."""

from __future__ import annotations

import atexit
import importlib.metadata
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

# Before jax is imported anywhere: the number of devices is fixed when its backend starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    flags += " --xla_force_host_platform_device_count=8"
if "xla_cpu_collective_call_terminate_timeout" not in flags:
    # XLA aborts where simulated devices wait 40 s for each other, as they may on a busy machine.
    flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
# Without XLA's new emitters of fusions, programs for CPUs compile in half the time. XLA refuses
# flags that it does not know, so only the releases that do are told.
if "fusion_emitters" not in flags and importlib.metadata.version("jaxlib").startswith("0.10."):
    flags += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = flags.strip()
# Twice the devices: with one thread of XLA's pool per device they can wait for each other for ever.
os.environ.setdefault("PJRT_NPROC", "16")
# Programs are compiled once per run of the tests, for all its processes and commands they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="mogao-tests-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# The same examples every time, and no failure because the machine is busy.
hypothesis.settings.register_profile(
    "mogao",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("mogao")

ROOT = pathlib.Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes over about 20 seconds (still part of CI)")


# Tests of these rooms run small programs a few times. Unoptimised, these compile in about 30% less
# time, with the same arithmetic. Not where programs run for long, where speed is measured, or where
# losses are compared to the bit with those of other processes.
QUICK_TO_COMPILE = {"models", "ops", "sampling", "sharding", "training"}
OPTIMISED = {"test_demo.py", "test_checkpointing.py"}


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    room = request.path.relative_to(ROOT / "tests").parts[0]
    if room not in QUICK_TO_COMPILE or request.path.name in OPTIMISED:
        yield
        return
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """The folder of real weights and data next to the repository; skips where it is absent."""
    given = os.environ.get("MOGAO_SHARED")
    folder = pathlib.Path(given) if given else ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder} (or MOGAO_SHARED), which is not here")
    return folder
