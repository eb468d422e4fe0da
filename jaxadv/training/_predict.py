"""Compiled prediction on clean and adversarial images."""

from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial

from .._program import trace
from ..attacks import pgd
from ..checks import check_labels
from ..objectives import ApplyFn
from ..types import Array, Key, Params, PyTree
from ._data import check_pixels, check_range, image_dtype, to_float
from ._state import Predictions


def make_predict(
    apply_fn: ApplyFn, **attack: Any
) -> Callable[[Params, PyTree, Key, Array, Array, Array], Predictions]:
    """A compiled function that predicts one batch of clean and PGD adversarial images.

    Args:
        apply_fn: the model, run in eval mode.
        **attack: keyword arguments of :func:`jaxadv.attacks.pgd`.

    Returns:
        ``(params, batch_stats, key, images, labels, indices) -> Predictions`` for images of shape
        (B, H, W, C), uint8 or floats in [0, 1]; ``indices`` are indices of the images in their
        data set, so that predictions do not depend on how the set is split into batches. It raises
        a ``ValueError`` for images on another scale and labels out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> def apply_fn(params, batch_stats, images, train):
        ...     return images.reshape(images.shape[0], -1) @ params, batch_stats
        >>> predict = make_predict(apply_fn, norm="linf", eps=0.1, step_size=0.05, num_steps=3)
        >>> images, labels = jnp.zeros((2, 2, 2, 1), jnp.uint8), jnp.array([0, 1])
        >>> predict(jnp.eye(4), {}, jax.random.key(0), images, labels, jnp.arange(2)).clean.tolist()
        [0, 0]
    """

    @jax.jit
    def predict(
        model: Partial,
        params: Params,
        batch_stats: PyTree,
        key: Key,
        images: Array,
        labels: Array,
        indices: Array,
    ) -> Predictions:
        logits_fn = lambda points: model(params, batch_stats, points)
        images = to_float(images, dtype=image_dtype(params))
        adversarial = pgd(key, logits_fn, images, labels, indices=indices, **attack)
        return Predictions(logits_fn(images).argmax(axis=1), logits_fn(adversarial).argmax(axis=1))

    def traced(
        params: Params, batch_stats: PyTree, key: Key, images: Array, labels: Array, indices: Array
    ) -> Predictions:
        check_pixels(images)
        check_labels(labels, images.shape[0])
        points = jax.ShapeDtypeStruct(images.shape, image_dtype(params))
        eval_fn = lambda params, batch_stats, points: apply_fn(params, batch_stats, points, False)[
            0
        ]
        model = trace(eval_fn, params, batch_stats, points, name="apply_fn")
        logits = jax.eval_shape(model, params, batch_stats, points)
        check_range(labels, logits.shape[-1])
        return predict(model, params, batch_stats, key, images, labels, indices)

    return traced
