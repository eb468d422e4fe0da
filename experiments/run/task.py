"""The data of a run, and its streams of randomness."""

import enum
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import data
from ..settings import Config


class Stream(enum.IntEnum):
    """The streams of random numbers that a run's seed is split into."""

    INIT = 0
    TRAIN = 1  # minibatches, augmentation and training attacks
    NOISE = 2  # of Langevin dynamics
    SELECTION = 3  # the attack on the selection images
    TEST = 4  # the attack on the test images


# The split and the subsets are part of the task, not of the run: they never depend on its seed.
_SPLIT_SEED = 0


class Images(NamedTuple):
    """Images and labels of one purpose, on the host.

    Attributes:
        images: uint8 of shape (N, H, W, C).
        labels: int32 of shape (N,).
    """

    images: np.ndarray
    labels: np.ndarray


class Task(NamedTuple):
    """The data of a run.

    Attributes:
        dataset: the whole data set.
        train: images to train on.
        selection: images that choose the checkpoint.
        test: images of the final report.
    """

    dataset: data.Dataset
    train: Images
    selection: Images
    test: Images


def load_task(config: Config, data_dir: Any = None) -> Task:
    """Loads the data set and cuts it as the configuration says.

    The selection images are the last ``selection_size`` of the training set shuffled with a fixed
    seed, or the test images (then all others are trained on, as in the paper). ``train_size`` takes
    the first of the training images and ``test_size`` the first test images, in their order.

    Raises:
        ValueError: if the data set has fewer images than asked for.
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
                f"config.{name}={size} exceeds the {available} images of {config.dataset} that are "
                f"there after the selection split; use --config.{name}={available} or less"
            )
    rows = split.train[: config.train_size]
    train = Images(dataset.train_images[rows], dataset.train_labels[rows])
    if config.batch_size > len(rows):
        raise ValueError(
            f"config.batch_size={config.batch_size} exceeds the {len(rows)} training images; use "
            f"--config.batch_size={len(rows)} or less"
        )
    test_rows = slice(None, config.test_size)
    test = Images(dataset.test_images[test_rows], dataset.test_labels[test_rows])
    selection = Images(dataset.train_images[split.selection], dataset.train_labels[split.selection])
    return Task(dataset, train, test if config.selection == "test" else selection, test)


def key_for(config: Config, stream: Stream) -> jax.Array:
    """The typed key of one stream of randomness of a run."""
    return jax.random.fold_in(jax.random.key(config.seed), stream)
