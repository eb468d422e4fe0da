"""The losses that APGD maximizes."""

import jax.numpy as jnp

from ... import losses
from ...types import Array

LOSSES = ("ce", "dlr", "margin")
TARGETED_LOSSES = ("dlr-targeted", "ce-targeted")
MIN_CLASSES = {"ce": 2, "dlr": 3, "margin": 2, "dlr-targeted": 4, "ce-targeted": 2}


def loss_values(name: str, logits: Array, labels: Array, targets: Array) -> Array:
    """The loss of an attack by its name, of shape (B,)."""
    if name == "dlr-targeted":
        return losses.dlr_targeted(logits, labels, targets)
    if name == "ce-targeted":
        return -_cross_entropy(logits, targets)
    untargeted = {"ce": _cross_entropy, "dlr": losses.dlr, "margin": losses.margin}
    return untargeted[name](logits, labels)


def _cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy that stays exact where it is tiny.

    APGD compares losses of confident images with each other: log-sum-exp minus the logit would
    round them all to multiples of the last bit of the logit.
    """
    shifted = losses.log_softmax(logits)
    return -jnp.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
