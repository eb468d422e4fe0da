"""Human-readable durations."""


def duration(seconds: float) -> str:
    """A duration in readable units.

    Example:
        >>> duration(600)
        '10 min'
    """
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
