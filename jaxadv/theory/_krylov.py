"""Conjugate gradients and Lanczos on pytrees: operators are functions, never matrices."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from ..types import Array, PyTree


class CG(NamedTuple):
    """Result of conjugate gradients.

    Attributes:
        solution: of S v = b.
        residual: norm of b - S v over norm of b.
        iterations: products with S.
        negative: whether a direction of curvature <= 0 was found: S is not positive definite, and
        the solution is the previous iterate (the right-hand side if it was the first).
    """

    solution: Array
    residual: Array
    iterations: Array
    negative: Array


def conjugate_gradients(
    apply: Callable[[Array], Array], b: Array, *, tol: float, max_steps: int
) -> CG:
    """Solves S v = b for a symmetric positive definite S, to a relative residual of ``tol``."""
    size = jnp.sqrt(jnp.sum(b**2))
    unit = b / jnp.where(size > 0, size, 1.0)

    def going(state: tuple) -> Array:
        _, _, _, rho, count, negative = state
        return (rho > tol**2) & (count < max_steps) & ~negative

    def step(state: tuple) -> tuple:
        v, r, p, rho, count, _ = state
        q = apply(p)
        curvature = jnp.sum(p * q)
        negative = curvature <= 0
        alpha = jnp.where(negative, 0.0, rho / jnp.where(negative, 1.0, curvature))
        v, r = v + alpha * p, r - alpha * q
        new_rho = jnp.sum(r**2)
        return v, r, r + new_rho / rho * p, new_rho, count + 1, negative

    start = (0 * unit, unit, unit, jnp.sum(unit**2), jnp.array(0), jnp.array(False))
    v, _, _, rho, count, negative = jax.lax.while_loop(going, step, start)
    # If found immediately, there is no iterate yet; the right-hand side is an ascent direction.
    v = jnp.where(negative & (count == 1), unit, v)
    return CG(size * v, jnp.sqrt(rho), count, negative)


class Estimate(NamedTuple):
    """A number from Lanczos.

    Attributes:
        value: the estimate; never beyond the true extreme, up to rounding.
        error: an eigenvalue lies within this of the estimate (the Ritz residual).
        iterations: products with the operator.
        converged: whether the error is below the requested tolerance.
    """

    value: float
    error: float
    iterations: int
    converged: bool


class Extremes(NamedTuple):
    """Smallest and largest eigenvalue."""

    low: Estimate
    high: Estimate


def _dot(a: PyTree, b: PyTree) -> float:
    parts = jax.tree.map(lambda x, y: jnp.vdot(x, y), a, b)
    return math.fsum(float(part) for part in jax.tree.leaves(parts))


_combine = jax.jit(lambda v, w, a: jax.tree.map(lambda x, y: (x - a * y).astype(x.dtype), v, w))
_scaled = jax.jit(lambda v, a: jax.tree.map(lambda x: (a * x).astype(x.dtype), v))


def lanczos(
    apply: Callable[[PyTree], PyTree],
    start: PyTree,
    *,
    tol: float,
    max_steps: int,
    reorthogonalize: bool = True,
    ends: str = "both",
    project: Callable[[PyTree], PyTree] | None = None,
) -> Extremes:
    """Extreme eigenvalues of a symmetric operator on pytrees, with error estimates.

    Args:
        apply: the operator.
        start: a nonzero vector with a component along the desired eigenvectors.
        tol: relative error, of the larger extreme, at which to stop.
        max_steps: maximum number of products.
        reorthogonalize: keep the basis and orthogonalize against it. Without it, memory is three
        vectors, and the extremes are the same, perhaps a few steps later.
        ends: "both", "low" or "high": which ones must reach the tolerance.
        project: onto the invariant subspace in which the eigenvalues are sought and ``start`` lies;
            without it rounding brings in the eigenvalue that the operator has outside.

    Returns:
        An `Extremes`.
    """
    size = math.sqrt(_dot(start, start))
    if not size > 0:
        zero = Estimate(0.0, 0.0, 0, True)
        return Extremes(zero, zero)
    rounding = 50 * max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(start))
    v, before, basis = _scaled(start, 1 / size), None, []
    diagonal, off = [], []
    while True:
        basis.append(v)
        w = apply(v)
        diagonal.append(_dot(v, w))
        w = _combine(w, v, diagonal[-1])
        if before is not None:
            w = _combine(w, before, off[-1])
        if reorthogonalize:
            for other in basis + basis:  # once leaves an error of the size of what it removes
                w = _combine(w, other, _dot(other, w))
        else:
            basis = []
        if project is not None:
            w = project(w)
        beta = math.sqrt(max(_dot(w, w), 0.0))
        steps = len(diagonal)
        values, vectors = scipy.linalg.eigh_tridiagonal(np.array(diagonal), np.array(off))
        errors = beta * np.abs(vectors[-1])
        largest = max(abs(values[0]), abs(values[-1]))
        if not math.isfinite(largest):
            bad = Estimate(math.nan, math.inf, steps, False)
            return Extremes(bad, bad)
        limit = tol * largest
        wanted = {"both": max(errors[0], errors[-1]), "low": errors[0], "high": errors[-1]}[ends]
        # One step says nothing about the spectrum unless the space is exhausted.
        exhausted = beta <= rounding * largest or largest == 0
        if exhausted or (wanted <= limit and steps >= 3) or steps >= max_steps:
            low, high = (
                Estimate(float(values[i]), float(errors[i]), steps, bool(errors[i] <= limit))
                for i in (0, -1)
            )
            return Extremes(low, high)
        off.append(beta)
        before, v = v, _scaled(w, 1 / beta)


def square_root(estimate: Estimate) -> Estimate:
    """A singular value from the eigenvalue of the squared operator."""
    value = math.sqrt(max(estimate.value, 0.0))
    error = math.sqrt(max(estimate.value, 0.0) + estimate.error) - value
    return estimate._replace(value=value, error=error)
