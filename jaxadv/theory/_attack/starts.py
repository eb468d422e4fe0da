"""Where the search for optimal attacks starts."""

import jax
import jax.numpy as jnp

from ...types import Array, Key
from .feasible import Feasible

_VERTEX_COORDINATES = 16  # of the L1 ball, whose vertices are starts


def starts(key: Key, feasible: Feasible, g: Array, num_restarts: int) -> Array:
    """X itself, the ends of the ball along its gradient, and random points.

    Most maxima over an L1 ball are on its vertices and edges, which random points inside rarely
    lead to: it gets its vertices, and random points of its edges, too.
    """
    direction_key, radius_key = jax.random.split(key)
    shape = (num_restarts, feasible.x.shape[0])
    directions = jax.random.normal(direction_key, shape, feasible.x.dtype)
    if feasible.norm == "linf":
        lengths = jnp.max(jnp.abs(directions), axis=1, keepdims=True)
    elif feasible.norm == "l2":
        lengths = jnp.sqrt(jnp.sum(directions**2, axis=1, keepdims=True))
    else:
        lengths = jnp.sum(jnp.abs(directions), axis=1, keepdims=True)
    radii = jax.random.uniform(radius_key, (num_restarts, 1), feasible.x.dtype)
    offsets = feasible.eps * radii * directions / lengths
    if feasible.norm == "l1":
        offsets = jnp.concatenate([offsets, feasible.eps * _corners(key, g, num_restarts)])
    points = jax.vmap(feasible.project)(feasible.x[None, :] + offsets)
    return jnp.concatenate(
        [jnp.stack([feasible.x, feasible.farthest(g), feasible.farthest(-g)]), points]
    )


def _corners(key: Key, g: Array, num_edges: int) -> Array:
    """Vertices of the unit L1 ball along the steepest coordinates, and points of its edges."""
    edge_key, sign_key, share_key = jax.random.split(jax.random.fold_in(key, 1), 3)
    size = g.shape[0]
    steepest = jnp.argsort(-jnp.abs(g))[:_VERTEX_COORDINATES]
    units = jnp.eye(size, dtype=g.dtype)
    vertices = jnp.concatenate([units[steepest], -units[steepest]])
    keys = jax.random.split(edge_key, num_edges)
    pairs = jax.vmap(lambda k: jax.random.permutation(k, size)[:2])(keys)
    shares = jax.random.uniform(share_key, (num_edges, 1), g.dtype)
    signs = jax.random.rademacher(sign_key, (num_edges, 2), g.dtype)
    ends = units[pairs] * signs[:, :, None]
    edges = shares * ends[:, 0] + (1 - shares) * ends[:, -1]
    return jnp.concatenate([vertices, edges])
