"""Table 3 of the paper from finished runs: Table 1 with second-order EntropySGD.

    python -m experiments.table3 --scale=laptop      # trains missing digits runs on CPU
    python -m experiments.table3                     # paper scale: collects results, lists commands
    for missing runs

Runs are shared with Table 1.
"""

from .paper.table3 import TABLE
from .paper.tables import main as collect


def main() -> None:
    """The command line."""
    collect(TABLE)


if __name__ == "__main__":
    main()
