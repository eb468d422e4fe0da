"""Table 2 of the paper (TRADES) from the runs that exist; trains the missing ones if asked.

python -m experiments.table2                     # paper scale: collects, lists the commands
python -m experiments.table2 --scale=laptop      # its columns on digits
"""

from . import _tables

METHODS = {
    "trades": "TRADES",
    "trades_ensgd": "+EnSGD",
    "trades_awp": "+AWP",
    "trades_awp_ensgd": "+AWP+EnSGD",
    "trades_awp_ensgd_tuned": "+AWP+EnSGD (tuned)",
}

# Kanai et al., Table 2: robust accuracy in %, mean and standard deviation over 3 runs.
TABLE = _tables.Table(
    2,
    METHODS,
    (
        _tables.Row(
            "CIFAR10, WRN-34-10, AutoAttack",
            "cifar10",
            None,  # what the config files of TRADES take at this scale
            "AutoAttack",
            {
                "trades": (52.9, 0.3),
                "trades_ensgd": (53.4, 0.1),
                "trades_awp": (55.6, 0.4),
                "trades_awp_ensgd": (55.8, 0.3),
                "trades_awp_ensgd_tuned": (56.3, 0.1),
            },
        ),
    ),
)


def main() -> None:
    """The command line."""
    _tables.main(TABLE)


if __name__ == "__main__":
    main()
