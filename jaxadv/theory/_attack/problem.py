"""Checks and converts the arguments of an attack."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from ..._program import program_of, trace
from ...checks import is_concrete
from ...types import Array, Norm, PyTree
from .feasible import Feasible

ScalarLoss = Callable[[Array, PyTree], Array]  # of x and theta
FlatLoss = Callable[[Array], Array]  # of the flattened x


class Problem(NamedTuple):
    """One example: its loss, the parameters and the shape of x; a pytree for jit."""

    loss: Partial
    theta: PyTree
    feasible: Feasible

    def flat_loss(self, shape: tuple[int, ...]) -> ScalarLoss:
        """The loss as a function of the flattened x and theta."""
        return lambda z, theta: self.loss(z.reshape(shape), theta)


def make_problem(
    loss: Callable, theta: PyTree, x: Array, *, norm: Norm, eps: Any, bounds: Any
) -> Problem:
    """Checks shapes, dtypes and values; to be called with 64 bits enabled."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(float)
    if x.size == 0:
        raise ValueError(f"x is empty: shape {x.shape}; pass one example")
    for leaf in jax.tree.leaves(theta):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"theta has a leaf of dtype {jnp.result_type(leaf)}; keep what is not a real "
                "parameter out of theta, and let the loss close over it"
            )
    if not jax.tree.leaves(theta):
        raise ValueError("theta has no leaves; pass the parameters as a pytree of arrays")
    if is_concrete(x) and not bool(jnp.all(jnp.isfinite(x))):
        raise ValueError("x contains values that are not finite; remove this example")
    traced = trace(loss, x, theta, name="loss")
    shape = program_of(traced).out
    if not hasattr(shape, "shape") or shape.shape != ():
        raise ValueError(
            f"loss returns {shape}; it must be a scalar for one example: index or sum it"
        )
    if shape.dtype != x.dtype:
        raise ValueError(
            f"loss returns {shape.dtype} for inputs of {x.dtype}; remove the casts from it (for a "
            "flax module dtype=None, param_dtype=float64 or parameters cast to float64)"
        )
    return Problem(traced, theta, Feasible.make(x, norm=norm, eps=eps, bounds=bounds))
