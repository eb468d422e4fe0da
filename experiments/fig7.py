"""Figure 7 of the paper: the adversarial loss around trained parameters, and its sharpness.

    python -m experiments.fig7 --scale=laptop                     # digits, one direction
    python -m experiments.fig7 --scale=laptop --two-dimensional   # contours on a plane
    python -m experiments.fig7                                    # paper scale, CIFAR-10

Directions are random and filter-normalized; attacks are recomputed at every point. The paper's
message: EntropySGD is not flatter, but its training loss is lower.
"""

from .paper.landscape_figure import main

if __name__ == "__main__":
    main()
