"""Trains a run resumably and evaluates it at the end."""

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from jaxadv import training

from ..reporting.write import write_page
from ..settings import Config
from . import accuracy, build, checkpoints, devices, environment, hosts, metrics
from .directory import RunDirectory, write_json
from .loop import Trainer
from .predictions import save_predictions
from .task import Stream, key_for, load_task


def train_and_evaluate(
    config: Config,
    workdir: Path | str,
    *,
    data_dir: Any = None,
    verbose: bool = True,
    on_metrics: metrics.OnMetrics | None = None,
) -> dict:
    """Trains as configured, resuming an earlier call, and reports on the test set.

    Args:
        config: resolved by :func:`experiments.settings.resolve`.
        workdir: run directory. For a finished run, returns its report without training.
        data_dir: folder with the data sets.
        verbose: whether to print progress.
        on_metrics: called in process 0 with a dictionary after each epoch, once its checkpoint is
            saved ("epoch", "step", "train_loss", "selection_robust", ..., None where there is no
            value), and at the end with the last "step" and the accuracies on the test set
            ("test_selected_robust", ...). A resumed run goes on with its next epoch.

    Returns:
        The report: test accuracies of the selected and the last checkpoint, and how they were
        obtained; also saved as ``workdir/report.json``.

    Raises:
        ValueError: if the configuration is invalid or does not match the directory.
        OSError: if the disk is full or read-only; the last good checkpoint survives.
        NonFiniteLossError: if the loss is not finite; the last good checkpoint survives.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.

    Example:
        >>> import tempfile
        >>> from experiments import settings
        >>> config = settings.load_config("at", "smoke", "digits")
        >>> report = train_and_evaluate(config, tempfile.mkdtemp(), verbose=False)
        >>> sorted(report["test"])
        ['last', 'selected']
    """
    directory = RunDirectory(workdir)
    say = tqdm.write if verbose and hosts.is_writer() else lambda text: None
    task = load_task(config, data_dir)
    run = build.build(config, task, devices.data_sharding(config.batch_size))
    state_bytes = sum(leaf.size * 4 for leaf in jax.tree.leaves(run.shapes))
    hosts.check_equal(directory.digest(config), "the configuration")
    report = _from_writer(lambda: directory.report_of(config))
    if report is not None:
        say(f"{directory.path} is finished; its report:")
    else:
        with contextlib.ExitStack() as held:
            _from_writer(lambda: held.enter_context(directory.held(config, 5 * state_bytes)))
            Trainer(config, directory, task, run, verbose, say, on_metrics).train()
            predictions = _final_predictions(config, directory, task, run)
            report = _from_writer(lambda: _finish(config, directory, task, run, predictions, say))
        if on_metrics is not None and report is not None and hosts.is_writer():
            tested = {
                f"test_{checkpoint}_{name}": found[name]
                for checkpoint, found in report["test"].items()
                for name in ("clean", "robust")
            }
            on_metrics({"step": report["minibatch_gradients"]} | tested)
    assert report is not None
    say(describe_report(report))
    return report


def describe_report(report: dict) -> str:
    """Formats the final table of a run."""
    selected = f"selected (epoch {report['selected_epoch']})"
    last = f"last (epoch {report['last_epoch']})"
    table = accuracy.format_table(
        {selected: report["test"]["selected"], last: report["test"]["last"]}, report["attack"]
    )
    return (
        f"Accuracy in % on {report['test']['last']['images']} test images of {report['dataset']}, "
        f"{report['method']}, scale {report['scale']}\n"
        f"{report['threat']}; checkpoint selected on {report['selection']} images\n{table}"
    )


def _from_writer(read: Callable[[], dict | None]) -> dict | None:
    """The JSON value of process 0 in every process."""
    data = hosts.from_writer(lambda: json.dumps(read()).encode())
    return None if data is None else json.loads(data)


def _final_predictions(config, directory, task, run) -> dict[str, training.Predictions]:
    """Predictions for the test images by checkpoint, computed by all processes together."""
    parts = ("params", "batch_stats")
    templates = (run.shapes.params, run.shapes.batch_stats)
    found = {}
    for name, path in (("selected", directory.selected), ("last", directory.last)):
        data = hosts.from_writer(functools.partial(checkpoints.read_bytes, path))
        params, batch_stats = checkpoints.load_part(path, parts, templates, data)
        found[name] = run.predict(params, batch_stats, key_for(config, Stream.TEST), *task.test)
    return found


def _finish(config, directory, task, run, predictions, say) -> dict:
    """Writes the report, its page and the predictions of a finished run."""
    save_predictions(directory, predictions["selected"], task.test.labels)
    report = _report(config, directory, task, run, predictions)
    write_json(directory.report_file, report)
    write_page(directory, say, task=task)
    return report


def _report(config, directory, task, run, predictions) -> dict:
    results = {
        name: accuracy.summarize(found, task.test.labels, task.dataset.class_names)
        for name, found in predictions.items()
    }
    rows = directory.metrics()
    best = max(
        (row for row in rows if row["selection_robust"] is not None),
        key=lambda row: row["selection_robust"],
    )
    directory.check_selected(best["epoch"], config, print)
    return {
        "dataset": config.dataset,
        "method": config.method,
        "scale": config.scale,
        "seed": config.seed,
        "model": config.model,
        "num_parameters": run.num_parameters,
        "threat": f"{config.threat.norm}, eps {config.eval.eps:.5g}",
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
        "environment": environment.describe(),
    }
