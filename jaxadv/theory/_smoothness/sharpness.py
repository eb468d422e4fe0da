r"""Sharpness of a minimum: the largest relative increase of the loss in a ball of parameters.

.. math::
    S_r(\theta) = \max_{\|t - \theta\| \le r} \frac{L(t) - L(\theta)}{1 + L(\theta)}
    \approx \frac{\max(0, \lambda_{\max}(\nabla^2 L))\, r^2}{2(1 + L(\theta))}

The approximation needs a stationary point where L is twice differentiable. At a kink the increase
is first-order in r and the second derivative is uninformative; :func:`sharpness_order`
distinguishes the two.

References:
    docs/formulas.md H.2; Kanai et al. (arXiv 2103.01400), Definition 2, equations 73 to 75; Dinh et
    al. 2017; erratum E23.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ..._program import trace
from ..._rewrite import fast_convolutions
from ..._transfers import on_host
from ...checks import check_count
from ...types import Array, Key, Params, PyTree
from .._trees import as_arrays, precision_of, vector
from .eigenvalues import extreme_eigenvalues


class Sharpness(NamedTuple):
    """The result of the ascent.

    Attributes:
        value: the largest relative increase found, at least 0: a lower bound of the sharpness.
        loss: at the center.
        increase: of the loss, at the best point.
        offset: from the center to the best point, like the parameters.
    """

    value: float
    loss: float
    increase: float
    offset: PyTree


class QuadraticSharpness(NamedTuple):
    """The second-order approximation and its validity.

    Attributes:
        value: the approximation.
        loss: at the center.
        largest_eigenvalue: of the Hessian, by Lanczos.
        eigenvalue_error: distance to an eigenvalue, at most.
        gradient_norm: 0 at a stationary point.
        first_order: the relative increase from the gradient alone, gradient_norm r / (1 + loss).
        The approximation holds only if this is small compared with ``value``.
    """

    value: float
    loss: float
    largest_eigenvalue: float
    eigenvalue_error: float
    gradient_norm: float
    first_order: float


def _check_radius(radius: float) -> None:
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius={radius} must be a finite number > 0")


@on_host
def sharpness(
    key: Key,
    loss: Callable[[Params], Array],
    params: Params,
    *,
    radius: float,
    num_starts: int = 4,
    num_steps: int = 60,
) -> Sharpness:
    r"""Sharpness by projected gradient ascent on the ball, from several random starts.

    Steps of shrinking length follow the normalized gradient; the best point ever visited counts.

    Args:
        key: typed PRNG key of the starts.
        loss: maps parameters to a scalar, with JAX operations. For an adversarial loss, compute the
        attack inside and stop its gradient (Danskin's theorem).
        params: the minimum, any pytree.
        radius: r, in the Euclidean norm of all parameters.
        num_starts: random points on the sphere to start from.
        num_steps: steps from each.

    Returns:
        The lower bound and the point that attains it.

    Raises:
        ValueError: the radius is not positive.

    Example:
        >>> loss = lambda t: 3 * t[0] ** 2 + t[1] ** 2
        >>> found = sharpness(jax.random.key(0), loss, jnp.zeros(2), radius=0.1)
        >>> round(found.value, 5)
        0.03

    References:
        formulas H.2; Kanai et al., equation 73.
    """
    _check_radius(radius)
    check_count("num_starts", num_starts, 1)
    check_count("num_steps", num_steps, 1)
    with precision_of(params):
        params = as_arrays(params)
        traced = trace(loss, params, name="loss")
        best, offset = -math.inf, None
        for start in range(num_starts):
            start_key = jax.random.fold_in(key, start)
            value, place = _ascend(
                start_key, params, jnp.asarray(radius), traced, num_steps=num_steps
            )
            if float(value) > best:
                best, offset = float(value), place
        centre = float(loss(params))
    increase = max(best - centre, 0.0)
    return Sharpness(increase / (1 + centre), centre, increase, offset)


def _norm(tree: PyTree) -> Array:
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def _scaled(tree: PyTree, factor: float | Array) -> PyTree:
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), tree)


@functools.partial(jax.jit, static_argnames="num_steps")
def _ascend(key: Key, params: Params, radius: Array, loss: Partial, *, num_steps: int) -> tuple:
    leaves, treedef = jax.tree.flatten(params)
    draws = [
        jax.random.normal(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    start = jax.tree.unflatten(treedef, draws)
    start = _scaled(start, radius / _norm(start))
    at = jax.value_and_grad(lambda offset: loss(jax.tree.map(jnp.add, params, offset)))

    def step(state: tuple, index: Array) -> tuple:
        offset, best, best_offset = state
        value, gradient = at(offset)
        better = value > best
        best_offset = jax.tree.map(lambda n, o: jnp.where(better, n, o), offset, best_offset)
        length = _norm(gradient)
        # Step sizes from the radius down to a hundredth of it, geometrically.
        share = 10.0 ** (-2.0 * index.astype(float) / num_steps)
        size = radius * share.astype(radius.dtype)
        factor = jnp.where(length > 0, size / jnp.where(length > 0, length, 1.0), 0.0)
        moved = jax.tree.map(lambda o, g: o + (factor * g).astype(o.dtype), offset, gradient)
        reach = _norm(moved)
        moved = _scaled(moved, jnp.where(reach > radius, radius / reach, 1.0))
        return (moved, jnp.maximum(value, best), best_offset), None

    first = (start, jnp.asarray(-jnp.inf, jax.eval_shape(loss, params).dtype), start)
    (last, best, best_offset), _ = jax.lax.scan(step, first, jnp.arange(num_steps))
    value = at(last)[0]
    better = value > best
    best_offset = jax.tree.map(lambda n, o: jnp.where(better, n, o), last, best_offset)
    return jnp.maximum(value, best), best_offset


def sharpness_order(
    key: Key, loss: Callable[[Params], Array], params: Params, *, radius: float, **options: int
) -> float:
    """Power of the radius with which the sharpness grows: 2 at a smooth minimum, 1 at a kink.

    Args:
        key: typed PRNG key.
        loss: as in :func:`sharpness`.
        params: the minimum, a pytree.
        radius: r; r/2 is compared with it.
        **options: ``num_starts`` and ``num_steps`` of :func:`sharpness`.

    Returns:
        log2 of the ratio; nan if the loss does not increase.

    Example:
        >>> round(sharpness_order(jax.random.key(0), lambda t: jnp.abs(t).sum(), jnp.zeros(1),
        ...                       radius=0.1), 3)
        1.0

    References:
        formulas H.2; erratum E23.
    """
    increases = [
        sharpness(key, loss, params, radius=r, **options).increase for r in (radius, radius / 2)
    ]
    return math.log2(increases[0] / increases[1]) if min(increases) > 0 else math.nan


@on_host
def sharpness_quadratic(
    key: Key,
    loss: Callable[[Params], Array],
    params: Params,
    *,
    radius: float,
    hessian_product: Callable[[PyTree], PyTree] | None = None,
    num_steps: int = 30,
) -> QuadraticSharpness:
    r"""Sharpness to second order, from the largest eigenvalue of the Hessian.

    Args:
        key: typed PRNG key of Lanczos' start vector.
        loss: maps parameters to a scalar, with JAX operations.
        params: the minimum, any pytree.
        radius: r.
        hessian_product: maps u to the product of the Hessian with u; by default the derivative of
            the gradient of ``loss``. For an adversarial loss with a frozen attack that is only the
            part A of :math:`A + B^T D`: pass the product of the true Hessian.
        num_steps: Lanczos steps.

    Returns:
        The approximation and its validity.

    Raises:
        ValueError: the radius is not positive.

    Example:
        >>> loss = lambda t: 3 * t[0] ** 2 + t[1] ** 2
        >>> round(sharpness_quadratic(jax.random.key(0), loss, jnp.zeros(2), radius=0.1).value, 6)
        0.03

    References:
        formulas H.2; Kanai et al., equation 74; erratum E23.
    """
    _check_radius(radius)
    with precision_of(params):
        params, loss = as_arrays(params), fast_convolutions(loss)
        value, gradient = jax.value_and_grad(loss)(params)
        centre, gradient_norm = float(value), float(np.linalg.norm(vector(gradient)))
        product = hessian_product
        if product is None:
            product = jax.jit(lambda u: jax.jvp(jax.grad(loss), (params,), (u,))[1])
        spectrum = extreme_eigenvalues(key, product, params, num_steps=num_steps)
    return QuadraticSharpness(
        max(spectrum.largest, 0.0) * radius**2 / (2 * (1 + centre)),
        centre,
        spectrum.largest,
        spectrum.largest_error,
        gradient_norm,
        gradient_norm * radius / (1 + centre),
    )
