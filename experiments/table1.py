"""Table 1 of the paper from the runs that exist; trains the missing ones if asked.

    python -m experiments.table1 --scale=laptop      # trains on digits and CPU what is missing
    python -m experiments.table1                     # paper scale: collects, lists the commands

Every number comes from a run's report. The paper's own values stand beside them, marked as such; a
cell that was not run is empty.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxadv._checks import check_count

from . import cli, environment, figures, settings
from .runs import RunDirectory, write_json

# Columns of Table 1, by config file.
METHODS = {"at": "AT", "at_ensgd": "AT+EnSGD"}

# Kanai et al., Table 1: robust accuracy in %, mean and standard deviation over 3 runs.
PAPER = {
    "CIFAR10, PreActResNet-18, AutoAttack": {"at": (48.0, 0.2), "at_ensgd": (49.2, 0.4)},
    "CIFAR10, WRN-34-10, AutoAttack": {"at": (51.9, 0.5), "at_ensgd": (53.3, 0.3)},
    "SVHN, PreActResNet-18, PGD-20": {"at": (53.1, 0.6), "at_ensgd": (59.1, 0.4)},
    "CIFAR100, PreActResNet-18, PGD-20": {"at": (27.66, 0.04), "at_ensgd": (28.69, 0.03)},
}


def workdir_of(dataset: str, scale: str, method: str, seed: int) -> Path:
    """Where the run of a cell lives."""
    return cli.default_workdir(cli.load_config(method, scale, dataset, seed=seed))


def _report(dataset: str, scale: str, method: str, seed: int) -> dict | None:
    """The report of a cell's run, None if it is not finished.

    Raises:
        ValueError: if the run in the cell's folder has other fields than the config file says.
    """
    config = cli.load_config(method, scale, dataset, seed=seed)
    directory = RunDirectory(cli.default_workdir(config))
    report = directory.report()
    if report is not None:
        directory.check_same(config)
    return report


def train_missing(
    dataset: str, scale: str, methods: Sequence[str], seeds: Sequence[int], data_dir: Any = None
) -> None:
    """Trains every cell whose run is not finished; unfinished runs go on where they were."""
    from .train import train_and_evaluate

    cells = [(method, seed) for seed in seeds for method in methods]
    missing = [cell for cell in cells if _report(dataset, scale, *cell) is None]
    if len(missing) < len(cells):
        print(f"{len(cells) - len(missing)} of {len(cells)} runs exist already")
    for number, (method, seed) in enumerate(missing, 1):
        print(f"\n[{number}/{len(missing)}] {METHODS[method]} on {dataset}, seed {seed}")
        config = cli.load_config(method, scale, dataset, seed=seed)
        train_and_evaluate(config, cli.default_workdir(config), data_dir=data_dir)


def collect(dataset: str, scale: str, methods: Sequence[str], seeds: Sequence[int]) -> dict:
    """All that the table says, from the reports of the runs that exist.

    Args:
        dataset: name of the data set.
        scale: of :data:`experiments.settings.SCALES`.
        methods: stems of config files.
        seeds: seeds of each cell.

    Returns:
        A JSON-able dictionary: a cell a method with its runs, mean and standard deviation (of the
        sample, None below two runs), the commands of the missing runs, and the paper's values.
    """
    cells, missing = {}, []
    for method in methods:
        runs = []
        for seed in seeds:
            workdir = workdir_of(dataset, scale, method, seed)
            report = _report(dataset, scale, method, seed)
            if report is None:
                missing.append(_command(dataset, scale, method, seed))
            else:
                runs.append(_run_record(workdir, report))
        cells[method] = {"runs": runs} | {
            name: _mean_std([run[name] for run in runs])
            for name in ("robust", "clean", "robust_last", "clean_last", "train_seconds")
        }
    return {
        "dataset": dataset,
        "scale": scale,
        "columns": {method: METHODS[method] for method in methods},
        "cells": cells,
        "missing": missing,
        "paper": PAPER,
        "environment": environment.describe(),
    }


def to_markdown(table: dict) -> str:
    """The table in the layout of the paper's Table 1, then what stands behind each cell."""
    methods, cells = table["columns"], table["cells"]
    runs = [run for cell in cells.values() for run in cell["runs"]]
    head = "| robust accuracy, % | " + " | ".join(methods.values()) + " |"
    rule = "|---|" + "---|" * len(methods)
    row = lambda title, values: f"| {title} | " + " | ".join(values) + " |"
    lines = [f"## Table 1 at scale {table['scale']}, {table['dataset']}", "", head, rule]
    title = f"**{table['dataset']}, {table['scale']}**"
    if runs:
        first = runs[0]
        title = f"**{table['dataset']}, {first['model']}, {first['attack']}** ({table['scale']})"
    lines.append(row(title, [_format(cells[m]["robust"]) for m in methods]))
    for name, values in table["paper"].items():
        cell = lambda m, values=values: f"*{values[m][0]} ± {values[m][1]}*" if m in values else ""
        lines.append(row(f"*the paper's: {name}*", [cell(m) for m in methods]))
    if not runs:
        return "\n".join(lines + _missing_lines(table))
    lines += [
        "",
        f"Mean ± standard deviation over n seeds, at the checkpoint with the best robust accuracy "
        f"on {runs[0]['selection']} images ({runs[0]['threat']}, {runs[0]['test_images']} test "
        "images). Rows in italics are the paper's own numbers, on other data, models or attacks.",
        "",
        "| | " + " | ".join(methods.values()) + " |",
        rule,
    ]
    for title, name in (
        ("robust, selected checkpoint", "robust"),
        ("robust, last checkpoint", "robust_last"),
        ("clean, selected checkpoint", "clean"),
        ("clean, last checkpoint", "clean_last"),
        ("training time, s", "train_seconds"),
    ):
        lines.append(row(title, [_format(cells[m][name]) for m in methods]))
    gradients = [_range([run["minibatch_gradients"] for run in cells[m]["runs"]]) for m in methods]
    lines.append(row("minibatch gradients", gradients))
    commits = sorted({run["commit"] for run in runs})
    devices = sorted({run["device"] for run in runs})
    lines += ["", f"Commit {', '.join(commits)}; {'; '.join(devices)}; {runs[0]['precision']}."]
    return "\n".join(lines + _missing_lines(table))


def _missing_lines(table: dict) -> list[str]:
    if not table["missing"]:
        return []
    return ["", "Not run yet:", ""] + [f"    {command}" for command in table["missing"]]


def _run_record(workdir: Path, report: dict) -> dict:
    test = report["test"]
    return {
        "workdir": str(workdir),
        "seed": report["seed"],
        "model": report["model"],
        "attack": report["attack"],
        "threat": report["threat"],
        "selection": report["selection"],
        "selected_epoch": report["selected_epoch"],
        "robust": test["selected"]["robust"],
        "clean": test["selected"]["clean"],
        "robust_last": test["last"]["robust"],
        "clean_last": test["last"]["clean"],
        "test_images": test["last"]["images"],
        "minibatch_gradients": report["minibatch_gradients"],
        "train_seconds": report["train_seconds"],
        "commit": report["environment"]["commit"],
        "device": report["environment"]["device"],
        "precision": report["precision"],
    }


def _mean_std(values: Sequence[float]) -> dict | None:
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "n": len(values)}


def _format(summary: dict | None) -> str:
    if summary is None:
        return ""
    spread = "" if summary["std"] is None else f" ± {summary['std']:.1f}"
    return f"{summary['mean']:.1f}{spread} (n={summary['n']})"


def _range(values: Sequence[int]) -> str:
    if not values:
        return ""
    return f"{values[0]:,}" if len(set(values)) == 1 else f"{min(values):,} to {max(values):,}"


def _command(dataset: str, scale: str, method: str, seed: int) -> str:
    suffix = "" if scale == "paper" else f":{scale}"
    return (
        f"python -m experiments.{dataset} --config=configs/{method}.py{suffix} --config.seed={seed}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.table1",
        description="Table 1 of the paper from the runs that exist: Markdown, JSON and a figure of "
        "the training curves. At the scales laptop and smoke the missing runs are trained first.",
        allow_abbrev=False,
    )
    parser.add_argument("--scale", choices=settings.SCALES, default="paper")
    parser.add_argument(
        "--dataset", choices=sorted(settings.DEFAULTS), help="default digits; paper: cifar10"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds a cell, default 3")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated columns")
    parser.add_argument("--run", action="store_true", help="train missing runs at scale paper too")
    parser.add_argument("--no-run", action="store_true", help="only collect what exists")
    parser.add_argument("--output", type=Path, help="folder; default runs/table1-DATASET-SCALE")
    parser.add_argument("--data-dir", help="folder of the data sets")
    return parser


def main() -> None:
    """The command line."""
    cli.execute(lambda: _main(_parser().parse_args()))


def _main(options: argparse.Namespace) -> None:
    check_count("--seeds", options.seeds, 1)
    methods = options.methods.split(",")
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"--methods: {method!r} is none of {', '.join(METHODS)}")
    dataset = options.dataset or ("cifar10" if options.scale == "paper" else "digits")
    seeds = range(options.seeds)
    if (options.run or options.scale != "paper") and not options.no_run:
        train_missing(dataset, options.scale, methods, seeds, options.data_dir)
    table = collect(dataset, options.scale, methods, seeds)
    output = options.output or Path("runs") / f"table1-{dataset}-{options.scale}"
    output.mkdir(parents=True, exist_ok=True)
    markdown = to_markdown(table)
    (output / "table1.md").write_text(markdown + "\n", encoding="utf-8")
    write_json(output / "table1.json", table)
    print("\n" + markdown + "\n")
    written = [output / "table1.md", output / "table1.json"]
    curves = {
        label: [RunDirectory(run["workdir"]).metrics() for run in table["cells"][method]["runs"]]
        for method, label in table["columns"].items()
    }
    if any(curves.values()):
        title = f"{dataset}, scale {options.scale}"
        written += figures.training_curves(curves, output / "curves", title=title)
    print("written: " + ", ".join(str(path) for path in written))


if __name__ == "__main__":
    main()
