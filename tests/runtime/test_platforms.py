"""The platform of a program: that of a device, or one that is given where there is no such device."""

from types import SimpleNamespace

import jax
import pytest

from uam_jax.checkpoints.load import chosen_dtype
from uam_jax.errors import InputError
from uam_jax.runtime.platforms import Platform, current, default_device, tracing_for, usual_dtype


@pytest.mark.parametrize(
    ("device", "platform", "lowering"),
    [
        ({"platform": "cpu"}, Platform("cpu"), "cpu"),
        ({"platform": "tpu"}, Platform("tpu"), "tpu"),
        ({"platform": "gpu", "compute_capability": "9.0"}, Platform("gpu", (9, 0)), "cuda"),
        ({"platform": "gpu", "compute_capability": "12.1"}, Platform("gpu", (12, 1)), "cuda"),
        ({"platform": "gpu", "compute_capability": "gfx90a"}, Platform("gpu"), "rocm"),
    ],
)
def test_a_device_has_a_platform(device: dict, platform: Platform, lowering: str) -> None:
    assert Platform.of(SimpleNamespace(**device)) == platform
    assert platform.lowering == lowering


@pytest.mark.parametrize(
    ("platform", "dtype"),
    [
        (Platform("cpu"), "float32"),
        (Platform("tpu"), "bfloat16"),
        (Platform("gpu", (9, 0)), "bfloat16"),
        (Platform("gpu", (8, 0)), "bfloat16"),
        (Platform("gpu", (7, 5)), "float16"),
        (Platform("gpu", (7, 0)), "float16"),
        (Platform("gpu"), "bfloat16"),
    ],
)
def test_auto_is_the_format_that_the_platform_multiplies(platform: Platform, dtype: str) -> None:
    assert usual_dtype(platform) == dtype
    with tracing_for(platform):
        assert chosen_dtype("auto") == dtype
    assert chosen_dtype("float16") == "float16"
    with pytest.raises(InputError, match="dtype 'int8' is not supported; choose one of auto, "):
        chosen_dtype("int8")


def test_the_default_device_may_be_chosen() -> None:
    assert default_device() == jax.devices()[0]
    with jax.default_device(jax.devices()[3]):
        assert default_device() == jax.devices()[3]
    with jax.default_device("cpu"):
        assert default_device() == jax.devices()[0]


def test_the_platform_that_is_traced_for_ends_with_its_block() -> None:
    outer, inner = Platform("tpu"), Platform("gpu", (8, 0))
    with tracing_for(outer):
        with tracing_for(inner):
            assert current() == inner
        assert current() == outer
    assert current() == Platform("cpu")


def test_a_trace_for_one_platform_is_not_taken_for_another() -> None:
    seen = []
    traced = jax.jit(lambda x: seen.append(current().name) or x)
    for name in ("tpu", "gpu", "tpu"):
        with tracing_for(Platform(name)):
            traced(1.0)
    traced(1.0)
    assert seen == ["tpu", "gpu", "cpu"]
