"""Zero channels change how a convolution is computed on CPU, not what, and only where they help."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import _channels, attacks, models
from jaxadv._convolution import sharing_cores

SHAPES = [(16, 16), (3, 16), (16, 3), (1, 8), (8, 8), (5, 4), (3, 32), (17, 17), (2, 3), (64, 8)]


def operands(channels, features, size=16, dtype=jnp.float32, kernel=3):
    rng = np.random.default_rng(channels * 100 + features)
    x = jnp.asarray(rng.normal(size=(2, size, size, channels)), dtype)
    return x, jnp.asarray(rng.normal(size=(kernel, kernel, channels, features)), dtype)


def native(x, w, strides=(1, 1), padding="SAME"):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers)


def compiled(channels, features, platform="cpu", grad=False, **options):
    """The program of a convolution before XLA's optimizations, for a platform."""
    x, w = operands(channels, features, **options)
    conv = lambda x, w: models.conv2d(x, w, padding="SAME")
    if grad:
        conv = jax.grad(lambda x, w: models.conv2d(x, w, padding="SAME").sum())
    with sharing_cores():
        return jax.jit(conv).trace(x, w).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize(("channels", "features"), SHAPES)
def test_values_and_derivatives_are_those_of_the_plain_convolution(channels, features, strides):
    with jax.enable_x64(True):
        x, w = operands(channels, features, dtype=jnp.float64)
        ours = functools.partial(models.conv2d, strides=strides, padding="SAME")
        plain = functools.partial(native, strides=strides)
        g = jnp.asarray(np.random.default_rng(0).normal(size=plain(x, w).shape))
        both = lambda conv: jax.jit(lambda x, w: (conv(x, w), jax.vjp(conv, x, w)[1](g)))(x, w)
        with sharing_cores():
            given = both(ours)
        for found, expected in zip(*map(jax.tree.leaves, (given, both(plain))), strict=True):
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "features"), SHAPES)
def test_few_channels_become_what_the_library_takes(channels, features):
    more, wider = _channels.wanted(channels, features)
    assert more >= channels and wider >= features
    assert max(more, wider) > 16
    assert more <= 2 or more % 4 == 0
    text = compiled(channels, features)
    assert f"tensor<3x3x{more}x{wider}xf32>" in text
    assert ("stablehlo.pad" in text) == ((more, wider) != (channels, features))


def test_the_gradient_in_the_images_has_zero_channels_too():
    assert "tensor<3x3x20x3xf32>" in compiled(3, 16, grad=True)


@pytest.mark.parametrize(
    "options",
    [
        dict(platform="cuda"),
        dict(dtype=jnp.bfloat16),
        dict(size=8),  # published results on 8x8 images
        dict(size=14, kernel=15),  # larger than the images
    ],
)
def test_other_convolutions_stay_as_they_are(options):
    assert "stablehlo.pad" not in compiled(16, 16, **options)


def test_a_result_larger_than_the_images_stays_as_it_is():
    x, w = operands(16, 16)

    def text(width):
        conv = lambda x, w: models.conv2d(x, w, padding=((width, width), (width, width)))
        with sharing_cores():
            return jax.jit(conv).lower(x, w).as_text()

    assert "stablehlo.pad" in text(1)
    assert "stablehlo.pad" not in text(2)


def test_no_pixel_is_between_zeros():
    """The image gradient of a strided convolution, which the library does not take."""
    x, w = operands(16, 16)
    loss = lambda x, w: models.conv2d(x, w, strides=(2, 2), padding="SAME").sum()
    with sharing_cores():
        text = jax.jit(jax.grad(loss)).lower(x, w).as_text()
    assert "lhs_dilate = [2, 2]" in text
    assert "stablehlo.pad" not in text


def test_a_program_with_all_cores_to_itself_stays_as_it_is():
    x, w = operands(16, 16)
    conv = lambda x, w: models.conv2d(x, w, padding="SAME")
    assert "stablehlo.pad" not in jax.jit(conv).lower(x, w).as_text()


def test_programs_for_several_devices_share_the_cores():
    mesh = jax.make_mesh((2,), ("batch",), devices=jax.devices()[:2])
    rows = jax.sharding.PartitionSpec("batch")
    place = jax.sharding.NamedSharding(mesh, rows)
    x, w = operands(16, 16)
    x = jax.device_put(x, place)
    conv = lambda x, w: models.conv2d(x, w, padding="SAME")
    split = jax.shard_map(
        conv, mesh=mesh, in_specs=(rows, jax.sharding.PartitionSpec()), out_specs=rows
    )
    for function in (conv, split):
        assert "stablehlo.pad" in jax.jit(function).lower(x, w).as_text()


def test_autoattack_shares_the_cores(monkeypatch):
    """Whatever the number of its workers, so that its bits do not depend on it."""
    seen, plain = [], _channels.convolve

    def convolve(run, a, b, **window):
        seen.append(b.shape)
        return plain(run, a, b, **window)

    monkeypatch.setattr(_channels, "convolve", convolve)
    x, w = operands(3, 7)
    logits_fn = lambda images: models.conv2d(images, w, padding="SAME").mean((1, 2))
    images = jax.nn.sigmoid(x)
    attacks.autoattack(
        jax.random.key(0), logits_fn, images, logits_fn(images).argmax(1), norm="linf", eps=1e-4,
        version="custom", attacks=["apgd-ce"], num_steps=3, progress=False,
    )  # fmt: skip
    assert (3, 3, 3, 7) in seen and (3, 3, 7, 3) in seen
