r"""The squares of the Square Attack: their sizes, their patterns, and how they change an image.

Squares are placed by masks, so every image can have its own.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..._l1 import project_l1_box
from ...types import Array, Key, Norm
from .. import _rows

_LEVELS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Draws(NamedTuple):
    """The random numbers of consecutive queries, in uniform [0, 1) or as signs.

    Attributes:
        positions: uniform numbers that place the window(s), of shape (Q, B, 2) for Linf and
            (Q, B, 4) else: row and column of the first, then of the second window.
        signs: -1 or 1 for every channel, of shape (Q, B, C).
        flips: whether the pattern is transposed, of shape (Q, B); unused by Linf.
    """

    positions: Array
    signs: Array
    flips: Array


def side_lengths(
    num_queries: int,
    size: tuple[int, ...],
    norm: Norm,
    p_init: float = 0.8,
    rescale: bool = False,
) -> np.ndarray:
    """The side of the square in each query.

    Args:
        num_queries: Q.
        size: height and width of the images.
        norm: sides are odd and at least 3 for "l2" and "l1".
        p_init: the fraction of the image that the first squares cover.
        rescale: stretch the schedule, made for 10,000 queries, to Q.

    Returns:
        Integers of shape (Q,).

    Example:
        >>> sides = side_lengths(5000, (32, 32), "linf")
        >>> sides[[0, 10, 11, 51, 4999]].tolist()
        [29, 29, 20, 14, 3]
    """
    height, width = size
    sides = np.zeros(num_queries, np.int32)
    for query in range(num_queries):
        at = int(query / num_queries * 10000) if rescale else query
        p = p_init / 2 ** sum(at > level for level in _LEVELS)
        side = max(round(math.sqrt(p * height * width)), 1 if norm == "linf" else 3)
        side += int(norm != "linf" and side % 2 == 0)
        sides[query] = min(side, height, width)
    return sides


def pattern(side: int, norm: Norm) -> np.ndarray:
    """The bump of L2 and L1: two rectangles of opposite sign, each decreasing from its center.

    Args:
        side: s.
        norm: weights 1 / (q + 1)^2 and unit L2 norm for "l2", the fourth power and unit L1 norm
            for "l1".

    Returns:
        Of shape (s, s).
    """
    power, order = (2, 2) if norm == "l2" else (4, 1)

    def unit(values: np.ndarray) -> np.ndarray:
        total = np.sum(np.abs(values) ** order) ** (1 / order)
        return values / total if total > 0 else values

    def bump(height: int, width: int) -> np.ndarray:
        values = np.zeros((height, width))
        for q in range(max(height // 2, width // 2) + 1):
            rows = slice(max(height // 2 - q, 0), height // 2 + q + 1)
            columns = slice(max(width // 2 - q, 0), width // 2 + q + 1)
            values[rows, columns] += 1 / (q + 1) ** power
        return unit(values)

    half = side // 2
    return unit(np.concatenate([bump(half, side), -bump(side - half, side)]))


def draw(keys: Key, number: int, size: tuple[int, ...], norm: Norm, dtype: np.dtype) -> Draws:
    """The draws of ``number`` queries, from one key per image: (number, B, ...)."""
    channels = size[2]
    windows = 2 if norm == "linf" else 4
    uniform = jax.vmap(
        lambda key: jax.random.uniform(key, (number, windows + channels + 1), dtype)
    )(keys)
    uniform = jnp.swapaxes(uniform, 0, 1)
    signs = jnp.where(uniform[..., windows : windows + channels] < 0.5, -1, 1).astype(dtype)
    return Draws(uniform[..., :windows], signs, uniform[..., -1] > 0.5)


def draw_initial(
    keys: Key, size: tuple[int, ...], norm: Norm, dtype: np.dtype
) -> tuple[Array, Array]:
    """Signs and flips of the initial perturbation, from one key per image.

    Returns:
        For Linf signs of shape (B, W, C), else signs of shape (B, rows, columns, C) and flips of
        shape (B, rows, columns) of the tiles.
    """
    height, width, channels = size
    shape = (width, channels) if norm == "linf" else (*_tiles(height, width)[1], channels)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (*shape[:-1], channels + 1)))(keys)
    signs = jnp.where(uniform[..., :channels] < 0.5, -1, 1).astype(dtype)
    return signs, uniform[..., -1] > 0.5


def initial_points(
    images: Array, signs: Array, flips: Array, eps: float | Array, norm: Norm
) -> Array:
    """Vertical stripes (Linf) or a checkerboard of patterns (L2, L1)."""
    if norm == "linf":
        return jnp.clip(images + eps * signs[:, None], 0, 1)
    height, width = images.shape[1:3]
    side, (rows, columns), offset = _tiles(height, width)
    tile = jnp.asarray(pattern(side, norm), images.dtype)
    tiles = _rows.where(flips.reshape(-1), tile.T[None], tile[None])
    tiles = tiles.reshape(*flips.shape, side, side, 1) * signs[:, :, :, None, None]
    tiles = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(
        -1, rows * side, columns * side, signs.shape[-1]
    )
    deltas = jax.lax.dynamic_update_slice(
        jnp.zeros_like(images), tiles, (0, offset[0], offset[1], 0)
    )
    return _surface(images, deltas, eps, norm)


def _tiles(height: int, width: int) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """Side, numbers and offset of the initial tiles.

    The published code derives the offset from the height alone and lets tiles leave small or
    non-square images; here only tiles that fit are placed.
    """
    side = max(min(height // 5, width), 1)
    offset = max((height - 5 * side) // 2, 0)
    columns_offset = min(offset, width - side)
    number = (min(height // side, (height - offset) // side), (width - columns_offset) // side)
    return side, (number[0], min(number[1], width // side)), (offset, columns_offset)


def window(places: Array, side: int | Array, size: tuple[int, ...]) -> Array:
    """Booleans of shape (B, H, W, 1): the square of each image."""
    rows, columns = (jnp.arange(length)[None] - places[:, i, None] for i, length in enumerate(size))
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[
        :, None
    ]
    return inside[..., None]


def move_windows(
    images: Array,
    points: Array,
    places: Array,
    side: int | Array,
    shape: Array,
    now: Draws,
    eps: float | Array,
    norm: Norm,
) -> Array:
    """Moves the perturbation of the second window into the first, shaped like the pattern."""
    eps = jnp.broadcast_to(eps, images.shape[:1])
    move = functools.partial(_moved, side=side, shape=shape, norm=norm)
    return _rows.one_by_one(move)(images, points, places, now.signs, now.flips, eps)


def _moved(
    images: Array,
    points: Array,
    places: Array,
    signs: Array,
    flips: Array,
    eps: Array,
    *,
    side: int | Array,
    shape: Array,
    norm: Norm,
) -> Array:
    size, eps = images.shape[1:3], _rows.column(eps, images)
    power = 2 if norm == "l2" else 1

    def channel_norms(values: Array) -> Array:  # (B, H, W, C) -> (B, 1, 1, C)
        total = jnp.sum(jnp.abs(values) ** power, axis=(1, 2), keepdims=True)
        return jnp.sqrt(total) if norm == "l2" else total

    deltas = points - images
    first = window(places[:, :2], side, size)
    second = window(places[:, 2:], side, size)
    rows, columns = (
        jnp.clip(jnp.arange(length)[None] - places[:, i, None], 0, shape.shape[0] - 1)
        for i, length in enumerate(size)
    )
    upright = shape[rows[:, :, None], columns[:, None]]
    transposed = shape[columns[:, None], rows[:, :, None]]
    placed = _rows.where(flips, transposed, upright)[..., None]
    fresh = placed * signs[:, None, None]
    old = deltas / (_rows.TINY + channel_norms(jnp.where(first, deltas, 0)))
    fresh = jnp.where(first, fresh + old, 0)
    total = _rows.column(_rows.norms(deltas, norm), deltas)
    moved = channel_norms(jnp.where(first | second, deltas, 0))
    channels = images.shape[3]
    if norm == "l2":
        budget = jnp.sqrt(jnp.maximum(eps**2 - total**2, 0) / channels + moved**2)
    else:
        budget = (jnp.maximum(eps - total, 0) / channels + moved) * channels
    fresh = fresh / (_rows.TINY + channel_norms(fresh)) * budget
    deltas = jnp.where(first, fresh, jnp.where(second, 0, deltas))
    return _surface(images, deltas, eps, norm)


def _surface(images: Array, deltas: Array, eps: float | Array, norm: Norm) -> Array:
    if norm == "l1":
        eps = jnp.broadcast_to(jnp.reshape(eps, -1), images.shape[:1])
        return jnp.clip(images + project_l1_box(images, deltas, eps * (1 - 1e-6)), 0, 1)
    return jnp.clip(
        images + deltas / (_rows.column(_rows.norms(deltas, norm), deltas) + _rows.TINY) * eps, 0, 1
    )
