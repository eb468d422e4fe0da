r"""The local entropy of EntropySGD in one and two dimensions, by quadrature.

.. math::
    F(\theta) = \log\int e^{-\beta L(\theta') - \frac{\beta\gamma}{2}\|\theta-\theta'\|^2} d\theta',
    \qquad -\nabla F = \beta\gamma(\theta - E[\theta']), \qquad
    -\nabla^2 F = \beta\gamma I - (\beta\gamma)^2 \Sigma,

with mean and covariance :math:`\Sigma` under the Gibbs measure :math:`p_\theta(\theta')`, the
normalized integrand. EntropySGD minimizes -F.

* :func:`gibbs_measure` and :func:`local_entropy` treat one theta; the box they integrate over
  follows from a lower bound of the loss.
* :func:`local_entropy_grid` treats a whole grid of theta at once: the Gaussian is separable, so all
  integrals are products of three matrices.

References:
    docs/formulas.md D.1 and G.4; Kanai et al. (arXiv 2103.01400), section 6 and equations 10 to 12.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ...checks import check_choice, check_count
from ...types import Array, ArrayLike
from .quadrature import Nodes, evaluate, gauss_panels, uniform_nodes

_TAIL = 8.5  # standard deviations: the mass of a normal beyond is 2e-17


class GibbsMeasure(NamedTuple):
    r"""The measure :math:`p_\theta`, as weighted points.

    Attributes:
        points: of shape (N, m).
        weights: probabilities, shape (N,).
        log_normaliser: F(theta), with the constant of the Gaussian.
        edge: largest density on the border of the box relative to the overall maximum; the box
        contains the measure if this is tiny, say below 1e-12.
    """

    points: np.ndarray
    weights: np.ndarray
    log_normaliser: float
    edge: float

    def mean_of(self, function: Callable[[Array], Array]) -> np.ndarray:
        """Expectation of a function of theta', shape (m,) to any shape."""
        return np.einsum("n,n...->...", self.weights, evaluate(function, self.points))


class LocalEntropy(NamedTuple):
    r"""F and its derivatives; leading axes are those of the grid, none for a single theta.

    Attributes:
        value: F, with the constant of the Gaussian.
        smoothed: :math:`-\bar F/\beta`, the smoothed loss: without the constant, so that it tends
            to L for large gamma, and to the Moreau envelope for large beta.
        gradient: of -F, shape (..., m).
        hessian: of -F, shape (..., m, m).
        mean: :math:`E[\theta']`, shape (..., m).
        covariance: :math:`\Sigma`, shape (..., m, m).
        edge: see :class:`GibbsMeasure`; the largest on the grid.
        error: difference of F to a rule with two thirds of the nodes, the largest on the grid: in
        practice an upper bound on the error.
    """

    value: np.ndarray
    smoothed: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    edge: float
    error: float


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value} must be a finite number > 0")


def _vector(theta: ArrayLike) -> np.ndarray:
    theta = np.asarray(theta, np.float64)
    if theta.shape not in ((1,), (2,)):
        raise ValueError(
            f"theta has shape {theta.shape}; quadrature is for one or two parameters, (1,) or (2,)"
        )
    return theta


def reach(losses: np.ndarray, *, gamma: float, beta: float, lower_bound: float) -> float:
    """Distance from theta beyond which the Gibbs measure has negligible mass.

    At distance r the integrand is at most exp(-beta lower_bound - beta gamma r^2 / 2), against
    exp(-beta L(theta)) at theta.
    """
    excess = float(np.max(losses)) - lower_bound
    if excess < 0:
        raise ValueError(
            f"lower_bound={lower_bound} is above the loss {float(np.max(losses)):.6g} at theta; "
            "give a number that the loss never goes below, or a radius"
        )
    return math.sqrt(2 * excess / gamma) + _TAIL / math.sqrt(beta * gamma)


def gibbs_measure(
    loss: Callable[[Array], Array],
    theta: ArrayLike,
    *,
    gamma: float,
    beta: float = 1.0,
    lower_bound: float = 0.0,
    radius: float | None = None,
    breaks: Sequence[float] = (0.0,),
    num_nodes: int = 20,
    panel: float | None = None,
) -> GibbsMeasure:
    r"""The local Gibbs measure at one theta, on a split Gauss-Legendre grid.

    .. math::
        p_\theta(\theta') \propto e^{-\beta L(\theta') - \frac{\beta\gamma}{2}\|\theta-\theta'\|^2}

    Args:
        loss: maps one vector of shape (m,) to a scalar, with JAX operations.
        theta: shape (m,), m = 1 or 2.
        gamma: scope.
        beta: inverse temperature.
        lower_bound: a lower bound of the loss, which determines the box of integration.
        radius: half-width of the box, instead of that from ``lower_bound``.
        breaks: coordinates where panels end, on both axes, such as kinks.
        num_nodes: nodes per panel.
        panel: width of a panel, by default one standard deviation of the Gaussian.

    Returns:
        The measure; see its ``edge``.

    Raises:
        ValueError: gamma or beta not positive, theta of another shape, a loss that is not finite
            or lies below ``lower_bound``.

    Example:
        >>> measure = gibbs_measure(lambda t: (t[0] - 3.0) ** 2 / 2, [1.0], gamma=1.0)
        >>> round(float(measure.weights @ measure.points[:, 0]), 12)  # half-way between 1 and 3
        2.0

    References:
        formulas D.1 and G.4 (c).
    """
    theta = _vector(theta)
    _check_positive(gamma=gamma, beta=beta)
    if radius is None:
        here = evaluate(loss, theta[None, :])
        radius = reach(here, gamma=gamma, beta=beta, lower_bound=lower_bound)
    width = 1 / math.sqrt(beta * gamma) if panel is None else panel
    rules = [
        gauss_panels(t - radius, t + radius, breaks=breaks, panel=width, num_nodes=num_nodes)
        for t in theta
    ]
    points = np.stack(np.meshgrid(*(r.points for r in rules), indexing="ij"), -1)
    shape = points.shape[:-1]
    points = points.reshape(-1, len(theta))
    weights = np.stack(np.meshgrid(*(r.weights for r in rules), indexing="ij"), -1).prod(-1).ravel()
    distances = np.sum((points - theta[None, :]) ** 2, axis=1)
    exponents = -beta * evaluate(loss, points).reshape(-1) - beta * gamma / 2 * distances
    top = exponents.max()
    density = np.exp(exponents - top)
    total = float(np.sum(weights * density))
    return GibbsMeasure(
        points, weights * density / total, top + math.log(total), _edge(density.reshape(shape))
    )


def _edge(density: np.ndarray) -> float:
    borders = (np.moveaxis(density, axis, 0)[[0, -1]].max() for axis in range(density.ndim))
    return float(max(borders) / density.max())


def _assemble(
    value: Any,
    mean: np.ndarray,
    covariance: np.ndarray,
    theta: np.ndarray,
    gamma: float,
    beta: float,
    edge: float,
    error: float,
) -> LocalEntropy:
    m, strength = theta.shape[-1], beta * gamma
    constant = m / 2 * math.log(strength / (2 * math.pi))
    return LocalEntropy(
        value,
        -(value + constant) / beta,
        strength * (theta - mean),
        strength * np.eye(m).reshape((1,) * (theta.ndim - 1) + (m, m)) - strength**2 * covariance,
        mean,
        covariance,
        edge,
        error,
    )


def local_entropy(
    loss: Callable[[Array], Array],
    theta: ArrayLike,
    *,
    gamma: float,
    beta: float = 1.0,
    lower_bound: float = 0.0,
    radius: float | None = None,
    breaks: Sequence[float] = (0.0,),
    num_nodes: int = 20,
    panel: float | None = None,
) -> LocalEntropy:
    r"""F, gradient and Hessian of -F at one theta: the reference method.

    For arguments, see `gibbs_measure`.

    Returns:
        The local entropy, see :class:`LocalEntropy`.

    Raises:
        ValueError: see :func:`gibbs_measure`.

    Example:
        >>> entropy = local_entropy(lambda t: t @ t / 2, [1.0, -2.0], gamma=3.0)
        >>> entropy.gradient.round(12).tolist()  # gamma lambda / (gamma + lambda) theta
        [0.75, -1.5]

    References:
        formulas D.1; Kanai et al., equations 10 to 12.
    """
    theta = _vector(theta)
    options = {
        "gamma": gamma,
        "beta": beta,
        "lower_bound": lower_bound,
        "radius": radius,
        "breaks": breaks,
        "panel": panel,
    }
    measure = gibbs_measure(loss, theta, num_nodes=num_nodes, **options)
    coarse = gibbs_measure(loss, theta, num_nodes=max(2 * num_nodes // 3, 1), **options)
    offsets = measure.points - theta[None, :]
    shift = np.einsum("n,ni->i", measure.weights, offsets)
    centred = offsets - shift[None, :]
    covariance = np.einsum("n,ni,nj->ij", measure.weights, centred, centred)
    value = np.asarray(measure.log_normaliser)
    error = abs(measure.log_normaliser - coarse.log_normaliser)
    return _assemble(value, theta + shift, covariance, theta, gamma, beta, measure.edge, error)


def local_entropy_grid(
    loss: Callable[[Array], Array],
    axes: Sequence[np.ndarray],
    *,
    gamma: float,
    beta: float = 1.0,
    lower_bound: float = 0.0,
    radius: float | None = None,
    rule: Literal["gauss", "uniform"] = "gauss",
    breaks: Sequence[float] = (0.0,),
    num_nodes: int = 20,
    panel: float | None = None,
    spacing: float = 0.02,
) -> LocalEntropy:
    r"""F, gradient and Hessian of -F on a grid: the method for surfaces.

    With nodes :math:`t_j` and weights :math:`w_j` on each axis,

    .. math:: e^{F(g_i, g_k)} = W e^{-\beta L(t, t)} W^T, \qquad
        W_{ij} = e^{-\frac{\beta\gamma}{2}(g_i - t_j)^2} w_j,

    and the moments come from the same product with :math:`(t_j - g_i)^k W_{ij}`.

    Args:
        loss: maps one vector of shape (m,) to a scalar, with JAX operations.
        axes: the m = 1 or 2 axes of the grid, each of shape (n_i,).
        gamma: scope.
        beta: inverse temperature.
        lower_bound: a number that the loss never goes below.
        radius: how far beyond the grid to integrate, instead of that from ``lower_bound``.
        rule: "gauss" (panels that end at ``breaks``; exact for kinks there) or "uniform"
            (multiples of ``spacing``; error of order spacing^2 at kinks).
        breaks: coordinates where panels end, on both axes.
        num_nodes: nodes per panel, for "gauss".
        panel: width of a panel, by default one standard deviation of the Gaussian.
        spacing: for "uniform".

    Returns:
        The local entropy, with leading axes (n_1, ...) and index i along ``axes[0]``.

    Raises:
        ValueError: see :func:`gibbs_measure`; unknown rule; the integrals underflow.

    Example:
        >>> axis = np.linspace(-1, 1, 5)
        >>> entropy = local_entropy_grid(lambda t: t @ t / 2, [axis, axis], gamma=1.0)
        >>> entropy.smoothed.shape, float(entropy.hessian[2, 2, 0, 0].round(12))
        ((5, 5), 0.5)

    References:
        formulas G.4 (b) and (c).
    """
    check_choice("rule", rule, ("gauss", "uniform"))
    check_count("num_nodes", num_nodes, 3)
    _check_positive(gamma=gamma, beta=beta, spacing=spacing)
    grid = [np.asarray(axis, np.float64).reshape(-1) for axis in axes]
    if len(grid) not in (1, 2) or any(len(axis) == 0 for axis in grid):
        raise ValueError(f"axes has {len(grid)} entries; pass one or two axes that are not empty")
    theta = np.stack(np.meshgrid(*grid, indexing="ij"), -1)
    if radius is None:
        here = evaluate(loss, theta.reshape(-1, len(grid)))
        radius = reach(here, gamma=gamma, beta=beta, lower_bound=lower_bound)
    width = 1 / math.sqrt(beta * gamma) if panel is None else panel

    def rules(fine: bool) -> list[Nodes]:
        found = []
        for axis in grid:
            low, high = axis.min() - radius, axis.max() + radius
            if rule == "uniform":
                found.append(uniform_nodes(low, high, spacing=spacing if fine else 1.5 * spacing))
            else:
                count = num_nodes if fine else 2 * num_nodes // 3
                found.append(gauss_panels(low, high, breaks=breaks, panel=width, num_nodes=count))
        return found

    value, mean, covariance, edge = _separable(loss, grid, theta, rules(True), gamma, beta)
    coarse, *_ = _separable(loss, grid, theta, rules(False), gamma, beta)
    error = float(np.abs(value - coarse).max())
    return _assemble(value, mean, covariance, theta, gamma, beta, edge, error)


def _separable(
    loss: Callable[[Array], Array],
    grid: Sequence[np.ndarray],
    theta: np.ndarray,
    rules: list[Nodes],
    gamma: float,
    beta: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    m = len(grid)
    nodes = np.stack(np.meshgrid(*(r.points for r in rules), indexing="ij"), -1)
    exponents = -beta * evaluate(loss, nodes.reshape(-1, m)).reshape(nodes.shape[:-1])
    top = exponents.max()
    factors = np.exp(exponents - top).reshape(len(rules[0].points), -1)
    left = _moments(grid[0], rules[0], beta * gamma)
    right = _moments(grid[1], rules[1], beta * gamma) if m == 2 else [np.ones((1, 1))] * 3
    # A one-dimensional problem is a two-dimensional one with a single node on the second axis.
    products = [_product(side, factors) for side in left]
    moment = lambda i, k: _product(products[i], right[k].T)
    total = moment(0, 0)
    if not total.min() > 1e-250:
        raise ValueError(
            "the integrals underflow: the loss varies too much over the grid for one scale; "
            "use local_entropy for each theta, or a smaller grid"
        )
    first, second = moment(1, 0) / total, moment(0, 1) / total
    covariance = np.empty((*total.shape, 2, 2))
    covariance[..., 0, 0] = moment(2, 0) / total - first**2
    covariance[..., 1, 1] = moment(0, 2) / total - second**2
    covariance[..., 0, 1] = covariance[..., 1, 0] = moment(1, 1) / total - first * second
    value = (top + np.log(total)).reshape(theta.shape[:-1])
    shift = np.stack([first, second], -1)[..., :m].reshape(theta.shape)
    covariance = covariance[..., :m, :m].reshape((*theta.shape[:-1], m, m))
    return value, theta + shift, covariance, _grid_edge(factors, left[0], right[0], total, rules)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix product without BLAS, whose threads stall for seconds on shared cores."""
    return np.einsum("ij,jk->ik", a, b)


def _moments(axis: np.ndarray, rule: Nodes, strength: float) -> list[np.ndarray]:
    offsets = rule.points[None, :] - axis[:, None]
    weights = np.exp(-strength / 2 * offsets**2) * rule.weights[None, :]
    return [weights, offsets * weights, offsets**2 * weights]


def _grid_edge(
    factors: np.ndarray, left: np.ndarray, right: np.ndarray, total: np.ndarray, rules: list[Nodes]
) -> float:
    """Mass in the outermost nodes relative to the whole, per node weight: largest of the grid."""
    ends = []
    for index in (0, -1):
        ends.append((left[:, [index]] * _product(factors[[index], :], right.T)) / total)
        if len(rules) == 2:
            ends.append(_product(left, factors[:, [index]]) * right[:, [index]].T / total)
    return float(max(end.max() for end in ends))
