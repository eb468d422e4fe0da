"""Builds a run's model and compiled programs from a resolved configuration."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import models, objectives, training
from jaxadv.augment import augmentation
from jaxadv.checks import check_choice

from .. import data
from ..settings import Config
from . import phases
from .task import Stream, Task, key_for

# The meaning of config.width for each architecture.
WIDTH_OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "preact_resnet18": lambda width: {"width": width},  # channels of the first stage, 64
    "dm_preact_resnet18": lambda width: {"width": width},  # 64
    "wide_resnet": lambda width: {"width": width},  # channels of the first stage over 16, 10
    "wrn34_10": lambda width: {"widen_factor": width},  # 10
    "dm_wide_resnet": lambda width: {"width": width},  # 10
    "resnet18_cifar": lambda width: {"width": width},  # channels of the first stage, 64
    "resnet50_cifar": lambda width: {"width": width},  # 64
    "resnet18": lambda width: {"width": width},  # 64
    "resnet50": lambda width: {"width": width},  # 64
    "wrn50_2": lambda width: {"width": width},  # 64
    "xcit_small12": lambda width: {"width": width},  # channels of the tokens, 384
    "xcit_medium12": lambda width: {"width": width},  # 512
    "xcit_large12": lambda width: {"width": width},  # 768
    "convnext_tiny": lambda width: {"width": width},  # channels of the first stage, 96
    "convnext_small": lambda width: {"width": width},  # 96
    "convnext_base": lambda width: {"width": width},  # 128
    "convnext_large": lambda width: {"width": width},  # 192
    "small_convnet": lambda width: {"features": (width, 2 * width)},  # 16
    "mlp": lambda width: {"hidden": (width, width)},  # 64
}


class Run(NamedTuple):
    """Everything built or compiled once per run.

    Attributes:
        apply_fn: the model in the form of :mod:`jaxadv.objectives`.
        make_state: () -> the initial TrainState.
        program: performs the run's updates, phase by phase.
        refresh: (state, data, key) -> batch_stats for evaluation after a phase of EntropySGD, or
            None if training keeps them current.
        predict: from :func:`jaxadv.training.make_predict`.
        num_parameters: number of parameters.
        batches_per_epoch: minibatches per epoch.
    """

    apply_fn: objectives.ApplyFn
    make_state: Callable[[], training.TrainState]
    program: training.Program
    refresh: Callable | None
    predict: Callable[..., training.Predictions]
    num_parameters: int
    batches_per_epoch: int


def build_model(config: Config, dataset: data.Dataset):
    """The linen module of a configuration, including normalization."""
    options: dict[str, Any] = {"mean": None, "std": None}
    if config.normalize:
        options = {"mean": dataset.mean, "std": dataset.std}
    if config.width is not None:
        check_choice("config.model (with config.width)", config.model, WIDTH_OPTIONS)
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
        sharding: sharding of minibatches over devices, None for one device.
    """
    module = build_model(config, task.dataset)
    apply_fn = make_apply(module)
    objective, gentle = _objectives(config, apply_fn)
    num_batches = -(-len(task.train.labels) // config.batch_size)
    program = training.Program(
        apply_fn,
        objective,
        batch_size=config.batch_size,
        augment=None if config.augment == "none" else augmentation(config.augment),
        clean_pass=config.bn.clean_pass,
        weight_perturbation=phases.weight_perturbation(config, num_batches),
        sharding=sharding,
        sync_batch_norm=config.bn.sync,
        phases=phases.make_phases(config, num_batches, key_for(config, Stream.NOISE)),
    )

    def make_state():
        key = key_for(config, Stream.INIT)
        variables = init_variables(module, key, task.dataset.image_shape)
        return training.TrainState.create(*variables, program)

    shapes = jax.eval_shape(make_state)
    refresh = None
    if config.bn.slow_weights == "refresh" and shapes.batch_stats:
        if config.optimizer == "entropy_sgd":
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
    return Run(apply_fn, make_state, program, refresh, predict, num_parameters, num_batches)


def _objectives(config: Config, apply_fn: objectives.ApplyFn):
    """The objective of a run, and a version that attacks in eval mode."""
    threat = config.threat
    attack = dict(
        norm=threat.norm, eps=threat.eps, step_size=threat.step_size, num_steps=threat.num_steps
    )
    if config.objective == "trades":
        fields = {name: config.trades[name] for name in ("beta", "start_noise", "bn_order")}
        objective = objectives.trades(apply_fn, **fields, **attack)
        return objective, objective
    if config.objective != "cross_entropy":
        raise ValueError(f"config.objective={config.objective!r} is not built; add it here")
    objective = objectives.adversarial_cross_entropy(
        apply_fn,
        **attack,
        attack_bn=config.bn.attack,
        attack_updates_stats=config.bn.attack_updates_stats,
        weights_move=config.awp.enabled,
    )
    gentle = objectives.adversarial_cross_entropy(apply_fn, **attack, attack_bn="eval")
    return objective, gentle
