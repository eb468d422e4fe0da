"""Shared code of the training figures: the runs behind each line, missing runs, and flags.

A line is the mean over a method's seeds, its band their range. The figures share runs and folders
with the tables.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxadv.checks import check_choice, check_count
from jaxadv.models import MODELS

from .. import settings
from ..cli import process
from ..cli.options import Parser, folder
from ..reporting import passes, reference_curves, style
from ..reporting.curves import average, draw_curves
from ..reporting.reference_curves import ReferenceCurve
from ..run import environment
from ..run.directory import RunDirectory, write_json
from ..run.train import train_and_evaluate
from ..settings import Config, label, recipes
from .runs import Cell, Row


class Line(NamedTuple):
    """One line of a figure.

    Attributes:
        method: stem of a config file.
        gamma_of: the optimizer whose gamma_A it uses instead of its own, or None.
    """

    method: str
    gamma_of: str | None = None


class Figure(NamedTuple):
    """A figure of training curves.

    Attributes:
        number: the figure's number in the paper.
        lines: the lines it compares.
    """

    number: int
    lines: tuple[Line, ...]


class Member(NamedTuple):
    """One run that a line needs."""

    line: Line
    cell: Cell

    def gamma(self) -> float | None:
        """gamma_A where it differs from the config file."""
        if self.line.gamma_of is None:
            return None
        found = recipes.awp_gamma(self.cell.row.dataset, self.cell.scale, self.line.gamma_of)
        return None if found == self.cell.config().awp.gamma else found

    def config(self) -> Config:
        """The resolved configuration."""
        config, gamma = self.cell.config(), self.gamma()
        if gamma is not None:
            config.awp.gamma = gamma
        return config

    def workdir(self) -> Path:
        """The run directory: the table's, or a separate one for a different gamma_A."""
        usual, gamma = self.cell.workdir(), self.gamma()
        if gamma is None:
            return usual
        return usual.parents[1] / f"{self.cell.method}-gamma{gamma:g}" / usual.name

    def command(self) -> str:
        """The command that trains it."""
        command, gamma = self.cell.command(), self.gamma()
        if gamma is None:
            return command
        words = [word for word in command.split() if not word.startswith("--workdir=")]
        return " ".join([*words, f"--config.awp.gamma={gamma:g}", f"--workdir={self.workdir()}"])

    def is_finished(self) -> bool:
        """Whether the run is finished, with this configuration.

        Raises:
            ValueError: if the folder contains a run with a different configuration.
        """
        directory = RunDirectory(self.workdir())
        if directory.config_file.is_file():
            directory.check_same(self.config())
        return directory.report_file.is_file()


def members(
    lines: Sequence[Line], scale: str, dataset: str, model: str | None, seeds: int
) -> list[Member]:
    """The runs of a figure, by seed."""
    row = Row("", dataset, model)
    found: dict[Path, Member] = {}
    for seed in range(seeds):
        for line in lines:
            member = Member(line, Cell(row, scale, line.method, seed))
            # Where both optimizers have the same gamma_A, lines that differ in it are one run.
            found.setdefault(member.workdir(), member)
    return list(found.values())


def require(found: Sequence[Member], what: str, remedies: str) -> None:
    """Raises a ``ValueError`` with the commands for missing runs."""
    missing = [member.command() for member in found if not member.is_finished()]
    if missing:
        listed = "\n".join(f"    {command}" for command in missing)
        raise ValueError(
            f"{len(missing)} of the {len(found)} runs for {what} are missing or unfinished; train "
            f"them, or give {remedies}:\n{listed}"
        )


def train(found: Sequence[Member], data_dir: Any = None) -> None:
    """Trains missing runs and resumes unfinished ones."""
    missing = [member for member in found if not member.is_finished()]
    for number, member in enumerate(missing, 1):
        print(f"\n[{number}/{len(missing)}] {member.workdir()}")
        train_and_evaluate(member.config(), member.workdir(), data_dir=data_dir)


class Collected(NamedTuple):
    """A figure's data: its JSON record, and the inputs for drawing."""

    curves: dict[str, dict]
    reference: dict[str, ReferenceCurve]
    record: dict[str, Any]
    title: str
    evaluated_on: str


def collect(workdirs: Sequence[Path], *, reference: bool) -> Collected:
    """Metrics of runs, averaged over runs that differ only in the seed.

    Args:
        workdirs: run directories, finished or not; runs without a finished epoch are skipped.
        reference: whether to overlay published curves.

    Raises:
        FileNotFoundError: if one is not a run directory.
        ValueError: if two runs share a label but not a configuration, if there are no metrics, or
        if no published curve matches.
    """
    rows: dict[str, list] = {}
    configs: dict[str, Config] = {}
    runs: dict[str, list] = {}
    for workdir in workdirs:
        directory = RunDirectory(workdir)
        config, metrics = directory.config(), directory.metrics()
        if not metrics:
            continue
        name = label(config)
        different = _differences(configs.setdefault(name, config), config)
        if different:
            raise ValueError(
                f"{workdir} and another run are both {name!r} but differ in "
                f"config.{different[0]}; draw them in separate figures"
            )
        rows.setdefault(name, []).append(passes.counted(config, metrics))
        starts = directory.environment()
        runs.setdefault(name, []).append(
            {
                "workdir": str(workdir),
                "seed": config.seed,
                "epochs": len(metrics),
                "finished": directory.report_file.is_file(),
                "commit": starts[-1]["commit"] if starts else "",
                "device": starts[-1]["device"] if starts else "",
            }
        )
    if not rows:
        raise ValueError("no run has finished an epoch")
    found = reference_curves.find_all(configs) if reference else {}
    curves = {name: average(metrics) for name, metrics in rows.items()}
    places = sorted({f"{c.dataset}, {c.model}, scale {c.scale}" for c in configs.values()})
    chosen_on = sorted({c.selection for c in configs.values()})
    record = {
        "curves": curves,
        "reference": {name: _reference_record(curve) for name, curve in found.items()},
        "runs": runs,
        "evaluated_on": chosen_on,
        "environment": environment.describe(),
    }
    return Collected(curves, found, record, "; ".join(places), " or ".join(chosen_on))


def _differences(first: Config, second: Config) -> list[str]:
    stored, other = (dict(settings.flatten(config)) for config in (first, second))
    return [name for name in stored if name != "seed" and stored[name] != other[name]]


def _reference_record(curve: ReferenceCurve) -> dict:
    return {
        **curve._asdict(),
        "epochs_done": curve.epochs_done(),
        "source": reference_curves.SOURCE,
    }


def _parser(figure: Figure) -> argparse.ArgumentParser:
    name = f"fig{figure.number}"
    parser = Parser(
        prog=f"python -m experiments.{name}",
        description=f"Figure {figure.number} of the paper: robust accuracy on training and "
        "selection images against epochs and passes through the network, from the metrics of the "
        "runs. Writes PNG, PDF and the data as JSON.",
    )
    add_run_options(parser)
    parser.add_argument("--seeds", type=int, default=3, help="seeds per line; default 3")
    parser.add_argument("--run", action="store_true", help="train the missing runs first")
    parser.add_argument("--partial", action="store_true", help="draw the results so far")
    parser.add_argument(
        "--workdir",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="run directories to use instead of the figure's own",
    )
    parser.add_argument(
        "--reference",
        action="store_true",
        help="overlay the published curves of AT and AWP with SGD on the same data set and "
        "architecture",
    )
    parser.add_argument("--output", type=folder, help=f"folder; default runs/{name}-DATASET-SCALE")
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that select a figure's runs."""
    parser.add_argument("--scale", choices=settings.SCALES, default="paper")
    parser.add_argument(
        "--dataset",
        choices=sorted(settings.DEFAULTS),
        help="default digits; at scale paper cifar10, as in the paper",
    )
    parser.add_argument(
        "--model", help="override the config files' architecture, for example wrn34_10"
    )
    parser.add_argument("--data-dir", type=folder, help="folder with the data sets")


def dataset_of(options: argparse.Namespace) -> str:
    """The data set selected by the command line."""
    if options.model is not None:
        check_choice("--model", options.model, MODELS)
    return options.dataset or ("cifar10" if options.scale == "paper" else "digits")


def folder_of(options: argparse.Namespace, name: str, dataset: str) -> Path:
    """The figure's output folder."""
    model = "" if options.model is None else f"-{options.model}"
    return options.output or Path("runs") / f"{name}-{dataset}-{options.scale}{model}"


def main(figure: Figure) -> None:
    """The command line of a figure of training curves."""
    process.execute(lambda: _main(figure, _parser(figure).parse_args()))


def _main(figure: Figure, options: argparse.Namespace) -> None:
    name = f"fig{figure.number}"
    dataset = dataset_of(options)
    output = folder_of(options, name, dataset)
    if options.workdir is not None:
        workdirs, missing = options.workdir, []
        output = options.output or Path("runs") / name
    else:
        check_count("--seeds", options.seeds, 1)
        found = members(figure.lines, options.scale, dataset, options.model, options.seeds)
        if options.run:
            train(found, options.data_dir)
        if not options.partial:
            require(found, name, "--run, fewer --seeds, or --partial to draw the results so far")
        # Lines in the paper's order, not in the order of seeds.
        found.sort(key=lambda member: figure.lines.index(member.line))
        missing = [member.command() for member in found if not member.is_finished()]
        workdirs = [m.workdir() for m in found if RunDirectory(m.workdir()).metrics_file.is_file()]
        if not workdirs:
            require(found, name, "--run")
    collected = collect(workdirs, reference=options.reference)
    with style.styled():
        drawn = draw_curves(
            collected.curves,
            title=collected.title,
            evaluated_on=collected.evaluated_on,
            reference=collected.reference,
        )
        written = style.save(drawn, output / name)
    record = {"figure": figure.number, "missing": missing, **collected.record}
    write_json(output / f"{name}.json", record)
    if missing:
        print("Unfinished runs, drawn up to their last epoch or left out:")
        print("\n".join(f"    {command}" for command in missing))
    print("written: " + ", ".join(str(path) for path in [*written, output / f"{name}.json"]))
