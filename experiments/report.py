"""A run as one HTML page: results, curves, confusions, adversarial examples, configuration.

    python -m experiments.report --workdir=runs/digits-laptop/at/seed0

Training writes the page at its end; the command writes it anew, for example after AutoAttack, or
for a run that is still under way. The page holds everything that it shows and fetches nothing.
"""

import argparse

from .cli import process
from .cli.options import Parser, folder
from .reporting.write import write


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m experiments.report",
        description="Writes the report of a run, one self-contained HTML page, into its directory.",
    )
    parser.add_argument("--workdir", required=True, type=folder, help="run directory")
    parser.add_argument("--data-dir", type=folder, help="folder of the data sets")
    return parser


def main() -> None:
    """The command line."""
    options = _parser().parse_args()
    process.execute(lambda: print(f"written: {write(options.workdir, data_dir=options.data_dir)}"))


if __name__ == "__main__":
    main()
