"""Arithmetic on rows: one image each, the other axes flattened or broadcast."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..types import Array, Norm

TINY = 1e-12  # keeps a division by a norm finite
_LARGE = 2**15  # entries of a row; several such rows do not fit in the cache of a CPU core
_SMALL = -13  # rows of gradients whose largest entry is below 2**_SMALL are scaled up


def norms(deltas: Array, norm: Norm) -> Array:
    """Norms of perturbations by the plain formula of the published attacks: (B, ...) to (B,)."""
    flat = deltas.reshape(deltas.shape[0], -1)
    if norm == "linf":
        return jnp.abs(flat).max(axis=1)
    return jnp.sqrt((flat**2).sum(axis=1)) if norm == "l2" else jnp.abs(flat).sum(axis=1)


def column(values: Array, like: Array) -> Array:
    """One value an image, or one for all, in a shape that multiplies images."""
    return jnp.reshape(values, (-1,) + (1,) * (like.ndim - 1))


def where(mask: Array, yes: Array, no: Array) -> Array:
    """``yes`` in the rows of the mask, ``no`` in the others."""
    return jnp.where(column(mask, yes), yes, no)


def enlarged(gradients: Array, *values: Array) -> tuple[Array, ...]:
    """Gradients (B, ...) and values (B,) of them, with tiny rows scaled up by a power of two.

    Published attacks compare gradients with absolute constants and square them, so a confident
    network, whose gradients are tiny, would escape. Other rows keep their bits.
    """
    largest = jnp.abs(gradients).reshape(gradients.shape[0], -1).max(axis=1)
    exponents = jnp.where(largest > 0, jnp.frexp(largest)[1], 0)
    exponents = jnp.clip(_SMALL - exponents, 0, 100)  # no overflow of the values
    # Exact, and much faster than ldexp of every entry.
    scales = jnp.ldexp(jnp.ones_like(largest), exponents)
    return tuple(x * column(scales, x) for x in (gradients, *values))


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """On CPU, large rows are worked on one after the other: each fits in the cache, the batch not.

    Args:
        function: of arrays with one row per image, independent rows; the first decides.

    Returns:
        The same function; a loop in it ends for each row on its own.
    """

    @functools.wraps(function)
    def mapped(*rows: Array) -> Any:
        if len(rows[0]) == 1 or rows[0].size < _LARGE * len(rows[0]):
            return function(*rows)
        single = lambda row: jax.tree.map(lambda v: v[0], function(*(v[None] for v in row)))
        each = lambda *rows: jax.lax.map(single, rows)
        return jax.lax.platform_dependent(*rows, cpu=each, default=function)

    return mapped
