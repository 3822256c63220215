"""One deterministic CPU environment for every test, set before anything imports JAX."""

import os
from collections.abc import Iterator

import hypothesis
import pytest

# A GPU run says so: JAX_PLATFORMS=cuda,cpu pytest -m gpu.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices to split batches over; what does not ask for them runs on the first.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# A test that asks the network is wrong: the hub's client answers from its cache or fails.
os.environ["HF_HUB_OFFLINE"] = "1"

OPT_IN = ("slow", "gpu")
"""Markers whose tests run only where `-m` names them."""


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


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the user's cache folder out of it: tests pass cold and leave nothing there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
