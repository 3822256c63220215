"""The clock of compilation."""

import time

import pytest

from uam_jax.runtime.backend import CompileClock


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([(1, 3), (4, 5)], 3),
        ([(2, 3), (1, 4)], 3),  # one traced within another, which is reported after it
        ([(1, 4), (2, 6), (5, 7)], 6),  # one beside another
        ([], 0),
    ],
)
def test_no_second_counts_twice(
    spans: list[tuple[float, float]], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = iter([end for _, end in spans])
    clock = CompileClock()
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: next(ends))
        for start, end in spans:
            clock._hear("/jax/core/compile/backend_compile_duration", end - start)
        clock._hear("/jax/elsewhere", 1.0)
    assert clock.seconds == seconds
