"""Table 3 of the paper from the runs that exist: Table 1 with second-order EntropySGD.

    python -m experiments.table3 --scale=laptop      # trains on digits and CPU what is missing
    python -m experiments.table3                     # paper scale: collects, lists the commands

It shares its runs with Table 1.
"""

from .paper.table3 import TABLE
from .paper.tables import main as collect


def main() -> None:
    """The command line."""
    collect(TABLE)


if __name__ == "__main__":
    main()
