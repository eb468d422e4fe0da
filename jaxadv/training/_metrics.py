"""The metrics of a minibatch, and how those of several add up."""

import jax.numpy as jnp

from ..objectives import LossAux
from ..types import Array, Params
from ._state import NEVER, Metrics


def measured(step: Array, loss: Array, aux: LossAux, labels: Array, grads: Params) -> Metrics:
    """The metrics of one minibatch: integers count images, floats are sums over images.

    To log another number, add a line here; for example, a norm of ``grads``.
    """
    correct = aux.logits.argmax(axis=1) == labels
    return {
        "loss": loss.astype(jnp.result_type(float)) * labels.size,
        "robust": jnp.sum(correct, dtype=jnp.int32),
        "count": jnp.int32(labels.size),
        "bad_step": jnp.where(jnp.isfinite(loss), NEVER, step),
    }


def nothing(like: Metrics) -> Metrics:
    """The metrics of zero minibatches, with the shapes and dtypes of ``like``."""
    zeros = {name: jnp.zeros(value.shape, value.dtype) for name, value in like.items()}
    return zeros | {"bad_step": jnp.int32(NEVER)}


def added(metrics: Metrics, found: Metrics) -> Metrics:
    """The metrics of the minibatches so far and of one more."""
    add = lambda name: jnp.minimum if name == "bad_step" else jnp.add
    return {name: add(name)(metrics[name], value) for name, value in found.items()}
