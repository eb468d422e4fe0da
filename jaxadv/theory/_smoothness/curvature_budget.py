r"""How much of an adversarial loss's curvature comes from attack motion.

.. math:: \nabla^2 l_\epsilon = A + B^T D, \qquad B^T D \succeq 0

A is the Hessian at the frozen attack, as computed by the usual Hessian-vector product, which misses
the second part.

References:
    docs/formulas.md A.9 (F3), H.2 and I.7.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from ..._rewrite import fast_convolutions
from ..._transfers import on_host
from ...types import Array, Key, Params, PyTree
from .._trees import as_arrays, precision_of
from .eigenvalues import (
    ExtremeEigenvalues,
    TraceEstimate,
    extreme_eigenvalues,
    hutchinson_trace,
)


class CurvatureBudget(NamedTuple):
    """Spectra and traces of the Hessian of the adversarial loss and of its parts.

    Attributes:
        frozen: extreme eigenvalues of A.
        motion: of B^T D; its smallest is 0 up to rounding if the attack is a maximum.
        total: of A + B^T D, the true Hessian.
        frozen_trace: estimate of the trace of A.
        motion_trace: of B^T D, with the same probes.
        total_trace: of the sum, with the same probes: the two parts add up to it.
    """

    frozen: ExtremeEigenvalues
    motion: ExtremeEigenvalues
    total: ExtremeEigenvalues
    frozen_trace: TraceEstimate
    motion_trace: TraceEstimate
    total_trace: TraceEstimate


@on_host
def curvature_budget(
    key: Key,
    loss: Callable[[Array, Params], Array],
    theta: Params,
    x_adv: Array,
    attack_product: Callable[[PyTree], Array],
    *,
    num_steps: int = 20,
    num_probes: int = 8,
) -> CurvatureBudget:
    r"""Curvature of the adversarial loss, split into frozen part and attack motion.

    Args:
        key: typed PRNG key of start vectors and probes.
        loss: :math:`l(x', \theta)`, a scalar, twice differentiable.
        theta: parameters, any pytree.
        x_adv: the attack :math:`x'(\theta)`.
        attack_product: maps u, a pytree like theta, to D u, an array like ``x_adv``. For an attack
            that is a differentiable function of theta it is
            ``lambda u: jax.jvp(attack, (theta,), (u,))[1]``.
        num_steps: Lanczos steps.
        num_probes: probes of the traces.

    Returns:
        The budget.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> loss = lambda x, theta: x @ theta  # attack eps theta/|theta|: l_eps = eps |theta|
        >>> theta = np.array([3.0, 4.0])
        >>> attack = lambda t: t / jnp.linalg.norm(t)
        >>> with jax.enable_x64(True):
        ...     found = curvature_budget(
        ...         jax.random.key(0), loss, theta, attack(theta),
        ...         lambda u: jax.jvp(attack, (jnp.asarray(theta),), (u,))[1])
        >>> round(found.total.largest, 12), round(found.frozen.largest, 12)  # eps / |theta|, 0
        (0.2, 0.0)

    References:
        formulas A.9 (F3), H.2 and I.7.
    """
    lanczos_key, trace_key = jax.random.split(key)
    with precision_of(theta, x_adv):
        theta, x_adv = as_arrays((theta, x_adv))
        gradient = jax.grad(fast_convolutions(loss), argnums=1)

        @jax.jit
        def frozen(u: PyTree) -> PyTree:
            return jax.jvp(lambda t: gradient(x_adv, t), (theta,), (u,))[1]

        @jax.jit
        def motion(u: PyTree) -> PyTree:
            moved = attack_product(u)
            return jax.jvp(lambda x: gradient(x, theta), (x_adv,), (moved,))[1]

        def total(u: PyTree) -> PyTree:
            return jax.tree.map(lambda a, b: a + b, frozen(u), motion(u))

        spectrum = lambda product: extreme_eigenvalues(
            lanczos_key, product, theta, num_steps=num_steps
        )
        trace = lambda product: hutchinson_trace(trace_key, product, theta, num_probes=num_probes)
        return CurvatureBudget(
            spectrum(frozen),
            spectrum(motion),
            spectrum(total),
            trace(frozen),
            trace(motion),
            trace(total),
        )
