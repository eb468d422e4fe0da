"""Test-image data for a run's report: predictions, confusion matrices, adversarial examples."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import attacks, balls, training
from jaxadv.attacks import AutoAttackResult
from jaxadv.training import Predictions

from ..run import accuracy, build, checkpoints
from ..run.directory import RunDirectory
from ..run.task import Stream, Task, key_for
from ..settings import Config

EXAMPLES = 10


class Example(NamedTuple):
    """A test image and its adversarial version.

    Attributes:
        index: its index among the test images.
        label: its class.
        clean: prediction for the clean image.
        robust: prediction for the adversarial image.
        image: floats in [0, 1] of shape (H, W, C).
        adversarial: likewise.
        attack: name of the attack.
        step: iteration after which it was misclassified first; None if it withstood.
        distance: norm of the perturbation.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # that of tuple is not used
    label: int
    clean: int
    robust: int
    image: np.ndarray
    adversarial: np.ndarray
    attack: str
    step: int | None
    distance: float

    @property
    def is_broken(self) -> bool:
        """Whether the attack turned a correct prediction into a wrong one."""
        return self.clean == self.label != self.robust


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


def first_broken(labels: np.ndarray, is_broken: np.ndarray, count: int = EXAMPLES) -> np.ndarray:
    """Indices of the images to show: the first broken one of each class, then other broken ones.

    Images that withstood follow only if too few are broken.

    Example:
        >>> labels = np.array([0, 0, 1, 1, 1])
        >>> first_broken(labels, np.array([False, True, False, True, True]), 4).tolist()
        [1, 3, 4, 0]
    """
    broken = np.flatnonzero(is_broken)
    of_class = broken[np.unique(labels[broken], return_index=True)[1]]
    others = np.setdiff1d(broken, of_class)
    return np.concatenate([of_class, others, np.flatnonzero(~is_broken)])[:count]


def examples(model: Model, predictions: Predictions, count: int = EXAMPLES) -> list[Example]:
    """Test images that the final evaluation's attack broke, and the step at which it did.

    Random starts depend on an image's index among the test images, so these are the adversarial
    images of the final evaluation.

    Args:
        model: the selected checkpoint.
        predictions: of the final evaluation.
        count: number of images.
    """
    images, labels = model.task.test
    clean_class, robust_class = (np.asarray(part) for part in predictions)
    rows = first_broken(labels, (clean_class == labels) & (robust_class != labels), count)
    attack = model.attack()

    @jax.jit
    def attack_images(params, batch_stats, key, points, targets, indices):
        logits_fn = lambda x: model.apply_fn(params, batch_stats, x, False)[0]
        clean = training.to_float(points)
        adversarial = attacks.pgd(key, logits_fn, clean, targets, indices=indices, **attack)
        guess = lambda x: logits_fn(x).argmax(axis=1)
        steps = _steps(key, logits_fn, clean, targets, indices, attack)
        sizes = balls.norm_of(adversarial - clean, attack["norm"])
        return clean, adversarial, guess(clean), guess(adversarial), steps, sizes

    chosen = (jnp.asarray(images[rows]), jnp.asarray(labels[rows]), jnp.asarray(rows))
    found = attack_images(
        model.params, model.batch_stats, key_for(model.config, Stream.TEST), *chosen
    )
    clean, adversarial, before, after, steps, sizes = (np.asarray(part) for part in found)
    name = f"PGD-{attack['num_steps']}"
    return [
        Example(
            int(row), int(labels[row]), int(before[i]), int(after[i]), clean[i], adversarial[i],
            name, int(steps[i]) if after[i] != labels[row] else None, float(sizes[i]),
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip


def _steps(key, logits_fn, images, labels, indices, attack: dict[str, Any]) -> jax.Array:
    """The first iteration, over all restarts, whose image is misclassified; 0 is the start."""
    options = {name: attack[name] for name in ("norm", "eps")}
    one = options | {"step_size": attack["step_size"], "num_steps": 1, "indices": indices}
    never = attack["num_steps"] + 1

    def step(number, carry):
        points, first = carry
        is_wrong = logits_fn(points).argmax(axis=1) != labels
        first = jnp.where(is_wrong, jnp.minimum(first, number), first)
        return attacks.pgd(key, logits_fn, images, labels, init=points, **one), first

    def restart(number, first):
        start = balls.sample(jax.random.fold_in(key, number), images, indices=indices, **options)
        return jax.lax.fori_loop(0, never, step, (start, first))[1]

    first = jnp.full(labels.shape, never)
    return jax.lax.fori_loop(0, attack["num_restarts"], restart, first)


def autoattack_examples(
    result: AutoAttackResult, images: Any, robust: np.ndarray, count: int = EXAMPLES
) -> list[Example]:
    """Images that AutoAttack broke, first those that the final evaluation's attack did not.

    Args:
        result: AutoAttack on the first of the test images.
        images: the test images, uint8.
        robust: whether the final evaluation's attack left an image classified correctly.
        count: number of images.
    """
    is_broken = ~result.robust & (result.broken_by != "clean")
    missed = is_broken & robust[: len(is_broken)]
    rows = np.concatenate(
        [
            first_broken(result.labels, missed, missed.sum()),
            first_broken(result.labels, is_broken & ~missed, (is_broken & ~missed).sum()),
        ]
    )[:count]
    found = []
    for row in rows:
        clean = np.asarray(images[row], np.float32) / 255
        label = int(result.labels[row])
        found.append(
            Example(
                int(row), label, label, int(result.predictions[row]), clean, result.images[row],
                str(result.broken_by[row]), int(result.broken_step[row]), float(result.norms[row]),
            )
        )  # fmt: skip
    return found
