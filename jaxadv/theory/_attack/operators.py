r"""Products with the derivatives of one attack, for models of any size.

With l(x, theta) the loss of one example, at an attack x': H, A and B are products of derivatives of
``jax.grad``; :math:`S = -PHP + (\mu/\epsilon)P` is inverted by conjugate gradients on the tangent
space of the active constraints, which is never formed; nothing of size d x m exists.

References:
    SPEC C.6.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from ..._types import Array, PyTree
from .._krylov import CG, conjugate_gradients
from .active import ActiveSet


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Point:
    """An attack with its active set (on the flattened x): what every product needs."""

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

    def linear_solver(self) -> Callable[[Array], CG]:
        """The map v -> S^{-1} P v (as `CG`), with grad_x l linearised once."""
        _, hessian = jax.linearize(lambda x: self.input_gradient(x, self.theta), self.x_adv)

        def apply(v: Array) -> Array:
            v = self.project(v)
            return self.active.pull * v - self.project(hessian(v))

        def solve(v: Array) -> CG:
            return conjugate_gradients(
                apply, self.project(v), tol=self.cg_tol, max_steps=self.cg_steps
            )

        return solve


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
    """S^{-1} P v on the tangent space."""
    return point.linear_solver()(v)


@jax.jit
def tangent_product(point: Point, v: Array) -> Array:
    """S P v = -P W P v: the curvature that holds the attack."""
    v = point.project(v)
    return point.active.pull * v - point.project(hessian_product(point, v))


@jax.jit
def inverse_bordered_product(point: Point, vector: Any) -> Any:
    """K^{-1} (a, v) for the bordered Hessian K of the paper, by one solve (SPEC C.2)."""
    a, v = vector
    n = point.active.normal.reshape(point.x_adv.shape)
    along = hessian_product(point, n)
    tangential = -solve(point, v - a * along).solution
    z = a * n + tangential
    return jnp.sum(n * v) - jnp.sum(n * hessian_product(point, z)), z
