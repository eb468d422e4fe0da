"""How attacks see a model: compiled once a function, weights passed where they are a pytree.

A plain function is static: its program is compiled once for each function object, with whatever
arrays it closes over. A ``jax.tree_util.Partial(apply, variables)`` is a pytree: its leaves are
arguments of the compiled program, so new weights need no new compilation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._checks import check_eps, check_images, check_labels, check_norm
from .._types import Array, Key

# points of shape (B, H, W, C) and the number of the evaluation -> logits (B, K)
Forward = Callable[[Array, Any], Array]


def split(logits_fn) -> tuple[Any, list]:
    """A hashable part and the leaves that are passed to the compiled program."""
    if isinstance(logits_fn, jax.tree_util.Partial):
        leaves, structure = jax.tree.flatten(logits_fn)
        return structure, leaves
    return logits_fn, []


def join(static, leaves) -> Callable:
    """The inverse of :func:`split`."""
    if isinstance(static, jax.tree_util.PyTreeDef):
        return jax.tree.unflatten(static, leaves)
    return static


def image_keys(key: Key, indices: Array) -> Key:
    """One key an image, from its place in the data set: independent of the batch it is in."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def fold(keys: Key, number) -> Key:
    """``fold_in`` of one number into each key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def forward_fn(logits_fn, keys: Key, randomized: bool) -> Forward:
    """The model as a function of points and the number of the evaluation.

    A randomised model is called image by image (under ``vmap``), each with its own key: its noise
    then does not depend on the batch either.
    """
    if not randomized:
        return lambda points, number: logits_fn(points)

    def call(points, number):
        one = lambda point, key: logits_fn(point[None], key)[0]
        return jax.vmap(one)(points, fold(keys, number))

    return call


def call_fn(logits_fn, key: Key, randomized: bool) -> Forward:
    """The model as a function of points and a number, with one key for the whole batch."""
    if not randomized:
        return lambda points, number: logits_fn(points)
    return lambda points, number: logits_fn(points, jax.random.fold_in(key, number))


def rank_classes(logits: Array) -> Array:
    """Classes by decreasing logit, ties by decreasing class: (B, K) to (B, K)."""
    return jnp.flip(jnp.argsort(logits, axis=1, stable=True), axis=1)


def check_attack(logits_fn, images, labels, norm, eps, indices, randomized=False) -> int:
    """Checks what every attack is given; returns the number of classes.

    Raises:
        ValueError: on images outside [0, 1] or of a wrong dtype or shape, labels out of range, an
            unknown norm, a radius that makes no sense, or logits that are not (B, K).
    """
    check_norm(norm)
    check_images(images)
    check_eps(eps, norm, images[0].size)
    check_labels(labels, images.shape[0])
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
    if randomized:
        logits = jax.eval_shape(logits_fn, shape, jax.random.key(0))
    else:
        logits = jax.eval_shape(logits_fn, shape)
    found = getattr(logits, "shape", None)
    if found is None or len(found) != 2 or found[0] != images.shape[0]:
        raise ValueError(
            f"logits_fn returns shape {found} for images of shape {images.shape}; "
            "expected logits of shape (B, K)"
        )
    check_labels(labels, images.shape[0], found[1])
    if indices is not None and indices.shape != images.shape[:1]:
        raise ValueError(f"indices has shape {indices.shape}; expected {images.shape[:1]}")
    return found[1]
