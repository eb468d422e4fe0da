"""Which images are in a minibatch, and the random streams of a run's key."""

import jax
import jax.numpy as jnp

from ..types import Array, Key

SHUFFLE, AUGMENT, ATTACK, REFRESH = range(4)  # random streams derived from one key


def epoch_order(
    key: Key, epoch: Array | int, num_images: int, num_batches: int, batch_size: int
) -> Array:
    """The rows of an epoch's minibatches, of shape (num_batches * batch_size,).

    A permutation of the images, continued from its start to fill the last minibatch.
    """
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, SHUFFLE), epoch)
    permutation = jax.random.permutation(epoch_key, num_images)
    return jnp.concatenate([permutation, permutation[: num_batches * batch_size - num_images]])
