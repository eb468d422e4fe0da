"""Where a compiled program communicates: its collectives by the number of loops around them."""

import collections
import math
import re

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$", re.MULTILINE)
_CALLED = re.compile(r"(body|calls|to_apply|condition|\w+_computations?)=\{?((?:%[\w.-]+(?:, )?)+)")
_RESULT = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_SHAPE = re.compile(r"[a-z]+[0-9]+\[([0-9,]*)\]")


def counts(text: str) -> dict[str, int]:
    """Number of collectives of each kind in a compiled program's text."""
    return dict(collections.Counter(kind for _, kind in _RESULT.findall(text)))


def by_loop_depth(text: str) -> dict[int, list[int]]:
    """Sizes in elements of the collectives in a compiled program's text, by depth of loops."""
    starts = list(_COMPUTATION.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    bodies = {m[2]: text[m.end() : end] for m, end in zip(starts, ends, strict=True)}
    [entry] = [match[2] for match in starts if match[1]]
    found = collections.defaultdict(list)

    def visit(name: str, depth: int) -> None:
        for line in bodies[name].splitlines():
            if result := _RESULT.search(line):
                shapes = _SHAPE.findall(result[1])
                found[depth].append(
                    sum(math.prod(map(int, s.split(","))) if s else 1 for s in shapes)
                )
            for role, names in _CALLED.findall(line):
                for called in re.findall(r"%([\w.-]+)", names):
                    visit(called, depth + (role == "body"))

    visit(entry, 0)
    return dict(found)
