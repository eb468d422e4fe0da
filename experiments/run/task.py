"""The data and random streams of a run."""

import enum
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import data
from ..settings import Config


class Stream(enum.IntEnum):
    """The random streams derived from a run's seed."""

    INIT = 0
    TRAIN = 1  # minibatches, augmentation and training attacks
    NOISE = 2  # Langevin dynamics
    SELECTION = 3  # the attack on the selection images
    TEST = 4  # the attack on the test images


# The split and subsets belong to the task, not the run, and never depend on the run's seed.
_SPLIT_SEED = 0


class Images(NamedTuple):
    """Images and labels of one split, on the host.

    Attributes:
        images: uint8 of shape (N, H, W, C): an array, or rows that are read from files.
        labels: int32 of shape (N,).
    """

    images: np.ndarray | data.Rows
    labels: np.ndarray


class Task(NamedTuple):
    """The data of a run.

    Attributes:
        dataset: the whole data set.
        train: training images.
        selection: images that select the checkpoint.
        test: images for the final report.
    """

    dataset: data.Dataset
    train: Images
    selection: Images
    test: Images


def load_task(config: Config, data_dir: Any = None) -> Task:
    """Loads the data set and splits it as configured.

    The selection images are the last ``selection_size`` of the training set shuffled with a fixed
    seed, or the test images (then all training images are used, as in the paper). ``train_size``
    takes the first training images and ``test_size`` the first test images, in order.

    Raises:
        ValueError: if the data set has fewer images than requested.
    """
    dataset = data.load(config.dataset, data_dir)
    held_out = config.selection_size if config.selection == "validation" else 0
    split = data.split(dataset, selection_size=held_out, seed=_SPLIT_SEED)
    for name, size, available in (
        ("train_size", config.train_size, len(split.train)),
        ("test_size", config.test_size, len(dataset.test_images)),
    ):
        if size is not None and size > available:
            raise ValueError(
                f"config.{name}={size} exceeds the {available} images of {config.dataset} left "
                f"after the selection split; use --config.{name}={available} or less"
            )
    rows = split.train[: config.train_size]
    train = Images(data.take(dataset.train_images, rows), dataset.train_labels[rows])
    if config.batch_size > len(rows):
        raise ValueError(
            f"config.batch_size={config.batch_size} exceeds the {len(rows)} training images; use "
            f"--config.batch_size={len(rows)} or less"
        )
    rows = np.arange(len(dataset.test_labels))[: config.test_size]
    test = Images(data.take(dataset.test_images, rows), dataset.test_labels[rows])
    rows = split.selection
    images = data.central(data.take(dataset.train_images, rows), dataset.image_shape)
    selection = Images(images, dataset.train_labels[rows])
    return Task(dataset, train, test if config.selection == "test" else selection, test)


def key_for(config: Config, stream: Stream) -> jax.Array:
    """The typed key of one of a run's random streams."""
    return jax.random.fold_in(jax.random.key(config.seed), stream)
