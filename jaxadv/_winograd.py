r"""3x3 convolutions with 16 instead of 36 products for each four pixels of the result, on CPU.

Winograd's minimal filtering computes a 2x2 tile of the result y from a 4x4 tile of the images x,

.. math:: y = A^T [(G w G^T) \odot (B^T x B)] A,

summed over the channels before the last transform: sums and halves around 16 products of matrices,
(tiles, channels) by (channels, features). XLA computes those at the full rate of a core. The
gradient in the kernel is the transposed form, :math:`G^T [(A y A^T) \odot (B^T x B)] G`, summed
over tiles. Rounding errors are those of the direct convolution or less: fewer products are added.

References:
    Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, section 4.1.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax import lax

from .types import Array

Pair: TypeAlias = tuple[int, int]
Pads: TypeAlias = tuple[Pair, Pair]  # before and after the height, before and after the width
Grid: TypeAlias = list[list[Array]]  # the entries of a tile, each an array over all tiles

_CHANNELS = 32  # below, the transforms take as long as the products
_TILES = 64  # below, the transform of the kernel does
# Floating-point operations of the direct form: 5 ms of a core. Below, what is gained is not worth
# the compilation of some 50 kernels instead of one.
_OPERATIONS = 2**29
_TYPES = (jnp.float32,)
_HIGHEST = {"highest", "float32"}  # JAX's names of the highest precision
_BYTES = 2**22  # of transformed tiles, which should stay in the cache of a core


def is_faster(
    images: tuple[int, ...], result: tuple[int, ...], kernel: Pair, dtype: Any, precision: Any
) -> bool:
    """Whether this is the better form of a convolution without strides and dilation.

    Args:
      images: shape, NHWC.
      result: shape, NHWC.
      kernel: its height and width.
      dtype: of all.
      precision: of the products; the highest is for the direct convolution.
    """
    asked = precision if isinstance(precision, tuple) else (precision,)
    operations = 2 * 9 * math.prod(result) * images[3]
    return (
        kernel == (3, 3)
        and dtype in _TYPES
        and min(images[3], result[3]) >= _CHANNELS
        and images[0] * _num_tiles(result[1:3]) >= _TILES
        and operations >= _OPERATIONS
        and not _HIGHEST & {str(part).lower() for part in asked}
    )


def computed(
    a: Array, b: Array, missing: str, size: Pair, padding: Pads, precision: Any
) -> Array | None:
    """The missing array of a convolution in this form; None if it is not the better one.

    Args:
      a: the first of images (NHWC), kernel (HWIO) and result (NHWC) that is given.
      b: the second.
      missing: "images", "kernel" or "result".
      size: height and width of the missing array.
      padding: of the images.
      precision: of the products.
    """
    better = lambda images, result, kernel: is_faster(images, result, kernel, a.dtype, precision)
    if missing == "kernel":
        if better(a.shape, b.shape, size):
            return kernel_gradient(a, b, padding=padding)
    elif missing == "result":
        if better(a.shape, (len(a), *size, b.shape[3]), b.shape[:2]):
            return convolve(a, b, padding=padding, size=size)
    elif better((len(b), *size, a.shape[2]), b.shape, a.shape[:2]):
        lows = [2 - low for low, _ in padding]
        sizes = zip(lows, size, b.shape[1:3], strict=True)
        top, left = ((low, images + 2 - result - low) for low, images, result in sizes)
        return convolve(b, a, padding=(top, left), size=size, turned=True)
    return None


def convolve(
    images: Array, kernel: Array, *, padding: Pads, size: Pair, turned: bool = False
) -> Array:
    """The result of NHWC images and an HWIO kernel.

    Args:
      images: x.
      kernel: w.
      padding: of the images.
      size: height and width of the result.
      turned: whether to turn the kernel round and swap its channels and features. This permutes
        and transposes the factors, so that a convolution and its adjoint share them.
    """
    factors = _twice(_kernel_factors, [list(row) for row in kernel])
    if turned:
        factors = [[factors[i][j] for j in (3, 1, 2, 0)] for i in (3, 1, 2, 0)]
    features, sides = kernel.shape[2 if turned else 3], (1, int(turned))

    def product(tile: Array, factor: Array) -> Array:
        return lax.dot_general(tile, factor, ((sides[:1], sides[1:]), ((), ())))

    def block(images: Array) -> Array:
        tiles = _image_tiles(images, padding, size)
        pairs = [zip(*rows, strict=True) for rows in zip(tiles, factors, strict=True)]
        sums = _twice(_result_entries, [[product(*pair) for pair in row] for row in pairs])
        height, width = map(_half, size)
        rows = [[part.reshape(-1, height, width, features) for part in row] for row in sums]
        rows = [jnp.stack(row, 3).reshape(-1, height, 2 * width, features) for row in rows]
        found = jnp.stack(rows, 2).reshape(-1, 2 * height, 2 * width, features)
        return found[:, : size[0], : size[1]]

    number, rows = len(images), _rows_at_once(images, features, size)
    if rows == number:
        return block(images)
    found = lax.map(block, images.reshape(number // rows, rows, *images.shape[1:]))
    return found.reshape(number, *size, features)


def kernel_gradient(images: Array, result: Array, *, padding: Pads) -> Array:
    """The adjoint in the kernel, 3x3, of NHWC images and a cotangent of the result."""
    number, height, width, features = result.shape
    even = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))

    def block(images: Array, result: Array) -> Array:
        tiles = _image_tiles(images, padding, (height, width))
        result = jnp.pad(result, even)
        corners = [[result[:, i::2, j::2].reshape(-1, features) for j in (0, 1)] for i in (0, 1)]
        others = _twice(_result_tiles, corners)
        pairs = [zip(*rows, strict=True) for rows in zip(tiles, others, strict=True)]
        return jnp.stack([jnp.stack([tile.T @ other for tile, other in row]) for row in pairs])

    rows = _rows_at_once(images, features, (height, width))
    if rows == number:
        sums = block(images, result)
    else:
        split = lambda x: x.reshape(number // rows, rows, *x.shape[1:])
        sums = lax.map(lambda pair: block(*pair), (split(images), split(result))).sum(0)
    grid = _twice(_kernel_entries, [list(row) for row in sums])
    return jnp.stack([jnp.stack(row) for row in grid])


def _twice(transform: Callable[..., Sequence[Array]], grid: Sequence[Sequence[Array]]) -> Grid:
    """A transform of the columns, then of the rows."""
    columns = [transform(*column) for column in zip(*grid, strict=True)]
    return [list(transform(*row)) for row in zip(*columns, strict=True)]


def _image_factors(a: Array, b: Array, c: Array, d: Array) -> Sequence[Array]:  # B^T
    return a - c, b + c, c - b, b - d


def _kernel_factors(a: Array, b: Array, c: Array) -> Sequence[Array]:  # G
    return a, (a + c + b) / 2, (a + c - b) / 2, c


def _kernel_entries(a: Array, b: Array, c: Array, d: Array) -> Sequence[Array]:  # G^T
    both = (b + c) / 2
    return a + both, (b - c) / 2, both + d


def _result_entries(a: Array, b: Array, c: Array, d: Array) -> Sequence[Array]:  # A^T
    return a + b + c, b - c - d


def _result_tiles(a: Array, b: Array) -> Sequence[Array]:  # A
    return a, a + b, a - b, -b


def _image_tiles(images: Array, padding: Pads, size: Pair) -> Grid:
    """The transformed tiles, 4 by 4 arrays of shape (tiles, channels)."""
    odd = [n % 2 for n in size]
    space = [(low, high + more, 0) for (low, high), more in zip(padding, odd, strict=True)]
    padded = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *space, (0, 0, 0)])
    height, width = (2 * _half(n) - 1 for n in size)
    entries = [[padded[:, i : i + height : 2, j : j + width : 2] for j in range(4)]
               for i in range(4)]  # fmt: skip
    tiles = _twice(_image_factors, entries)
    return [[tile.reshape(-1, images.shape[3]) for tile in row] for row in tiles]


def _rows_at_once(images: Array, features: int, size: Pair) -> int:
    """How many images: a divisor of their number, all if that leaves too few tiles."""
    number, tiles = len(images), _num_tiles(size)
    most = _BYTES // (16 * tiles * max(images.shape[3], features) * images.dtype.itemsize)
    rows = max(n for n in range(1, number + 1) if number % n == 0 and n <= max(most, 1))
    return rows if rows * tiles >= _TILES else number


def _num_tiles(size: Sequence[int]) -> int:
    return math.prod(map(_half, size))


def _half(number: int) -> int:
    return -(-number // 2)
