"""Adversarial training of all seeds at once, with the parameters along the way."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments.run import phases
from jaxadv import models, objectives

from .design import Images, Setting, Sizes, configuration

LOSS_IMAGES = 640  # that the training loss is measured on


class Trajectories(NamedTuple):
    """Training of one method under one norm, all seeds.

    Attributes:
        params: flat parameters after every outer step (as many minibatches of SGD), float32 of
            shape (seeds, outer steps + 1, m); the first are the initial ones.
        losses: mean loss under PGD on the first training images, shape (seeds, outer steps + 1).
        group: minibatches in an outer step.
    """

    params: np.ndarray
    losses: np.ndarray
    group: int


def network(setting: Setting):
    """The linen module; its dtype is that of its parameters and images."""
    return models.mlp(10, hidden=(setting.width,) * 2, activation=setting.activation)


def train(
    setting: Setting, norm: str, method: str, images: Images, seeds: Sequence[int], sizes: Sizes
) -> Trajectories:
    """Trains one network per seed; all of them in one compiled program.

    The seeds' minibatches, attacks and initial parameters do not depend on the method.
    """
    config = configuration(setting, norm, method, sizes)
    module, group = network(setting), config.entropy.n_in
    apply_fn = lambda params, stats, x, train: (module.apply({"params": params}, x), stats)
    threat = config.threat
    objective = objectives.adversarial_cross_entropy(
        apply_fn, norm=norm, eps=threat.eps, step_size=threat.step_size, num_steps=threat.num_steps
    )
    pixels = jnp.asarray(images.pixels, jnp.float32)
    labels = jnp.asarray(images.labels)
    batches = len(labels) // config.batch_size

    def gradient(key, params, step):
        order = jax.random.permutation(jax.random.fold_in(key, step // batches), len(labels))
        start = step % batches * config.batch_size
        rows = jax.lax.dynamic_slice_in_dim(order, start, config.batch_size)
        attack_key = jax.random.fold_in(jax.random.fold_in(key, 1 << 20), step)
        x, y = pixels[rows], labels[rows]
        adversarial, _ = objective.perturb(attack_key, params, {}, x, y)
        return jax.grad(lambda p: objective.loss(p, {}, x, adversarial, y)[0])(params)

    def run(seed):
        init_key, train_key, noise_key = jax.random.split(jax.random.key(seed), 3)
        phase = phases.make_phases(config, batches, noise_key)[-1 if method == "at" else 1]
        tx: Any = phase.optimizer(0, phase.n_in)
        params = module.init(init_key, pixels[:1])["params"]

        def loss(params):
            x, y = pixels[:LOSS_IMAGES], labels[:LOSS_IMAGES]
            adversarial, _ = objective.perturb(jax.random.key(0), params, {}, x, y)
            return objective.loss(params, {}, x, adversarial, y)[0]

        def outer(carry, first):
            params, state = carry
            steps = first + jnp.arange(group)
            if method == "at":

                def inner(carry, step):
                    params, state = carry
                    grads = gradient(train_key, params, step)
                    updates, state = tx.update(grads, state, params)
                    return (optax.apply_updates(params, updates), state), None

                (params, state), _ = jax.lax.scan(inner, (params, state), steps)
            else:
                grad_fn = lambda p, step, carry: (gradient(train_key, p, step), carry)
                updates, state = tx.update(None, state, params, grad_fn=grad_fn, batches=steps)
                params = optax.apply_updates(params, updates)
            return (params, state), (ravel_pytree(params)[0], loss(params))

        begin = (ravel_pytree(params)[0], loss(params))
        firsts = jnp.arange(0, sizes.epochs * batches, group)
        _, rest = jax.lax.scan(outer, (params, tx.init(params)), firsts)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), begin, rest)

    params, losses = jax.jit(jax.vmap(run))(jnp.asarray(seeds))
    return Trajectories(np.asarray(params), np.asarray(losses), group)


@functools.cache
def unraveler(setting: Setting, shape: tuple[int, int, int]):
    """Maps flat float64 parameters to those of the module; 64 bits must be enabled."""
    params = network(setting).init(jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    return ravel_pytree(jax.tree.map(lambda p: p.astype(jnp.float64), params))[1]
