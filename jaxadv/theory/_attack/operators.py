r"""Products with the derivatives of one attack, for models of any size.

With l(x, theta) the loss of one example, at an attack x': H, A and B are products of derivatives of
``jax.grad``; :math:`S = -PHP + (\mu/\epsilon)P` is inverted by conjugate gradients on the tangent
space of the active constraints, which is never formed; nothing of size d x m exists.

References:
    docs/formulas.md C.6.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from ...types import Array, PyTree
from .._krylov import CG
from .active import ActiveSet
from .implicit import conjugate_solve, implicit_motion, tangent_residual


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Point:
    """An attack with its active set (on the flattened x), for all products."""

    loss: Partial
    theta: PyTree
    x_adv: Array
    active: ActiveSet
    cg_tol: float = dataclasses.field(metadata=dict(static=True))
    cg_steps: int = dataclasses.field(metadata=dict(static=True))

    def input_gradient(self, x: Array, theta: PyTree) -> Array:
        """grad_x l, shaped like x."""
        return jax.grad(self.loss)(x, theta)

    def project(self, v: Array) -> Array:
        """P v for a v shaped like x."""
        return self.active.project(v.reshape(-1)).reshape(self.x_adv.shape)

    def tangent_residual(self) -> Callable[[Array], Array]:
        """The KKT system on the tangent space, a function of x'."""
        gradient = lambda x: self.input_gradient(x, self.theta)
        return tangent_residual(gradient, self.project, self.active.pull, self.x_adv)


@jax.jit
def hessian_product(point: Point, v: Array) -> Array:
    """H v."""
    gradient = lambda x: point.input_gradient(x, point.theta)
    return jax.jvp(gradient, (point.x_adv,), (v,))[1]


@jax.jit
def mixed_product(point: Point, u: PyTree) -> Array:
    """B u, shaped like x."""
    gradient = lambda theta: point.input_gradient(point.x_adv, theta)
    return jax.jvp(gradient, (point.theta,), (u,))[1]


@jax.jit
def mixed_transpose_product(point: Point, w: Array) -> PyTree:
    """B^T w, a pytree like theta: the gradient in theta of the directional derivative along w."""

    def slope(theta: PyTree) -> Array:
        return jax.jvp(lambda x: point.loss(x, theta), (point.x_adv,), (w,))[1]

    return jax.grad(slope)(point.theta)


@jax.jit
def frozen_hessian_product(point: Point, u: PyTree) -> PyTree:
    """A u, the Hessian of the loss at the frozen attack."""
    gradient = lambda theta: jax.grad(point.loss, argnums=1)(point.x_adv, theta)
    return jax.jvp(gradient, (point.theta,), (u,))[1]


@jax.jit
def solve(point: Point, v: Array) -> CG:
    """S^{-1} P v on the tangent space: how x' responds when v is added to the input gradient."""
    solver = conjugate_solve(point.cg_tol, point.cg_steps)
    return implicit_motion(point.tangent_residual(), point.x_adv, point.project(v), solver)


@jax.jit
def tangent_product(point: Point, v: Array) -> Array:
    """S P v = -P W P v: the curvature that holds the attack."""
    return -jax.jvp(point.tangent_residual(), (point.x_adv,), (v,))[1]


@jax.jit
def inverse_bordered_product(point: Point, vector: Any) -> Any:
    """K^{-1} (a, v) for the bordered Hessian K of the paper, by one solve (formulas C.2)."""
    a, v = vector
    n = point.active.normal.reshape(point.x_adv.shape)
    along = hessian_product(point, n)
    tangential = -solve(point, v - a * along).solution
    z = a * n + tangential
    return jnp.sum(n * v) - jnp.sum(n * hessian_product(point, z)), z
