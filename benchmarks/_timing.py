"""Times of rivals measured strictly in turn, so that a busy machine is unfair to all of them."""

import statistics
import time
from collections.abc import Callable


def alternate(rivals: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call: one call of every rival a repeat, after one warm-up call each.

    Args:
        rivals: calls that return when their work is done.
        repeats: measured calls of each.

    Returns:
        By name the seconds of the measured calls, and under "name, first call" that of the
        warm-up, which compiles.
    """
    first, times = {}, {name: [] for name in rivals}
    for name, call in rivals.items():
        first[f"{name}, first call"] = [_seconds(call)]
    for repeat in range(repeats):
        # Every other round backwards: nobody always follows the same rival.
        order = list(rivals) if repeat % 2 == 0 else list(rivals)[::-1]
        for name in order:
            times[name].append(_seconds(rivals[name]))
    return times | first


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


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
    """How many times as fast ``ours`` is: ratios of neighbouring calls, their median and spread.

    Example:
        >>> ratio({"a": [1.0, 2.0, 1.0], "b": [2.0, 2.0, 3.0]}, "a", "b")
        {'median': 2.0, 'least': 1.0, 'greatest': 3.0}
    """
    found = [their / our for our, their in zip(times[ours], times[theirs], strict=True)]
    return {"median": statistics.median(found), "least": min(found), "greatest": max(found)}
