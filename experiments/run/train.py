"""Trains a run resumably and evaluates it at the end."""

from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from ..reporting.write import write_page
from ..settings import Config
from . import accuracy, build, checkpoints, devices, environment
from .directory import RunDirectory, write_json
from .loop import Trainer
from .predictions import save_predictions
from .task import Stream, key_for, load_task


def train_and_evaluate(
    config: Config, workdir: Path | str, *, data_dir: Any = None, verbose: bool = True
) -> dict:
    """Trains as configured, resuming an earlier call, and reports on the test set.

    Args:
        config: resolved by :func:`experiments.settings.resolve`.
        workdir: run directory. For a finished run, returns its report without training.
        data_dir: folder with the data sets.
        verbose: whether to print progress.

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
    say = tqdm.write if verbose else lambda text: None
    task = load_task(config, data_dir)
    run = build.build(config, task, devices.data_sharding(config.batch_size))
    shapes = jax.eval_shape(run.make_state)
    state_bytes = sum(leaf.size * 4 for leaf in jax.tree.leaves(shapes))
    report = directory.report_of(config)
    if report is not None:
        say(f"{directory.path} is finished; its report:")
    else:
        with directory.held(config, needed_bytes=5 * state_bytes):
            Trainer(config, directory, task, run, shapes, verbose, say).train()
            report = _final_report(config, directory, task, run, shapes)
            write_json(directory.report_file, report)
            write_page(directory, say, task=task)
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


def _final_report(config, directory, task, run, shapes) -> dict:
    parts = ("params", "batch_stats")
    templates = (shapes.params, shapes.batch_stats)
    results = {}
    for name, path in (("selected", directory.selected), ("last", directory.last)):
        params, batch_stats = checkpoints.load_part(path, parts, templates)
        predictions = accuracy.predict_all(
            run.predict,
            params,
            batch_stats,
            key_for(config, Stream.TEST),
            *task.test,
            batch_size=config.eval.batch_size,
        )
        results[name] = accuracy.summarize(predictions, task.test.labels, task.dataset.class_names)
        if name == "selected":
            save_predictions(directory, predictions, task.test.labels)
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
