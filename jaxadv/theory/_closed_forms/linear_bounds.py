r"""Constants and bounds of the binary linear model: exact suprema and the paper's theorems.

The constants of Assumption 1 for :math:`\ell = \phi(y\theta^T x')` on
:math:`\|x'\| \le R'`, :math:`\|\theta\| \le R_\theta`, the bounds of Theorems 1 and 2 built from
them, sharper local ones, and a bound on the distance of theta to 0 from a loss value.

References:
    docs/formulas.md B.4 to B.7; Kanai et al., Theorems 1 and 2; errata E6 and E33.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.optimize
from jax import numpy as jnp
from jax.typing import ArrayLike

from ...types import Array
from .._float64 import in_float64
from .linear import check_p, in_float64_for_p, linear_margin


class LogisticConstants(NamedTuple):
    """Best constants of Assumption 1 for the logistic loss on a bounded set.

    Attributes:
        lipschitz: C_th, sup of the norm of the parameter gradient.
        smoothness: C_thth, sup of the norm of the parameter Hessian at a frozen attack.
        cross: C_thx, sup of the norm of B, the mixed derivative.
    """

    lipschitz: float
    smoothness: float
    cross: float


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value} must be a finite number >= 0")


def _sigmoid(t: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * t))


def _maximum(function: Callable[[Any], Any], low: float, high: float, num: int = 4001) -> float:
    """Maximum on an interval: a grid, then Brent's method between the neighbors of its best."""
    grid = np.linspace(low, high, num)
    values = function(grid)
    i = int(np.argmax(values))
    left, right = grid[max(i - 1, 0)], grid[min(i + 1, num - 1)]
    if left == right:
        return float(values[i])
    found = scipy.optimize.minimize_scalar(
        lambda t: -float(function(t)), (left, right), (left, right), method="bounded",
        options=dict(xatol=1e-12 * max(1.0, abs(left))),
    )  # fmt: skip
    return max(float(values[i]), -float(found.fun))  # pyright: ignore[reportAttributeAccessIssue]


def cross_smoothness(product: float, *, dim: int = 2) -> float:
    r"""Exact :math:`C_{\theta x}(K)` of the logistic loss, :math:`K = R' R_\theta`.

    .. math::
        C_{\theta x}(K) = \max_{|m| \le K} \sqrt{(T + \sqrt{T^2 - 4P^2})/2}, \quad
        T = 2s^2 - 2scm + c^2K^2, \; P = |s(s - cm)|,

    with s = s(-m) and c = s(m)s(-m); for d = 1, :math:`\max_{|m| \le K} |s - cm|`. It grows like
    K/4, so Assumption 1 needs a bound on theta (erratum E33).

    Args:
        product: K.
        dim: d, the number of inputs.

    Returns:
        The constant, attained.

    Raises:
        ValueError: K is negative or not finite, or d is below 1.

    Example:
        >>> round(cross_smoothness(1.0), 10)
        0.9276705119

    References:
        formulas B.5.
    """
    _positive(product=product)
    if dim < 1:
        raise ValueError(f"dim={dim} must be at least 1")

    def squared(m: Any) -> Any:
        s, c = _sigmoid(-m), _sigmoid(m) * _sigmoid(-m)
        if dim == 1:
            return (s - c * m) ** 2
        total = 2 * s**2 - 2 * s * c * m + (c * product) ** 2
        return (total + np.sqrt(np.maximum(total**2 - 4 * (s * (s - c * m)) ** 2, 0.0))) / 2

    # The maximum is where the sigmoid bends, which a grid over a large K would miss.
    near = min(product, 40.0)
    best = max(_maximum(squared, -near, near), _maximum(squared, -product, product))
    return math.sqrt(best)


def logistic_constants(radius_x: float, radius_theta: float, *, dim: int = 2) -> LogisticConstants:
    r"""The constants of Assumption 1 on :math:`\|x'\| \le R'`, :math:`\|\theta\| \le R_\theta`.

    :math:`C_\theta = R's(K)`, :math:`C_{\theta\theta} = R'^2/4` and `cross_smoothness` at
    :math:`K = R'R_\theta`; each is attained.

    Args:
        radius_x: R', largest L2 norm of an adversarial example (`adversarial_radius`).
        radius_theta: R_th, largest norm of theta.
        dim: d, the number of inputs.

    Returns:
        A `LogisticConstants`.

    Raises:
        ValueError: a radius is negative or not finite.

    Example:
        >>> logistic_constants(2.0, 0.0)
        LogisticConstants(lipschitz=1.0, smoothness=1.0, cross=0.5)

    References:
        formulas B.5.
    """
    _positive(radius_x=radius_x, radius_theta=radius_theta)
    product = radius_x * radius_theta
    lipschitz = radius_x * float(_sigmoid(product))
    return LogisticConstants(lipschitz, radius_x**2 / 4, cross_smoothness(product, dim=dim))


@in_float64_for_p
def adversarial_radius(x: ArrayLike, *, p: float, eps: float | Array) -> Array:
    r"""Largest Euclidean norm in the ball around each example: the R' of the constants.

    :math:`\|x\| + \epsilon` for p = 2, :math:`\|\,|x| + \epsilon 1\|` for p = inf,
    :math:`\max_i \|x + \mathrm{sign}(x_i)\epsilon e_i\|` for p = 1; all attained. For other p the
    bound :math:`\|x\| + \epsilon d^{\max(0, 1/2 - 1/p)}`.

    Args:
        x: examples of shape (..., d).
        p: exponent of the norm, in [1, inf].
        eps: radius.

    Returns:
        Radii of shape (...).

    Example:
        >>> import numpy as np
        >>> float(adversarial_radius(np.array([3.0, 4.0]), p=2, eps=0.5))
        5.5

    References:
        formulas B.5.
    """
    x = jnp.asarray(x, float)
    if math.isinf(p):
        return jnp.linalg.norm(jnp.abs(x) + eps, axis=-1)
    norms = jnp.linalg.norm(x, axis=-1)
    if p == 1:
        return jnp.sqrt(norms**2 + eps**2 + 2 * eps * jnp.max(jnp.abs(x), axis=-1))
    return norms + eps * x.shape[-1] ** max(0.0, 0.5 - 1 / p)


def theorem1_bound(x: ArrayLike, *, eps: float, theta_min: float, theta_max: float) -> float:
    r"""Theorem 1 (L2): smoothness of the adversarial loss on an annulus.

    :math:`C_{\theta\theta} + \epsilon C_{\theta x}/\theta_{min}` bounds
    :math:`\|\nabla L_\epsilon(a) - \nabla L_\epsilon(b)\|/\|a - b\|` for all a, b of norm in
    [theta_min, theta_max], although that set is not convex (erratum E3). Without the upper bound on
    theta, C_thx is infinite (E33).

    Args:
        x: examples of shape (..., d).
        eps: radius.
        theta_min: smallest norm of theta, above 0.
        theta_max: largest norm of theta.

    Returns:
        The bound.

    Raises:
        ValueError: theta_min is not positive, or above theta_max.

    Example:
        >>> import numpy as np
        >>> round(theorem1_bound(np.ones((3, 2)), eps=0.5, theta_min=0.4, theta_max=3.0), 4)
        2.9589

    References:
        formulas B.6; Kanai et al., Theorem 1.
    """
    if not 0 < theta_min <= theta_max < math.inf:
        raise ValueError(
            f"theta_min={theta_min}, theta_max={theta_max}; the theorem needs "
            "0 < theta_min <= theta_max < inf"
        )
    x = np.asarray(x, np.float64)
    radius = float(np.max(adversarial_radius(x, p=2, eps=eps)))
    constants = logistic_constants(radius, theta_max, dim=x.shape[-1])
    return constants.smoothness + eps * constants.cross / theta_min


def theorem2_bound(x: ArrayLike, *, eps: float) -> float:
    r"""Theorem 2 (Linf): on an open orthant of theta the loss is :math:`R'^2/4`-smooth.

    The attack does not move there, so only C_thth remains; across
    :math:`\theta_i = 0` no constant holds (`linear_kinks`).

    Args:
        x: examples of shape (..., d).
        eps: radius.

    Returns:
        The bound, valid for pairs in one orthant.

    Example:
        >>> import numpy as np
        >>> round(theorem2_bound(np.array([[1.0, 0.0]]), eps=1.0), 12)
        1.25

    References:
        formulas B.7; Kanai et al., Theorem 2.
    """
    return float(np.max(adversarial_radius(x, p=math.inf, eps=eps))) ** 2 / 4


@in_float64
def local_smoothness_bound(
    theta: ArrayLike, x: ArrayLike, y: ArrayLike, *, eps: float | Array
) -> Array:
    r"""Sharper than Theorem 1, at one theta: :math:`R'^2/4 + \epsilon s(-M)/\|\theta\|`.

    The rank-one part of B is annihilated by the Jacobian of the attack. Its maximum over a convex
    set is a Lipschitz constant of the gradient there.

    Args:
        theta: parameters of shape (d,), not 0.
        x: examples of shape (..., d).
        y: labels -1 or +1 of shape (...).
        eps: radius, in L2.

    Returns:
        Bounds on the norm of the Hessian, shape (...); inf at theta = 0.

    Example:
        >>> import numpy as np
        >>> round(float(local_smoothness_bound(np.array([2.0, 0.0]), np.zeros(2), 1, eps=1.0)), 4)
        0.6904

    References:
        formulas B.6.
    """
    theta = jnp.asarray(theta, float)
    norm = jnp.linalg.norm(theta)
    motion = eps * jax.nn.sigmoid(-linear_margin(theta, x, y, p=2, eps=eps))
    motion = jnp.where(norm > 0, motion / jnp.where(norm > 0, norm, 1.0), jnp.inf)
    return adversarial_radius(x, p=2, eps=eps) ** 2 / 4 + motion


def annulus_smoothness(radius_x: float, *, eps: float, theta_min: float, theta_max: float) -> float:
    r"""Exact sup of the norm of the Hessian over an annulus of theta and a ball of x, for L2.

    The larger eigenvalue of the 2x2 block of `linear_spectrum`, maximized over the component
    of v along theta and over the norm of theta, with :math:`|x| \le R`, d >= 2.

    Args:
        radius_x: R, largest norm of a clean example.
        eps: radius of the attack.
        theta_min: smallest norm of theta, above 0.
        theta_max: largest norm of theta.

    Returns:
        The supremum, to about 1e-9.

    Raises:
        ValueError: theta_min is not positive, or above theta_max.

    Example:
        >>> round(annulus_smoothness(1.5, eps=0.5, theta_min=0.4, theta_max=3.0), 5)
        1.33515

    References:
        formulas B.6.
    """
    _positive(radius_x=radius_x, eps=eps)
    if not 0 < theta_min <= theta_max < math.inf:
        raise ValueError(f"theta_min={theta_min}, theta_max={theta_max}: 0 < min <= max < inf")

    def largest(along: Any, norm: Any) -> Any:
        margin = norm * along
        c = _sigmoid(margin) * _sigmoid(-margin)
        k = eps * _sigmoid(-margin) / norm
        across = np.maximum(radius_x**2 - (along + eps) ** 2, 0.0)
        trace = c * along**2 + c * across + k
        determinant = c * along**2 * k
        return trace / 2 + np.sqrt(np.maximum(trace**2 / 4 - determinant, 0.0))

    low = np.array([-radius_x - eps, theta_min])
    high = np.array([radius_x - eps, theta_max])
    span, center, best = (high - low) / 2, (high + low) / 2, 0.0
    for _ in range(12):  # zoom: each pass keeps a fifth of each side
        start, end = np.maximum(center - span, low), np.minimum(center + span, high)
        axes = [np.linspace(a, b, 201) for a, b in zip(start, end, strict=True)]
        along, norm = np.meshgrid(*axes, indexing="ij")
        values = largest(along, norm)
        i = np.unravel_index(np.argmax(values), values.shape)
        center, best = np.array([along[i], norm[i]]), max(best, float(values[i]))
        span = span / 5
    return best


def theta_min_from_loss(loss: float, x: ArrayLike, *, p: float, eps: float) -> float:
    r"""Distance to 0 guaranteed by a loss value below log 2.

    Every theta with :math:`L_\epsilon(\theta) \le c < \log 2` has
    :math:`\|\theta\| \ge (\log 2 - c)/C_\theta`, with :math:`C_\theta` the mean of R' over the
    data: gradient descent that starts below :math:`L_\epsilon(0)` stays on a smooth piece.

    Args:
        loss: c, the mean adversarial loss.
        x: examples of shape (N, d).
        p: exponent of the norm, in [1, inf].
        eps: radius.

    Returns:
        The lower bound on the norm of theta, 0 if c >= log 2.

    Example:
        >>> import numpy as np
        >>> round(theta_min_from_loss(0.5, np.ones((4, 2)), p=2, eps=0.6), 4)
        0.0959

    References:
        formulas B.4.
    """
    lipschitz = float(np.mean(adversarial_radius(x, p=p, eps=eps)))
    distance = max(math.log(2) - loss, 0.0)
    return distance / lipschitz if distance else 0.0


def collapse_threshold(x: ArrayLike, y: ArrayLike, *, p: float) -> float:
    r"""The smallest radius at which theta = 0 minimizes :math:`L_\epsilon`.

    That is :math:`\|\frac1N \sum_n y_n x_n\|_p`: beyond it adversarial training collapses.

    Args:
        x: examples of shape (N, d).
        y: labels -1 or +1 of shape (N,).
        p: exponent of the norm, in [1, inf].

    Returns:
        The threshold for eps.

    Example:
        >>> import numpy as np
        >>> collapse_threshold(np.array([[3.0, 4.0]]), np.array([1.0]), p=2)
        5.0

    References:
        formulas B.4.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return float(np.linalg.norm((y[:, None] * x).mean(axis=0), check_p(p)))
