"""Table 1 of the paper: its columns, rows and values."""

from .runs import Row, Table

METHODS = {"at": "AT", "at_ensgd": "AT+EnSGD", "awp": "AWP", "awp_ensgd": "AWP+EnSGD"}


def _row(title: str, dataset: str, attack: str, *values, model: str | None = None) -> Row:
    return Row(title, dataset, model, attack, dict(zip(METHODS, values, strict=True)))


# Kanai et al., Table 1: robust accuracy in %, mean and standard deviation over 3 runs.
TABLE = Table(
    1,
    METHODS,
    (
        _row(
            "CIFAR10, PreActResNet-18, AutoAttack",
            "cifar10",
            "AutoAttack",
            *((48.0, 0.2), (49.2, 0.4), (49.9, 0.4), (50.5, 0.2)),
        ),
        _row(
            "CIFAR10, WRN-34-10, AutoAttack",
            "cifar10",
            "AutoAttack",
            *((51.9, 0.5), (53.3, 0.3), (53.2, 0.3), (54.72, 0.05)),
            model="wrn34_10",
        ),
        _row(
            "SVHN, PreActResNet-18, PGD-20",
            "svhn",
            "PGD-20",
            *((53.1, 0.6), (59.1, 0.4), (59.3, 0.1), (59.91, 0.09)),
        ),
        _row(
            "CIFAR100, PreActResNet-18, PGD-20",
            "cifar100",
            "PGD-20",
            *((27.66, 0.04), (28.69, 0.03), (30.95, 0.07), (30.9, 0.1)),
        ),
    ),
)
