"""Figure 3 of the paper: robust accuracy against epochs and passes, four methods.

    python -m experiments.fig3                          # paper scale, CIFAR-10
    python -m experiments.fig3 --scale=laptop           # the digits runs of Table 1
    python -m experiments.fig3 --reference --partial    # with the published curves overlaid

According to the paper, EntropySGD beats SGD on test images at equal epochs and equal time, ends
with lower training accuracy than AT, and reduces AWP's underfitting.
"""

from .paper.curves import main as draw
from .paper.figures import FIGURE3


def main() -> None:
    """The command line."""
    draw(FIGURE3)


if __name__ == "__main__":
    main()
