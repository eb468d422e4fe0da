r"""The optimal attack and the adversarial loss as differentiable functions.

The attack's derivative is the implicit one of `attack_jacobian`; the loss's first derivative is
Danskin's, the gradient at the frozen attack, and differentiating that differentiates the attack:
``jax.hessian`` of the adversarial loss is :math:`A + B^T D`, where a loss with ``stop_gradient``
around the attack would give A.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.tree_util import Partial

from ...checks import check_count
from ...types import Array, Norm, PyTree
from .._float64 import in_float64
from .active import active_set
from .certificates import analyse, is_regular
from .feasible import Bounds, Feasible
from .implicit import dense_solve, implicit_motion
from .kkt import kkt_residual, normalized_multiplier
from .optimal import search
from .problem import ScalarLoss, make_problem


def _zeros_for(tangents: PyTree, primals: PyTree) -> PyTree:
    return jax.tree.map(
        lambda t, p: jnp.zeros_like(p) if isinstance(t, SymbolicZero) else t,
        tangents,
        primals,
        is_leaf=lambda t: isinstance(t, SymbolicZero),
    )


def _all_zero(tangents: PyTree) -> bool:
    leaves = jax.tree.leaves(tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))
    return all(isinstance(leaf, SymbolicZero) for leaf in leaves)


class _Settings(NamedTuple):
    norm: Norm
    num_restarts: int
    tol: float


class _Given(NamedTuple):
    """Non-differentiated inputs; passed as an argument because they may be traced."""

    loss: Partial
    eps: Any
    bounds: Any


def _refuse(tangents: PyTree) -> None:
    if not _all_zero(tangents):
        raise ValueError(
            "the attack was differentiated with respect to eps, bounds or the data of its loss; "
            "only theta and x are supported"
        )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attack(settings: _Settings, given: _Given, theta: PyTree, x: Array) -> Array:
    problem = make_problem(
        given.loss, theta, x, norm=settings.norm, eps=given.eps, bounds=given.bounds
    )
    z, _ = search(jax.random.key(0), problem, x.shape, settings.num_restarts)
    return z.reshape(x.shape)


def _attack_rule(settings: _Settings, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    given, theta, x = primals
    _refuse(tangents[0])
    theta_dot, x_dot = _zeros_for(tangents[1:], (theta, x))
    x_adv = _attack(settings, given, theta, x)  # apply the rule again, for higher derivatives
    z, frozen = x_adv.reshape(-1), jax.lax.stop_gradient
    loss = lambda z, theta: given.loss(z.reshape(x.shape), theta)

    def feasible_of(x: Array) -> Feasible:
        return Feasible.make(x, norm=settings.norm, eps=given.eps, bounds=given.bounds)

    # The active set is constant nearby; mu is a smooth function of everything else.
    still = feasible_of(frozen(x))
    found = analyse(loss, frozen(theta), still, frozen(z), settings.tol)
    scale, held = found.scale, found.active
    moving = active_set(feasible_of(x), z, jax.grad(loss)(z, theta))
    nu = normalized_multiplier(held._replace(multiplier=moving.multiplier), scale)
    root = jnp.append(z, nu)

    def system(unknowns: Array, theta: PyTree, x: Array) -> Array:
        return kkt_residual(loss, unknowns, theta, feasible_of(x), held, scale)

    _, push = jax.jvp(functools.partial(system, root), (theta, x), (theta_dot, x_dot))
    solve = dense_solve(found.certificates.curvature)
    moved = implicit_motion(lambda u: system(u, theta, x), root, push, solve)[:-1]
    moved = jnp.where(is_regular(found.kind_code), moved, jnp.nan)
    return x_adv, moved.reshape(x.shape)


_attack.defjvp(_attack_rule, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _worst(settings: _Settings, given: _Given, theta: PyTree, x: Array) -> Array:
    return given.loss(_attack(settings, given, theta, x), theta)


def _worst_rule(settings: _Settings, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    given, theta, x = primals
    _refuse(tangents[0])
    x_adv = _attack(settings, given, theta, x)
    theta_dot = _zeros_for(tangents[1], theta)
    value, slope = jax.jvp(lambda theta: given.loss(x_adv, theta), (theta,), (theta_dot,))
    if not _all_zero(tangents[2]):
        x_dot = _zeros_for(tangents[2], x)
        moved = jax.jvp(lambda x: _attack(settings, given, theta, x), (x,), (x_dot,))[1]
        slope = slope + jnp.sum(jax.grad(given.loss)(x_adv, theta) * moved)
    return value, slope


_worst.defjvp(_worst_rule, symbolic_zeros=True)


def _bind(
    function: Callable,
    loss: ScalarLoss,
    norm: Norm,
    eps: float | Array,
    bounds: Bounds,
    num_restarts: int,
    tol: float,
) -> Callable:
    check_count("num_restarts", num_restarts, 0)
    settings = _Settings(norm, num_restarts, tol)
    run = jax.jit(function, static_argnums=0)

    def bound(limits: tuple, theta: PyTree, x: Array) -> Array:
        eps, bounds = limits
        problem = make_problem(loss, theta, x, norm=norm, eps=eps, bounds=bounds)
        return run(settings, _Given(problem.loss, eps, bounds), theta, jnp.asarray(x, float))

    bound.__name__ = function.__name__.strip("_")
    checked = in_float64(bound)
    return lambda theta, x: checked((eps, bounds), theta, x)


def differentiable_attack(
    loss: ScalarLoss,
    *,
    norm: Norm,
    eps: float | Array,
    bounds: Bounds = None,
    num_restarts: int = 8,
    tol: float = 1e-9,
) -> Callable[[PyTree, Array], Array]:
    r"""The optimal attack as a function (theta, x) -> x' with implicit derivatives of any order.

    The tangent is :math:`D\dot\theta + D_x\dot x`, from the KKT system of the active set
    (docs/formulas.md C.1, C.2, C.4), also under ``jax.vmap``, ``jax.jit`` and reverse mode. At
    points that `attack_jacobian` labels degenerate or unconverged, the tangent is NaN.

    Args:
        loss: function of (x, theta) to a scalar, one example, twice differentiable near x'.
        norm: "linf", "l2" or "l1".
        eps: radius >= 0, in the units of x; not differentiated.
        bounds: None, or (low, high), numbers or arrays like x: the box, which contains x.
        num_restarts: random starts of the search.
        tol: largest relative residual that counts as converged.

    Returns:
        The function. Transform it within ``jax.enable_x64(True)``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss = lambda x, theta: -0.5 * jnp.sum((x - theta) ** 2)
        >>> attack = differentiable_attack(loss, norm="l2", eps=1.0)
        >>> with jax.enable_x64(True):
        ...     jacobian = jax.jacobian(attack)(jnp.array([0.0, 2.0]), jnp.zeros(2))
        ...     (jacobian.round(6) + 0.0).tolist()
        [[0.5, 0.0], [0.0, 0.0]]

    References:
        formulas C.6, last paragraph.
    """
    return _bind(_attack, loss, norm, eps, bounds, num_restarts, tol)


def adversarial_loss(
    loss: ScalarLoss,
    *,
    norm: Norm,
    eps: float | Array,
    bounds: Bounds = None,
    num_restarts: int = 8,
    tol: float = 1e-9,
) -> Callable[[PyTree, Array], Array]:
    r"""The adversarial loss (theta, x) -> l_eps whose ``jax.hessian`` is :math:`A + B^T D`.

    Its gradient is Danskin's, :math:`G(x', \theta)` (valid wherever the maximizer is unique, even
    if degenerate); its Hessian is that of the true adversarial loss, and NaN at points that
    `attack_jacobian` labels degenerate or unconverged.

    For arguments, see `differentiable_attack`.

    Returns:
        The function. Transform it within ``jax.enable_x64(True)``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss = lambda x, theta: -0.5 * jnp.sum((x - theta) ** 2)
        >>> adversarial = adversarial_loss(loss, norm="l2", eps=1.0)
        >>> with jax.enable_x64(True):  # -(|theta| - 1)^2 / 2; with the attack frozen it were -I
        ...     hessian = jax.hessian(adversarial)(jnp.array([0.0, 2.0]), jnp.zeros(2))
        ...     (hessian.round(6) + 0.0).tolist()
        [[-0.5, 0.0], [0.0, -1.0]]

    References:
        formulas A.9 (F1, F3), C.6.
    """
    return _bind(_worst, loss, norm, eps, bounds, num_restarts, tol)
