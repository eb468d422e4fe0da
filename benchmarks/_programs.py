"""Adversarial training of a network on random images, shared by several benchmarks."""

import jax.numpy as jnp
import numpy as np

from jaxadv import objectives, training


def adversarial_training(
    module, shape: tuple[int, int, int], *, batch_size: int, num_steps: int, minibatches: int
) -> tuple[training.Program, training.DeviceData]:
    """A training program for a network, and minibatches for it.

    Args:
        module: the network.
        shape: (H, W, C) of an image.
        batch_size: images in a minibatch.
        num_steps: PGD steps.
        minibatches: number of minibatches in the data.
    """

    def apply_fn(params, batch_stats, x, train):
        both = {"params": params, "batch_stats": batch_stats}
        logits, changed = module.apply(both, x, train=train, mutable=["batch_stats"])
        return logits, changed.get("batch_stats", {})

    objective = objectives.adversarial_cross_entropy(apply_fn, num_steps=num_steps)
    program = training.Program(apply_fn, objective, batch_size=batch_size)
    rng = np.random.default_rng(0)
    number = minibatches * batch_size
    images = jnp.asarray(rng.integers(0, 256, (number, *shape), np.uint8))
    labels = jnp.asarray(rng.integers(0, 10, number), jnp.int32)
    return program, training.DeviceData(images, labels)
