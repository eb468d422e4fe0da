r"""Training objectives: how a minibatch is attacked, and the loss that is then minimised on it.

An :class:`Objective` is a pair of pure functions. They are kept apart because some methods take
several gradients at the same adversarial images (adversarial weight perturbation), and because by
Danskin's theorem the attack is a constant for the gradient:

.. math:: \nabla_\theta L_\epsilon(\theta) = \frac1N \sum_n \nabla_\theta\, l(x'_n, y_n, \theta),
    \qquad x'_n \approx \arg\max_{x' \in C(x_n)} l(x', y_n, \theta).

A model enters as ``apply_fn(params, batch_stats, images, train) -> (logits, batch_stats)``;
``batch_stats`` is an empty dictionary for models without BatchNorm.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax

from . import losses
from ._checks import check_choice, check_count, check_eps, check_norm, check_step
from ._types import Array, Key, Norm, Params, PyTree
from .attacks._pgd import pgd_stateful

ApplyFn: TypeAlias = Callable[[Params, PyTree, Array, bool], tuple[Array, PyTree]]

# torch's BatchNorm momentum 0.1 is 0.9 in the convention used here: the weight of the old value.
BATCH_NORM_MOMENTUM = 0.9


class LossAux(NamedTuple):
    """What a loss returns beside its value.

    Attributes:
        batch_stats: running statistics after the forward passes of the loss.
        logits: logits of shape (B, K) at the adversarial images.
    """

    batch_stats: PyTree
    logits: Array


class Objective(NamedTuple):
    """How a method attacks a minibatch, and what it minimises on it.

    Attributes:
        perturb: ``(key, params, batch_stats, images, labels) -> (adversarial, batch_stats)``.
        loss: ``(params, batch_stats, images, adversarial, labels) -> (scalar, LossAux)``, to be
            differentiated in ``params``.
    """

    perturb: Callable[[Key, Params, PyTree, Array, Array], tuple[Array, PyTree]]
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
) -> Objective:
    r"""Adversarial training (AT): mean cross-entropy at PGD adversarial images.

    .. math:: \frac1B \sum_i \mathrm{CE}(f_\theta(x'_i), y_i)

    BatchNorm. The AWP code attacks in train mode, and each of its forward passes moves the running
    statistics: ``num_steps`` passes of the attack, one more at the final images (it selects among
    restarts, of which training has one) and that of the loss. ``attack_bn="train"`` with
    ``attack_updates_stats=True`` does the same. The selection pass sees the same parameters and
    images as that of the loss, so its effect on the statistics is computed instead of run. Not
    reproduced: in that code the first minibatch of every epoch but the first is attacked in eval
    mode, because train mode is restored after the attack.

    Args:
        apply_fn: the model, ``(params, batch_stats, images, train) -> (logits, batch_stats)``.
        norm: norm of the ball.
        eps: radius, images in [0, 1].
        step_size: PGD step.
        num_steps: PGD steps, from a random start; the last iterate is used.
        attack_bn: "train" (batch statistics) or "eval" (running statistics) during the attack.
        attack_updates_stats: whether the passes of a train-mode attack move the running statistics.

    Returns:
        The objective.

    Raises:
        ValueError: on an unknown norm or mode, or a radius, step or number that makes no sense.

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
    moves_stats = attack_bn == "train" and attack_updates_stats

    def perturb(key, params, batch_stats, images, labels):
        def forward(points, stats):
            logits, new_stats = apply_fn(params, stats, points, attack_bn == "train")
            return logits, new_stats if moves_stats else stats

        indices = jax.numpy.arange(images.shape[0])
        return pgd_stateful(
            key,
            forward,
            batch_stats,
            images,
            labels,
            indices,
            None,
            eps,
            step_size,
            norm=norm,
            num_steps=num_steps,
        )

    def loss(params, batch_stats, images, adversarial, labels):
        del images
        logits, new_stats = apply_fn(params, batch_stats, adversarial, True)
        if moves_stats:
            new_stats = jax.tree.map(_moved_twice, batch_stats, new_stats)
        return losses.cross_entropy(logits, labels).mean(), LossAux(new_stats, logits)

    return Objective(perturb, loss)


def _moved_twice(old: Array, once: Array) -> Array:
    """The running statistic after a second pass over the batch that moved it from old to once."""
    return once + BATCH_NORM_MOMENTUM * (once - old)
