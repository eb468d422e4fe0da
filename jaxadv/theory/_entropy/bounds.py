r"""Smoothness of the local entropy: Theorem 3 of the paper and sharper bounds.

-F is smooth with the largest :math:`|\beta\gamma - (\beta\gamma)^2\lambda_i(\Sigma_\theta)|`. The
functions here bound it, from the covariance :math:`\Sigma_\theta` or from constants of the loss L.
For a temperature other than 1, read :math:`\beta\gamma` for gamma and :math:`\beta L` for L.

References:
    docs/formulas.md D.2; Kanai et al. (arXiv 2103.01400), Theorem 3; errata E15, E16 and E18.
"""

import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike


class CovarianceBounds(NamedTuple):
    r"""Lipschitz constants of the gradient of F on a convex set, from covariances sampled on it.

    Attributes:
        paper: Theorem 3, :math:`\gamma + \gamma^2 \sup\|\Sigma\|_F`.
        spectral: :math:`\max(\gamma, \gamma^2 \sup\lambda_{\max}(\Sigma) - \gamma)`.
        exact: :math:`\sup\max_i|\gamma - \gamma^2\lambda_i(\Sigma)|`, the best one.
    """

    paper: float
    spectral: float
    exact: float


def _check(**values: float) -> None:
    for name, value in values.items():
        positive = name in ("gamma", "beta")
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            raise ValueError(
                f"{name}={value} must be a finite number {'>' if positive else '>='} 0"
            )


def covariance_bounds(
    covariance: ArrayLike, *, gamma: float, beta: float = 1.0
) -> CovarianceBounds:
    """The bounds that need the covariance of the Gibbs measure.

    Args:
        covariance: of shape (..., m, m), at sampled theta.
        gamma: scope.
        beta: inverse temperature.

    Returns:
        The bounds; the suprema are over the sample.

    Raises:
        ValueError: gamma or beta not positive, or matrices that are not square.

    Example:
        >>> covariance_bounds(np.eye(2) / 2, gamma=1.0).spectral
        1.0

    References:
        formulas D.2; Kanai et al. (arXiv 2103.01400), Theorem 3; errata E15.
    """
    _check(gamma=gamma, beta=beta)
    covariance = np.asarray(covariance, np.float64)
    if covariance.ndim < 2 or covariance.shape[-1] != covariance.shape[-2]:
        raise ValueError(f"covariance has shape {covariance.shape}; expected (..., m, m)")
    strength = beta * gamma
    frobenius = np.sqrt(np.sum(covariance**2, axis=(-2, -1))).max()
    eigenvalues = np.linalg.eigvalsh(covariance)
    return CovarianceBounds(
        float(strength + strength**2 * frobenius),
        float(max(strength, strength**2 * eigenvalues.max() - strength)),
        float(np.abs(strength - strength**2 * eigenvalues).max()),
    )


def weakly_convex_bounds(
    *, gamma: float, weak_convexity: float = 0.0, beta: float = 1.0
) -> tuple[float, float]:
    r"""Bounds of the Hessian of -F for a w-weakly convex loss, w < gamma.

    .. math:: -\frac{\gamma w}{\gamma - w} I \le -\nabla^2 F \le \gamma I

    With w = 0 (a convex loss, for example the adversarial logistic loss of a linear model) -F is
    convex and gamma-smooth. The lower bound is attained by :math:`L = -w t^2/2`.

    Args:
        gamma: scope.
        weak_convexity: w >= 0 such that :math:`L + w\|\theta\|^2/2` is convex.
        beta: inverse temperature.

    Returns:
        The lower and the upper bound of the eigenvalues; the lower is -inf if w >= gamma.

    Raises:
        ValueError: negative or infinite constants.

    Example:
        >>> weakly_convex_bounds(gamma=2.0, weak_convexity=1.0)
        (-2.0, 2.0)

    References:
        formulas D.2; Brascamp and Lieb 1976.
    """
    _check(gamma=gamma, weak_convexity=weak_convexity, beta=beta)
    upper = beta * gamma
    if weak_convexity == 0:
        return 0.0, upper
    if weak_convexity >= gamma:
        return -math.inf, upper
    return -upper * weak_convexity / (gamma - weak_convexity), upper


def lipschitz_variance_bound(*, gamma: float, lipschitz: float, beta: float = 1.0) -> float:
    r"""Bound of :math:`\lambda_{\max}(\Sigma)` for a G-Lipschitz loss, in any dimension.

    .. math:: \lambda_{\max}(\Sigma) \le t^2, \qquad t = \frac{G + \sqrt{G^2 + 4\gamma}}{2\gamma}

    Args:
        gamma: scope.
        lipschitz: G.
        beta: inverse temperature.

    Returns:
        The bound.

    Example:
        >>> round(lipschitz_variance_bound(gamma=1.0, lipschitz=2.0), 9)
        5.828427125

    References:
        formulas D.2.
    """
    _check(gamma=gamma, lipschitz=lipschitz, beta=beta)
    gamma, lipschitz = beta * gamma, beta * lipschitz
    return ((lipschitz + math.sqrt(lipschitz**2 + 4 * gamma)) / (2 * gamma)) ** 2


def lipschitz_bound(*, gamma: float, lipschitz: float, beta: float = 1.0) -> float:
    r"""Lipschitz constant of the gradient of F on the whole space for a G-Lipschitz loss.

    .. math:: \max\Big(\gamma, \tfrac12\big(G^2 + G\sqrt{G^2 + 4\gamma}\big)\Big)

    It requires no sign, convexity or smoothness of the loss, which is why EntropySGD smooths
    adversarial losses; their G is that of the clean loss (Proposition 1).

    Args:
        gamma: scope.
        lipschitz: G.
        beta: inverse temperature.

    Returns:
        The bound.

    Example:
        >>> round(lipschitz_bound(gamma=1.0, lipschitz=6.0), 2)
        36.97

    References:
        formulas D.2; erratum E16.
    """
    _check(gamma=gamma, lipschitz=lipschitz, beta=beta)
    gamma, lipschitz = beta * gamma, beta * lipschitz
    return max(gamma, (lipschitz**2 + lipschitz * math.sqrt(lipschitz**2 + 4 * gamma)) / 2)


def kink_curvature(jump: float, *, gamma: float, beta: float = 1.0) -> float:
    r"""Curvature :math:`J\sqrt{\gamma/2\pi}` that smoothing produces at a kink of jump J.

    Leading order for large gamma, at the kink; it spreads over a width :math:`\gamma^{-1/2}`.

    Args:
        jump: J, of the derivative across the kink.
        gamma: scope.
        beta: inverse temperature.

    Returns:
        The second derivative of -F across the kink.

    Example:
        >>> round(kink_curvature(0.6, gamma=100.0), 3)
        2.394

    References:
        formulas D.2.
    """
    _check(gamma=gamma, beta=beta)
    return beta * jump * math.sqrt(beta * gamma / (2 * math.pi))
