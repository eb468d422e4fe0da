"""Trains and evaluates robust classifiers on SVHN.

    python -m experiments.svhn --config=configs/at_ensgd.py:laptop

``--help`` lists the methods, the scales and every field.
"""

from .cli.train import main

if __name__ == "__main__":
    main("svhn")
