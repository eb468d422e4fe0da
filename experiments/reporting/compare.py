"""A page that compares runs and evaluated models: accuracies, curves, classes, differences."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import settings
from ..run.accuracy import mcnemar, with_interval
from ..run.checkpoints import write_atomically
from ..run.directory import RunDirectory
from ..run.predictions import load_predictions
from ..settings import Config, label
from . import html as page
from . import passes
from .curves import compared_curves
from .style import COLORS
from .words import duration
from .write import FILE

HEAD = ("", "data", "seed", "epochs", "clean, % [95 %]", "PGD", "AutoAttack", "images", "training")


class Entry(NamedTuple):
    """One column of the comparison.

    Attributes:
        name: short and unique on the page.
        path: run directory, or report of an evaluation.
        config: the run's configuration, None for a report.
        report: final report of a run (None while it trains), or the evaluation's.
        rows: the run's metrics, with passes.
    """

    name: str
    path: Path
    config: Config | None
    report: dict | None
    rows: list[dict]


def compare(paths: Sequence[Path | str], output: Path | str) -> Path:
    """Writes a page that compares runs and models.

    Args:
        paths: two or more: run directories, finished or not, or JSON reports that
            ``python -m experiments.evaluate`` wrote.
        output: the page to write.

    Returns:
        Its path.

    Raises:
        FileNotFoundError: if one is neither.
        ValueError: if there are too few or too many, or something in them is damaged.
    """
    if not 2 <= len(paths) <= len(COLORS):
        raise ValueError(f"{len(paths)} runs to compare; a page takes 2 to {len(COLORS)}")
    entries = _entries([Path(path).expanduser() for path in paths])
    output = Path(output).expanduser()
    try:
        parts = [
            f"<h1>Comparison of {len(entries)} runs</h1>",
            _results(entries, output),
            _curves(entries),
            _agreement(entries),
            _classes(entries),
            _differences(entries),
        ]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"a report or metrics.jsonl of {', '.join(str(e.path) for e in entries)} is damaged "
            f"({type(error).__name__}: {str(error)[:80]}); restore it from a copy"
        ) from error
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page.page(f"Comparison of {len(entries)} runs", parts).encode())
    return output


def _entries(paths: list[Path]) -> list[Entry]:
    found = [_evaluation(path) if path.suffix == ".json" else _run(path) for path in paths]
    names = [entry.name for entry in found]
    for number, entry in enumerate(found):
        if names.count(names[number]) > 1 and entry.config is not None:
            found[number] = entry._replace(name=f"{entry.name}, seed {entry.config.seed}")
    names = [entry.name for entry in found]
    return [
        e._replace(name=f"{e.name} ({number})") if names.count(e.name) > 1 else e
        for number, e in enumerate(found, 1)
    ]


def _run(path: Path) -> Entry:
    directory = RunDirectory(path)
    config = directory.config()
    rows = passes.counted(config, directory.metrics())
    report = directory.report(partial=True)
    return Entry(label(config), directory.path, config, report, rows)


def _evaluation(path: Path) -> Entry:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a run directory or a report in JSON")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        name = report.get("arch") or report["method"]
        attack = report["attack"]["name"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{path} is not a report of python -m experiments.evaluate; evaluate with --output"
        ) from None
    return Entry(f"{name}, {attack}", path.resolve(), None, report, [])


def _results(entries: list[Entry], output: Path) -> str:
    rows, attacks = [], set()
    for entry in entries:
        rows.append(_run_row(entry, output, attacks) if entry.config else _model_row(entry, output))
    head = [", ".join(sorted(attacks)) if cell == "PGD" and attacks else cell for cell in HEAD]
    note = (
        "Test images, selected checkpoint. In brackets, the 95 % interval (Wilson) of the accuracy "
        "on images like these; it does not cover other training seeds."
    )
    return f'{page.table(head, rows)}<p class="note">{note}</p>'


def _run_row(entry: Entry, output: Path, attacks: set[str]) -> list[Any]:
    config, report = entry.config, entry.report
    assert config is not None
    target = entry.path / FILE
    name = _link(target, output, entry.name) if target.is_file() else entry.name
    done = f"{len(entry.rows)} of {config.num_epochs}"
    start = [name, config.dataset, config.seed, done]
    if report is None:
        return [*start, "", "", "", "", "not finished"]
    attacks.add(report["attack"])
    test, strong = report["test"]["selected"], report.get("autoattack", {}).get("selected")
    judged = "not run" if strong is None else with_interval(strong["robust"], strong["images"])
    if strong is not None and strong["images"] != test["images"]:
        judged += f" ({strong['images']} images)"
    cells = [with_interval(test[name], test["images"]) for name in ("clean", "robust")]
    return [*start, *cells, judged, test["images"], duration(report["train_seconds"])]


def _model_row(entry: Entry, output: Path) -> list[Any]:
    report: Any = entry.report
    clean, robust = (with_interval(report[n], report["images"]) for n in ("clean", "robust"))
    attacked = ["", robust] if report["attack"]["name"] == "autoattack" else [robust, ""]
    name = _link(entry.path, output, entry.name)
    return [name, report["dataset"], "", "", clean, *attacked, report["images"], ""]


def _link(target: Path, output: Path, text: str) -> page.Markup:
    return page.link(os.path.relpath(target, output.resolve().parent), text)


def _curves(entries: list[Entry]) -> str:
    rows = {entry.name: entry.rows for entry in entries if entry.rows}
    if not rows:
        return ""
    held_out = sorted({entry.config.selection for entry in entries if entry.config})
    drawn = compared_curves(rows, evaluated_on=" or ".join(held_out))
    picture = page.image(drawn, "robust accuracy of the runs against epochs")
    return f"<h2>Curves</h2>{picture}"


def _agreement(entries: list[Entry]) -> str:
    """What each run gets right that another does not, where both saw the same test images."""
    kept = {}
    for entry in entries:
        if entry.config is not None and (found := load_predictions(RunDirectory(entry.path))):
            kept[entry.name] = (entry.config.dataset, found[1], found[0].adversarial == found[1])
    rows, tests = [], []
    for one, (dataset, labels, right) in kept.items():
        cells = []
        for other, (its_dataset, its_labels, its_right) in kept.items():
            same = dataset == its_dataset and np.array_equal(labels, its_labels)
            alone = int(np.sum(right & ~its_right)) if same else ""
            cells.append("" if one == other else alone)
            if same and list(kept).index(one) < list(kept).index(other):
                tests.append(f"{one} and {other}: p = {mcnemar(right, its_right):.1g}")
        rows.append([one, *cells])
    if len(rows) < 2:
        return ""
    caption = "test images classified correctly under PGD by the run of the row, not of the column"
    note = (
        f"McNemar's exact test, {'; '.join(tests)}. It compares these networks on images like "
        "these, not the methods that trained them."
    )
    table = page.table(["", *kept], rows, caption)
    test = f'<p class="note">{page.escape(note)}</p>' if tests else ""
    return f"<h2>Image by image</h2>{table}{test}"


def _classes(entries: list[Entry]) -> str:
    tables: dict[str, Any] = {}
    for entry in entries:
        report = entry.report
        if report is not None:
            whole = report if entry.config is None else report["test"]["selected"]
            tables[entry.name] = {
                c["class"]: with_interval(c["robust"], c["images"]) for c in whole["classes"]
            }
    classes = dict.fromkeys(name for table in tables.values() for name in table)
    rows = [[name, *(table.get(name, "") for table in tables.values())] for name in classes]
    if not rows:
        return ""
    caption = "robust accuracy in %; runs: under PGD; models: under their attack"
    content = page.table(["class", *tables], rows, caption)
    content = page.details(f"{len(rows)} classes", content) if len(rows) > 20 else content
    return f"<h2>Accuracy by class</h2>{content}"


def _differences(entries: list[Entry]) -> str:
    """The configuration fields in which the runs differ."""
    fields = {e.name: dict(settings.flatten(e.config)) for e in entries if e.config is not None}
    if len(fields) < 2:
        return ""
    names = dict.fromkeys(name for found in fields.values() for name in found)
    rows = []
    for name in names:
        values = [str(found.get(name, "")) for found in fields.values()]
        if len(set(values)) > 1:
            rows.append([name, *values])
    if not rows:
        return "<h2>Configuration</h2><p>The runs have the same configuration.</p>"
    return f"<h2>Configuration: what differs</h2>{page.table(['field', *fields], rows)}"
