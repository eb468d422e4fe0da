"""Table 1 of the paper from finished runs; can train the missing ones.

python -m experiments.table1 --scale=laptop      # trains missing digits runs on CPU
python -m experiments.table1                     # paper scale: collects results, lists commands for
missing runs
"""

from .paper.table1 import TABLE
from .paper.tables import main as collect


def main() -> None:
    """The command line."""
    collect(TABLE)


if __name__ == "__main__":
    main()
