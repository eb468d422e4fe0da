"""The training loop: epochs, metrics, selection, checkpoints, interruption and resumption."""

import copy
import os
import signal
import time

import jax
import numpy as np

from jaxadv import training

from . import accuracy, checkpoints, devices, environment, hosts, signals, source
from .announce import announce
from .diagnostics import Diagnostics
from .patience import CALL_SECONDS, Waiter
from .progress import Bar
from .signals import Stopped
from .task import Stream, key_for

CHECKPOINT_SECONDS = 300  # between checkpoints within a long epoch
CALL_MINIBATCHES = {"cpu": 8}  # SGD minibatches per compiled call; 64 on other platforms


class NonFiniteLossError(FloatingPointError, hosts.Common):
    """The loss became infinite or NaN; says where, what was saved and what to try."""


class Trainer:
    """The training loop of one run and its host-side state.

    Attributes:
        record: checkpoint metadata: sums over the current epoch, seconds of training, the best
        epoch so far and the metrics of finished epochs.
    """

    def __init__(self, config, directory, task, run, verbose, say, on_metrics=None):
        self.config, self.directory, self.task, self.run = config, directory, task, run
        self.verbose, self.say = verbose, say
        self.on_metrics = on_metrics
        self.key = key_for(config, Stream.TRAIN)
        self.placement = devices.everywhere(devices.data_sharding(config.batch_size))
        self.at_most = CALL_MINIBATCHES.get(jax.default_backend(), 64)
        if source.streams(config, task.train):
            self.data = source.open_stream(config, task.train, at_most=self.at_most)
            self.at_most = self.data.chunk
        else:
            self.data = hosts.place(source.resident(task.train), self.placement)
        self.total_steps = config.num_epochs * run.batches_per_epoch
        self.record = {"rows": [], "seconds": 0.0, "best": None, "sums": {}}
        self.identity = {"config": directory.digest(config), "machine": environment.machine()}
        self.diagnostics = Diagnostics.of(config, task, run)
        self.waiter = Waiter()
        self.forwarded = False  # whether a signal was passed on to all processes
        self.pending = None  # metrics of the last call and its minibatches, not yet waited for
        self.kept = None  # state and record before a long call, saved if it is abandoned
        self.step = self.first_step = 0
        self.compiled, self.compile_seconds = set(), 0.0

    def train(self) -> None:
        """Runs all remaining epochs."""
        announce(self.config, self.task, self.run, self.total_steps, self.say)
        if isinstance(self.data, training.Stream):
            self.say("the training images are streamed from the host (config.data.stream)")
        state = self._initial_state()
        self.first_step, self.began = self.step, time.monotonic()
        self.bar = Bar(self.total_steps, self.step, self.say if self.verbose else None)
        try:
            with signals.handled(self._on_signal):
                for epoch in range(len(self.record["rows"]), self.config.num_epochs):
                    state = self._train_epoch(state, (epoch + 1) * self.run.batches_per_epoch)
                    state = self._finish_epoch(state, epoch)
        except Stopped as error:
            if error.computing and self.kept is not None:
                state, self.record = self.kept
                self._save(state)
                self.say("interrupted; saved the state before the running call, whose work is lost")
            raise
        finally:
            self.bar.close()
            self.waiter.close()
            if isinstance(self.data, training.Stream):
                self.data.close()

    def _initial_state(self) -> training.TrainState:
        last = self.directory.last
        data = hosts.from_writer(lambda: last.read_bytes() if last.is_file() else None)
        if data is None:
            return hosts.place(self.run.make_state(), self.placement)
        state, self.record = checkpoints.load(last, self.run.shapes, data)
        hosts.from_writer(self._check_record)
        self.step = int(state.step)
        self._write_metrics()
        self.say(f"resuming at minibatch {self.step:,} of {self.total_steps:,}")
        return hosts.place(state, self.placement)

    def _train_epoch(self, state: training.TrainState, end: int) -> training.TrainState:
        """Runs all updates up to minibatch ``end``, except an outer step that would cross it."""
        self.started = saved = time.monotonic()
        while True:
            count, is_measured = self._next_call(end - self.step)
            if not count:
                break
            self.kept = None
            if self.waiter.usual is None or self.waiter.usual > CALL_SECONDS:
                self._settle()  # keep state and record consistent
                self.kept = jax.device_get(state), copy.deepcopy(self.record)
            before = jax.device_get(state.params) if is_measured else None
            state, metrics = self._advance(state, count)
            if is_measured:
                self._diagnose(before, state)
            self.step += count
            self._settle()  # reads the previous call's metrics while this one runs
            self.pending = metrics, count
            if self.waiter.usual is None:  # the duration of a call determines how to wait for it
                called = time.monotonic()
                self._settle()
                self.waiter.usual = time.monotonic() - called
            asked = self._asked()
            if asked or time.monotonic() - saved > CHECKPOINT_SECONDS:
                self._settle()
                self._count_seconds()
                self._check_finite(state)
                self._save(state)
                self.started = saved = time.monotonic()
                self._stop(asked)
        self._settle()
        self._count_seconds()
        return state

    def _next_call(self, left: int) -> tuple[int, bool]:
        """Minibatches in the next call (0 for none), and whether the diagnostics measure it."""
        program, is_measured = self.run.program, False
        at_most = self.at_most
        if self.diagnostics is not None:
            is_measured = self.diagnostics.due(self.step, program.phase_at(self.step).group)
            at_most = 1 if is_measured else min(at_most, self.diagnostics.until_due(self.step))
        return program.call_length(self.step, left=left, at_most=at_most), is_measured

    def _advance(self, state: training.TrainState, count: int):
        called, phase = time.monotonic(), self.run.program.phase_at(self.step)
        result = self.waiter.call(
            lambda: self.run.program.advance(state, self.data, self.key, count)
        )
        if phase not in self.compiled:
            # The call returns once the program is compiled, long before it has run.
            self.compiled.add(phase)
            seconds = time.monotonic() - called
            self.compile_seconds += seconds
            self.bar.compiled(seconds)
            self.started += seconds
        return result

    def _diagnose(self, before, state) -> None:
        assert self.diagnostics is not None
        called = time.monotonic()
        after, batch_stats = jax.device_get((state.params, state.batch_stats))
        row = self.diagnostics.measure(self.step, before, after, batch_stats)
        self.record.setdefault("diagnostics", []).append(row)
        self.started += time.monotonic() - called

    def _settle(self) -> None:
        """Adds the previous call's pending metrics to the epoch's sums."""
        if self.pending is None:
            return
        (metrics, count), self.pending = self.pending, None
        found = self.waiter.call(lambda: jax.device_get(metrics))
        found = {name: np.asarray(value).item() for name, value in found.items()}
        bad_step = found.pop("bad_step")
        if bad_step != training.NEVER:
            raise self._not_finite("the loss is not finite at", bad_step)
        sums = self.record["sums"]
        if sums.get("count"):
            # Drop a metric that some minibatches of the epoch lack.
            found = {name: sums[name] + value for name, value in found.items() if name in sums}
        self.record["sums"] = found
        self.bar.update(
            count,
            f"loss {_mean(found, 'loss'):.3f}, robust {_mean(found, 'robust'):.1f} %, "
            f"{self._speed():.0f} images/s",
        )

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.record["seconds"] += now - self.started
        self.started = now

    def _speed(self) -> float:
        """Training images per second since this process started, excluding compilation."""
        elapsed = time.monotonic() - self.began - self.compile_seconds
        return (self.step - self.first_step) * self.config.batch_size / max(elapsed, 1e-9)

    def _check_finite(self, state: training.TrainState) -> None:
        """Checks the last update: its loss is computed before it, so it could diverge unnoticed."""
        leaves = jax.tree.leaves(jax.device_get((state.params, state.batch_stats)))
        if not all(np.isfinite(leaf).all() for leaf in leaves):
            raise self._not_finite("the parameters are not finite after", self.step - 1)

    def _not_finite(self, what: str, minibatch: int) -> NonFiniteLossError:
        config, last = self.config, self.directory.last
        kept = f"The last good checkpoint is kept in {last}."
        name, rate = "learning_rate", config.learning_rate
        if self._was_chained():
            name, rate = "entropy.learning_rate", config.entropy.learning_rate
        wider = " or --config.precision=float32" if config.precision != "float32" else ""
        return NonFiniteLossError(
            f"{what} minibatch {minibatch} (epoch {minibatch // self.run.batches_per_epoch + 1}). "
            f"{kept if last.is_file() else 'There is no checkpoint yet.'} Try a smaller "
            f"--config.{name} (now {rate:g}){wider} in a new --workdir"
        )

    def _was_chained(self) -> bool:
        """Whether the last update was an EntropySGD step."""
        return self.run.program.phase_at(max(self.step - 1, 0)).n_in > 0

    def _finish_epoch(self, state: training.TrainState, epoch: int) -> training.TrainState:
        self._check_finite(state)
        sums, rows = self.record["sums"], self.record["rows"]
        evaluates = (epoch + 1) % self.config.eval.every == 0 or epoch + 1 == self.config.num_epochs
        self.kept, usual, self.waiter.usual = (state, self.record), self.waiter.usual, None
        # Running statistics of the slow weights; SGD keeps its own current.
        if self.run.refresh is not None and self._was_chained() and evaluates:
            state = state.replace(batch_stats=self.run.refresh(state, self.data, self.key))
        seconds = self.record["seconds"] - (rows[-1]["seconds"] if rows else 0.0)
        row = {
            "epoch": epoch + 1,
            "step": self.step,
            "seconds": round(self.record["seconds"], 3),
            "images_per_second": round(sums.get("count", 0) / max(seconds, 1e-9), 2),
            **dict.fromkeys(
                ("train_loss", "train_robust", "train_clean")
            ),  # None if there are none
            "selection_clean": None,
            "selection_robust": None,
        }
        row |= {f"train_{name}": _mean(sums, name) for name in sums if name != "count"}
        if evaluates:
            result = self._evaluate(state)
            row["selection_clean"], row["selection_robust"] = result["clean"], result["robust"]
            self._select(state, row)
        if self.diagnostics is not None:
            row["diagnostics"] = self.record.pop("diagnostics", [])
        rows.append(row)
        self.record["sums"] = {}
        self.waiter.usual, self.kept = usual, None
        self._save(state)
        self._write_metrics()
        if self.on_metrics is not None and hosts.is_writer():
            self.on_metrics({name: value for name, value in row.items() if name != "diagnostics"})
        self.say(_epoch_line(row, self.config.num_epochs))
        self._stop(self._asked())
        return state

    def _evaluate(self, state: training.TrainState) -> dict:
        images, labels = self.task.selection
        key = key_for(self.config, Stream.SELECTION)
        predictions = self.waiter.call(
            lambda: self.run.predict(state.params, state.batch_stats, key, images, labels)
        )
        return accuracy.summarize(predictions, labels, self.task.dataset.class_names)

    def _select(self, state: training.TrainState, row: dict) -> None:
        """Saves the parameters of the best epoch on the selection images."""
        best = self.record["best"]
        if best is not None and row["selection_robust"] <= best["robust"]:
            return
        self.record["best"] = {"epoch": row["epoch"], "robust": row["selection_robust"]}
        part = {"params": state.params, "batch_stats": state.batch_stats}
        if hosts.is_writer():
            # Twice: once training moves on, the best parameters exist nowhere else.
            for path in (self.directory.selected_copy, self.directory.selected):
                checkpoints.save(path, part, self.record["best"] | self.identity)

    def _save(self, state: training.TrainState) -> None:
        if hosts.is_writer():
            checkpoints.save(self.directory.last, state, self.record | self.identity)

    def _write_metrics(self) -> None:
        if hosts.is_writer():
            self.directory.write_metrics(self.record["rows"])

    def _check_record(self) -> None:
        """Checks that the last checkpoint belongs to this run and the selected one is intact."""
        self.directory.check_digest(self.directory.last, self.record, self.config)
        if self.record["best"] is not None:
            self.directory.check_selected(self.record["best"]["epoch"], self.config, self.say)
        before, now = self.record.get("machine"), self.identity["machine"]
        different = [name for name in now if before and before.get(name) != now[name]]
        if before and different:
            changes = ", ".join(f"{name} {before.get(name)} -> {now[name]}" for name in different)
            self.say(f"resuming on a different machine ({changes}): the last bits may differ")

    def _asked(self) -> int:
        """The signal that asks this process, or all of them together, to stop; 0 for none."""
        return self.waiter.signum or (signal.SIGTERM if hosts.stopping() else 0)

    def _stop(self, signum: int) -> None:
        if signum:
            self.say("interrupted and saved; run the same command to resume")
            raise Stopped(signum)

    def _on_signal(self, signum, frame) -> None:
        """Handles signals: the first makes the loop save and stop, the second stops it at once."""
        if self.waiter.signum or self.forwarded:
            raise Stopped(signum)
        if hosts.stops_together():
            self.forwarded = True
            os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the other processes
        else:
            self.waiter.signum = signum
        self.say(
            "interrupted: saving after the current update (press Ctrl-C again to stop immediately)"
        )


def _mean(sums: dict, name: str) -> float | None:
    """A metric of the epoch so far: counts of images as a percentage, others per image."""
    value, count = sums[name], sums["count"]
    if not count:
        return None
    return 100 * value / count if isinstance(value, int) else value / count


def _epoch_line(row: dict, num_epochs: int) -> str:
    number = lambda value, form: "-" if value is None else format(value, form)
    return (
        f"epoch {row['epoch']}/{num_epochs}  loss {number(row['train_loss'], '.3f')}  "
        f"robust: train {number(row['train_robust'], '.1f')} %, "
        f"selection {number(row['selection_robust'], '.1f')} %  "
        f"clean: selection {number(row['selection_clean'], '.1f')} %  {row['seconds']:.0f} s"
    )
