"""The README's sentence about its own commands, from ``fresh_clone.json``."""

KEYS = ("median", "least", "greatest")
FIRST = "make reproduce, with installation"


def sentence(report: dict) -> str:
    """What the README says of it.

    Example:
        >>> seconds = {name: dict(median=90, least=60, greatest=120, calls=3)
        ...            for name in (FIRST, "make setup")}
        >>> found = dict(device="a CPU", date="2026-11-29")
        >>> print(sentence({"seconds": seconds, "environment": found}).split(" ([")[0])
        `make reproduce` takes 1.5 minutes (1.0 to 2.0), 1.5 (1.0 to 2.0) of them for the
        installation: 3 fresh clones on a CPU, 2026-11-29
    """
    minutes = {
        name: {key: found[key] / 60 for key in KEYS} for name, found in report["seconds"].items()
    }
    whole, setup = (
        ("{median:.1f}" + unit + " ({least:.1f} to {greatest:.1f})").format(**minutes[name])
        for name, unit in ((FIRST, " minutes"), ("make setup", ""))
    )
    calls, where = report["seconds"][FIRST]["calls"], report["environment"]
    return (
        f"`make reproduce` takes {whole}, {setup} of them for the\ninstallation: {calls} fresh "
        f"clones on {where['device']}, {where['date']} "
        "([fresh_clone.json](benchmarks/results/fresh_clone.json))."
    )
