"""Published training curves of the SGD baselines, to overlay on ours.

Accuracies in percent against epochs, one seed each, from the logs that the AWP authors published
with their code. Training accuracy is under PGD-10 in train mode (for AWP, at the perturbed
weights); test accuracy is clean and under PGD-20.

References:
    Wu, Xia and Wang, "Adversarial weight perturbation helps robust generalization", 2020, logs in
    the authors' repository.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from ..settings import Config

SOURCE = "logs of the AWP authors' code (Wu et al. 2020), one seed"

# The logs count epochs from 0: the entry for epoch e was reached after e + 1 epochs.
EPOCHS = (0, 4, 9, 49, 98, 100, 104, 150, 199)


class ReferenceCurve(NamedTuple):
    """One published run.

    Attributes:
        dataset: name of the data set.
        model: architecture, at its full width.
        awp: whether AWP was used, with gamma_A = 0.01.
        train_robust: at :data:`EPOCHS`, in percent; () where only the best and last are known.
        test_clean: likewise.
        test_robust: likewise.
        best: the best test accuracy under PGD-20 and its epoch, counted from 0.
        last: the test accuracy under PGD-20 at the last epoch.
        epoch_seconds: training time per epoch on the authors' GPUs, None if unknown.
    """

    dataset: str
    model: str
    awp: bool
    train_robust: tuple[float, ...]
    test_clean: tuple[float, ...]
    test_robust: tuple[float, ...]
    best: tuple[float, int]
    last: float
    epoch_seconds: float | None = None

    def epochs_done(self) -> list[int]:
        """Finished epochs at each point, counted as in our own metrics."""
        return [epoch + 1 for epoch in EPOCHS[: len(self.test_robust)]]


def _curve(dataset, model, awp, text, best, epoch_seconds=None) -> ReferenceCurve:
    """From the log's "train robust/test clean/test robust" as fractions."""
    columns = zip(*(entry.split("/") for entry in text.split()), strict=True)
    train, clean, robust = (tuple(round(100 * float(v), 1) for v in c) for c in columns)
    return ReferenceCurve(
        dataset, model, awp, train, clean, robust, best, robust[-1], epoch_seconds
    )


CURVES = (
    _curve(
        *("cifar10", "preact_resnet18", False),
        ".201/.370/.260 .325/.533/.355 .384/.656/.405 .458/.724/.452 .468/.738/.470 "
        ".537/.805/.509 .578/.813/.513 .703/.843/.478 .810/.846/.438",
        (52.79, 102),
        276.0,
    ),
    _curve(
        *("cifar10", "preact_resnet18", True),
        ".132/.230/.200 .252/.424/.310 .314/.565/.378 .394/.702/.471 .406/.723/.485 "
        ".442/.767/.517 .459/.772/.518 .488/.805/.539 .498/.817/.543",
        (55.39, 159),
        301.0,
    ),
    # From an older script of theirs; we have no curve for it.
    ReferenceCurve("cifar10", "wrn34_10", False, (), (), (), (56.80, 101), 48.56),
    _curve(
        *("cifar10", "wrn34_10", True),
        ".107/.193/.188 .190/.294/.240 .251/.440/.316 .411/.742/.496 .434/.763/.510 "
        ".478/.813/.556 .498/.817/.555 .550/.838/.568 .567/.851/.574",
        (58.30, 172),
        1636.0,
    ),
    _curve(
        *("cifar100", "preact_resnet18", False),
        ".039/.084/.059 .117/.206/.124 .158/.311/.170 .224/.433/.228 .240/.444/.230 "
        ".314/.530/.271 .358/.546/.274 .577/.563/.228 .718/.546/.207",
        (27.77, 103),
    ),
    _curve(
        *("cifar100", "preact_resnet18", True),
        ".008/.013/.012 .056/.110/.079 .097/.207/.125 .163/.400/.235 .171/.425/.241 "
        ".207/.476/.274 .215/.491/.283 .249/.534/.295 .260/.542/.301",
        (30.71, 198),
    ),
    _curve(
        *("svhn", "preact_resnet18", False),
        ".181/.184/.177 .522/.859/.473 .641/.898/.515 .813/.906/.467 .860/.876/.444 "
        ".915/.901/.440 .947/.904/.440 .989/.899/.451 .993/.897/.450",
        (53.36, 16),
    ),
    _curve(
        *("svhn", "preact_resnet18", True),
        ".181/.185/.177 .521/.856/.468 .516/.868/.530 .642/.917/.584 .703/.909/.586 "
        ".720/.930/.576 .730/.936/.560 .748/.936/.548 .752/.930/.572",
        (59.12, 59),
    ),
)


def find(config: Config) -> ReferenceCurve | None:
    """The published run with the same data set, architecture, threat and method, if any.

    Args:
        config: resolved configuration of our run.

    Example:
        >>> from experiments import settings
        >>> find(settings.load_config("at", "paper", "cifar10")).best
        (52.79, 102)
        >>> find(settings.load_config("at", "laptop", "cifar10")) is None  # another width
        True
    """
    is_baseline = config.objective == "cross_entropy" and config.optimizer == "sgd"
    is_threat = config.threat.norm == "linf" and math.isclose(config.eval.eps, 8 / 255)
    is_gamma = not config.awp.enabled or math.isclose(config.awp.gamma, 0.01)
    if not (is_baseline and is_threat and is_gamma) or config.width is not None:
        return None
    wanted = (config.dataset, config.model, bool(config.awp.enabled))
    return next((curve for curve in CURVES if curve[:3] == wanted), None)


def find_all(configs: Mapping[str, Config]) -> dict[str, ReferenceCurve]:
    """The published runs that match ours, by label.

    Raises:
        ValueError: if none matches.
    """
    found = {label: curve for label, config in configs.items() if (curve := find(config))}
    if not found:
        known = sorted({f"{curve.dataset} {curve.model}" for curve in CURVES})
        raise ValueError(
            "--reference: no published curve has the same data set, architecture, width, threat "
            f"and method; available are AT and AWP with SGD, Linf 8/255, full width, on "
            f"{', '.join(known)}"
        )
    return found
