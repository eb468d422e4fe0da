"""The runs behind a table cell: their directories, and training the missing ones."""

import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from .. import settings
from ..evaluation.evaluate import evaluate
from ..run.directory import RunDirectory
from ..run.parallel import side_by_side
from ..run.train import train_and_evaluate

PaperValues = Mapping[str, tuple[float, float]]  # by method: mean and standard deviation, in %


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        title: the paper's name for it, or ours.
        dataset: name of the data set.
        model: architecture if it differs from the config files', else None.
        attack: the paper's final attack, "AutoAttack" or "PGD-20".
        paper: the paper's values, {} if it has none.
    """

    title: str
    dataset: str
    model: str | None = None
    attack: str = "PGD-20"
    paper: PaperValues = {}


class Table(NamedTuple):
    """A table of the paper.

    Attributes:
        number: the table's number.
        methods: its columns: stems of config files, and the paper's names for them.
        rows: its rows.
    """

    number: int
    methods: Mapping[str, str]
    rows: tuple[Row, ...]


class Cell(NamedTuple):
    """One run that a table needs."""

    row: Row
    scale: str
    method: str
    seed: int

    def config(self) -> settings.Config:
        """The resolved configuration of the run."""
        model = {} if self.row.model is None else {"model": self.row.model}
        return settings.load_config(
            self.method, self.scale, self.row.dataset, seed=self.seed, **model
        )

    def workdir(self) -> Path:
        """The run directory: the entry point's, or a separate one for another architecture."""
        usual = settings.default_workdir(self.config())
        if self.row.model is None:
            return usual
        folder = f"{self.row.dataset}-{self.scale}-{self.row.model}"
        return usual.parents[2] / folder / usual.relative_to(usual.parents[1])

    def command(self) -> str:
        """The command that trains the run."""
        suffix = "" if self.scale == "paper" else f":{self.scale}"
        words = [
            f"python -m experiments.{self.row.dataset} --config=configs/{self.method}.py{suffix}"
        ]
        if self.row.model is not None:
            words += [f"--config.model={self.row.model}", f"--workdir={self.workdir()}"]
        return " ".join([*words, f"--config.seed={self.seed}"])

    def describe(self, methods: Mapping[str, str]) -> str:
        """A short description of the run."""
        model = "" if self.row.model is None else f", {self.row.model}"
        return f"{methods[self.method]} on {self.row.dataset}{model}, seed {self.seed}"

    def report(self) -> dict | None:
        """The report of the run, None if it is not finished.

        Raises:
            ValueError: if the run in the cell's folder has a different configuration than its
            config file.
        """
        directory = RunDirectory(self.workdir())
        report = directory.report()
        if report is not None:
            directory.check_same(self.config())
        return report


def rows_at(table: Table, scale: str, dataset: str | None) -> tuple[Row, ...]:
    """The rows at a scale: the paper's at scale paper, else a single row for one data set."""
    if scale == "paper":
        rows = tuple(row for row in table.rows if dataset in (None, row.dataset))
        if rows:
            return rows
    name = dataset or "digits"
    return (Row(f"{name}, {scale}", name),)


def train_missing(
    cells: Sequence[Cell], methods: Mapping[str, str], data_dir: Any = None, *, jobs: int = 1
) -> None:
    """Trains every cell whose run is not finished, resuming partial runs.

    Args:
        cells: the runs.
        methods: the paper's names by method.
        data_dir: folder with the data sets.
        jobs: processes that train side by side; they print a line for each finished run.
    """
    missing = [cell for cell in cells if cell.report() is None]
    if len(missing) < len(cells):
        print(f"{len(cells) - len(missing)} of {len(cells)} runs are already finished")
    jobs = min(jobs, len(missing))
    if jobs > 1:
        _train_side_by_side(missing, methods, data_dir, jobs)
        return
    for number, cell in enumerate(missing, 1):
        print(f"\n[{number}/{len(missing)}] {cell.describe(methods)}")
        train_and_evaluate(cell.config(), cell.workdir(), data_dir=data_dir)


def usual_jobs(dataset: str) -> int:
    """Runs to train side by side: one a core, at most 4, where a run leaves cores idle, else 1.

    That is the case of digits, whose images are too small to split a minibatch of. A run takes a
    gigabyte of memory.
    """
    if dataset != "digits" or jax.default_backend() != "cpu":
        return 1
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(found or 1, 4)


def _train_side_by_side(
    missing: Sequence[Cell], methods: Mapping[str, str], data_dir: Any, jobs: int
) -> None:
    print(f"training {len(missing)} runs, {jobs} side by side", flush=True)
    silent = not sys.stderr.isatty()
    with tqdm(total=len(missing), unit="run", disable=silent, leave=False) as bar:

        def finished(place: int, report: dict) -> None:
            bar.update()
            tested = report["test"]["selected"]
            tqdm.write(
                f"[{next(count)}/{len(missing)}] {missing[place].describe(methods)}: "
                f"clean {tested['clean']:.2f} %, {report['attack']} {tested['robust']:.2f} % of "
                f"{tested['images']} images, {report['train_seconds']:.0f} s"
            )

        count = itertools.count(1)
        side_by_side(_train, [(cell, data_dir) for cell in missing], jobs, finished)


def _train(cell: Cell, data_dir: Any) -> dict:
    return train_and_evaluate(cell.config(), cell.workdir(), data_dir=data_dir, verbose=False)


def judge_missing(cells: Sequence[Cell], methods: Mapping[str, str], data_dir: Any = None) -> None:
    """Runs AutoAttack on the selected checkpoint of every finished run that lacks it."""
    reports = [(cell, cell.report()) for cell in cells]
    missing = [cell for cell, report in reports if report and not is_judged(report)]
    for number, cell in enumerate(missing, 1):
        print(f"[{number}/{len(missing)}] AutoAttack: {cell.describe(methods)}", end="", flush=True)
        found = evaluate(
            cell.workdir(), attack="autoattack", data_dir=data_dir, verbose=False, save=True
        )
        seconds = sum(found["seconds"].values())
        print(f": {found['robust']:.2f} % of {found['images']} images, {seconds:.0f} s")
        for warning in found["warnings"]:
            print(f"    warning: {warning}")


def is_judged(report: dict) -> bool:
    """Whether AutoAttack has been run on the selected checkpoint."""
    return "selected" in report.get("autoattack", {})
