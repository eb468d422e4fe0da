"""Test-image data for a run's report: predictions, confusion matrices, adversarial examples."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import attacks, training
from jaxadv.training import Predictions

from ..run import accuracy, build, checkpoints
from ..run.directory import RunDirectory
from ..run.task import Stream, Task, key_for
from ..settings import Config

EXAMPLES = 10


class Example(NamedTuple):
    """A test image and its adversarial version from the evaluation's attack.

    Attributes:
        index: its index among the test images.
        label: its class.
        clean: prediction for the clean image.
        robust: prediction for the adversarial image.
        image: floats in [0, 1] of shape (H, W, C).
        adversarial: likewise.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # that of tuple is not used
    label: int
    clean: int
    robust: int
    image: np.ndarray
    adversarial: np.ndarray


class Model(NamedTuple):
    """A run's selected checkpoint and its evaluation data."""

    config: Config
    task: Task
    apply_fn: Any
    params: Any
    batch_stats: Any

    def attack(self) -> dict[str, Any]:
        """The attack of the final evaluation."""
        names = ("eps", "step_size", "num_steps", "num_restarts")
        return {"norm": self.config.threat.norm} | {n: self.config.eval[n] for n in names}


def load_model(directory: RunDirectory, config: Config, task: Task) -> Model:
    """The selected checkpoint.

    Raises:
        ValueError: if it is damaged or does not match.
    """
    module = build.build_model(config, task.dataset)
    templates = jax.eval_shape(
        lambda: build.init_variables(module, jax.random.key(0), task.dataset.image_shape)
    )
    parts = ("params", "batch_stats")
    params, batch_stats = checkpoints.load_part(directory.selected, parts, templates)
    directory.check_checkpoint(directory.selected, config)
    return Model(config, task, build.make_apply(module), params, batch_stats)


def predict(model: Model) -> Predictions:
    """Repeats the final evaluation, for runs that saved no predictions."""
    return accuracy.predict_all(
        training.make_predict(model.apply_fn, **model.attack()),
        model.params,
        model.batch_stats,
        key_for(model.config, Stream.TEST),
        *model.task.test,
        batch_size=model.config.eval.batch_size,
    )


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts by true (rows) and predicted class (columns).

    Example:
        >>> confusion(np.array([0, 1, 1]), np.array([1, 1, 1]), 2).tolist()
        [[0, 1], [0, 2]]
    """
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def examples(model: Model, count: int = EXAMPLES) -> list[Example]:
    """The first test image of each of the first few classes, attacked as in the final evaluation.

    Random starts depend on an image's index among the test images, so these are exactly the
    adversarial images of the final evaluation.
    """
    images, labels = model.task.test
    rows = np.unique(labels, return_index=True)[1][:count]
    attack = model.attack()

    @jax.jit
    def attack_images(params, batch_stats, key, points, targets, indices):
        logits_fn = lambda x: model.apply_fn(params, batch_stats, x, False)[0]
        clean = training.to_float(points)
        adversarial = attacks.pgd(key, logits_fn, clean, targets, indices=indices, **attack)
        guess = lambda x: logits_fn(x).argmax(axis=1)
        return clean, adversarial, guess(clean), guess(adversarial)

    chosen = (jnp.asarray(images[rows]), jnp.asarray(labels[rows]), jnp.asarray(rows))
    found = attack_images(
        model.params, model.batch_stats, key_for(model.config, Stream.TEST), *chosen
    )
    clean, adversarial, clean_class, robust_class = (np.asarray(part) for part in found)
    return [
        Example(int(row), int(labels[row]), int(clean_class[i]), int(robust_class[i]), clean[i],
                adversarial[i])
        for i, row in enumerate(rows)
    ]  # fmt: skip
