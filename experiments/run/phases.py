"""The phases of a run: SGD warm-up, EntropySGD, SGD again; most runs have one."""

import math

import jax
import jax.numpy as jnp
import optax

from jaxadv import optim, training

from ..settings import OPTIMIZERS, Config, warm_epochs


def make_phases(config: Config, batches_per_epoch: int, noise_key: jax.Array):
    """The phases of a run, in order, for :class:`jaxadv.training.Program`.

    Args:
        config: resolved configuration.
        batches_per_epoch: minibatches per epoch.
        noise_key: typed key of the Langevin noise.

    Example:
        >>> from experiments import settings
        >>> config = settings.load_config("at_ensgd", "paper", "svhn")
        >>> phases = make_phases(config, 573, jax.random.key(0))  # five epochs of warm-up
        >>> [(phase.n_in, phase.end) for phase in phases]
        [(0, 2865), (30, 114600), (0, 114600)]
    """
    entropy = config.entropy
    has_extra = entropy.preset in ("ucla_exact", "lua")
    group = entropy.n_in + has_extra
    make = OPTIMIZERS.get(config.optimizer, training.sgd)  # the latter for warm-ups of EntropySGD

    def first_order(first: int, n_in: int):
        del n_in
        rate = schedule(config, config.learning_rate, batches_per_epoch)
        return make(
            lambda count: rate(first + count),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )

    def entropy_sgd(first: int, n_in: int):
        rate = schedule(config, entropy.learning_rate, batches_per_epoch)
        # Every field of config.entropy with the name of an option is that option.
        known = optim.EntropySGDOptions.__dataclass_fields__
        options = {name: value for name, value in entropy.items() if name in known}
        options |= {"n_in": n_in, "learning_rate": lambda step: rate(first + step * group)}
        return optim.entropy_sgd(key=noise_key, preset=entropy.preset, **options)

    decay = config.weight_decay if config.awp.decay_perturbed else 0.0
    end = config.num_epochs * batches_per_epoch
    plain = training.Phase(end, first_order, perturbed_decay=decay)
    if config.optimizer != "entropy_sgd":
        return [plain]
    stop = math.ceil(entropy.stop_at * config.num_epochs) * batches_per_epoch
    return [
        plain._replace(end=warm_epochs(config) * batches_per_epoch),
        training.Phase(stop, entropy_sgd, entropy.n_in, has_extra),
        plain,
    ]


def schedule(config: Config, learning_rate: float, batches_per_epoch: int) -> optax.Schedule:
    """The learning rate as a function of the run's minibatch counter."""
    return training.step_decay(
        learning_rate,
        num_epochs=config.num_epochs,
        batches_per_epoch=batches_per_epoch,
        drops=config.lr_drops,
        factor=config.lr_factor,
        unit=config.lr_unit,
        first_epoch=config.first_epoch,
    )


def weight_perturbation(config: Config, batches_per_epoch: int):
    """gamma_A, a number or (with a warm-up) a schedule over the minibatch counter."""
    gamma, first = config.awp.gamma, warm_epochs(config) * batches_per_epoch
    if not gamma or not first:
        return gamma
    return lambda step: jnp.where(step < first, 0.0, gamma)


def attack_scale(config: Config, batches_per_epoch: int) -> optax.Schedule | None:
    """The training attack's share of its radius and step, from 0 to 1; None without a warm-up.

    Example:
        >>> from experiments import settings
        >>> config = settings.base()
        >>> config.threat.warmup = 0.5
        >>> [float(attack_scale(config, 8)(step)) for step in (0, 1, 4, 5)]
        [0.0, 0.25, 1.0, 1.0]
    """
    length = math.ceil(config.threat.warmup * batches_per_epoch)
    return optax.linear_schedule(0.0, 1.0, length) if length else None
