r"""Losses of classifiers, one number per example.

Every function maps logits of shape (B, K) and labels of shape (B,) to losses of shape (B,);
reductions happen once, at the call site. Attacks *maximize* all of these: each grows as the
example moves toward misclassification.

Symbols: :math:`z` logits, :math:`y` label, :math:`z_{(1)} \ge z_{(2)} \ge \dots` sorted logits.

Logits may be as large as their dtype allows. A logit of -inf excludes its class; losses and
gradients are then their limits. Logits of +inf or NaN are invalid, and the loss of such an example
may be NaN.

Example:
    >>> import jax.numpy as jnp
    >>> from jaxadv import losses
    >>> logits = jnp.array([[2.0, 0.0, -1.0, 0.5]])
    >>> losses.margin(logits, jnp.array([0])).tolist()
    [-1.5]
"""

import jax
import jax.numpy as jnp

from .types import Array

_TINY = 1e-12  # the floor of the DLR denominators in the published definition


def _select(logits: Array, labels: Array) -> Array:
    return jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


def _shifted(logits: Array) -> Array:
    """Logits minus the largest: exactly 0 there and at most 0 elsewhere.

    A compiler may fuse the subtraction with a multiplication before it and skip the rounding of the
    product. From logits of 1e10 the difference is then off by hundreds: exp overflows, or is 0 for
    every class.
    """
    top = jnp.argmax(logits, axis=1, keepdims=True)
    differences = logits - jnp.take_along_axis(logits, top, axis=1)
    classes = jax.lax.broadcasted_iota(top.dtype, logits.shape, 1)
    return jnp.where((classes == top) | (differences > 0), 0, differences)


@jax.custom_jvp
def _logsumexp(logits: Array) -> Array:
    return jnp.log(jnp.exp(_shifted(logits)).sum(axis=1)) + logits.max(axis=1)


@_logsumexp.defjvp
def _logsumexp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (logits,), (tangent,) = primals, tangents
    weights = jnp.exp(_shifted(logits))
    return _logsumexp(logits), (weights * tangent).sum(axis=1) / weights.sum(axis=1)


@jax.jit
def log_softmax(logits: Array) -> Array:
    """Logarithm of the softmax over classes; finite for finite logits of any size, also compiled.

    Args:
        logits: of shape (B, K).

    Returns:
        Log-probabilities of shape (B, K); -inf for logits of -inf.

    Example:
        >>> log_softmax(jnp.array([[1e10, 0.0, -jnp.inf]])).tolist()
        [[0.0, -10000000000.0, -inf]]
    """
    return _log_softmax(logits)


@jax.custom_jvp
def _log_softmax(logits: Array) -> Array:
    shifted = _shifted(logits)
    return shifted - jnp.log(jnp.exp(shifted).sum(axis=1, keepdims=True))


@_log_softmax.defjvp
def _log_softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (logits,), (tangent,) = primals, tangents
    weights = jnp.exp(_shifted(logits))
    mean = (weights * tangent).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    return _log_softmax(logits), tangent - mean


@jax.jit
def cross_entropy(logits: Array, labels: Array) -> Array:
    r"""Cross-entropy :math:`-\log \mathrm{softmax}(z)_y`, in nats.

    Where :math:`y` itself is excluded (-inf), the loss is +inf and the gradient finite.

    Args:
        logits: of shape (B, K).
        labels: class indices of shape (B,).

    Returns:
        Losses of shape (B,).

    Example:
        >>> round(float(cross_entropy(jnp.zeros((1, 10)), jnp.array([3]))[0]), 4)
        2.3026
    """
    return _logsumexp(logits) - _select(logits, labels)


@jax.jit
def margin(logits: Array, labels: Array) -> Array:
    r"""Margin :math:`\max_{j \ne y} z_j - z_y`, positive where the example is misclassified.

    Args:
        logits: of shape (B, K), K >= 2.
        labels: class indices of shape (B,).

    Returns:
        Losses of shape (B,).

    Example:
        >>> margin(jnp.array([[1.0, 3.0]]), jnp.array([0])).tolist()
        [2.0]
    """
    _check_classes("margin", logits, 2)
    true_class = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    others = jnp.where(true_class, -jnp.inf, logits)
    return others.max(axis=1) - _select(logits, labels)


@jax.jit
def dlr(logits: Array, labels: Array) -> Array:
    r"""Difference of logits ratio :math:`-(z_y - z_o) / (z_{(1)} - z_{(3)} + 10^{-12})`.

    :math:`o` is the most likely class other than :math:`y`. Invariant to shifts and positive
    scalings of the logits. Where :math:`y` has the third largest logit the loss is exactly 1 with
    zero gradient, as in the published definition. If the model excludes all but two classes, the
    loss is its limit with zero gradient: prefer `margin` for such models.

    Args:
        logits: of shape (B, K), K >= 3.
        labels: class indices of shape (B,).

    Returns:
        Losses of shape (B,).

    Raises:
        ValueError: if K < 3.

    Example:
        >>> dlr(jnp.array([[4.0, 2.0, 0.0]]), jnp.array([0])).tolist()
        [-0.5]

    References:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", 2020, section 4.
    """
    _check_classes("dlr", logits, 3)
    top, classes = jax.lax.top_k(logits, 3)
    other = jnp.where(classes[:, 0] == labels, top[:, 1], top[:, 0])
    return _ratio(other - _select(logits, labels), top[:, 0] - top[:, 2])


@jax.jit
def dlr_targeted(logits: Array, labels: Array, targets: Array) -> Array:
    r"""Targeted DLR :math:`-(z_y - z_t) / (z_{(1)} - (z_{(3)} + z_{(4)})/2 + 10^{-12})`.

    Args:
        logits: of shape (B, K), K >= 4.
        labels: class indices of shape (B,).
        targets: target classes :math:`t` of shape (B,).

    Returns:
        Losses of shape (B,).

    Raises:
        ValueError: if K < 4.

    Example:
        >>> dlr_targeted(jnp.array([[5.0, 3.0, 1.0, 1.0]]), jnp.array([0]), jnp.array([1])).tolist()
        [-0.5]

    References:
        Croce and Hein 2020, equation 7.
    """
    _check_classes("dlr_targeted", logits, 4)
    top, _ = jax.lax.top_k(logits, 4)
    scale = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3])
    return _ratio(_select(logits, targets) - _select(logits, labels), scale)


def _ratio(numerator: Array, scale: Array) -> Array:
    """The quotient, or its limit with zero gradient where a logit is -inf."""
    scale = scale + max(_TINY, float(jnp.finfo(scale.dtype).tiny))
    finite = jnp.isfinite(numerator) & jnp.isfinite(scale)
    quotient = jnp.where(finite, numerator, 0) / jnp.where(finite, scale, 1)
    shrinks = jnp.isinf(scale) & ~jnp.isnan(numerator)
    bounded = jnp.where(jnp.isinf(numerator), jnp.sign(numerator), 0)
    limit = jnp.where(shrinks, bounded, numerator)
    return jnp.where(finite, quotient, jax.lax.stop_gradient(limit))


@jax.jit
def kl_divergence(logits: Array, other_logits: Array) -> Array:
    r"""Divergence :math:`\mathrm{KL}(\mathrm{softmax}(z) \,\|\, \mathrm{softmax}(z'))`, in nats.

    Gradients flow through both arguments, as TRADES needs. A class that :math:`z` excludes (-inf)
    contributes 0; a class that only :math:`z'` excludes makes the divergence +inf.

    Args:
        logits: :math:`z` of shape (B, K), for TRADES those of the clean images.
        other_logits: :math:`z'` of shape (B, K), for TRADES those of the adversarial images.

    Returns:
        Divergences of shape (B,).

    Example:
        >>> kl_divergence(jnp.ones((1, 3)), jnp.zeros((1, 3))).tolist()
        [0.0]
    """
    log_p, log_q = log_softmax(logits), log_softmax(other_logits)
    possible = log_p > -jnp.inf
    # Masked before the subtraction: -inf - (-inf) is NaN, and so would be the gradient.
    difference = jnp.where(possible, log_p, 0) - jnp.where(possible, log_q, 0)
    return jnp.sum(jnp.exp(log_p) * difference, axis=1)


def _check_classes(name: str, logits: Array, minimum: int) -> None:
    if logits.ndim != 2 or logits.shape[1] < minimum:
        raise ValueError(
            f"logits has shape {logits.shape}, but {name} needs (B, K) with K >= {minimum}; "
            "with fewer classes use cross_entropy or margin"
        )
