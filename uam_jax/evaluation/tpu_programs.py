"""One program of some work, compiled for a TPU that isn't here, as a dict that JSON can hold."""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from uam_jax.errors import shortened
from uam_jax.evaluation.chips import Chip
from uam_jax.evaluation.compiled_text import KINDS, CompiledText, Shape
from uam_jax.runtime.backend import versions

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
_LANES = 128
_VECTOR = 8 * _LANES * 4
"""Operations of the vector unit in a cycle: 4 on each of 8 x 128 numbers."""
_SOFTMAX = 4.5
"""Vector operations for each logit that do not run beside the products.

So many explain the schedule of the kernel for a v5e (`kernels.flash`): 0.67 million cycles where products take 0.52.
"""


def key_of(lowered: Any, target: str) -> str:
    """A name for a program, a target and the compiler's version: where it is equal, the outcome is."""
    made_with = (lowered.as_text(), target, sorted(versions("jax", "jaxlib", "libtpu").items()))
    return hashlib.sha256(repr(made_with).encode()).hexdigest()[:16]


def compile_for(lowered: Any) -> dict[str, Any]:
    """Compiles a program, and reads its memory and the compiler's estimate.

    Returns:
      Bytes of a device by purpose, cycles by kind if the compiler states any, kernels with their shapes and counts,
      collectives, and the number of loops of unknown length; or if it refuses, its reason under the key `refused`.
    """
    import jax

    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return {"refused": shortened(next(iter(lines), type(error).__name__), 300)}
    seconds = time.perf_counter() - began
    text = CompiledText(compiled.as_text())
    costs, memory = text.costs(), compiled.memory_analysis()
    return {
        "compile_seconds": round(seconds, 1),
        "bytes": {
            "argument": memory.argument_size_in_bytes,
            "weights": sum(map(_size, text.parameters("arrays[0][\\'"))),
            "output": memory.output_size_in_bytes,
            "alias": memory.alias_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        },
        **({"cycles": dict(costs.cycles)} if costs.cycles else {}),
        "kernels": [
            {
                "origin": each.origin,
                "operands": each.operands,
                "results": each.results,
                "runs": runs,
            }
            for each, runs in costs.kernels.items()
        ],
        "collectives": dict(costs.collectives),
        "unknown_loops": costs.unknown_loops,
    }


def bytes_of(outcome: Mapping[str, Any]) -> int:
    """Bytes that a compiled program needs on a device beside the model's weights."""
    held: Mapping[str, int] = outcome["bytes"]
    inputs = max(held["argument"] - held["weights"], 0)
    return inputs + held["output"] - held["alias"] + held["temporary"] + held["code"]


def seconds_of(outcome: Mapping[str, Any], chip: Chip, dtype: str) -> dict[str, float]:
    """Seconds of a compiled program's run by kind: the compiler's cycles, and of kernels our own reckoning."""
    assert chip.clock
    found = Counter({kind: cycles / chip.clock for kind, cycles in outcome["cycles"].items()})
    for kernel in outcome["kernels"]:
        found["attention"] += kernel["runs"] * kernel_seconds(kernel, chip, dtype)
    return {kind: found[kind] for kind in KINDS if found[kind]}


def kernel_seconds(kernel: Mapping[str, Any], chip: Chip, dtype: str) -> float:
    """The time of a kernel, which the compiler doesn't state, from its shapes.

    A kernel of attention takes queries (..., n, d) and keys (..., s, d): its two products with d rounded up to 128
    lanes at the chip's peak, then `_SOFTMAX` vector operations for each logit; or the time to read its operands
    and to write its results (rounded up likewise), if that is longer. Of any other kernel the latter is all.
    """
    arrays = [*kernel["operands"], *kernel["results"]]
    moved = sum(_size((dtype_, _on_lanes(sides))) for dtype_, sides in arrays) / chip.bandwidth
    peak, large = chip.peak(dtype), [sides for _, sides in kernel["operands"] if len(sides) >= 3]
    if len(large) < 3 or not peak or not chip.clock:
        return moved
    (*batch, queries, width), (*_, keys, _) = large[:2]
    logits = queries * keys
    for side in batch:
        logits *= side
    products = 4 * logits * _on_lanes((width,))[0] / peak
    return max(products + _SOFTMAX * logits / _VECTOR / chip.clock, moved)


def _on_lanes(sides: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as it lies in memory: its last side is a multiple of 128."""
    return (*sides[:-1], -(-sides[-1] // _LANES) * _LANES) if sides else sides


def _size(shape: Shape) -> int:
    kind, sides = shape
    total = _BYTES.get(kind) or max(1, int("".join(filter(str.isdigit, kind)) or 8) // 8)
    for side in sides:
        total *= side
    return total
