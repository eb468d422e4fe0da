"""Trains a run, keeps it resumable, and evaluates it when it is done."""

import math
import signal
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxadv import losses, training

from . import build, checkpoints, environment, evaluation
from .runs import RunDirectory, write_json
from .settings import Config

CHECKPOINT_SECONDS = 300  # between checkpoints inside a long epoch
LONG_SECONDS = 12 * 3600  # a run on a CPU that is expected to take longer is warned about
_CALL_MINIBATCHES = {"cpu": 8}  # minibatches of SGD in one compiled call; elsewhere 64


class NonFiniteLossError(FloatingPointError):
    """The loss became infinite or NaN; the message says where, what is kept and what to try."""


def train_and_evaluate(
    config: Config, workdir: Path | str, *, data_dir: Any = None, verbose: bool = True
) -> dict:
    """Trains as configured, or goes on where an earlier call stopped, and reports on the test set.

    Args:
        config: resolved by :func:`experiments.settings.resolve`.
        workdir: run directory. A finished run is not trained again: its report is returned.
        data_dir: where data sets are looked for.
        verbose: whether to print progress.

    Returns:
        The report: accuracies of the selected and the last checkpoint on the test images, and how
        they were obtained; also in ``workdir/report.json``.

    Raises:
        ValueError: on a configuration that makes no sense or does not fit the directory.
        OSError: if the disk is full or read-only; the last good checkpoint survives.
        NonFiniteLossError: if the loss is not finite; the last good checkpoint survives.
        KeyboardInterrupt: after Ctrl-C, when the state has been saved.

    Example:
        >>> import tempfile
        >>> from experiments import cli
        >>> config = cli.load_config("at", "smoke", "digits")
        >>> report = train_and_evaluate(config, tempfile.mkdtemp(), verbose=False)
        >>> sorted(report["test"])
        ['last', 'selected']
    """
    directory = RunDirectory(workdir)
    say = tqdm.write if verbose else lambda text: None
    task = build.load_task(config, data_dir)
    run = build.build(config, task, data_sharding(config.batch_size))
    shapes = jax.eval_shape(run.make_state)
    state_bytes = sum(leaf.size * 4 for leaf in jax.tree.leaves(shapes))
    directory.open(config, needed_bytes=4 * state_bytes)
    report = directory.report()
    if report is not None:
        say(f"{directory.path} is finished; its report:")
    else:
        trainer = _Trainer(config, directory, task, run, shapes, verbose, say)
        trainer.train()
        report = _final_report(config, directory, task, run, shapes)
        write_json(directory.report_file, report)
    say(describe_report(report))
    return report


def data_sharding(batch_size: int) -> jax.sharding.NamedSharding | None:
    """Minibatches spread over all devices that divide them, or None on one device."""
    count = math.gcd(batch_size, jax.device_count())
    if count == 1:
        return None
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((count,), ("batch",), auto, devices=jax.devices()[:count])
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))


def _everywhere(sharding: jax.sharding.NamedSharding | None) -> jax.sharding.NamedSharding | None:
    """A copy on each device of ``sharding``.

    State and data have to start there: a first call with them on one device would compile a second
    program for what it returns, and copy the data set again in every call.
    """
    if sharding is None:
        return None
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())


def describe_report(report: dict) -> str:
    """The final table of a run, as text."""
    selected = f"selected (epoch {report['selected_epoch']})"
    last = f"last (epoch {report['last_epoch']})"
    table = evaluation.format_table(
        {selected: report["test"]["selected"], last: report["test"]["last"]}, report["attack"]
    )
    return (
        f"Accuracy in % on {report['test']['last']['images']} test images of {report['dataset']}, "
        f"{report['method']}, scale {report['scale']}\n"
        f"{report['threat']}; checkpoint selected on {report['selection']} images\n{table}"
    )


class _Trainer:
    """The training loop of one run and what it carries besides the device state.

    Attributes:
        record: what a checkpoint stores beside the arrays: sums of the current epoch, seconds of
            training, the best epoch so far and the metrics of the finished epochs.
    """

    def __init__(self, config, directory, task, run, shapes, verbose, say):
        self.config, self.directory, self.task, self.run = config, directory, task, run
        self.shapes, self.verbose, self.say = shapes, verbose, say
        self.key = build.train_key(config)
        self.placement = _everywhere(data_sharding(config.batch_size))
        self.data = jax.device_put(training.DeviceData(*task.train), self.placement)
        self.total_steps = config.num_epochs * run.batches_per_epoch
        self.record = {"rows": [], "seconds": 0.0, "best": None, "sums": _no_sums()}
        self.stopped = threading.Event()
        self.step = 0
        self.compile_seconds = None

    def train(self) -> None:
        """Runs all epochs that are not done yet."""
        self._announce()
        state = self._initial_state()
        restore_handler = self._catch_interrupt()
        bar = tqdm(
            total=self.total_steps,
            initial=self.step,
            unit="minibatch",
            disable=not self.verbose,
            dynamic_ncols=True,
        )
        try:
            for epoch in range(len(self.record["rows"]), self.config.num_epochs):
                state = self._train_epoch(state, epoch, bar)
                state = self._finish_epoch(state, epoch)
        finally:
            bar.close()
            restore_handler()

    def _announce(self) -> None:
        config = self.config
        seconds = self.total_steps * _minibatch_seconds(config, self.run, self.task)
        self.say(
            f"{environment.device_name()}, {config.precision}, {config.model} with "
            f"{self.run.num_parameters:,} parameters, {self.total_steps:,} minibatches of "
            f"{config.batch_size} in {config.num_epochs} epochs, about {_duration(seconds)} in all"
        )
        if config.scale != "paper":
            self.say(f"scale {config.scale}: {_scaled_down(config, self.task)}")
        if jax.default_backend() == "cpu" and seconds > LONG_SECONDS:
            self.say(
                f"This is the full configuration: on this CPU it would take about "
                f"{_duration(seconds)}. For a run of about an hour give "
                f"--config=configs/{config.method}.py:laptop"
            )

    def _initial_state(self) -> training.TrainState:
        if not self.directory.last.is_file():
            return jax.device_put(self.run.make_state(), self.placement)
        state, self.record = checkpoints.load(self.directory.last, self.shapes)
        self.step = int(state.step)
        self.directory.write_metrics(self.record["rows"])
        self.say(f"resuming at minibatch {self.step:,} of {self.total_steps:,}")
        return jax.device_put(state, self.placement)

    def _train_epoch(self, state, epoch, bar):
        """All updates up to the epoch's end; an outer step that would cross it waits."""
        end = (epoch + 1) * self.run.batches_per_epoch
        longest = max(self.run.group, _CALL_MINIBATCHES.get(jax.default_backend(), 64))
        is_last = epoch + 1 == self.config.num_epochs
        pending = None
        started = saved = time.monotonic()
        while self.step < end and (is_last or end - self.step >= self.run.group):
            count = min(end - self.step, longest)
            called = time.monotonic()
            state, metrics, taken = self.run.advance(state, self.data, self.key, count)
            if self.compile_seconds is None:
                # The call returns when the program is compiled, long before it has run.
                self.compile_seconds = time.monotonic() - called
                started += self.compile_seconds
            self.step += taken
            # The previous call's sums are read while this one runs.
            if pending is not None:
                self._add(*pending, bar)
            pending = metrics, taken
            if self.stopped.is_set() or time.monotonic() - saved > CHECKPOINT_SECONDS:
                self._add(*pending, bar)
                pending = None
                now = time.monotonic()
                self.record["seconds"] += now - started
                self._check_finite(state)
                self._save(state)
                started = saved = time.monotonic()
                if self.stopped.is_set():
                    self.say("interrupted and saved; give the same command again to go on")
                    raise KeyboardInterrupt
        if pending is not None:
            self._add(*pending, bar)
        self.record["seconds"] += time.monotonic() - started
        return state

    def _add(self, metrics: training.Metrics, minibatches: int, bar) -> None:
        sums = self.record["sums"]
        values = {name: np.asarray(value).item() for name, value in metrics._asdict().items()}
        bad_step = values.pop("bad_step")
        if bad_step != training.NEVER:
            raise NonFiniteLossError(
                f"the loss is not finite at minibatch {bad_step} (epoch "
                f"{bad_step // self.run.batches_per_epoch + 1}). {self._advice()}"
            )
        for name, value in values.items():
            sums[name] += value
        bar.set_postfix_str(
            f"loss {sums['loss'] / sums['count']:.3f}, robust {_percent(sums, 'robust'):.1f} %, "
            f"{self._speed(bar):.0f} images/s",
            refresh=False,
        )
        bar.update(minibatches)

    def _speed(self, bar) -> float:
        rate = bar.format_dict["rate"] or bar.n / max(bar.format_dict["elapsed"], 1e-9)
        return rate * self.config.batch_size

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
        if config.optimizer == "entropy_sgd":
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
        if self.run.refresh is not None and self._evaluates(epoch):
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
                checkpoints.save(self.directory.selected, part, self.record["best"])
        self.record["rows"].append(row)
        self.record["sums"] = _no_sums()
        self._save(state)
        self.directory.write_metrics(self.record["rows"])
        self.say(_epoch_line(row, config.num_epochs))
        if self.stopped.is_set():
            self.say("interrupted and saved; give the same command again to go on")
            raise KeyboardInterrupt
        return state

    def _evaluates(self, epoch: int) -> bool:
        return (epoch + 1) % self.config.eval.every == 0 or epoch + 1 == self.config.num_epochs

    def _has_clean_pass(self) -> bool:
        return self.config.bn.clean_pass and self.config.optimizer == "sgd"

    def _seconds_before(self) -> float:
        rows = self.record["rows"]
        return rows[-1]["seconds"] if rows else 0.0

    def _evaluate(self, state) -> dict:
        images, labels = self.task.selection
        predictions = evaluation.predict_all(
            self.run.predict,
            state.params,
            state.batch_stats,
            build.selection_key(self.config),
            images,
            labels,
            batch_size=self.config.eval.batch_size,
        )
        return evaluation.summarize(predictions, labels, self.task.dataset.class_names)

    def _save(self, state) -> None:
        checkpoints.save(self.directory.last, state, self.record)

    def _catch_interrupt(self):
        """Ctrl-C asks the loop to save and stop; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            return lambda: None

        def handle(signum, frame):
            if self.stopped.is_set():
                raise KeyboardInterrupt
            self.stopped.set()
            self.say("interrupted: saving after the current update (Ctrl-C again: stop at once)")

        previous = signal.signal(signal.SIGINT, handle)
        return lambda: signal.signal(signal.SIGINT, previous)


def _final_report(config, directory, task, run, shapes) -> dict:
    parts = ("params", "batch_stats")
    templates = (shapes.params, shapes.batch_stats)
    results = {}
    for name, path in (("selected", directory.selected), ("last", directory.last)):
        params, batch_stats = checkpoints.load_part(path, parts, templates)
        predictions = evaluation.predict_all(
            run.predict,
            params,
            batch_stats,
            build.test_key(config),
            *task.test,
            batch_size=config.eval.batch_size,
        )
        results[name] = evaluation.summarize(
            predictions, task.test.labels, task.dataset.class_names
        )
    rows = directory.metrics()
    return {
        "dataset": config.dataset,
        "method": config.method,
        "scale": config.scale,
        "seed": config.seed,
        "model": config.model,
        "num_parameters": run.num_parameters,
        "threat": f"{config.threat.norm}, eps {config.threat.eps:.5g}",
        "attack": f"PGD-{config.eval.num_steps}",
        "precision": config.precision,
        "selection": config.selection,
        "selected_epoch": checkpoints.load_record(directory.selected)["epoch"],
        "last_epoch": config.num_epochs,
        "minibatch_gradients": rows[-1]["step"],
        "train_seconds": rows[-1]["seconds"],
        "test": results,
        "data": {
            "source": task.dataset.source,
            "verification": task.dataset.verification,
            "train": len(task.train.labels),
            "selection": len(task.selection.labels),
            "test": len(task.test.labels),
        },
        "environment": directory.environment()[-1],
    }


def _minibatch_seconds(config, run: build.Run, task: build.Task) -> float:
    """An estimate of a training minibatch from one timed input gradient of the first images.

    A minibatch is num_steps of them and a parameter gradient, which costs about one and a half.
    """
    state = run.make_state()
    rows = slice(0, min(config.batch_size, 64))
    images = training.to_float(jnp.asarray(task.train.images[rows]))
    labels = jnp.asarray(task.train.labels[rows])

    @jax.jit
    def gradient(params, batch_stats, images):
        def loss(points):
            logits, _ = run.apply_fn(params, batch_stats, points, True)
            return losses.cross_entropy(logits, labels).sum()

        return jax.grad(loss)(images)

    arguments = (state.params, state.batch_stats, images)
    jax.block_until_ready(gradient(*arguments))
    started = time.monotonic()
    jax.block_until_ready(gradient(*arguments))
    seconds = time.monotonic() - started
    return seconds * (config.threat.num_steps + 1.5) * config.batch_size / len(labels)


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


def _scaled_down(config, task) -> str:
    facts = [f"{len(task.train.labels):,} training and {len(task.test.labels):,} test images"]
    facts += [f"width {config.width}"] if config.width is not None else []
    facts += [f"{config.num_epochs} epochs", "not the paper's experiment"]
    return ", ".join(facts)


def _duration(seconds: float) -> str:
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
