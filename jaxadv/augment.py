"""Augmentations of image batches, written for use inside a compiled training step.

Images are floats of shape (B, H, W, C) in [0, 1]; every function keeps shape, dtype and range, and
draws independently for every image.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from ._checks import check_choice
from ._types import Array, Key

Augmentation: TypeAlias = Callable[[Key, Array], Array]


def random_crop(key: Key, images: Array, *, padding: int = 4, mode: str = "reflect") -> Array:
    """Pads every side and cuts a window of the original size at a random place.

    Args:
        key: typed PRNG key.
        images: of shape (B, H, W, C).
        padding: pixels added to each side.
        mode: how :func:`jax.numpy.pad` fills them: "reflect" (CIFAR-10 in the AWP code) or
            "constant" (zeros).

    Returns:
        Images of the same shape.

    Example:
        >>> random_crop(jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
        (2, 8, 8, 3)
    """
    widths = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(images, widths, mode=mode)
    corners = jax.random.randint(key, (images.shape[0], 2), 0, 2 * padding + 1)

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)


def random_flip(key: Key, images: Array) -> Array:
    """Mirrors each image left to right with probability one half.

    Args:
        key: typed PRNG key.
        images: of shape (B, H, W, C).

    Returns:
        Images of the same shape.

    Example:
        >>> random_flip(jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
        (2, 8, 8, 3)
    """
    flips = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flips, images[:, :, ::-1], images)


def _crop_flip(key: Key, images: Array) -> Array:
    crop_key, flip_key = jax.random.split(key)
    return random_flip(flip_key, random_crop(crop_key, images))


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": lambda key, images: images,
    "reflect_crop_flip": _crop_flip,
}


def augmentation(name: str) -> Augmentation:
    """The augmentation of that name: "none" or "reflect_crop_flip" (CIFAR-10 in the AWP code).

    Args:
        name: a key of ``AUGMENTATIONS``.

    Returns:
        A function of a key and images.

    Raises:
        ValueError: on an unknown name.

    Example:
        >>> augmentation("none")(jax.random.key(0), jnp.ones((1, 8, 8, 1))).shape
        (1, 8, 8, 1)
    """
    check_choice("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]
