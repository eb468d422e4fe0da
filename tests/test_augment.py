"""Augmentations that only some data sets use: rotation against Pillow, padding with zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxadv.augment import AUGMENTATIONS, _rotate, augmentation, random_crop, random_rotation

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 256, (8, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("angle", [-15.0, -4.0, 0.0, 7.5, 15.0, 90.0])
def test_rotation_is_pillows(angle):
    """Counter-clockwise, nearest pixel, zeros outside; up to pixels that lie on an edge."""
    found = np.asarray(jax.vmap(_rotate)(jnp.array(IMAGES), jnp.full(8, np.deg2rad(angle))))
    expected = [
        np.asarray(Image.fromarray(x).rotate(angle, Image.Resampling.NEAREST)) for x in IMAGES
    ]
    assert (found == np.stack(expected)).all(-1).mean() > (0.99 if angle % 90 else 0.96)


def test_angles_fill_their_range():
    picture = jnp.zeros((500, 33, 33, 1)).at[:, 16, 32].set(1.0)
    rotated = np.asarray(random_rotation(jax.random.key(0), picture, degrees=15.0))
    rows = [np.argwhere(image[..., 0])[:, 0].mean() for image in rotated if image.any()]
    reach = 16 * np.sin(np.deg2rad(15))
    assert min(rows) < 16 - 0.8 * reach and max(rows) > 16 + 0.8 * reach
    assert min(rows) > 16 - reach - 1 and max(rows) < 16 + reach + 1
    assert abs(np.mean(rows) - 16) < 0.5


def test_padding_with_zeros():
    crops = np.asarray(
        random_crop(jax.random.key(1), jnp.array(IMAGES, jnp.float32) / 255, mode="constant")
    )
    padded = np.pad(IMAGES, ((0, 0), (4, 4), (4, 4), (0, 0)))
    for crop, image in zip(np.rint(255 * crops).astype(np.uint8), padded, strict=True):
        windows = [image[i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
        assert any(np.array_equal(crop, window) for window in windows)


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_every_augmentation_keeps_shape_dtype_and_range(name):
    images = jnp.array(IMAGES, jnp.float32) / 255
    found = jax.jit(augmentation(name))(jax.random.key(2), images)
    assert found.shape == images.shape and found.dtype == images.dtype
    assert found.min() >= 0 and found.max() <= 1
    assert (name == "none") == bool((found == images).all())
    assert bool((found == 0).any()) == name.startswith("zero")
