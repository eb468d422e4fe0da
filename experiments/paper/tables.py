"""Shared code of the paper's tables: rows, columns, the runs behind a cell, and flags.

Every number comes from a run's report. The paper's own values are shown alongside, marked as such;
cells that were not run are empty, and their commands are listed.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from jaxadv.checks import check_count

from .. import data, settings
from ..cli import process
from ..cli.options import Parser, folder
from ..reporting import passes
from ..reporting.curves import training_curves
from ..run import environment
from ..run.directory import RunDirectory, write_json
from .markdown import SUMMARIES, to_markdown
from .runs import Cell, Row, Table, is_judged, judge_missing, rows_at, train_missing, usual_jobs


def collect(
    table: Table, scale: str, rows: Sequence[Row], methods: Sequence[str], seeds: Sequence[int]
) -> dict:
    """Collects a table's data from the reports of finished runs.

    Args:
        table: the table.
        scale: one of :data:`experiments.settings.SCALES`.
        rows: from :func:`rows_at`.
        methods: stems of config files.
        seeds: seeds for each cell.

    Returns:
        A JSON-serializable dictionary: for each row, one cell per method with its runs, mean and
        sample standard deviation (None below two runs), the commands for missing runs, and the
        paper's values.
    """
    missing, unjudged, found = [], [], []
    for row in rows:
        cells = {}
        for method in methods:
            runs = []
            for seed in seeds:
                cell = Cell(row, scale, method, seed)
                report = cell.report()
                if report is None:
                    missing.append(cell.command())
                if row.attack == "AutoAttack" and not (report and is_judged(report)):
                    unjudged.append(
                        f"python -m experiments.evaluate --workdir={cell.workdir()} "
                        "--attack=autoattack"
                    )
                if report is not None:
                    runs.append(run_record(cell, report))
            cells[method] = {"runs": runs} | {
                name: mean_std([run[name] for run in runs]) for name in SUMMARIES
            }
        found.append(
            {"title": row.title, "dataset": row.dataset, "attack": row.attack, "cells": cells}
            | {"paper": dict(row.paper)}
        )
    return {
        "table": table.number,
        "scale": scale,
        "columns": {method: table.methods[method] for method in methods},
        "rows": found,
        "paper": {row.title: dict(row.paper) for row in table.rows},
        "missing": missing,
        "missing_autoattack": unjudged,
        "environment": environment.describe(),
    }


def run_record(cell: Cell, report: dict) -> dict:
    """The numbers of a finished run that tables show, and where they come from."""
    test, strong = report["test"], report.get("autoattack") or {}
    return {
        "workdir": str(cell.workdir()),
        "seed": report["seed"],
        "model": report["model"],
        "width": cell.config().width,  # None means the architecture's default
        "train_images": report["data"]["train"],
        "epochs": report["last_epoch"],
        "attack": report["attack"],
        "threat": report["threat"],
        "selection": report["selection"],
        "selected_epoch": report["selected_epoch"],
        "robust": test["selected"]["robust"],
        "clean": test["selected"]["clean"],
        "robust_last": test["last"]["robust"],
        "clean_last": test["last"]["clean"],
        "autoattack": strong.get("selected", {}).get("robust"),
        "autoattack_last": strong.get("last", {}).get("robust"),
        "test_images": test["last"]["images"],
        "minibatch_gradients": report["minibatch_gradients"],
        "train_seconds": report["train_seconds"],
        "commit": report["environment"]["commit"],
        "device": report["environment"]["device"],
        "precision": report["precision"],
    }


def mean_std(values: Sequence[float | None]) -> dict | None:
    """Mean, sample standard deviation (None for one value), and number of those that exist."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    std = statistics.stdev(there) if len(there) > 1 else None
    return {"mean": statistics.fmean(there), "std": std, "n": len(there)}


def _parser(table: Table) -> argparse.ArgumentParser:
    name = f"table{table.number}"
    parser = Parser(
        prog=f"python -m experiments.{name}",
        description=f"Table {table.number} of the paper from finished runs: Markdown, JSON "
        "and figures of the training curves. At scales laptop and smoke, missing runs are trained "
        "first.",
    )
    parser.add_argument("--scale", choices=settings.SCALES, default="paper")
    parser.add_argument(
        "--dataset", choices=sorted(settings.DEFAULTS), help="default digits; paper: all rows"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds per cell; default 3")
    parser.add_argument(
        "--methods", default=",".join(table.methods), help="comma-separated columns"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="runs to train side by side; default: one a core, at most 4, for digits, else 1, "
        "which uses all cores",
    )
    parser.add_argument("--run", action="store_true", help="train missing runs at scale paper, too")
    parser.add_argument(
        "--autoattack", action="store_true", help="run AutoAttack on finished runs that lack it"
    )
    parser.add_argument("--no-run", action="store_true", help="only collect finished runs")
    parser.add_argument("--output", type=folder, help=f"default runs/{name}[-DATASET]-SCALE")
    parser.add_argument("--data-dir", type=folder, help="folder with the data sets")
    parser.add_argument(
        "--download",
        choices=("true", "false"),
        default="true",
        help="download missing data; default true",
    )
    parser.add_argument(
        "--from-json", type=Path, metavar="FILE", help=f"print a saved {name}.json as Markdown"
    )
    return parser


def main(table: Table) -> None:
    """The command line of a table."""
    process.execute(lambda: _main(table, _parser(table).parse_args()))


def _main(table: Table, options: argparse.Namespace) -> None:
    if options.from_json is not None:
        print(to_markdown(json.loads(options.from_json.read_text(encoding="utf-8"))))
        return
    check_count("--seeds", options.seeds, 1)
    if options.jobs is not None:
        check_count("--jobs", options.jobs, 1)
    methods = options.methods.split(",")
    for method in methods:
        if method not in table.methods:
            raise ValueError(f"--methods: {method!r} is not one of {', '.join(table.methods)}")
    seeds, scale = range(options.seeds), options.scale
    rows = rows_at(table, scale, options.dataset)
    process.split_cpu(rows[0].dataset)
    cells = [Cell(row, scale, m, seed) for row in rows for seed in seeds for m in methods]
    if not options.no_run and (options.run or options.autoattack or scale != "paper"):
        for name in dict.fromkeys(row.dataset for row in rows):
            data.ensure(name, options.data_dir, download=options.download == "true")
    if (options.run or scale != "paper") and not options.no_run:
        jobs = options.jobs or usual_jobs(rows[0].dataset)
        train_missing(cells, table.methods, options.data_dir, jobs=jobs)
    if options.autoattack:
        judge_missing(cells, table.methods, options.data_dir)
    result = collect(table, scale, rows, methods, seeds)
    name = f"table{table.number}"
    place = "" if scale == "paper" and options.dataset is None else f"-{rows[0].dataset}"
    output = options.output or Path("runs") / f"{name}{place}-{scale}"
    output.mkdir(parents=True, exist_ok=True)
    markdown = to_markdown(result)
    (output / f"{name}.md").write_text(markdown + "\n", encoding="utf-8")
    write_json(output / f"{name}.json", result)
    print("\n" + markdown + "\n")
    written = [output / f"{name}.md", output / f"{name}.json"]
    for number, row in enumerate(result["rows"]):
        curves = {
            label: [_counted(run["workdir"]) for run in row["cells"][method]["runs"]]
            for method, label in result["columns"].items()
        }
        if any(curves.values()):
            stem = "curves" if len(rows) == 1 else f"curves-{number + 1}"
            done = [run for cell in row["cells"].values() for run in cell["runs"]]
            model, held_out = (
                " or ".join(sorted({run[name] for run in done})) for name in ("model", "selection")
            )
            title = f"{row['dataset']}, {model}, scale {scale}" if len(rows) == 1 else row["title"]
            written += training_curves(curves, output / stem, title=title, evaluated_on=held_out)
    print("written: " + ", ".join(str(path) for path in written))


def _counted(workdir: str) -> list[dict]:
    directory = RunDirectory(workdir)
    return passes.counted(directory.config(), directory.metrics())
