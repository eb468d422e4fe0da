"""Table 2 of the paper (TRADES) from finished runs; can train the missing ones.

python -m experiments.table2                     # paper scale: collects results, lists commands for
missing runs python -m experiments.table2 --scale=laptop      # its columns on digits
"""

from .paper.table2 import TABLE
from .paper.tables import main as collect


def main() -> None:
    """The command line."""
    collect(TABLE)


if __name__ == "__main__":
    main()
