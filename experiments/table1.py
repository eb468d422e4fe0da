"""Table 1 of the paper from the runs that exist; trains the missing ones if asked.

python -m experiments.table1 --scale=laptop      # trains on digits and CPU what is missing
python -m experiments.table1                     # paper scale: collects, lists the commands
"""

from .paper.table1 import TABLE
from .paper.tables import main as collect


def main() -> None:
    """The command line."""
    collect(TABLE)


if __name__ == "__main__":
    main()
