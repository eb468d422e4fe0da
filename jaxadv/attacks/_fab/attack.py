r"""FAB: the fast adaptive boundary attack, which minimizes the norm of the perturbation.

Each step linearizes the decision boundary at :math:`x_k`, projects both :math:`x_k` and the clean
image x onto it inside the box, and moves to a convex combination of the two (overshot by eta),

.. math::
    x_{k+1} = \mathrm{clip}\big((1-\alpha)(x_k + \eta\,\delta_k) + \alpha\,(x + \eta\,\delta)\big)

with :math:`\alpha = \min(\|\delta_k\| / (\|\delta_k\| + \|\delta\|), \alpha_{max})`.
A misclassified iterate is kept if it is the nearest so far, and pulled back by beta.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxadv.attacks import fab
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 2 - x.sum((1, 2, 3))], 1)
    >>> images, labels = jnp.full((1, 2, 2, 1), 0.5).at[0, 0, 0].set(0.7), jnp.array([0])
    >>> result = fab(jax.random.key(0), logits_fn, images, labels, norm="linf", eps=0.1)
    >>> round(float(result.norms[0]), 2)  # the boundary is 1.2 / 4 away, at sum 1
    0.3

References:
    Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
    2020, and the code of AutoAttack, which has no final search.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...checks import check_count
from ...types import Array, Key, LogitsFn, Norm, Radius
from .. import _model
from .._driver import attack
from .._kernel import Outcome
from .kernel import FAB


class FabResult(NamedTuple):
    """The result of FAB, one row per image.

    Attributes:
        images: the adversarial image if there is one within the radius, else the clean image.
        success: whether there is one.
        best_images: the misclassified image of the smallest norm, within the radius or not; the
            clean image if none was found or where it is misclassified itself.
        norms: the norm of that perturbation; infinity if none was found, 0 where the clean
            image is misclassified.
        broken_at: number of the first step, over all runs, that ended within the radius; -1: none.
        forward: number of forward passes of the image.
        backward: number of backward passes of the image.
    """

    images: Array
    success: Array
    best_images: Array
    norms: Array
    broken_at: Array
    forward: Array
    backward: Array


def fab(
    key: Key,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: Norm,
    eps: Radius,
    num_steps: int = 100,
    num_restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    early_stop: bool = False,
    noise: Array | None = None,
    indices: Array | None = None,
) -> FabResult:
    r"""Untargeted FAB: every step uses the boundary that is nearest to first order.

    Costs K backward passes per step. The first run starts at the clean image, the others at random
    points at half the radius; later runs skip images broken within the radius. Unlike the reference
    code, gradients below 1e-4 are scaled up, together with the value of the linearization: it would
    ignore entries below 1e-8.

    Args:
        key: typed PRNG key of the random starts; image i draws from ``fold_in(key, indices[i])``.
        logits_fn: maps images of shape (B, H, W, C) to logits of shape (B, K).
        images: clean images x of shape (B, H, W, C), floats in [0, 1].
        labels: integers of shape (B,).
        norm: "linf", "l2" or "l1".
        eps: radius within which an image counts as broken (exactly: norm <= eps). The search itself
            does not depend on it: ``best_images`` and ``norms`` are the results of the
            minimization.
        num_steps: steps per run.
        num_restarts: runs.
        alpha_max: the largest weight of the projection of the clean image.
        eta: overshoot.
        beta: how far a misclassified iterate is pulled back.
        early_stop: stop an image at its first misclassified point within the radius.
        noise: for the random starts, of shape (num_restarts, B, H, W, C); entry 0 is unused.
        indices: integers of shape (B,), default 0 to B - 1: the index of each image in the data
            set.

    Returns:
        A :class:`FabResult`.

    Raises:
        ValueError: on images outside [0, 1] or of a wrong dtype or shape, labels out of range, an
            unknown norm, or counts below 1.

    Example:
        >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 2 - x.sum((1, 2, 3))], 1)
        >>> images, labels = jnp.full((1, 2, 2, 1), 0.55), jnp.array([0])
        >>> result = fab(jax.random.key(0), logits_fn, images, labels, norm="linf", eps=0.4)
        >>> bool(result.success[0])
        True

    References:
        Croce and Hein 2020, algorithm 1.
    """
    return _run(
        key, logits_fn, images, labels, norm=norm, eps=eps, noise=noise, indices=indices,
        num_steps=num_steps, num_restarts=num_restarts, num_targets=0, early_stop=early_stop,
        alpha_max=alpha_max, eta=eta, beta=beta,
    )  # fmt: skip


def fab_targeted(
    key: Key,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: Norm,
    eps: Radius,
    num_steps: int = 100,
    num_targets: int = 9,
    num_restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    early_stop: bool = False,
    noise: Array | None = None,
    indices: Array | None = None,
) -> FabResult:
    r"""FAB toward the classes with the 2nd, 3rd, ... largest clean logit, one run each.

    Only the boundary is targeted: any misclassification counts as success. Takes one backward pass
    per step instead of K.

    Args:
        key: as in :func:`fab`, like every argument not listed here.
        logits_fn: as in :func:`fab`.
        images: as in :func:`fab`.
        labels: as in :func:`fab`.
        norm: as in :func:`fab`.
        eps: as in :func:`fab`.
        num_steps: as in :func:`fab`.
        num_targets: the number of target classes; K - 1 with fewer classes.
        num_restarts: runs for each target; the first starts at the clean image.
        alpha_max: as in :func:`fab`.
        eta: as in :func:`fab`.
        beta: as in :func:`fab`.
        early_stop: as in :func:`fab`.
        noise: of shape (num_targets * num_restarts, B, H, W, C).
        indices: as in :func:`fab`.

    Returns:
        A :class:`FabResult`.

    Raises:
        ValueError: see :func:`fab`.

    Example:
        >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 2 - x.sum((1, 2, 3))], 1)
        >>> images, labels = jnp.full((1, 2, 2, 1), 0.55), jnp.array([0])
        >>> result = fab_targeted(jax.random.key(0), logits_fn, images, labels,
        ...                       norm="linf", eps=0.4, num_targets=1)
        >>> bool(result.success[0])
        True

    References:
        Croce and Hein, "Reliable evaluation of adversarial robustness", 2020, appendix.
    """
    check_count("num_targets", num_targets, 1)
    return _run(
        key, logits_fn, images, labels, norm=norm, eps=eps, noise=noise, indices=indices,
        num_steps=num_steps, num_restarts=num_restarts, num_targets=num_targets,
        early_stop=early_stop, alpha_max=alpha_max, eta=eta, beta=beta,
    )  # fmt: skip


def _run(
    key: Key,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: Norm,
    eps: Radius,
    noise: Array | None,
    indices: Array | None,
    **options: Any,
) -> FabResult:
    check_count("num_steps", options["num_steps"], 1)
    check_count("num_restarts", options["num_restarts"], 1)
    given = _model.prepare(key, logits_fn, images, labels, norm=norm, eps=eps, indices=indices)
    options["num_targets"] = min(options["num_targets"], given.num_classes - 1)
    kernel = FAB(**options)
    noise = _model.noise_on_device(noise, kernel.num_runs, images)
    found = attack(given, noise, kernel=kernel, norm=norm, best=True)
    return _result(found.outcome, found.correct)


@jax.jit
def _result(outcome: Outcome, correct: Array) -> FabResult:
    return FabResult(
        images=outcome.images,
        success=outcome.success,
        best_images=outcome.best_images,
        norms=jnp.where(correct, -outcome.scores, 0),
        broken_at=outcome.broken_at,
        forward=outcome.forward,
        backward=outcome.backward,
    )
