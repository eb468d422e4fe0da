"""Grouped convolutions are replaced, and values and derivatives stay what they were."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxadv.models import fast_convolutions

# Channels, features, size of the kernel, groups, and options of the convolution.
GROUPED = {
    "depthwise": (4, 4, (3, 3), 4, {}),
    "two features a channel": (3, 6, (3, 2), 3, dict(strides=(2, 1), padding=((1, 0), (-1, 2)))),
    "depthwise, dilated": (3, 3, (2, 3), 3, dict(strides=(1, 2), rhs_dilation=(2, 3))),
    "depthwise, NCHW": (3, 6, (3, 3), 3, dict(layout=("NCHW", "OIHW", "NCHW"), strides=(2, 2))),
    "many features a channel": (3, 15, (3, 3), 3, dict(strides=(2, 1))),
    "groups": (12, 6, (3, 3), 3, dict(strides=(1, 2))),
    "groups of many": (34, 4, (2, 3), 2, dict(rhs_dilation=(2, 1), padding=((2, 1), (0, 3)))),
    "groups of 1x1": (8, 16, (1, 1), 4, dict(strides=(2, 2))),
    "joined groups": (18, 9, (3, 3), 9, dict(layout=("HCWN", "IWOH", "WNHC"), padding="VALID")),
}


def conv(x, k, groups, *, layout, strides=(1, 1), padding="SAME", **options):
    options |= dict(dimension_numbers=layout, feature_group_count=groups)
    return lax.conv_general_dilated(x, k, strides, padding, **options)


def assert_close(got, wanted, rtol=1e-12):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        scale = 1 + np.abs(np.asarray(b, np.float64)).max()
        np.testing.assert_allclose(a, b, atol=rtol * scale, rtol=0)


@functools.cache
def grouped(name):
    """A function of images and a kernel with a grouped convolution, and both."""
    channels, features, size, groups, options = GROUPED[name]
    options = dict(layout=("NHWC", "HWIO", "NHWC")) | options
    layout = options["layout"]
    of = lambda letters, **sizes: tuple(sizes[letter] for letter in letters)
    rng = np.random.default_rng(2)
    shape = of(layout[1], O=features, I=channels // groups, H=size[0], W=size[1])
    images = rng.uniform(size=of(layout[0], N=2, H=7, W=6, C=channels))
    function = lambda x, k: jnp.moveaxis(conv(x, k, groups, **options), layout[2].index("N"), 0)
    return function, images, rng.normal(size=shape)


some = lambda names: [
    name if i == 0 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(names)
]


@pytest.mark.parametrize("name", some(GROUPED))
def test_grouped_values_and_derivatives_are_those_of_the_original(x64, name):
    function, x, k = grouped(name)

    def derivatives(function):
        loss = lambda x, k: (
            jnp.sin(function(x, k)) * jnp.cos(jnp.arange(y.size)).reshape(y.shape)
        ).sum()
        gradient, along = jax.grad(loss, (0, 1)), (x[::-1], k[::-1])
        return loss(x, k), gradient(x, k), jax.jvp(gradient, (x, k), along)[1]

    y = jax.eval_shape(function, x, k)
    fast, given = (
        jax.jit(derivatives, static_argnums=0)(f) for f in (fast_convolutions(function), function)
    )
    assert_close(fast, given)


@pytest.mark.parametrize("name", some(["groups", "two features a channel"]))
def test_groups_are_left_on_other_platforms_alone(name):
    function, *given = grouped(name)
    x, k = (jnp.asarray(array, jnp.float32) for array in given)

    def found(function, platform):
        gradient = jax.grad(lambda x, k: jnp.sin(function(x, k)).sum(), (0, 1))
        product = lambda x, k: jax.jvp(gradient, (x, k), (x, k))
        text = jax.jit(product).trace(x, k).lower(lowering_platforms=(platform,)).as_text()
        return sorted(re.findall(r"(dim_numbers = .*?group_count = \d+ : i64, .*?) :", text))

    fast, native = fast_convolutions(function), found(function, "cuda")
    assert found(fast, "cuda") == native and any("group_count = 3" in one for one in native)
    assert not any(re.search(r"group_count = ([2-9])", one) for one in found(fast, "cpu"))


@pytest.mark.parametrize("axes", [(0, None), (None, 1), (1, 0)])
@pytest.mark.parametrize("name", ["two features a channel", "groups"])
@pytest.mark.slow
def test_vmap_of_groups_is_that_of_the_original(name, axes):
    function, *given = grouped(name)
    given = [
        jnp.asarray(a if axis is None else np.stack([a, 2 * a, a - 1], axis), jnp.float32)
        for a, axis in zip(given, axes, strict=True)
    ]
    slopes = lambda f: jax.grad(lambda x, k: jnp.sin(f(x, k)).sum(), (0, 1))
    found = [jax.vmap(slopes(f), axes) for f in (function, fast_convolutions(function))]
    assert_close(jax.jit(found[1])(*given), jax.jit(found[0])(*given), 1e-5)


@pytest.mark.parametrize("name", ["depthwise", "groups"])
@pytest.mark.slow
def test_groups_in_a_short_dtype_are_summed_in_a_long_one(name):
    function, *given = grouped(name)
    x, k = (jnp.asarray(array, jnp.bfloat16) for array in given)
    slopes = lambda f: jax.grad(lambda x, k: (f(x, k) ** 2).sum().astype(jnp.float32), (0, 1))
    fast = jax.jit(slopes(fast_convolutions(function)))(x, k)
    assert {gradient.dtype for gradient in fast} == {jnp.dtype(jnp.bfloat16)}
    exact = slopes(function)(x.astype(jnp.float32), k.astype(jnp.float32))
    assert_close(*(jax.tree.map(lambda a: a.astype(jnp.float32), t) for t in (fast, exact)), 2e-2)
