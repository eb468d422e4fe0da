"""The local entropy by quadrature in NumPy, for checks that share no code with jaxadv."""

import functools

import numpy as np

SWISH = -1.278464542761074  # where u s(u) is smallest
POINT, RADIUS = np.array([-1.0, 1.0]), 0.6


def panels(low: float, high: float, width: float, *, order: int = 12) -> tuple:
    """Gauss-Legendre nodes and weights on panels of about ``width``; 0 is an end of a panel."""
    edges = np.unique(
        np.concatenate(
            [
                np.linspace(min(low, 0), 0, max(int(-low / width), 1) + 1),
                np.linspace(0, max(high, 0), max(int(high / width), 1) + 1),
            ]
        )
    )
    base, weights = np.polynomial.legendre.leggauss(order)
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    return (middle + half * base).ravel(), (half * weights).ravel()


def swish_margin(u):
    """The loss of the swish neuron as a function of its input."""
    return np.logaddexp(0, -u / (1 + np.exp(-u)))


def toy(model: str, kind: str, first, second, *, sense: float = 1.0):
    """Adversarial loss of the toy at (first, second), arrays of one shape; ``sense`` -1 negates."""
    middle = POINT[0] * first + POINT[1] * second
    size = np.hypot(first, second) if kind == "l2" else np.abs(first) + np.abs(second)
    low, high = middle - RADIUS * size, middle + RADIUS * size
    if model == "linear":
        return sense * np.logaddexp(0, -low)
    return swish_margin(np.clip(SWISH, low, high))


class Plane:
    """F(theta) of a loss in the plane for theta in [-2, 2]^2.

    Args:
        loss: maps coordinates, two arrays of one shape, to losses.
        gamma: scope.
    """

    def __init__(self, loss, gamma: float):
        reach = 2 + 8.5 / np.sqrt(gamma) + 2 / np.sqrt(gamma)
        self.nodes, self.weights = panels(-reach, reach, 1 / np.sqrt(gamma))
        values = loss(*np.meshgrid(self.nodes, self.nodes, indexing="ij"))
        self.shift, self.gamma = float(values.min()), gamma
        self.factors = np.exp(self.shift - values)

    def __call__(self, thetas) -> np.ndarray:
        """F at the rows of ``thetas``."""
        sides = [
            self.weights * np.exp(-self.gamma / 2 * (t[:, None] - self.nodes) ** 2)
            for t in np.asarray(thetas).T
        ]
        return np.log(np.sum((sides[0] @ self.factors) * sides[1], 1)) - self.shift

    def gradient(self, thetas) -> np.ndarray:
        """The gradient of F by central differences."""
        h = 1e-3 / np.sqrt(self.gamma)
        parts = [(self(thetas + h * e) - self(thetas - h * e)) / (2 * h) for e in np.eye(2)]
        return np.stack(parts, 1)


@functools.lru_cache(maxsize=64)
def toy_plane(model: str, kind: str, gamma: float, sense: float = 1.0) -> Plane:
    """`Plane` of a toy loss."""
    return Plane(lambda s, t: toy(model, kind, s, t, sense=sense), gamma)


class Line:
    """The measures p_theta of a batch of losses of one variable, beta = 1.

    Args:
        loss: maps nodes, shape (1, N), to losses, shape (n, N); kinks at 0 or at ``breaks``.
        gamma: scopes, shape (n,).
        reach: half-width of the interval around 0.
        width: of a panel.
    """

    def __init__(self, loss, gamma, reach: float, width: float = 0.25):
        self.nodes, self.weights = panels(-reach, reach, width)
        self.losses, self.gamma = loss(self.nodes[None, :]), np.asarray(gamma)

    def measure(self, theta) -> tuple[np.ndarray, np.ndarray]:
        """F, shape (n,), and the probabilities of the nodes, shape (n, N)."""
        exponents = -self.losses - self.gamma[:, None] / 2 * (theta[:, None] - self.nodes) ** 2
        top = exponents.max(1, keepdims=True)
        density = self.weights * np.exp(exponents - top)
        total = density.sum(1, keepdims=True)
        return (top + np.log(total))[:, 0], density / total

    def moments(self, theta) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance."""
        probabilities = self.measure(theta)[1]
        mean = probabilities @ self.nodes
        away = self.nodes[None, :] - mean[:, None]
        return mean, np.sum(probabilities * away**2, 1)

    def gradient(self, theta) -> np.ndarray:
        """The derivative of F by central differences."""
        h = 1e-4 / np.sqrt(self.gamma)
        return (self.measure(theta + h)[0] - self.measure(theta - h)[0]) / (2 * h)

    def curvature(self, theta) -> np.ndarray:
        """The second derivative of -F by differences."""
        h = 3e-3 / np.sqrt(self.gamma)
        ends = self.measure(theta + h)[0] + self.measure(theta - h)[0]
        return -(ends - 2 * self.measure(theta)[0]) / h**2


def wells(height, place):
    """L = G min(|t - a|, |t + a|), two wells, for `Line`."""
    height, place = height[:, None], place[:, None]
    return lambda t: height * np.minimum(np.abs(t - place), np.abs(t + place))
