"""Augmentations that only some data sets use: rotation against Pillow, padding with zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxadv.augment import (
    AUGMENTATIONS,
    _rotate,
    _windows,
    augmentation,
    random_crop,
    random_resized_crop,
    random_rotation,
)

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
    if name == "resized_crop_flip":
        assert found.shape == (8, 28, 28, 3) and found.dtype == images.dtype
        images = images[:, :28, :28]
    assert found.shape == images.shape and found.dtype == images.dtype
    assert found.min() >= 0 and found.max() <= 1
    assert (name == "none") == bool((found == images).all())
    assert bool((found == 0).any()) == name.startswith("zero")


def smooth(batch, height, width):
    """Images that are linear in both coordinates, which bilinear resizing keeps."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    picture = np.stack([rows / height, columns / width, 0 * rows], axis=-1)
    return jnp.array(np.repeat(picture[None], batch, axis=0), jnp.float32)


@pytest.mark.parametrize("shape", [(40, 40), (24, 60)])
def test_resized_windows_have_torchvisions_areas_and_ratios_and_fill_the_result(shape):
    """The window is read off the result: its central pixels tell where it is and how large."""
    size, batch = 10, 400
    drawn = _windows(jax.random.key(3), (batch, *shape), (0.08, 1.0), (3 / 4, 4 / 3))
    corners, extents = map(np.asarray, drawn)
    assert (corners >= 0).all() and (corners + extents <= shape).all()
    assert (corners % 1 == 0).all() and (extents % 1 == 0).all()
    ratios = extents[:, 1] / extents[:, 0]
    assert ratios.min() > 0.65 and ratios.max() < 1.55  # up to rounding to pixels
    shares = extents.prod(1) / np.prod(shape)
    if shape == (40, 40):
        assert shares.min() < 0.12 and shares.max() > 0.9 and 0.4 < shares.mean() < 0.6
    places = corners / np.maximum(shape - extents, 1)
    assert places.min() == 0 and places.max() == 1
    found = np.asarray(random_resized_crop(jax.random.key(3), smooth(batch, *shape), size=size))
    for axis in (0, 1):
        line = found[:, :, size // 2, 0] if axis == 0 else found[:, size // 2, :, 1]
        middle = (line[:, 4] + line[:, 5]) / 2 * shape[axis]
        np.testing.assert_allclose(middle, (corners + extents / 2)[:, axis], atol=1e-3)
        covered = (line[:, 8] - line[:, 1]) / 7 * size * shape[axis]
        np.testing.assert_allclose(covered, extents[:, axis], atol=0.5)


def test_the_whole_image_at_its_own_size_is_unchanged():
    images = jnp.array(IMAGES, jnp.float32) / 255
    whole = dict(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    found = random_resized_crop(jax.random.key(0), images, size=32, **whole)
    np.testing.assert_allclose(found, images, atol=1e-6)


def test_a_window_that_never_fits_is_the_central_one():
    images = smooth(3, 8, 80)
    corners, extents = _windows(jax.random.key(0), images.shape, (1.0, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(extents, [[8, 11]] * 3)
    np.testing.assert_array_equal(corners, [[0, 35]] * 3)


def test_windows_smaller_than_the_result_are_pillows_bilinear_enlargement():
    """Within the image's own edges, which Pillow does not look across."""
    images = jnp.array(IMAGES, jnp.float32) / 255
    options = dict(scale=(0.1, 0.4), ratio=(1.0, 1.0))
    corners, extents = map(np.asarray, _windows(jax.random.key(5), images.shape, *options.values()))
    found = np.asarray(random_resized_crop(jax.random.key(5), images, size=64, **options))
    for image, result, corner, extent in zip(IMAGES, found, corners, extents, strict=True):
        (top, left), (height, width) = corner.astype(int), extent.astype(int)
        box = (left, top, left + width, top + height)
        resized = Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR, box=box)
        margin = int(np.ceil(64 / min(height, width)))
        apart = np.abs(np.asarray(resized) / 255 - result)[margin:-margin, margin:-margin]
        assert apart.max() < 2 / 255
