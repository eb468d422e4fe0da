"""Accuracies of a model on a set of images: computing, formatting and comparing them."""

import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy  # loads its parts when they are used
from tqdm import tqdm

from jaxadv import intervals
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
        A JSON-serializable dictionary, with the 95 % intervals "clean_interval" and
        "robust_interval" of each; both are None for a class without images.

    Example:
        >>> predictions = Predictions(np.array([0, 1]), np.array([1, 1]))
        >>> summarize(predictions, np.array([0, 1]), ("a", "b"))["robust"]
        50.0
    """

    def percent(correct):
        return float(100 * np.mean(correct)) if len(correct) else None

    clean, robust = (np.asarray(part) == labels for part in predictions)

    def accuracies(rows):
        images = int(np.sum(rows))
        found = {"clean": percent(clean[rows]), "robust": percent(robust[rows])}
        ends = {f"{name}_interval": interval(value, images) for name, value in found.items()}
        return {"images": images, **found, **ends}

    result: dict[str, Any] = accuracies(np.full(len(labels), True))
    classes = enumerate(class_names)
    result["classes"] = [{"class": name} | accuracies(labels == index) for index, name in classes]
    return result


def interval(percent: float | None, images: int) -> list[float] | None:
    """The 95 % Wilson interval of an accuracy, in percent; None if there are no images.

    Example:
        >>> [round(end, 1) for end in interval(67.0, 1000)]
        [64.0, 69.8]
    """
    if percent is None or not images:
        return None
    return [100 * end for end in intervals.wilson(round(percent / 100 * images), images)]


def with_interval(percent: float | None, images: int, digits: int = 2) -> str:
    """An accuracy in percent with its 95 % interval; "" if there is none.

    Example:
        >>> with_interval(67.31, 10_000)
        '67.31 [66.4, 68.2]'
    """
    ends = interval(percent, images)
    return "" if ends is None else f"{percent:.{digits}f} [{ends[0]:.1f}, {ends[1]:.1f}]"


def format_table(results: dict[str, dict], attack: str) -> str:
    """Formats several summaries side by side, one row per class unless there are hundreds.

    Args:
        results: summaries by title, all with the same classes.
        attack: name of the attack for the heading.
    """
    cell = 21  # of the longest accuracy and its interval
    width = max(*(len(title) for title in results), 2 * cell + 2, cell + len(attack) + 2) + 2
    head = f"{'':<14}{'images':>7}" + "".join(f"{title:>{width}}" for title in results)
    units = f"{'':<21}" + "".join(
        f"{'clean':>{width - cell - 2}}{attack:>{cell + 2}}" for _ in results
    )

    def row(name, records):
        line = f"{name:<14}{records[0]['images']:>7}"
        for record in records:
            clean, robust = (
                with_interval(record[n], record["images"]) or "-" for n in ("clean", "robust")
            )
            line += f"{clean:>{width - cell - 2}}{robust:>{cell + 2}}"
        return line

    classes = zip(*(result["classes"] for result in results.values()), strict=True)
    lines = [head, units, row("all", list(results.values()))]
    if len(results[next(iter(results))]["classes"]) <= _MAX_CLASSES:
        lines += [row(records[0]["class"], records) for records in classes]
    return "\n".join(lines)


def mcnemar(correct: np.ndarray, other: np.ndarray) -> float:
    """The p-value of McNemar's exact test that two models have the same accuracy.

    Only images on which they differ count: how many of them one alone gets right is binomial with
    probability 1/2.

    Args:
        correct: whether one model classifies each image correctly, booleans of shape (N,).
        other: the same of the other model.

    Example:
        >>> flags = np.array([1, 1, 1, 1, 1, 1, 0], bool)
        >>> mcnemar(flags, np.zeros(7, bool))  # 2 / 2^6
        0.03125
    """
    ahead, behind = int((correct & ~other).sum()), int((other & ~correct).sum())
    if ahead + behind == 0:
        return 1.0
    return float(scipy.stats.binomtest(ahead, ahead + behind).pvalue)
