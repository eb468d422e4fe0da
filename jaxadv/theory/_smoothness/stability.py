r"""How far theta may move before a coordinate of an Linf attack jumps to its opposite bound.

References:
    docs/formulas.md C.4 and I.6.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..._rewrite import fast_convolutions
from ..._transfers import on_host
from ...checks import check_count
from ...types import Array, Key, Params, PyTree
from .._trees import as_arrays, check_same_structure, precision_of


class ActiveSetStability(NamedTuple):
    r"""Margins and speeds of the coordinates of an attack; arrays have the shape of the attack.

    Attributes:
        active: coordinates at a bound with the gradient pointing outward.
        margin: :math:`|g_i|`, how far the input gradient is from changing sign.
        speed: :math:`\|B_i\|`, how fast :math:`g_i` can change with theta.
        radius: :math:`\min_i |g_i|/\|B_i\|` over the active coordinates, to first order the length
            of the shortest step of theta that flips one; inf if none is active.
        jumps: predicted jump of the gradient in theta when i flips, :math:`(h_i - l_i)\|B_i\|` with
            the distance of its bounds, 2 eps without the box.
        flips: active coordinates whose :math:`g_i` changes sign along the given step, to first
            order; None without a step.
    """

    active: np.ndarray
    margin: np.ndarray
    speed: np.ndarray
    radius: float
    jumps: np.ndarray
    flips: np.ndarray | None


@on_host
def active_set_stability(
    loss: Callable[[Array, Params], Array],
    theta: Params,
    x_adv: Array,
    *,
    low: Array,
    high: Array,
    step: PyTree | None = None,
    key: Key | None = None,
    num_probes: int | None = None,
) -> ActiveSetStability:
    r"""Stability of the active set of an attack with bounds on each coordinate.

    Args:
        loss: :math:`l(x', \theta)`, a scalar.
        theta: parameters, any pytree.
        x_adv: the attack, an array of any shape.
        low: lowest value of each coordinate, :math:`\max(x_i - \epsilon, 0)`.
        high: highest value.
        step: a change of theta; predicts the coordinates that it flips.
        key: typed PRNG key of the probes.
        num_probes: estimate the speeds from this many random products (relative standard error
            :math:`1/\sqrt{2 k}`); by default they are exact, with one backward pass per coordinate.

    Returns:
        The stability, see :class:`ActiveSetStability`.

    Raises:
        ValueError: different shapes, or ``num_probes`` without ``key``.

    Example:
        >>> loss = lambda x, theta: x @ theta
        >>> found = active_set_stability(
        ...     loss, np.array([0.5, -0.1]), np.array([1.0, -1.0]), low=-np.ones(2),
        ...     high=np.ones(2), step=np.array([0.0, 0.2]))
        >>> float(found.radius), found.jumps.tolist(), found.flips.tolist()
        (0.1, [2.0, 2.0], [False, True])

    References:
        formulas C.4 (radius of stability of a vertex) and I.6.
    """
    shapes = {np.shape(x_adv), np.shape(low), np.shape(high)}
    if len(shapes) != 1:
        raise ValueError(f"x_adv, low and high have shapes {sorted(shapes)}; they must be the same")
    if num_probes is not None:
        check_count("num_probes", num_probes, 1)
        if key is None:
            raise ValueError("num_probes without key; pass key=jax.random.key(seed)")
    if step is not None:
        check_same_structure("step", step, "theta", theta)
    with precision_of(theta, x_adv):
        theta, x_adv = as_arrays((theta, x_adv))
        slope = jax.grad(fast_convolutions(loss))
        input_gradient = lambda t: slope(x_adv, t)
        gradient = np.asarray(input_gradient(theta), np.float64)
        if num_probes is None or key is None:
            speed = _row_norms(input_gradient, theta, x_adv)
        else:
            speed = _row_norms_by_probes(key, input_gradient, theta, num_probes)
        change = None
        if step is not None:
            tangent = jax.tree.map(lambda s, p: jnp.asarray(s, p.dtype), step, theta)
            change = np.asarray(jax.jvp(input_gradient, (theta,), (tangent,))[1], np.float64)
    lowest, highest, place = (np.asarray(a, np.float64) for a in (low, high, x_adv))
    room = highest - lowest
    slack = 1e-5 * room
    at_high, at_low = place >= highest - slack, place <= lowest + slack
    active = (at_high & (gradient > 0)) | (at_low & (gradient < 0))
    margin = np.abs(gradient)
    distances = np.divide(margin, speed, out=np.full_like(margin, np.inf), where=speed > 0)
    flips = None if change is None else active & ((gradient + change) * gradient < 0)
    radius = float(distances[active].min()) if active.any() else np.inf
    return ActiveSetStability(active, margin, speed, radius, room * speed, flips)


def _row_norms(
    input_gradient: Callable[[Params], Array], theta: Params, x_adv: Array
) -> np.ndarray:
    """Norms of the rows of B, by one vector-Jacobian product per coordinate."""
    _, pullback = jax.vjp(input_gradient, theta)
    size = x_adv.size

    def square(index: Array) -> Array:
        basis = jnp.zeros(size, x_adv.dtype).at[index].set(1.0).reshape(x_adv.shape)
        (row,) = pullback(basis)
        return jnp.asarray(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(row)))

    squares = jax.jit(lambda: jax.lax.map(square, jnp.arange(size)))()
    return np.sqrt(np.asarray(squares, np.float64)).reshape(x_adv.shape)


def _row_norms_by_probes(
    key: Key, input_gradient: Callable[[Params], Array], theta: Params, num_probes: int
) -> np.ndarray:
    """E[(B u)_i^2] is the squared norm of row i for standard normal u."""
    _, pushforward = jax.linearize(input_gradient, theta)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    total = 0.0
    for _ in range(num_probes):
        probe = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), theta)
        total = total + np.asarray(pushforward(probe), np.float64) ** 2
    return np.sqrt(total / num_probes)
