r"""The geometry of a threat model: :math:`C(x) = \{x' : \|x' - x\|_p \le \epsilon\} \cap [0,1]^d`.

For the norms Linf, L2 and L1: Euclidean projection onto the ball and the box, a random point, and
the steepest ascent step. Functions are batched over the leading axis and treat the other axes as
one vector. Images, radii and steps share their units: pixels in [0, 1]. Radii and steps are one
number or an array of shape (B,), one per image.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxadv import balls
    >>> images = jnp.full((2, 8, 8, 1), 0.5)
    >>> start = balls.sample(jax.random.key(0), images, norm="l2", eps=0.5)
    >>> bool((balls.norm_of(start - images, "l2") <= 0.5 + 1e-6).all())
    True

References:
    docs/formulas.md A.3 and A.4: Kanai et al., "Smoothness Analysis of Adversarial Training",
    section 2; Madry et al. 2018 (PGD); Duchi et al. 2008 (L1 projection).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._l1 import shrink
from .checks import check_norm, is_concrete
from .keys import as_key
from .types import Array, Key, Norm


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _column(values: Array, like: Array) -> Array:
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def _sizes(name: str, values: Any, images: Array) -> Array:
    """A radius or step as an array of shape () or (B,) in the dtype of the images."""
    if not isinstance(values, jax.Array):
        values = np.asarray(values)
        if not jnp.issubdtype(values.dtype, jnp.number):
            raise ValueError(f"{name}={values} is not a number; pass one, for example 8 / 255")
    if values.shape not in ((), images.shape[:1]):
        raise ValueError(
            f"{name} has shape {values.shape} for {images.shape[0]} images; pass one number or an "
            f"array of shape ({images.shape[0]},)"
        )
    values = values.astype(images.dtype)
    # An explicit transfer, which jax.transfer_guard("disallow") permits.
    return jax.device_put(values) if is_concrete(images) else jnp.asarray(values)


def norm_of(deltas: Array, norm: Norm) -> Array:
    """Norm of each perturbation.

    Args:
        deltas: of shape (B, ...).
        norm: "linf", "l2" or "l1".

    Returns:
        Norms of shape (B,).

    Example:
        >>> norm_of(jnp.array([[3.0, -4.0]]), "l2").tolist()
        [5.0]
    """
    check_norm(norm)
    return _norm_of(deltas, norm=norm)


@functools.partial(jax.jit, static_argnames="norm")
def _norm_of(deltas: Array, *, norm: Norm) -> Array:
    magnitudes = jnp.abs(_flat(deltas))
    if norm == "linf":
        return magnitudes.max(axis=1)
    if norm == "l1":
        return magnitudes.sum(axis=1)
    # Scaling by the largest entry keeps the square from under- and overflowing.
    largest = magnitudes.max(axis=1)
    scale = jnp.where(largest > 0, largest, 1.0)
    squares = (magnitudes / scale[:, None]) ** 2
    # In float32 at least: in float16 the sum over an ImageNet image overflows.
    total = squares.sum(axis=1, dtype=jnp.promote_types(squares.dtype, jnp.float32))
    return scale * jnp.sqrt(total).astype(scale.dtype)


def project(
    points: Array, images: Array, *, norm: Norm, eps: float | Array, exact: bool = False
) -> Array:
    r"""Projects points into the ball of radius eps around the images and into the box [0, 1].

    * Linf: coordinatewise clip to :math:`[\max(x_i-\epsilon, 0), \min(x_i+\epsilon, 1)]`, exact.
    * L2, L1: the projection onto the ball, then the clip to the box. The result lies in both (the
      clip moves every coordinate of the perturbation toward 0), but it is not the nearest point of
      the intersection. Cheap, and what training code uses.
    * L2, L1 with ``exact=True``: the Euclidean projection onto the intersection,
      :math:`\delta = \mathrm{clip}(s v, -x, 1-x)` for L2 and
      :math:`\delta = \mathrm{sign}(v) \min(c, \max(|v|-\tau, 0))` for L1 (c the room up to
      the box), with the one multiplier found by bisection and then solved for in closed form.

    Args:
        points: of shape (B, ...).
        images: centers x, same shape, in [0, 1].
        norm: "linf", "l2" or "l1".
        eps: radius, in the units of the images; a number or of shape (B,).
        exact: whether L2 and L1 project onto the intersection exactly.

    Returns:
        Points of the same shape.

    Example:
        >>> x, v = jnp.array([[0.9, 0.5]]), jnp.array([[1.9, 0.5]])
        >>> project(v, x, norm="l2", eps=0.5).round(3).tolist()
        [[1.0, 0.5]]

    References:
        formulas A.3. L1 exact: Croce and Hein, "Mind the box", 2021, proposition 2.1.
    """
    check_norm(norm)
    return _project(points, images, _sizes("eps", eps, images), norm=norm, exact=exact)


@functools.partial(jax.jit, static_argnames=("norm", "exact"))
def _project(points: Array, images: Array, eps: Array, *, norm: Norm, exact: bool) -> Array:
    if norm == "linf":
        eps = _column(eps, images)
        return jnp.clip(points, jnp.maximum(images - eps, 0.0), jnp.minimum(images + eps, 1.0))
    deltas = _flat(points - images)
    centers = _flat(images)
    if not exact:
        ball = _l2_ball if norm == "l2" else _l1_ball
        return jnp.clip(images + ball(deltas, eps).reshape(images.shape), 0.0, 1.0)
    room = jnp.where(deltas > 0, 1.0 - centers, centers)
    solve = _l2_ball_and_box if norm == "l2" else shrink
    inside = jnp.sign(deltas) * solve(jnp.abs(deltas), room, eps)
    return jnp.clip(images + inside.reshape(images.shape), 0.0, 1.0)


def _l2_ball(deltas: Array, eps: Array) -> Array:
    norms = norm_of(deltas, "l2")
    factors = jnp.where(norms > eps, eps / jnp.where(norms > 0, norms, 1.0), 1.0)
    return deltas * factors[:, None]


def _l1_ball(deltas: Array, eps: Array) -> Array:
    eps = jnp.broadcast_to(eps, deltas.shape[:1])
    some = eps > 0  # optax divides by the radius
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes, and under x64 returns float64
        sphere = jax.vmap(optax.projections.projection_l1_sphere)(deltas, jnp.where(some, eps, 1))
    within = norm_of(deltas, "l1") <= eps
    inside = jnp.where(within[:, None], deltas, sphere.astype(deltas.dtype))
    return jnp.where(some[:, None], inside, 0)


def _bisect(
    too_big: Callable[[Array], Array], low: Array, high: Array, num_steps: int = 60
) -> tuple[Array, Array]:
    """Halves [low, high] per row; ``too_big(t)`` says where the root lies below t."""

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        big = too_big(middle)
        return jnp.where(big, low, middle), jnp.where(big, middle, high)

    return jax.lax.fori_loop(0, num_steps, halve, (low, high))


def _l2_ball_and_box(magnitudes: Array, room: Array, eps: Array) -> Array:
    def value(scale: Array) -> Array:
        return jnp.minimum(scale[:, None] * magnitudes, room)

    ones = jnp.ones(magnitudes.shape[0], magnitudes.dtype)
    fits = norm_of(value(ones), "l2") <= eps
    low, high = _bisect(lambda s: norm_of(value(s), "l2") > eps, 0 * ones, ones)
    # With the saturated set known, eps^2 = sum_sat room^2 + s^2 sum_free magnitude^2.
    saturated = low[:, None] * magnitudes >= room
    fixed = jnp.sum(jnp.where(saturated, room**2, 0.0), axis=1)
    free = jnp.sum(jnp.where(saturated, 0.0, magnitudes**2), axis=1)
    solved = jnp.sqrt(jnp.maximum(eps**2 - fixed, 0.0) / jnp.where(free > 0, free, 1.0))
    scale = jnp.where(free > 0, jnp.clip(solved, low, high), low)
    return value(jnp.where(fits, 1.0, scale))


def sample(
    key: Key | int,
    images: Array,
    *,
    norm: Norm,
    eps: float | Array,
    indices: Array | Sequence[int] | None = None,
) -> Array:
    r"""A random point of each ball, clipped to the box: where PGD starts.

    * Linf: :math:`x + U[-\epsilon, \epsilon]^d`.
    * L2: :math:`x + r \epsilon z/\|z\|_2`, z normal, :math:`r \sim U[0,1]`: uniform in the radius
      as in the AWP code, not uniform in volume.
    * L1: the same with Laplace z and the L1 norm.

    Args:
        key: PRNG key of any implementation, or a seed. Image i draws from
            ``fold_in(key, indices[i])``, so its start does not depend on the batch it is in.
        images: centers of shape (B, ...), in [0, 1].
        norm: "linf", "l2" or "l1".
        eps: radius, in the units of the images; a number or of shape (B,).
        indices: integers of shape (B,), default 0 to B - 1: index of each image in the data set.

    Returns:
        Points of the shape of ``images``.

    Raises:
        ValueError: if the key is invalid, or the number of indices or radii differs from the
        images'.

    Example:
        >>> x = jnp.zeros((1, 2, 2, 1))
        >>> sample(jax.random.key(0), x, norm="linf", eps=0.1).shape
        (1, 2, 2, 1)
    """
    check_norm(norm)
    key = as_key(key)
    places: Any = range(images.shape[0]) if indices is None else indices
    if not isinstance(places, jax.Array):
        places = np.asarray(places, np.int32)
    if places.shape != images.shape[:1]:
        raise ValueError(f"indices has shape {places.shape}; expected {images.shape[:1]}")
    if is_concrete(images):
        places = jax.device_put(places)
    return _sample(key, images, _sizes("eps", eps, images), places, norm=norm)


@functools.partial(jax.jit, static_argnames="norm")
def _sample(key: Key, images: Array, eps: Array, indices: Array, *, norm: Norm) -> Array:
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    shape, dtype = images.shape[1:], images.dtype
    if norm == "linf":
        noise = jax.vmap(lambda k: jax.random.uniform(k, shape, dtype, -1.0, 1.0))(keys)
        return jnp.clip(images + _column(eps, images) * noise, 0.0, 1.0)
    draw = jax.random.normal if norm == "l2" else jax.random.laplace
    pairs = jax.vmap(jax.random.split)(keys)
    directions = jax.vmap(lambda k: draw(k, shape, dtype))(pairs[:, 0])
    radii = jax.vmap(lambda k: jax.random.uniform(k, (), dtype))(pairs[:, 1])
    factors = radii * eps / (norm_of(directions, norm) + 1e-12)
    return jnp.clip(images + _column(factors, images) * directions, 0.0, 1.0)


def ascent_step(gradients: Array, points: Array, *, norm: Norm, step_size: float | Array) -> Array:
    r"""The step of steepest ascent :math:`\arg\max_{\|v\|_p \le \eta} g^T v`; 0 where g is 0.

    Non-finite entries of g count as 0: a network may have an infinite derivative at a black pixel,
    and the image still moves along the others.

    * Linf: :math:`\eta\,\mathrm{sign}(g)`, with sign(0) = 0.
    * L2: :math:`\eta\, g/\|g\|_2`, even where the squares of g under- or overflow.
    * L1: :math:`\eta\,\mathrm{sign}(g_k) e_k` with k the largest :math:`|g_i|` among the
      coordinates that the box lets move; otherwise a saturated pixel would block the attack
      forever. Ties go to the first coordinate.

    Args:
        gradients: g of shape (B, ...).
        points: where the gradients were taken, same shape, in [0, 1].
        norm: "linf", "l2" or "l1".
        step_size: eta, in the units of the images; a number or of shape (B,).

    Returns:
        Steps of the same shape, each of norm at most ``step_size``.

    Example:
        >>> g, x = jnp.array([[0.3, -2.0]]), jnp.array([[0.5, 0.0]])
        >>> ascent_step(g, x, norm="l1", step_size=0.25).tolist()
        [[0.25, 0.0]]

    References:
        formulas A.4; Madry et al. 2018 for Linf and L2.
    """
    check_norm(norm)
    step_size = _sizes("step_size", step_size, points)
    return _ascent_step(gradients, points, step_size, norm=norm)


@functools.partial(jax.jit, static_argnames="norm")
def _ascent_step(gradients: Array, points: Array, step_size: Array, *, norm: Norm) -> Array:
    gradients = jnp.where(jnp.isfinite(gradients), gradients, 0)
    if norm == "linf":
        return _column(step_size, gradients) * jnp.sign(gradients)
    if norm == "l2":
        # Scaled by a power of two, which is exact: step_size / norm can be subnormal, and then 0.
        _, exponents = jnp.frexp(jnp.abs(_flat(gradients)).max(axis=1))
        scaled = jnp.ldexp(gradients, -_column(exponents, gradients))
        norms = _norm_of(scaled, norm="l2")
        return scaled * _column(step_size / jnp.where(norms > 0, norms, 1), scaled)
    movable = jnp.where(gradients > 0, points < 1.0, points > 0.0)
    flat = _flat(jnp.where(movable, gradients, 0))
    best = jnp.argmax(jnp.abs(flat), axis=1)
    chosen = jax.nn.one_hot(best, flat.shape[1], dtype=flat.dtype)
    return (step_size.reshape(-1, 1) * jnp.sign(flat) * chosen).reshape(gradients.shape)
