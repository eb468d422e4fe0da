"""From a resolved configuration to the data, the model and the compiled programs of a run."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import models, objectives, training
from jaxadv.augment import augmentation

from . import data, phases
from .settings import Config

_INIT, _TRAIN, _NOISE, _SELECTION, _TEST = range(5)  # streams of the run's seed

# The split and the subsets are part of the task, not of the run: they never depend on its seed.
_SPLIT_SEED = 0

# What config.width means for each architecture.
WIDTH_OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "preact_resnet18": lambda width: {"width": width},  # channels of the first stage, 64
    "wrn34_10": lambda width: {"widen_factor": width},  # 10
    "small_convnet": lambda width: {"features": (width, 2 * width)},  # 16
    "mlp": lambda width: {"hidden": (width, width)},  # 64
}


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


class Run(NamedTuple):
    """Everything compiled or built once for a run.

    Attributes:
        apply_fn: the model in the form of :mod:`jaxadv.objectives`.
        make_state: () -> the initial TrainState.
        parts: the phases of the run, each with its optimizer.
        advance: (state, data, key, step, num_steps) -> (state, metrics, number of minibatches
            taken); see :func:`experiments.phases.advance`.
        refresh: (state, data, key) -> batch_stats for evaluation after a phase of EntropySGD, or
            None where training keeps them current.
        predict: as made by :func:`jaxadv.training.make_predict`.
        num_parameters: number of parameters.
        batches_per_epoch: minibatches an epoch.
    """

    apply_fn: objectives.ApplyFn
    make_state: Callable[[], training.TrainState]
    parts: tuple[phases.Phase, ...]
    advance: Callable
    refresh: Callable | None
    predict: Callable[..., training.Predictions]
    num_parameters: int
    batches_per_epoch: int

    def phase_at(self, step: int) -> phases.Phase:
        """The phase that takes the minibatch of that number."""
        return self.parts[phases.phase_number(self.parts, step)]


def key_for(config: Config, stream: int) -> jax.Array:
    """The typed key of one stream of randomness of a run."""
    return jax.random.fold_in(jax.random.key(config.seed), stream)


def train_key(config: Config) -> jax.Array:
    """The key of minibatches, augmentation and training attacks."""
    return key_for(config, _TRAIN)


def selection_key(config: Config) -> jax.Array:
    """The key of the attack on the selection images."""
    return key_for(config, _SELECTION)


def test_key(config: Config) -> jax.Array:
    """The key of the attack on the test images."""
    return key_for(config, _TEST)


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


def build_model(config: Config, dataset: data.Dataset):
    """The linen module of a configuration, normalisation inside."""
    options: dict[str, Any] = {"mean": None, "std": None}
    if config.normalize:
        options = {"mean": dataset.mean, "std": dataset.std}
    if config.width is not None:
        options |= WIDTH_OPTIONS[config.model](config.width)
    return models.build(
        config.model,
        num_classes=dataset.num_classes,
        dtype=jnp.dtype(config.precision),
        **options,
    )


def make_apply(module) -> objectives.ApplyFn:
    """A linen module as ``(params, batch_stats, images, train) -> (logits, batch_stats)``."""

    def apply_fn(params, batch_stats, images, train):
        variables = {"params": params}
        if not batch_stats:
            return module.apply(variables, images, train=train), batch_stats
        variables["batch_stats"] = batch_stats
        if not train:
            return module.apply(variables, images, train=False), batch_stats
        logits, changed = module.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, changed["batch_stats"]

    return apply_fn


def init_variables(module, key: jax.Array, image_shape: tuple[int, int, int]):
    """Initial ``(params, batch_stats)`` of a linen module."""
    variables = jax.jit(module.init)(key, jnp.zeros((1, *image_shape)))
    return variables["params"], variables.get("batch_stats", {})


def build(config: Config, task: Task, sharding: jax.sharding.Sharding | None = None) -> Run:
    """Builds the model, the optimizer and the compiled programs of a run.

    Args:
        config: resolved configuration.
        task: its data.
        sharding: layout of minibatches over devices, None for one device.
    """
    module = build_model(config, task.dataset)
    apply_fn = make_apply(module)
    objective, gentle = _objectives(config, apply_fn)
    program = training.Program(
        apply_fn,
        objective,
        batch_size=config.batch_size,
        augment=None if config.augment == "none" else augmentation(config.augment),
        clean_pass=config.bn.clean_pass,
        weight_perturbation=phases.weight_perturbation(
            config, num_batches := -(-len(task.train.labels) // config.batch_size)
        ),
        sharding=sharding,
    )
    parts = phases.make_phases(config, program, num_batches, key_for(config, _NOISE))

    def make_state():
        params, batch_stats = init_variables(
            module, key_for(config, _INIT), task.dataset.image_shape
        )
        return training.TrainState.create(params, batch_stats, phases.AllPhases(parts))

    shapes = jax.eval_shape(make_state)
    refresh = None
    if config.bn.slow_weights == "refresh" and shapes.batch_stats:
        if any(phase.is_entropy for phase in parts):
            refresh = program.refresh_stats(config.bn.refresh_batches, gentle.perturb)
    predict = training.make_predict(
        apply_fn,
        norm=config.threat.norm,
        eps=config.eval.eps,
        step_size=config.eval.step_size,
        num_steps=config.eval.num_steps,
        num_restarts=config.eval.num_restarts,
    )
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    return Run(
        apply_fn,
        make_state,
        parts,
        lambda *arguments: phases.advance(parts, *arguments),
        refresh,
        predict,
        num_parameters,
        num_batches,
    )


def _objectives(config: Config, apply_fn: objectives.ApplyFn):
    """The objective of a run, and one that attacks in eval mode."""
    threat = config.threat
    attack = dict(
        norm=threat.norm, eps=threat.eps, step_size=threat.step_size, num_steps=threat.num_steps
    )
    if config.objective == "trades":
        objective = objectives.trades(
            apply_fn, beta=config.trades.beta, start_noise=config.trades.start_noise, **attack
        )
        return objective, objective
    objective = objectives.adversarial_cross_entropy(
        apply_fn,
        **attack,
        attack_bn=config.bn.attack,
        attack_updates_stats=config.bn.attack_updates_stats,
        weights_move=config.awp.enabled,
    )
    gentle = objectives.adversarial_cross_entropy(apply_fn, **attack, attack_bn="eval")
    return objective, gentle


def data_sharding(batch_size: int) -> jax.sharding.NamedSharding | None:
    """Minibatches spread over all devices that divide them, or None on one device."""
    count = math.gcd(batch_size, jax.device_count())
    if count == 1:
        return None
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((count,), ("batch",), auto, devices=jax.devices()[:count])
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))


def everywhere(sharding: jax.sharding.NamedSharding | None) -> jax.sharding.NamedSharding | None:
    """A copy on each device of ``sharding``.

    State and data have to start there: a first call with them on one device would compile a second
    program for what it returns, and copy the data set again in every call.
    """
    if sharding is None:
        return None
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
