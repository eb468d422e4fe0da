"""Extreme eigenvalues and traces of symmetric operators, from products only."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ..._transfers import on_host
from ...checks import check_count
from ...types import Key, PyTree
from .._krylov import lanczos
from .._trees import like, precision_of, vector


class ExtremeEigenvalues(NamedTuple):
    """Both ends of a spectrum, with error bounds.

    Attributes:
        largest: largest Ritz value; never above the largest eigenvalue, up to rounding.
        smallest: smallest Ritz value; never below the smallest eigenvalue, likewise.
        largest_error: residual of the first: an eigenvalue lies within this distance.
        smallest_error: the same for the second.
        num_products: number of products used.
    """

    largest: float
    smallest: float
    largest_error: float
    smallest_error: float
    num_products: int


class TraceEstimate(NamedTuple):
    """A trace by random probes.

    Attributes:
        value: the mean over probes.
        standard_error: its standard error; nan for one probe.
    """

    value: float
    standard_error: float


@on_host
def extreme_eigenvalues(
    key: Key,
    product: Callable[[PyTree], PyTree],
    params: PyTree,
    *,
    num_steps: int = 20,
    tolerance: float = 1e-10,
) -> ExtremeEigenvalues:
    """Lanczos with full reorthogonalisation.

    Args:
        key: typed PRNG key of the start vector.
        product: maps a pytree like ``params`` to the operator's product with it.
        params: gives structure, shapes and dtypes.
        num_steps: maximum number of products; exact if it equals the number of parameters.
        tolerance: stops earlier when both residuals are below this, relative to the spectrum.

    Returns:
        The eigenvalues, see :class:`ExtremeEigenvalues`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> diagonal = jnp.arange(5.0)
        >>> found = extreme_eigenvalues(jax.random.key(0), lambda v: diagonal * v, diagonal)
        >>> round(found.largest, 4), abs(round(found.smallest, 4))
        (4.0, 0.0)

    References:
        docs/formulas.md I.7; Lanczos 1950.
    """
    check_count("num_steps", num_steps, 1)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    size = len(vector(params))
    with precision_of(params):
        found = lanczos(
            lambda v: ravel_pytree(product(like(np.asarray(v), params)))[0],
            jnp.asarray(rng.normal(size=size)),
            tol=tolerance,
            max_steps=min(num_steps, size),
        )
    low, high = found
    return ExtremeEigenvalues(high.value, low.value, high.error, low.error, high.iterations)


@on_host
def hutchinson_trace(
    key: Key, product: Callable[[PyTree], PyTree], params: PyTree, *, num_probes: int = 8
) -> TraceEstimate:
    """Trace by Rademacher probes, mean of v^T A v; exact for a diagonal operator.

    Args:
        key: typed PRNG key of the probes.
        product: maps a pytree like ``params`` to the operator's product with it.
        params: gives structure, shapes and dtypes.
        num_probes: number of products.

    Returns:
        The estimate and its standard error.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> diagonal = jnp.arange(5.0)
        >>> hutchinson_trace(jax.random.key(0), lambda v: diagonal * v, diagonal).value
        10.0

    References:
        formulas I.7; Hutchinson 1990.
    """
    check_count("num_probes", num_probes, 1)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    size = len(vector(params))
    values = []
    for _ in range(num_probes):
        probe = rng.integers(0, 2, size) * 2.0 - 1.0
        values.append(float(probe @ vector(product(like(probe, params)))))
    error = float(np.std(values, ddof=1) / np.sqrt(num_probes)) if num_probes > 1 else float("nan")
    return TraceEstimate(float(np.mean(values)), error)
