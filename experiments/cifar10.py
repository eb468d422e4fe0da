"""Trains and evaluates robust classifiers on CIFAR-10.

    python -m experiments.cifar10 --config=configs/at_ensgd.py:laptop

``--help`` lists the methods, the scales and every field.
"""

from .cli.train import main

if __name__ == "__main__":
    main("cifar10")
