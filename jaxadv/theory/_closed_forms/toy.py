r"""The toy of the paper's Figures 2, 4 and 5 in closed form: one or more points, two weights.

With :math:`u_0 = \theta^T x` and :math:`R = \epsilon\|\theta\|_q` (q = 2 for L2, q = 1 for Linf) an
attack moves :math:`u = \theta^T x'` anywhere in :math:`[u_0 - R, u_0 + R]`, and the loss
:math:`\psi(u) = \phi(y\,f(u))`, :math:`\phi(t) = \log(1 + e^{-t})`, depends only on u:

* linear model, f(u) = u: the worst u is :math:`c = u_0 - yR`;
* swish neuron, :math:`f(u) = u\,s(u)`, which falls up to :math:`u^* = -1.278` and rises after it:
  for y = 1 the worst u is :math:`c = \mathrm{clip}(u^*, u_0 - R, u_0 + R)`, for y = -1 the
  better of the two ends.

So :math:`l_\epsilon(\theta) = \psi(c)` exactly, where the paper, lacking a closed form, uses PGD;
:math:`\delta = (c - u_0)\,\theta/\|\theta\|_2^2` for L2 and
:math:`(c - u_0)\,\mathrm{sign}(\theta)/\|\theta\|_1` for Linf. All functions take one parameter
vector; use ``jax.vmap`` for many.

References:
    docs/formulas.md G; Kanai et al. (arXiv 2103.01400), section 5.1; errata E9 and E22.
"""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from ...checks import check_choice, check_count
from ...types import Array, ArrayLike
from .._float64 import in_float64

Model: TypeAlias = Literal["linear", "swish"]
MODELS: tuple[Model, ...] = ("linear", "swish")

TOY_POINT = (-1.0, 1.0)  # the one data point of Figure 2, with label y = 1
TOY_EPS = 0.6
SWISH_MINIMISER = -1.278464542761074  # u* with 1 + u* (1 - s(u*)) = 0, where swish(u*) = u* + 1


class ToyAttack(NamedTuple):
    """An optimal attack on the toy.

    Attributes:
        delta: the perturbation, shape (d,); 0 where theta = 0, where every one is optimal.
        position: c = theta^T (x + delta).
        regime: which end of the interval is active: -1 the lower, 1 the upper, 0 neither (the
            plateau, where the maximizer is not unique).
    """

    delta: Array
    position: Array
    regime: Array


def _check(model: str, norm: str | None) -> None:
    check_choice("model", model, MODELS)
    if norm is not None:
        check_choice("norm", norm, ("l2", "linf"))


def _link(u: Array, model: str) -> Array:
    return u if model == "linear" else u * jax.nn.sigmoid(u)


@in_float64
def toy_margin_loss(u: ArrayLike, y: float = 1.0, *, model: Model = "linear") -> Array:
    r"""Loss as a function of :math:`u = \theta^T x'`: :math:`\psi(u) = \phi(y f(u))`.

    Args:
        u: the neuron's input.
        y: label, -1 or 1.
        model: "linear" (f(u) = u) or "swish" (f(u) = u s(u)).

    Returns:
        The loss, shaped like ``u``.

    Example:
        >>> float(toy_margin_loss(0.0))  # log 2
        0.6931471805599453

    References:
        formulas G.1; Kanai et al. (arXiv 2103.01400), section 5.1.
    """
    _check(model, None)
    return jax.nn.softplus(-y * _link(jnp.asarray(u, float), model))


def _dual_norm(theta: Array, norm: str) -> Array:
    if norm == "linf":
        return jnp.abs(theta).sum()
    # Scaled by the largest entry, and 0 with gradient 0 at the origin.
    largest = jax.lax.stop_gradient(jnp.abs(theta).max())
    scale = jnp.where(largest > 0, largest, 1.0)
    squares = jnp.sum((theta / scale) ** 2)
    return jnp.where(largest > 0, scale * jnp.sqrt(jnp.where(largest > 0, squares, 1.0)), 0.0)


def _position(
    theta: Array, x: Array, y: float | Array, model: str, norm: str | None, eps: float | Array
) -> tuple[Array, Array]:
    middle = theta @ x
    if norm is None:
        return middle, jnp.zeros((), int)
    radius = eps * _dual_norm(theta, norm)
    low, high = middle - radius, middle + radius
    if model == "linear":
        return middle - y * radius, -jnp.sign(jnp.asarray(y)).astype(int)
    inside = jnp.clip(SWISH_MINIMISER, low, high)
    falling = (low >= SWISH_MINIMISER).astype(int)
    rising = (high <= SWISH_MINIMISER).astype(int)
    upper = _link(high, model) >= _link(low, model)
    position = jnp.where(y > 0, inside, jnp.where(upper, high, low))
    regime = jnp.where(y > 0, rising - falling, jnp.where(upper, 1, -1))
    return position, regime


@in_float64
def toy_loss(
    theta: ArrayLike,
    x: ArrayLike = TOY_POINT,
    y: float | Array = 1.0,
    *,
    model: Model = "linear",
    norm: Literal["l2", "linf"] | None = "l2",
    eps: float = TOY_EPS,
) -> Array:
    r"""Exact adversarial loss :math:`l_\epsilon(\theta) = \psi(c)` of one point.

    Differentiable where the loss is; its derivative is the one of Danskin's theorem.

    Args:
        theta: weights, shape (d,).
        x: data point, shape (d,).
        y: label, -1 or 1.
        model: "linear" or "swish".
        norm: of the attack, "l2" or "linf"; None for the clean loss.
        eps: radius.

    Returns:
        The loss, a float64 scalar.

    Raises:
        ValueError: unknown model or norm.

    Example:
        >>> round(float(toy_loss(jnp.array([-2.0, 2.0]), norm="linf")), 12)
        0.183900740888

    References:
        formulas G.1.
    """
    _check(model, norm)
    theta, x = jnp.asarray(theta, float), jnp.asarray(x, float)
    position, _ = _position(theta, x, y, model, norm, eps)
    return jax.nn.softplus(-y * _link(position, model))


@in_float64
def toy_attack(
    theta: ArrayLike,
    x: ArrayLike = TOY_POINT,
    y: float | Array = 1.0,
    *,
    model: Model = "linear",
    norm: Literal["l2", "linf"] = "l2",
    eps: float = TOY_EPS,
) -> ToyAttack:
    """An optimal attack: on the plateau of the swish neuron the one parallel to the others.

    For arguments, see `toy_loss`.

    Returns:
        The attack, see :class:`ToyAttack`.

    Raises:
        ValueError: unknown model or norm.

    Example:
        >>> attack = toy_attack(jnp.array([3.0, -4.0]), norm="l2", eps=1.0)
        >>> attack.delta.round(3).tolist()
        [-0.6, 0.8]

    References:
        formulas G.1.
    """
    _check(model, norm)
    theta, x = jnp.asarray(theta, float), jnp.asarray(x, float)
    position, regime = _position(theta, x, y, model, norm, eps)
    length = _dual_norm(theta, norm)
    safe = jnp.where(length > 0, length, 1.0)
    direction = jnp.sign(theta) if norm == "linf" else theta / safe
    # Ends first: (c - u_0)/length is eps only up to rounding there.
    inside = jnp.clip((position - theta @ x) / safe, -eps, eps)
    amount = jnp.where(regime == 0, inside, regime.astype(inside.dtype) * eps)
    return ToyAttack(jnp.where(length > 0, amount * direction, 0.0), position, regime)


@in_float64
def toy_gradient(
    theta: ArrayLike,
    x: ArrayLike = TOY_POINT,
    y: float | Array = 1.0,
    *,
    model: Model = "linear",
    norm: Literal["l2", "linf"] = "l2",
    eps: float = TOY_EPS,
    delta: ArrayLike | None = None,
) -> Array:
    r"""Gradient at a frozen attack, :math:`\nabla_\theta l(x + \delta, \theta)`.

    Args:
        theta: see `toy_loss`.
        x: likewise.
        y: likewise.
        model: likewise.
        norm: likewise.
        eps: likewise.
        delta: the attack, by default the optimal one of :func:`toy_attack`.

    Returns:
        The gradient, shape (d,).

    Example:
        >>> toy_gradient(jnp.array([0.0, 0.0])).tolist()
        [0.5, -0.5]

    References:
        formulas A.4 (envelope).
    """
    _check(model, norm)
    theta, x = jnp.asarray(theta, float), jnp.asarray(x, float)
    if delta is None:
        delta = toy_attack(theta, x, y, model=model, norm=norm, eps=eps).delta
    attacked = x + jax.lax.stop_gradient(jnp.asarray(delta, float))
    return jax.grad(lambda t: jax.nn.softplus(-y * _link(t @ attacked, model)))(theta)


@in_float64
def toy_kink_jump(
    theta: ArrayLike,
    x: ArrayLike = TOY_POINT,
    y: float | Array = 1.0,
    *,
    model: Model = "linear",
    eps: float = TOY_EPS,
) -> Array:
    r"""Jump :math:`2\epsilon|\psi'(c)|` of the i-th partial derivative of the Linf loss.

    Args:
        theta: weights on the kink, shape (d,): one coordinate is 0, others are not.
        x: data point, shape (d,).
        y: label, -1 or 1.
        model: "linear" or "swish".
        eps: radius.

    Returns:
        The jump across :math:`\theta_i = 0`; 0 on the plateau of the swish neuron.

    Example:
        >>> round(float(toy_kink_jump(jnp.array([0.0, 1.3]))), 7)
        0.4474227

    References:
        formulas B.7 and G.2.
    """
    _check(model, "linf")
    theta, x = jnp.asarray(theta, float), jnp.asarray(x, float)
    position, _ = _position(theta, x, y, model, "linf", eps)
    slope = jax.grad(lambda u: jax.nn.softplus(-y * _link(u, model)))(position)
    return 2 * eps * jnp.abs(slope)


@in_float64
def toy_weak_convexity(
    x: ArrayLike = TOY_POINT,
    *,
    model: Model = "swish",
    norm: Literal["l2", "linf"] = "l2",
    eps: float = TOY_EPS,
) -> Array:
    r"""Modulus :math:`w = \sup_u \max(0, -\psi''(u))\, R'^2`, :math:`R' = \max\|x'\|_2`, for y = 1.

    Args:
        x: data point, shape (d,).
        model: "linear" or "swish".
        norm: of the attack.
        eps: radius.

    Returns:
        The modulus, a scalar.

    Example:
        >>> round(float(toy_weak_convexity(norm="linf")), 6)
        1.15794

    References:
        formulas A.9 (F2) and G.2.
    """
    _check(model, norm)
    x = jnp.asarray(x, float)
    curvature = jax.vmap(jax.grad(jax.grad(lambda u: jax.nn.softplus(-_link(u, model)))))
    u = jnp.linspace(-20.0, 20.0, 4001)
    for _ in range(3):  # zooms into the maximum
        best = u[jnp.argmin(curvature(u))]
        u = jnp.linspace(best - 2 * (u[1] - u[0]), best + 2 * (u[1] - u[0]), 401)
    lowest = curvature(u).min()
    reach = _dual_norm(x, "l2") + eps if norm == "l2" else _dual_norm(jnp.abs(x) + eps, "l2")
    return jnp.maximum(0.0, -lowest) * reach**2


@in_float64
def toy_pgd(
    theta: ArrayLike,
    x: ArrayLike = TOY_POINT,
    y: float | Array = 1.0,
    *,
    model: Model = "swish",
    norm: Literal["l2", "linf"] = "l2",
    eps: float = TOY_EPS,
    num_steps: int = 100,
    step_size: float | None = None,
    start: ArrayLike | None = None,
    keep_best: bool = True,
) -> Array:
    r"""The attack found by PGD from ``start``, as used for the paper's Figure 2.

    Args:
        theta: see `toy_loss`.
        x: likewise.
        y: likewise.
        model: likewise.
        norm: likewise.
        eps: likewise.
        num_steps: number of steps.
        step_size: by default eps/40.
        start: the first perturbation, by default 0.
        keep_best: return the iterate with the largest loss, not the last one.

    Returns:
        The perturbation, shape (d,).

    Example:
        >>> toy_pgd(jnp.array([1.0, -1.0]), norm="linf", model="linear").round(3).tolist()
        [-0.6, 0.6]

    References:
        formulas A.4 and G.3.
    """
    _check(model, norm)
    check_count("num_steps", num_steps, 0)
    theta, x = jnp.asarray(theta, float), jnp.asarray(x, float)
    step = eps / 40 if step_size is None else step_size
    loss = lambda delta: jax.nn.softplus(-y * _link(theta @ (x + delta), model))

    def advance(_: Array, state: tuple) -> tuple:
        delta, best, best_loss = state
        value, gradient = jax.value_and_grad(loss)(delta)
        better = value > best_loss
        best, best_loss = jnp.where(better, delta, best), jnp.maximum(value, best_loss)
        if norm == "linf":
            return jnp.clip(delta + step * jnp.sign(gradient), -eps, eps), best, best_loss
        delta = delta + step * gradient / (_dual_norm(gradient, "l2") + 1e-10)
        length = _dual_norm(delta, "l2")
        return delta * jnp.where(length > eps, eps / length, 1.0), best, best_loss

    first = jnp.zeros_like(x) if start is None else jnp.asarray(start, float)
    state = (first, first, jnp.asarray(-jnp.inf, x.dtype))
    last, best, best_loss = jax.lax.fori_loop(0, num_steps, advance, state)
    return jnp.where(loss(last) > best_loss, last, best) if keep_best else last
