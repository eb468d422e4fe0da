"""Claims as programs: instances, measurements, bounds, verdicts, and the sabotage of each."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

# Whose statement it is: in the paper, a consequence of what is there, or from docs/formulas.md.
PRINTED, IMPLIED, OURS = "printed", "implied", "ours"

HOLDS, CORRECTED, FALSE, REFUTED = "holds", "holds as corrected", "false as printed", "false"
BROKEN = "fails"  # a statement of ours, or a correction, that does not hold


class Trial(NamedTuple):
    """Instances of one statement.

    Attributes:
        measured: one number per instance, shape (n,).
        bound: its upper bound, shape (n,).
        witness: describes instance i.
    """

    measured: np.ndarray
    bound: np.ndarray
    witness: Callable[[int], str]

    def ratios(self) -> np.ndarray:
        """Measured over bound; inf for NaN, at negative bounds, and at 0 for all but 0."""
        positive = self.bound > 0
        met = (self.bound == 0) & (self.measured == 0)
        ratios = np.where(met, 0.0, np.inf)
        np.divide(self.measured, self.bound, out=ratios, where=positive)
        return np.where(np.isnan(ratios), np.inf, ratios)


class Claim(NamedTuple):
    """A statement and, if it is wrong, its correction.

    Attributes:
        name: short name.
        place: in the paper, docs/formulas.md or docs/errata.md.
        origin: "printed" in the paper, "implied" by it, or "ours".
        statement: what is judged.
        correction: the corrected statement; "" if the statement is right.
        run: maps (random generator, number of instances) to the trials of the statement and of the
            correction, None if there is none. Its keyword arguments are the ingredients.
        sabotage: for every deliberately wrong ingredient, the keyword arguments that put it in.
        cost: one instance is drawn for this many of ``--instances``.
    """

    name: str
    place: str
    origin: str
    statement: str
    correction: str
    run: Callable[..., tuple[Trial, Trial | None]]
    sabotage: Mapping[str, Mapping[str, Any]]
    cost: int


class Result(NamedTuple):
    """The result of a claim.

    Attributes:
        name: name of the claim.
        place: in the paper and the errata.
        origin: see `Claim`.
        statement: what was judged.
        correction: the corrected statement.
        instances: number of instances tried.
        measured: of the worst instance of the statement that holds, or of the counterexample.
        bound: of that instance.
        tightness: largest measured over bound of the statement that holds; None if none does.
        verdict: holds, holds as corrected, false as printed, false (not printed), or fails.
        counterexample: to the statement, "" if there is none.
    """

    name: str
    place: str
    origin: str
    statement: str
    correction: str
    instances: int
    measured: float
    bound: float
    tightness: float | None
    verdict: str
    counterexample: str


class Turned(NamedTuple):
    """What became of a claim with a wrong ingredient.

    Attributes:
        ingredient: what was wrong.
        verdict: with it.
        turned: whether that is another verdict than without it.
    """

    ingredient: str
    verdict: str
    turned: bool


CLAIMS: list[Claim] = []


def claim(
    name: str,
    place: str,
    origin: str,
    statement: str,
    correction: str = "",
    *,
    sabotage: Mapping[str, Mapping[str, Any]],
    cost: int = 1,
):
    """Registers a function ``run(rng, instances, *, ingredients)`` as a claim."""
    if origin == OURS and correction:
        raise ValueError(f"{name!r} is ours and has a correction; state the corrected one")

    def register(run):
        CLAIMS.append(Claim(name, place, origin, statement, correction, run, sabotage, cost))
        return run

    return register


def check(
    found: Claim,
    *,
    seed: int,
    instances: int,
    tolerance: float = 1e-9,
    ingredients: Mapping[str, Any] | None = None,
) -> Result:
    """Runs a claim on seeded instances and derives the verdict from the numbers.

    Args:
        found: the claim.
        seed: seed of the instances; every claim draws from its own generator.
        instances: how many to draw, divided by the claim's cost.
        tolerance: relative excess over a bound that counts as rounding.
        ingredients: replacements of the claim's ingredients.

    Returns:
        The result.
    """
    rng = np.random.default_rng([seed, *found.name.encode()])
    printed, corrected = found.run(rng, max(instances // found.cost, 8), **(ingredients or {}))
    if not all(len(t.measured) for t in (printed, corrected) if t is not None):
        raise ValueError(f"{found.name}: instances={instances} leave none to try; draw more")
    ratios = printed.ratios()
    worst = int(np.argmax(ratios))
    holds = bool(ratios[worst] <= 1 + tolerance)
    counterexample = "" if holds else _words(printed, worst)
    shown, tightness = (printed, worst), float(ratios[worst]) if holds else None
    fails = {PRINTED: FALSE, IMPLIED: REFUTED, OURS: BROKEN}[found.origin]
    verdict, count = HOLDS if holds else fails, len(ratios)
    if corrected is not None:
        ratios = corrected.ratios()
        place = int(np.argmax(ratios))
        count += len(ratios)
        if ratios[place] > 1 + tolerance:
            verdict, tightness, counterexample = BROKEN, None, _words(corrected, place)
        elif not holds:
            verdict, tightness = CORRECTED, float(ratios[place])
        shown = (corrected, place)
    trial, index = shown
    return Result(
        found.name,
        found.place,
        found.origin,
        found.statement,
        found.correction,
        count,
        float(trial.measured[index]),
        float(trial.bound[index]),
        tightness,
        verdict,
        counterexample,
    )


def sabotage(found: Claim, verdict: str, *, seed: int, instances: int) -> list[Turned]:
    """Runs a claim with each of its wrong ingredients on the instances of ``verdict``.

    Args:
        found: the claim.
        verdict: with the right ingredients.
        seed: see `check`.
        instances: see `check`.

    Returns:
        What became of the verdict, one entry per ingredient.
    """
    turned = []
    for ingredient, replacement in found.sabotage.items():
        result = check(found, seed=seed, instances=instances, ingredients=replacement)
        turned.append(Turned(ingredient, result.verdict, result.verdict != verdict))
    return turned


def _words(trial: Trial, index: int) -> str:
    values = f"{trial.measured[index]:.6g} > {trial.bound[index]:.6g}"
    return f"{trial.witness(index)}: {values}"


def join(*trials: Trial) -> Trial:
    """The instances of several trials as one."""
    ends = np.cumsum([len(t.measured) for t in trials])

    def witness(i: int) -> str:
        part = int(np.searchsorted(ends, i, side="right"))
        return trials[part].witness(i - (int(ends[part - 1]) if part else 0))

    measured, bounds = ([getattr(t, name) for t in trials] for name in ("measured", "bound"))
    return Trial(np.concatenate(measured), np.concatenate(bounds), witness)


def within(measured: np.ndarray, bound: float, words: str | Callable[[int], str]) -> Trial:
    """A trial with one bound for all instances."""
    measured = np.atleast_1d(np.asarray(measured, float))
    witness = (lambda i: f"{words}, instance {i}") if isinstance(words, str) else words
    return Trial(measured, np.full(len(measured), float(bound)), witness)


def pair(first: np.ndarray, second: np.ndarray) -> Callable[[int], str]:
    """Witness of a pair of parameter vectors."""
    show = lambda v: np.array2string(v[:4], precision=4) + ("..." if len(v) > 4 else "")
    return lambda i: f"a = {show(first[i])}, b = {show(second[i])}"


def unit(values: np.ndarray) -> np.ndarray:
    """Scales rows to length 1."""
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def norm(values: np.ndarray) -> np.ndarray:
    """Euclidean norms of the rows."""
    return np.linalg.norm(values, axis=-1)


def spectral(matrices: np.ndarray) -> np.ndarray:
    """Spectral norms of a batch of matrices."""
    return np.linalg.norm(matrices, 2, axis=(-2, -1))


def finite(value: float | None) -> float | str | None:
    """A number for JSON, which has no infinity."""
    return value if value is None or math.isfinite(value) else str(value)
