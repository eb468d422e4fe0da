r"""Binary linear classification in closed form, for every norm p in [1, inf].

One example with label y in {-1, +1} and the logistic loss :math:`\phi(t) = \log(1 + e^{-t})`:

.. math::
    \ell_\epsilon(\theta) = \max_{\|\delta\|_p \le \epsilon} \phi(y \theta^T (x + \delta))
    = \phi(M), \qquad M = y \theta^T x - \epsilon \|\theta\|_q, \quad 1/p + 1/q = 1.

Everything takes one parameter vector (d,) and one or many examples, x of shape (..., d) and y of
shape (...), and computes in float64. Kinks are in ``_linear_kinks.py``, bounds in
``_linear_bounds.py``.

Example:
    >>> import numpy as np
    >>> from jaxadv import theory
    >>> theta, x = np.array([3.0, -4.0]), np.array([1.0, 1.0])
    >>> theory.linear_attack(theta, x, 1, p=2, eps=0.5).round(3).tolist()
    [0.7, 1.4]
    >>> round(float(theory.linear_loss(theta, x, 1, p=np.inf, eps=0.5)), 6)
    4.511048

References:
    docs/formulas.md B; Kanai et al., "Smoothness Analysis of Adversarial Training", section 3.1.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ...checks import check_step, is_concrete
from ...types import Array, Norm
from .._attack.feasible import Bounds, Feasible
from .._float64 import in_float64

_F = TypeVar("_F", bound=Callable)


def check_p(p: Any) -> float:
    """The exponent as a float; raises a ``ValueError`` unless it lies in [1, inf]."""
    if isinstance(p, str):
        raise ValueError(f"p={p!r} is a string; pass the exponent: 1, 2, numpy.inf, 1.5, ...")
    p = float(p)
    if not p >= 1:
        raise ValueError(f"p={p} is not in [1, inf]; below 1 the ball is not convex")
    return p


def in_float64_for_p(function: _F) -> _F:
    """`in_float64` for a function with the keyword p, which stays a number under ``jax.jit``."""

    @functools.wraps(function)
    def wrapped(*args: Any, p: float, **kwargs: Any) -> Any:
        exponent = check_p(p)
        call = functools.wraps(function)(lambda *a, **k: function(*a, p=exponent, **k))
        return in_float64(call)(*args, **kwargs)

    return cast(_F, wrapped)


def dual_exponent(p: float) -> float:
    """The q with 1/p + 1/q = 1."""
    return math.inf if p == 1 else 1.0 if math.isinf(p) else p / (p - 1)


def check_example(
    theta: ArrayLike, x: ArrayLike, y: ArrayLike, eps: float | Array
) -> tuple[Array, Array, Array]:
    theta, x, y = (jnp.asarray(a, float) for a in (theta, x, y))
    if theta.ndim != 1 or x.ndim < 1 or x.shape[-1] != theta.shape[0]:
        raise ValueError(
            f"theta has shape {theta.shape} and x {x.shape}; expected (d,) and (..., d)"
        )
    if y.shape not in ((), x.shape[:-1]):
        raise ValueError(f"y has shape {y.shape} for x of shape {x.shape}; expected one label each")
    if is_concrete(y) and not bool(jnp.all(jnp.abs(y) == 1)):
        raise ValueError("y must be -1 or +1; for class indices 0 and 1 pass 2 * y - 1")
    check_step(eps, name="eps")
    return theta, x, jnp.broadcast_to(y, x.shape[:-1])


def _scaled(theta: Array) -> tuple[Array, Array]:
    """|theta| divided by its largest entry, and that entry: no power over- or underflows."""
    largest = jnp.max(jnp.abs(theta))
    return jnp.abs(theta) / jnp.where(largest > 0, largest, 1.0), largest


def dual_norm(theta: Array, q: float) -> Array:
    t, largest = _scaled(theta)
    if math.isinf(q):
        return largest
    # At 0 the power has no derivative; every path of these formulas stays finite.
    total = jnp.sum(jnp.where(t > 0, t, 0.0) ** q)
    nonzero = (total > 0).astype(total.dtype)
    return largest * jnp.where(total > 0, total, 1.0) ** (1 / q) * nonzero


def _dual_gradient(theta: Array, q: float) -> Array:
    """A subgradient u of the q-norm: 0 at 0, sign(0) = 0 for q = 1, the first of ties at inf."""
    t, _ = _scaled(theta)
    if q == 1:
        return jnp.sign(theta)
    if math.isinf(q):
        first = jnp.arange(theta.shape[0]) == jnp.argmax(t)
        return jnp.sign(theta) * first.astype(theta.dtype)
    return jnp.sign(theta) * (t / jnp.maximum(dual_norm(t, q), 1.0)) ** (q - 1)


def _dual_hessian(theta: Array, q: float) -> Array:
    """N, the Hessian of the q-norm, at a point where it exists."""
    size = theta.shape[0]
    if q == 1 or math.isinf(q):
        return jnp.zeros((size, size))
    t, largest = _scaled(theta)
    norm = dual_norm(t, q)
    u = _dual_gradient(theta, q)
    powers = jnp.ones(size) if q == 2 else (t / norm) ** (q - 2)
    return (q - 1) / norm * (jnp.diag(powers) - u[:, None] * u[None, :]) / largest


def is_regular(theta: Array, p: float) -> Array:
    """Whether the adversarial loss is twice differentiable at theta (formulas B.8)."""
    magnitudes = jnp.abs(theta)
    if p > 2:
        return jnp.all(magnitudes > 0)
    largest = jnp.max(magnitudes)
    unique = jnp.sum(magnitudes == largest) == 1 if p == 1 else jnp.array(True)
    return (largest > 0) & unique


def _only_where_regular(theta: Array, p: float, values: Array, what: str) -> Array:
    regular = is_regular(theta, p)
    if is_concrete(regular) and not bool(regular):
        raise ValueError(
            f"theta={theta} is a point where the adversarial loss for p={p} has no {what} "
            "(see linear_regularity and linear_kinks); move theta off it"
        )
    return jnp.where(regular, values, jnp.nan)


@in_float64_for_p
def linear_attack(
    theta: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    p: float,
    eps: float | Array,
    bounds: Bounds = None,
) -> Array:
    r"""The optimal attack :math:`x' = x - y \epsilon u`, u a subgradient of the dual norm.

    * p = 2: :math:`u = \theta/\|\theta\|`; p = inf: :math:`u = \mathrm{sign}(\theta)`;
    * 1 < p < inf: :math:`u_i = \mathrm{sign}(\theta_i)|\theta_i|^{q-1}/\|\theta\|_q^{q-1}`;
    * p = 1: :math:`\mathrm{sign}(\theta_k) e_k` at the first largest :math:`|\theta_k|`.

    Where the optimum is not unique (theta = 0; theta_i = 0 for p = inf), the entry of u is 0.

    Args:
        theta: parameters of shape (d,).
        x: examples of shape (..., d).
        y: labels -1 or +1 of shape (...).
        p: exponent of the norm, in [1, inf].
        eps: radius.
        bounds: (low, high), numbers or arrays like x, for p in {1, 2, inf}: x' stays in that box.

    Returns:
        x' of the shape of x, exact also with the box.

    Raises:
        ValueError: p below 1, labels other than -1 or +1, incompatible shapes, or bounds with
        another p.

    Example:
        >>> import numpy as np
        >>> linear_attack(np.array([2.0, -1.0]), np.zeros(2), 1, p=np.inf, eps=0.5).tolist()
        [-0.5, 0.5]

    References:
        formulas B.2; for p = 2 and inf the proofs of Lemmas 2 and 3.
    """
    theta, x, y = check_example(theta, x, y, eps)
    if bounds is None:
        u = _dual_gradient(theta, dual_exponent(p))
        return x - eps * y[..., None] * jnp.broadcast_to(u, x.shape)
    names: dict[float, Norm] = {1.0: "l1", 2.0: "l2", math.inf: "linf"}
    if p not in names:
        raise ValueError(f"bounds with p={p}; the box is supported for p in 1, 2 and inf")

    def one(x: Array, y: Array) -> Array:
        return Feasible.make(x, norm=names[p], eps=eps, bounds=bounds).farthest(-y * theta)

    attacks = jax.vmap(one)(x.reshape(-1, x.shape[-1]), y.reshape(-1))
    return attacks.reshape(x.shape)


@in_float64_for_p
def linear_margin(
    theta: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    p: float,
    eps: float | Array,
    bias: float | Array = 0.0,
) -> Array:
    r"""The smallest margin in the ball, :math:`M = y(\theta^T x + b) - \epsilon\|\theta\|_q`.

    Args:
        theta: parameters of shape (d,).
        x: examples of shape (..., d).
        y: labels -1 or +1 of shape (...).
        p: exponent of the norm, in [1, inf].
        eps: radius.
        bias: b.

    Returns:
        Margins of shape (...).

    Example:
        >>> import numpy as np
        >>> float(linear_margin(np.array([3.0, 4.0]), np.ones(2), 1, p=2, eps=1.0))
        2.0

    References:
        formulas B.2.
    """
    theta, x, y = check_example(theta, x, y, eps)
    return y * (x @ theta + bias) - eps * dual_norm(theta, dual_exponent(p))


@in_float64_for_p
def linear_loss(
    theta: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    p: float,
    eps: float | Array,
    bias: float | Array = 0.0,
) -> Array:
    r"""The adversarial logistic loss :math:`\ell_\epsilon(\theta) = \phi(M)`, convex in theta.

    For arguments, see `linear_margin`.

    Returns:
        Losses of shape (...).

    Example:
        >>> import numpy as np
        >>> loss = linear_loss(np.array([-2.0, 2.0]), np.array([-1.0, 1.0]), 1, p=2, eps=0.6)
        >>> round(float(loss), 9)
        0.095277582

    References:
        formulas B.2.
    """
    return jnp.logaddexp(0.0, -linear_margin(theta, x, y, p=p, eps=eps, bias=bias))


@in_float64_for_p
def linear_gradient(
    theta: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    p: float,
    eps: float | Array,
    bias: float | Array = 0.0,
) -> Array:
    r"""Gradient :math:`-s(-M)\, y x'` of the adversarial loss; a subgradient at its kinks.

    For arguments, see `linear_margin`.

    Returns:
        Gradients of shape (..., d).

    Example:
        >>> import numpy as np
        >>> linear_gradient(np.array([0.0, 0.0]), np.array([2.0, 1.0]), 1, p=2, eps=0.5).tolist()
        [-1.0, -0.5]

    References:
        formulas B.3.
    """
    margin = linear_margin(theta, x, y, p=p, eps=eps, bias=bias)
    attack = linear_attack(theta, x, y, p=p, eps=eps)
    return -(jax.nn.sigmoid(-margin) * y)[..., None] * attack


@in_float64_for_p
def linear_hessian(
    theta: Array,
    x: ArrayLike,
    y: ArrayLike,
    *,
    p: float,
    eps: float | Array,
    bias: float | Array = 0.0,
) -> Array:
    r"""Hessian :math:`s(M)s(-M) v v^T + s(-M) \epsilon N`, with :math:`v = y x'`.

    The first term is the Hessian A at the frozen attack, the second the motion of the attack,
    :math:`B^T D`. N is the Hessian of the dual norm: :math:`(I - uu^T)/\|\theta\|` for p = 2, 0
    for p = 1 and inf.

    For arguments, see `linear_margin`.

    Returns:
        Hessians of shape (..., d, d). Inside ``jax.jit``, NaN where undefined.

    Raises:
        ValueError: undefined at theta (see `linear_regularity`).

    Example:
        >>> import numpy as np
        >>> linear_hessian(np.array([1.0, 0.0]), np.zeros(2), 1, p=2, eps=0.0).tolist()
        [[0.0, 0.0], [0.0, 0.0]]

    References:
        formulas B.3.
    """
    margin = linear_margin(theta, x, y, p=p, eps=eps, bias=bias)[..., None, None]
    attack = linear_attack(theta, x, y, p=p, eps=eps)
    # y^2 = 1: the outer product of v is that of x'.
    frozen = attack[..., :, None] * attack[..., None, :]
    s, shape = jax.nn.sigmoid, frozen.shape
    motion = jnp.broadcast_to(eps * _dual_hessian(theta, dual_exponent(p)), shape)
    hessian = s(margin) * s(-margin) * frozen + s(-margin) * motion
    return _only_where_regular(theta, p, hessian, "Hessian")


@in_float64_for_p
def linear_attack_jacobian(
    theta: ArrayLike, y: ArrayLike, *, p: float, eps: float | Array
) -> Array:
    r"""Jacobian :math:`D = -y\epsilon N` of the attack with respect to theta.

    For p = 2, :math:`D = -(y\epsilon/\|\theta\|)(I - \theta\theta^T/\|\theta\|^2)`: eigenvalue 0
    along theta, :math:`-y\epsilon/\|\theta\|` across it.

    Args:
        theta: parameters of shape (d,).
        y: one label, -1 or +1.
        p: exponent of the norm, in [1, inf].
        eps: radius.

    Returns:
        D of shape (d, d). Inside ``jax.jit``, NaN where undefined.

    Raises:
        ValueError: undefined at theta (see `linear_regularity`).

    Example:
        >>> import numpy as np
        >>> (linear_attack_jacobian(np.array([2.0, 0.0]), 1, p=2, eps=0.5) + 0.0).tolist()
        [[0.0, 0.0], [0.0, -0.25]]

    References:
        formulas B.4, B.8.
    """
    theta, _, y = check_example(theta, jnp.zeros_like(jnp.asarray(theta, float)), y, eps)
    jacobian = -y * eps * _dual_hessian(theta, dual_exponent(p))
    return _only_where_regular(theta, p, jacobian, "attack Jacobian")


@in_float64
def linear_spectrum(theta: ArrayLike, x: ArrayLike, y: ArrayLike, *, eps: float | Array) -> Array:
    r"""Eigenvalues of the Hessian for p = 2, in closed form, ascending.

    With :math:`c = s(M)s(-M)`, :math:`k = \epsilon s(-M)/\|\theta\|` and :math:`v = y x'` split
    into its component :math:`v_u` along theta and the length :math:`v_t` across it: k with
    multiplicity d - 2 and the two eigenvalues of
    :math:`[[c v_u^2, c v_u v_t], [c v_u v_t, c v_t^2 + k]]`; for d = 1 only :math:`c v_u^2`.

    Args:
        theta: parameters of shape (d,), not 0.
        x: one example of shape (d,).
        y: one label, -1 or +1.
        eps: radius.

    Returns:
        Eigenvalues of shape (d,).

    Raises:
        ValueError: theta is 0.

    Example:
        >>> import numpy as np
        >>> bool((linear_spectrum(np.ones(5), np.arange(5.0), -1, eps=0.1) > -1e-15).all())
        True

    References:
        formulas B.3.
    """
    theta, x, y = check_example(theta, x, y, eps)
    size = theta.shape[0]
    margin = linear_margin(theta, x, y, p=2, eps=eps)
    v = y * linear_attack(theta, x, y, p=2, eps=eps)
    u = _dual_gradient(theta, 2.0)
    along = u @ v
    across = jnp.linalg.norm(v - along * u)
    c = jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin)
    k = eps * jax.nn.sigmoid(-margin) / dual_norm(theta, 2.0)
    if size == 1:
        values = (c * along**2)[None]
    else:
        off = c * along * across
        pair = jnp.array([[c * along**2, off], [off, c * across**2 + k]])
        values = jnp.sort(jnp.concatenate([jnp.linalg.eigvalsh(pair), jnp.full(size - 2, k)]))
    return _only_where_regular(theta, 2.0, values, "Hessian")
