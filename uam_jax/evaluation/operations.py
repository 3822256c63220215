"""Operations and bytes of a traced program, by kind of operation, and the time that a roofline gives them.

Operations are those of products and convolutions, exactly. Bytes are a model of a compiler that fuses all that it can:
a product reads its operands and writes its result once; what lies element by element between products is read once
and written once, where a product takes it; a reduction (a norm's statistics) reads its input once more. Attention
in one kernel reads queries, keys and values and writes the result; elsewhere its logits go through memory, too.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from uam_jax.evaluation.chips import Chip
from uam_jax.models.kernels.attention import attention_backend
from uam_jax.runtime.platforms import Platform

_REDUCTIONS = ("reduce_", "arg", "cum", "sort", "top_k")
_SLICES = ("gather", "slice", "dynamic_slice")


@dataclass(frozen=True)
class Operation:
    """One operation of a program.

    Attributes:
      kind: one of `compiled_text.KINDS`.
      flops: floating-point operations of its products.
      bytes: read and written.
    """

    kind: str
    flops: float
    bytes: float

    def seconds(self, chip: Chip, dtype: str) -> float:
        """The least time, by the chip's peak rate or its memory's."""
        peak = chip.peak(dtype)
        assert peak
        return max(self.flops / peak, self.bytes / chip.bandwidth)


@dataclass
class Operations:
    """The operations of a program, each with how often it is run on a device.

    Attributes:
      counts: of each.
      evaluations: single-sample network evaluations.
      unknown_loops: loops whose number of turns the program doesn't tell; one turn of each is counted.
    """

    counts: Counter[Operation] = field(default_factory=Counter)
    evaluations: int = 0
    unknown_loops: int = 0

    @property
    def flops(self) -> float:
        """All of them."""
        return sum(count * each.flops for each, count in self.counts.items())

    def seconds(self, chip: Chip, dtype: str) -> dict[str, float]:
        """The least time by kind."""
        found: Counter[str] = Counter()
        for each, count in self.counts.items():
            found[each.kind] += count * each.seconds(chip, dtype)
        return dict(found)


def operations_of(traced: Any, platform: Platform) -> Operations:
    """Counts the operations of a traced program on one device.

    Args:
      traced: of `Program.trace` or `rehearsal.Call.traced`.
      platform: that it is to run on, which decides whether attention is one kernel.
    """
    walk = _Walk(platform)
    jaxpr = traced.jaxpr.jaxpr
    for result in walk.through(jaxpr, [_Value(var.aval) for var in jaxpr.invars], 1):
        walk.store(result, 1)
    return walk.found


class _Value:
    """An array of the program: in memory, or made from arrays in memory wherever it is used."""

    def __init__(self, aval: Any, sources: "Sequence[_Value] | None" = None):
        self.bytes = (
            math.prod(aval.shape) * jnp.dtype(aval.dtype).itemsize if hasattr(aval, "shape") else 0
        )
        self.sources = None if sources is None else list(dict.fromkeys(sources))

    @property
    def parts(self) -> "list[_Value]":
        """The arrays in memory that are read to have it."""
        return [self] if self.sources is None else self.sources


class _Walk:
    """Goes through a program in order, and notes its operations."""

    def __init__(self, platform: Platform):
        self.found, self._platform = Operations(), platform

    def through(self, jaxpr: Any, given: Sequence[_Value], times: int) -> list[_Value]:
        """Runs a jaxpr on values, `times` times."""
        values = dict(zip(jaxpr.invars, given, strict=True))
        values |= {var: _Value(var.aval) for var in jaxpr.constvars}
        uses = Counter(var for each in jaxpr.eqns for var in each.invars if not hasattr(var, "val"))

        def value(var: Any) -> _Value:
            return _Value(var.aval, []) if hasattr(var, "val") else values[var]

        for each in jaxpr.eqns:
            made = self._run(each, [value(var) for var in each.invars], times)
            for var, result in zip(each.outvars, made, strict=True):
                values[var] = result
                # What several operations take is cheaper written once, if more than itself would be read each time.
                if uses[var] > 1 and sum(part.bytes for part in result.parts) > result.bytes:
                    self.store(result, times)
        return [value(var) for var in jaxpr.outvars]

    def store(self, value: _Value, times: int) -> None:
        """Writes a value to memory, if it isn't there."""
        if value.sources is not None:
            read = sum(part.bytes for part in value.sources)
            self._note("element-wise", 0, read + value.bytes, times)
            value.sources = None

    def _note(self, kind: str, flops: float, moved: float, times: int) -> None:
        self.found.counts[Operation(kind, flops, moved)] += times

    def _run(self, each: Any, given: list[_Value], times: int) -> list[_Value]:
        name, params = each.primitive.name, each.params
        made = [_Value(var.aval) for var in each.outvars]
        if params.get("name") == "_attend":
            self._attend(each, given, made, times)
        elif name == "scan":
            self._scan(params, given, times)
        elif name == "while":
            self.found.unknown_loops += 1
            for value in given:
                self.store(value, times)
            self._alone(params["body_jaxpr"].jaxpr, times)
        elif name == "cond":
            self._alone(params["branches"][-1].jaxpr, times)
        elif name in ("dot_general", "conv_general_dilated"):
            for operand in given:
                self.store(operand, times)
            moved = sum(value.bytes for value in (*given, *made))
            kind = "products" if name == "dot_general" else "convolution"
            self._note(kind, _flops(each), moved, times)
        elif inner := _called(params):
            if params.get("name") == "_predict":
                self.found.evaluations += times * each.outvars[0].aval.shape[0]
            return self.through(inner, given[len(given) - len(inner.invars) :], times)
        elif name.startswith(_REDUCTIONS):
            read = {part: part.bytes for value in given for part in value.parts}
            moved = sum(read.values()) + sum(value.bytes for value in made)
            self._note("norms and reductions", 0, moved, times)
        elif name in _SLICES:
            self._note("copies", 0, 2 * sum(value.bytes for value in made), times)
        else:
            sources = [part for value in given for part in value.parts]
            return [_Value(var.aval, sources) for var in each.outvars]
        return made

    def _attend(self, each: Any, given: list[_Value], made: list[_Value], times: int) -> None:
        """softmax(QKᵀ/√d)V as a whole."""
        for operand in given:
            self.store(operand, times)
        query, keys = each.invars[0].aval, each.invars[1].aval.shape[1]
        batch, queries, heads, width = query.shape
        logits = batch * heads * queries * keys
        moved = sum(value.bytes for value in (*given, *made))
        chosen = attention_backend(query.shape, query.dtype, self._platform, keys=keys)
        if chosen in ("xla", "chunked"):
            # Written once and read for the highest and for the sum, in float32; then written and read as weights.
            moved += logits * (3 * 4 + 2 * query.dtype.itemsize)
        self._note("attention", 4 * logits * width, moved, times)

    def _scan(self, params: Any, given: list[_Value], times: int) -> None:
        for value in given:
            self.store(value, times)
        self._alone(params["jaxpr"].jaxpr, times * params["length"])

    def _alone(self, jaxpr: Any, times: int) -> None:
        """A loop's body: what it takes and what it hands on lies in memory."""
        for result in self.through(jaxpr, [_Value(var.aval) for var in jaxpr.invars], times):
            self.store(result, times)


def _called(params: Any) -> Any:
    """The jaxpr of a call, whatever its kind."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in params:
            return getattr(params[name], "jaxpr", params[name])
    return None


def _flops(each: Any) -> float:
    """Operations of a product or a convolution: a multiplication and an addition for every pair."""
    left, right = (var.aval.shape for var in each.invars[:2])
    result = math.prod(each.outvars[0].aval.shape)
    if each.primitive.name == "dot_general":
        (contracted, _), _ = each.params["dimension_numbers"]
        return 2.0 * result * math.prod(left[axis] for axis in contracted)
    numbers = each.params["dimension_numbers"].rhs_spec  # outputs, inputs, then the window
    return 2.0 * result * math.prod(right[axis] for axis in numbers[1:])
