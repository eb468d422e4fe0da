"""The paper's toy figures from closed forms, with checks of the paper's statements about them.

python -m theory.figures fig2 --output=runs/theory
python -m theory.figures all

Each figure is written as PNG and PDF, with its data as NPZ and its checks as JSON. Fails if a check
fails. The figure of trained networks has its own command: python -m theory.trained_smoothness
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from experiments.cli.options import Parser

from . import fig1, fig2, fig4, fig5

FIGURES = {"fig1": fig1.make, "fig2": fig2.make, "fig4": fig4.make, "fig5": fig5.make}


def _positive(text: str) -> float:
    """A finite number > 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{text} is not a finite number > 0")
    return value


def _odd(text: str) -> int:
    """An odd number >= 5, so that 0 is a point."""
    value = int(text)
    if value < 5 or value % 2 == 0:
        raise ValueError(f"{text} is not an odd number >= 5")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws the figures selected on the command line.

    Args:
        arguments: command line arguments, by default the process's.

    Returns:
        0, or 1 if a check failed.
    """
    parser = Parser(prog="python -m theory.figures", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("figure", choices=[*FIGURES, "all"], help="which figure")
    parser.add_argument("--output", type=Path, default=Path("runs/theory"), help="folder")
    parser.add_argument(
        "--mode",
        choices=["exact", "pgd"],
        default="exact",
        help="attacks of figures 2 and 4: closed forms, or PGD with 100 steps of eps/40",
    )
    parser.add_argument("--gamma", type=_positive, default=1.0, help="scope of figures 2 and 5")
    parser.add_argument("--points", type=_odd, default=81, help="grid points per axis")
    options = parser.parse_args(arguments)
    failed = 0
    for name in FIGURES if options.figure == "all" else [options.figure]:
        files = FIGURES[name](
            options.output, mode=options.mode, gamma=options.gamma, points=options.points
        )
        report = json.loads(files[-1].read_text(encoding="utf-8"))
        wrong = [check for check in report["checks"] if not check["holds"]]
        print(f"{name}: {', '.join(str(file) for file in files)}")
        print(f"  {len(report['checks']) - len(wrong)} of {len(report['checks'])} checks hold")
        for check in wrong:
            print(f"  fails: {check['name']}: {check['measured']}, expected {check['expected']}")
        failed += len(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
