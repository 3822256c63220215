"""The TPU compiler's own estimate of a program, read from its text: cycles by kind of operation, and collectives.

The text is a list of computations. Each instruction of the entry, and of the loops below it, that takes time of its own
carries `estimated_cycles`; what lies within a fusion is counted there. Copies that run beside the computation
(`copy-start`) carry none, and neither does a kernel (`tpu_custom_call`): see `Kernel`.
"""

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

KINDS = ("convolution", "products", "attention", "norms and reductions", "element-wise", "copies")

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^ +(?P<root>ROOT )?%(?P<name>[\w.\-]+) = (?P<type>.*?) (?P<opcode>[a-z][\w\-]*)\((?P<given>[^()]*)\)"
)
_SHAPE = re.compile(r"\b(?P<dtype>pred|[a-z]+\d+\w*)\[(?P<sides>[\d,]*)\]")
_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter)(-start)?"
)
_MOVES = frozenset(
    (
        "bitcast", "broadcast", "concatenate", "constant", "convert", "copy", "dynamic-slice",
        "dynamic-update-slice", "gather", "get-tuple-element", "iota", "pad", "parameter", "reshape",
        "reverse", "slice", "transpose", "tuple",
    )
)  # fmt: skip
_SAME = frozenset(("bitcast", "bitcast-convert", "convert", "copy", "copy-done", "copy-start"))
_ATTENTION = re.compile(r"jit\(_attend|attention_maps")
_KERNEL = "tpu_custom_call"


@dataclass(frozen=True)
class Instruction:
    """One line: its name and opcode, and the text of its type, its operands and all that follows them."""

    name: str
    opcode: str
    type: str
    given: str
    rest: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        """Names of other instructions."""
        return re.findall(r"%([\w.\-]+)", self.given)

    def named(self, key: str) -> str | None:
        """The computation that is named by `key=%name`."""
        found = re.search(rf"\b{key}=%([\w.\-]+)", self.rest)
        return found and found[1]

    @property
    def origin(self) -> str:
        """The path of the operation in the traced program."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def cycles(self) -> int:
        """The compiler's estimate; 0 where it gives none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else 0


Shape = tuple[str, tuple[int, ...]]
"""The format of an array's numbers, such as "bf16", and its sides."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that the compiler doesn't see into.

    Attributes:
      origin: the path of its call in the traced program.
      operands: their shapes.
      results: likewise.
    """

    origin: str
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]


@dataclass
class Costs:
    """The costs of a program, or of a part of it.

    Attributes:
      cycles: by kind of operation.
      kernels: how often each runs.
      collectives: exchanges between devices, by opcode.
      unknown_loops: loops whose number of turns the text doesn't tell; one turn of each is counted.
    """

    cycles: Counter[str] = field(default_factory=Counter)
    kernels: Counter[Kernel] = field(default_factory=Counter)
    collectives: Counter[str] = field(default_factory=Counter)
    unknown_loops: int = 0

    def add(self, other: "Costs", times: int = 1) -> None:
        """Adds those of a part that runs several times."""
        for own, more in (
            (self.cycles, other.cycles),
            (self.kernels, other.kernels),
            (self.collectives, other.collectives),
        ):
            for key, count in more.items():
                own[key] += times * count
        self.unknown_loops += other.unknown_loops


class CompiledText:
    """A compiled program's text, `compiled.as_text()`."""

    def __init__(self, text: str):
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._entry, inside = "", ""
        for line in text.splitlines():
            if start := _COMPUTATION.match(line):
                inside = start["name"]
                self._computations[inside] = {}
                self._entry = inside if start["entry"] else self._entry
            elif inside and (found := _INSTRUCTION.match(line)):
                texts = [found[part] for part in ("name", "opcode", "type", "given")]
                each = Instruction(*texts, rest=line[found.end() :], is_root=bool(found["root"]))
                self._computations[inside][each.name] = each

    def parameters(self, prefix: str) -> list[Shape]:
        """The shapes of those arguments whose path begins so."""
        entry = self._computations[self._entry].values()
        given = [each for each in entry if each.opcode == "parameter"]
        return [
            shape
            for each in given
            if each.origin.startswith(prefix)
            for shape in _shapes(each.type)
        ]

    def costs(self) -> Costs:
        """The costs of one run of the whole program."""
        return self._costs(self._entry)

    @functools.cache  # noqa: B019 (a program's text lives as long as its reader)
    def _costs(self, name: str) -> Costs:
        total, inside = Costs(), self._computations[name]
        for each in inside.values():
            if each.opcode == "while":
                turns = self._turns(each, inside)
                total.unknown_loops += turns is None
                for part in (each.named("body"), each.named("condition")):
                    total.add(self._costs(part or ""), turns or 1)
            elif each.opcode == "call":
                total.add(self._costs(each.named("to_apply") or ""))
            elif each.opcode == "conditional":
                branches = re.findall(r"%([\w.\-]+)", each.rest.partition("metadata=")[0])
                known = [self._costs(branch) for branch in branches if branch in self._computations]
                total.add(max(known, key=lambda costs: costs.cycles.total(), default=Costs()))
            elif exchange := _COLLECTIVE.fullmatch(each.opcode):
                total.collectives[exchange[1]] += 1
            elif each.opcode == "custom-call" and f'"{_KERNEL}"' in each.rest:
                operands = [
                    shape for given in each.operands for shape in _shapes(inside[given].type)
                ]
                total.kernels[Kernel(each.origin, tuple(operands), tuple(_shapes(each.type)))] += 1
            elif each.cycles:
                total.cycles[self._kind(each)] += each.cycles
        return total

    def _kind(self, each: Instruction) -> str:
        """The kind of an instruction. A product on a TPU is a convolution, too: its origin tells them apart."""
        parts = list(self._within(each))
        if _ATTENTION.search(each.origin):
            return "attention"
        for part in parts:
            if part.opcode in ("convolution", "dot"):
                if _ATTENTION.search(part.origin):
                    return "attention"
                return "convolution" if "conv_general_dilated" in part.origin else "products"
        opcodes = {part.opcode for part in parts}
        if opcodes & {"reduce", "reduce-window", "sort"}:
            return "norms and reductions"
        return "copies" if opcodes <= _MOVES else "element-wise"

    def _within(self, each: Instruction) -> "Sequence[Instruction]":
        """The instruction itself, or those of its fusion and of fusions in it."""
        called = each.named("calls") if each.opcode == "fusion" else None
        if called not in self._computations:
            return [each]
        return [
            inner for part in self._computations[called].values() for inner in self._within(part)
        ]

    def _turns(self, loop: Instruction, inside: Mapping[str, Instruction]) -> int | None:
        """How often a loop turns: as it is stated, or by a counter that goes from a constant to another."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(known[1])
        condition = self._computations.get(loop.named("condition") or "", {})
        body = self._computations.get(loop.named("body") or "", {})
        test = next((each for each in condition.values() if each.is_root), None)
        if test is None or test.opcode != "compare" or "direction=LT" not in test.rest:
            return None
        counter, limit = (condition[given] for given in test.operands)
        counter = _followed(counter, condition)
        [start] = loop.operands
        if counter.opcode != "get-tuple-element" or inside[start].opcode != "tuple":
            return None
        place = _index(counter)
        first = _constant(inside[inside[start].operands[place]], inside)
        last = _constant(limit, condition)
        if last is None and limit.opcode == "get-tuple-element":
            last = _constant(inside[inside[start].operands[_index(limit)]], inside)
        step = self._step(body, place)
        if first is None or last is None or not step:
            return None
        return max(0, -(-(last - first) // step))

    def _step(self, body: Mapping[str, Instruction], place: int) -> int | None:
        """How much a loop's body adds to a number of its state."""
        root = next((each for each in body.values() if each.is_root), None)
        if root is None or root.opcode != "tuple":
            return None
        added = _followed(body[root.operands[place]], body)
        if added.opcode != "add":
            return None
        parts = [_followed(body[given], body) for given in added.operands]
        steps = [_constant(part, body) for part in parts]
        same = [part.opcode == "get-tuple-element" and _index(part) == place for part in parts]
        return next(
            (step for step, other in zip(steps, reversed(same), strict=True) if other), None
        )


def _followed(each: Instruction, inside: Mapping[str, Instruction]) -> Instruction:
    """The instruction whose number this one hands on."""
    while each.opcode in _SAME:
        each = inside[each.operands[0]]
    return each


def _constant(each: Instruction, inside: Mapping[str, Instruction]) -> int | None:
    each = _followed(each, inside)
    whole = each.opcode == "constant" and re.fullmatch(r"-?\d+", each.given)
    return int(each.given) if whole else None


def _index(each: Instruction) -> int:
    found = re.search(r"index=(\d+)", each.rest)
    assert found
    return int(found[1])


def _shapes(type: str) -> list[Shape]:
    """The shapes of a type, which may be a tuple's."""
    return [
        (found["dtype"], tuple(int(side) for side in found["sides"].split(",") if side))
        for found in _SHAPE.finditer(type)
    ]
