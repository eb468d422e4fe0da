"""Durations and radii as people write them."""


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


def radius(eps: float) -> str:
    """A radius, in steps of 8-bit images where that is how it was chosen.

    Example:
        >>> radius(8 / 255), radius(0.2)
        ('8/255', '0.2')
    """
    text, steps = f"{eps:.5g}", 255 * eps
    return f"{steps:.0f}/255" if len(text) > 5 and abs(steps - round(steps)) < 1e-6 else text
