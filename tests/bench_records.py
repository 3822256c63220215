"""Invented measurements of `uam bench`."""

import base64
from pathlib import Path
from typing import Any

import pytest

from uam_jax.cli import bench_run
from uam_jax.cli.bench import BenchOptions
from uam_jax.cli.bench_run import run_bench
from uam_jax.cli.console import Console
from uam_jax.evaluation.speed import Case


def outcome(case: Case, seconds: float = 0.5, **changes: Any) -> dict[str, Any]:
    """An invented result of a measuring process."""
    row = {
        "images": case.batch,
        "compile_seconds": 3.0,
        "first_seconds": 0.1,
        "seconds": {"median": seconds, "low": 0.9 * seconds, "high": 1.2 * seconds, "all": []},
        "images_per_second": case.batch / seconds,
        "memory": {"gigabytes": 1.5, "of": "the device, since the start"},
        "evaluations": 20,
        "gflop_per_evaluation": {"text": 4.0, "uniform": 3.0},
        "tflop": 0.025,
        "tflops_per_device": 0.05,
        "share_of_peak": 0.25,
        "share_of_product": 0.5,
    }
    return {
        "machine": {
            "versions": {"jax": "0.10.2"},
            "device": "cpu: cpu",
            "devices": 1,
            "host": {"processor": "P", "cores": 2, "system": "Linux", "python": "3.11.0"},
            "used": case.devices,
            "peak_tflops": 0.2,
            "product_tflops": 0.1,
        },
        "model": {
            "name": "scenes",
            "weights": "w",
            "dtype": "float32" if case.dtype == "auto" else case.dtype,
            "size": 64,
            "config": "abcdef12",
            "steps": 50,
        },
        "rows": [{"task": task, **row} for task in case.tasks],
        **changes,
    }


def measured(folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, **options: Any) -> Path:
    """A folder with the record of invented measurements; `edits` are those that every case keeps."""
    edits = options.pop("edits", None)

    def apart(case: Case, say: Any) -> dict[str, Any]:
        kept = {"edits": base64.b64encode(edits.encode()).decode()} if edits else {}
        return outcome(case, seconds, **kept)

    monkeypatch.setattr(bench_run, "_measure_apart", apart)
    run_bench(BenchOptions(out=str(folder), **options), Console())
    return folder
