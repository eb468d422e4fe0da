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
from jaxadv import losses, models

from .attacks import project
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
    module, group, size = network(setting), config.entropy.n_in, config.batch_size
    pixels, labels = jnp.asarray(images.pixels, jnp.float32), jnp.asarray(images.labels)
    batches = len(labels) // size
    orders = np.array([_orders(seed, len(labels), sizes.epochs) for seed in seeds])
    loss = lambda params, x, y: losses.cross_entropy(module.apply({"params": params}, x), y)
    attack = functools.partial(_pgd, loss, norm, config.threat)

    def mean_loss(params):
        x, y = pixels[:LOSS_IMAGES], labels[:LOSS_IMAGES]
        return loss(params, attack(jax.random.key(0), params, x, y), y).mean()

    def run(seed, rows):
        init_key, attack_key, noise_key = jax.random.split(jax.random.key(seed), 3)
        phase = phases.make_phases(config, batches, noise_key)[-1 if method == "at" else 1]
        tx: Any = phase.optimizer(0, phase.n_in)
        params = module.init(init_key, pixels[:1])["params"]

        def gradient(params, step):
            x, y = pixels[rows[step]], labels[rows[step]]
            x = attack(jax.random.fold_in(attack_key, step), params, x, y)
            return jax.grad(lambda params: loss(params, x, y).mean())(params)

        def minibatch(carry, step):
            params, state = carry
            updates, state = tx.update(gradient(params, step), state, params)
            return (optax.apply_updates(params, updates), state), None

        def outer(carry, first):
            params, state = carry
            steps = first + jnp.arange(group)
            if method == "at":
                (params, state), _ = jax.lax.scan(minibatch, carry, steps)
            else:
                grad_fn = lambda params, step, extra: (gradient(params, step), extra)
                updates, state = tx.update(None, state, params, grad_fn=grad_fn, batches=steps)
                params = optax.apply_updates(params, updates)
            return (params, state), params

        firsts = jnp.arange(0, sizes.epochs * batches, group)
        _, rest = jax.lax.scan(outer, (params, tx.init(params)), firsts)
        every = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), params, rest)
        flat = jax.vmap(lambda params: ravel_pytree(params)[0])(every)
        return flat, jax.lax.map(mean_loss, every)

    rows = jnp.asarray(orders.reshape(len(seeds), -1, size))
    params, values = jax.jit(jax.vmap(run))(jnp.asarray(seeds), rows)
    return Trajectories(np.asarray(params), np.asarray(values), group)


def _orders(seed: int, count: int, epochs: int) -> np.ndarray:
    """A permutation of the images for each epoch."""
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(count) for _ in range(epochs)])


def _pgd(loss, norm: str, threat, key, params, x, y):
    """PGD from a random point of the ball, as in training; the last iterate."""
    slope = jax.grad(lambda z: loss(params, z, y).sum())
    flat = lambda z: z.reshape(len(z), -1)
    clean = flat(x)

    def moved(z, length, g):
        if norm == "linf":
            direction = jnp.sign(g)
        else:
            direction = g / jnp.maximum(jnp.linalg.norm(g, axis=1, keepdims=True), 1e-30)
        return project(z + length * direction, clean, norm, threat.eps)

    def step(_, z):
        return moved(z, threat.step_size, flat(slope(z.reshape(x.shape))))

    start_key, length_key = jax.random.split(key)
    if norm == "linf":
        noise = jax.random.uniform(start_key, clean.shape, minval=-1.0)
        start = project(clean + threat.eps * noise, clean, norm, threat.eps)
    else:
        length = threat.eps * jax.random.uniform(length_key, (len(x), 1))
        start = moved(clean, length, jax.random.normal(start_key, clean.shape))
    return jax.lax.fori_loop(0, threat.num_steps, step, start).reshape(x.shape)


@functools.cache
def unraveler(setting: Setting, shape: tuple[int, int, int]):
    """Maps flat float64 parameters to those of the module; 64 bits must be enabled."""
    params = network(setting).init(jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    return ravel_pytree(jax.tree.map(lambda p: p.astype(jnp.float64), params))[1]
