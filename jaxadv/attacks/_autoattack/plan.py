"""Which attacks an AutoAttack runs, in which order and with which settings."""

from typing import NamedTuple

from .._checks import check_choice
from .._types import Norm
from ._apgd_run import Rule

VERSIONS = ("standard", "plus", "rand", "custom")
ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


class Attack(NamedTuple):
    """One attack of the ensemble.

    Attributes:
        name: as in the report.
        kind: "apgd", "fab" or "square".
        loss: of APGD.
        targets: number of target classes, 0 for an untargeted attack.
        restarts: runs, for each target.
        steps: iterations, or queries of Square.
        three_radii: the schedule of L1-APGD.
        eot: draws of a randomised model that a gradient averages.
        rule: of APGD's checkpoints.
        shared: whether all images get the same squares.
        full_range: whether squares touch the last row and column.
    """

    name: str
    kind: str
    loss: str = "ce"
    targets: int = 0
    restarts: int = 1
    steps: int = 100
    three_radii: bool = False
    eot: int = 1
    rule: Rule = "repo"
    shared: bool = False
    full_range: bool = False

    @property
    def runs(self) -> int:
        """Number of runs of an image that nothing breaks."""
        return max(self.targets, 1) * self.restarts


def full_cost(attack: Attack, num_classes: int) -> tuple[int, int]:
    """Forward and backward passes of one run on an image that nothing breaks."""
    if attack.kind == "apgd":
        gradients = (attack.steps + (3 if attack.three_radii else 1)) * attack.eot
        return gradients + (attack.targets > 0), gradients
    if attack.kind == "fab":
        return 2 * attack.steps + 3, attack.steps * (1 if attack.targets else num_classes)
    return attack.steps + 2, 0


def passes(forward: int, backward: int) -> int:
    """Work in forward passes: a backward pass costs about two."""
    return int(forward) + 2 * int(backward)


def make_plan(
    version: str,
    norm: Norm,
    num_classes: int,
    *,
    attacks=None,
    num_steps: int = 100,
    num_queries: int = 5000,
    few_classes: str = "adapt",
    apgd_rule: Rule = "repo",
    square_shared: bool = False,
    square_full_range: bool = False,
) -> tuple[list[Attack], list[str]]:
    """The attacks of a version, adapted to few classes.

    Args:
        version: "standard", "plus", "rand" or "custom".
        norm: "linf", "l2" or "l1".
        num_classes: K.
        attacks: a name or names, for "custom" only.
        num_steps: iterations of APGD and FAB.
        num_queries: queries of Square.
        few_classes: "adapt", or "error" where the published settings do not exist for K.
        apgd_rule: "repo" or "paper".
        square_shared: the same squares for all images.
        square_full_range: squares that touch the last row and column.

    Returns:
        The attacks in order, and one sentence for each adaptation.

    Raises:
        ValueError: on unknown names, attacks without "custom" or the other way round, or few
            classes with ``few_classes="error"``.

    Example:
        >>> [attack.name for attack in make_plan("standard", "linf", 10)[0]]
        ['apgd-ce', 'apgd-t', 'fab-t', 'square']
    """
    check_choice("version", version, VERSIONS)
    check_choice("few_classes", few_classes, ("adapt", "error"))
    check_choice("apgd_rule", apgd_rule, ("repo", "paper"))
    attacks = (attacks,) if isinstance(attacks, str) else attacks
    if version != "custom" and attacks is not None:
        raise ValueError(f"attacks={attacks!r} is for version='custom', not {version!r}")
    if version == "custom" and not attacks:
        raise ValueError("version='custom' needs attacks=(...), names out of " + ", ".join(ATTACKS))
    names = {
        "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
        "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
        "rand": ("apgd-ce", "apgd-dlr"),
        "custom": tuple(attacks or ()),
    }[version]
    large = version == "standard" and norm == "l1"
    restarts = {"standard": 5 if norm == "l1" else 1, "rand": 1}.get(version, 5)
    targets = 5 if large else 9
    eot = 20 if version == "rand" else 1
    plan, notes = [], []
    for name in names:
        check_choice("attacks", name, ATTACKS)
        if name == "square":
            attack = Attack(name, "square", steps=num_queries)
            plan.append(attack._replace(shared=square_shared, full_range=square_full_range))
        elif name.startswith("fab"):
            many = 9 if name == "fab-t" else 0
            plan.append(Attack(name, "fab", "", many, 1 if many else 5, num_steps))
        elif name == "apgd-t":
            plan.append(Attack(name, "apgd", "dlr-targeted", targets, 1, num_steps, large))
        else:
            plan.append(Attack(name, "apgd", name[5:], 0, restarts, num_steps, large, eot))
    plan = [a._replace(rule=apgd_rule) if a.kind == "apgd" else a for a in plan]
    return [_adapt(attack, num_classes, few_classes, notes) for attack in plan], notes


def _adapt(attack: Attack, num_classes: int, few_classes: str, notes: list[str]) -> Attack:
    """Targets and losses that exist for the number of classes."""
    adapted = attack
    if attack.loss == "dlr-targeted" and num_classes < 4:
        loss = "dlr" if num_classes == 3 else "margin"
        adapted = attack._replace(name=f"apgd-{loss}", loss=loss, targets=0)
        note = f"{attack.name} needs 4 classes and the model has {num_classes}: {adapted.name} runs"
    elif attack.loss == "dlr" and num_classes < 3:
        adapted = attack._replace(name="apgd-margin", loss="margin")
        note = f"{attack.name} needs 3 classes and the model has {num_classes}: apgd-margin runs"
    elif attack.targets > num_classes - 1:
        adapted = attack._replace(targets=min(attack.targets, num_classes - 1))
        note = f"{attack.name} has {adapted.targets} targets, the model {num_classes} classes"
    else:
        return attack
    if few_classes == "error":
        raise ValueError(f"{note}; use few_classes='adapt' or version='custom'")
    notes.append(note)
    return adapted
