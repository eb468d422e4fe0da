"""Nodes, weights and values for the integrals of the local entropy in one and two dimensions."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ..._program import trace
from ...checks import check_count
from ...types import Array

_SMALL, _LARGE = 4096, 16384  # points per compiled call, so that two programs serve every grid


class Nodes(NamedTuple):
    """A quadrature rule on an interval.

    Attributes:
        points: increasing, shape (n,).
        weights: positive, shape (n,).
    """

    points: np.ndarray
    weights: np.ndarray


def gauss_panels(
    low: float, high: float, *, breaks: Sequence[float] = (), panel: float, num_nodes: int = 20
) -> Nodes:
    """Composite Gauss-Legendre rule with panels that end where the integrand is nonsmooth.

    Args:
        low: left end of the interval.
        high: right end.
        breaks: points inside the interval where panels must end; others are ignored.
        panel: maximum width of a panel.
        num_nodes: nodes per panel.

    Returns:
        The rule.

    Example:
        >>> rule = gauss_panels(-1.0, 2.0, breaks=(0.0,), panel=1.0)
        >>> float(np.round(rule.weights @ np.abs(rule.points), 12))
        2.5
    """
    check_count("num_nodes", num_nodes, 1)
    if not low < high or not panel > 0:
        raise ValueError(f"low={low}, high={high}, panel={panel}: need low < high and panel > 0")
    stops = [low, *sorted(b for b in set(breaks) if low < b < high), high]
    edges = [np.array([low])]
    for left, right in zip(stops[:-1], stops[1:], strict=True):
        count = max(math.ceil((right - left) / panel - 1e-9), 1)
        edges.append(np.linspace(left, right, count + 1)[1:])
    edges = np.concatenate(edges)
    base, weights = np.polynomial.legendre.leggauss(num_nodes)
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    return Nodes((middle + half * base[None, :]).ravel(), (half * weights[None, :]).ravel())


def uniform_nodes(low: float, high: float, *, spacing: float) -> Nodes:
    """The multiples of ``spacing`` in [low, high], each with that weight; 0 is one of them."""
    if not low < high or not spacing > 0:
        raise ValueError(f"low={low}, high={high}, spacing={spacing}: need low < high, spacing > 0")
    indices = np.arange(math.floor(low / spacing), math.ceil(high / spacing) + 1)
    return Nodes(indices * spacing, np.full(len(indices), float(spacing)))


@jax.jit
def _values(points: Array, function: Partial) -> Array:
    return jax.vmap(function)(points)


def evaluate(function: Callable[[Array], Array], points: np.ndarray) -> np.ndarray:
    """Values of a function of one vector at the rows of ``points``, in float64.

    Rows are padded to one of two sizes, so that a function compiles at most twice.

    Args:
        function: of a vector of shape (m,), with JAX operations; its value may have any shape.
        points: of shape (N, m).

    Returns:
        The values, shape (N, ...).

    Raises:
        ValueError: if a value is not finite; names the first such point.
    """
    size = _SMALL if len(points) <= _SMALL else _LARGE
    parts = []
    with jax.enable_x64(True):
        traced = trace(function, jax.ShapeDtypeStruct(points.shape[1:], float), name="function")
        for start in range(0, len(points), size):
            chunk = points[start : start + size]
            padded = np.concatenate([chunk, np.repeat(chunk[-1:], size - len(chunk), axis=0)])
            values = _values(jnp.asarray(padded, jnp.float64), traced)
            parts.append(np.asarray(values, np.float64)[: len(chunk)])
    values = np.concatenate(parts)
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        place = points[bad.argmax()]
        raise ValueError(
            f"the function is not finite at theta={place.tolist()}; the local entropy needs a "
            "finite loss on the whole space"
        )
    return values
