"""What the figures of training share: the runs behind each line, what is missing, and flags.

A line is the mean over the seeds of a method, its band their range. The runs are those of the
tables, in the same folders.
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
from ..reporting import reference_curves, style
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
        gamma_of: the optimizer whose gamma_A it takes instead of its own, or None.
    """

    method: str
    gamma_of: str | None = None


class Figure(NamedTuple):
    """A figure of training curves.

    Attributes:
        number: of the figure in the paper.
        lines: what it compares.
    """

    number: int
    lines: tuple[Line, ...]


class Member(NamedTuple):
    """One run that a line needs."""

    line: Line
    cell: Cell

    def gamma(self) -> float | None:
        """gamma_A where it is not that of the config file."""
        if self.line.gamma_of is None:
            return None
        return recipes.AWP_GAMMA[self.cell.row.dataset][self.line.gamma_of]

    def config(self) -> Config:
        """The resolved configuration."""
        config, gamma = self.cell.config(), self.gamma()
        if gamma is not None:
            config.awp.gamma = gamma
        return config

    def workdir(self) -> Path:
        """Where the run lives: the table's folder, apart for another gamma_A."""
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
        """Whether the run has ended, with this configuration.

        Raises:
            ValueError: if the folder holds a run of other fields.
        """
        directory = RunDirectory(self.workdir())
        if directory.config_file.is_file():
            directory.check_same(self.config())
        return directory.report_file.is_file()


def members(
    lines: Sequence[Line], scale: str, dataset: str, model: str | None, seeds: int
) -> list[Member]:
    """The runs of a figure, seed by seed."""
    row = Row("", dataset, model)
    return [Member(line, Cell(row, scale, line.method, s)) for s in range(seeds) for line in lines]


def require(found: Sequence[Member], what: str, remedies: str) -> None:
    """Raises a ``ValueError`` that lists the commands of the runs that are missing."""
    missing = [member.command() for member in found if not member.is_finished()]
    if missing:
        listed = "\n".join(f"    {command}" for command in missing)
        raise ValueError(
            f"{len(missing)} of the {len(found)} runs of {what} are missing or unfinished; train "
            f"them, or give {remedies}:\n{listed}"
        )


def train(found: Sequence[Member], data_dir: Any = None) -> None:
    """Trains the runs that are not finished; unfinished ones go on where they were."""
    missing = [member for member in found if not member.is_finished()]
    for number, member in enumerate(missing, 1):
        print(f"\n[{number}/{len(missing)}] {member.workdir()}")
        train_and_evaluate(member.config(), member.workdir(), data_dir=data_dir)


class Collected(NamedTuple):
    """Everything that a figure shows: the JSON beside it, and what draws it."""

    curves: dict[str, dict]
    reference: dict[str, ReferenceCurve]
    record: dict[str, Any]
    title: str
    evaluated_on: str


def collect(workdirs: Sequence[Path], *, reference: bool) -> Collected:
    """The metrics of runs, averaged over those that differ in nothing but the seed.

    Args:
        workdirs: run directories, finished or not; those without a finished epoch are left out.
        reference: whether published curves are laid under ours.

    Raises:
        FileNotFoundError: if one is no run directory.
        ValueError: if two runs share a label but not a configuration, if there are no metrics, or
            if no published curve fits.
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
                f"config.{different[0]}; draw them in two figures"
            )
        rows.setdefault(name, []).append(metrics)
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
        raise ValueError("none of the runs has finished an epoch")
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
        "selection images against epochs (a) and training time (b), from the metrics of the runs. "
        "Writes PNG, PDF and the data as JSON.",
    )
    add_run_options(parser)
    parser.add_argument("--seeds", type=int, default=3, help="seeds a line, default 3")
    parser.add_argument("--run", action="store_true", help="train the missing runs first")
    parser.add_argument("--partial", action="store_true", help="draw what exists so far")
    parser.add_argument(
        "--workdir",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="these run directories instead of the figure's own",
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
    """The options that say which runs a figure is of."""
    parser.add_argument("--scale", choices=settings.SCALES, default="paper")
    parser.add_argument(
        "--dataset",
        choices=sorted(settings.DEFAULTS),
        help="default digits; at scale paper cifar10, as in the paper",
    )
    parser.add_argument("--model", help="architecture other than the config files', as wrn34_10")
    parser.add_argument("--data-dir", type=folder, help="folder of the data sets")


def dataset_of(options: argparse.Namespace) -> str:
    """The data set that the command line means."""
    if options.model is not None:
        check_choice("--model", options.model, MODELS)
    return options.dataset or ("cifar10" if options.scale == "paper" else "digits")


def folder_of(options: argparse.Namespace, name: str, dataset: str) -> Path:
    """Where the figure goes."""
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
            require(found, name, "--run, fewer --seeds, or --partial to draw what exists")
        # The paper's order of lines, whichever seed came first.
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
        print("Not finished, so drawn as far as they are or left out:")
        print("\n".join(f"    {command}" for command in missing))
    print("written: " + ", ".join(str(path) for path in [*written, output / f"{name}.json"]))
