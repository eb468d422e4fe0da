"""Zero channels with which XLA's CPU convolutions of few channels are fast.

On a core, XLA computes a convolution by YNNPACK, at twice the rate of its older library, Eigen, if
images or result have more than 16 channels, the result is no larger than the images, and there are
no zeros between pixels (``xla/backends/cpu/ynn_support.cc``). YNNPACK itself is fast at one, two,
and multiples of four input channels. Zeros in images and kernel change rounding only.

Not for a program that has all cores to itself: before jaxlib 0.12 YNNPACK uses one of them, Eigen
all.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .types import Array

_EIGEN = 16  # most channels of a convolution that Eigen computes
_MORE = 20  # input channels: a multiple of four
# Below, the gain is milliseconds, and the published results on 8x8 images keep their bits.
_PIXELS = 12 * 12


def convolve(run: Callable[[Array, Array], Array], a: Array, b: Array, **window: Any) -> Array:
    """A convolution of NHWC images with an HWIO kernel, with zero channels where that is faster.

    Args:
      run: the convolution.
      a: images.
      b: kernel.
      window: the options of ``run`` that say where the kernel is applied.
    """
    channels, features = b.shape[2:]
    more, wider = wanted(channels, features)
    if (more, wider) == (channels, features) or not _is_library(a, b, **window):
        return run(a, b)
    a = jnp.pad(a, [(0, 0)] * 3 + [(0, more - channels)])
    b = jnp.pad(b, [(0, 0)] * 2 + [(0, more - channels), (0, wider - features)])
    return run(a, b)[..., :features]


def wanted(channels: int, features: int) -> tuple[int, int]:
    """Numbers of input and output channels at least as large as these.

    Example:
        >>> wanted(16, 16), wanted(3, 16), wanted(16, 3), wanted(3, 32), wanted(64, 64)
        ((20, 16), (4, 17), (20, 3), (4, 32), (64, 64))
    """
    if min(channels, features) == 0 or max(channels, features) > 2 * _EIGEN:
        return channels, features
    padded = channels if channels <= 2 else channels + -channels % 4
    if max(padded, features) > _EIGEN:
        return padded, features
    wide = _EIGEN + 1
    # Zeros in the result must be cut off again.
    if padded < _EIGEN and padded * wide <= _MORE * features:
        return padded, wide
    return _MORE, features


def _is_library(a: Array, b: Array, *, size: tuple[int, int], **window: Any) -> bool:
    """Whether the library takes it, and it is large enough."""
    space = a.shape[1:3]
    return (
        a.dtype in (jnp.float32, jnp.float64)
        and math.prod(space) >= _PIXELS
        and all(n <= m for n, m in zip(size, space, strict=True))
        and all(n <= m for n, m in zip(b.shape[:2], space, strict=True))
        and window.get("lhs_dilation", (1, 1)) == (1, 1)
    )
