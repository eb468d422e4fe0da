"""A run as one HTML page: results, curves, confusions, adversarial examples, configuration.

    python -m experiments.report --workdir=runs/digits-laptop/at/seed0

Training writes the page when it finishes; this command rewrites it, for example after AutoAttack or
during a run. The page is self-contained and loads no external resources.
"""

import argparse

from .cli import process
from .cli.options import Parser, folder
from .reporting.write import write


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m experiments.report",
        description="Writes a run's report, one self-contained HTML page, to its directory.",
    )
    parser.add_argument("--workdir", required=True, type=folder, help="run directory")
    parser.add_argument("--data-dir", type=folder, help="folder with the data sets")
    return parser


def main() -> None:
    """The command line."""
    options = _parser().parse_args()
    process.execute(lambda: print(f"written: {write(options.workdir, data_dir=options.data_dir)}"))


if __name__ == "__main__":
    main()
