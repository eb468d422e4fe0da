"""Figure 6 of the paper: Figure 3 with AWP and SGD at the smaller gamma_A of AWP with EntropySGD.

    python -m experiments.fig6                          # paper scale, CIFAR-10
    python -m experiments.fig6 --scale=laptop --run     # digits; trains missing runs

According to the paper, AWP with EntropySGD beats AWP with SGD at the same gamma_A.
"""

from .paper.curves import main as draw
from .paper.figures import FIGURE6


def main() -> None:
    """The command line."""
    draw(FIGURE6)


if __name__ == "__main__":
    main()
