"""The attacks that AutoAttack runs, their order and settings."""

import dataclasses
from collections.abc import Sequence

from ...checks import check_choice
from .._apgd.kernel import APGD
from .._apgd.losses import MIN_CLASSES
from .._apgd.state import Rule
from .._fab.kernel import FAB
from .._kernel import Kernel
from .._square.kernel import Square

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "custom": (),
}


def passes(forward: int, backward: int) -> int:
    """Work in forward passes: a backward pass costs about two."""
    return int(forward) + 2 * int(backward)


def make_plan(
    version: str,
    norm: str,
    num_classes: int,
    *,
    attacks: str | Kernel | Sequence[str | Kernel] | None = None,
    num_steps: int = 100,
    num_queries: int = 5000,
    few_classes: str = "adapt",
    apgd_rule: Rule = "repo",
    square_shared: bool = False,
    square_full_range: bool = False,
    early_stop: bool = True,
) -> tuple[dict[str, Kernel], list[str]]:
    """The attacks of a version, adapted to few classes.

    Args:
        version: "standard", "plus", "rand" or "custom".
        norm: "linf", "l2" or "l1".
        num_classes: K.
        attacks: names or kernels, for "custom" only.
        num_steps: iterations of APGD and FAB.
        num_queries: queries of Square.
        few_classes: "adapt", or "error" if the published settings are undefined for K classes.
        apgd_rule: "repo" or "paper".
        square_shared: use the same squares for all images.
        square_full_range: allow squares to touch the last row and column.
        early_stop: whether to stop attacking an image once it is broken.

    Returns:
        The attacks by name, in order, and one sentence for each adaptation. Repeated attacks are
        numbered.

    Raises:
        ValueError: on unknown names, attacks without "custom" or vice versa, or too few classes
        with ``few_classes="error"``.

    Example:
        >>> list(make_plan("standard", "linf", 10)[0])
        ['apgd-ce', 'apgd-t', 'fab-t', 'square']
    """
    check_choice("version", version, VERSIONS)
    check_choice("few_classes", few_classes, ("adapt", "error"))
    check_choice("apgd_rule", apgd_rule, ("repo", "paper"))
    attacks = (attacks,) if isinstance(attacks, str | Kernel) else attacks
    if version != "custom" and attacks is not None:
        raise ValueError(f"attacks={attacks!r} requires version='custom', not {version!r}")
    three_radii = version == "standard" and norm == "l1"
    restarts = {"standard": 5 if norm == "l1" else 1, "rand": 1}.get(version, 5)
    apgd = APGD(
        num_steps=num_steps, num_restarts=restarts, rule=apgd_rule, three_radii=three_radii,
        eot=20 if version == "rand" else 1,
    )  # fmt: skip
    targets = 5 if three_radii else 9
    kernels = {
        "apgd-ce": apgd,
        "apgd-dlr": dataclasses.replace(apgd, loss="dlr"),
        "apgd-t": dataclasses.replace(
            apgd, loss="dlr-targeted", num_targets=targets, num_restarts=1, eot=1
        ),
        "fab": FAB(num_steps=num_steps, num_restarts=5),
        "fab-t": FAB(num_steps=num_steps, num_targets=9),
        "square": Square(num_steps=num_queries, shared=square_shared, full_range=square_full_range),
    }
    names = VERSIONS[version] or tuple(attacks or ())
    if not names:
        raise ValueError(
            "version='custom' needs attacks=(...), with names among " + ", ".join(kernels)
        )
    plan: dict[str, Kernel] = {}
    notes: list[str] = []
    for name in names:
        if not isinstance(name, Kernel):
            check_choice("attacks", name, kernels)
        kernel = name if isinstance(name, Kernel) else kernels[name]
        kernel = _adapt(kernel, num_classes, few_classes, notes)
        times = 1 + sum(other.name == kernel.name for other in plan.values())
        label = kernel.name if times == 1 else f"{kernel.name}-{times}"
        plan[label] = dataclasses.replace(kernel, early_stop=early_stop)
    return plan, notes


def _adapt(kernel: Kernel, num_classes: int, few_classes: str, notes: list[str]) -> Kernel:
    """Targets and losses that exist for the number of classes."""
    if isinstance(kernel, APGD) and num_classes < MIN_CLASSES[kernel.loss]:
        loss = "dlr" if num_classes == 3 else "margin"
        adapted = dataclasses.replace(kernel, loss=loss, num_targets=0)
        note = (
            f"{kernel.name} needs {MIN_CLASSES[kernel.loss]} classes and the model has "
            f"{num_classes}: {adapted.name} runs"
        )
    elif kernel.num_targets > num_classes - 1:
        adapted = dataclasses.replace(kernel, num_targets=num_classes - 1)
        note = f"{kernel.name} has {num_classes - 1} targets, the model {num_classes} classes"
    else:
        return kernel
    if few_classes == "error":
        raise ValueError(f"{note}; use few_classes='adapt' or version='custom'")
    notes.append(note)
    return adapted
