"""The work of `uam bench`: every case is measured in a process of its own."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from uam_jax.cli.bench import BenchOptions
from uam_jax.cli.bench_tables import FORMAT, RESULT, as_files, measured_rows, setup_name, work_name
from uam_jax.cli.console import Console
from uam_jax.errors import InputError
from uam_jax.evaluation.speed import MARK, Case
from uam_jax.io.storage import Folder

_SHOWN = ("task", "setup", "work", "images_per_second", "share_of_peak")
"""Columns of the summary."""


def run_bench(options: BenchOptions, console: Console) -> dict[str, Any]:
    """Measures every case, and writes `bench.json`, `bench.md`, the plots and a few edited pictures after each.

    A case that fails becomes an entry with its reason, and the other cases still run.

    Returns:
      The summary: figures of every case, the number of failed cases, and the places of the files.

    Raises:
      InputError: an option is at fault, or every case failed.
    """
    cases, folder = options.cases(), Folder(options.out)
    folder.check([RESULT])
    record: dict[str, Any] = {
        "format": FORMAT,
        "date": datetime.now(UTC).date().isoformat(),
        "cases": [],
    }
    for number, case in enumerate(cases, start=1):
        label = (
            f"case {number} of {len(cases)}: {setup_name(asdict(case))}, {work_name(asdict(case))}"
        )
        outcome = _measure_apart(case, lambda text, label=label: console.stage(f"{label}: {text}"))
        if reason := outcome.get("refused"):
            console.warn(f"{label}: {reason}")
        if edits := outcome.get("edits"):
            content = base64.b64decode(edits)
            # Named by its content: a record that is moved never takes another one's pictures for its own.
            outcome["edits"] = f"edits-{hashlib.sha256(content).hexdigest()[:12]}.npz"
            folder.write(outcome["edits"], content)
        dtype = outcome.get("model", {}).get("dtype", case.dtype)  # which one "auto" was
        record["cases"].append({"case": asdict(case) | {"dtype": dtype}, **outcome})
        for name, content in as_files(record).items():
            folder.write(name, content)
    rows = list(measured_rows([record]))
    if not rows:
        raise InputError(f"no case could be measured: {record['cases'][0]['refused']}")
    return {
        "command": "bench",
        "rows": [{key: row.get(key) for key in _SHOWN} for row in rows],
        "failed": sum("refused" in each for each in record["cases"]),
        "table": folder.path("bench.md"),
        "json": folder.path(RESULT),
    }


def _measure_apart(case: Case, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs `speed.measure` in a process of its own.

    Returns:
      The measurement, or where the process fails the reason under the key `refused`.
    """
    # Compilation is measured, so the process must not use programs that are compiled already.
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    process = subprocess.Popen(
        [sys.executable, "-m", "uam_jax.evaluation.speed"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        encoding="utf-8",
        errors="replace",  # a library may print any bytes
    )
    assert process.stdin and process.stdout and process.stderr
    lines: list[str] = []

    def listen(stream: Iterable[str]) -> None:
        for line in stream:
            lines.append(line.rstrip())
            if line.startswith(MARK):
                say(lines[-1].removeprefix(MARK))

    listener = threading.Thread(target=listen, args=(process.stderr,))
    listener.start()
    try:
        with process.stdin as stdin:
            stdin.write(json.dumps(asdict(case)))
        said = process.stdout.read()
        code = process.wait()
    finally:
        process.kill()
        listener.join()
    if code == 0:
        return json.loads(said)
    reason = next((line for line in reversed(lines) if line.strip()), "no reason given")
    return {"refused": f"exit code {code}: {reason}"}
