"""The ledger of AutoAttack: verdicts, costs and records, resumable after every chunk."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .._driver import Stream
from .._kernel import Kernel
from .checks import check_black_box, check_finite
from .plan import passes
from .problem import Problem
from .progress import Reporter
from .result import AutoAttackResult, Check, Evaluations
from .store import Store
from .verify import perturbation_norms

_CLEAN, _FILTER, _RECHECK = -1, -2, -3  # run numbers of passes over predictions
_STREAMS = {_CLEAN: Stream.CLEAN, _FILTER: Stream.FILTER, _RECHECK: Stream.RECHECK}


class Pass(NamedTuple):
    """One pass over images: a run of an attack, or of predictions.

    Attributes:
        name: where its cost is counted: "clean" or an attack.
        place: of the attack in the plan, -1 without one.
        run: run of the attack, negative for predictions.
        kernel: the attack, None in the clean pass.
        images: the points, of all images.
        ids: the images of the pass.
        left: images not covered by a record in the store.
    """

    name: str
    place: int
    run: int
    kernel: Kernel | None
    images: np.ndarray
    ids: np.ndarray
    left: np.ndarray

    @property
    def num_runs(self) -> int:
        """Of the attack."""
        return self.kernel.num_runs if self.kernel else 0

    @property
    def stream(self) -> Stream:
        """The random stream of a pass over predictions."""
        return _STREAMS[self.run]


class Ledger:
    """One evaluation, from the clean pass to the result.

    The caller takes each pass of :meth:`passes`, computes its images chunk by chunk and hands every
    record to :meth:`keep`. Records already in the store are applied instead.

    Args:
        problem: what is evaluated.
        store: remembers.
        reporter: reports.
        individual: whether every attack gets all correctly classified images.
    """

    def __init__(
        self, problem: Problem, store: Store, reporter: Reporter, individual: bool
    ) -> None:
        self._problem, self._store, self._reporter = problem, store, reporter
        self._plan, self._individual = list(problem.plan.items()), individual
        number = len(problem.labels)
        self._images = problem.images.copy()
        self._robust = np.zeros(number, bool)
        self._logits = np.zeros((number, problem.num_classes), np.float32)
        self._broken_by = np.full(number, "", f"U{max(16, *map(len, problem.plan))}")
        self._broken_run = np.full(number, -1, np.int32)
        self._broken_step = np.full(number, -1, np.int32)
        self._accuracy: dict[str, float] = {}
        self._alone: dict[str, np.ndarray] = {}
        self._left = np.zeros(number, bool)  # what the current attack still gets
        self._costs: dict[str, np.ndarray] = {}
        self._seconds: dict[str, float] = {}
        self._violations: list[str] = []
        self._unstable = 0
        self._seen = 0  # images with a clean prediction
        self._not_finite = 0  # those of them whose logits are not finite
        self._finished, self._cost, self._time = 0, 0, 0.0  # of the current pass

    def passes(self) -> Iterator[Pass]:
        """The clean pass and those of every attack, one after the other."""
        yield self._open("clean", -1, _CLEAN, np.arange(len(self._problem.labels)))
        self._broken_by[~self._robust] = "clean"
        self._accuracy["clean"] = float(self._robust.mean())
        for place, (name, kernel) in enumerate(self._plan):
            alive = self._broken_by != "clean" if self._individual else self._robust
            self._left = alive.copy()
            entered = np.flatnonzero(alive)
            self._costs.setdefault(name, np.zeros(2, np.int64))
            self._seconds.setdefault(name, 0.0)
            yield self._open(name, place, _FILTER, entered)
            attacked = self._left.copy()
            for run in range(kernel.num_runs):
                yield self._open(name, place, run, np.flatnonzero(self._left))
            if self._individual:
                self._alone[name] = self._left | (alive & ~attacked)
            # As published, one more look at what the attack returned, counted with the clean pass.
            yield self._open("clean", place, _RECHECK, entered)
            self._accuracy[name] = float(self._robust.mean())

    def keep(self, work: Pass, ids: np.ndarray, fields: Mapping[str, Any]) -> None:
        """Stores, applies and reports the record of a finished chunk of a pass."""
        now = time.monotonic()
        seconds, self._time = now - self._time, now
        tag = np.array([work.place, work.run])
        record = self._store.add(tag=tag, ids=ids, seconds=seconds, **fields)
        self._apply(work, record)
        cost = passes(*record["cost"])
        self._finished, self._cost = self._finished + len(ids), self._cost + cost
        unfinished = len(work.left) - self._finished
        label = f"{work.run + 1}/{work.num_runs}" if work.run >= 0 else "check"
        self._reporter.update(
            self._plan[work.place][0] if work.place >= 0 else work.name,
            label,
            unfinished,
            float(self._robust.sum() / max(self._seen, 1)),
            spent=(cost, seconds if work.run >= 0 else None),
            left=self._cost / self._finished * unfinished + self._later(work, unfinished),
        )

    def _open(self, name: str, place: int, run: int, ids: np.ndarray) -> Pass:
        """A pass, after the records that the store has of it."""
        images = self._images if run == _RECHECK else self._problem.images
        tag = np.array([place, run])
        known = [r for r in self._store.records if (r["tag"] == tag).all()]
        done = np.concatenate([r["ids"] for r in known]) if known else np.zeros(0, int)
        kernel = self._plan[place][1] if place >= 0 else None
        work = Pass(name, place, run, kernel, images, ids, np.setdiff1d(ids, done))
        for record in known:
            self._apply(work, record)
        self._finished, self._cost, self._time = 0, 0, time.monotonic()
        return work

    def _apply(self, work: Pass, record: Mapping[str, Any]) -> None:
        self._account(work.name, record)
        ids = record["ids"]
        if work.run == _CLEAN:
            # An image whose logits are not finite is not robust.
            self._logits[ids] = record["logits"]
            self._robust[ids] = record["correct"]
            self._seen += len(ids)
            self._not_finite += int((~np.isfinite(record["logits"])).any(axis=1).sum())
        elif work.run == _FILTER:
            self._left[ids[~record["correct"]]] = False
        elif work.run == _RECHECK:
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
            self._broken_by[ids] = work.name
            self._broken_run[ids] = work.run
            self._broken_step[ids] = record["steps"][new]

    def _account(self, name: str, record: Mapping[str, Any]) -> None:
        costs = self._costs.setdefault(name, np.zeros(2, np.int64))
        costs += record["cost"]
        if record.get("verified", 0):
            extra = self._costs.setdefault("verification", np.zeros(2, np.int64))
            extra[0] += int(record["verified"])
        self._seconds[name] = self._seconds.get(name, 0.0) + float(record["seconds"])

    def _later(self, work: Pass, unfinished: int) -> float:
        """Passes of the runs after this one, if the images after it are broken like those of it."""
        alive = self._broken_by != "clean" if self._individual else self._robust
        in_run = int(alive[work.ids].sum())
        done = len(work.ids) - unfinished
        share = (in_run - unfinished) / done if work.run >= 0 and done else 1.0
        survivors = int(alive.sum()) - unfinished * (1 - min(max(share, 0.0), 1.0))
        total = 0.0
        for place, (_, kernel) in enumerate(self._plan[max(work.place, 0) :], max(work.place, 0)):
            earlier = max(work.run + 1, 0) if place == work.place else 0
            total += passes(*kernel.cost(self._problem.num_classes)) * (kernel.num_runs - earlier)
        return total * max(survivors, 0.0)

    def checks(self, before: list[Check]) -> list[Check]:
        """The checks before the attacks, on all clean images, and by the verification."""
        found = [check_finite(self._not_finite, len(self._robust))]
        found += [check for check in before if check.name != "finite"]
        number = len(self._violations)
        detail = "; ".join(self._violations[:5]) + ("; ..." if number > 5 else "")
        message = f"{number} adversarial images were rejected: {detail}"
        none = "every adversarial image is misclassified on its own and inside ball and box"
        found.append(Check("verification", number == 0, message if number else none, number))
        if self._unstable:
            text = f"{self._unstable} predictions changed between two passes over the same image"
            found.append(Check("repeatability", False, text, self._unstable))
        return found + check_black_box(dict(self._plan), self._broken_by)

    def result(self, checks: list[Check], settings: dict) -> AutoAttackResult:
        """The result of everything that was run."""
        labels = self._problem.labels.astype(np.int32)
        rows = np.arange(len(labels))
        others = self._logits.copy()
        others[rows, labels] = -np.inf
        with np.errstate(invalid="ignore"):  # logits that are not finite: reported by the checks
            margins = others.max(axis=1) - self._logits[rows, labels]
        return AutoAttackResult(
            images=self._images,
            labels=labels,
            predictions=self._logits.argmax(axis=1).astype(np.int32),
            robust=self._robust,
            broken_by=self._broken_by,
            broken_run=self._broken_run,
            broken_step=self._broken_step,
            norms=perturbation_norms(self._images, self._problem.images, self._problem.norm),
            margins=margins,
            individual=np.array(list(self._alone.values()), bool).reshape(-1, len(labels)),
            accuracy=self._accuracy,
            evaluations={k: Evaluations(int(f), int(b)) for k, (f, b) in self._costs.items()},
            seconds=self._seconds,
            checks=checks,
            settings=settings,
        )
