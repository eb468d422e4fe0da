r"""The Moreau envelope, the low-temperature limit of EntropySGD's smoothed loss."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..._transfers import on_host
from ...types import Array, ArrayLike
from .measure import _check_positive, _vector
from .quadrature import evaluate

Objective = Callable[[np.ndarray], np.ndarray]  # places (N, m) -> values (N,)
_GRID = 63  # nodes per axis: 63^2 points fit into one compiled call


class MoreauEnvelope(NamedTuple):
    r"""The envelope and the proximal point at one theta.

    Attributes:
        value: :math:`M(\theta)`.
        prox: the minimizer, shape (m,); its gradient-free part is good to about 1e-8.
        gradient: :math:`\gamma(\theta - \mathrm{prox})`, shape (m,): the gradient of M wherever the
            minimizer is unique, and a measure of stationarity of L although L has kinks.
    """

    value: float
    prox: np.ndarray
    gradient: np.ndarray


@on_host
def moreau_envelope(
    loss: Callable[[Array], Array],
    theta: ArrayLike,
    *,
    gamma: float,
    lower_bound: float = 0.0,
    breaks: Sequence[float] = (0.0,),
) -> MoreauEnvelope:
    r"""The Moreau envelope in one or two dimensions, by a grid that zooms in and Newton steps.

    .. math:: M(\theta) = \min_{\theta'} L(\theta') + \frac\gamma2\|\theta - \theta'\|^2

    The minimizer lies within :math:`\sqrt{2(L(\theta) - \inf L)/\gamma}` of theta. For a w-weakly
    convex loss with w < gamma the objective is convex and the result is exact; otherwise the first
    grid, 63 nodes per axis, must hit the right valley.

    Args:
        loss: maps one vector of shape (m,) to a scalar, with JAX operations.
        theta: shape (m,), m = 1 or 2.
        gamma: strength of the pull.
        lower_bound: a number that the loss never goes below.
        breaks: coordinates of kinks, tried exactly.

    Returns:
        Value, proximal point and gradient.

    Raises:
        ValueError: gamma not positive, theta of another shape, or the loss not finite or below
            ``lower_bound``.

    Example:
        >>> import jax.numpy as jnp
        >>> envelope = moreau_envelope(lambda t: jnp.abs(t[0]), [3.0], gamma=2.0)
        >>> round(envelope.value, 12), envelope.prox.round(12).tolist()  # Huber's function
        (2.75, [2.5])

    References:
        docs/formulas.md D.1 and I.9.
    """
    theta = _vector(theta)
    _check_positive(gamma=gamma)
    here = float(evaluate(loss, theta[None, :])[0])
    if here < lower_bound:
        raise ValueError(f"lower_bound={lower_bound} is above the loss {here:.6g} at theta")

    def objective(points: np.ndarray) -> np.ndarray:
        distances = np.sum((points - theta[None, :]) ** 2, axis=1)
        return evaluate(loss, points).reshape(-1) + gamma / 2 * distances

    half = math.sqrt(2 * (here - lower_bound) / gamma)
    best, value = theta, here
    while half > 1e-12 * (1 + np.abs(best).max()):
        axes = [b + half * np.linspace(-1, 1, _GRID) for b in best]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(theta))
        values = objective(points)
        if values.min() < value:
            best, value = points[values.argmin()], float(values.min())
        half *= 4 / (_GRID // 2)
    best, value = _snap(objective, best, value, breaks)
    best, value = _newton(loss, objective, theta, gamma, best, value)
    return MoreauEnvelope(value, best, gamma * (theta - best))


def _snap(
    objective: Objective, best: np.ndarray, value: float, breaks: Sequence[float]
) -> tuple[np.ndarray, float]:
    """Moves coordinates onto kinks if that is no worse."""
    for axis in range(len(best)):
        for place in breaks:
            if abs(best[axis] - place) > 1e-6 * (1 + abs(place)):
                continue
            moved = best.copy()
            moved[axis] = place
            there = float(objective(moved[None, :])[0])
            if there <= value:
                best, value = moved, there
    return best, value


def _newton(
    loss: Callable[[Array], Array],
    objective: Objective,
    theta: np.ndarray,
    gamma: float,
    best: np.ndarray,
    value: float,
) -> tuple[np.ndarray, float]:
    """Up to four Newton steps; the zoom alone finds the place only to the root of the rounding."""
    with jax.enable_x64(True):
        full = lambda t: loss(t) + gamma / 2 * jnp.sum((t - jnp.asarray(theta)) ** 2)
        derivatives = jax.jit(lambda t: (jax.grad(full)(t), jax.hessian(full)(t)))
        gradient, hessian = (np.asarray(d) for d in derivatives(jnp.asarray(best)))
        for _ in range(4):
            if not np.isfinite(hessian).all() or np.linalg.eigvalsh(hessian)[0] <= 0:
                break
            moved = best - np.linalg.solve(hessian, gradient)
            there = float(objective(moved[None, :])[0])
            gradient_there, hessian = (np.asarray(d) for d in derivatives(jnp.asarray(moved)))
            shrinks = np.linalg.norm(gradient_there) < 0.5 * np.linalg.norm(gradient)
            if not shrinks or there > value + 1e-14 * (1 + abs(value)):
                break
            best, value, gradient = moved, min(value, there), gradient_there
    return best, value
