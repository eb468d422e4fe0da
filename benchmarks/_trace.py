"""Where compiled programs spend their time: traces of XLA and of PyTorch, by kind of operation."""

import collections
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable

import jax
from jax.extend import backend

CONVOLUTIONS, PRODUCTS, FACTORS = "convolutions", "matrix products", "factorizations"
SUMS, COPIES, EXCHANGE, ELEMENTWISE = "sums", "copies", "exchange", "elementwise"
OUTSIDE = "outside operations"  # starts, waits, Python
KINDS = (CONVOLUTIONS, PRODUCTS, FACTORS, SUMS, COPIES, EXCHANGE, ELEMENTWISE, OUTSIDE)

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


def kinds_of(program: str) -> dict[str, str]:
    """The kind of every operation of a program in HLO text, by name; control flow is left out.

    A fusion counts as the first of its operations' kinds in the order of `KINDS`, and as a copy if
    it only moves numbers.

    Example:
        >>> kinds_of('''
        ... ENTRY %main (x: f32[2,2]) -> f32[2,2] {
        ...   %x = f32[2,2]{1,0} parameter(0)
        ...   %y.1 = f32[2,2]{0,1} transpose(%x), dimensions={1,0}
        ...   ROOT %z = f32[2,2]{1,0} dot(%x, %y.1), lhs_contracting_dims={1}
        ... }''')
        {'x': 'copies', 'y.1': 'copies', 'z': 'matrix products'}
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
        name: of(opcode, rest)
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
        print(f"{label}: {shares(found[label]['kinds'])}", flush=True)
    return found


def shares(spent: dict[str, float], least: float = 0.005) -> str:
    """Parts of the whole in words, largest first.

    Example:
        >>> shares({"a": 1.0, "b": 3.0, "c": 0.001})
        'b 75 %, a 25 %'
    """
    whole = sum(spent.values())
    parts = sorted(((part / whole, name) for name, part in spent.items()), reverse=True)
    return ", ".join(f"{name} {100 * part:.0f} %" for part, name in parts if part >= least)


def of_jax(call: Callable[[], object], repeats: int = TRACED) -> dict:
    """Traces a warm call: seconds of a call by kind of operation, and by program.

    Several devices run at the same time: the seconds are means over them. Operations that one
    device runs at the same time count each, so that the sum may exceed the call's.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            started = time.perf_counter()
            for _ in range(repeats):
                call()
            seconds = (time.perf_counter() - started) / repeats
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        events = list(_operations(jax.profiler.ProfileData.from_file(str(file))))
    known = _programs()
    kinds, programs = collections.Counter(), collections.Counter()
    devices = {device for *_, device in events}
    for program, name, spent, _ in events:
        if kind := known.get(program, {}).get(name):
            share = spent / repeats / len(devices)
            kinds[kind] += share
            programs[program] += share
    if not kinds:
        raise SystemExit("the trace names no operation; this JAX traces something else")
    kinds[OUTSIDE] = max(seconds - kinds.total(), 0.0)
    return {"seconds": seconds, "kinds": dict(kinds), "programs": dict(programs.most_common())}


def _operations(data: jax.profiler.ProfileData) -> Iterable[tuple[str, str, float, int]]:
    """Program, name, seconds and device of every operation that was run."""
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats:
                    device = int(stats.get("device_ordinal", 0))
                    name, program = str(stats["hlo_op"]), str(stats["hlo_module"])
                    yield program, name, event.duration_ns / 1e9, device


def _programs() -> dict[str, dict[str, str]]:
    """Kinds of operations by program, of everything that is compiled."""
    found: dict[str, dict[str, str]] = {}
    for executable in backend.get_backend().live_executables():
        for module in executable.hlo_modules():
            found.setdefault(module.name, {}).update(kinds_of(module.to_string()))
    return found


def of_torch(call: Callable[[], object], repeats: int = TRACED) -> dict:
    """The same for PyTorch: seconds of a call by kind of operator, without their children."""
    from torch.profiler import ProfilerActivity, profile  # pyright: ignore[reportMissingImports]

    with profile(activities=[ProfilerActivity.CPU]) as trace:
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        seconds = (time.perf_counter() - started) / repeats
    kinds = collections.Counter()
    for event in trace.key_averages():
        kinds[_of_operator(event.key)] += event.self_cpu_time_total / 1e6 / repeats
    del kinds[OUTSIDE]
    kinds[OUTSIDE] = max(seconds - kinds.total(), 0.0)
    return {"seconds": seconds, "kinds": dict(kinds)}


def _of_operator(name: str) -> str:
    """The kind of one of PyTorch's operators."""
    word = name.lower()
    if not word.startswith(("aten::", "cpp_fused", "mkldnn", "graph_", "inductor")):
        return OUTSIDE
    for part, kind in (
        ("conv", CONVOLUTIONS),
        ("mm", PRODUCTS),
        ("linear", PRODUCTS),
        ("copy", COPIES),
        ("contiguous", COPIES),
        ("clone", COPIES),
        ("sum", SUMS),
        ("mean", SUMS),
    ):
        if part in word:
            return kind
    return ELEMENTWISE
