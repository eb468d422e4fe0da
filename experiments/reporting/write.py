"""The HTML page of a run: results, curves, confusion, adversarial examples, configuration.

The page is self-contained and loads no external resources.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxadv.attacks import AutoAttackResult

from .. import settings
from ..data import DataError, DataMissingError
from ..run import checkpoints
from ..run.accuracy import with_interval
from ..run.checkpoints import write_atomically
from ..run.directory import RunDirectory
from ..run.predictions import load_predictions, save_predictions
from ..run.task import Task, load_task
from ..settings import Config, label
from . import html as page
from . import images
from .curves import run_curves
from .words import duration, radius

FILE = "report.html"


def write(workdir: Path | str, *, task: Task | None = None, data_dir: Any = None) -> Path:
    """Writes the report of a run, finished or not, to its directory.

    Args:
        workdir: run directory.
        task: its data, if already loaded.
        data_dir: folder with the data sets otherwise.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: if ``workdir`` is not a run directory.
        ValueError: if something in it is damaged.
        OSError: if the page can't be written.

    Example:
        >>> import tempfile
        >>> from experiments import settings
        >>> from experiments.run.train import train_and_evaluate
        >>> config, workdir = settings.load_config("at", "smoke", "digits"), tempfile.mkdtemp()
        >>> _ = train_and_evaluate(config, workdir, verbose=False)
        >>> write(workdir).name
        'report.html'
    """
    directory = RunDirectory(workdir)
    config, report = directory.config(), directory.report(partial=True)
    try:
        parts = _parts(directory, config, report, task, data_dir)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{directory.path}: config.json, metrics.jsonl or report.json is damaged "
            f"({type(error).__name__}: {str(error)[:80]}); restore them from a copy"
        ) from error
    path = directory.path / FILE
    text = page.page(f"{label(config)} on {config.dataset}, seed {config.seed}", parts)
    write_atomically(path, text.encode())
    return path


def write_page(
    directory: RunDirectory,
    say: Callable[[str], object],
    *,
    task: Task | None = None,
    data_dir: Any = None,
) -> Path | None:
    """Writes the HTML report. If that fails, prints the reason; saved results are unaffected.

    Args:
        directory: run directory.
        say: called with the message.
        task: its data, if already loaded.
        data_dir: folder with the data sets otherwise.

    Returns:
        The path of the page, None if it could not be written.
    """
    try:
        return write(directory.path, task=task, data_dir=data_dir)
    except Exception as error:
        what = (str(error) or type(error).__name__).splitlines()[0]
        say(
            f"results are saved, but the HTML report could not be written ({what}); try "
            f"python -m experiments.report --workdir={directory.path}"
        )
        return None


def _parts(directory, config, report, task, data_dir) -> list[str]:
    parts = [_heading(config, directory, report)]
    if report is not None:
        parts.append(_results(report))
    parts.append(_curves(config, directory))
    if report is not None:
        parts.append(_classes(report))
        parts += _images(directory, config, report, task, data_dir)
        parts.append(_autoattack(report))
    return [*parts, _facts(config, directory, report), _files(directory)]


def _heading(config: Config, directory: RunDirectory, report: dict | None) -> str:
    done = len(directory.metrics())
    state = "finished" if report else f"not finished: {done} of {config.num_epochs} epochs"
    norm = page.NORMS.get(config.threat.norm or "", str(config.threat.norm))
    threat = f"{norm} {radius(config.eval.eps)}"
    return (
        f"<h1>{page.escape(label(config))} on {page.escape(config.dataset)}</h1>"
        f"<p>{page.escape(config.model)}, scale {page.escape(config.scale)}, seed "
        f"{page.escape(config.seed)}, {page.escape(threat)}, {page.escape(config.precision)}; "
        f"{page.escape(state)}.</p>"
    )


def _results(report: dict) -> str:
    strong = report.get("autoattack", {})
    columns = {"clean": "clean", "robust": report["attack"]}
    head = ["accuracy, % [95 %]", "epoch", *columns.values(), "AutoAttack", "images"]
    rows = []
    for name in ("selected", "last"):
        found = report["test"][name]
        judged = strong.get(name, {})
        cells = [with_interval(found[column], found["images"]) for column in columns]
        images_judged = judged.get("images", found["images"])
        note = "" if images_judged == found["images"] else f" ({images_judged} images)"
        rows.append(
            [
                f"{name} checkpoint",
                report[f"{name}_epoch"],
                *cells,
                with_interval(judged["robust"], images_judged) + note if judged else "not run",
                found["images"],
            ]
        )
    return (
        f"<h2>Test images</h2>{page.table(head, rows)}"
        '<p class="note">Checkpoint selected on '
        f"{page.escape(report['selection'])} images; {report['minibatch_gradients']:,} minibatch "
        f"gradients in {page.escape(duration(report['train_seconds']))} of training; "
        f"{report['num_parameters']:,} parameters. In brackets, the 95 % interval (Wilson) of the "
        "accuracy on images like these; it does not cover other training seeds.</p>"
    )


def _curves(config: Config, directory: RunDirectory) -> str:
    rows = directory.metrics()
    if not rows:
        return "<h2>Curves</h2><p>No epoch has finished yet.</p>"
    selected = None
    if directory.selected.is_file():
        selected = checkpoints.load_record(directory.selected)["epoch"]
    picture = run_curves(rows, evaluated_on=config.selection, selected_epoch=selected)
    return (
        f"<h2>Curves</h2>{page.image(picture, 'accuracy and training loss against epochs')}"
        f'<p class="note">Robust accuracy: PGD-{page.escape(config.eval.num_steps)} on '
        f"{page.escape(config.selection)} images, the training attack "
        f"({page.escape(config.threat.num_steps)} steps) on training images.</p>"
    )


def _classes(report: dict) -> str:
    selected = report["test"]["selected"]["classes"]
    strong = report.get("autoattack", {}).get("selected", {}).get("classes")
    head = ["class", "images", "clean", report["attack"]] + (["AutoAttack"] if strong else [])
    rows = []
    for number, found in enumerate(selected):
        row = [
            found["class"],
            found["images"],
            *(page.percent(found[name], found["images"]) for name in ("clean", "robust")),
        ]
        rows.append(row + _judged(strong, number))
    content = page.table(head, rows, "accuracy in %, selected checkpoint, test images")
    if len(rows) > 20:
        content = page.details(f"{len(rows)} classes", content)
    return f"<h2>Accuracy by class</h2>{content}"


def _judged(classes: list[dict] | None, number: int) -> list[str]:
    if not classes:
        return []
    return [page.percent(classes[number]["robust"], classes[number]["images"])]


def _images(directory, config, report, task, data_dir) -> list[str]:
    """Confusion and examples; without the data set, only what does not need it."""
    names = [found["class"] for found in report["test"]["selected"]["classes"]]
    norm = page.NORMS.get(config.threat.norm or "", str(config.threat.norm))
    kept, (strong, damage) = load_predictions(directory), _strong(directory)
    model, absent = None, ""
    try:
        task = task or load_task(config, data_dir)
        model = images.load_model(directory, config, task)
    except (DataMissingError, DataError) as error:
        absent = (
            f'<p class="note">Not shown because the data set is missing: {page.escape(error)}</p>'
        )
    if kept is None and model is not None:
        kept = images.predict(model), model.task.test.labels
        save_predictions(directory, *kept)
    tables = []
    if kept is not None:
        (clean, robust), labels = kept
        tables = [("clean", labels, clean), (report["attack"], labels, robust)]
    if strong is not None:
        tables.append(("AutoAttack", strong.labels, strong.predictions))
    confusions = [
        page.confusion(
            images.confusion(truth, np.asarray(predicted), len(names)),
            names,
            f"{title}, {len(truth):,} images: % of the true class (rows) predicted as (columns)",
        )
        for title, truth, predicted in tables
    ]
    parts = ["<h2>Confusion by class</h2>", damage]
    parts.append(f'<div class="side">{"".join(confusions)}</div>')
    parts.append(absent if kept is None else "")
    parts.append("<h2>Adversarial examples</h2>")
    if model is None or kept is None:
        return [*parts, absent]
    if strong is not None:
        robust = np.asarray(kept[0].adversarial) == kept[1]
        found = images.autoattack_examples(strong, model.task.test.images, robust)
        note = (
            f'<p class="note">First those that {page.escape(report["attack"])} did not break.</p>'
        )
        parts += ["<h3>AutoAttack</h3>", note, page.examples(found, names, norm)]
    shown = images.examples(model, kept[0])
    return [*parts, f"<h3>{page.escape(report['attack'])}</h3>", page.examples(shown, names, norm)]


def _strong(directory: RunDirectory) -> tuple[AutoAttackResult | None, str]:
    """AutoAttack's images of the selected checkpoint, and what is wrong with them."""
    path = directory.autoattack_file("selected", partial=True).with_suffix(".npz")
    if not path.is_file():
        return None, ""
    try:
        return AutoAttackResult.load(path), ""
    except ValueError as error:
        return None, f'<p class="note">{page.escape(error)}</p>'


def _autoattack(report: dict) -> str:
    parts = []
    for name, found in report.get("autoattack", {}).items():
        if "accuracy" not in found:
            continue
        number, costs = found["images"], found.get("evaluations", {})
        rows = [
            (attack, with_interval(value, number), found.get("broken_by", {}).get(attack, ""),
             *(f"{costs[attack][kind]:,}" if attack in costs else ""
               for kind in ("forward", "backward")))
            for attack, value in found["accuracy"].items()
        ]  # fmt: skip
        caption = f"{name} checkpoint, {number} images"
        head = ("after", "robust accuracy, % [95 %]", "broken", "forward passes", "backward passes")
        parts.append(page.table(head, rows, caption))
        parts += [f"<p>{page.escape(text)}</p>" for text in found.get("warnings", [])]
    return f"<h2>AutoAttack</h2>{''.join(parts)}" if parts else ""


def _files(directory: RunDirectory) -> str:
    """Links to what lies beside the page."""
    files = sorted(
        file for file in directory.path.iterdir()
        if file.is_file() and file.name not in (FILE, "lock") and not file.name.startswith(".")
    )  # fmt: skip
    items = "".join(
        f"<li>{page.link(file.name, file.name)} ({page.size(file.stat().st_size)})</li>"
        for file in files
    )
    return f'<h2>Files</h2><ul class="files">{items}</ul>'


def _facts(config: Config, directory: RunDirectory, report: dict | None) -> str:
    starts = directory.environment()
    parts = ["<h2>Data, configuration, environment</h2>"]
    if report is not None:
        parts.append(page.facts(report["data"].items()))
    parts.append(page.details("Resolved configuration", page.facts(settings.flatten(config))))
    for number, start in enumerate(starts, 1):
        pairs = [
            (name, ", ".join(f"{n} {v}" for n, v in value.items()) if name == "packages" else value)
            for name, value in start.items()
        ]
        parts.append(page.details(f"Start {number} of {len(starts)}", page.facts(pairs)))
    return "".join(parts)
