"""The book-keeping of an AutoAttack: verdicts, costs and records, resumable after every chunk."""

import math
import time

import numpy as np

from .._types import Norm
from ._autoattack_checks import check_finite, check_square
from ._autoattack_plan import Attack, full_cost, passes
from ._autoattack_progress import Reporter
from ._autoattack_result import AutoAttackResult, Check, Evaluations
from ._autoattack_runner import Runner
from ._autoattack_store import Store

_CLEAN, _FILTER, _RECHECK = -1, -2, -3  # runs of the passes that are not attacks
_FILTER_NUMBER, _RECHECK_NUMBER = 10_000, 20_000
# What storing a pixel of [0, 1] in float32 may add to its distance from the clean pixel.
_PIXEL = 2.0**-24


class Evaluation:
    """One evaluation, from the clean pass to the result.

    Every method works through its images chunk by chunk and adds one record a chunk to the
    store; records that are there already are applied instead of computed.

    Args:
        runner: computes.
        store: remembers.
        reporter: reports.
        plan: the attacks.
        norm: the norm.
        eps: the radius.
        individual: whether every attack gets all correctly classified images.
    """

    def __init__(
        self,
        runner: Runner,
        store: Store,
        reporter: Reporter,
        plan: list[Attack],
        norm: Norm,
        eps: float,
        individual: bool = False,
    ):
        number = len(runner.labels)
        self._runner, self._store, self._reporter, self._plan = runner, store, reporter, plan
        self._norm, self._eps, self._individual = norm, eps, individual
        self.images = runner.images.copy()
        self.robust = np.zeros(number, bool)
        self.logits: np.ndarray | None = None
        self.broken_by = np.full(number, "", "U16")
        self.broken_run = np.full(number, -1, np.int32)
        self.broken_step = np.full(number, -1, np.int32)
        self.accuracy: dict[str, float] = {}
        self._alone: dict[str, np.ndarray] = {}
        self._costs: dict[str, np.ndarray] = {}
        self._seconds: dict[str, float] = {}
        self._violations: list[str] = []
        self._unstable = 0
        self._seen = 0  # images with a clean prediction
        self._not_finite = 0  # those of them whose logits are not finite

    def run(self) -> None:
        """The clean pass and every attack of the plan."""
        try:
            self.clean()
            for place in range(len(self._plan)):
                self.attack(place)
        finally:
            self._reporter.close()

    def clean(self) -> None:
        """The clean predictions. An image whose logits are not finite is not robust."""
        for record in self._work("clean", -1, _CLEAN, np.arange(len(self.robust)), self._predict):
            ids, logits = record["ids"], record["logits"]
            if self.logits is None:
                self.logits = np.zeros((len(self.robust), logits.shape[1]), np.float32)
            self.logits[ids] = logits
            self.robust[ids] = record["correct"]
            self._seen += len(ids)
            self._not_finite += int((~np.isfinite(logits)).any(axis=1).sum())
        self.broken_by[~self.robust] = "clean"
        self.accuracy["clean"] = float(self.robust.mean())

    def attack(self, place: int) -> None:
        """All runs of one attack of the plan."""
        attack = self._plan[place]
        left = self.broken_by != "clean" if self._individual else self.robust.copy()
        entered = np.flatnonzero(left)
        name = self._name(place)
        self._costs.setdefault(name, np.zeros(2, np.int64))
        self._seconds.setdefault(name, 0.0)
        wrong = []
        for record in self._work(name, place, _FILTER, entered, self._predict):
            wrong.append(record["ids"][~record["correct"]])
        for run in range(attack.runs):
            ids = np.flatnonzero(left)
            if wrong:
                ids = np.setdiff1d(ids, np.concatenate(wrong))
            for record in self._work(name, place, run, ids, self._attack):
                self._apply(name, run, record)
                left[record["broken"]] = False
        if self._individual:
            self._alone[name] = left
        # As published, one more pass over what the attack returned; counted with the clean pass.
        for record in self._work("clean", place, _RECHECK, entered, self._predict):
            expected = self.robust[record["ids"]]
            self._unstable += int((record["correct"] != expected).sum())
        self.accuracy[name] = float(self.robust.mean())

    def checks(self, before: list[Check]) -> list[Check]:
        """What was found before the attacks, on all clean images, and by the verification."""
        found = [check_finite(self._not_finite, len(self.robust))]
        found += [check for check in before if check.name != "finite"]
        number = len(self._violations)
        detail = "; ".join(self._violations[:5]) + ("; ..." if number > 5 else "")
        message = f"{number} adversarial images were rejected: {detail}"
        none = "every adversarial image is misclassified on its own and inside ball and box"
        found.append(Check("verification", number == 0, message if number else none, number))
        if self._unstable:
            text = f"{self._unstable} predictions changed between two passes over the same image"
            found.append(Check("repeatability", False, text, self._unstable))
        by_square = int((self.broken_by == "square").sum())
        return found + check_square(list(self.accuracy), by_square, len(self.robust))

    def result(self, checks: list[Check], settings: dict) -> AutoAttackResult:
        """The result of everything that was run."""
        assert self.logits is not None
        labels = self._runner.labels
        rows = np.arange(len(labels))
        others = self.logits.copy()
        others[rows, labels] = -np.inf
        with np.errstate(invalid="ignore"):  # logits that are not finite: reported by the checks
            margins = others.max(axis=1) - self.logits[rows, labels]
        return AutoAttackResult(
            images=self.images,
            labels=labels,
            predictions=self.logits.argmax(axis=1).astype(np.int32),
            robust=self.robust,
            broken_by=self.broken_by,
            broken_run=self.broken_run,
            broken_step=self.broken_step,
            norms=self._norms(self.images, rows),
            margins=margins,
            individual=np.array(list(self._alone.values()), bool).reshape(-1, len(labels)),
            accuracy=self.accuracy,
            evaluations={k: Evaluations(int(f), int(b)) for k, (f, b) in self._costs.items()},
            seconds=self._seconds,
            checks=checks,
            settings=settings,
        )

    def _name(self, place: int) -> str:
        """The name of an attack, numbered if it is in the plan more than once."""
        name = self._plan[place].name
        earlier = sum(attack.name == name for attack in self._plan[:place])
        return name if not earlier else f"{name}-{earlier + 1}"

    def _work(self, name: str, place: int, run: int, ids: np.ndarray, compute):
        """Yields the records of one pass: first those of the store, then fresh ones."""
        tag = np.array([place, run])
        known = [r for r in self._store.records if (r["tag"] == tag).all()]
        done = np.concatenate([r["ids"] for r in known]) if known else np.zeros(0, int)
        for record in known:
            self._account(name, record)
            yield record
        left = np.setdiff1d(ids, done)
        finished, cost = len(ids) - len(left), 0
        started = time.monotonic()
        for chunk, fields in self._runner.each(left, lambda ids: compute(place, run, ids)):
            seconds, started = time.monotonic() - started, time.monotonic()
            record = self._store.add(tag=tag, ids=chunk, seconds=seconds, **fields)
            self._account(name, record)
            yield record
            finished, cost = finished + len(chunk), cost + passes(*record["cost"])
            self._reporter.update(
                self._name(place) if place >= 0 else name,
                f"{run + 1}/{self._plan[place].runs}" if run >= 0 else "check",
                len(ids) - finished,
                float(self.robust.sum() / max(self._seen, 1)),
                spent=(passes(*record["cost"]), seconds if run >= 0 else None),
                left=cost / (finished - len(ids) + len(left)) * (len(ids) - finished)
                + self._later(place, run, ids, len(ids) - finished),
            )

    def _later(self, place: int, run: int, ids: np.ndarray, unfinished: int) -> float:
        """Passes of the runs after this one, if the images after it are broken like those of it."""
        alive = self.broken_by != "clean" if self._individual else self.robust
        in_run = int(alive[ids].sum())
        done = len(ids) - unfinished
        share = (in_run - unfinished) / done if run >= 0 and done else 1.0
        survivors = int(alive.sum()) - unfinished * (1 - min(max(share, 0.0), 1.0))
        total = 0.0
        for number, attack in enumerate(self._plan):
            runs = attack.runs - max(run + 1, 0) if number == place else attack.runs
            each = passes(*full_cost(attack, self._runner.num_classes))
            total += each * (runs if number >= place else 0)
        return total * max(survivors, 0.0)

    def _account(self, name: str, record) -> None:
        costs = self._costs.setdefault(name, np.zeros(2, np.int64))
        costs += record["cost"]
        if record.get("verified", 0):
            extra = self._costs.setdefault("verification", np.zeros(2, np.int64))
            extra[0] += int(record["verified"])
        self._seconds[name] = self._seconds.get(name, 0.0) + float(record["seconds"])

    def _predict(self, place: int, run: int, ids: np.ndarray) -> dict:
        number = {_CLEAN: 0, _FILTER: _FILTER_NUMBER, _RECHECK: _RECHECK_NUMBER}[run] + place + 1
        points = (self.images if run == _RECHECK else self._runner.images)[ids]
        logits = self._runner.logits(points, ids, number)
        if self._runner.randomized:
            wrong, logits, votes = self._runner.confirm(points, ids)
            cost = len(ids) * (votes + 1)
        else:
            wrong = logits.argmax(axis=1) != self._runner.labels[ids]
            wrong |= ~np.isfinite(logits).all(axis=1)
            cost = len(ids)
        return dict(logits=logits, correct=~wrong, cost=[cost, 0])

    def _attack(self, place: int, run: int, ids: np.ndarray) -> dict:
        """One chunk of one run: attack, then verify what it reports."""
        outcome = self._runner.run(self._plan[place], place, run, ids)
        picked = np.flatnonzero(outcome.broken)
        points, chosen = outcome.images[picked], ids[picked]
        logits = np.zeros((0, 1), np.float32)
        votes, problems = 0, []
        if len(picked):
            wrong, logits, votes = self._runner.confirm(points, chosen)
            problems = self._problems(points, chosen, wrong)
        good = np.array([not problem for problem in problems], bool)
        if self._runner.randomized:  # a candidate that most draws classify correctly is no error
            problems = [p for p in problems if p and "misclassified" not in p]
        return dict(
            broken=chosen[good],
            images=points[good],
            logits=logits[good] if len(picked) else logits,
            steps=outcome.steps[picked][good],
            violations=np.array([p for p in problems if p] or [""]),
            cost=[outcome.forward.sum(), outcome.backward.sum()],
            verified=votes * len(picked),
        )

    def _apply(self, name: str, run: int, record) -> None:
        self._violations += [str(text) for text in record["violations"] if text]
        new = self.robust[record["broken"]]  # an earlier attack's image is kept
        ids = record["broken"][new]
        if not len(ids):
            return
        assert self.logits is not None
        self.robust[ids] = False
        self.images[ids] = record["images"][new]
        self.logits[ids] = record["logits"][new]
        self.broken_by[ids] = name
        self.broken_run[ids] = run
        self.broken_step[ids] = record["steps"][new]

    def _problems(self, points: np.ndarray, ids: np.ndarray, wrong: np.ndarray) -> list[str]:
        """What is wrong with each candidate; an empty string if nothing."""
        sizes = self._norms(points, ids)
        features = math.prod(points.shape[1:])
        grain = {"linf": 1, "l2": math.sqrt(features), "l1": features}[self._norm] * _PIXEL
        limit = self._eps * (1 + 1e-6) + grain
        out = []
        for point, index, size, fooled in zip(points, ids, sizes, wrong, strict=True):
            if not np.isfinite(point).all() or point.min() < 0 or point.max() > 1:
                out.append(f"image {index} leaves the box [0, 1]")
            elif size > limit:
                out.append(f"image {index} has norm {size:.8g} > {self._eps:.8g}")
            elif not fooled:
                out.append(f"image {index} is not misclassified on its own")
            else:
                out.append("")
        return out

    def _norms(self, points: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Norms of perturbations in float64, one chunk at a time."""
        sizes = np.zeros(len(ids))
        for start in range(0, len(ids), 512):
            part = slice(start, start + 512)
            clean = self._runner.images[ids[part]].astype(np.float64)
            flat = np.abs(points[part] - clean).reshape(len(clean), -1)
            sizes[part] = {
                "linf": lambda v: v.max(axis=1),
                "l2": lambda v: np.sqrt((v**2).sum(axis=1)),
                "l1": lambda v: v.sum(axis=1),
            }[self._norm](flat)
        return sizes
