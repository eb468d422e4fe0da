"""Accuracies of a model on a set of images: computing, formatting and comparing them."""

import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxadv.training import Predictions

from ..data import Rows
from . import devices, hosts
from .patience import wait
from .signals import Stopped

_MAX_CLASSES = 100  # rows of a table


def predict_all(
    predict: Callable[..., Predictions],
    params: Any,
    batch_stats: Any,
    key: jax.Array,
    images: np.ndarray | Rows,
    labels: np.ndarray,
    *,
    batch_size: int,
    description: str | None = None,
) -> Predictions:
    """Predicts a whole set in batches over all devices; the batch size does not change the result.

    Args:
        predict: from :func:`jaxadv.training.make_predict`.
        params: parameters.
        batch_stats: running statistics.
        key: typed key of the attack.
        images: uint8 of shape (N, H, W, C).
        labels: int32 of shape (N,).
        batch_size: images per compiled call, rounded up to a multiple of the devices; the last
        batch is padded to it.
        description: progress bar label; None for no bar.

    Returns:
        Predicted classes, NumPy arrays of shape (N,).
    """
    split = devices.data_sharding(jax.device_count())
    params, batch_stats = hosts.place((params, batch_stats), devices.everywhere(split))
    batch_size = min(batch_size, len(images))
    batch_size += -batch_size % jax.device_count()
    parts = []
    starts = range(0, len(images), batch_size)
    silent = description is None or not sys.stderr.isatty()
    for start in tqdm(starts, description, disable=silent, leave=False, unit="batch"):
        rows = np.arange(start, start + batch_size)
        inside = np.minimum(rows, len(images) - 1)
        if hosts.stopping():
            raise Stopped(signal.SIGTERM, computing=True)
        arrays = hosts.place((images[inside], labels[inside], rows), split)
        batch = hosts.fetch(wait(predict(params, batch_stats, key, *arrays)))
        keep = rows < len(images)
        parts.append(Predictions(*(part[keep] for part in batch)))
    return Predictions(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def summarize(predictions: Predictions, labels: np.ndarray, class_names: tuple[str, ...]) -> dict:
    """Clean and robust accuracy, overall and by class, in percent.

    Args:
        predictions: of shape (N,) each.
        labels: of shape (N,).
        class_names: one name per class.

    Returns:
        A JSON-serializable dictionary; a class without images has accuracy None.

    Example:
        >>> predictions = Predictions(np.array([0, 1]), np.array([1, 1]))
        >>> summarize(predictions, np.array([0, 1]), ("a", "b"))["robust"]
        50.0
    """

    def percent(correct):
        return float(100 * np.mean(correct)) if len(correct) else None

    clean, robust = (np.asarray(part) == labels for part in predictions)
    classes = [
        {
            "class": name,
            "images": int(np.sum(labels == index)),
            "clean": percent(clean[labels == index]),
            "robust": percent(robust[labels == index]),
        }
        for index, name in enumerate(class_names)
    ]
    return {
        "images": len(labels),
        "clean": percent(clean),
        "robust": percent(robust),
        "classes": classes,
    }


def format_table(results: dict[str, dict], attack: str) -> str:
    """Formats several summaries side by side, one row per class unless there are hundreds.

    Args:
        results: summaries by title, all with the same classes.
        attack: name of the attack for the heading.
    """
    width = max(len(title) for title in results) + 2
    width = max(width, len("clean") + len(attack) + 5)
    cell = lambda value: "     -" if value is None else f"{value:6.2f}"
    head = f"{'':<14}{'images':>7}" + "".join(f"{title:>{width}}" for title in results)
    units = f"{'':<21}" + "".join(f"{'clean  ' + attack:>{width}}" for _ in results)

    def row(name, records):
        cells = (f"{cell(r['clean'])}  {cell(r['robust']):>{len(attack)}}" for r in records)
        return f"{name:<14}{records[0]['images']:>7}" + "".join(f"{c:>{width}}" for c in cells)

    classes = zip(*(result["classes"] for result in results.values()), strict=True)
    lines = [head, units, row("all", list(results.values()))]
    if len(results[next(iter(results))]["classes"]) <= _MAX_CLASSES:
        lines += [row(records[0]["class"], records) for records in classes]
    return "\n".join(lines)
