r"""Losses of classifiers, one number an example.

Every function maps logits of shape (B, K) and labels of shape (B,) to losses of shape (B,);
reductions happen once, at the call site. Attacks *maximise* all of these: each grows as the
example moves towards misclassification.

Symbols: :math:`z` logits, :math:`y` label, :math:`z_{(1)} \ge z_{(2)} \ge \dots` sorted logits.

Example:
    >>> import jax.numpy as jnp
    >>> from jaxadv import losses
    >>> logits = jnp.array([[2.0, 0.0, -1.0, 0.5]])
    >>> losses.margin(logits, jnp.array([0])).tolist()
    [-1.5]
"""

import jax
import jax.numpy as jnp
import optax

from ._types import Array

_TINY = 1e-12  # the floor of the DLR denominators in the published definition


def _select(logits: Array, labels: Array) -> Array:
    return jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


def cross_entropy(logits: Array, labels: Array) -> Array:
    r"""Cross-entropy :math:`-\log \mathrm{softmax}(z)_y`, in nats.

    Args:
        logits: of shape (B, K).
        labels: class indices of shape (B,).

    Returns:
        Losses of shape (B,).

    Example:
        >>> round(float(cross_entropy(jnp.zeros((1, 10)), jnp.array([3]))[0]), 4)
        2.3026
    """
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


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


def dlr(logits: Array, labels: Array) -> Array:
    r"""Difference of logits ratio :math:`-(z_y - z_o) / (z_{(1)} - z_{(3)} + 10^{-12})`.

    :math:`o` is the most likely class other than :math:`y`. Invariant to shifts and positive
    scalings of the logits. Where :math:`y` has the third largest logit the loss is exactly 1 with
    zero gradient, as in the published definition.

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
    return -(_select(logits, labels) - other) / (top[:, 0] - top[:, 2] + _TINY)


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
    scale = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + _TINY
    return -(_select(logits, labels) - _select(logits, targets)) / scale


def kl_divergence(logits: Array, other_logits: Array) -> Array:
    r"""Divergence :math:`\mathrm{KL}(\mathrm{softmax}(z) \,\|\, \mathrm{softmax}(z'))`, in nats.

    Gradients flow through both arguments, as TRADES needs.

    Args:
        logits: :math:`z` of shape (B, K), for TRADES those of the clean images.
        other_logits: :math:`z'` of shape (B, K), for TRADES those of the adversarial images.

    Returns:
        Divergences of shape (B,).

    Example:
        >>> kl_divergence(jnp.ones((1, 3)), jnp.zeros((1, 3))).tolist()
        [0.0]
    """
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other_logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1)


def _check_classes(name: str, logits: Array, minimum: int) -> None:
    if logits.ndim != 2 or logits.shape[1] < minimum:
        raise ValueError(
            f"logits has shape {logits.shape}, but {name} needs (B, K) with K >= {minimum}; "
            "with fewer classes use cross_entropy or margin"
        )
