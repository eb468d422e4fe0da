"""Table 2 of the paper (TRADES): its columns, rows and values."""

from .runs import Row, Table

METHODS = {
    "trades": "TRADES",
    "trades_ensgd": "+EnSGD",
    "trades_awp": "+AWP",
    "trades_awp_ensgd": "+AWP+EnSGD",
    "trades_awp_ensgd_tuned": "+AWP+EnSGD (tuned)",
}
# Kanai et al., Table 2: robust accuracy in %, mean and standard deviation over 3 runs.
TABLE = Table(
    2,
    METHODS,
    (
        Row(
            "CIFAR10, WRN-34-10, AutoAttack",
            "cifar10",
            None,  # the TRADES config files' choice at this scale
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
