"""Which images are in a minibatch, and where a compiled program finds them."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..types import Array, Key
from ._state import DeviceData

SHUFFLE, AUGMENT, ATTACK, REFRESH = range(4)  # random streams derived from one key


class Chunk(struct.PyTreeNode):
    """Some consecutive minibatches of a data set that is not on the device.

    Attributes:
        pixels: images as rows, of shape (k, B, H*W*C).
        labels: of shape (k, B).
        first: number of the first minibatch, shape (), int32.
        image_shape: (H, W, C).
    """

    pixels: Array
    labels: Array
    first: Array | np.integer
    image_shape: tuple[int, ...] = struct.field(pytree_node=False)


Source: TypeAlias = DeviceData | Chunk


def num_minibatches(num_images: int, batch_size: int) -> int:
    """Minibatches per epoch: ceil(num_images / batch_size)."""
    if num_images < batch_size:
        raise ValueError(
            f"batch_size={batch_size} exceeds the {num_images} training images; "
            f"use batch_size <= {num_images}"
        )
    return -(-num_images // batch_size)


def epoch_order(key: Key, epoch: Array | int, num_images: int, batch_size: int) -> Array:
    """The rows of an epoch's minibatches, of shape (minibatches, B).

    A permutation of the images, continued from its start to fill the last minibatch.
    """
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, SHUFFLE), epoch)
    permutation = jax.random.permutation(epoch_key, num_images)
    filled = num_minibatches(num_images, batch_size) * batch_size - num_images
    return jnp.concatenate([permutation, permutation[:filled]]).reshape(-1, batch_size)


def gather(
    data: Source, key: Key, first_step: Array, num_steps: int | None, batch_size: int
) -> Callable[[Array], tuple[Array, Array]]:
    """Maps the next ``num_steps`` minibatch counters to images as stored and labels.

    The permutations of the epochs involved are computed here, outside any loop; None means the
    minibatches of an epoch.
    """
    shape = (batch_size, *data.image_shape)
    if isinstance(data, Chunk):
        chunk = data

        def pick(step: Array) -> tuple[Array, Array]:
            index = step - chunk.first
            return chunk.pixels[index].reshape(shape), chunk.labels[index]

        return pick
    num_images = data.pixels.shape[0]
    num_batches = num_minibatches(num_images, batch_size)
    span = 1 + -(-(num_batches if num_steps is None else num_steps) // num_batches)
    first_epoch = first_step // num_batches
    order = lambda epoch: epoch_order(key, epoch, num_images, batch_size)
    orders = jax.vmap(order)(first_epoch + jnp.arange(span)).reshape(-1, batch_size)

    def minibatch(step: Array) -> tuple[Array, Array]:
        rows = orders[step - first_epoch * num_batches]
        return data.pixels[rows].reshape(shape), data.labels[rows]

    return minibatch
