"""Table 1 on all of CIFAR-10 with a network that two cores can train (scale ``cpu``).

    python -m benchmarks.cifar10_cpu tune       # the short runs that chose the settings
    python -m benchmarks.cifar10_cpu run        # train, attack and record what is missing
    python -m benchmarks.cifar10_cpu compare    # the tables and the curves, from the records

Every run is recorded as it ends, in ``benchmarks/results/table1-cifar10-cpu``, with the verdict on
each test image, so that the table can grow over several sittings: ``compare`` needs the records
only. Interrupted runs resume.

How the settings were chosen, before any test image was used: every method had three trials
(`TRIALS`), of 4 epochs on 10,000 images with the schedule's shape, and the highest robust accuracy
under PGD-20 on 1,000 held-out training images after the last epoch won. The trials have another
seed, hence other held-out images, than the runs. (Every trial ends, as runs do, with a report on
500 test images; the choice does not use it.) AT and AT+EnSGD choose the rate of the steps that
follow gradients, EntropySGD's inner one, among the same three; its outer step is that of the scale
"laptop". AWP and AWP+EnSGD, with these rates, choose gamma_A among the same three. Trials are
short, so they favour large rates. EntropySGD's second-order form has the settings of the
first-order one, as in the paper.

The radius of the training attack grows from 0 over the first epoch, for every method
(`config.threat.warmup`): without it this network stays at chance for hundreds of updates.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from experiments import data, settings
from experiments.cli import process
from experiments.cli.options import Parser, folder
from experiments.evaluation.evaluate import evaluate
from experiments.paper import table1, table3
from experiments.paper.runs import Cell, Table, rows_at
from experiments.paper.tables import mean_std, run_record
from experiments.reporting import passes
from experiments.reporting.curves import training_curves
from experiments.run.directory import RunDirectory, write_json
from experiments.run.predictions import load_predictions
from experiments.run.train import train_and_evaluate

from . import _pairs

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "table1-cifar10-cpu"
METHODS = {**table1.TABLE.methods, **table3.TABLE.methods}
AUTOATTACK_IMAGES = 1000
PAIRS = (
    ("at_ensgd", "at"),
    ("awp", "at"),
    ("awp_ensgd", "awp"),
    ("awp_ensgd", "at_ensgd"),
    ("at_2nd_ensgd", "at_ensgd"),
    ("awp_2nd_ensgd", "awp_ensgd"),
)

RATES, GAMMAS = (0.01, 0.03, 0.1), (0.0025, 0.005, 0.01)
TRIALS = {
    "at": [{"learning_rate": rate} for rate in RATES],
    "at_ensgd": [{"entropy.inner_learning_rate": rate} for rate in RATES],
    # With the rates chosen for AT and AT+EnSGD.
    "awp": [{"awp.gamma": gamma} for gamma in GAMMAS],
    "awp_ensgd": [{"awp.gamma": gamma} for gamma in GAMMAS],
}
TRIAL = {"num_epochs": 4, "train_size": 10_000, "test_size": 500, "seed": 100}


def tune(methods: list[str], runs: Path, data_dir: Path | None) -> None:
    """Makes the trials that have no record yet, and records each as it ends."""
    (RESULTS / "tuning").mkdir(parents=True, exist_ok=True)
    for method in methods:
        for number, chosen in enumerate(TRIALS.get(method, ())):
            file = RESULTS / "tuning" / f"{method}-{number}.json"
            if file.is_file():
                continue
            config = settings.load_config(method, "cpu", "cifar10", **TRIAL, **chosen)
            print(f"\n{method}: {chosen}", flush=True)
            workdir = runs / f"{method}-{number}"
            report = train_and_evaluate(config, workdir, data_dir=data_dir)
            rows = RunDirectory(workdir).metrics()
            curves = ("train_loss", "train_robust", "selection_robust", "selection_clean")
            write_json(
                file,
                {"method": method, "settings": chosen, "trial": TRIAL}
                | {"selection_images": report["data"]["selection"]}
                | {name: [row[name] for row in rows] for name in curves}
                | {"train_seconds": report["train_seconds"]}
                | {"environment": _machine(report)},
            )


def run(methods: list[str], seeds: int, data_dir: Path | None) -> None:
    """Trains, attacks and records the cells that have no record yet."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for method in methods:
            file = RESULTS / f"{method}-seed{seed}.json"
            if file.is_file():
                continue
            [row] = rows_at(table1.TABLE, "cpu", "cifar10")
            cell = Cell(row, "cpu", method, seed)
            print(f"\n{cell.describe(METHODS)}", flush=True)
            train_and_evaluate(cell.config(), cell.workdir(), data_dir=data_dir)
            judged = evaluate(
                cell.workdir(), attack="autoattack", number=AUTOATTACK_IMAGES, save=True,
                data_dir=data_dir,
            )  # fmt: skip
            write_json(file, record(cell, judged))


def record(cell: Cell, judged: dict) -> dict:
    """What is kept of a run: its numbers, its curves, and the verdict on each test image.

    Args:
        cell: a finished run.
        judged: AutoAttack's report on its first test images.

    Returns:
        "run" as in the tables, "metrics" by epoch, and "correct": by attack the images in their
        order that are classified correctly, as in `verdicts`.
    """
    report, directory = cell.report(), RunDirectory(cell.workdir())
    predictions = load_predictions(directory)
    assert report is not None and predictions is not None
    found, labels = predictions
    [npz] = [path for path in judged["files"] if path.endswith(".npz")]
    with np.load(npz, allow_pickle=False) as file:
        robust = file["robust"]
    correct = {
        "clean": found.clean == labels,
        "pgd": found.adversarial == labels,
        "autoattack": robust,
    }
    numbers = run_record(cell, report) | {
        "autoattack": judged["robust"],
        "autoattack_images": judged["images"],
        "workdir": cell.workdir().relative_to(cell.workdir().parents[2]).as_posix(),
    }
    return {
        "method": cell.method,
        "run": numbers,
        "accuracy": judged["accuracy"],
        "warnings": judged["warnings"],
        "metrics": directory.metrics(),
        "correct": {name: _pairs.pack(flags) for name, flags in correct.items()},
        "environment": _machine(report),
    }


def _machine(report: dict) -> dict:
    """Hardware, versions and commit of a run; not the command, which names folders."""
    return {name: value for name, value in report["environment"].items() if name != "command"}


def compare() -> str:
    """Writes ``table1.json``, ``table3.json``, ``comparison.json`` and the curves of the records.

    Returns:
        The comparison as Markdown.
    """
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*-seed*.json"))]
    write_json(RESULTS / "table1.json", _table(records, table1.TABLE))
    write_json(RESULTS / "table3.json", _table(records, table3.TABLE))
    _draw(records)
    correct = {
        (found["method"], found["run"]["seed"]): {
            name: _pairs.unpack(text) for name, text in found["correct"].items()
        }
        for found in records
    }
    pairs = _pairs.differences(correct, PAIRS)
    runs = [
        {"method": found["method"]} | {name: found["run"][name] for name in ("seed", "commit")}
        for found in records
    ]
    write_json(RESULTS / "comparison.json", {"runs": runs, "pairs": pairs})
    return _pairs.to_markdown(pairs, METHODS)


def _draw(records: list[dict]) -> None:
    """Figure 3 from the records: ``curves.json``, PNG and PDF."""
    [row] = rows_at(table1.TABLE, "cpu", "cifar10")
    runs: dict[str, list] = {}
    for method, title in table1.TABLE.methods.items():
        for found in (record for record in records if record["method"] == method):
            config = Cell(row, "cpu", method, found["run"]["seed"]).config()
            runs.setdefault(title, []).append(passes.counted(config, found["metrics"]))
    title = "cifar10, cifar_convnet, scale cpu"
    training_curves(runs, RESULTS / "curves", title=title, evaluated_on="validation")


def _table(records: list[dict], table: Table) -> dict:
    """The records in the form of :func:`experiments.paper.tables.collect`."""
    by_method = {m: [r["run"] for r in records if r["method"] == m] for m in table.methods}
    names = ("robust", "autoattack", "clean", "robust_last", "clean_last")
    cells = {
        method: {"runs": runs} | {name: mean_std([r[name] for r in runs]) for name in names}
        for method, runs in by_method.items()
    }
    [row] = rows_at(table, "cpu", "cifar10")
    return {
        "table": table.number,
        "scale": "cpu",
        "columns": dict(table.methods),
        "rows": [{"title": row.title, "dataset": row.dataset, "attack": row.attack}
                 | {"cells": cells, "paper": {}}],
        "paper": {paper.title: dict(paper.paper) for paper in table.rows},
        "missing": [],
        "missing_autoattack": [],
        "environment": records[-1]["environment"] if records else {},
    }  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.cifar10_cpu", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("what", choices=("tune", "run", "compare"))
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--seeds", type=int, default=3, help="seeds a method; default 3")
    parser.add_argument("--data-dir", type=folder, help="folder with the data sets")
    parser.add_argument(
        "--runs", type=folder, default=Path("runs/cifar10-cpu-tuning"), help="of the trials"
    )
    return parser


def _main(options: argparse.Namespace) -> None:
    methods = options.methods.split(",")
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"--methods: {method!r} is not one of {', '.join(METHODS)}")
    if options.what == "compare":
        print(compare())
        return
    process.split_cpu("cifar10")
    data.ensure("cifar10", options.data_dir, download=True)
    if options.what == "tune":
        tune(methods, options.runs, options.data_dir)
    else:
        run(methods, options.seeds, options.data_dir)


if __name__ == "__main__":
    process.execute(lambda: _main(_parser().parse_args()))
