"""The exact maximum of a quadratic on a sphere: an oracle that shares no code with jaxadv."""

import numpy as np


def solve_sphere(q: np.ndarray, theta: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Maximizes theta^T x + x^T Q x/2 over |x| = eps by the secular equation.

    x = (m I - Q)^{-1} theta with the m > lambda_max(Q) that makes |x| = eps, found by bisection on
    1/|x| and polished by Newton steps; theta must not be orthogonal to the top eigenspace.

    Args:
        q: symmetric matrices, shape (n, d, d).
        theta: linear terms, shape (n, d).
        eps: radius.

    Returns:
        The maximizers, shape (n, d), and their multipliers mu = n^T g = m eps.
    """
    values, vectors = np.linalg.eigh(q)
    weights = np.einsum("nji,nj->ni", vectors, theta) ** 2
    low, high = values[:, -1], values[:, -1] + np.linalg.norm(theta, axis=1) / eps
    length = lambda m: np.sqrt((weights / (m[:, None] - values) ** 2).sum(1))
    for _ in range(60):
        middle = (low + high) / 2
        with np.errstate(divide="ignore"):
            outside = length(middle) > eps
        low, high = np.where(outside, middle, low), np.where(outside, high, middle)
    m = high
    for _ in range(3):
        slope = (weights / (m[:, None] - values) ** 3).sum(1)
        m = m + length(m) ** 2 / slope * (length(m) - eps) / eps
    points = np.einsum("nij,nj->ni", vectors, np.sqrt(weights) / (m[:, None] - values)
                       * np.sign(np.einsum("nji,nj->ni", vectors, theta)))  # fmt: skip
    return points, m * eps
