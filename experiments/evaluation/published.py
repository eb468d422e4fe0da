"""RobustBench's models by name: their weights, the check before an attack, the figures beside it.

Everything that a file does not tell, the network, its normalization, threat and eps, is from
:mod:`jaxadv.models.zoo`. Before hours of attack the clean accuracy is compared with the published
one: weights of another model, or images that are prepared in another way, are found there.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxadv import intervals, models, training
from jaxadv.models import zoo

from .. import data
from ..run import accuracy
from ..run.directory import write_json
from . import weights as files
from .subjects import Subject

CHECKED = 1000  # images behind the check of the clean accuracy
_ALARM = 1e-4  # a smaller probability of the count stops
_DEFAULT = {"dataset": "cifar10", "threat": "linf"}  # RobustBench's own
_THREATS = {"linf": "Linf", "l2": "L2"}


class UnlikelyAccuracy(ValueError):
    """The clean accuracy is not the published one."""


def find(model: str, dataset: str | None = None, threat: str | None = None) -> zoo.Entry:
    """The entry of an id that loads.

    An id in several leaderboards is, as in RobustBench, that of CIFAR-10 and Linf unless
    ``dataset`` or ``threat`` say otherwise.

    Raises:
        ValueError: if there is no such entry, or if it does not load, with the reason.

    Example:
        >>> find("Wang2023Better_WRN-28-10", threat="l2").eps
        '0.5'
    """
    given = {"dataset": dataset, "threat": threat}
    places = [found for found in zoo.entries(**given) if found.id == model]
    for name, usual in _DEFAULT.items():
        if len(places) > 1 and given[name] is None and usual in {getattr(p, name) for p in places}:
            given[name] = usual
            places = [found for found in places if getattr(found, name) == usual]
    entry = zoo.entry(model, **given)
    reason = zoo.problem(entry)
    if reason is not None:
        raise ValueError(
            f"model={model!r} does not load: {reason}; python -m experiments.zoo lists those that "
            "do"
        )
    return entry


def load(
    entry: zoo.Entry, weights: str | Path, *, part: str | None = None, data_dir: Any = None
) -> Subject:
    """The network of an entry with the weights of a file, and the test images it is judged on.

    Args:
        entry: from :func:`find`.
        weights: a file or folder that :func:`jaxadv.models.load` reads, or
        ``hf://OWNER/NAME/FILE``.
        part: entry of the file that holds the weights, if it has several.
        data_dir: folder with the data sets.

    Raises:
        FileNotFoundError: if the weights or the data set are not there; before anything is loaded.
        ValueError: if the file does not match the network.
    """
    path = files.locate(weights)
    images, labels, class_names = _test_images(entry, data_dir)
    module = zoo.build(entry)
    try:
        variables = models.load(path, module, entry=part or entry.part)
    except ValueError as error:
        raise ValueError(f"weights={str(weights)!r} for {entry.id}: {error}") from error
    return Subject(
        module,
        variables["params"],
        variables.get("batch_stats", {}),
        images,
        labels,
        class_names,
        norm=entry.threat,
        eps=entry.radius,
        pgd={"step_size": entry.radius / 4, "num_steps": 20, "num_restarts": 1},
        batch_size=250,
        key=jax.random.key(0),
        folder=Path("runs") / "zoo" / f"{entry.dataset}-{entry.threat}" / entry.id,
        record={
            "model": entry.id,
            "weights": str(weights),
            "arch": entry.described,
            "dataset": entry.dataset,
            "mean": None if entry.mean is None else list(entry.mean),
            "std": None if entry.std is None else list(entry.std),
            "checkpoint": path.name,
            "evaluated_on": "test",
            "precision": "float32",
            "published": {
                "norm": entry.threat,
                "eps": entry.radius,
                "clean": entry.clean,
                "autoattack": entry.autoattack,
                "best_known": entry.best_known,
                "images": entry.images,
                "source": zoo.source()["package"],
            },
        },
    )


def _test_images(entry: zoo.Entry, data_dir: Any) -> tuple[Any, np.ndarray, tuple[str, ...]]:
    """Those that the published figures are of, with labels and names of the classes."""
    if entry.preprocessing is not None:
        return data.robustbench_images(entry.preprocessing, data_dir)
    loaded = data.load(entry.dataset, data_dir)
    return loaded.test_images, loaded.test_labels, loaded.class_names


def check_clean(subject: Subject, entry: zoo.Entry, *, batch_size: int | None = None) -> dict:
    """Compares the clean accuracy on the first images with the published one.

    The count of correct images is hypergeometric if the images are some of those behind the
    published accuracy. A probability below 1e-4 of a count as far is not sampling.

    Args:
        subject: from :func:`load`; at most its first 1,000 images are used.
        entry: its entry.
        batch_size: images per call.

    Returns:
        "images", "clean" (percent), "clean_interval", "published" and "probability".

    Raises:
        UnlikelyAccuracy: if the gap is beyond sampling error, with likely causes.
    """
    few = subject.first(CHECKED)
    number, size = len(few.labels), min(batch_size or subject.batch_size, len(few.labels))
    logits_fn, classes = few.logits_fn(), []
    guess = jax.jit(lambda fn, images: fn(training.to_float(images)).argmax(1))
    for start in range(0, number, size):
        rows = np.minimum(np.arange(start, start + size), number - 1)
        classes.append(np.asarray(guess(logits_fn, np.asarray(few.images[rows]))))
    correct = int(np.sum(np.concatenate(classes)[:number] == np.asarray(few.labels)))
    clean = 100 * correct / number
    probability = intervals.departure(
        correct, number, entry.clean / 100, population=max(entry.images, number)
    )
    if probability < _ALARM:
        raise UnlikelyAccuracy(_causes(entry, clean, number, probability))
    return {
        "images": number,
        "clean": clean,
        "clean_interval": accuracy.interval(clean, number),
        "published": entry.clean,
        "probability": probability,
    }


def _causes(entry: zoo.Entry, clean: float, number: int, probability: float) -> str:
    shown = accuracy.with_interval(clean, number)
    same = [other for other in zoo.entries() if other.id == entry.id and other != entry]
    others = "".join(f", or of {o.dataset} {o.threat} ({o.clean:.2f} %)" for o in same)
    scaling = "images as they are, in [0, 1]"
    if entry.mean is not None:
        scaling = f"mean {entry.mean} and std {entry.std}"
    elif "standardize" in entry.options:
        scaling = "every image's own mean and deviation"
    prepared = f"{entry.preprocessing}, " if entry.preprocessing else ""
    return (
        f"clean accuracy is {shown} % on the first {number:,} images, but {entry.clean:.2f} % is "
        f"published for {entry.id} ({entry.dataset} {entry.threat}); by sampling, a gap like this "
        f"has probability {max(probability, 1e-99):.0e} or less. Likely causes: normalization "
        f"(the registry has {scaling}), pre-processing ({prepared}{entry.side} pixels), or other "
        f"weights (of another model, epoch or entry of the file{others}). --check-clean=false goes "
        "on anyway"
    )


def usual_number(entry: zoo.Entry, available: int, number: int | None) -> int | None:
    """How many images to use: those asked for, or all, or as many as were published on."""
    if number is not None or available <= entry.images:
        return number
    return entry.images


def agreement(check: dict) -> str:
    """One line for a clean accuracy that passed the check."""
    shown = accuracy.with_interval(check["clean"], check["images"])
    return (
        f"clean accuracy on the first {check['images']:,} images: {shown} %, "
        f"{check['published']:.2f} % is published: no further apart than sampling explains"
    )


def outlook(entry: zoo.Entry, number: int) -> str:
    """What is published, and which interval a number of images leaves around it."""
    lines = [
        f"{entry.id}: {entry.dataset} {entry.threat}, eps {entry.eps}; published on "
        f"{entry.images:,} images: clean {entry.clean:.2f} %, AutoAttack {entry.autoattack:.2f} %"
        + _best_known(entry)
    ]
    others = [e for e in zoo.entries() if e.id == entry.id and e != entry]
    if others:
        places = ", ".join(f"{other.dataset} {other.threat}" for other in others)
        lines.append(f"the same id is also that of {places} (--dataset, --threat)")
    ends = accuracy.interval(entry.autoattack, number)
    if number < entry.images and ends is not None:
        lines.append(
            f"the first {number:,} images leave a 95 % interval of about [{ends[0]:.1f}, "
            f"{ends[1]:.1f}] around {entry.autoattack:.2f} %"
        )
    return "\n".join(lines)


def _best_known(entry: zoo.Entry) -> str:
    if entry.best_known == entry.autoattack:
        return ""
    return f" ({entry.best_known:.2f} % by a stronger attack)"


def compare(report: dict) -> str:
    """Measured beside published accuracies, for a report of AutoAttack by name."""
    published, number, attack = report["published"], report["images"], report["attack"]
    lines = [f"{'':<12}{'measured':>22}{'published':>11}{'difference':>12}"]
    for name, title in (("clean", "clean"), ("autoattack", "AutoAttack")):
        if name == "autoattack" and not is_published(attack, published):
            lines.append(
                f"{title:<12}published is {published[name]:.2f} for another ball, "
                f"{published['norm']}, eps {published['eps']:.5g}"
            )
            continue
        found = report["clean" if name == "clean" else "robust"]
        low, high = report["clean_interval" if name == "clean" else "robust_interval"]
        inside = "inside" if low <= published[name] <= high else "OUTSIDE"
        lines.append(
            f"{title:<12}{accuracy.with_interval(found, number):>22}{published[name]:>11.2f}"
            f"{found - published[name]:>+12.2f}  published is {inside} the interval"
        )
    return "\n".join(lines)


def is_published(attack: dict, published: dict) -> bool:
    """Whether an attack's ball is that of the published accuracy."""
    return all(attack[name] == published[name] for name in ("norm", "eps"))


def model_info(report: dict, entry: zoo.Entry) -> dict:
    """The fields of RobustBench's ``model_info`` file: accuracies as text in percent.

    Args:
        report: of AutoAttack on the entry's test images, in the entry's ball.
        entry: the entry.

    Returns:
        The fields. Those that the registry does not know are None, to be filled in by hand.
    """
    number = report["images"]
    few = None if number >= entry.images else f"Evaluated on the first {number:,} test images."
    return {
        "link": entry.link,
        "name": entry.paper,
        "authors": None,
        "additional_data": entry.extra_data,
        "number_forward_passes": 1,
        "dataset": entry.dataset,
        "venue": entry.venue or "N/A",
        "architecture": entry.described,
        "eps": entry.eps,
        "clean_acc": f"{report['clean']:.2f}",
        "reported": None,
        "autoattack_acc": f"{report['robust']:.2f}",
        "footnote": few,
        "unreliable": any(not check["passed"] for check in report["checks"]),
    }


def save_model_info(report: dict, entry: zoo.Entry, folder: Path) -> Path:
    """Writes :func:`model_info` where RobustBench's repository has it, below ``folder``."""
    number = report["images"]
    stem = entry.id if number >= entry.images else f"{entry.id}-first{number}"
    path = folder / "model_info" / entry.dataset / _THREATS[entry.threat] / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, model_info(report, entry))
    return path
