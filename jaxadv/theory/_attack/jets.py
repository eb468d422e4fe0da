"""Enclosures of a value and its first two derivatives with respect to z in R^d."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...types import Array
from .intervals import (
    FUNCTION_ERROR,
    Interval,
    Ranges,
    add,
    dot,
    multiply,
    negative,
    outer,
    outward,
    pairs,
    point,
    take,
    total,
)


class Jet(NamedTuple):
    """Enclosures of an array of shape S and of its derivatives.

    Attributes:
        value: of shape S.
        slope: first derivatives, (d, *S); None for a constant.
        bend: second derivatives in the order of `pairs`, (d (d + 1) / 2, *S); None for a constant
            or if only the first were asked for.
    """

    value: Interval
    slope: Any = None
    bend: Any = None


def constant(array: Any) -> Jet:
    """An exact constant."""
    return Jet(point(jnp.asarray(array)))


def seeds(box: Interval, order: int) -> Jet:
    """The coordinates of z themselves, with derivatives up to ``order``."""
    size = box.lo.shape[0]
    slope = point(jnp.eye(size))
    return Jet(box, slope, point(jnp.zeros((len(pairs(size)[0]), size))) if order > 1 else None)


def rearranged(function: Callable[[Array], Array], jet: Jet) -> Jet:
    """A function of arrays that only moves entries, of the value and of the derivatives."""

    def both(part: Interval, function: Callable) -> Interval:
        low = function(part.lo)
        return Interval(low, low if part.lo is part.hi else function(part.hi))

    each = jax.vmap(function)
    parts = [part if part is None else both(part, each) for part in jet[1:]]
    return Jet(both(jet.value, function), *parts)


def linear(function: Callable[[Interval], Interval], jet: Jet) -> Jet:
    """A linear function of intervals, of the value and of the derivatives."""
    each = jax.vmap(function)
    return Jet(function(jet.value), *(part if part is None else each(part) for part in jet[1:]))


def _combined(a: Interval | None, b: Interval | None) -> Interval | None:
    """A sum in which None is nothing."""
    return b if a is None else a if b is None else add(a, b)


def plus(a: Jet, b: Jet) -> Jet:
    """The sum."""
    a, b = _matched(a, b)
    return Jet(add(a.value, b.value), *map(_combined, a[1:], b[1:]))


def minus(jet: Jet) -> Jet:
    """The negative."""
    slope, bend = (part if part is None else negative(part) for part in jet[1:])
    return Jet(negative(jet.value), slope, bend)


def times(a: Jet, b: Jet) -> Jet:
    """The product of entries."""
    return _product(*_matched(a, b), multiply)


def contracted(a: Jet, b: Jet, dimensions: Any) -> Jet:
    """``jax.lax.dot_general``."""
    terms = math.prod(a.value.lo.shape[axis] for axis in dimensions[0][0])
    product = lambda p, q: jax.lax.dot_general(p, q, dimensions)
    return _product(a, b, lambda p, q: dot(p, q, product, terms))


def chain(jet: Jet, ranges: Ranges) -> Jet:
    """A smooth function of a jet."""
    value, first, second = ranges(jet.value)
    if jet.slope is None:
        return Jet(value)
    slope = multiply(_lead(first), jet.slope)
    if jet.bend is None:
        return Jet(value, slope)
    curved = multiply(_lead(second), outer(jet.slope))
    return Jet(value, slope, add(multiply(_lead(first), jet.bend), curved))


def _lead(a: Interval) -> Interval:
    return Interval(a.lo[None], a.hi[None])


def _matched(a: Jet, b: Jet) -> tuple[Jet, Jet]:
    """Both with the shape of the larger: elementwise operations also take scalars."""
    shape = jnp.broadcast_shapes(a.value.lo.shape, b.value.lo.shape)
    first, second = (
        jet
        if jet.value.lo.shape == shape
        else rearranged(lambda v: jnp.broadcast_to(v, shape), jet)
        for jet in (a, b)
    )
    return first, second


def _product(a: Jet, b: Jet, bilinear: Callable[[Interval, Interval], Interval]) -> Jet:
    """A bilinear function of two jets."""
    over = lambda p, q, axes: jax.vmap(bilinear, axes)(p, q)
    first = lambda part: None if part is None else over(part, b.value, (0, None))
    last = lambda part: None if part is None else over(a.value, part, (None, 0))
    value, slope = bilinear(a.value, b.value), _combined(first(a.slope), last(b.slope))
    bend = _combined(first(a.bend), last(b.bend))
    if a.slope is None or b.slope is None or bend is None:
        return Jet(value, slope, bend)
    rows, columns = pairs(a.slope.lo.shape[0])
    for i, j in ((rows, columns), (columns, rows)):
        bend = add(bend, over(take(a.slope, i), take(b.slope, j), (0, 0)))
    return Jet(value, slope, bend)


def logsumexp(jet: Jet, axes: tuple[int, ...] = (-1,)) -> Jet:
    r"""Logsumexp over axes, with the exact ranges of its value and of its softmax p.

    The gradient is :math:`m + \sum_k p_k (g_k - m)`, and the covariance of the :math:`g_k` under p
    is :math:`\sum_k p_k (g_k - m)(g_k - m)^T - e e^T` with :math:`e = \sum_k p_k (g_k - m)`,
    whatever m is: near the mean, it keeps both tight.
    """
    dims = jet.value.lo.ndim
    axes = tuple(axis % dims for axis in axes)
    kept = tuple(axis for axis in range(dims) if axis not in axes)
    shape = tuple(jet.value.lo.shape[axis] for axis in kept)
    flat = lambda v: jnp.transpose(v, kept + axes).reshape(*shape, -1)
    jet = rearranged(flat, jet)
    low, high = jet.value
    error = FUNCTION_ERROR * (1 + jnp.max(jet.value.mag, -1))
    value = outward(jax.nn.logsumexp(low, -1), jax.nn.logsumexp(high, -1), error)
    if jet.slope is None:
        return Jet(value)
    p = _softmax(jet.value)
    mean = lambda part: total(multiply(_lead(p), part), (part.lo.ndim - 1,))

    def centered(part: Interval) -> tuple[Interval, Interval]:
        center = jnp.sum(_lead(p).mid * part.mid, -1, keepdims=True)
        return add(part, point(-center)), point(center[..., 0])

    apart, center = centered(jet.slope)
    shift = mean(apart)
    slope = add(shift, center)
    if jet.bend is None:
        return Jet(value, slope)
    bends, middle = centered(jet.bend)
    covariance = add(mean(outer(apart)), negative(outer(shift)))
    return Jet(value, slope, add(add(mean(bends), middle), covariance))


def _softmax(u: Interval) -> Interval:
    """Exact ranges of 1 / (1 + sum over j != k of exp(u_j - u_k)), up to rounding."""

    def share(own: Array, others: Array) -> Array:
        ratios = jnp.exp(others[..., None, :] - own[..., :, None])
        same = jnp.broadcast_to(jnp.eye(own.shape[-1], dtype=bool), ratios.shape)
        ratios = jnp.where(same, 0.0, ratios)
        return 1 / (1 + jnp.sum(ratios, -1))

    # The rounding of u_j - u_k, of the size of u, becomes a relative error of exp.
    relative = 8 * FUNCTION_ERROR * (1 + jnp.max(u.mag, -1, keepdims=True))
    lower, upper = share(u.lo, u.hi), share(u.hi, u.lo)
    return Interval(lower * (1 - relative), upper * (1 + relative) + 1e-300)
