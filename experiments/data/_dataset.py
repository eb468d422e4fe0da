"""The `Dataset` class, this package's two errors, and the split into training and selection."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class DataError(ValueError):
    """A data file is invalid: names the file, the problem and the fix."""

    def __init__(self, where: str | Path, problem: str, remedy: str):
        super().__init__(f"{where}: {problem}. {remedy}")


class DataMissingError(FileNotFoundError):
    """A data set is not on this machine: a sentence says what is missing, one how to get it."""

    def __init__(self, missing: str, remedy: str):
        super().__init__(f"{missing.rstrip('.')}. {remedy}")
        self.missing, self.remedy = missing, remedy


class Arrays(NamedTuple):
    """The four arrays of a data set, in the order of the official files.

    Attributes:
      train_images: (N, H, W, C) uint8.
      train_labels: (N,) int32.
      test_images: (M, H, W, C) uint8.
      test_labels: (M,) int32.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: labels in memory, and images too unless they are `Rows`.

    Images stay uint8, as on disk; models expect float32 in [0, 1], that is, divided by 255.

    Attributes:
      name: the name that `load` takes.
      train_images: (N, H, W, C) uint8.
      train_labels: (N,) int32 in [0, num_classes).
      test_images: (M, H, W, C) uint8.
      test_labels: (M,) int32 in [0, num_classes).
      class_names: one name per class.
      source: where the arrays came from.
      verification: which published checksums the arrays matched.
      mean: channel means in [0, 1] that the model subtracts, or None if none are published.
      std: channel standard deviations that the model divides by, or None.
    """

    name: str
    train_images: Any
    train_labels: np.ndarray
    test_images: Any
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    source: str
    verification: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the model's images; training images may be larger."""
        height, width, channels = self.test_images.shape[1:]
        return height, width, channels


class Split(NamedTuple):
    """Disjoint, sorted int32 indices into the training set that together cover it."""

    train: np.ndarray
    selection: np.ndarray


def split(
    train_labels: Dataset | Sequence[int] | np.ndarray,
    *,
    selection_size: int = 1000,
    seed: int = 0,
) -> Split:
    """Sets training images aside to select a checkpoint.

    The training set is shuffled with `numpy.random.default_rng(seed)` and its last
    `selection_size` images are the selection split. Both index arrays are sorted, so that gathering
    with them reads memory sequentially.

    Args:
      train_labels: a `Dataset`, or anything with one entry per training image.
      selection_size: number of images to set aside; 0 gives an empty selection split.
      seed: seed of the shuffle, a non-negative integer.

    Returns:
      A `Split` of int32 indices, the same on every machine.

    Raises:
      ValueError: if `selection_size` is negative or leaves nothing to train on, or `seed` is
        negative.

    Example:
      >>> train, selection = split(range(10), selection_size=3)
      >>> len(train), len(selection), sorted([*train, *selection]) == list(range(10))
      (7, 3, True)
    """
    labels = train_labels.train_labels if isinstance(train_labels, Dataset) else train_labels
    total = len(labels)
    if not 0 <= selection_size < total:
        raise ValueError(
            f"selection_size must be at least 0 and smaller than the training set ({total} "
            f"images), got {selection_size}: choose a number such as {total // 10}"
        )
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}: use 0, 1, 2, ...")
    order = np.random.default_rng(seed).permutation(total).astype(np.int32)
    kept = total - selection_size
    return Split(train=np.sort(order[:kept]), selection=np.sort(order[kept:]))
