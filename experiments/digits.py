"""Trains and evaluates robust classifiers on scikit-learn's 1,797 real 8x8 digits.

    python -m experiments.digits --config=configs/at_ensgd.py:laptop

``--help`` lists the methods, the scales and every field.
"""

from .cli.train import main

if __name__ == "__main__":
    main("digits")
