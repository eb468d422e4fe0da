"""Training data and state on the device, and the metrics of a call."""

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


class DeviceData(NamedTuple):
    """A data set on the device.

    Attributes:
        images: of shape (N, H, W, C): uint8 (or other integers of 0 to 255), or floats in [0, 1].
        labels: class indices of shape (N,), int32.
    """

    images: Array
    labels: Array


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
