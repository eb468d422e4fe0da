"""Weight decay and momentum as pure steps and as an optax transformation."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ..types import Params, PyTree


def is_zero(value: Any) -> bool:
    """Whether ``value`` is the Python number 0, so that a term can be omitted."""
    return isinstance(value, numbers.Real) and value == 0


def add_weight_decay(direction: PyTree, position: Params, weight_decay: ArrayLike) -> PyTree:
    """Adds ``weight_decay * position`` to ``direction``, leaf by leaf.

    Args:
        direction: the gradient-like direction, a pytree.
        position: the parameters, of the same structure.
        weight_decay: the factor; with the Python number 0 nothing is added.

    Returns:
        The sum, in the dtype of ``direction``.

    Example:
        >>> float(add_weight_decay(jnp.array(1.0), jnp.array(2.0), 0.5))
        2.0
    """
    if is_zero(weight_decay):
        return direction
    return jax.tree.map(
        lambda d, p: (d + weight_decay * p.astype(d.dtype)).astype(d.dtype), direction, position
    )


def nesterov_momentum(
    buffer: PyTree, direction: PyTree, *, momentum: ArrayLike, nesterov: bool = True
) -> tuple[PyTree, PyTree]:
    """One step of momentum: ``b <- m b + d``, then ``d + m b`` (Nesterov) or ``b`` (heavy ball).

    Args:
        buffer: the momentum buffer b, shaped like ``direction``; None if ``momentum`` is 0.
        direction: the gradient-like direction d.
        momentum: the factor m in [0, 1).
        nesterov: Nesterov or classical momentum.

    Returns:
        The new direction and the new buffer.

    Example:
        >>> direction, buffer = nesterov_momentum(jnp.array(1.0), jnp.array(2.0), momentum=0.5)
        >>> float(direction), float(buffer)
        (3.25, 2.5)
    """
    if is_zero(momentum):
        return direction, buffer
    buffer = jax.tree.map(lambda b, d: (momentum * b + d).astype(b.dtype), buffer, direction)
    if not nesterov:
        return buffer, buffer
    ahead = jax.tree.map(lambda d, b: (d + momentum * b).astype(b.dtype), direction, buffer)
    return ahead, buffer


class MomentumSGD(NamedTuple):
    """SGD with a learning rate of 1, as an optax transformation.

    Its state is the bare momentum buffer, None without momentum. EntropySGD multiplies its update
    by the current learning rate, because one schedule of outer steps serves chain and slow weights;
    a user's optimizer has its own rate.
    """

    momentum: ArrayLike = 0.0
    nesterov: bool = True
    weight_decay: ArrayLike = 0.0
    decay_after_momentum: bool = False

    def init(self, params: Params) -> PyTree:
        """A buffer of zeros."""
        return None if is_zero(self.momentum) else optax.tree.zeros_like(params)

    def update(self, updates: PyTree, state: PyTree, params: Params) -> tuple[PyTree, PyTree]:
        """The step down along the gradient ``updates``, and the new buffer."""
        early, late = self.weight_decay, 0.0
        if self.decay_after_momentum:
            early, late = late, early
        direction = add_weight_decay(updates, params, early)
        direction, state = nesterov_momentum(
            state, direction, momentum=self.momentum, nesterov=self.nesterov
        )
        return jax.tree.map(jnp.negative, add_weight_decay(direction, params, late)), state
