"""The contents of a compiled program's text: collectives, matrix products, memory traffic.

The text is XLA's, of one device's program after partitioning. XLA's own cost analysis counts
the body of a loop once; here each computation counts as often as it runs.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_STEPS = ("call", "conditional", "async-start")
_ITEM_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9-]*)\(")
# What moves nothing by itself: its operands' producers and users are counted.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"),
    *("conditional", "call", "after-all", "partition-id", "replica-id"),
    *("opt-barrier", "async-start", "async-update"),
}
_READS_A_PART = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """A line of a computation.

    Attributes:
        name: without the percent sign.
        shape: its type, as printed.
        opcode: 'fusion', 'all-gather-start', ...
        rest: operands and attributes, as printed.
    """

    name: str
    shape: str
    opcode: str
    rest: str


@dataclasses.dataclass(frozen=True, slots=True)
class Collective:
    """A collective and how often a step runs it.

    Attributes:
        kind: one of COLLECTIVES.
        executions: in one run of the program.
        group_size: devices that take part together.
        payload_bytes: the whole array, of one execution: what is gathered, reduced,
            exchanged or sent.
    """

    kind: str
    executions: int
    group_size: int
    payload_bytes: int

    @property
    def sent_bytes(self) -> float:
        """Counts the bytes that a device sends in one run of the program, over rings.

        Of a payload S among g devices: S (g - 1) / g, twice that to reduce all, and S to
        permute.
        """
        share = (self.group_size - 1) / self.group_size
        times = {"all-reduce": 2 * share, "collective-permute": 1.0}
        return self.executions * self.payload_bytes * times.get(self.kind, share)


class Program:
    """The computations of a compiled module, and how often each of them runs."""

    def __init__(self, text: str):
        """Reads `compiled.as_text()`; raises ValueError if it has no entry."""
        self.computations: dict[str, list[Instruction]] = {}
        self.fused: set[str] = set()
        entry = self._read(text)
        if entry is None:
            raise ValueError("this text is not that of an HLO module: it has no ENTRY")
        found = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
        self._num_partitions = int(found[1]) if found else 1
        self.runs = self._count_runs(entry)

    def _read(self, text: str) -> str | None:
        entry, current = None, None
        for line in text.splitlines():
            if line.endswith("{") and not line.startswith((" ", "}", "HloModule")):
                name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
                current = self.computations.setdefault(name, [])
                entry = name if line.startswith("ENTRY ") else entry
            elif line == "}":  # metadata of a kernel may span lines and close others
                current = None
            elif current is not None and (found := _INSTRUCTION.match(line)):
                shape, remainder = _split_shape(found[2])
                if opcode := _OPCODE.match(remainder):
                    rest = remainder[opcode.end() :]
                    current.append(Instruction(found[1], shape, opcode[1], rest))
        return entry

    def _count_runs(self, entry: str) -> Mapping[str, int]:
        """Counts executions of each computation, callers before those they call."""
        runs: dict[str, int] = collections.Counter({entry: 1})
        for name in self._callers_first(entry):
            for instruction in self.computations[name]:
                for called, times in self._calls(instruction):
                    runs[called] += runs[name] * times
                    if instruction.opcode != "while" and called not in _bodies(
                        instruction
                    ):
                        self.fused.add(called)
        return runs

    def _callers_first(self, entry: str) -> list[str]:
        order: list[str] = []
        seen: set[str] = set()
        stack = [(entry, False)]
        while stack:
            name, done = stack.pop()
            if done:
                order.append(name)
            elif name not in seen and name in self.computations:
                seen.add(name)
                stack.append((name, True))
                for instruction in self.computations[name]:
                    stack += [(called, False) for called, _ in self._calls(instruction)]
        return order[::-1]

    def _calls(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
        times = 1
        if instruction.opcode == "while":
            times = self._trip_count(instruction)
        for called in _called(instruction):
            yield called, times

    def _trip_count(self, loop: Instruction) -> int:
        """Counts how often a loop runs: as stated, or the limit of its counter over its step."""
        if stated := re.search(r'known_trip_count[^\d]*"?(\d+)', loop.rest):
            return int(stated[1])
        condition, body = (
            {line.name: line for line in self.computations.get(name[1], [])}
            for kind in ("condition", "body")
            if (name := re.search(rf"{kind}=%?([\w.-]+)", loop.rest))
        )
        limit = max(map(_constant, condition.values()), default=1)
        # The compiler unrolls some loops and lets their counter go by more than one.
        counters = [
            int(found[1])
            for line in condition.values()
            if (found := re.search(r"index=(\d+)", line.rest))
        ]
        if not body or not counters:
            return max(limit, 1)
        updated = operands(list(body.values())[-1])[counters[0] : counters[0] + 1]
        step = max(
            (
                _constant(body[name])
                for counter in updated
                if counter in body and body[counter].opcode == "add"
                for name in operands(body[counter])
                if name in body
            ),
            default=1,
        )
        return max(-(-limit // max(step, 1)), 1)

    def collectives(self) -> list[Collective]:
        """Gives every collective of the program once.

        The TPU compiler prints one that overlaps with other work in each computation that
        it overlaps with; its channel tells that it is one.
        """
        found: dict[str, Collective] = {}
        for name, body in self.running():
            for instruction in body:
                kind = instruction.opcode.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                key = channel[1] if channel else f"{name}/{instruction.name}"
                known = found.get(key)
                if known is None or known.executions < self.runs[name]:
                    found[key] = self._collective(kind, name, instruction)
        return list(found.values())

    def _collective(self, kind: str, where: str, instruction: Instruction):
        group_size = _group_size(instruction.rest, self._num_partitions)
        sizes = [size for size, _ in arrays(instruction.shape)]
        payload_bytes = sum(sizes)
        if instruction.opcode.endswith("-start") and kind != "all-reduce":
            # Operands, results and, for a permute, two counters: the largest is whole.
            payload_bytes = max(sizes, default=0)
        elif kind == "reduce-scatter":
            payload_bytes *= group_size
        if where.startswith("all-reduce-scatter"):  # of which each keeps its part
            kind = "reduce-scatter"
        return Collective(kind, self.runs[where], group_size, payload_bytes)

    def running(self) -> Iterable[tuple[str, Sequence[Instruction]]]:
        """Gives the computations that run, each with its instructions."""
        for name, runs in self.runs.items():
            if runs and name in self.computations:
                yield name, self.computations[name]


def _split_shape(text: str) -> tuple[str, str]:
    """Splits a line into its type, which may be a tuple with comments, and the rest."""
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    return text, ""


def _constant(instruction: Instruction) -> int:
    """Reads the value of a constant; gives 0 for anything else."""
    found = re.match(r"(\d+)\)", instruction.rest)
    return int(found[1]) if instruction.opcode == "constant" and found else 0


def _called(instruction: Instruction) -> list[str]:
    names = re.findall(
        r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)"
        r"=%?([\w.-]+)",
        instruction.rest,
    )
    for group in re.findall(
        r"(?:branch|called)_computations=\{([^}]*)\}", instruction.rest
    ):
        names += [name.strip().lstrip("%") for name in group.split(",")]
    return names


def _bodies(instruction: Instruction) -> list[str]:
    """Names called computations whose instructions are steps of the program themselves."""
    return _called(instruction) if instruction.opcode in _STEPS else []


def arrays(shape: str) -> Iterator[tuple[int, bool]]:
    """Gives the size in bytes of each array of a type, and whether it lies in main memory."""
    for kind, dims, layout in ARRAY.findall(shape):
        count = math.prod(int(size) for size in dims.split(",") if size)
        item_bytes = _ITEM_BYTES.get(kind)
        if item_bytes is None:
            bits = re.search(r"\d+", kind)
            item_bytes = max(1, int(bits[0]) // 8) if bits else 0
        yield count * item_bytes, re.search(r"S\([1-9]", layout) is None


def _group_size(rest: str, num_partitions: int) -> int:
    """Counts the devices of a replica group, in any of the three ways that XLA prints them.

    Of a permutation: how many pass it on before it comes back.
    """
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", rest):
        return _cycle_length(dict(re.findall(r"\{(\d+),(\d+)\}", pairs[1])))
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=", rest):
        return int(iota[1].split(",")[-1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return num_partitions


def _cycle_length(targets: Mapping[str, str]) -> int:
    place, seen = next(iter(targets), ""), set[str]()
    while place and place not in seen:
        seen.add(place)
        place = targets.get(place, "")
    return max(len(seen), 1)


def operands(instruction: Instruction) -> list[str]:
    """Names the operands of an instruction."""
    depth = 1
    for place, letter in enumerate(instruction.rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return re.findall(r"%([\w.-]+)", instruction.rest[:place])
    return []


def product_flops(program: Program) -> int:
    """Counts the FLOPs of all matrix products, which TPUs run as convolutions.

    What is recomputed counts again, and what every device does alike counts on each.
    Kernels (custom calls) are opaque and not counted.
    """
    flops = 0
    for name, body in program.running():
        shapes = _shapes(body)
        for instruction in body:
            if instruction.opcode in ("convolution", "dot"):
                flops += program.runs[name] * _product_flops(instruction, shapes)
    return flops


def num_kernels(program: Program) -> int:
    """Counts the Pallas (Mosaic) kernels that a run calls."""
    return sum(
        program.runs[name]
        for name, body in program.running()
        for instruction in body
        if 'custom_call_target="tpu_custom_call"' in instruction.rest
    )


def memory_bytes(program: Program) -> int:
    """Counts the bytes that instructions read from and write to main memory.

    What a fusion keeps to itself moves nothing, nor what lies in on-chip memory, S(1); of
    an array that is sliced or updated in place, the part counts.
    """
    total = 0
    for name, body in program.running():
        if name in program.fused:
            continue
        shapes = _shapes(body)
        for instruction in body:
            if not _is_free(instruction):
                moved_bytes = _moved_bytes(program, instruction, shapes)
                total += program.runs[name] * moved_bytes
    return total


def _is_free(instruction: Instruction) -> bool:
    return (
        instruction.opcode in _FREE
        or instruction.opcode.endswith("-done")
        or 'custom_call_target="AllocateBuffer"' in instruction.rest
    )


def _shapes(body: Sequence[Instruction]) -> Mapping[str, str]:
    return {instruction.name: instruction.shape for instruction in body}


def _in_memory(shape: str) -> int:
    return sum(size_bytes for size_bytes, is_main in arrays(shape) if is_main)


def _moved_bytes(
    program: Program, instruction: Instruction, shapes: Mapping[str, str]
) -> int:
    names = operands(instruction)
    if instruction.opcode.endswith("-start"):  # its type names what it reads, too
        return _in_memory(instruction.shape)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_memory(shapes.get(names[1], ""))
    if instruction.opcode in _READS_A_PART:
        return 2 * _in_memory(instruction.shape)
    called = re.search(r"calls=%?([\w.-]+)", instruction.rest)
    if instruction.opcode == "fusion" and called:
        return _fusion_bytes(program, called[1], instruction.shape)
    return _in_memory(instruction.shape) + sum(
        _in_memory(shapes.get(name, "")) for name in set(names)
    )


def _fusion_bytes(program: Program, name: str, shape: str) -> int:
    """Counts the bytes that a fusion reads of its parameters and writes."""
    body = program.computations.get(name, [])
    shapes = _shapes(body)
    read, written = 0, _in_memory(shape)
    for parameter in body:
        if parameter.opcode != "parameter" or not _in_memory(parameter.shape):
            continue
        whole = _in_memory(parameter.shape)
        parts, updated = 0, 0
        for user in body:
            names = operands(user)
            if parameter.name not in names:
                continue
            if user.opcode in _READS_A_PART and names[0] == parameter.name:
                parts += _size(user.shape)
            elif user.opcode == "dynamic-update-slice" and names[0] == parameter.name:
                # In place: of the result, too, only this part is written.
                updated += _size(user.shape) - _size(shapes.get(names[1], ""))
            else:
                parts = whole
        read += min(whole, parts)
        written -= updated
    return read + max(written, 0)


def _size(shape: str) -> int:
    return sum(size_bytes for size_bytes, _ in arrays(shape))


def _dims(shape: str) -> list[int]:
    found = ARRAY.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found else []


def _product_flops(instruction: Instruction, shapes: Mapping[str, str]) -> int:
    """Counts 2 FLOPs for each term that is summed into each output."""
    left, right = (_dims(shapes.get(name, "")) for name in operands(instruction)[:2])
    outputs = _dims(instruction.shape)
    if instruction.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        summed = [int(axis) for axis in (found[1] if found else "").split(",") if axis]
        return 2 * math.prod(outputs) * math.prod(left[axis] for axis in summed)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if labels is None:
        return 0
    flops = 2 * outputs[labels[3].index("b")] * outputs[labels[3].index("f")]
    flops *= right[labels[2].index("i")]
    for axis, window in enumerate(_windows(instruction.rest, len(left) - 2)):
        sizes = (
            left[labels[1].index(str(axis))],
            right[labels[2].index(str(axis))],
            outputs[labels[3].index(str(axis))],
        )
        flops *= _pairs(*sizes, *window)
    return flops


def _windows(rest: str, num_axes: int) -> list[tuple[int, int, int, int]]:
    """Reads stride, padding before, dilation of input and of kernel for each spatial axis."""
    found = re.search(r"window=\{([^}]*)\}", rest)
    given = dict(re.findall(r"(\w+)=(\S+)", found[1])) if found else {}

    def values(name: str, default: int) -> list[int]:
        if name not in given:
            return [default] * num_axes
        return [int(value.split("_")[0]) for value in given[name].split("x")]

    names = (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
    return list(zip(*(values(*name) for name in names), strict=True))


@functools.cache
def _pairs(
    size: int, kernel: int, outputs: int, stride: int, pad: int, dilate: int, step: int
) -> int:
    """Counts the (output, kernel entry) pairs that fall on an entry of the input."""
    first = np.arange(outputs)[:, None] * stride - pad
    places = first + np.arange(kernel) * step
    inside = (places >= 0) & (places <= (size - 1) * dilate)
    return int(np.sum(inside & (places % dilate == 0)))
