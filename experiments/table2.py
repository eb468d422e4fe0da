"""Table 2 of the paper (TRADES) from the runs that exist; trains the missing ones if asked.

python -m experiments.table2                     # paper scale: collects, lists the commands
python -m experiments.table2 --scale=laptop      # its columns on digits
"""

from .paper.table2 import TABLE
from .paper.tables import main as collect


def main() -> None:
    """The command line."""
    collect(TABLE)


if __name__ == "__main__":
    main()
