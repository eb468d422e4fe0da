"""The README's sentence about its own commands, from ``fresh_clone.json``."""

KEYS = ("median", "least", "greatest")
FIRST = "make reproduce, with installation"


def sentence(report: dict) -> str:
    """What the README says of it.

    Example:
        >>> seconds = {name: dict(median=90, least=60, greatest=120, calls=3)
        ...            for name in (FIRST, "make setup", "make test")}
        >>> found = dict(device="a CPU", date="2026-11-29")
        >>> print(sentence({"seconds": seconds, "environment": found}))
        `make reproduce` takes 1.5 minutes (1.0 to 2.0), 1.5 of them for the installation, and
        `make test` 1.5 (1.0 to 2.0) after it: 3 fresh clones on a CPU, 2026-11-29
        ([fresh_clone.json](benchmarks/results/fresh_clone.json)).
    """
    spread = {
        name: "{median:.1f}{} ({least:.1f} to {greatest:.1f})".format(
            " minutes" * (name == FIRST), **{key: found[key] / 60 for key in KEYS}
        )
        for name, found in report["seconds"].items()
    }
    setup, where = report["seconds"]["make setup"], report["environment"]
    return (
        f"`make reproduce` takes {spread[FIRST]}, {setup['median'] / 60:.1f} of them for the "
        f"installation, and\n`make test` {spread['make test']} after it: {setup['calls']} fresh "
        f"clones on {where['device']}, {where['date']}\n"
        "([fresh_clone.json](benchmarks/results/fresh_clone.json))."
    )
