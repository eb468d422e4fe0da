"""The ledger of AutoAttack: verdicts, costs and records, resumable after every chunk."""

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._driver import Stream
from .checks import check_black_box, check_finite
from .chunks import Chunks
from .plan import passes
from .progress import Reporter
from .result import AutoAttackResult, Check, Evaluations
from .store import Store
from .verify import perturbation_norms

_CLEAN, _FILTER, _RECHECK = -1, -2, -3  # run numbers of passes over predictions
_STREAMS = {_CLEAN: Stream.CLEAN, _FILTER: Stream.FILTER, _RECHECK: Stream.RECHECK}


class Ledger:
    """One evaluation, from the clean pass to the result.

    Args:
        chunks: computes, and knows the problem.
        store: remembers.
        reporter: reports.
        individual: whether every attack gets all correctly classified images.
        rows: of the images to evaluate.
    """

    def __init__(
        self, chunks: Chunks, store: Store, reporter: Reporter, individual: bool, rows: slice
    ) -> None:
        self._chunks, self._store, self._reporter = chunks, store, reporter
        self._problem, self._individual, self._rows = chunks.problem, individual, rows
        self._plan = list(self._problem.plan.items())
        number = len(self._problem.labels)
        self._images = self._problem.images.copy()
        self._robust = np.zeros(number, bool)
        self._logits = np.zeros((number, self._problem.num_classes), np.float32)
        self._broken_by = np.full(number, "", f"U{max(16, *map(len, self._problem.plan))}")
        self._broken_run = np.full(number, -1, np.int32)
        self._broken_step = np.full(number, -1, np.int32)
        self._accuracy: dict[str, float] = {}
        self._alone: dict[str, np.ndarray] = {}
        self._left = np.zeros(number, bool)  # what the current attack still gets
        self._costs: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2, np.int64))
        self._seconds: dict[str, float] = defaultdict(float)
        self._violations: list[str] = []
        self._unstable = 0
        self._seen = 0  # images with a clean prediction
        self._not_finite = 0  # those of them whose logits are not finite

    def run(self) -> None:
        """The clean pass and those of every attack, one after the other."""
        self._pass("clean", -1, _CLEAN, np.arange(len(self._robust))[self._rows])
        self._not_finite = int((~np.isfinite(self._logits)).any(axis=1).sum())
        self._broken_by[~self._robust] = "clean"
        self._accuracy["clean"] = float(self._robust[self._rows].mean())
        for place, (name, kernel) in enumerate(self._plan):
            alive = self._alive()
            self._left = alive.copy()
            entered = np.flatnonzero(alive)
            self._costs[name] += 0  # in this order, and even if no image is left
            self._seconds[name] += 0
            self._pass(name, place, _FILTER, entered)
            attacked = self._left.copy()
            for run in range(kernel.num_runs):
                self._pass(name, place, run, np.flatnonzero(self._left))
            if self._individual:
                self._alone[name] = self._left | (alive & ~attacked)
            # As published, one more look at what the attack returned, counted with the clean pass.
            self._pass("clean", place, _RECHECK, entered)
            self._accuracy[name] = float(self._robust[self._rows].mean())

    def _alive(self) -> np.ndarray:
        """The images that the next attack gets."""
        return self._broken_by != "clean" if self._individual else self._robust

    def _pass(self, name: str, place: int, run: int, ids: np.ndarray) -> None:
        """One pass over images: applies what the store has of it, computes and stores the rest.

        Args:
            name: where its cost is counted: "clean" or an attack.
            place: of the attack in the plan, -1 without one.
            run: run of the attack, negative for predictions.
            ids: the images.
        """
        missing = np.zeros(len(self._robust), bool)
        missing[ids] = True
        for record in self._store.records:
            # A shard that is completed after the others were merged has images that the merge has
            # already computed: one record counts.
            if record["tag"].tolist() == [place, run] and missing[record["ids"]].all():
                self._apply(name, run, record)
                missing[record["ids"]] = False
        left = np.flatnonzero(missing)
        points = self._images if run == _RECHECK else self._problem.images

        def compute(ids: np.ndarray) -> dict:
            if run < 0:
                return self._chunks.predict(points[ids], ids, (_STREAMS[run], place + 1))
            return self._chunks.attack(place, run, ids)

        done, spent, before = 0, 0, time.monotonic()
        for chunk, fields in self._chunks.each(left, compute):
            seconds = time.monotonic() - before
            before += seconds
            record = self._store.add(tag=[place, run], ids=chunk, seconds=seconds, **fields)
            self._apply(name, run, record)
            cost = passes(*record["cost"])
            done, spent = done + len(chunk), spent + cost
            unfinished = len(left) - done
            attack, kernel = self._plan[place] if place >= 0 else (name, None)
            self._reporter.update(
                attack,
                f"{run + 1}/{kernel.num_runs}" if kernel and run >= 0 else "check",
                unfinished,
                float(self._robust.sum() / max(self._seen, 1)),
                spent=(cost, seconds if run >= 0 else None),
                left=spent / done * unfinished + self._later(place, run, ids, unfinished),
            )

    def _apply(self, name: str, run: int, record: Mapping[str, Any]) -> None:
        """What a record says about its images."""
        self._costs[name] += record["cost"]
        self._seconds[name] += float(record["seconds"])
        if record.get("verified", 0):
            self._costs["verification"][0] += int(record["verified"])
        ids = record["ids"]
        if run == _CLEAN:
            # An image whose logits are not finite is not robust.
            self._logits[ids] = record["logits"]
            self._robust[ids] = record["correct"]
            self._seen += len(ids)
        elif run == _FILTER:
            self._left[ids[~record["correct"]]] = False
        elif run == _RECHECK:
            self._unstable += int((record["correct"] != self._robust[ids]).sum())
        else:
            self._left[record["broken"]] = False
            self._violations += [str(text) for text in record["violations"] if text]
            new = self._robust[record["broken"]]  # an earlier attack's image is kept
            ids = record["broken"][new]
            if not len(ids):
                return
            self._robust[ids] = False
            self._images[ids] = record["images"][new]
            self._logits[ids] = record["logits"][new]
            self._broken_by[ids] = name
            self._broken_run[ids] = run
            self._broken_step[ids] = record["steps"][new]

    def _later(self, place: int, run: int, ids: np.ndarray, unfinished: int) -> float:
        """Passes of the runs after this one, if the images after it are broken like those of it."""
        alive = self._alive()
        in_run = int(alive[ids].sum())
        done = len(ids) - unfinished
        share = (in_run - unfinished) / done if run >= 0 and done else 1.0
        survivors = int(alive.sum()) - unfinished * (1 - min(max(share, 0.0), 1.0))
        kernels = [kernel for _, kernel in self._plan[max(place, 0) :]]
        costs = [passes(*kernel.cost(self._problem.num_classes)) for kernel in kernels]
        work = sum(cost * kernel.num_runs for cost, kernel in zip(costs, kernels, strict=True))
        return (work - costs[0] * max(run + 1, 0)) * max(survivors, 0.0)

    def checks(self, before: list[Check]) -> list[Check]:
        """The checks before the attacks, on all clean images, and by the verification."""
        broken_by = self._broken_by[self._rows]
        found = [check_finite(self._not_finite, len(broken_by)), *before]
        number = len(self._violations)
        detail = "; ".join(self._violations[:5]) + ("; ..." if number > 5 else "")
        message = f"{number} adversarial images were rejected: {detail}"
        none = "every adversarial image is misclassified on its own and inside ball and box"
        found.append(Check("verification", number == 0, message if number else none, number))
        if self._unstable:
            text = f"{self._unstable} predictions changed between two passes over the same image"
            found.append(Check("repeatability", False, text, self._unstable))
        return found + check_black_box(dict(self._plan), broken_by)

    def result(self, checks: list[Check], settings: dict) -> AutoAttackResult:
        """The result of everything that was run."""
        at, images = self._rows, self._images[self._rows]
        labels, logits = self._problem.labels[at].astype(np.int32), self._logits[at]
        own = labels[:, None] == np.arange(logits.shape[1])
        with np.errstate(invalid="ignore"):  # logits that are not finite: reported by the checks
            margins = np.where(own, -np.inf, logits).max(axis=1) - logits[own]
        return AutoAttackResult(
            images=images,
            labels=labels,
            predictions=logits.argmax(axis=1).astype(np.int32),
            robust=self._robust[at],
            broken_by=self._broken_by[at],
            broken_run=self._broken_run[at],
            broken_step=self._broken_step[at],
            norms=perturbation_norms(images, self._problem.images[at], self._problem.norm),
            margins=margins,
            individual=np.array([v[at] for v in self._alone.values()], bool).reshape(
                -1, len(labels)
            ),
            accuracy=self._accuracy,
            evaluations={k: Evaluations(int(f), int(b)) for k, (f, b) in self._costs.items()},
            seconds=dict(self._seconds),
            checks=checks,
            settings=settings,
        )
