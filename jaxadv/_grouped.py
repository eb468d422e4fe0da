"""Grouped convolutions in the forms that are fast on CPU; see :mod:`jaxadv._convolution`.

XLA's CPU backend computes grouped convolutions with scalar code, their gradients in the kernel
hundreds of times more slowly (``python -m benchmarks.own_networks``). Instead:

* One channel a group and few features (depthwise): sums of shifted images, each times one entry of
  the kernel.
* Otherwise: neighboring groups are joined to blocks of at least 16 channels, whose kernels have
  zeros between the groups; the blocks are ordinary convolutions in a loop. What is not finite
  spreads over its block.

All arrays have the layouts NHWC and HWIO.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from .types import Array

_CHANNELS = 16  # XLA's convolution is slow with fewer


def is_depthwise(channels: int, features: int) -> bool:
    """Whether `depthwise` is the faster form for groups of that many channels and features."""
    return channels == 1 and features <= 4


def depthwise(
    a: Array, b: Array, missing: str, groups: int, size: tuple[int, int], window: dict[str, Any]
) -> Array:
    """The missing array of a convolution with one channel a group.

    Args:
      a: images, or the result where the images are missing.
      b: kernel, turned round where the images are missing; or the result.
      missing: images, kernel or result.
      groups: number of channels.
      size: height and width of the missing array.
      window: of the convolution of ``a`` with ``b`` as its kernel, without groups, that gives the
        missing array.
    """
    wide = jnp.promote_types(a.dtype, jnp.float32)  # of the sums
    features = b.shape[-1] // groups  # of each channel
    x, w = a.astype(wide), b.astype(wide)
    if missing != "images":
        x = jnp.repeat(x, features, axis=-1)
    zeros = [step - 1 for step in window.get("lhs_dilation", (1, 1))]
    space = [
        (low, high, inner) for (low, high), inner in zip(window["padding"], zeros, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), wide), [(0, 0, 0), *space, (0, 0, 0)])
    steps, dilation = window["window_strides"], window.get("rhs_dilation", (1, 1))
    if missing == "kernel":
        return _sums_of_products(x, w, size, steps, dilation).astype(a.dtype)
    found = functools.reduce(jnp.add, (
        _part(x, (i * dilation[0], j * dilation[1]), size, steps) * w[i : i + 1, j : j + 1]
        for i in range(w.shape[0])
        for j in range(w.shape[1])
    ))  # fmt: skip
    if missing == "images" and features > 1:
        found = found.reshape(*found.shape[:-1], groups, features).sum(-1)
    return found.astype(a.dtype)


def _part(x: Array, offset: Any, size: tuple[int, ...], steps: tuple[int, ...]) -> Array:
    """Every so many of the pixels of images, that many of them, from an offset on."""
    spans = [step * (n - 1) + 1 for n, step in zip(size, steps, strict=True)]
    found = lax.dynamic_slice(x, (0, *offset, 0), (x.shape[0], *spans, x.shape[3]))
    return lax.slice(found, (0, 0, 0, 0), found.shape, (1, *steps, 1))


def _sums_of_products(
    x: Array, w: Array, size: tuple[int, int], steps: tuple[int, int], dilation: tuple[int, int]
) -> Array:
    """The gradient in the kernel; a loop, since the program of all entries compiles slowly."""

    def entry(place: Array) -> Array:
        offset = (place[0] * steps[0], place[1] * steps[1])
        return (_part(x, offset, w.shape[1:3], dilation) * w).sum((0, 1, 2))

    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, size), indexing="ij"), -1).reshape(-1, 2)
    return lax.map(entry, places).reshape(*size, 1, w.shape[3])


def blocks(
    a: Array,
    b: Array,
    missing: str,
    groups: int,
    channels: int,
    dense: Callable[[Array, Array], Array],
) -> Array:
    """The missing array of a convolution with several channels a group.

    Args:
      a: the first of images, kernel and result that is given.
      b: the second.
      missing: the third.
      groups: number of groups.
      channels: of a group.
      dense: the missing arrays of ordinary convolutions, stacked along the first axis as the given.
    """
    joined = min(n for n in range(1, groups + 1)
                 if groups % n == 0 and (n * channels >= _CHANNELS or n == groups))  # fmt: skip
    number = groups // joined
    inside = jnp.eye(joined, dtype=bool)[:, None, :, None]  # a group's channels and features

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:3], number, -1), 3, 0)

    def with_zeros(kernel: Array) -> Array:
        height, width, channels, features = kernel.shape
        parts = kernel.reshape(height, width, 1, channels, number, joined, features // groups)
        parts = jnp.moveaxis(parts, 4, 0)
        full = jnp.where(inside[None, None, None], parts, jnp.zeros((), kernel.dtype))
        return full.reshape(number, height, width, joined * channels, -1)

    first = with_zeros(a) if missing == "images" else split(a)
    second = with_zeros(b) if missing == "result" else split(b)
    found = dense(first, second)
    if missing != "kernel":
        return jnp.moveaxis(found, 0, 3).reshape(*found.shape[1:4], -1)
    height, width = found.shape[1:3]
    parts = found.reshape(number, height, width, joined, channels, joined, -1)
    parts = jnp.where(inside[None, None, None], parts, jnp.zeros((), found.dtype)).sum(3)
    return jnp.moveaxis(parts, 0, 3).reshape(height, width, channels, -1)
