"""A process of `candidates.py`: loads uam_jax from the tree that it is given, and makes evaluations when it is asked.

It reads requests as JSON, one a line, from stdin, and answers each by a line of JSON on what was its stdout: with an
"error" if it could not be done. Everything else that is printed goes to stderr.

    {"do": "load", "tree": …, "model": …, "shape": …, "dtype": …, "side": …, "calls": …, "count": true}
    {"do": "run", "rows": 24}
    {"do": "latents"}
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Candidate:
    """One tree's model, and its loops of evaluations by the number of rows."""

    def load(
        self,
        *,
        tree: str,
        model: str,
        shape: str | None,
        dtype: str,
        size: int | None,
        calls: int,
        count: bool,
    ) -> dict[str, Any]:
        """Loads the model.

        Args:
          tree: the folder whose `uam_jax` this must be.
          model: see `Editor.load`; unless there is a shape.
          shape: of random weights.
          dtype: of weights and computation.
          size: side of the pictures in pixels; None for the model's own, 512 with a shape.
          calls: of the network in a run.
          count: whether to count the operations of an evaluation.

        Returns:
          Facts about model and machine.
        """
        benchmarks = Path(tree) / "benchmarks"
        if (benchmarks / "one_call.py").is_file():
            sys.path.insert(0, str(benchmarks))  # The tree's own knows its programs.
        import jax
        import one_call

        import uam_jax
        from uam_jax import Editor
        from uam_jax.checkpoints.random import random_checkpoint
        from uam_jax.engine import programs
        from uam_jax.evaluation.peaks import peak_flops
        from uam_jax.runtime.backend import versions

        if (found := Path(uam_jax.__file__).parents[1].resolve()) != Path(tree).resolve():
            raise RuntimeError(f"uam_jax is that of {found}, not of {tree}")
        if shape is None:
            editor = Editor.load(model, dtype=dtype)
        else:
            from uam_jax.checkpoints.load import chosen_dtype

            editor = Editor(random_checkpoint(shape, dtype=chosen_dtype(dtype)))
        size = size or (512 if shape else editor.native_size)
        self._side, self._editor = size // editor.size_factor, editor
        self._one_call, self._config = one_call, one_call.calls_only(calls)
        self._loops: dict[int, Callable[[], Any]] = {}
        [device, *_] = jax.devices()
        flops = None
        if count:
            latent = jax.numpy.zeros((1, *[self._side] * 2, editor.latent_channels))
            denoiser, null = editor.checkpoint.denoiser, editor.inverter.null
            flops = programs.evaluation_flops(denoiser, editor.params, null, latent, uniform=False)
        return {
            "model": editor.name,
            "weights": editor.weights_hash,
            "dtype": editor.dtype,
            "size": size,
            "device": device.device_kind,
            "versions": versions("jax", "jaxlib", "flax"),
            "flops": flops,
            "peak": peak_flops(device.device_kind, editor.dtype),
        }

    def run(self, *, rows: int) -> dict[str, Any]:
        """Makes the calls of so many rows."""
        if rows not in self._loops:
            self._loops[rows] = self._one_call.evaluations(
                self._editor, rows // self._one_call.PARTS, self._side, self._config
            )
        self._latents = self._loops[rows]()
        return {}

    def latents(self) -> dict[str, Any]:
        """The first values of what the last run computed."""
        import numpy as np

        return {"values": np.asarray(self._latents, np.float32).ravel()[:4096].tolist()}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    candidate = Candidate()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(candidate, request.pop("do"))(**request)
        except Exception as error:  # Compilers raise any exception.
            first = next(iter(str(error).splitlines()), "")
            answer = {"error": f"{type(error).__name__}: {first}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
