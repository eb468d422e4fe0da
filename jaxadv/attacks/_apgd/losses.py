"""The pieces of a run of APGD that its public functions and AutoAttack share: losses and phases."""

import math

import jax
import jax.numpy as jnp

from .. import losses
from .._types import Array
from . import _apgd_run as runs
from . import _model

LOSSES = ("ce", "dlr", "margin")
TARGETED_LOSSES = ("dlr-targeted", "ce-targeted")
MIN_CLASSES = {"ce": 2, "dlr": 3, "margin": 2, "dlr-targeted": 4, "ce-targeted": 2}


def loss_values(name: str, logits: Array, labels: Array, targets) -> Array:
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


def evaluator(forward: _model.Forward, loss: str, labels, targets, eot: int) -> runs.Evaluate:
    """Loss, correctness and gradient of a batch; with ``eot`` draws the gradients are averaged."""

    def once(points, number):
        def total(points):
            logits = forward(points, number)
            values = loss_values(loss, logits, labels, targets)
            return values.sum(), (values, _model.is_correct(logits, labels))

        gradients, (values, correct) = jax.grad(total, has_aux=True)(points)
        return values.astype(points.dtype), correct, _model.finite(gradients)

    def averaged(points, number):
        def add(draw, carry):
            values, correct, gradients = once(points, number * eot + draw)
            return values, correct, carry[2] + gradients

        first = once(points, number * eot)
        values, correct, gradients = jax.lax.fori_loop(1, eot, add, first)
        return values, correct, gradients / eot

    return once if eot == 1 else averaged


def phases(options: runs.Options, three_radii: bool) -> list[tuple[float, runs.Options]]:
    """Factors of eps and options of the consecutive parts of a run."""
    if not three_radii:
        return [(1.0, options)]
    third = math.ceil(0.3 * options.num_steps)
    lengths = (third, third, options.num_steps - 2 * third)
    last = [False, False, options.early_exit]
    return [
        (factor, options._replace(num_steps=length, early_exit=early))
        for factor, length, early in zip((3.0, 2.0, 1.0), lengths, last, strict=True)
    ]


def phase_start(images: Array, points: Array, eps) -> Array:
    """Where a phase of ``three_radii`` starts: the points, projected on its radius."""
    return jnp.clip(images + runs.project_l1_box(images, points - images, eps), 0, 1)
