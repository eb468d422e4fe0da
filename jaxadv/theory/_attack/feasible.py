r"""The feasible set of one attack, :math:`C(x) = \{z : \|z - x\|_p \le \epsilon\} \cap [lo, hi]`.

One vector at a time, any radius and box (`jaxadv.balls` is the batched sibling for images): exact
projection, maximizer of a linear function, Frank-Wolfe gap and residual.
"""

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from ..._l1 import shrink
from ...checks import check_norm, is_concrete
from ...types import Array, ArrayLike, Norm

Bounds: TypeAlias = tuple[ArrayLike, ArrayLike] | None  # lowest and highest values, or no box


def l2_norm(v: Array) -> Array:
    largest = jnp.max(jnp.abs(v))
    scale = jnp.where(largest > 0, largest, 1.0)
    return scale * jnp.sqrt(jnp.sum((v / scale) ** 2))


def _l2_scale(magnitudes: Array, room: Array, eps: Array) -> Array:
    """The s >= 0 with norm(min(s magnitudes, room)) = eps; inf if that norm stays below eps."""
    largest = jnp.max(magnitudes)
    v = magnitudes / jnp.where(largest > 0, largest, 1.0)
    safe_eps = jnp.where(eps > 0, eps, 1.0)
    room = jnp.minimum(room, eps) / safe_eps
    breaks = jnp.where(v > 0, room / jnp.where(v > 0, v, 1.0), jnp.inf)
    order = jnp.argsort(breaks)
    breaks, room, v = breaks[order], jnp.where(v > 0, room, 0.0)[order], v[order]
    full = jnp.concatenate([jnp.zeros(1, v.dtype), jnp.cumsum(room**2)])
    tails = jnp.concatenate([jnp.cumsum((v**2)[::-1])[::-1], jnp.zeros(1, v.dtype)])
    # Piece k: the k smallest breakpoints are saturated.
    squared = (1 - full) / jnp.where(tails > 0, tails, 1.0)
    scales = jnp.where(tails > 0, jnp.sqrt(jnp.maximum(squared, 0.0)), jnp.inf)
    ends = jnp.concatenate([breaks, jnp.full(1, jnp.inf, v.dtype)])
    starts = jnp.concatenate([jnp.zeros(1, v.dtype), breaks])
    # Rounding must not push a solution at a breakpoint out of both of its pieces.
    right = (scales <= ends) & (scales >= starts * (1 - 1e-12)) & (full <= 1) & (tails > 0)
    scale = jnp.where(jnp.any(right), scales[jnp.argmax(right)], jnp.inf)
    return jnp.where(eps > 0, scale * safe_eps / jnp.where(largest > 0, largest, 1.0), jnp.inf)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Feasible:
    """C(x) of one flat example; all numbers may be traced, the norm is static."""

    x: Array
    eps: Array
    low: Array
    high: Array
    norm: Norm = dataclasses.field(metadata=dict(static=True))

    @classmethod
    def make(
        cls, x: ArrayLike, *, norm: Norm, eps: float | Array, bounds: Bounds = None
    ) -> "Feasible":
        """Checks the arguments; for Linf the ball becomes part of the box."""
        check_norm(norm)
        if is_concrete(eps) and not (0 <= float(eps) < float("inf")):
            raise ValueError(f"eps={eps} must be a finite number >= 0, in the units of x")
        x = jnp.asarray(x)
        shape = x.shape
        x = x.reshape(-1)
        low, high = (-jnp.inf, jnp.inf) if bounds is None else bounds
        low, high = (_flat_like(b, shape, x.dtype) for b in (low, high))
        if all(map(is_concrete, (x, low, high))) and not bool(jnp.all((low <= x) & (x <= high))):
            raise ValueError("x lies outside bounds; clip x into them, or pass the right bounds")
        eps = jnp.asarray(eps, x.dtype)
        # eps = 0 holds every norm in place, which the box says without dividing by eps.
        reach = jnp.where((norm == "linf") | (eps == 0), eps, jnp.inf)
        return cls(x, eps, jnp.maximum(low, x - reach), jnp.minimum(high, x + reach), norm)

    def project(self, z: Array) -> Array:
        """Nearest point of C(x), exact for every norm."""
        if self.norm == "linf":
            return jnp.clip(z, self.low, self.high)
        delta = z - self.x
        room = jnp.where(delta > 0, self.high - self.x, self.x - self.low)
        magnitudes = jnp.abs(delta)
        if self.norm == "l2":
            scale = _l2_scale(magnitudes, room, self.eps)
            size = jnp.minimum(jnp.minimum(scale, 1.0) * magnitudes, room)
        else:
            room = jnp.minimum(room, self.eps)
            size = shrink(magnitudes[None], room[None], self.eps)[0]
        return jnp.clip(self.x + jnp.sign(delta) * size, self.low, self.high)

    def farthest(self, g: Array) -> Array:
        """The z in C(x) that maximizes g^T z; coordinates with g_i = 0 stay at x_i."""
        room = jnp.where(g > 0, self.high - self.x, self.x - self.low)
        room = jnp.where(g == 0, 0.0, jnp.minimum(room, self.eps))
        magnitudes = jnp.abs(g)
        if self.norm == "linf":
            size = room
        elif self.norm == "l2":
            scale = _l2_scale(magnitudes, room, self.eps)
            size = jnp.minimum(jnp.where(jnp.isinf(scale), 1.0, scale) * magnitudes, room)
            size = jnp.where(jnp.isinf(scale), room, size)
        else:
            order = jnp.argsort(-magnitudes)
            before = jnp.cumsum(room[order]) - room[order]
            filled = jnp.clip(self.eps - before, 0.0, room[order])
            size = jnp.zeros_like(room).at[order].set(filled)
        return jnp.clip(self.x + jnp.sign(g) * size, self.low, self.high)

    def gap(self, z: Array, g: Array) -> Array:
        """Frank-Wolfe gap max over C(x) of g^T (. - z); 0 iff z is a KKT point."""
        return g @ (self.farthest(g) - z)

    def residual(self, z: Array, g: Array) -> Array:
        """Projected-gradient residual norm(Pi(z + g) - z)."""
        return l2_norm(self.project(z + g) - z)


def _flat_like(bound: ArrayLike, shape: tuple[int, ...], dtype: Any) -> Array:
    bound = jnp.asarray(bound, dtype)
    if bound.ndim and bound.shape != shape:
        raise ValueError(f"a bound has shape {bound.shape}; pass a number or shape {shape}, as x")
    return jnp.broadcast_to(bound, shape).reshape(-1)
