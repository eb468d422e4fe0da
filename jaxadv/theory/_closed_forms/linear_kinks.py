"""Nonsmooth points of the linear model's adversarial loss, for every norm p in [1, inf]."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ...types import Array
from .linear import check_example, check_p, dual_norm, in_float64_for_p, linear_margin


class LinearKinks(NamedTuple):
    r"""Jumps of the adversarial loss gradient, seen from one theta.

    Attributes:
        distance: to each wall; shape (d,). For p = inf wall i is theta_i = 0; for p = 1 it is the
            tie of :math:`|\theta_i|` with the largest other entry; otherwise only the origin is
            singular and every entry is the norm of theta.
        jump: norm of the jump of the gradient across each wall, reached with the other
            coordinates fixed (p = 1: where entry i ties with the largest other one, and 0 if that
            is 0; other p: 0, the gradient is continuous off the origin).
        origin: :math:`\ell'(0; w) + \ell'(0; -w)` divided by :math:`\|w\|_q`: eps.
    """

    distance: Array
    jump: Array
    origin: Array


@in_float64_for_p
def linear_kinks(
    theta: ArrayLike, x: ArrayLike, y: ArrayLike, *, p: float, eps: float | Array
) -> LinearKinks:
    r"""Locations and jumps of the kinks of the adversarial loss.

    For p = inf the i-th partial derivative jumps by :math:`2\epsilon s(-M)` at
    :math:`\theta_i = 0`; for p = 1 the attack jumps from one coordinate to another on a tie, and
    the gradient by :math:`\sqrt 2 \epsilon s(-M)`.

    Args:
        theta: parameters of shape (d,).
        x: one example of shape (d,).
        y: one label, -1 or +1.
        p: exponent of the norm, in [1, inf].
        eps: radius.

    Returns:
        A `LinearKinks`.

    Example:
        >>> import numpy as np
        >>> kinks = linear_kinks(np.array([0.0, 1.3]), np.array([-1.0, 1.0]), 1, p=np.inf, eps=0.6)
        >>> round(float(kinks.jump[0]), 10)
        0.4474226804

    References:
        docs/formulas.md B.7, B.8; the jump replaces the paper's proof of Theorem 2 (erratum E5).
    """
    theta, x, y = check_example(theta, x, y, eps)
    size, origin = theta.shape[0], jnp.asarray(eps, float)
    if 1 < p < math.inf:
        return LinearKinks(
            jnp.full(size, dual_norm(theta, 2.0)), jnp.zeros(size), jnp.broadcast_to(origin, ())
        )
    own = jnp.eye(size, dtype=bool)
    others = jnp.where(own, 0.0, jnp.broadcast_to(jnp.abs(theta)[None, :], own.shape)).max(axis=1)
    wall = others if p == 1 else jnp.zeros(size)
    moved = jnp.where(own, jnp.where(theta < 0, -wall, wall)[:, None], theta[None, :])
    margins = jax.vmap(lambda t: linear_margin(t, x, y, p=p, eps=eps))(moved)
    factor = math.sqrt(2.0) * (others > 0) if p == 1 else 2.0
    jump = factor * eps * jax.nn.sigmoid(-margins)
    return LinearKinks(jnp.abs(jnp.abs(theta) - wall), jump, jnp.broadcast_to(origin, ()))


class LinearRegularity(NamedTuple):
    """Smoothness of the linear model's adversarial loss for one p.

    Attributes:
        singular: the set of theta where the gradient is not locally Lipschitz.
        exponent: Hoelder exponent of the gradient at the points of that set other than 0: 0 where
            it jumps, :math:`q - 1 = 1/(p-1)` for 2 < p < inf, 1 if only 0 is singular.
    """

    singular: str
    exponent: float


def linear_regularity(p: float) -> LinearRegularity:
    r"""Nonsmooth points and Hoelder exponent for each p: Lipschitz off 0 for 1 < p <= 2.

    Args:
        p: exponent of the norm, in [1, inf].

    Returns:
        A `LinearRegularity`.

    Raises:
        ValueError: p below 1.

    Example:
        >>> linear_regularity(3)
        LinearRegularity(singular='theta_i = 0 for some i', exponent=0.5)

    References:
        formulas B.8.
    """
    p = check_p(p)
    if p == 1:
        return LinearRegularity("the largest |theta_i| is not unique", 0.0)
    if p <= 2:
        return LinearRegularity("theta = 0", 1.0)
    return LinearRegularity("theta_i = 0 for some i", 1 / (p - 1))
