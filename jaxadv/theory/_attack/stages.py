"""The three stages of the search for an optimal attack, from one start."""

import jax
import jax.numpy as jnp

from ...types import Array
from .active import ActiveSet, active_set
from .certificates import gradient_scale, relative_residual
from .feasible import Feasible, l2_norm
from .problem import FlatLoss

_PGD_STEPS, _ASCENT_STEPS, _NEWTON_STEPS = 30, 100, 60
_FINE = 1e-14  # relative residual that cannot be improved
_LENGTHS = (1.0, 0.5, 0.1, 0.01)
FAR = 8  # longest steps away from the start, polishing gives up


def ascend(loss: FlatLoss, feasible: Feasible, z: Array) -> Array:
    """Stage 1: steepest ascent with decreasing steps; the best iterate."""
    slope = jax.value_and_grad(loss)

    def direction(g: Array) -> Array:
        if feasible.norm == "linf":
            return jnp.sign(g)
        length = l2_norm(g)
        return g / jnp.where(length > 0, length, 1.0)

    def step(carry: tuple, size: Array) -> tuple:
        z, best, best_value = carry
        value, g = slope(z)
        better = value > best_value
        best, best_value = jnp.where(better, z, best), jnp.where(better, value, best_value)
        z = feasible.project(z + size * feasible.eps * direction(g))
        return (z, best, best_value), None

    sizes = jnp.geomspace(1.0, 0.01, _PGD_STEPS, dtype=z.dtype)
    start = (z, z, jnp.asarray(-jnp.inf, z.dtype))
    (last, best, best_value), _ = jax.lax.scan(step, start, sizes)
    return jnp.where(loss(last) > best_value, last, best)


def climb(loss: FlatLoss, feasible: Feasible, z: Array, max_steps: int = _ASCENT_STEPS) -> Array:
    """Stage 2: monotone projected-gradient ascent."""
    slope = jax.value_and_grad(loss)

    def unit(g: Array) -> Array:
        length = l2_norm(g)
        return feasible.eps / jnp.where(length > 0, length, 1.0)

    def going(state: tuple) -> Array:
        z, _, g, step, count = state
        scale = jnp.where(l2_norm(g) > 0, l2_norm(g), 1.0)
        moving = relative_residual(feasible, z, g, scale) > 1e-6
        return moving & (count < max_steps) & (step > 1e-12 * unit(g))

    def body(state: tuple) -> tuple:
        z, value, g, step, count = state
        new = feasible.project(z + step * g)
        new_value, new_g = slope(new)
        good = new_value >= value
        z, value, g = (jnp.where(good, a, b) for a, b in ((new, z), (new_value, value), (new_g, g)))
        return z, value, g, jnp.where(good, 1.2 * step, 0.5 * step), count + 1

    value, g = slope(z)
    return jax.lax.while_loop(going, body, (z, value, g, unit(g), jnp.array(0)))[0]


def _newton_step(active: ActiveSet, g: Array, hessian: Array) -> Array:
    """Newton's step on the tangent space, each eigenvalue replaced by its absolute value."""
    projector = active.projector
    inside = projector @ hessian @ projector
    inside = active.pull * projector - 0.5 * (inside + inside.T)
    values, vectors = jnp.linalg.eigh(inside)
    magnitudes = jnp.abs(values)
    # No step along directions without curvature, including those outside the tangent space.
    usable = magnitudes > 1e-13 * jnp.max(magnitudes)
    coordinates = (vectors.T @ active.project(g)) / jnp.where(usable, magnitudes, 1.0)
    return active.project(vectors @ jnp.where(usable, coordinates, 0.0))


def candidates(
    feasible: Feasible,
    active: ActiveSet,
    z: Array,
    g: Array,
    step: Array,
    scale: Array,
    reach: Array | None = None,
) -> Array:
    """Feasible points along a tangential step, which stay on the sphere, and along the gradient.

    None is farther along its line than ``reach``, by default the radius.
    """
    limit = feasible.eps if reach is None else reach
    length, slope = l2_norm(step), l2_norm(g)
    step = step * jnp.minimum(1.0, limit / jnp.where(length > 0, length, 1.0))
    # At most eps long as it is.
    rise = feasible.eps / scale
    if reach is not None:
        rise = jnp.minimum(rise, reach / jnp.where(slope > 0, slope, 1.0))
    r = z - feasible.x
    held = jnp.where(active.fixed, r, 0.0)
    radius = jnp.sqrt(jnp.maximum(feasible.eps**2 - jnp.sum(held**2), 0.0))

    def retract(size: Array) -> Array:
        moved = jnp.where(active.fixed, 0.0, r + size * step)
        if feasible.norm == "l2":
            norm = l2_norm(moved)
            on_sphere = moved * (radius / jnp.where(norm > 0, norm, 1.0))
            moved = jnp.where(active.on_ball, on_sphere, moved)
        return feasible.project(feasible.x + held + moved)

    climb = lambda size: feasible.project(z + size * rise * g)
    sizes = jnp.asarray(_LENGTHS, z.dtype)
    return jnp.concatenate([jax.vmap(retract)(sizes), jax.vmap(climb)(sizes)])


def choose(
    residual: Array, value: Array, residuals: Array, values: Array, noise: Array
) -> tuple[Array, Array]:
    """Chooses a candidate, if any: one that halves the residual, or the highest."""
    halves = (residuals <= 0.5 * residual) & (values >= value - noise)
    by_residual = jnp.argmin(jnp.where(halves, residuals, jnp.inf))
    by_value = jnp.argmax(jnp.where(jnp.isfinite(values), values, -jnp.inf))
    best = jnp.where(jnp.any(halves), by_residual, by_value)
    return best, jnp.any(halves) | jnp.any(values > value + noise)


def polish(
    loss: FlatLoss, feasible: Feasible, z: Array, reach: Array | None = None
) -> tuple[Array, Array, Array]:
    """Stage 3: Newton on the KKT system, safeguarded; returns x', its loss and its residual.

    With ``reach`` no step is longer than that, and it ends ``FAR`` times as far away; by default
    steps are at most as long as the radius.
    """
    slope = jax.value_and_grad(loss)
    hessian_fn = jax.jacfwd(jax.grad(loss))

    def going(state: tuple) -> Array:
        at, _, _, residual, stalled, count = state
        within = True if reach is None else l2_norm(at - z) <= FAR * reach
        return (residual > _FINE) & ~stalled & within & (count < _NEWTON_STEPS)

    def body(state: tuple) -> tuple:
        z, value, g, residual, _, count = state
        hessian = hessian_fn(z)
        scale = gradient_scale(feasible, g, hessian)
        residual = relative_residual(feasible, z, g, scale)
        active = active_set(feasible, z, g)
        step = _newton_step(active, g, hessian)
        points = candidates(feasible, active, z, g, step, scale, reach)
        values, slopes = jax.vmap(slope)(points)
        residuals = jax.vmap(lambda z, g: relative_residual(feasible, z, g, scale))(points, slopes)
        # A difference of losses below this is rounding.
        noise = 1e-14 * (jnp.abs(value) + scale * feasible.eps)
        best, good = choose(residual, value, residuals, values, noise)
        z, value, g, residual = (
            jnp.where(good, new[best], old)
            for new, old in ((points, z), (values, value), (slopes, g), (residuals, residual))
        )
        return z, value, g, residual, ~good, count + 1

    value, g = slope(z)
    start = (z, value, g, jnp.asarray(jnp.inf, z.dtype), jnp.array(False), 0)
    z, value, _, residual, _, _ = jax.lax.while_loop(going, body, start)
    return z, value, residual
