"""The entries of the registry, which are read once."""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from .._layers import unknown_name

DATASETS = ("cifar10", "cifar100", "imagenet")
THREATS = ("linf", "l2")
_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of a leaderboard, as published.

    Attributes:
      id: RobustBench's; not unique among data sets and threats.
      dataset: "cifar10", "cifar100" or "imagenet".
      threat: "linf" or "l2".
      eps: the radius as published, "8/255"; `radius` is the number, for images in [0, 1].
      images: number of test images behind the accuracies: 10,000, or 5,000 of ImageNet.
      clean: clean accuracy in percent.
      autoattack: AutoAttack's robust accuracy in percent.
      best_known: the lowest known robust accuracy in percent, from a stronger attack where there is
        one.
      extra_data: whether trained with additional data; None where not published.
      paper: title.
      link: of the paper.
      venue: where it appeared, or None.
      described: the architecture in the leaderboard's words.
      network: name of RobustBench's class.
      architecture: name for `jaxadv.models.build`, or None.
      options: its options.
      mean: per channel, to subtract from images; None for images as they are.
      std: per channel, to divide by.
      preprocessing: how ImageNet's pictures become images: "BicubicRes256Crop224" scales the
        shorter side to 256 and takes the central 224; None for CIFAR.
      side: height and width of the images.
      part: entry of the public file that holds the weights, or None if it has only one.
      parameters: number of what training learns.
      tensors: `fingerprint` of the names and shapes in the public file.
    """

    id: str
    dataset: Literal["cifar10", "cifar100", "imagenet"]
    threat: Literal["linf", "l2"]
    eps: str
    images: int
    clean: float
    autoattack: float
    best_known: float
    extra_data: bool | None
    paper: str
    link: str
    venue: str | None
    described: str
    network: str
    architecture: str | None
    options: Mapping[str, Any]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    preprocessing: str | None
    side: int
    part: str | None
    parameters: int
    tensors: str

    @property
    def num_classes(self) -> int:
        """Classes of the data set."""
        return _CLASSES[self.dataset]

    @property
    def radius(self) -> float:
        """The radius as a number, for images in [0, 1]."""
        numerator, _, denominator = self.eps.partition("/")
        return float(numerator) / float(denominator or 1)


@functools.cache
def _registry() -> tuple[dict[str, str], tuple[Entry, ...]]:
    file = importlib.resources.files("jaxadv.models.zoo") / "registry.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    return content["source"], tuple(map(_entry, content["entries"]))


def _entry(fields: dict[str, Any]) -> Entry:
    read_only = lambda value: tuple(value) if isinstance(value, list) else value
    options = {name: read_only(value) for name, value in fields["options"].items()}
    fields = fields | {"options": MappingProxyType(options)}
    for name in ("mean", "std"):
        fields[name] = None if fields[name] is None else tuple(fields[name])
    return Entry(**fields)


def source() -> dict[str, str]:
    """Where the registry is from: the package with its version, its files, the command.

    Example:
      >>> source()["package"]
      'robustbench 1.1.1'
    """
    return dict(_registry()[0])


def entries(
    *, dataset: str | None = None, threat: str | None = None, architecture: str | None = None
) -> tuple[Entry, ...]:
    """Entries of the registry, in the order of the leaderboards: the most robust first.

    Args:
      dataset: only of this data set; one of `DATASETS`.
      threat: only of this threat; one of `THREATS`.
      architecture: only with this text in the architecture, as the leaderboard or as
        `jaxadv.models.build` names it, whatever the case.

    Returns:
      The entries.

    Raises:
      ValueError: if a data set or threat is unknown.

    Example:
      >>> [found.id for found in entries(threat="l2", architecture="MeanSparse")]
      ['Amini2024MeanSparse_S-WRN-70-16']
    """
    for name, value, known in (("dataset", dataset, DATASETS), ("threat", threat, THREATS)):
        if value is not None and value not in known:
            raise unknown_name(name, value, known)
    text = (architecture or "").lower()
    return tuple(
        found
        for found in _registry()[1]
        if dataset in (None, found.dataset)
        and threat in (None, found.threat)
        and (text in found.described.lower() or text in (found.architecture or ""))
    )


def entry(id: str, *, dataset: str | None = None, threat: str | None = None) -> Entry:
    """The entry of an id.

    Args:
      id: RobustBench's.
      dataset: which, if the id is in the leaderboards of several.
      threat: which, likewise.

    Returns:
      The entry.

    Raises:
      ValueError: if there is no such entry, with the closest id, or if there are several, with what
        tells them apart.

    Example:
      >>> entry("Wang2023Better_WRN-28-10")
      Traceback (most recent call last):
      ValueError: id='Wang2023Better_WRN-28-10' is in 3 leaderboards: cifar10 linf, cifar10 l2, \
cifar100 linf; give dataset (--dataset) or threat (--threat) too
    """
    everything = entries()
    same = [found for found in everything if found.id == id]
    if not same:
        known = dict.fromkeys(found.id for found in everything)
        raise unknown_name("id", id, known, f"python -m experiments.zoo lists all {len(known)}")
    fitting = [found for found in entries(dataset=dataset, threat=threat) if found.id == id]
    if len(fitting) == 1:
        return fitting[0]
    places = ", ".join(f"{found.dataset} {found.threat}" for found in same)
    if fitting:
        raise ValueError(
            f"id={id!r} is in {len(same)} leaderboards: {places}; give dataset (--dataset) or "
            "threat (--threat) too"
        )
    given = {"dataset": dataset, "threat": threat}
    wrong = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
    raise ValueError(f"{wrong} does not fit id={id!r}, which is of {places}; leave it out")
