"""One deterministic CPU environment for every test, set before anything imports JAX."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A GPU run says so: JAX_PLATFORMS=cuda,cpu pytest -m gpu.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices to split batches over; what does not ask for them runs on the first.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# PyTorch's threads wait for each other by spinning, so that two processes on two cores take ten times as long as one.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that asks the network is wrong: the hub's client answers from its cache or fails.
os.environ["HF_HUB_OFFLINE"] = "1"

# Most of the time goes to compiling small programs that run once: code that is made fast is made slowly, the newer
# emitters of fused operations take about as long as all the rest, and splitting a program for several threads is work,
# too. UAM_TESTS_OPTIMISED=1 leaves these flags out: then the tests run the programs that users run.
QUICKLY = (
    "--xla_backend_optimization_level=0 --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if not os.environ.get("UAM_TESTS_OPTIMISED"):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICKLY}"
# What one process has compiled the others need not: a cache of this run alone, which passes cold. Workers
# inherit the folder from the process that starts them, which removes it.
IS_FIRST = "UAM_TESTS_RUN" not in os.environ
if IS_FIRST:
    os.environ["UAM_TESTS_RUN"] = tempfile.mkdtemp(prefix="uam-tests-")
RUN = Path(os.environ["UAM_TESTS_RUN"])
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(RUN / "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

OPT_IN = ("long", "slow", "gpu", "tpu")
"""Markers whose tests run only where `-m` names them."""

LONG = (
    "test_batch", "test_job", "test_editor", "test_embedded", "test_parallel", "test_released", "test_vae_tiles",
)  # fmt: skip
"""Files whose tests take long together."""


def pytest_configure() -> None:
    # No deadline: a first example pays for compilation. Derandomised: a failure repeats.
    hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    named = config.option.markexpr
    excluded = {marker for marker in OPT_IN if marker not in named}
    deselected = [item for item in items if any(map(item.get_closest_marker, excluded))]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]
    # A file is one process's: with the longest first, all end at about the same time.
    items.sort(key=lambda item: item.path.stem not in LONG)


def pytest_unconfigure() -> None:
    if IS_FIRST:
        shutil.rmtree(RUN, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    """Keeps the user's cache folder out of it: tests pass cold and leave nothing there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(RUN / "cache"))
        yield


@pytest.fixture(scope="session")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An editor with a tiny random model."""
    from tiny import tiny_editor  # imports JAX, whose environment is set above

    return tiny_editor(tmp_path_factory.mktemp("model"))
