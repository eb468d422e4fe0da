"""Augmentations of image batches, written for use inside a compiled training step.

Images are floats of shape (B, H, W, C) in [0, 1]; every function keeps dtype and range, all but
`random_resized_crop` the shape, and each draws independently for every image.
"""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from .checks import check_choice
from .keys import typed_key
from .types import Array, Key

Augmentation: TypeAlias = Callable[[Key, Array], Array]


@functools.partial(jax.jit, static_argnames=("padding", "mode"))
def random_crop(key: Key, images: Array, *, padding: int = 4, mode: str = "reflect") -> Array:
    """Pads every side and crops a window of the original size at a random position.

    Args:
        key: PRNG key.
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
    key = typed_key(key)
    widths = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(images, widths, mode=mode)
    corners = jax.random.randint(key, (images.shape[0], 2), 0, 2 * padding + 1)

    def cut(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)


@jax.jit
def random_flip(key: Key, images: Array) -> Array:
    """Mirrors each image left to right with probability one half.

    Args:
        key: PRNG key.
        images: of shape (B, H, W, C).

    Returns:
        Images of the same shape.

    Example:
        >>> random_flip(jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
        (2, 8, 8, 3)
    """
    key = typed_key(key)
    flips = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flips, images[:, :, ::-1], images)


_TRIES = 10  # windows drawn until one fits into the image


@functools.partial(jax.jit, static_argnames=("size", "scale", "ratio"))
def random_resized_crop(
    key: Key,
    images: Array,
    *,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Array:
    """Resizes a random window of each image to a square, bilinearly and without aliasing.

    A window's share of the area is uniform in ``scale`` and the logarithm of its width over its
    height uniform in that of ``ratio``, until one fits (at most ten tries, then the largest central
    window within ``ratio``); its position is uniform. Pixels around the window count at its edges.

    Args:
        key: PRNG key.
        images: of shape (B, H, W, C).
        size: height and width of the result.
        scale: least and greatest share of the area.
        ratio: least and greatest width over height.

    Returns:
        Images of shape (B, size, size, C).

    References:
        Szegedy et al., 2015, "Going Deeper with Convolutions", section 6; constants and rounding of
        torchvision's RandomResizedCrop.

    Example:
        >>> random_resized_crop(jax.random.key(0), jnp.ones((2, 8, 8, 3)), size=7).shape
        (2, 7, 7, 3)
    """
    shape = (size, size, images.shape[3])
    corners, extents = _windows(typed_key(key), images.shape, scale, ratio)

    def resize(image: Array, corner: Array, extent: Array) -> Array:
        zoom = size / extent
        return jax.image.scale_and_translate(
            image, shape, (0, 1), zoom.astype(image.dtype), (-corner * zoom).astype(image.dtype),
            "linear",
        )  # fmt: skip

    return jnp.clip(jax.vmap(resize)(images, corners, extents), 0, 1)


def _windows(
    key: Key, shape: tuple[int, ...], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Array, Array]:
    """Corners and extents of random windows, whole numbers of shape (B, 2)."""
    batch, height, width = shape[:3]
    area_key, ratio_key, corner_key = jax.random.split(key, 3)
    areas = jax.random.uniform(
        area_key,
        (batch, _TRIES),
        minval=scale[0] * height * width,
        maxval=scale[1] * height * width,
    )
    low, high = map(math.log, ratio)
    ratios = jnp.exp(jax.random.uniform(ratio_key, (batch, _TRIES), minval=low, maxval=high))
    extents = jnp.round(jnp.sqrt(jnp.stack([areas / ratios, areas * ratios], axis=-1)))
    whole = jnp.array([[height, width]], extents.dtype)
    fits = ((extents >= 1) & (extents <= whole[:, None])).all(axis=-1)
    first = jnp.argmax(fits, axis=1)
    chosen = jnp.take_along_axis(extents, first[:, None, None], axis=1)[:, 0]
    central = jnp.array(
        [[min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))]], whole.dtype
    )
    fitting = fits.any(axis=1)[:, None]
    places = jnp.where(fitting, jax.random.uniform(corner_key, (batch, 2)), 0.5)
    extents = jnp.where(fitting, chosen, central)
    return jnp.floor(places * (whole - extents + 1)), extents


@functools.partial(jax.jit, static_argnames="degrees")
def random_rotation(key: Key, images: Array, *, degrees: float = 15.0) -> Array:
    """Rotates each image about its center, nearest pixel, filling with zeros.

    Args:
        key: PRNG key.
        images: of shape (B, H, W, C).
        degrees: the angle is uniform in [-degrees, degrees], counter-clockwise.

    Returns:
        Images of the same shape.

    Example:
        >>> random_rotation(jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
        (2, 8, 8, 3)
    """
    key = typed_key(key)
    angles = jax.random.uniform(key, images.shape[:1], minval=-degrees, maxval=degrees)
    return jax.vmap(_rotate)(images, jnp.deg2rad(angles))


def _rotate(image: Array, angle: Array) -> Array:
    height, width = image.shape[:2]
    rows = (jnp.arange(height, dtype=angle.dtype) + 0.5 - height / 2)[:, None]
    columns = (jnp.arange(width, dtype=angle.dtype) + 0.5 - width / 2)[None, :]
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    # The source of each output pixel: the inverse rotation, with the y axis pointing down.
    row = jnp.floor(sine * columns + cosine * rows + height / 2).astype(jnp.int32)
    column = jnp.floor(cosine * columns - sine * rows + width / 2).astype(jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    found = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return jnp.where(inside[..., None], found, 0)


def _crop_flip(key: Key, images: Array, mode: str = "reflect") -> Array:
    crop_key, flip_key = jax.random.split(typed_key(key))
    return random_flip(flip_key, random_crop(crop_key, images, mode=mode))


def _crop_flip_rotate(key: Key, images: Array) -> Array:
    first_key, rotation_key = jax.random.split(typed_key(key))
    return random_rotation(rotation_key, _crop_flip(first_key, images, "constant"))


def _resized_crop_flip(key: Key, images: Array) -> Array:
    crop_key, flip_key = jax.random.split(typed_key(key))
    size = 7 * images.shape[1] // 8  # 224 of 256
    return random_flip(flip_key, random_resized_crop(crop_key, images, size=size))


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": lambda key, images: images,
    "reflect_crop_flip": _crop_flip,
    "zero_crop_flip": lambda key, images: _crop_flip(key, images, "constant"),
    "zero_crop_flip_rotate": _crop_flip_rotate,
    "resized_crop_flip": _resized_crop_flip,
}


def augmentation(name: str) -> Augmentation:
    """Returns the augmentation with a given name.

    ======================= ========================================== ==========================
    name                    what it does                               where it is used
    ======================= ========================================== ==========================
    "none"                  nothing                                    SVHN
    "reflect_crop_flip"     reflect 4 pixels, crop, flip               CIFAR-10 in the AWP code
    "zero_crop_flip"        4 pixels of zeros, crop, flip              TRADES on CIFAR-10
    "zero_crop_flip_rotate" the same, then rotation by up to 15        CIFAR-100 in the AWP code
                            degrees, nearest pixel
    "resized_crop_flip"     a random window resized to 7/8 of the      ImageNet: 224 pixels of 256
                            height, flip
    ======================= ========================================== ==========================

    Args:
        name: a key of ``AUGMENTATIONS``.

    Returns:
        A function of a key and images.

    Raises:
        ValueError: if given an unknown name.

    Example:
        >>> augmentation("none")(jax.random.key(0), jnp.ones((1, 8, 8, 1))).shape
        (1, 8, 8, 1)
    """
    check_choice("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]
