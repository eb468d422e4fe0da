"""Reads an optimized HLO module: its loops, and what runs in each, with operations and bytes.

A loop is named by the trip counts on the way to it: "main" is outside all loops, "main/10" a loop
of 10 trips. "n" is a number that the program is given when it runs, such as its minibatches.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "bf16": 16}
_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?$"
)
_CONVOLUTION = re.compile(r'custom_call_target="__cudnn\$conv\w*?(Forward|Input|Filter)\w*"')
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_LINE = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_HEAD = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
# These name or regroup what is there; nothing runs.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
         "conditional", "after-all", "opt-barrier", "partition-id", "replica-id"}  # fmt: skip


class Operation(NamedTuple):
    """A line: name, type, operation, the text of operands and attributes."""

    name: str
    type: str
    op: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        depth = 1
        for end, char in enumerate(self.rest):
            depth += (char == "(") - (char == ")")
            if not depth:
                return re.findall(r"%([\w.\-]+)", self.rest[:end])
        raise ValueError(f"{self.name}: unbalanced parentheses in {self.rest[:80]!r}")


def computations(text: str) -> tuple[dict[str, list[Operation]], str]:
    """The computations by name, and the name of the entry."""
    found: dict[str, list[Operation]] = {}
    entry = current = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[2]
            found[current] = []
            entry = current if head[1] else entry
        elif current and (match := _LINE.match(line)):
            found[current].append(Operation(*match.groups()))
    return found, entry


def num_bytes(type_: str) -> int:
    """Bytes of all arrays in a type.

    Example:
        >>> num_bytes("(f32[2,3]{1,0}, pred[], u8[5]{0})")
        30
    """
    total = 0
    for dtype, dims in _SHAPE.findall(type_):
        digits = re.search(r"\d+", dtype)
        bits = _BITS.get(dtype) or (int(digits[0]) if digits else 0)
        total += math.ceil(bits * math.prod(_dims(dims)) / 8)
    return total


def read(text: str, data_set: str) -> dict:
    """Everything that is reported of a module.

    Args:
        text: optimized HLO.
        data_set: the shape of the data set, "[50000,3072]"; reads of a few of its rows do not count
            as reads of all, and results of this shape are reported as copies.
    """
    parts, entry = computations(text)
    types = {o.name: o.type for operations in parts.values() for o in operations}
    loops: dict[str, dict] = {}
    copies = []
    for place, operation in _running(parts, entry, "main"):
        row = loops.setdefault(
            place,
            {"operations": 0, "bytes": 0, "flops": 0, "collectives": {}},
        )
        if operation.op in _FREE:
            continue
        row["operations"] += 1
        moved = [operation.type, *(types[name] for name in operation.operands if name in types)]
        row["bytes"] += sum(num_bytes(type_) for type_ in moved if data_set not in type_)
        row["flops"] += _flops(operation, types, parts)
        if data_set in operation.type:
            copies.append(operation.name)
        if match := _COLLECTIVE.match(operation.op):
            kind = row["collectives"].setdefault(match[1], {"number": 0, "bytes": 0})
            kind["number"] += len(operation.operands)  # one may be made of several
            kind["bytes"] += sum(num_bytes(types[name]) for name in operation.operands)
    instructions = sum(map(len, parts.values()))
    return {
        "loops": loops,
        "data_set_copies": copies,
        "instructions": instructions,
        "float64": len(re.findall(r"\bf64\[", text)),
        "callbacks": sorted(set(re.findall(r'custom_call_target="(\w*python\w*)"', text))),
    }


def _running(
    parts: dict[str, list[Operation]], name: str, place: str
) -> Iterator[tuple[str, Operation]]:
    """All operations with their places; the branches of a conditional count as if all ran."""
    for operation in parts[name]:
        yield place, operation
        called = lambda key, rest=operation.rest: re.findall(rf"\b{key}=%([\w.\-]+)", rest)
        if operation.op == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', operation.rest)
            inner = f"{place}/{trips[1] if trips else 'n'}"
            yield from _running(parts, called("body")[0], inner)
        elif operation.op == "call":
            yield from _running(parts, called("to_apply")[0], place)
        elif operation.op == "conditional":
            listed = re.search(r"branch_computations=\{([^}]*)\}", operation.rest)
            names = re.findall(r"%([\w.\-]+)", listed[1]) if listed else []
            for branch in names or called("true_computation") + called("false_computation"):
                yield from _running(parts, branch, place)


def _flops(operation: Operation, types: dict[str, str], parts: dict[str, list[Operation]]) -> int:
    """Floating-point operations of convolutions and matrix products; others count nothing."""
    if operation.op == "fusion":
        called = re.search(r"\bcalls=%([\w.\-]+)", operation.rest)
        inner = parts[called[1]] if called else []
        return sum(_flops(part, types, parts) for part in inner)
    shapes = [_first(types[name]) for name in operation.operands if name in types]
    if match := _CONVOLUTION.search(operation.rest):
        # The forward result times the kernel, whichever of the three arrays comes out.
        images_or_result, kernel = shapes[:2]
        out = _first(operation.type)
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", operation.rest)
        assert labels, operation
        layout = labels[2]
        forward = {"Forward": out, "Input": images_or_result, "Filter": kernel}[match[1]]
        weights = out if match[1] == "Filter" else kernel
        channels = weights[layout.index("o")]
        return 2 * math.prod(forward) * math.prod(weights) // channels
    if operation.op == "dot" or '"__cublas$' in operation.rest:
        match = re.search(r'lhs_contracting_dim\w*"?[=:][\{\[]"?([\d",]*)', operation.rest)
        dims = [int(d) for d in re.findall(r"\d+", match[1])] if match else []
        depth = math.prod(shapes[0][d] for d in dims)
        return 2 * math.prod(_first(operation.type)) * depth
    return 0


def _first(type_: str) -> list[int]:
    """The shape of the first array of a type."""
    match = _SHAPE.search(type_)
    return _dims(match[2]) if match else []


def _dims(text: str) -> list[int]:
    return [int(d) for d in text.split(",") if d]
