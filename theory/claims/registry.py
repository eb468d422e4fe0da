"""Claims as programs: instances, measurements, bounds, and verdicts."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

HOLDS, CORRECTED, FALSE = "holds", "holds as corrected", "false as printed"
BROKEN = "correction fails"


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
        """Measured over bound; only 0 satisfies a bound of 0."""
        zero = self.bound == 0
        safe = np.where(zero, 1.0, self.bound)
        return np.where(zero, np.where(self.measured == 0, 0.0, np.inf), self.measured / safe)


class Claim(NamedTuple):
    """A statement of the paper, or a correction of one.

    Attributes:
        name: short name.
        place: in the paper, docs/formulas.md or docs/errata.md.
        statement: as printed.
        correction: the corrected statement; "" if the printed one is right.
        run: maps (random generator, number of instances) to the trials of the printed statement and
        of the correction, None if there is none.
    """

    name: str
    place: str
    statement: str
    correction: str
    run: Callable[[np.random.Generator, int], tuple[Trial, Trial | None]]


class Result(NamedTuple):
    """The result of a claim.

    Attributes:
        name: name of the claim.
        place: in the paper and the errata.
        statement: as printed.
        correction: the corrected statement.
        instances: number of instances tried.
        measured: of the worst instance of the statement that holds, or of the counterexample.
        bound: of that instance.
        tightness: largest measured over bound of the statement that holds; None if none does.
        verdict: holds, holds as corrected, false as printed, or correction fails.
        counterexample: to the printed statement, "" if there is none.
    """

    name: str
    place: str
    statement: str
    correction: str
    instances: int
    measured: float
    bound: float
    tightness: float | None
    verdict: str
    counterexample: str


CLAIMS: list[Claim] = []


def claim(name: str, place: str, statement: str, correction: str = ""):
    """Registers a function ``run(rng, instances)`` as a claim."""

    def register(run):
        CLAIMS.append(Claim(name, place, statement, correction, run))
        return run

    return register


def check(found: Claim, *, seed: int, instances: int, tolerance: float = 1e-9) -> Result:
    """Runs a claim on seeded instances and derives the verdict from the numbers.

    Args:
        found: the claim.
        seed: seed of the instances; every claim draws from its own generator.
        instances: how many to draw if instances are random.
        tolerance: relative excess over a bound that counts as rounding.

    Returns:
        The result.
    """
    rng = np.random.default_rng([seed, *found.name.encode()])
    printed, corrected = found.run(rng, instances)
    ratios = printed.ratios()
    worst = int(np.argmax(ratios))
    holds = bool(ratios[worst] <= 1 + tolerance)
    counterexample = "" if holds else _words(printed, worst)
    shown, tightness = (printed, worst), float(ratios[worst]) if holds else None
    verdict, count = HOLDS if holds else FALSE, len(ratios)
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
        found.statement,
        found.correction,
        count,
        float(trial.measured[index]),
        float(trial.bound[index]),
        tightness,
        verdict,
        counterexample,
    )


def _words(trial: Trial, index: int) -> str:
    values = f"{trial.measured[index]:.6g} > {trial.bound[index]:.6g}"
    return f"{trial.witness(index)}: {values}"


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


def finite(value: float | None) -> float | str | None:
    """A number for JSON, which has no infinity."""
    return value if value is None or math.isfinite(value) else str(value)
