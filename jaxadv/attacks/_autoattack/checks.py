"""Automatic checks of AutoAttack: signs that a robust accuracy is misleading.

Wrong shapes, dtypes, ranges and labels are errors before anything runs. The checks here evaluate
the model on the first images and return data; none stops the evaluation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from ... import losses
from ...types import Array
from .._kernel import Kernel
from .._model import Forward
from .result import Check

_BLACK_BOX_RATE, _LEVEL = 0.002, 0.01
_ROUNDING = 1e-4  # relative change of float32 logits between batch shapes


def margin_gradient(model: Callable[[Array], Array], images: Array, labels: Array) -> Array:
    """The gradient of the margin of each image, in the images."""
    return jax.grad(lambda points: losses.margin(model(points), labels).sum())(images)


compiled_gradient = jax.jit(margin_gradient)  # of a program, see :mod:`jaxadv._program`


def check_model(
    call: Forward,
    gradient: Callable[[Array, Array], Array],
    images: Array,
    labels: Array,
    randomized: bool,
) -> list[Check]:
    """The checks before the attacks.

    Args:
        call: maps images and the number of the evaluation to logits, as the caller's function.
        gradient: of the margin in the images, of the model that the attacks differentiate; a
            function of images and labels.
        images: the first few images of the data set.
        labels: theirs.
        randomized: whether the model is declared randomized.

    Returns:
        One :class:`Check` each; none if the logits are not finite.
    """
    logits = np.asarray(call(images, 0), np.float64)
    if not np.isfinite(logits).all():
        return []
    found = [_probabilities(logits)]
    scale = 1 + np.abs(logits).max()
    if not randomized:
        found.append(_repeatable(call, images, logits))
        if found[-1].passed:
            found.append(_composition(call, images, logits, scale))
    found.append(_gradients(gradient(images, labels)))
    return found


def check_black_box(plan: dict[str, Kernel], broken_by: np.ndarray) -> list[Check]:
    """Whether gradient-free attacks broke images that gradient attacks did not: a sign of masking.

    Networks without masking lose up to 0.2 % of the images this way. The check fails if a count
    this large has less than 1 % probability at that rate (one-sided exact binomial test), so a
    single image in a few hundred passes.

    Args:
        plan: the attacks that ran, by name, in order.
        broken_by: the attack that broke each image.

    Returns:
        A :class:`Check` for each gradient-free attack that follows a gradient attack.
    """
    found, gradients = [], False
    for name, kernel in plan.items():
        gradients |= kernel.uses_gradients
        if kernel.uses_gradients or not gradients:
            continue
        broken, number = int((broken_by == name).sum()), len(broken_by)
        chance = float(scipy.stats.binom.sf(broken - 1, number, _BLACK_BOX_RATE))
        usual = chance >= _LEVEL
        text = f"{name.capitalize()} took {broken} of {number} images after the gradient attacks"
        text += "" if usual else ": gradients may be masked; try more queries or restarts"
        found.append(Check(name, usual, text, broken / number))
    return found


def check_finite(bad: int, number: int) -> Check:
    """Whether all clean logits are finite."""
    text = f"logits of {bad} of {number} images are not finite"
    return Check("finite", bad == 0, text + (", which makes them not robust" if bad else ""), bad)


def _probabilities(logits: np.ndarray) -> Check:
    off = float(np.abs(logits.sum(axis=1) - 1).max())
    inside = logits.min() > -1e-5 and logits.max() < 1 + 1e-5 and off < 1e-5
    message = "the outputs are probabilities: return the logits before the softmax"
    return Check("logits", not inside, message if inside else "the outputs are logits", off)


def _repeatable(call: Forward, images: Array, logits: np.ndarray) -> Check:
    unit = lambda z: z / (np.linalg.norm(z, axis=1, keepdims=True) + 1e-10)
    again = [np.asarray(call(images, n), np.float64) for n in range(1, 5)]
    apart = max(float(np.linalg.norm(unit(z) - unit(logits), axis=1).max()) for z in again)
    moved = any((z.argmax(1) != logits.argmax(1)).any() for z in again)
    good = apart <= 1e-4 and not moved
    message = (
        "the same images get different logits: use version='rand' with a model that takes a key"
    )
    return Check("deterministic", good, "logits are repeatable" if good else message, apart)


def _composition(call: Forward, images: Array, logits: np.ndarray, scale: float) -> Check:
    """Whether images keep their logits among other images, and the last one alone."""
    others, rows = 1 - images, np.arange(len(images))
    trials: list[tuple[Array, Any, Any]] = []
    if len(images) == 1:
        pairs = [(images, others), (others, images)]
        trials = [(jnp.concatenate(pair), [i], [0]) for i, pair in enumerate(pairs)]
    else:
        # Uncompiled, a new shape compiles every operation, so two trials have the shape of the
        # first call: every other image is replaced, so that the rest have new neighbors.
        trials = [(images[-1:], [0], rows[-1:])]
        for kept in (rows[::2], rows[1::2]):
            trials.append((others.at[kept].set(images[kept]), kept, kept))
    moved = [np.asarray(call(x, 0))[kept] - logits[own] for x, kept, own in trials]
    apart = float(max(np.abs(difference).max() for difference in moved) / scale)
    good = apart <= _ROUNDING
    message = "the logits of an image depend on its batch: is BatchNorm in train mode?"
    return Check("batch", good, "logits do not depend on the batch" if good else message, apart)


def _gradients(gradients: Array) -> Check:
    gradients = gradients.reshape(len(gradients), -1)
    zero = int((jnp.abs(gradients).max(axis=1) == 0).sum())
    bad = int((~jnp.isfinite(gradients)).any(axis=1).sum())
    if bad:
        return Check("gradients", False, f"gradients of {bad} images are not finite", bad)
    message = f"gradients of {zero} of {len(gradients)} images are zero"
    if zero:
        message += ": gradient-based attacks cannot be trusted"
    return Check("gradients", zero == 0, message, zero)
