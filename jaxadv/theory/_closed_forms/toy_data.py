"""The data set of the paper's Figures 4 and 5, and the exact loss of the linear model on it."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ...checks import check_count
from ...types import Array, ArrayLike
from .._float64 import in_float64
from .toy import TOY_EPS, _check, _dual_norm


@in_float64
def toy_dataset_loss(
    theta: ArrayLike,
    points: ArrayLike,
    labels: ArrayLike,
    *,
    norm: Literal["l2", "linf"] | None = "l2",
    eps: float = TOY_EPS,
) -> Array:
    r"""Exact adversarial loss of the linear model on a data set (Figure 4).

    .. math::
        L_\epsilon(\theta) = \frac1N\sum_n \phi(y_n\theta^T x_n - \epsilon\|\theta\|_q)

    Args:
        theta: weights, shape (d,).
        points: shape (N, d).
        labels: -1 or 1, shape (N,).
        norm: of the attack; None for the clean loss.
        eps: radius.

    Returns:
        The loss, a scalar.

    Example:
        >>> points, labels = toy_dataset()
        >>> theta = jnp.array([1.0915989, 0.0])
        >>> round(float(toy_dataset_loss(theta, points, labels, norm="linf")), 7)
        0.6470117

    References:
        Kanai et al. (arXiv 2103.01400), Figure 4.
    """
    _check("linear", norm)
    theta, points = jnp.asarray(theta, float), jnp.asarray(points, float)
    labels = jnp.asarray(labels, float)
    radius = 0.0 if norm is None else eps * _dual_norm(theta, norm)
    return jnp.mean(jax.nn.softplus(-(labels * (points @ theta) - radius)))


def toy_dataset(*, seed: int = 0, num_points: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """The data set of Figure 4: standard normal points in the plane, label the sign of x_1.

    Args:
        seed: of the points.
        num_points: N.

    Returns:
        Points of shape (N, 2) and labels -1 or 1 of shape (N,), in float64.

    Example:
        >>> points, labels = toy_dataset()
        >>> points.shape, sorted(set(labels.tolist()))
        ((100, 2), [-1.0, 1.0])

    References:
        Kanai et al. (arXiv 2103.01400), Figure 4.
    """
    check_count("num_points", num_points, 1)
    points = np.random.default_rng(seed).normal(size=(num_points, 2))
    return points, np.sign(points[:, 0])
