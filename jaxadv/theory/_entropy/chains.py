r"""Diagnostics of EntropySGD: how close a short Langevin chain is to the measure it samples.

At equilibrium the pull toward the anchor balances the mean gradient,
:math:`\gamma(\theta - E\theta') = E\nabla L(\theta')` (I1), and the eigenvalues of the covariance
give those of the local entropy's Hessian. A chain of 20 steps is usually far from it; these numbers
measure how far.

References:
    docs/formulas.md D.1 (I1), D.3 and I.8.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..._transfers import on_host
from ...checks import check_count
from ...optim import langevin_step
from ...types import Array, Key, Params, PyTree


class AverageWeights(NamedTuple):
    """The exponential average of a chain, seen as a weighted mean.

    Attributes:
        weights: of the start and of each iterate, oldest first, shape (num_steps + 1,); sum 1.
        mean_lag: how many steps the iterates' part of the average lags behind the last iterate.
        effective_samples: of the iterates: 1 / sum of their squared weights, scaled to sum 1.
    """

    weights: np.ndarray
    mean_lag: float
    effective_samples: float


def average_weights(num_steps: int, new_weight: float) -> AverageWeights:
    """Weights of the average in which the newest iterate has weight ``new_weight``.

    Args:
        num_steps: length of the chain.
        new_weight: weight of the newest iterate, in (0, 1].

    Returns:
        The weights, their mean lag and their effective sample size.

    Raises:
        ValueError: ``new_weight`` outside (0, 1], ``num_steps`` negative.

    Example:
        >>> round(average_weights(20, 0.25).effective_samples, 1)
        7.0

    References:
        formulas D.3 and I.8.
    """
    check_count("num_steps", num_steps, 0)
    if not 0 < new_weight <= 1:
        raise ValueError(f"new_weight={new_weight} is not in (0, 1]")
    lags = np.arange(num_steps, -1, -1)
    weights = new_weight * (1 - new_weight) ** lags
    weights[0] = (1 - new_weight) ** num_steps  # the start, which no iterate has replaced
    if num_steps == 0:
        return AverageWeights(weights, 0.0, 0.0)
    iterates = weights[1:] / weights[1:].sum()
    return AverageWeights(weights, float(iterates @ lags[1:]), float(1 / np.sum(iterates**2)))


def effective_temperature(variance: float, *, curvature: float, step_size: float) -> float:
    r"""Temperature that a chain with this stationary variance has on a quadratic probe.

    .. math:: T = v\,\kappa\,(1 - \eta'\kappa/2)

    Args:
        variance: v, of one coordinate.
        curvature: :math:`\kappa`, curvature of the loss plus gamma.
        step_size: :math:`\eta'`.

    Returns:
        The temperature.

    Raises:
        ValueError: the step is too large for the chain to be stable.

    Example:
        >>> effective_temperature(0.5, curvature=2.0, step_size=0.0)
        1.0

    References:
        formulas D.3 and I.8.
    """
    if not 0 <= step_size * curvature < 2:
        raise ValueError(
            f"step_size={step_size} with curvature={curvature}: the chain is stable only for "
            "0 <= step_size * curvature < 2"
        )
    return variance * curvature * (1 - step_size * curvature / 2)


class LangevinDiagnostics(NamedTuple):
    r"""How far a chain is from the local Gibbs measure, and estimates from it.

    Attributes:
        pull: norm of :math:`\gamma(\theta - \mu)`, mu the average of the chain.
        gradient: norm of the average gradient with the same weights.
        pull_over_gradient: (I1) as a number: projection of the pull on the average gradient,
            relative to it. 1 at equilibrium, about 0 at the start of a chain.
        misalignment: norm of their difference relative to the larger of the two; 0 at equilibrium.
        drift_over_noise: mean length of a step's drift over the expected length of its noise; inf
            without noise.
        effective_samples: of the average, see :func:`average_weights`.
        covariance: largest eigenvalues of the chain's weighted covariance, descending.
        hessian: the corresponding eigenvalues of the Hessian of the smoothed loss -F/beta,
            :math:`\gamma - \beta\gamma^2\lambda_i`.
        hessian_indefinite: whether one of them is <= 0, that is :math:`\beta\gamma\lambda \ge 1`:
            a Newton step with this covariance would go uphill.
    """

    pull: float
    gradient: float
    pull_over_gradient: float
    misalignment: float
    drift_over_noise: float
    effective_samples: float
    covariance: np.ndarray
    hessian: np.ndarray
    hessian_indefinite: bool


def langevin_diagnostics(
    anchor: Params,
    positions: PyTree,
    gradients: PyTree,
    *,
    gamma: float,
    step_size: float,
    noise_std: float,
    beta: float = 1.0,
    new_weight: float | None = None,
) -> LangevinDiagnostics:
    r"""Diagnostics of one chain from its iterates and gradients.

    The covariance of n iterates has rank below n: its eigenvalues are those of their n x n Gram
    matrix, so nothing of size m x m is formed when m is the larger.

    Args:
        anchor: :math:`\theta`, any pytree.
        positions: the iterates :math:`\theta'_1, ..., \theta'_n`, leaves stacked along a leading
            axis.
        gradients: :math:`\nabla L` at each of ``positions``, stacked likewise.
        gamma: scope.
        step_size: :math:`\eta'`.
        noise_std: standard deviation of the noise of one step.
        beta: inverse temperature of the measure that the chain is meant to sample.
        new_weight: weight of the newest iterate in the averages; by default all are equal.

    Returns:
        The diagnostics.

    Raises:
        ValueError: stacked leaves of different lengths, or fewer than two iterates.

    Example:
        >>> import numpy as np
        >>> draws = np.random.default_rng(0).normal(1.0, np.sqrt(0.5), size=(4000, 1))
        >>> found = langevin_diagnostics(  # L = (t - 2)^2 / 2, anchor 0, gamma 1, at equilibrium
        ...     np.zeros(1), draws, draws - 2.0, gamma=1.0, step_size=0.1, noise_std=0.45)
        >>> bool(abs(found.pull_over_gradient - 1) < 0.05), bool(abs(found.hessian[0] - 0.5) < 0.05)
        (True, True)

    References:
        formulas I.8.
    """
    stacks = [_rows(positions, "positions"), _rows(gradients, "gradients")]
    iterates, slopes = stacks
    if iterates.shape != slopes.shape or len(iterates) < 2:
        raise ValueError(
            f"positions hold {iterates.shape} numbers and gradients {slopes.shape}; stack the same "
            "number of iterates, at least two, along the leading axis of every leaf"
        )
    start = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(anchor)])
    offsets = iterates - start[None, :]
    drift = np.linalg.norm(step_size * (slopes + gamma * offsets), axis=1).mean()
    count = len(offsets)
    if new_weight is None:
        weights, effective = np.full(count, 1 / count), float(count)
        slope = weights @ slopes
    else:
        averages = average_weights(count, new_weight)
        weights, effective = averages.weights, averages.effective_samples
        # Only the start's position is known: it counts in mu, but its gradient is omitted.
        slope = weights[1:] @ slopes / weights[1:].sum()
        offsets = np.concatenate([np.zeros((1, offsets.shape[1])), offsets])
    mean = weights @ offsets
    pull = -gamma * mean
    sizes = float(np.linalg.norm(pull)), float(np.linalg.norm(slope))
    larger = max(*sizes, np.finfo(float).tiny)
    noise = noise_std * math.sqrt(offsets.shape[1])
    scaled = np.sqrt(weights)[:, None] * (offsets - mean[None, :])
    square = scaled @ scaled.T if len(scaled) <= scaled.shape[1] else scaled.T @ scaled
    eigenvalues = np.maximum(np.linalg.eigvalsh(square)[::-1], 0.0)
    hessian = gamma - beta * gamma**2 * eigenvalues
    return LangevinDiagnostics(
        *sizes,
        float(pull @ slope / sizes[1] ** 2) if sizes[1] > 0 else math.nan,
        float(np.linalg.norm(pull - slope)) / larger,
        float(drift / noise) if noise > 0 else math.inf,
        effective,
        eigenvalues,
        hessian,
        bool((hessian <= 0).any()),
    )


def _rows(tree: PyTree, name: str) -> np.ndarray:
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
    if len(lengths) != 1:
        raise ValueError(f"{name} has leaves of lengths {sorted(lengths)} along the leading axis")
    return np.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


@on_host
def langevin_trace(
    key: Key | None,
    anchor: Params,
    grad_fn: Callable[[Params], Params],
    *,
    num_steps: int,
    step_size: float,
    gamma: float,
    noise_std: float,
    burn_in: int = 0,
) -> tuple[PyTree, PyTree]:
    r"""Runs the Langevin chain and keeps every iterate, for :func:`langevin_diagnostics`.

    Args:
        key: typed PRNG key; step i draws from ``fold_in(key, i)``. May be None without noise.
        anchor: :math:`\theta`, where the chain starts.
        grad_fn: gradient of the loss.
        num_steps: iterates to keep.
        step_size: :math:`\eta'`.
        gamma: scope.
        noise_std: standard deviation of the noise of one step.
        burn_in: steps before the first kept iterate.

    Returns:
        The iterates and the gradients at them, stacked, in the precision of ``anchor``.

    Example:
        >>> import jax
        >>> positions, gradients = langevin_trace(
        ...     jax.random.key(0), jnp.zeros(3), lambda t: t - 1.0,
        ...     num_steps=5, step_size=0.1, gamma=1.0, noise_std=0.0)
        >>> positions.shape, gradients.shape
        ((5, 3), (5, 3))

    References:
        formulas D.3; Welling and Teh 2011.
    """
    check_count("num_steps", num_steps, 1)
    check_count("burn_in", burn_in, 0)
    anchor = jax.tree.map(jnp.asarray, anchor)

    def step(state: tuple, index: Array) -> tuple:
        position, gradient = state
        moved = langevin_step(
            None if key is None else jax.random.fold_in(key, index),
            position,
            gradient,
            anchor,
            step_size=step_size,
            gamma=gamma,
            noise_std=noise_std,
        )
        state = (moved, grad_fn(moved))
        return state, state

    first = (anchor, grad_fn(anchor))
    _, trace = jax.lax.scan(step, first, jnp.arange(burn_in + num_steps))
    return jax.tree.map(lambda leaf: leaf[burn_in:], trace)
