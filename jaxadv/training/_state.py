"""Training data and state on the device, and the metrics of a call."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..types import Array, Params, PyTree

NEVER = jnp.iinfo(jnp.int32).max

# The metrics of a call, by name. Integers count images, and floats are sums over images, to be
# divided by "count" on the host:
#     loss: the training loss;
#     robust: adversarial training images classified correctly;
#     clean: clean ones, where the clean pass is on;
#     count: images;
#     bad_step: not a sum but the first minibatch whose loss was not finite, NEVER if none.
Metrics: TypeAlias = dict[str, Array]


@jax.tree_util.register_pytree_node_class
class DeviceData:
    """A data set on the device.

    A pytree of two leaves. Images are stored as rows, (N, H*W*C), and minibatches get their shape
    after they are gathered: an accelerator that tiles the last two axes would copy and pad the
    whole set of (N, H, W, C) in every call.

    Attributes:
        pixels: the images as rows, of shape (N, H*W*C).
        labels: class indices of shape (N,), int32.
        image_shape: (H, W, C).

    Args:
        images: of shape (N, H, W, C): uint8 (or other integers of 0 to 255), or floats in [0, 1].
        labels: class indices of shape (N,), int32.

    Example:
        >>> data = DeviceData(jnp.zeros((16, 2, 2, 1), jnp.uint8), jnp.arange(16) % 3)
        >>> data.pixels.shape, data.images.shape
        ((16, 4), (16, 2, 2, 1))
    """

    pixels: Array
    labels: Array
    image_shape: tuple[int, ...]

    def __init__(self, images: Any, labels: Any) -> None:
        if not getattr(images, "shape", ()):
            raise ValueError(
                f"images is a {type(images).__name__}; pass an array of shape (N, H, W, C)"
            )
        self.pixels, self.labels, self.image_shape = _rows(images), labels, tuple(images.shape[1:])

    @property
    def images(self) -> Array:
        """The images, of shape (N, H, W, C); of a JAX array, a copy."""
        return self.pixels.reshape(self.pixels.shape[0], *self.image_shape)

    def __iter__(self) -> Iterator[Array]:
        """Yields the images and the labels."""
        return iter((self.images, self.labels))

    def __repr__(self) -> str:
        """The constructor's arguments."""
        return f"DeviceData(pixels={self.pixels!r}, labels={self.labels!r})"

    def _replace(self, **changes: Array) -> "DeviceData":
        """A copy with other images or labels."""
        return DeviceData(**({"images": self.images, "labels": self.labels} | changes))

    def tree_flatten(self) -> tuple[tuple[Array, Array], tuple[int, ...]]:
        """The leaves and the static image shape."""
        return (self.pixels, self.labels), self.image_shape

    @classmethod
    def tree_unflatten(cls, image_shape: tuple[int, ...], leaves: Sequence[Any]) -> "DeviceData":
        """The data set with other leaves, which need not be arrays."""
        data = object.__new__(cls)
        (data.pixels, data.labels), data.image_shape = leaves, image_shape
        return data


class TrainState(struct.PyTreeNode):
    """The state of training, and everything a checkpoint must contain.

    Attributes:
        step: minibatch gradients taken so far, shape (), int32.
        params: the parameters theta; under EntropySGD the slow weights.
        batch_stats: running statistics of BatchNorm, {} without.
        opt_state: state of the optimizer.
    """

    step: Array
    params: Params
    batch_stats: PyTree
    opt_state: Any

    @classmethod
    def create(cls, params: Params, batch_stats: PyTree, tx: Any) -> "TrainState":
        """The state before the first minibatch, sharing no buffer with its arguments."""
        copy = lambda tree: jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
        params = copy(params)
        return cls(jnp.zeros((), jnp.int32), params, copy(batch_stats), tx.init(params))


class Predictions(NamedTuple):
    """Predicted classes of a batch.

    Attributes:
        clean: at the clean images, shape (B,).
        adversarial: at the adversarial images, shape (B,).
    """

    clean: Array | np.ndarray
    adversarial: Array | np.ndarray


def _rows(images: Any) -> Any:
    shape = (images.shape[0], math.prod(images.shape[1:]))
    if isinstance(images, jax.ShapeDtypeStruct):  # for lowering without data
        return jax.ShapeDtypeStruct(shape, images.dtype, sharding=images.sharding)
    return images.reshape(shape)
