"""Errata E1 to E35 in docs/errata.md: the claims that check each, or why it cannot be checked."""

import re

from .registry import CLAIMS

NUMBERS = tuple(f"E{number}" for number in range(1, 36))

# Errata that no computation on the loss, the attack or the optimizer could contradict.
NOT_CHECKABLE = {
    "E25": "an index: Algorithm 1 writes j <= d (inputs) where its vectors have m entries",
    "E26": "notation: a feasible set of perturbations is written as one of parameters",
    "E31": "which network the experiments used: the text and the code it cites differ",
    "E32": "hyper-parameters that contradict each other within the text",
    "E35": "protocol: which split chose the checkpoint, and at which weights accuracy was taken",
}


def claims_of(erratum: str) -> list[str]:
    """Names of the claims whose place cites an erratum.

    Example:
        >>> claims_of("E99")
        []
    """
    return [c.name for c in CLAIMS if erratum in _mentioned(c.place)]


def _mentioned(place: str) -> set[str]:
    """Errata in a place such as "Lemma 5; E1" or "formulas G.2, E9, E18"."""
    return set(re.findall(r"\bE\d+\b", place))


def register() -> dict[str, list[str] | str]:
    """For every erratum, the claims that check it or the reason why none does."""
    return {number: claims_of(number) or NOT_CHECKABLE.get(number, "") for number in NUMBERS}
