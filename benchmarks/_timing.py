"""Times rivals in alternation, so that load on the machine affects all of them equally."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def alternate(
    rivals: dict[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    untimed: int = 0,
) -> dict[str, list[float]]:
    """Times each call: one call of every rival per repeat, after one warm-up call each.

    Args:
        rivals: functions that return when their work is done.
        repeats: number of measured calls of each.
        clock: in seconds; ``time.process_time`` for those of the CPU.
        untimed: calls before each measured one. A virtual machine gives the memory that a rival
            frees back to its host, and the next call of a large program waits for it.

    Returns:
        The seconds of the measured calls by name, and under "name, first call" those of the
        warm-up, which compiles.
    """
    first, times = {}, {name: [] for name in rivals}
    for name, call in rivals.items():
        first[f"{name}, first call"] = [_seconds(call, clock)]
    for repeat in range(repeats):
        # Reverse every other round, so that no rival always follows the same one.
        order = list(rivals) if repeat % 2 == 0 else list(rivals)[::-1]
        for name in order:
            for _ in range(untimed):
                rivals[name]()
            times[name].append(_seconds(rivals[name], clock))
    return times | first


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    call()
    return clock() - started


def operations(function: Callable, *args: Any) -> float:
    """Floating-point operations of a call, as the compiler counts them before it optimizes.

    A convolution counts as the sum of products that defines it, which not every form of
    it on CPU computes one by one: so the program for another platform is counted.
    """
    lowered = jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",))
    counted: Any = lowered.cost_analysis()
    return float(counted["flops"])


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median, least and greatest seconds by name.

    Example:
        >>> summary({"a": [3.0, 1.0, 2.0]})
        {'a': {'median': 2.0, 'least': 1.0, 'greatest': 3.0, 'calls': 3}}
    """
    return {
        name: {
            "median": statistics.median(values),
            "least": min(values),
            "greatest": max(values),
            "calls": len(values),
        }
        for name, values in times.items()
    }


def ratio(times: dict[str, list[float]], ours: str, theirs: str) -> dict[str, float]:
    """The speedup of ``ours``: median and spread of the ratios of neighboring calls.

    Example:
        >>> ratio({"a": [1.0, 2.0, 1.0], "b": [2.0, 2.0, 3.0]}, "a", "b")
        {'median': 2.0, 'least': 1.0, 'greatest': 3.0}
    """
    found = [their / our for our, their in zip(times[ours], times[theirs], strict=True)]
    return {"median": statistics.median(found), "least": min(found), "greatest": max(found)}


def shares(spent: dict[str, float], least: float = 0.005) -> str:
    """Parts of the whole in words, largest first.

    Example:
        >>> shares({"a": 1.0, "b": 3.0, "c": 0.001})
        'b 75 %, a 25 %'
    """
    whole = sum(spent.values())
    parts = sorted(((part / whole, name) for name, part in spent.items()), reverse=True)
    return ", ".join(f"{name} {100 * part:.0f} %" for part, name in parts if part >= least)
