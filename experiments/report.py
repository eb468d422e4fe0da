"""Runs as HTML pages: results, curves, confusions, adversarial examples, configuration.

    python -m experiments.report runs/digits-laptop/at/seed0
    python -m experiments.report runs/digits-laptop/at/seed0 runs/digits-laptop/awp/seed0

Training writes a run's page when it finishes; with one run this command rewrites it, for example
after AutoAttack or during a run. Several are compared on one page; JSON reports of
experiments.evaluate can stand for models without a run. Pages are self-contained and load no
external resources.
"""

import argparse
from pathlib import Path

from .cli import process
from .cli.options import Parser, folder
from .reporting.compare import compare
from .reporting.write import write


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m experiments.report",
        description="Writes a run's report, one self-contained HTML page, to its directory; or "
        "one page that compares several runs or evaluated models.",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=folder,
        metavar="RUN",
        help="run directory; to compare, also a JSON report of experiments.evaluate",
    )
    parser.add_argument("--workdir", type=folder, help="run directory, the same as RUN")
    parser.add_argument("--data-dir", type=folder, help="folder with the data sets")
    parser.add_argument(
        "--output", type=folder, help="page of a comparison; default runs/comparison.html"
    )
    return parser


def main() -> None:
    """The command line."""
    process.execute(lambda: _main(_parser().parse_args()))


def _main(options: argparse.Namespace) -> None:
    runs = [*options.runs, *([] if options.workdir is None else [options.workdir])]
    if not runs:
        raise ValueError("no run given; for example python -m experiments.report RUN, or RUN RUN")
    if len(runs) > 1:
        written = compare(runs, options.output or Path("runs/comparison.html"))
    elif options.output is not None:
        raise ValueError("--output applies to a comparison; a run's page is RUN/report.html")
    else:
        written = write(runs[0], data_dir=options.data_dir)
    print(f"written: {written}")


if __name__ == "__main__":
    main()
