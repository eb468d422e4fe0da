"""The design of the experiment: its cells, settings and data."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import data, settings

NORMS = ("l2", "linf")
OPTIMIZERS = {"at": "sgd", "at_ensgd": "entropy_sgd"}
EPS = {"digits": {"l2": 1.0, "linf": 0.2}, "mnist14": {"l2": 1.0, "linf": 0.15}}
TRAIN_SIZE = 1280  # images: 40 minibatches of 32 an epoch, two outer steps of EntropySGD


@dataclasses.dataclass(frozen=True)
class Setting:
    """A network and its data; every other setting differs from the base in one factor."""

    name: str
    data: str = "digits"
    activation: str = "swish"
    width: int = 32
    images: int = 8


SETTINGS = (
    Setting("base"),
    Setting("softplus", activation="softplus"),
    Setting("mnist14", data="mnist14", images=4),  # three times as many pixels
    Setting("width 16", width=16),
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is trained and measured; the defaults are those of the committed results."""

    seeds: int = 8
    epochs: int = 24
    starts: int = 16


class Cell(NamedTuple):
    """What one file of results holds: both methods of one seed, on the same images."""

    setting: Setting
    norm: str
    seed: int

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.setting.name.replace(' ', '')}-{self.norm}-seed{self.seed}.json"


class Images(NamedTuple):
    """Training images, float64 of shape (N, H, W, 1) in [0, 1], and their labels."""

    pixels: np.ndarray
    labels: np.ndarray


def load(name: str, data_dir: Path | None = None) -> Images:
    """The training images of a run: the first of the data set, or of MNIST at half the size.

    Args:
        name: "digits" or "mnist14": MNIST, each 2x2 pixels averaged.
        data_dir: folder with MNIST, see `experiments.data.load`.
    """
    dataset = data.load("mnist" if name == "mnist14" else name, data_dir)
    pixels = np.asarray(dataset.train_images[:TRAIN_SIZE], np.float64) / 255
    if name == "mnist14":
        pixels = pixels.reshape(-1, 14, 2, 14, 2, 1).mean((2, 4))
    return Images(pixels, dataset.train_labels[:TRAIN_SIZE])


def probe(images: Images, seed: int, count: int) -> Images:
    """Images to measure on, drawn anew for each seed; both methods of a seed share them."""
    rows = np.random.default_rng(1000 + seed).choice(len(images.labels), count, replace=False)
    return Images(images.pixels[rows], images.labels[rows])


def snapshots(losses: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """The outer step at which each snapshot of each method is taken, by name.

    * "late": the end of the run;
    * "equal loss": the first at which the training loss is at most the level that both methods
      reach, the larger of their two minima.

    Args:
        losses: training losses of a seed after each outer step, by method.
    """
    last = len(next(iter(losses.values()))) - 2  # one more outer step gives the direction
    level = max(values[: last + 1].min() for values in losses.values())
    equal = {name: int(np.argmax(values <= level)) for name, values in losses.items()}
    return {"late": dict.fromkeys(losses, last), "equal loss": equal}


def configuration(setting: Setting, norm: str, method: str, sizes: Sizes) -> Any:
    """The resolved configuration: the recipe of ``experiments.digits`` at laptop scale."""
    config = settings.base("laptop")
    config.method, config.optimizer = method, OPTIMIZERS[method]
    config.model, config.width, config.num_epochs = "mlp", setting.width, sizes.epochs
    eps = EPS[setting.data][norm]
    config.threat.update(norm=norm, eps=eps, step_size=eps / 5)
    return settings.resolve(config, "digits")
