r"""Enclosures of a function's value, gradient and Hessian over a box, from its jaxpr.

Every quantity is an interval that contains what real arithmetic would give: an operation on
:math:`[a, b]` returns an interval that contains its exact range there, widened by more than its
rounding error (`outward`). Derivatives are carried forward as Taylor coefficients,
:math:`\nabla \phi(u) = \phi'(u) \nabla u` and
:math:`\nabla^2 \phi(u) = \phi'(u) \nabla^2 u + \phi''(u) \nabla u \nabla u^T`, with exact ranges of
:math:`\phi, \phi', \phi''`, which is much tighter than intervals in the program of the derivative.

Assumed of the machine: float64 operations with a relative error of at most :math:`2^{-50}`, sums
and products of matrices in any order, elementary functions with one of at most :math:`2^{-46}`
(tests measure them).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...types import Array

_RELATIVE, _ABSOLUTE, FUNCTION_ERROR = 2.0**-50, 1e-300, 2.0**-46


class Interval(NamedTuple):
    """Lower and upper ends; the same array for an exact constant."""

    lo: Array
    hi: Array

    @property
    def mid(self) -> Array:
        """Midpoint, within rounding."""
        return 0.5 * self.lo + 0.5 * self.hi

    @property
    def mag(self) -> Array:
        """Largest absolute value."""
        return jnp.maximum(jnp.abs(self.lo), jnp.abs(self.hi))


def outward(lo: Array, hi: Array, extra: Any = 0.0, relative: float = _RELATIVE) -> Interval:
    """The interval, wider by more than the rounding errors of both ends."""
    lower = lo - (relative * jnp.abs(lo) + (_ABSOLUTE + extra))
    return Interval(lower, hi + (relative * jnp.abs(hi) + (_ABSOLUTE + extra)))


def pairs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the upper triangle."""
    return np.triu_indices(size)


def add(a: Interval, b: Interval) -> Interval:
    """[a] + [b]."""
    return outward(a.lo + b.lo, a.hi + b.hi)


def negative(a: Interval) -> Interval:
    """-[a]."""
    return Interval(-a.hi, -a.lo)


def multiply(a: Interval, b: Interval) -> Interval:
    """[a] * [b]."""
    if a.lo is a.hi:
        first, second = a.lo * b.lo, a.lo * b.hi
        return outward(jnp.minimum(first, second), jnp.maximum(first, second))
    if b.lo is b.hi:
        return multiply(b, a)
    ends = (a.lo * b.lo, a.lo * b.hi, a.hi * b.lo, a.hi * b.hi)
    low = jnp.minimum(jnp.minimum(ends[0], ends[1]), jnp.minimum(ends[2], ends[3]))
    high = jnp.maximum(jnp.maximum(ends[0], ends[1]), jnp.maximum(ends[2], ends[3]))
    return outward(low, high)


def _scaled(a: Interval, factor: float) -> Interval:
    exact = jnp.asarray(factor, a.lo.dtype)
    return multiply(Interval(exact, exact), a)


def point(a: Array) -> Interval:
    """An exact constant."""
    return Interval(a, a)


def take(a: Interval, index: np.ndarray) -> Interval:
    """Rows of both ends."""
    low = a.lo[index]
    return Interval(low, low if a.lo is a.hi else a.hi[index])


def outer(a: Interval) -> Interval:
    """Products a_i a_j of rows for the pairs i <= j; squares are not negative."""
    rows, columns = pairs(a.lo.shape[0])
    found = multiply(take(a, rows), take(a, columns))
    square = (rows == columns).reshape(-1, *[1] * (a.lo.ndim - 1))
    return Interval(jnp.where(square, jnp.maximum(found.lo, 0.0), found.lo), found.hi)


def total(a: Interval, axes: tuple[int, ...]) -> Interval:
    """The sum over axes, whose rounding error grows with the number of terms."""
    count = math.prod(a.lo.shape[axis] for axis in axes) + 1
    extra = count * _RELATIVE * jnp.sum(a.mag, axes)
    return outward(jnp.sum(a.lo, axes), jnp.sum(a.hi, axes), extra)


def dot(a: Interval, b: Interval, product: Callable, terms: int) -> Interval:
    """A bilinear product in which each entry has ``terms`` terms, by midpoints and radii."""
    rounding = (terms + 8) * _RELATIVE
    middle, other = (v.lo if v.lo is v.hi else v.mid for v in (a, b))
    radius = rounding * product(jnp.abs(middle), jnp.abs(other))
    if b.lo is not b.hi:
        wide = jnp.maximum(b.hi - other, other - b.lo) * (1 + _RELATIVE)
        radius = radius + product(jnp.abs(middle), wide)
    if a.lo is not a.hi:
        wide = jnp.maximum(a.hi - middle, middle - a.lo) * (1 + _RELATIVE)
        radius = radius + product(wide, b.mag)
    center, radius = product(middle, other), radius * (1 + 4 * rounding)
    return outward(center - radius, center + radius)


# Smooth functions: (phi, phi', phi'') on an interval.
Ranges = Callable[[Interval], tuple[Interval, Interval, Interval]]


def _range(function: Callable, u: Interval, critical: tuple[float, ...], error: float) -> Interval:
    """The range of a function that is monotone between its critical points."""
    low, high = function(u.lo), function(u.hi)
    low, high = jnp.minimum(low, high), jnp.maximum(low, high)
    for point in critical:
        # Near a critical point the value differs from the extreme one by second order only.
        inside = (u.lo <= point + 1e-9) & (u.hi >= point - 1e-9)
        value = function(jnp.asarray(point, u.lo.dtype))
        low = jnp.where(inside, jnp.minimum(low, value), low)
        high = jnp.where(inside, jnp.maximum(high, value), high)
    return outward(low, high, error, FUNCTION_ERROR)


def _bounded(functions: tuple, critical: tuple) -> Ranges:
    """For functions whose derivatives are of size 1: their rounding error is that of 1."""

    def ranges(u: Interval) -> tuple[Interval, Interval, Interval]:
        errors = (0.0, FUNCTION_ERROR, FUNCTION_ERROR)
        first, second, third = map(_range, functions, [u] * 3, critical, errors)
        return first, second, third

    return ranges


def _exp(u: Interval) -> tuple[Interval, Interval, Interval]:
    found = outward(jnp.exp(u.lo), jnp.exp(u.hi), relative=FUNCTION_ERROR)
    found = Interval(jnp.maximum(found.lo, 0.0), found.hi)
    return found, found, found


def reciprocal(u: Interval) -> tuple[Interval, Interval, Interval]:
    usable = (u.lo > 0) | (u.hi < 0)
    low, high = (jnp.where(usable, 1 / end, jnp.nan) for end in (u.hi, u.lo))
    found = outward(low, high)
    squared = multiply(found, found)
    return found, negative(squared), _scaled(multiply(squared, found), 2.0)


def _logarithm(function: Callable, shift: float) -> Ranges:
    def ranges(u: Interval) -> tuple[Interval, Interval, Interval]:
        inner = outward(u.lo + shift, u.hi + shift)
        found, slope, _ = reciprocal(Interval(jnp.where(inner.lo > 0, inner.lo, jnp.nan), inner.hi))
        return _range(function, u, (), 0.0), found, slope

    return ranges


def power(exponent: int) -> Ranges:
    """Powers 1, 2, 3, ..."""

    def monomial(degree: int, factor: int) -> Callable:
        function = lambda t: factor * jax.lax.integer_pow(t, max(degree, 0))
        return lambda u: _range(function, u, (0.0,), 0.0)

    n = exponent
    parts = (monomial(n, 1), monomial(n - 1, n), monomial(n - 2, n * (n - 1)))
    return lambda u: (parts[0](u), parts[1](u), parts[2](u))


def _root(u: Interval) -> tuple[Interval, Interval, Interval]:
    found = _range(jnp.sqrt, u, (), 0.0)
    inverse = reciprocal(found)[0]
    cube = power(3)(inverse)[0]
    return found, _scaled(inverse, 0.5), _scaled(cube, -0.25)


_logistic = jax.nn.sigmoid
_bell = lambda t: _logistic(t) * _logistic(-t)
_bell_slope = lambda t: _bell(t) * (_logistic(-t) - _logistic(t))
_swish_slope = lambda t: _logistic(t) + t * _bell(t)
_swish_bend = lambda t: 2 * _bell(t) + t * _bell_slope(t)
_tanh_slope = lambda t: 1 / jnp.cosh(jnp.clip(t, -300, 300)) ** 2
_normal = lambda t: 2 / math.sqrt(math.pi) * jnp.exp(-jnp.minimum(t * t, 700.0))
_BELL = math.log(2 + math.sqrt(3))  # where the logistic function's second derivative is extreme
_TANH = math.atanh(1 / math.sqrt(3))
_SWISH = (
    1.2784645427610738,
    2.3993572805154677,
    3.4358409935351104,
)  # zeros of its derivatives 1, 2, 3
SOFTPLUS = _bounded((jax.nn.softplus, _logistic, _bell), ((), (), (0.0,)))
SILU = _bounded(
    (jax.nn.silu, _swish_slope, _swish_bend),
    ((-_SWISH[0],), (-_SWISH[1], _SWISH[1]), (-_SWISH[2], 0.0, _SWISH[2])),
)
UNARY: dict[str, Ranges] = {
    "exp": _exp,
    "log": _logarithm(jnp.log, 0.0),
    "log1p": _logarithm(jnp.log1p, 1.0),
    "sqrt": _root,
    "square": power(2),
    "logistic": _bounded((_logistic, _bell, _bell_slope), ((), (0.0,), (-_BELL, _BELL))),
    "tanh": _bounded(
        (jnp.tanh, _tanh_slope, lambda t: -2 * jnp.tanh(t) * _tanh_slope(t)),
        ((), (0.0,), (-_TANH, _TANH)),
    ),
    "erf": _bounded(
        (jax.lax.erf, _normal, lambda t: -2 * t * _normal(t)),
        ((), (0.0,), (-math.sqrt(0.5), math.sqrt(0.5))),
    ),
    "erfc": _bounded(
        (jax.lax.erfc, lambda t: -_normal(t), lambda t: 2 * t * _normal(t)),
        ((), (0.0,), (-math.sqrt(0.5), math.sqrt(0.5))),
    ),
}
