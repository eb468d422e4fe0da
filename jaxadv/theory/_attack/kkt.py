"""The KKT system of an attack with its active set frozen, for the implicit function theorem."""

import jax
import jax.numpy as jnp

from ...types import Array, PyTree
from .active import ActiveSet
from .feasible import Feasible
from .problem import ScalarLoss


def kkt_residual(
    loss: ScalarLoss,
    unknowns: Array,
    theta: PyTree,
    feasible: Feasible,
    active: ActiveSet,
    scale: Array,
) -> Array:
    r"""F(x', nu; theta, x) = 0 says that x' is a KKT point; d + 1 equations for (x', nu).

    * coordinates that the box or the Linf ball holds: x'_i stays where it is relative to what holds
      it (the box, x - eps or x + eps, for L1 x itself);
    * the others: :math:`t g = \nu\, \nabla c(x')`, with :math:`c = \|r\|^2/2\epsilon` (L2) or
      :math:`c = s^T r` (L1), r = x' - x, and :math:`t = \epsilon/scale` to make it free of units;
    * the ball: :math:`\|r\|^2 = \epsilon^2` (L2), :math:`s^T r = \epsilon` (L1), or nu = 0.
    """
    z, nu = unknowns[:-1], unknowns[-1]
    gradient = jax.grad(loss)(z, theta)
    eps = jnp.where(feasible.eps > 0, feasible.eps, 1.0)
    frozen = jax.lax.stop_gradient
    r = z - feasible.x
    if feasible.norm == "l2":
        outward, constraint = r, (r @ r - feasible.eps**2) / (2 * eps)
    else:
        signs = frozen(jnp.sign(r))
        outward = eps * signs
        constraint = signs @ r - feasible.eps
    balance = frozen(eps / scale) * gradient - nu * outward
    bound = jnp.where(frozen(z - feasible.low) <= frozen(feasible.high - z), feasible.low,
                      feasible.high)  # fmt: skip
    if feasible.norm == "l1":
        # A held coordinate that is not on its box is a zero of x' - x.
        near = frozen(jnp.abs(z - bound)) <= frozen(jnp.abs(r))
        bound = jnp.where(near, bound, feasible.x)
    held = z - bound
    # On a bound that is only touched the value of F is rounding; its derivatives are what counts.
    first = jnp.where(active.fixed, held, balance)
    second = jnp.where(active.on_ball, constraint, nu)
    return jnp.append(first, second)


def normalized_multiplier(active: ActiveSet, scale: Array) -> Array:
    """The nu of `kkt_residual` that belongs to a multiplier mu: the unit of mu is that of g."""
    return jnp.where(active.on_ball, active.multiplier / scale, 0.0)
