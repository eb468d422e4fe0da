r"""The L1 geometry of APGD: projection onto the ball and the box, and an exact order statistic.

Neither sorts: sorting every perturbation in every step would dominate the cost of an L1 attack.
They bisect on the *bits* of a non-negative float, which are ordered like the numbers, so 31
(float32) or 63 (float64) halvings give the exact answer.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .types import Array


def project_l1_box(images: Array, deltas: Array, eps: Array | float) -> Array:
    r"""The nearest v to each perturbation with :math:`\|v\|_1 \le \epsilon`, x + v in the box.

    .. math:: v_i = \mathrm{sign}(d_i) \min(c_i, \max(|d_i| - \tau, 0)),\quad
              c_i = \text{the room from } x_i \text{ to the box in the direction of } d_i

    with :math:`\tau \ge 0` such that :math:`\sum_i |v_i| = \epsilon`, or 0 where the perturbation
    cut to the box already fits. A perturbation that fits is returned unchanged.

    Args:
        images: x of shape (B, ...), in [0, 1].
        deltas: d, same shape.
        eps: radius.

    Returns:
        Perturbations v of the same shape.

    Example:
        >>> import jax.numpy as jnp
        >>> x, d = jnp.array([[0.9, 0.5, 0.5]]), jnp.array([[2.0, 0.4, 0.1]])
        >>> [round(float(v), 4) for v in project_l1_box(x, d, 0.4)[0]]
        [0.1, 0.3, 0.0]

    References:
        Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks", 2021, section 2.
    """
    flat = deltas.reshape(deltas.shape[0], -1)
    centers = images.reshape(flat.shape)
    room = jnp.where(flat > 0, 1 - centers, centers)
    return (jnp.sign(flat) * shrink(jnp.abs(flat), room, eps)).reshape(deltas.shape)


def shrink(magnitudes: Array, room: Array, eps: Array | float) -> Array:
    r"""The sizes :math:`\min(c_i, \max(m_i - \tau, 0))` of sum eps, or tau = 0 where they fit.

    Args:
        magnitudes: m of shape (B, n), >= 0.
        room: c of shape (B, n), >= 0.
        eps: radius, a number or of shape (B,).

    Returns:
        Sizes of shape (B, n).
    """

    def value(tau: Array) -> Array:
        return jnp.minimum(jnp.maximum(magnitudes - tau[:, None], 0), room)

    def too_long(tau: Array) -> Array:
        return value(tau).sum(axis=1) > eps

    tau = jnp.zeros(magnitudes.shape[0], magnitudes.dtype)
    fits = ~too_long(tau)
    low, high = bisect_bits(too_long, magnitudes.max(axis=1))
    # low and high are neighboring floats; with the sets between them fixed, the equation
    # eps = sum_capped room + sum_free (magnitude - tau) is linear in tau.
    middle = jnp.where(jnp.isfinite(high), high, low)[:, None]
    capped = magnitudes - middle >= room
    free = (magnitudes > middle) & ~capped
    count = free.sum(axis=1).astype(magnitudes.dtype)
    excess = jnp.sum(jnp.where(capped, room, jnp.where(free, magnitudes - middle, 0)), axis=1) - eps
    correction = jnp.where(count > 0, excess / jnp.maximum(count, 1), 0)
    tau = jnp.where(fits, 0, jnp.maximum(middle[:, 0] + correction, 0))
    return value(tau)


def order_statistic(values: Array, ranks: Array) -> Array:
    """The element of rank ``ranks[b]`` (from 0) in each row of non-negative values.

    Args:
        values: of shape (B, n), >= 0.
        ranks: integers of shape (B,), in [0, n).

    Returns:
        Of shape (B,): exact elements of the rows.

    Example:
        >>> import jax.numpy as jnp
        >>> order_statistic(jnp.array([[3.0, 0.0, 2.0]]), jnp.array([1])).tolist()
        [2.0]
    """

    def below(threshold: Array) -> Array:
        return jnp.sum(values < threshold[:, None], axis=1) <= ranks

    low, high = bisect_bits(below, values.max(axis=1))
    # The largest float t with #{values < t} <= rank, unless every value satisfies it.
    return jnp.where(below(high), high, low)


def bisect_bits(holds: Callable[[Array], Array], largest: Array) -> tuple[Array, Array]:
    """Neighboring floats around the point in [0, largest] where ``holds`` becomes false.

    Args:
        holds: maps thresholds of shape (B,) to booleans; true up to a point, false after it.
        largest: upper ends, of shape (B,), >= 0.

    Returns:
        ``low`` and ``high``, of shape (B,), with holds(low) unless it holds nowhere, and not
        holds(high) unless it holds everywhere.
    """
    width = jnp.finfo(largest.dtype).bits
    integers = jnp.int32 if width == 32 else jnp.int64

    def floats(bits: Array) -> Array:
        return jax.lax.bitcast_convert_type(bits, largest.dtype)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        true = holds(floats(middle))
        return jnp.where(true, middle, low), jnp.where(true, high, middle)

    top = jax.lax.bitcast_convert_type(largest, integers)
    low, high = jax.lax.fori_loop(0, width - 1, halve, (jnp.zeros_like(top), top))
    return floats(low), floats(high)
