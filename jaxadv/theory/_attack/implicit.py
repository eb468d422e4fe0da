r"""The implicit function theorem, for attacks and other roots of systems.

A root u of F(u; p) = 0 stays one while p moves, so :math:`F_u\,u' = -F_p\,p'`. For an attack F is
the KKT system with its active set frozen: whole (`kkt_residual`, solved as a matrix), or on the
tangent space of the active constraints (`tangent_residual`, solved by conjugate gradients).

References:
    docs/formulas.md C.1, C.2, C.4, C.6.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from ...types import Array
from .._krylov import CG, conjugate_gradients
from .lapack import after

_Solution = TypeVar("_Solution")
Linear = Callable[[Array], Array]


def implicit_motion(
    residual: Callable[[Array], Array],
    root: Array,
    push: Array,
    solve: Callable[[Linear, Array], _Solution],
) -> _Solution:
    r"""The derivative u' of a root, with :math:`F_u\,u' = -F_p\,p'`.

    Args:
        residual: u -> F(u; p).
        root: u, with F(u; p) = 0.
        push: :math:`F_p\,p'` at the root, one direction or (`dense_solve`) a matrix of columns.
        solve: from :math:`F_u` as a function of a direction, and a right-hand side, to the
            solution.
    """
    _, derivative = jax.linearize(residual, root)
    return solve(derivative, -push)


def dense_solve(done: Array) -> Callable[[Linear, Array], Array]:
    """Solves ``apply(v) = b`` through a matrix, once ``done`` is known; b: (n,) or (n, k)."""

    def solve(apply: Linear, b: Array) -> Array:
        matrix = jax.vmap(apply, out_axes=1)(jnp.eye(len(b), dtype=b.dtype))
        return jnp.linalg.solve(after(done, matrix), b)

    return solve


def conjugate_solve(tol: float, max_steps: int) -> Callable[[Linear, Array], CG]:
    """Solves ``apply(v) = b`` for a symmetric negative definite ``apply``."""

    def solve(apply: Linear, b: Array) -> CG:
        return conjugate_gradients(lambda v: -apply(v), -b, tol=tol, max_steps=max_steps)

    return solve


def tangent_residual(
    gradient_fn: Linear, project: Linear, pull: Array, z: Array
) -> Callable[[Array], Array]:
    r"""The KKT system on the tangent space at z, up to a constant.

    Its derivative there is -S, :math:`S = P(\mu/\epsilon - H)P`: negative definite at a strict
    maximum, although H need not be.

    Args:
        gradient_fn: the input gradient of the loss.
        project: P.
        pull: mu/eps.
        z: the attack.
    """

    def residual(place: Array) -> Array:
        step = project(place - z)
        return project(gradient_fn(z + step)) - pull * step

    return residual
