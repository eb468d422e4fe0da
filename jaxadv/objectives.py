r"""Training objectives: how to attack a minibatch, and the loss to minimize on it.

An :class:`Objective` is a pair of pure functions. They are separate because some methods take
several gradients at the same adversarial images (adversarial weight perturbation), and because, by
Danskin's theorem, the gradient treats the attack as a constant:

.. math:: \nabla_\theta L_\epsilon(\theta) = \frac1N \sum_n \nabla_\theta\, l(x'_n, y_n, \theta),
    \qquad x'_n \approx \arg\max_{x' \in C(x_n)} l(x', y_n, \theta).

A model is passed as ``apply_fn(params, batch_stats, images, train) -> (logits, batch_stats)``;
``batch_stats`` is an empty dictionary for models without BatchNorm. On CPU its 2-D convolutions
are computed in the fast form of :func:`jaxadv.models.fast_convolutions`.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from . import balls, losses
from ._rewrite import fast_convolutions
from .attacks._pgd import pgd_stateful
from .checks import check_choice, check_count, check_eps, check_norm, check_step, is_concrete
from .keys import as_key
from .types import Array, Key, Norm, Params, PyTree

ApplyFn: TypeAlias = Callable[[Params, PyTree, Array, bool], tuple[Array, PyTree]]

# torch's BatchNorm momentum 0.1 is 0.9 in the convention used here: the weight of the old value.
BATCH_NORM_MOMENTUM = 0.9


class LossAux(NamedTuple):
    """Auxiliary outputs of a loss.

    Attributes:
        batch_stats: running statistics after the forward passes of the loss.
        logits: logits of shape (B, K) at the adversarial images.
    """

    batch_stats: PyTree
    logits: Array


class Objective(NamedTuple):
    """How a method attacks a minibatch, and its training loss.

    Attributes:
        perturb: ``(key, params, batch_stats, images, labels) -> (adversarial, batch_stats)``. With
            ``training.Program(sync_batch_norm=False)`` it gets some of a minibatch's images and
            ``indices``, their positions in it, from which to derive random numbers; with
            ``training.Program(attack_scale=...)`` it gets ``scale``, the factor of the radius and
            the step size.
        loss: ``(params, batch_stats, images, adversarial, labels) -> (scalar, LossAux)``, to be
            differentiated in ``params``.
    """

    perturb: Callable[..., tuple[Array, PyTree]]
    loss: Callable[[Params, PyTree, Array, Array, Array], tuple[Array, LossAux]]


def adversarial_cross_entropy(
    apply_fn: ApplyFn,
    *,
    norm: Norm = "linf",
    eps: float = 8 / 255,
    step_size: float = 2 / 255,
    num_steps: int = 10,
    attack_bn: str = "train",
    attack_updates_stats: bool = True,
    weights_move: bool = False,
) -> Objective:
    r"""Adversarial training (AT): mean cross-entropy at PGD adversarial images.

    .. math:: \frac1B \sum_i \mathrm{CE}(f_\theta(x'_i), y_i)

    BatchNorm. The AWP code attacks in train mode, and each of its forward passes moves the running
    statistics: ``num_steps`` passes of the attack, one more at the final images (it selects among
    restarts; training has one) and the pass of the loss. ``attack_bn="train"`` with
    ``attack_updates_stats=True`` does the same. The selection pass sees the same parameters and
    images as the loss's pass, so its effect on the statistics is computed without running it,
    unless adversarial weight perturbation evaluates the loss at other weights (``weights_move``).
    Not reproduced: that code attacks the first minibatch of every epoch but the first in eval mode,
    because it restores train mode after the attack.

    Args:
        apply_fn: the model, ``(params, batch_stats, images, train) -> (logits, batch_stats)``.
        norm: norm of the ball.
        eps: radius, images in [0, 1].
        step_size: PGD step.
        num_steps: PGD steps, from a random start; the last iterate is used.
        attack_bn: "train" (batch statistics) or "eval" (running statistics) during the attack.
        attack_updates_stats: whether the passes of a train-mode attack move the running statistics.
        weights_move: whether the loss is evaluated at parameters other than those attacked, as
            under :func:`jaxadv.optim.awp_value_and_grad`.

    Returns:
        The objective.

    Raises:
        ValueError: if the norm or mode is unknown, or a radius, step or count is invalid.

    Example:
        >>> import jax.numpy as jnp
        >>> def apply_fn(params, batch_stats, images, train):
        ...     return images.reshape(images.shape[0], -1) @ params, batch_stats
        >>> objective = adversarial_cross_entropy(apply_fn, eps=0.1, step_size=0.05)
        >>> images, labels = jnp.full((2, 2, 2, 1), 0.5), jnp.array([0, 1])
        >>> params = jnp.eye(4)[:, :3]
        >>> adversarial, _ = objective.perturb(jax.random.key(0), params, {}, images, labels)
        >>> value, aux = objective.loss(params, {}, images, adversarial, labels)
        >>> value.shape, aux.logits.shape
        ((), (2, 3))

    References:
        Madry et al. 2018; Kanai et al., equation 1; Wu et al. 2020 (AWP) for the BatchNorm modes.
    """
    check_norm(norm)
    check_eps(eps, norm)
    check_step(step_size)
    check_count("num_steps", num_steps, 0)
    check_choice("attack_bn", attack_bn, ("train", "eval"))
    apply_fn = fast_convolutions(apply_fn)
    moves_stats = attack_bn == "train" and attack_updates_stats

    def perturb(
        key: Key,
        params: Params,
        batch_stats: PyTree,
        images: Array,
        labels: Array,
        indices: Array | None = None,
        scale: float | Array = 1.0,
    ) -> tuple[Array, PyTree]:
        def forward(points: Array, stats: PyTree) -> tuple[Array, PyTree]:
            logits, new_stats = apply_fn(params, stats, points, attack_bn == "train")
            return logits, new_stats if moves_stats else stats

        adversarial, batch_stats = pgd_stateful(
            key,
            forward,
            batch_stats,
            images,
            labels,
            indices=jnp.arange(images.shape[0]) if indices is None else indices,
            eps=eps * scale,
            step_size=step_size * scale,
            norm=norm,
            num_steps=num_steps,
        )
        if moves_stats and weights_move and batch_stats:
            batch_stats = jax.lax.stop_gradient(forward(adversarial, batch_stats)[1])
        return adversarial, batch_stats

    def loss(
        params: Params, batch_stats: PyTree, images: Array, adversarial: Array, labels: Array
    ) -> tuple[Array, LossAux]:
        del images
        logits, new_stats = apply_fn(params, batch_stats, adversarial, True)
        if moves_stats and not weights_move:
            new_stats = jax.tree.map(_moved_twice, batch_stats, new_stats)
        return losses.cross_entropy(logits, labels).mean(), LossAux(new_stats, logits)

    return Objective(perturb, loss)


def _moved_again(old: Array, once: Array, now: Array) -> Array:
    """The running statistic ``now`` after another pass that has moved ``old`` to ``once``."""
    return once + BATCH_NORM_MOMENTUM * (now - old)


def _moved_twice(old: Array, once: Array) -> Array:
    """The running statistic after a second pass over the batch."""
    return _moved_again(old, once, once)


def trades(
    apply_fn: ApplyFn,
    *,
    beta: float = 6.0,
    norm: Norm = "linf",
    eps: float = 0.031,
    step_size: float = 0.003,
    num_steps: int = 10,
    start_noise: float = 0.001,
    bn_order: str = "adversarial_first",
) -> Objective:
    r"""TRADES: cross-entropy at the clean images, and consistency with the adversarial ones.

    .. math:: \frac1B \sum_i \mathrm{CE}(f_\theta(x_i), y_i) + \beta_T\,
        \mathrm{KL}\big(\mathrm{softmax} f_\theta(x_i) \,\|\, \mathrm{softmax} f_\theta(x'_i)\big)

    Gradients flow through both arguments of the divergence. The attack maximizes it from
    :math:`x'_0 = x + 0.001\,\mathcal N(0, I)` (at x itself its gradient is zero), in eval mode,
    and leaves the running statistics alone. Each step follows the sign of the gradient and projects
    onto the ball and the box; for L2, it follows the normalized gradient and projects onto the box,
    then the ball. An example whose gradient vanishes stays where it is (the L2 branch of the
    reference would move it at random).

    The defaults are the reference function's and the paper's: ten steps of 0.003 reach the radius
    0.031 only thanks to the start noise. The command line of the AWP code passes
    ``eps=8 / 255, step_size=2 / 255``; for L2 the reference uses ``step_size=2 * eps / num_steps``.

    BatchNorm: three train-mode passes per step move the running statistics, at the adversarial
    images and twice at the clean ones. ``bn_order="adversarial_first"`` is the AWP code's order
    (adversarial, clean, clean), "clean_first" the original's (clean, adversarial, clean). The
    second clean pass equals the first: its effect on the statistics is computed. The loss does not
    depend on the order.

    Args:
        apply_fn: the model, ``(params, batch_stats, images, train) -> (logits, batch_stats)``.
        beta: :math:`\beta_T`; 0 is plain training on clean images.
        norm: "linf" or "l2".
        eps: radius, images in [0, 1].
        step_size: step size of the attack.
        num_steps: steps of the attack.
        start_noise: standard deviation of the start around the clean image.
        bn_order: "adversarial_first" or "clean_first".

    Returns:
        The objective; :attr:`LossAux.logits` are at the adversarial images.

    Raises:
        ValueError: if the norm is unsupported or a number is invalid.

    Example:
        >>> def apply_fn(params, batch_stats, images, train):
        ...     return images.reshape(images.shape[0], -1) @ params, batch_stats
        >>> objective = trades(apply_fn, eps=0.1, step_size=0.02)
        >>> images, labels = jnp.full((2, 2, 2, 1), 0.5), jnp.array([0, 1])
        >>> params = jnp.eye(4)[:, :3]
        >>> adversarial, _ = objective.perturb(jax.random.key(0), params, {}, images, labels)
        >>> value, aux = objective.loss(params, {}, images, adversarial, labels)
        >>> bool(value > losses.cross_entropy(jnp.full((2, 3), 0.5), labels).mean())
        True

    References:
        Zhang et al., "Theoretically principled trade-off between robustness and accuracy", 2019,
        and its code; Wu et al. 2020 (AWP), directory trades_AWP; Kanai et al., section 6.
    """
    check_choice("norm", norm, ("linf", "l2"))
    check_choice("bn_order", bn_order, ("adversarial_first", "clean_first"))
    check_eps(eps, norm)
    check_step(step_size)
    check_count("num_steps", num_steps, 0)
    for name, value in (("beta", beta), ("start_noise", start_noise)):
        if is_concrete(value) and not 0 <= float(value) < float("inf"):
            raise ValueError(f"{name}={value} must be a finite number >= 0")
    apply_fn = fast_convolutions(apply_fn)

    def perturb(
        key: Key,
        params: Params,
        batch_stats: PyTree,
        images: Array,
        labels: Array,
        indices: Array | None = None,
        scale: float | Array = 1.0,
    ) -> tuple[Array, PyTree]:
        del labels
        key = as_key(key)
        logits_fn = lambda points: apply_fn(params, batch_stats, points, False)[0]
        clean = logits_fn(images)
        gradient = jax.grad(lambda points: losses.kl_divergence(clean, logits_fn(points)).sum())

        def step(_: Array, points: Array) -> Array:
            move = balls.ascent_step(gradient(points), points, norm=norm, step_size=step_size * scale)
            return _into_ball_and_box(points + move, images, norm, eps * scale)

        indices = jnp.arange(images.shape[0]) if indices is None else indices
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
        noise = jax.vmap(lambda k: jax.random.normal(k, images.shape[1:], images.dtype))(keys)
        # As in the reference, the first gradient is taken before any clipping.
        points = jax.lax.fori_loop(0, num_steps, step, images + start_noise * noise)
        return jax.lax.stop_gradient((jnp.clip(points, 0.0, 1.0), batch_stats))

    def loss(
        params: Params, batch_stats: PyTree, images: Array, adversarial: Array, labels: Array
    ) -> tuple[Array, LossAux]:
        forward = lambda points, stats: apply_fn(params, stats, points, True)
        if bn_order == "adversarial_first":
            attacked, between = forward(adversarial, batch_stats)
            clean, moved = forward(images, between)
            new_stats = jax.tree.map(_moved_twice, between, moved)
        else:
            clean, moved = forward(images, batch_stats)
            attacked, between = forward(adversarial, moved)
            new_stats = jax.tree.map(_moved_again, batch_stats, moved, between)
        value = losses.cross_entropy(clean, labels) + beta * losses.kl_divergence(clean, attacked)
        return value.mean(), LossAux(new_stats, attacked)

    return Objective(perturb, loss)


def _into_ball_and_box(points: Array, images: Array, norm: str, eps: float) -> Array:
    if norm == "linf":
        return balls.project(points, images, norm="linf", eps=eps)
    # Box first, as in the reference: shrinking toward the image then stays in the box.
    deltas = jnp.clip(points, 0.0, 1.0) - images
    sizes = balls.norm_of(deltas, "l2")
    factors = jnp.where(sizes > eps, eps / jnp.where(sizes > 0, sizes, 1.0), 1.0)
    return images + deltas * factors.reshape(-1, *(1,) * (images.ndim - 1))
