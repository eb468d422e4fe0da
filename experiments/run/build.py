"""Builds a run's model and compiled programs from a resolved configuration."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import models, objectives, training
from jaxadv.augment import augmentation

from .. import data
from ..settings import Config
from . import accuracy, phases
from .task import Stream, Task, key_for

# Models without an option ``width``, and what config.width means for them.
_WIDTHS: dict[str, Callable[[int], dict[str, Any]]] = {
    "wrn34_10": lambda width: {"widen_factor": width},
    "small_convnet": lambda width: {"features": (width, 2 * width)},
    "mlp": lambda width: {"hidden": (width, width)},
}


class Run(NamedTuple):
    """Everything built or compiled once per run.

    Attributes:
        apply_fn: the model in the form of :mod:`jaxadv.objectives`.
        make_state: () -> the initial TrainState.
        shapes: of its arrays.
        program: performs the run's updates, phase by phase.
        refresh: (state, data, key) -> batch_stats for evaluation after a phase of EntropySGD, or
            None if training keeps them current.
        predict: (params, batch_stats, key, images, labels) -> predictions for a whole set.
        num_parameters: number of parameters.
        batches_per_epoch: minibatches per epoch.
    """

    apply_fn: objectives.ApplyFn
    make_state: Callable[[], training.TrainState]
    shapes: training.TrainState
    program: training.Program
    refresh: Callable | None
    predict: Callable[..., training.Predictions]
    num_parameters: int
    batches_per_epoch: int


def width_options(model: str, width: int | None) -> dict[str, Any]:
    """The options of a model that ``config.width`` sets; none for None, the model's own width.

    Example:
        >>> width_options("preact_resnet18", 16), width_options("mlp", 64)
        ({'width': 16}, {'hidden': (64, 64)})
    """
    if width is None:
        return {}
    return _WIDTHS.get(model, lambda width: {"width": width})(width)


def build_model(config: Config, dataset: data.Dataset):
    """The linen module of a configuration, including normalization."""
    options: dict[str, Any] = {"mean": None, "std": None}
    if config.normalize:
        options = {"mean": dataset.mean, "std": dataset.std}
    return models.build(
        config.model,
        num_classes=dataset.num_classes,
        dtype=jnp.dtype(config.precision),
        **options,
        **width_options(config.model, config.width),
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
        attack_scale=phases.attack_scale(config, num_batches),
        sharding=sharding,
        sync_batch_norm=config.bn.sync,
        phases=phases.make_phases(config, num_batches, key_for(config, Stream.NOISE)),
    )

    # One program, traced once for the shapes and the arrays. It runs once, and LLVM's full effort
    # would take three times as long to compile the random numbers of all layers, for the same bits.
    effort = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None

    @functools.partial(jax.jit, compiler_options=effort)
    def initial_state(key):
        variables = init_variables(module, key, task.dataset.image_shape)
        return training.TrainState.create(*variables, program)

    key = key_for(config, Stream.INIT)
    shapes: Any = initial_state.trace(key).out_info
    refresh = None
    if config.bn.slow_weights == "refresh" and shapes.batch_stats:
        if config.optimizer == "entropy_sgd":
            refresh = program.refresh_stats(config.bn.refresh_batches, gentle.perturb)
    evaluation = config.eval
    predict_batch = training.make_predict(
        apply_fn,
        norm=config.threat.norm,
        eps=evaluation.eps,
        step_size=evaluation.step_size,
        num_steps=evaluation.num_steps,
        num_restarts=evaluation.num_restarts,
    )
    predict = functools.partial(
        accuracy.predict_all, predict_batch, batch_size=evaluation.batch_size
    )
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    make_state = functools.partial(initial_state, key)
    return Run(apply_fn, make_state, shapes, program, refresh, predict, num_parameters, num_batches)


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
