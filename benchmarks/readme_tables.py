"""The tables of README.md and docs/results.md from the committed results.

    python -m benchmarks.readme_tables            # writes them
    python -m benchmarks.readme_tables --check    # fails if a file does not match the results

The text between ``<!-- table 1 -->`` and ``<!-- end of table 1 -->`` comes from the files
``benchmarks/results/*/table1.json``, written by ``python -m experiments.table1 --output=...``;
likewise for the other tables; ``<!-- course of training -->`` encloses how the runs of
``table1-digits-laptop/curves.json`` got there. ``<!-- cifar10 cpu ... -->`` is what
``benchmarks.cifar10_cpu`` recorded: trials, the course of training, and paired differences. A cell
of several seeds has their standard deviation, one of a single seed the 95 % interval of its test
images. A cell that was not run is empty; the paper's own numbers are in italics.
"""

import argparse
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.cli import process
from experiments.cli.options import Parser
from experiments.paper import table1, table2, table3
from experiments.paper.runs import Table
from experiments.run import accuracy
from experiments.run.checkpoints import write_atomically

from . import _pairs

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
TABLES = {table.number: table for table in (table1.TABLE, table2.TABLE, table3.TABLE)}

# Lines for a row of the JSON: names in its cells, and their titles after the first.
_LINES = {
    "robust": "{attack}",
    "autoattack": "AutoAttack",
    "robust_last": "{attack}, last checkpoint",
    "clean": "clean accuracy",
}


def render(table: Table, results: Mapping[str, dict]) -> str:
    """One table as Markdown.

    Args:
        table: which table.
        results: its results from :func:`experiments.paper.tables.collect`, by their link.

    Example:
        >>> print(render(table1.TABLE, {}).splitlines()[-1].split(" | ")[0])
        | *the paper's: CIFAR10, PreActResNet-18, AutoAttack*
    """
    methods = table.methods
    lines = [_line("robust accuracy, %", methods.values()), "|---|" + "---|" * len(methods)]
    for result in results.values():
        for row in result["rows"]:
            lines += _rows(row, result["scale"], tuple(methods))
    paper = table.rows[0]
    cells = (f"*{mean} ± {std}*" for mean, std in (paper.paper[method] for method in methods))
    lines.append(_line(f"*the paper's: {paper.title}*", cells))
    if results:
        lines += ["", *_sources(results)]
    return "\n".join(lines)


def course(curves: Mapping[str, dict]) -> str:
    """How runs went, as Markdown: robust accuracy early, at the end, and on training images.

    Args:
        curves: by method, of equal length, as in ``curves.json``: lists by epoch of the mean, least
            and greatest value over ``n`` seeds, of one seed its value alone.

    Example:
        >>> values = {f"{name}_{what}": [1.0, 2.0, 3.0] for name in ("selection_robust",
        ...     "train_robust") for what in ("mean", "min", "max")}
        >>> print(course({"AT": {"n": 2, "epoch": [1, 2, 3], **values}}).splitlines()[2])
        | held-out images, epoch 1 of 3 | 1.0 [1.0, 1.0] |
    """
    first = next(iter(curves.values()))
    last = len(first["epoch"]) - 1
    early = (last + 1) // 3 - 1
    epoch = lambda index: f"epoch {first['epoch'][index]} of {first['epoch'][last]}"
    seeds = {c["n"] for c in curves.values()}
    spread = ", [least, greatest]" if max(seeds) > 1 else ""
    alike = len(seeds) == 1
    names = curves if alike else [f"{name}, n={c['n']}" for name, c in curves.items()]
    lines = [
        _line(f"robust accuracy, %{f', n={min(seeds)}' if alike else ''}{spread}", names),
        "|---|" + "---|" * len(curves),
    ]
    for title, name, index in (
        (f"held-out images, {epoch(early)}", "selection_robust", early),
        (f"held-out images, {epoch(last)}", "selection_robust", last),
        (f"training images, {epoch(last)}", "train_robust", last),
    ):
        cells = []
        for c in curves.values():
            mean, low, high = (c[f"{name}_{end}"][index] for end in ("mean", "min", "max"))
            cells.append(f"{mean:.1f}" + (f" [{low:.1f}, {high:.1f}]" if c["n"] > 1 else ""))
        lines.append(_line(title, cells))
    return "\n".join(lines)


def trials(logs: Sequence[Mapping], names: Mapping[str, str]) -> str:
    """The trials that chose settings, as Markdown: a table of rates, and one of gamma_A.

    Each accuracy has the 95 % Wilson interval over its held-out images.

    Args:
        logs: the records of ``benchmarks.cifar10_cpu tune``.
        names: titles of the methods.
    """
    tables: dict[str, list[tuple[str, float, str]]] = {"rate": [], "gamma_A": []}
    for log in logs:
        [(field, value)] = log["settings"].items()
        table = tables["gamma_A" if field == "awp.gamma" else "rate"]
        text = accuracy.with_interval(log["selection_robust"][-1], log["selection_images"], 1)
        table.append((log["method"], value, text))
    images = ", ".join(sorted({str(log["selection_images"]) for log in logs}))
    lines = []
    for symbol, rows in tables.items():
        values = sorted({value for _, value, _ in rows})
        if not values:
            continue
        heads = (f"{symbol} {value:g}" for value in values)
        lines += ["", _line(f"PGD-20, % of {images} held-out images, n=1", heads)]
        lines.append("|---|" + "---|" * len(values))
        for method in dict.fromkeys(method for method, _, _ in rows):
            found = {value: text for name, value, text in rows if name == method}
            lines.append(_line(names[method], (found.get(value, "") for value in values)))
    return "\n".join(lines[1:])


def _rows(row: dict, scale: str, methods: Sequence[str]) -> list[str]:
    runs = [run for cell in row["cells"].values() for run in cell["runs"]]
    if not runs:
        return []
    attack = ", ".join(sorted({run["attack"] for run in runs}))
    lines = []
    for name, title in _LINES.items():
        cells_ = [row["cells"].get(method, {}) for method in methods]
        found = [cell.get(name) for cell in cells_]
        if not any(found):
            continue
        counts = {summary["n"] for summary in found if summary}
        shown = f" (n={counts.pop()})" if len(counts) == 1 else ""
        title = title.format(attack=attack)
        if name == "autoattack":
            title += _subset(runs)
        setting = row["dataset"] if lines else _setting(row, runs, scale)
        cells = (
            _cell(name, summary, not shown, cell)
            for summary, cell in zip(found, cells_, strict=True)
        )
        lines.append(_line(f"{setting}, {title}{shown}", cells))
    return lines


def _setting(row: dict, runs: Sequence[dict], scale: str) -> str:
    """Data set, network, threat and size of the runs; older files lack some of it."""
    every = lambda name: sorted({run[name] for run in runs if run.get(name) is not None})
    words = [row["dataset"], " or ".join(every("model"))]
    if every("width"):
        words[-1] += " of width " + " or ".join(map(str, every("width")))
    if scale != "paper":
        words += [f"{n:,} training images" for n in every("train_images")]
        words += [f"{n} epochs" for n in every("epochs")]
    return ", ".join([*words, *map(_threat, every("threat"))])


def _subset(runs: Sequence[dict]) -> str:
    """On how many images AutoAttack ran, if not on all that the other attacks had."""
    counts = {r["autoattack_images"] for r in runs if r.get("autoattack_images")}
    counts -= {r["test_images"] for r in runs}
    return "".join(f" on {number:,} images" for number in sorted(counts))


def _threat(text: str) -> str:
    """Rewrites ``linf, eps 0.031373`` as ``linf 8/255``."""
    norm, eps = re.fullmatch(r"(\w+), eps (.+)", text).groups()  # pyright: ignore
    pixels = float(eps) * 255
    is_fraction = len(eps) > 5 and abs(pixels - round(pixels)) < 1e-3 * pixels  # but not 0.2
    return f"{norm} {round(pixels)}/255" if is_fraction else f"{norm} {eps}"


def _cell(name: str, summary: dict | None, with_count: bool, cell: dict) -> str:
    if summary is None:
        return ""
    mean, number = summary["mean"], f" (n={summary['n']})" if with_count else ""
    if summary["std"] is not None:
        return f"{mean:.1f} ± {summary['std']:.1f}{number}"
    [run] = cell["runs"]
    images = (name == "autoattack" and run.get("autoattack_images")) or run["test_images"]
    return accuracy.with_interval(mean, images, 1) + number


def _line(title: str, cells) -> str:
    return f"| {title} | " + " | ".join(cells) + " |"


def _sources(results: Mapping[str, dict]) -> list[str]:
    lines = []
    for link, result in results.items():
        cells = [cell for row in result["rows"] for cell in row["cells"].values()]
        runs = [run for cell in cells for run in cell["runs"]]
        every = lambda name, joint=", ", runs=runs: joint.join(
            sorted({str(run[name]) for run in runs})
        )
        if runs:
            lines.append(
                f"* [{link.removeprefix('../')}]({link}): commit {every('commit')}; "
                f"{every('device', ' and ')}; {every('precision')}; {every('test_images')} test "
                f"images, checkpoint selected on {every('selection')} images."
            )
    return lines


def load(number: int, results: Path, root: str = "") -> dict[str, dict]:
    """The results of a table, digits first, by path; ``root`` leads to the repository root."""
    found = {}
    for path in sorted(results.glob(f"*/table{number}.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["table"] != number:
            raise ValueError(f"{path} contains Table {result['table']}")
        link = f"{root}benchmarks/results/{path.relative_to(results).as_posix()}"
        found[link] = result
    is_other = lambda item: item[1]["rows"][0]["dataset"] != "digits"
    return dict(sorted(found.items(), key=is_other))


def _table(table: Table, results: Path, root: str) -> str:
    return render(table, load(table.number, results, root))


def fill(text: str, results: Path, root: str = "") -> str:
    """Regenerates every table that the text of a page has markers for.

    Args:
        text: text of the page.
        results: folder with the results.
        root: path from the page to the root of the repository, such as "../".

    Raises:
        ValueError: if a table lacks one of its markers, or there are none.
    """
    if "<!-- table " not in text:
        raise ValueError("no <!-- table 1 --> or other table in the file")
    bodies: dict[str, Callable[[], str]] = {
        f"table {number}": functools.partial(_table, table, results, root)
        for number, table in TABLES.items()
    }
    read = lambda path: json.loads(path.read_text(encoding="utf-8"))
    curves = results / "table1-digits-laptop" / "curves.json"
    bodies["course of training"] = lambda: course(read(curves))
    cpu, names = results / "table1-cifar10-cpu", {**table1.TABLE.methods, **table3.TABLE.methods}
    bodies["cifar10 cpu trials"] = lambda: trials(
        [read(path) for path in sorted((cpu / "tuning").glob("*.json"))], names
    )
    bodies["cifar10 cpu course"] = lambda: course(read(cpu / "curves.json"))
    bodies["cifar10 cpu pairs"] = lambda: _pairs.to_markdown(
        read(cpu / "comparison.json")["pairs"], names
    )
    for name, body in bodies.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if start not in text and end not in text:
            continue
        if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
            raise ValueError(f"expected one {start} followed by one {end} in the file")
        head, tail = text.index(start) + len(start), text.index(end)
        text = f"{text[:head]}\n{body()}\n{text[tail:]}"
    return text


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.readme_tables",
        description="Writes the tables of README.md and docs/results.md from the committed "
        "results.",
    )
    parser.add_argument(
        "--check", action="store_true", help="fail if a file would change; write nothing"
    )
    parser.add_argument("--readme", type=Path, help="update only this page")
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "benchmarks" / "results",
        help="default benchmarks/results",
    )
    return parser


def main() -> None:
    """The command line."""
    process.execute(lambda: _main(_parser().parse_args()))


def _main(options: argparse.Namespace) -> None:
    for page in [options.readme] if options.readme else PAGES:
        before = page.read_text(encoding="utf-8")
        after = fill(before, options.results, "../" if page.parent == ROOT / "docs" else "")
        if options.check and after != before:
            raise ValueError(
                f"the tables of {page} differ from {options.results}; run "
                "python -m benchmarks.readme_tables"
            )
        if after == before:
            print(f"{page} is up to date")
            continue
        write_atomically(page, after.encode())
        print(f"written: {page}")


if __name__ == "__main__":
    main()
