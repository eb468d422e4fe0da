"""Result tables as Markdown."""

from collections.abc import Mapping, Sequence

from ..run import accuracy

# Names in a run's record, and their titles in the second part of the Markdown.
SUMMARIES = {
    "robust": "robust, selected checkpoint",
    "robust_last": "robust, last checkpoint",
    "autoattack": "AutoAttack, selected checkpoint",
    "autoattack_last": "AutoAttack, last checkpoint",
    "clean": "clean, selected checkpoint",
    "clean_last": "clean, last checkpoint",
    "train_seconds": "training time, s",
}

_NO_ACCURACY = ("train_seconds",)


def to_markdown(table: dict) -> str:
    """The table in the paper's layout, followed by details for each row.

    Args:
        table: from :func:`experiments.paper.tables.collect`, or loaded from its JSON.
    """
    methods, scale = table["columns"], table["scale"]
    names = {row["dataset"] for row in table["rows"]}
    place = f", {names.pop()}" if len(names) == 1 else ""
    head = "| robust accuracy, % | " + " | ".join(methods.values()) + " |"
    lines = [f"## Table {table['table']} at scale {scale}{place}", "", head, _rule(methods)]
    shown = set()
    for row in table["rows"]:
        runs, cells = _runs(row), row["cells"]
        title = ", ".join([row["dataset"]] + sorted({run["model"] for run in runs}))
        title = title if runs else row["title"]
        usual = ", ".join(sorted({run["attack"] for run in runs})) or row["attack"]
        attacks = {usual: "robust"}
        if row["attack"] == "AutoAttack" or any(cells[m]["autoattack"] for m in methods):
            attacks = attacks | {"AutoAttack": "autoattack"}
        for attack, name in attacks.items():
            heading = f"**{title}, {attack}** ({scale})" if runs else f"**{title}** ({scale})"
            lines.append(_line(heading, [_format(cells[m], name) for m in methods]))
            if not runs:
                break
        if row["paper"]:
            lines.append(_paper_line(row["title"], row["paper"], methods))
            shown.add(row["title"])
    if not shown:
        lines += [_paper_line(title, values, methods) for title, values in table["paper"].items()]
    for row in table["rows"]:
        lines += _details(row, methods)
    if table["missing"]:
        lines += ["", "Not run yet:", ""] + [f"    {command}" for command in table["missing"]]
    if table.get("missing_autoattack"):
        lines += ["", "AutoAttack not run yet (or all of them: --autoattack):", ""]
        lines += [f"    {command}" for command in table["missing_autoattack"]]
    return "\n".join(lines)


def _details(row: dict, methods: Mapping[str, str]) -> list[str]:
    """Selection rule, all accuracies, time, commit and device for the cells of a row."""
    runs, cells = _runs(row), row["cells"]
    if not runs:
        return []
    every = lambda name: ", ".join(sorted({str(run[name]) for run in runs}))
    lines = [
        "",
        f"{row['title']}: mean ± standard deviation over n seeds, or one seed's "
        "95 % interval over test images, at the checkpoint with the best "
        f"robust accuracy on {every('selection')} images ({every('attack')}, {every('threat')}, "
        f"{every('test_images')} test images). Rows in italics are the paper's own numbers"
        + ("." if row["paper"] else ", on other data, models or attacks."),
        "",
        "| | " + " | ".join(methods.values()) + " |",
        _rule(methods),
    ]
    for name, title in SUMMARIES.items():
        if any(cells[m][name] for m in methods):
            lines.append(_line(title, [_format(cells[m], name) for m in methods]))
    gradients = [_range([run["minibatch_gradients"] for run in cells[m]["runs"]]) for m in methods]
    lines.append(_line("minibatch gradients", gradients))
    commits, devices = every("commit"), "; ".join(sorted({run["device"] for run in runs}))
    return [*lines, "", f"Commit {commits}; {devices}; {every('precision')}."]


def _runs(row: dict) -> list[dict]:
    return [run for cell in row["cells"].values() for run in cell["runs"]]


def _rule(methods: Mapping[str, str]) -> str:
    return "|---|" + "---|" * len(methods)


def _line(title: str, values: Sequence[str]) -> str:
    return f"| {title} | " + " | ".join(values) + " |"


def _paper_line(title: str, values: Mapping, methods: Mapping[str, str]) -> str:
    cell = lambda m: f"*{values[m][0]} ± {values[m][1]}*" if m in values else ""
    return _line(f"*the paper's: {title}*", [cell(m) for m in methods])


def _format(cell: dict, name: str) -> str:
    """Mean and standard deviation over seeds, or the interval of one seed's test images."""
    summary = cell[name]
    if summary is None:
        return ""
    number = f" (n={summary['n']})"
    if summary["std"] is not None:
        return f"{summary['mean']:.1f} ± {summary['std']:.1f}{number}"
    if name in _NO_ACCURACY:
        return f"{summary['mean']:.1f}{number}"
    return accuracy.with_interval(summary["mean"], cell["runs"][0]["test_images"], 1) + number


def _range(values: Sequence[int]) -> str:
    if not values:
        return ""
    return f"{values[0]:,}" if len(set(values)) == 1 else f"{min(values):,} to {max(values):,}"
