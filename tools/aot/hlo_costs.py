"""Matrix products and memory traffic of a compiled program, loops counted as they run."""

import functools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from tools.aot.hlo import ARRAY, Instruction, Program, arrays, operands

# What moves nothing by itself: its operands' producers and users are counted.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"),
    *("conditional", "call", "after-all", "partition-id", "replica-id"),
    *("opt-barrier", "async-start", "async-update"),
}
_READS_A_PART = ("dynamic-slice", "slice", "gather")


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
