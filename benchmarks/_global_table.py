"""The table of docs/theory.md from `benchmarks/results/global_attacks.json`."""

import statistics

NORMS = ("linf", "l2", "l1")


def render(report: dict) -> str:
    """The table as Markdown.

    Args:
        report: what `benchmarks.global_attacks` writes.

    Example:
        >>> run = {"seconds": 2.0, "boxes": 300, "gap": 1e-7, "proved": True}
        >>> row = {"dimension": 4, "norm": "l2", "activation": "swish", "cube": True, "runs": [run]}
        >>> options = {"limit": 8.0, "gap_tol": 1e-6}
        >>> environment = {"commit": "0123", "device": "CPU", "date": "2026-01-01"}
        >>> report = {"options": options, "environment": environment, "rows": [row]}
        >>> print(render(report).splitlines()[-1])
        | L2 | 4 | 1 of 1: 300 boxes, 2.0 s |
    """
    kinds = list(dict.fromkeys((row["activation"], row["cube"]) for row in report["rows"]))
    options, environment = report["options"], report["environment"]
    title = lambda activation, cube: f"{activation}, {'with' if cube else 'without'} the cube"
    lines = [
        f"Proved to a gap of {options['gap_tol']:g} within about {options['limit']:g} s, of "
        f"{len(report['rows'][0]['runs'])} random networks; medians (least to greatest); gap: the "
        f"largest where not all are proved (commit {environment['commit']}; "
        f"{environment['device']}, "
        f"{environment['date']}):",
        "",
        "| norm | d | " + " | ".join(title(*kind) for kind in kinds) + " |",
        "|---|---|" + "---|" * len(kinds),
    ]
    places = sorted({(NORMS.index(row["norm"]), row["dimension"]) for row in report["rows"]})
    for index, dimension in places:
        norm = NORMS[index]
        cells = []
        for kind in kinds:
            runs = [
                row["runs"]
                for row in report["rows"]
                if (row["norm"], row["dimension"]) == (norm, dimension)
                and (row["activation"], row["cube"]) == kind
            ]
            cells.append(cell(runs[0]) if runs else "")
        lines.append(f"| {norm.capitalize()} | {dimension} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(runs: list[dict]) -> str:
    """Proofs of the networks of one case, boxes and seconds with their range, and the gap left.

    Example:
        >>> runs = [{"boxes": n, "seconds": n / 100, "gap": 0, "proved": True} for n in (100, 300)]
        >>> cell(runs)
        '2 of 2: 200 (100 to 300) boxes, 2.0 (1.0 to 3.0) s'
    """
    proved = sum(run["proved"] for run in runs)
    boxes, seconds = (
        _spread([run[name] for run in runs], form)
        for name, form in (("boxes", ",.0f"), ("seconds", ".1f"))
    )
    text = f"{proved} of {len(runs)}: {boxes} boxes, {seconds} s"
    return text if proved == len(runs) else f"{text}, gap {max(r['gap'] for r in runs):.2g}"


def _spread(values: list[float], form: str) -> str:
    median, low, high = (
        format(x, form) for x in (statistics.median(values), min(values), max(values))
    )
    return median if low == high else f"{median} ({low} to {high})"
