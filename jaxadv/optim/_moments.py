r"""Running moments of a chain around its anchor, and the dtype in which sums are kept.

.. math::
    \mu \leftarrow (1 - \alpha)\mu + \alpha\theta', \qquad \mu_0 = \theta

and the variance with the same weights, which sum to 1 including that of the anchor, the start.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from ..types import Params, PyTree


class Averages(NamedTuple):
    """Exponentially weighted moments of e = theta' - theta along a chain.

    Attributes:
        offset: mean of e, so that mu = theta + offset; shaped like the parameters.
        variance: variance of e, shaped like the parameters, or None when it is not tracked.
    """

    offset: PyTree
    variance: PyTree


def accumulator_dtype(x: ArrayLike) -> DTypeLike:
    """Dtype in which sums over values like ``x`` are kept: at least float32."""
    return jnp.promote_types(jnp.result_type(x), jnp.float32)


def widen(tree: PyTree, like: PyTree) -> PyTree:
    """``tree`` in the accumulation dtypes of ``like``."""
    return jax.tree.map(lambda x, p: jnp.asarray(x, accumulator_dtype(p)), tree, like)


def init_averages(params: Params, *, variance: bool) -> Averages:
    """Moments at the start of a chain: all zero."""
    zeros = lambda: jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), accumulator_dtype(p)), params)
    return Averages(zeros(), zeros() if variance else None)


def update_averages(
    averages: Averages, position: Params, anchor: Params, *, new_weight: ArrayLike
) -> Averages:
    """Gives the newest iterate the weight ``new_weight`` in the moments of e = theta' - theta.

    The moments are centered at the anchor, because E[theta'^2] - mu^2 cancels in float32 (a true
    variance of 1e-14 becomes 1e-10), and the variance is updated instead of E[e^2]: with d = e -
    a1, ``var <- (1 - w)(var + w d^2)`` equals E[e^2] - a1^2 and is never negative.
    """
    keep = 1 - new_weight
    e = jax.tree.map(jnp.subtract, widen(position, position), widen(anchor, position))
    variance = averages.variance
    if variance is not None:
        variance = jax.tree.map(
            lambda v, a1, e: (keep * (v + new_weight * jnp.square(e - a1))).astype(v.dtype),
            variance,
            averages.offset,
            e,
        )
    offset = jax.tree.map(
        lambda a1, e: (keep * a1 + new_weight * e).astype(a1.dtype), averages.offset, e
    )
    return Averages(offset, variance)
