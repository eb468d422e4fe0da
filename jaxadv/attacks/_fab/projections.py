r"""Projections onto a hyperplane inside the box, the inner problem of FAB, without sorting.

.. math:: \min_\delta \|\delta\|_p \quad\text{s.t.}\quad \langle w, t + \delta\rangle = b,\;
          0 \le t + \delta \le 1

With :math:`c = |\langle w, t\rangle - b|` every coordinate moves by :math:`|\delta_i| \le r_i`, the
room to the box, in the direction that lowers c, and :math:`\sum_i |w_i||\delta_i| = c`. Where
even :math:`|\delta_i| = r_i` does not suffice the solution is that corner.

For Linf, :math:`|\delta_i| = \min(r_i, \lambda)`, and for L2,
:math:`|\delta_i| = \min(r_i, \lambda|w_i|)`, the left-hand side is concave and piecewise linear in
:math:`\lambda`: Newton's method from 0
climbs monotonically and is exact after the few steps in which the saturated set grows. For L1 the
coordinates fill up in order of :math:`|w_i|`, and the last threshold is found by bisection.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from ..._l1 import bisect_bits
from ...types import Array, Norm
from .. import _rows

_IMMOVABLE = 1e-8
_MAX_STEPS = 60

_Carry: TypeAlias = tuple[int | Array, Array, bool | Array]  # steps, levels, whether one moved


def project_to_hyperplane(points: Array, normals: Array, offsets: Array, norm: Norm) -> Array:
    r"""The smallest step from each point to its hyperplane inside the box.

    Args:
        points: t of shape (B, n), in [0, 1].
        normals: w of shape (B, n).
        offsets: :math:`\langle w, t\rangle - b` of shape (B,).
        norm: the norm that is minimized.

    Returns:
        Steps :math:`\delta` of shape (B, n).

    Example:
        >>> t, w = jnp.array([[0.5, 0.5]]), jnp.array([[3.0, 4.0]])
        >>> steps = project_to_hyperplane(t, w, jnp.array([1.0]), "l2")
        >>> [round(float(step), 3) for step in steps[0]]
        [-0.12, -0.16]

    References:
        Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary
        attack", 2020, section 2.
    """
    solve = functools.partial(_solve, norm=norm)
    return _rows.one_by_one(solve)(points, normals, offsets)


def _solve(points: Array, normals: Array, offsets: Array, *, norm: Norm) -> Array:
    normals, offsets = _rows.enlarged(normals, offsets)
    flipped = jnp.where(offsets < 0, -1, 1).astype(points.dtype)
    needed = jnp.abs(offsets)
    normals = normals * flipped[:, None]
    weights = jnp.abs(normals)
    if norm != "linf":
        weights = jnp.where(weights < _IMMOVABLE, 0, weights)
    room = jnp.where(normals > 0, points, 1 - points)
    room = jnp.where(weights > 0, room, 0)
    solve = {"linf": _linf, "l2": _l2, "l1": _l1}[norm]
    return -jnp.sign(normals) * solve(weights, room, needed)


def _linf(weights: Array, room: Array, needed: Array) -> Array:
    def improve(level: Array) -> tuple[Array, Array]:
        # The active set of a level: coordinates that the box stops before they have moved so far.
        saturated = room <= level[:, None]
        gained = jnp.sum(jnp.where(saturated, weights * room, 0), axis=1)
        return needed - gained, jnp.sum(jnp.where(saturated, 0, weights), axis=1)

    level = _climb(improve, needed)
    return jnp.minimum(room, level[:, None])


def _l2(weights: Array, room: Array, needed: Array) -> Array:
    def improve(level: Array) -> tuple[Array, Array]:
        saturated = room <= level[:, None] * weights
        gained = jnp.sum(jnp.where(saturated, weights * room, 0), axis=1)
        return needed - gained, jnp.sum(jnp.where(saturated, 0, weights**2), axis=1)

    level = _climb(improve, needed)
    # 0 * inf: an infeasible row has an infinite level, and its immovable coordinates no room.
    return jnp.minimum(room, jnp.where(weights > 0, level[:, None] * weights, 0))


def _climb(improve: Callable[[Array], tuple[Array, Array]], needed: Array) -> Array:
    """Newton's method from 0 until no row moves; infinity where nothing is left to move."""

    def unfinished(carry: _Carry) -> bool | Array:
        step, _, moving = carry
        return moving & (step < _MAX_STEPS)

    def body(carry: _Carry) -> _Carry:
        step, level, _ = carry
        missing, slope = improve(level)
        # What is gained is concave and piecewise linear in the level, so Newton from below never
        # overshoots, and it ends after as many steps as there are kinks below the solution.
        target = missing / jnp.where(slope > 0, slope, 1)
        target = jnp.where(slope > 0, target, jnp.where(missing > 0, jnp.inf, level))
        target = jnp.maximum(target, level)
        return step + 1, target, (target > level).any()

    return jax.lax.while_loop(unfinished, body, (0, jnp.zeros_like(needed), True))[1]


def _l1(weights: Array, room: Array, needed: Array) -> Array:
    gains = weights * room

    def exceeds(level: Array) -> Array:
        return jnp.sum(jnp.where(weights > level[:, None], gains, 0), axis=1) > needed

    _, level = bisect_bits(exceeds, weights.max(axis=1))
    # Everything above the level is filled; what is missing comes from the coordinates at it.
    filled = weights > level[:, None]
    missing = needed - jnp.sum(jnp.where(filled, gains, 0), axis=1)
    at_level = (weights == level[:, None]) & (weights > 0)
    amount = missing / jnp.where(level > 0, level, 1)
    available = jnp.where(at_level, room, 0)
    before = jnp.cumsum(available, axis=1) - available
    partial = jnp.clip(amount[:, None] - before, 0, available)
    return jnp.where(filled, room, partial)
