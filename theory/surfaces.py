"""Loss surfaces of the toy on a grid, exact or by PGD, and statistics of a surface."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import theory

Mode = Literal["exact", "pgd"]


def toy_loss(model: Any, norm: Any, mode: Mode = "exact") -> Callable:
    """The adversarial loss of the one-point toy as a function of theta."""
    if norm is None or mode == "exact":
        return lambda theta: theory.toy_loss(theta, model=model, norm=norm)

    def by_pgd(theta):
        delta = theory.toy_pgd(theta, model=model, norm=norm)
        return theory.toy_margin_loss(theta @ (jnp.asarray(theory.TOY_POINT) + delta), model=model)

    return by_pgd


def dataset_loss(norm: Any, mode: Mode = "exact") -> Callable:
    """The adversarial loss of the linear model on the data set of Figure 4."""
    points, labels = theory.toy_dataset()
    if norm is None or mode == "exact":
        return lambda theta: theory.toy_dataset_loss(theta, points, labels, norm=norm)

    def by_pgd(theta):
        def one(x, y):
            delta = theory.toy_pgd(theta, x, y, model="linear", norm=norm)
            return theory.toy_margin_loss(theta @ (x + delta), y)

        return jnp.mean(jax.vmap(one)(jnp.asarray(points), jnp.asarray(labels)))

    return by_pgd


def on_grid(function: Callable, axis: np.ndarray) -> np.ndarray:
    """Values of a function of theta on axis x axis, in float64."""
    with jax.enable_x64(True):
        grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        values = jax.jit(jax.vmap(function))(jnp.asarray(grid))
        return np.asarray(values).reshape(len(axis), len(axis), *values.shape[1:])


def second_differences(values: np.ndarray, spacing: float) -> np.ndarray:
    """All second difference quotients of a surface along the two axes."""
    first = np.diff(values, 2, axis=0) / spacing**2
    second = np.diff(values, 2, axis=1) / spacing**2
    return np.concatenate([first.ravel(), second.ravel()])


def gradient_lipschitz(values: np.ndarray, spacing: float) -> float:
    """Finite-difference estimate of the Lipschitz constant of the gradient of a surface.

    Largest slope of the central-difference gradient between neighbors on the grid; it grows like
    1/spacing where the surface has kinks.
    """
    gradient = np.stack([np.gradient(values, spacing, axis=axis) for axis in (0, 1)], -1)
    slopes = [
        np.linalg.norm(np.diff(gradient, axis=axis), axis=-1).max() / spacing for axis in (0, 1)
    ]
    return float(max(slopes))


def deviation(first: np.ndarray, second: np.ndarray) -> float:
    """Largest deviation of two surfaces after their means are removed."""
    return float(np.abs((first - first.mean()) - (second - second.mean())).max())


def smallest_quotient(gradients: np.ndarray, axis: np.ndarray, pairs: int, seed: int) -> float:
    """Smallest (MON) quotient over random pairs of grid points."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    flat = gradients.reshape(-1, 2)
    a, b = rng.integers(0, len(grid), size=(2, pairs))
    step, change = grid[a] - grid[b], flat[a] - flat[b]
    length = np.sum(step**2, axis=1)
    keep = length > 0
    return float((np.sum(change * step, axis=1)[keep] / length[keep]).min())
