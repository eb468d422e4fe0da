"""The active set of a point in C(x): its active constraints and their multipliers."""

from typing import NamedTuple

import jax.numpy as jnp

from ...types import Array
from .feasible import Feasible, l2_norm

# Relative to eps, a coordinate this close to its bound (a point this close to the sphere) is on it.
TOUCHES = 1e-7


class ActiveSet(NamedTuple):
    """The active constraints at a point, as data for the KKT system.

    Attributes:
        fixed: coordinates fixed by the box, the Linf ball or (L1) at a zero of x' - x; (d,) bool.
        on_ball: whether norm(x' - x) <= eps is also active (L2, L1; the Linf ball is a box).
        normal: unit normal of that constraint within the free coordinates; 0 if not active.
        pull: mu/eps for L2 on the sphere, the curvature that the constraint adds; otherwise 0.
        multiplier: mu of norm(x' - x) <= eps: the ball's contribution to d loss / d eps.
        margin: strict complementarity: the smallest multiplier of an active constraint (negative if
        its sign is wrong), inf if none is active.
        slack: the smallest distance to an inactive constraint; inf if there is none.
    """

    fixed: Array
    on_ball: Array
    normal: Array
    pull: Array
    multiplier: Array
    margin: Array
    slack: Array

    def project(self, v: Array) -> Array:
        """Projects onto the tangent space of the active constraints: P v."""
        inside = jnp.where(self.fixed, 0.0, v)
        return inside - self.normal * (self.normal @ inside)

    @property
    def projector(self) -> Array:
        """P as a matrix."""
        free = jnp.where(self.fixed, 0.0, 1.0).astype(self.normal.dtype)
        return jnp.diag(free) - self.normal[:, None] * self.normal[None, :]

    @property
    def tangent_dim(self) -> Array:
        """Dimension of the tangent space."""
        return jnp.sum(~self.fixed) - self.on_ball.astype(int)


def active_set(feasible: Feasible, z: Array, g: Array, touches: float = TOUCHES) -> ActiveSet:
    """The active constraints at z, given the gradient g there.

    A constraint is active if z is on it (within ``touches * eps``) and its multiplier has the KKT
    sign; one touched with the wrong sign or a zero multiplier counts as slack 0.
    """
    eps, r = feasible.eps, z - feasible.x
    near = touches * eps
    at_low, at_high = z - feasible.low <= near, feasible.high - z <= near
    # An interval of length 0 (eps = 0, or bounds that coincide) holds whatever g is.
    pinned = feasible.high - feasible.low <= 2 * near
    zero = jnp.zeros_like(pinned)
    pull, touching = jnp.zeros((), z.dtype), jnp.array(False)
    multiplier, free_gradient = pull, g
    if feasible.norm == "linf":
        # `Feasible` made this ball part of the box, so only its multiplier is left to find.
        on_sphere = (jnp.abs(r) >= eps - near) & (r * g > 0)
        multiplier = jnp.sum(jnp.where(on_sphere, jnp.abs(g), 0.0))
        fixed = _box_holds(at_low, at_high, g) | pinned
        normal = 0 * g
    elif feasible.norm == "l2":
        touching = (l2_norm(r) >= eps - near) & (eps > 0)
        # Coordinates off the box give mu at a KKT point, whatever holds the others.
        fixed = pinned | at_low | at_high
        unit = r / jnp.where(eps > 0, eps, 1.0)
        # mu decides which of the others the box holds, and those that it does not change mu.
        for _ in range(3):
            free = jnp.where(fixed, 0.0, unit)
            square = jnp.sum(free**2)
            slope = jnp.where(square > 0, (g @ free) / jnp.where(square > 0, square, 1.0), 0.0)
            multiplier = jnp.where(touching, jnp.maximum(slope, 0.0), 0.0)
            free_gradient = g - multiplier * unit
            fixed = _box_holds(at_low, at_high, free_gradient) | pinned
        normal = jnp.where(fixed, 0.0, unit)
        pull = multiplier / jnp.where(eps > 0, eps, 1.0)
    else:
        touching = (jnp.sum(jnp.abs(r)) >= eps - near) & (eps > 0)
        zero = (jnp.abs(r) <= near) & touching & ~pinned
        support = ~(zero | at_low | at_high)
        signs = jnp.where(zero, 0.0, jnp.sign(r))
        # What moving off a zero would gain, where the box lets it: one way only at a bound.
        gain = jnp.where(at_low & zero, g, jnp.where(at_high & zero, -g, jnp.abs(g)))
        above = jnp.max(jnp.where(zero, gain, 0.0))
        below = jnp.min(jnp.where(zero | pinned, jnp.inf, signs * g))
        # Without a free coordinate mu is an interval; its middle leaves both ends a margin.
        between = 0.5 * (above + jnp.where(jnp.isfinite(below), below, above))
        count = jnp.sum(support)
        mean = jnp.sum(jnp.where(support, signs * g, 0.0)) / jnp.maximum(count, 1)
        multiplier = jnp.where(count > 0, mean, between)
        multiplier = jnp.where(touching, jnp.maximum(multiplier, 0.0), 0.0)
        free_gradient = jnp.where(zero, multiplier - gain, g - multiplier * signs)
        fixed = zero | pinned | (_box_holds(at_low, at_high, free_gradient) & ~zero)
        normal = jnp.where(fixed, 0.0, signs)
    length = l2_norm(normal)
    # A ball with no free coordinate along its normal holds nothing that the box does not.
    on_ball = touching & (multiplier > 0) & (length > 0)
    normal = jnp.where(on_ball, normal / jnp.where(length > 0, length, 1.0), 0.0)

    # At a zero the sign matters: negative means that the attack would gain by leaving it.
    held = jnp.where(zero, free_gradient, jnp.abs(free_gradient))
    margin = jnp.min(jnp.where(fixed & ~pinned, held, jnp.inf))
    margin = jnp.minimum(margin, jnp.where(on_ball, multiplier, jnp.inf))
    room = jnp.minimum(feasible.high - z, z - feasible.low)
    if feasible.norm == "l1":
        # The face of an L1 ball ends where one of its coordinates reaches zero.
        room = jnp.where(touching, jnp.minimum(room, jnp.abs(r)), room)
    slack = jnp.min(jnp.where(fixed, jnp.inf, room))
    if feasible.norm != "linf":
        length = l2_norm(r) if feasible.norm == "l2" else jnp.sum(jnp.abs(r))
        inner = jnp.where(on_ball | jnp.all(pinned), jnp.inf, eps - length)
        slack = jnp.minimum(slack, inner)
    pull = jnp.where(on_ball, pull, 0.0)
    return ActiveSet(fixed, on_ball, normal, pull, multiplier, margin, slack)


def _box_holds(at_low: Array, at_high: Array, g: Array) -> Array:
    return (at_high & (g > 0)) | (at_low & (g < 0))
