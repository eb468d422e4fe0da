"""Where compiled programs spend their time: traces of XLA and of PyTorch, by kind of operation."""

import collections
import itertools
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend import backend

from ._timing import shares

CONVOLUTIONS, PRODUCTS, FACTORS = "convolutions", "matrix products", "factorizations"
SUMS, COPIES, EXCHANGE, ELEMENTWISE = "sums", "copies", "exchange", "elementwise"
KINDS = (CONVOLUTIONS, PRODUCTS, FACTORS, SUMS, COPIES, EXCHANGE, ELEMENTWISE)

_NAMED = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLS = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CONTROL = {"while", "conditional", "call", "async-start", "async-done", "tuple"}
_OF_OPCODE = {
    "convolution": CONVOLUTIONS,
    "dot": PRODUCTS,
    "reduce": SUMS,
    "reduce-window": SUMS,
    "select-and-scatter": SUMS,
    "scatter": SUMS,
    "all-reduce": EXCHANGE,
    "all-gather": EXCHANGE,
    "collective-permute": EXCHANGE,
    "cholesky": FACTORS,
    "triangular-solve": FACTORS,
}
_COPYING = {
    "parameter", "constant", "copy", "transpose", "reshape", "bitcast", "broadcast", "slice", "pad",
    "concatenate", "gather", "dynamic-slice", "dynamic-update-slice", "tuple", "get-tuple-element",
    "reverse", "iota",
}  # fmt: skip


def kinds_of(program: str) -> dict[str, tuple[str, bool]]:
    """The kind of every operation of a program in HLO text, and whether it is a bare convolution.

    By name; control flow is left out.

    A fusion counts as the first of its operations' kinds in the order of `KINDS`, and as a copy if
    it only moves numbers.

    Example:
        >>> kinds_of('''
        ... ENTRY %main (x: f32[2,2]) -> f32[2,2] {
        ...   %x = f32[2,2]{1,0} parameter(0)
        ...   %y.1 = f32[2,2]{0,1} transpose(%x), dimensions={1,0}
        ...   ROOT %z = f32[2,2]{1,0} dot(%x, %y.1), lhs_contracting_dims={1}
        ... }''')
        {'x': ('copies', False), 'y.1': ('copies', False), 'z': ('matrix products', False)}
    """
    inside: dict[str, list[tuple[str, str, str]]] = {}
    current: list[tuple[str, str, str]] = []
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            current = inside.setdefault(header[1], [])
        elif found := _NAMED.match(line):
            current.append((found[1], found[2], found[3]))

    def of(opcode: str, rest: str) -> str:
        if opcode == "fusion" and (called := _CALLS.search(rest)):
            each = {of(code, text) for _, code, text in inside.get(called[1], [])}
            return next((kind for kind in KINDS if kind in each - {COPIES}), COPIES)
        if opcode == "custom-call" and (target := _TARGET.search(rest)):
            return FACTORS if target[1].startswith("lapack") else ELEMENTWISE
        return COPIES if opcode in _COPYING else _OF_OPCODE.get(opcode, ELEMENTWISE)

    return {
        name: (of(opcode, rest), opcode == "convolution")
        for operations in inside.values()
        for name, opcode, rest in operations
        if opcode not in _CONTROL
    }


TRACED = 2  # calls


def of_all(calls: dict[str, Callable[[], object]]) -> dict[str, dict]:
    """Traces warm calls, see `of_jax` and `of_torch`; those of PyTorch are not named jaxadv."""
    found = {}
    for label, call in calls.items():
        found[label] = (of_jax if label.startswith("jaxadv") else of_torch)(call)
        one = found[label]
        print(f"{label}: {one['seconds']:.3f} s; {shares(one['kinds'])}", flush=True)
    return found


def of_jax(call: Callable[[], object], repeats: int = TRACED) -> dict:
    """Traces a warm call: its seconds, and those of its operations by kind and by program.

    Those of operations are summed over threads. A convolution that is not part of a fusion runs in
    tasks, on several threads; it counts until the next operation of the thread that started it.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            started = time.perf_counter()
            for _ in range(repeats):
                call()
            seconds = (time.perf_counter() - started) / repeats
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
        known, kinds, programs = _programs(), _zeros(), _zeros()
        for program, kind, spent in _operations(data, known):
            kinds[kind] += spent / repeats
            programs[program] += spent / repeats
    if not kinds:
        raise SystemExit("the trace names no operation; this JAX traces something else")
    return {
        "seconds": seconds,
        "kinds": dict(kinds),
        "programs": dict(sorted(programs.items(), key=lambda item: -item[1])),
    }


def _zeros() -> dict[str, float]:
    return collections.defaultdict(float)


def _operations(
    data: Any, known: dict[Any, dict[str, tuple[str, bool]]]
) -> Iterable[tuple[str, str, float]]:
    """Program, kind and seconds of every operation that was run, thread by thread."""
    for line in (line for plane in data.planes for line in plane.lines):
        found = []
        for event in line.events:
            stats = dict(event.stats)
            program, name = str(stats.get("hlo_module")), str(stats.get("hlo_op"))
            number = stats.get("program_id")
            if kind := known.get(number, {}).get(name):
                found.append((event.start_ns, event.duration_ns, program, *kind))
        found.sort()
        for this, following in itertools.zip_longest(found, found[1:]):
            start, spent, program, kind, in_tasks = this
            if in_tasks and following is not None and following[2] == program:
                spent = following[0] - start
            yield program, kind, spent / 1e9


def _programs() -> dict[Any, dict[str, tuple[str, bool]]]:
    """Kind of each operation of all that is compiled, and whether it runs in tasks.

    By the number of the program: names are those of functions, and many programs share one.
    """
    return {
        _number(module.as_serialized_hlo_module_proto()): kinds_of(module.to_string())
        for executable in backend.get_backend().live_executables()
        for module in executable.hlo_modules()
    }


def _number(proto: bytes) -> int | None:
    """Field 5 of a serialized HloModuleProto: the number by which traces know the program."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = proto[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(proto):
        field, kind = divmod(varint(), 8)
        if kind == 0:
            value = varint()
            if field == 5:
                return value
        else:
            length = {1: 8, 5: 4}[kind] if kind in (1, 5) else varint()
            place += length
    return None


def of_torch(call: Callable[[], object], repeats: int = TRACED) -> dict:
    """The same for PyTorch, by kind of operator, without the operators that it calls."""
    from torch.profiler import ProfilerActivity, profile  # pyright: ignore[reportMissingImports]

    with profile(activities=[ProfilerActivity.CPU]) as trace:
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        seconds = (time.perf_counter() - started) / repeats
    kinds = _zeros()
    for event in trace.key_averages():
        if kind := _of_operator(event.key):
            kinds[kind] += event.self_cpu_time_total / 1e6 / repeats
    return {"seconds": seconds, "kinds": dict(kinds)}


def _of_operator(name: str) -> str | None:
    """The kind of one of PyTorch's operators; what a compiled graph does itself is elementwise."""
    word = name.lower()
    if "compiled" in word:
        return ELEMENTWISE
    if not word.startswith(("aten::", "mkldnn::")):
        return None
    for part, kind in (
        ("conv", CONVOLUTIONS),
        ("mm", PRODUCTS),
        ("linear", PRODUCTS),
        ("copy", COPIES),
        ("clone", COPIES),
        ("sum", SUMS),
        ("mean", SUMS),
    ):
        if part in word:
            return kind
    return ELEMENTWISE
