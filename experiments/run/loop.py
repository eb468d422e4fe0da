"""The training loop: epochs, metrics, selection, checkpoints, interruption and resumption."""

import copy
import time

import jax
import numpy as np

from jaxadv import training

from . import accuracy, checkpoints, environment, signals
from .announce import announce
from .devices import data_sharding, everywhere
from .diagnostics import Diagnostics
from .patience import CALL_SECONDS, Waiter
from .progress import Bar
from .signals import Stopped
from .task import Stream, key_for

CHECKPOINT_SECONDS = 300  # between checkpoints inside a long epoch
CALL_MINIBATCHES = {"cpu": 8}  # minibatches of SGD in one compiled call; elsewhere 64


class NonFiniteLossError(FloatingPointError):
    """The loss became infinite or NaN; the message says where, what is kept and what to try."""


class Trainer:
    """The training loop of one run and what it carries besides the device state.

    Attributes:
        record: what a checkpoint stores beside the arrays: sums of the current epoch, seconds of
            training, the best epoch so far and the metrics of the finished epochs.
    """

    def __init__(self, config, directory, task, run, shapes, verbose, say):
        self.config, self.directory, self.task, self.run = config, directory, task, run
        self.shapes, self.verbose, self.say = shapes, verbose, say
        self.key = key_for(config, Stream.TRAIN)
        self.placement = everywhere(data_sharding(config.batch_size))
        self.data = jax.device_put(training.DeviceData(*task.train), self.placement)
        self.total_steps = config.num_epochs * run.batches_per_epoch
        self.record = {"rows": [], "seconds": 0.0, "best": None, "sums": _no_sums()}
        self.identity = {"config": directory.digest(config), "machine": environment.machine()}
        self.diagnostics = Diagnostics.of(config, task, run)
        self.waiter = Waiter()
        self.kept = None  # state and record before a long call, to be saved if it is left
        self.step = self.first_step = 0
        self.began = time.monotonic()
        self.compiled, self.compile_seconds = set(), 0.0

    def train(self) -> None:
        """Runs all epochs that are not done yet."""
        announce(self.config, self.task, self.run, self.total_steps, self.say)
        state = self._initial_state()
        self.first_step, self.began = self.step, time.monotonic()
        bar = Bar(self.total_steps, self.step, self.say if self.verbose else None)
        try:
            with signals.handled(self._on_signal):
                for epoch in range(len(self.record["rows"]), self.config.num_epochs):
                    state = self._train_epoch(state, epoch, bar)
                    state = self._finish_epoch(state, epoch)
        except Stopped as error:
            if error.computing and self.kept is not None:
                state, self.record = self.kept
                self._save(state)
                self.say("interrupted; saved as of before the call that was running, which is lost")
            raise
        finally:
            bar.close()
            self.waiter.close()

    def _initial_state(self) -> training.TrainState:
        if not self.directory.last.is_file():
            return jax.device_put(self.run.make_state(), self.placement)
        state, self.record = checkpoints.load(self.directory.last, self.shapes)
        self._check_record()
        self.step = int(state.step)
        self.directory.write_metrics(self.record["rows"])
        self.say(f"resuming at minibatch {self.step:,} of {self.total_steps:,}")
        return jax.device_put(state, self.placement)

    def _train_epoch(self, state, epoch, bar):
        """All updates up to the epoch's end; an outer step that would cross it waits."""
        end = (epoch + 1) * self.run.batches_per_epoch
        usual = CALL_MINIBATCHES.get(jax.default_backend(), 64)
        is_last = epoch + 1 == self.config.num_epochs
        pending = None
        started = saved = time.monotonic()
        while self.step < end:
            phase = self.run.phase_at(self.step)
            if end - self.step < phase.group and not is_last:
                break
            count, before = min(end - self.step, max(phase.group, usual)), None
            if self.diagnostics is not None:
                count, before = self._look_ahead(state, phase, count)
            if self.waiter.usual is None or self.waiter.usual > CALL_SECONDS:
                if pending is not None:  # what is kept has to be of one moment
                    self._add(*pending, bar)
                    pending = None
                self.kept = jax.device_get(state), copy.deepcopy(self.record)
            else:
                self.kept = None
            called = time.monotonic()
            state, metrics, taken = self.waiter.call(
                lambda state=state, count=count: self.run.advance(
                    state, self.data, self.key, self.step, count
                )
            )
            if phase.first not in self.compiled:
                # The call returns when the program is compiled, long before it has run.
                self.compiled.add(phase.first)
                seconds = time.monotonic() - called
                self.compile_seconds += seconds
                bar.compiled(seconds)
                started += seconds
            if before is not None:
                called = time.monotonic()
                self._diagnose(before, state)
                started += time.monotonic() - called
            self.step += taken
            # The previous call's sums are read while this one runs.
            if pending is not None:
                self._add(*pending, bar)
            pending = metrics, taken
            if self.waiter.usual is None:  # the length of a call decides how it is waited for
                began = time.monotonic()
                self._add(*pending, bar)
                pending = None
                self.waiter.usual = time.monotonic() - began
            if self.waiter.signum or time.monotonic() - saved > CHECKPOINT_SECONDS:
                if pending is not None:
                    self._add(*pending, bar)
                    pending = None
                now = time.monotonic()
                self.record["seconds"] += now - started
                self._check_finite(state)
                self._save(state)
                started = saved = time.monotonic()
                self._stop_if_asked()
        if pending is not None:
            self._add(*pending, bar)
        self.record["seconds"] += time.monotonic() - started
        return state

    def _look_ahead(self, state, phase, count: int):
        """Minibatches of the next call, and the parameters before it if it is to be measured."""
        assert self.diagnostics is not None
        if self.diagnostics.due(self.step, phase.group):
            return min(count, phase.group), jax.device_get(state.params)
        return min(count, max(phase.group, self.diagnostics.until_due(self.step))), None

    def _diagnose(self, before, state) -> None:
        assert self.diagnostics is not None
        after, batch_stats = jax.device_get((state.params, state.batch_stats))
        row = self.diagnostics.measure(self.step, before, after, batch_stats)
        self.record.setdefault("diagnostics", []).append(row)

    def _add(self, metrics: training.Metrics, minibatches: int, bar) -> None:
        sums = self.record["sums"]
        metrics = self.waiter.call(lambda: jax.device_get(metrics))
        values = {name: np.asarray(value).item() for name, value in metrics._asdict().items()}
        bad_step = values.pop("bad_step")
        if bad_step != training.NEVER:
            raise NonFiniteLossError(
                f"the loss is not finite at minibatch {bad_step} (epoch "
                f"{bad_step // self.run.batches_per_epoch + 1}). {self._advice()}"
            )
        for name, value in values.items():
            sums[name] += value
        bar.update(
            minibatches,
            f"loss {sums['loss'] / sums['count']:.3f}, robust {_percent(sums, 'robust'):.1f} %, "
            f"{self._speed():.0f} images/s",
        )

    def _speed(self) -> float:
        """Training images a second since this process started, without compilation."""
        elapsed = time.monotonic() - self.began - self.compile_seconds
        return (self.step - self.first_step) * self.config.batch_size / max(elapsed, 1e-9)

    def _check_finite(self, state: training.TrainState) -> None:
        """The loss of an update is taken before it, so a last update can break unnoticed."""
        leaves = jax.tree.leaves(jax.device_get((state.params, state.batch_stats)))
        if not all(np.isfinite(leaf).all() for leaf in leaves):
            raise NonFiniteLossError(
                f"the parameters are not finite after minibatch {self.step - 1} (epoch "
                f"{(self.step - 1) // self.run.batches_per_epoch + 1}). {self._advice()}"
            )

    def _advice(self) -> str:
        config, last = self.config, self.directory.last
        kept = f"The last good checkpoint is kept in {last}."
        name, rate = "learning_rate", config.learning_rate
        if self.run.phase_at(max(self.step - 1, 0)).is_entropy:
            name, rate = "entropy.learning_rate", config.entropy.learning_rate
        return (
            f"{kept if last.is_file() else 'There is no checkpoint yet.'} Try a smaller "
            f"--config.{name} (now {rate:g})"
            + (" or --config.precision=float32" if config.precision != "float32" else "")
            + " in a new --workdir"
        )

    def _finish_epoch(self, state, epoch):
        self._check_finite(state)
        sums, config = self.record["sums"], self.config
        self.kept, usual, self.waiter.usual = (state, self.record), self.waiter.usual, None
        # The running statistics of the slow weights; SGD keeps those of its weights current.
        chained = self.run.phase_at(max(self.step - 1, 0)).is_entropy
        if self.run.refresh is not None and chained and self._evaluates(epoch):
            state = state.replace(batch_stats=self.run.refresh(state, self.data, self.key))
        row = {
            "epoch": epoch + 1,
            "step": self.step,
            "seconds": round(self.record["seconds"], 3),
            "images_per_second": round(
                sums["count"] / max(self.record["seconds"] - self._seconds_before(), 1e-9), 2
            ),
            "train_loss": sums["loss"] / sums["count"] if sums["count"] else None,
            "train_robust": _percent(sums, "robust"),
            "train_clean": _percent(sums, "clean") if self._has_clean_pass() else None,
            "selection_clean": None,
            "selection_robust": None,
        }
        if self._evaluates(epoch):
            result = self._evaluate(state)
            row["selection_clean"], row["selection_robust"] = result["clean"], result["robust"]
            best = self.record["best"]
            if best is None or result["robust"] > best["robust"]:
                self.record["best"] = {"epoch": epoch + 1, "robust": result["robust"]}
                part = {"params": state.params, "batch_stats": state.batch_stats}
                best = self.record["best"] | self.identity
                # Twice: the best parameters are nowhere else once training has gone on.
                for path in (self.directory.selected_copy, self.directory.selected):
                    checkpoints.save(path, part, best)
        if self.diagnostics is not None:
            row["diagnostics"] = self.record.pop("diagnostics", [])
        self.record["rows"].append(row)
        self.record["sums"] = _no_sums()
        self.waiter.usual, self.kept = usual, None
        self._save(state)
        self.directory.write_metrics(self.record["rows"])
        self.say(_epoch_line(row, config.num_epochs))
        self._stop_if_asked()
        return state

    def _evaluates(self, epoch: int) -> bool:
        return (epoch + 1) % self.config.eval.every == 0 or epoch + 1 == self.config.num_epochs

    def _has_clean_pass(self) -> bool:
        """Whether all of this epoch's minibatches had one: EntropySGD has none."""
        rows = self.record["rows"]
        ends = (rows[-1]["step"] if rows else 0, max(self.step - 1, 0))
        return self.config.bn.clean_pass and not any(
            self.run.phase_at(step).is_entropy for step in ends
        )

    def _seconds_before(self) -> float:
        rows = self.record["rows"]
        return rows[-1]["seconds"] if rows else 0.0

    def _evaluate(self, state) -> dict:
        images, labels = self.task.selection
        predictions = self.waiter.call(
            lambda: accuracy.predict_all(
                self.run.predict,
                state.params,
                state.batch_stats,
                key_for(self.config, Stream.SELECTION),
                images,
                labels,
                batch_size=self.config.eval.batch_size,
            )
        )
        return accuracy.summarize(predictions, labels, self.task.dataset.class_names)

    def _save(self, state) -> None:
        checkpoints.save(self.directory.last, state, self.record | self.identity)

    def _check_record(self) -> None:
        """Whether the last checkpoint is of this run, and the selected one whole and the same."""
        self.directory.check_digest(self.directory.last, self.record, self.config)
        if self.record["best"] is not None:
            self.directory.check_selected(self.record["best"]["epoch"], self.config, self.say)
        before, now = self.record.get("machine"), self.identity["machine"]
        different = [name for name in now if before and before.get(name) != now[name]]
        if before and different:
            changes = ", ".join(f"{name} {before.get(name)} -> {now[name]}" for name in different)
            self.say(f"resuming on another machine ({changes}): the last bits may differ")

    def _stop_if_asked(self) -> None:
        if self.waiter.signum:
            self.say("interrupted and saved; give the same command again to go on")
            raise Stopped(self.waiter.signum)

    def _on_signal(self, signum, frame) -> None:
        """A signal asks the loop to save and stop; a second one stops at once."""
        if self.waiter.signum:
            raise Stopped(signum)
        self.waiter.signum = signum
        self.say("interrupted: saving after the current update (Ctrl-C again: stop at once)")


def _no_sums() -> dict:
    return {"loss": 0.0, "robust": 0, "clean": 0, "count": 0}


def _percent(sums: dict, name: str) -> float | None:
    return 100 * sums[name] / sums["count"] if sums["count"] else None


def _epoch_line(row: dict, num_epochs: int) -> str:
    number = lambda value, form: "-" if value is None else format(value, form)
    return (
        f"epoch {row['epoch']}/{num_epochs}  loss {number(row['train_loss'], '.3f')}  "
        f"robust: train {number(row['train_robust'], '.1f')} %, "
        f"selection {number(row['selection_robust'], '.1f')} %  "
        f"clean: selection {number(row['selection_clean'], '.1f')} %  {row['seconds']:.0f} s"
    )
