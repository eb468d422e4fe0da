r"""APGD: projected gradient ascent with an adaptive step size, untargeted and targeted.

With P the projection of the norm, :math:`\eta` the step size of the image and m = 0.75 (1 in the
first step),

.. math::
    s = P(x_k + \eta\,d(\nabla \ell(x_k))), \qquad
    x_{k+1} = P\big(x_k + m (s - x_k) + (1 - m)(x_k - x_{k-1})\big)

d is the sign (Linf) or the normalized gradient (L2). At checkpoints :math:`\eta` is halved, and the
image returns to its best point, if the loss grew in at most a fraction rho of the steps or the best
loss has stalled. L1 takes sparse steps without momentum and projects exactly onto the intersection
of ball and box.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxadv.attacks import apgd
    >>> weights = jax.random.normal(jax.random.key(0), (16, 4))
    >>> logits_fn = lambda x: x.reshape(x.shape[0], -1) @ weights
    >>> images = jnp.full((2, 4, 4, 1), 0.5)
    >>> labels = logits_fn(images).argmax(1).astype("int32")
    >>> result = apgd(jax.random.key(1), logits_fn, images, labels, norm="linf", eps=0.2)
    >>> result.success.tolist()
    [True, True]

References:
    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", 2020 (Linf, L2); "Mind the box: l1-APGD", 2021 (L1); and the code
    they published, whose behavior is the default where it differs from the papers.
"""

import dataclasses
from typing import NamedTuple

from ...checks import check_choice, check_count
from ...types import Array, Key, LogitsFn, Norm, Radius
from .. import _model
from .._driver import Stream, attack, logits_of
from .kernel import APGD
from .losses import LOSSES, MIN_CLASSES, TARGETED_LOSSES
from .state import Rule, Trace


class ApgdResult(NamedTuple):
    """The result of APGD, one row per image.

    Attributes:
        images: the adversarial image if there is one, else the clean image (with ``best_loss``
            the image of the largest loss).
        success: whether ``images`` is misclassified.
        best_images: the point with the largest loss in the last run of the image.
        best_losses: its loss.
        robust: whether no evaluated point of any run was misclassified.
        broken_at: number of the evaluation, over all runs, that was first misclassified; -1: none.
        forward: number of forward passes of the image.
        backward: number of backward passes of the image.
        zero_gradients: how many of those gradients were exactly 0.
        trace: with ``trace=True`` everything that happened, else None.
    """

    images: Array
    success: Array
    best_images: Array
    best_losses: Array
    robust: Array
    broken_at: Array
    forward: Array
    backward: Array
    zero_gradients: Array
    trace: Trace | None


def apgd(
    key: Key,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: Norm,
    eps: Radius,
    num_steps: int = 100,
    num_restarts: int = 1,
    loss: str = "ce",
    rho: float = 0.75,
    eot: int = 1,
    rule: Rule = "repo",
    three_radii: bool = False,
    best_loss: bool = False,
    early_stop: bool = False,
    randomized: bool = False,
    l1_exact_zeros: bool = True,
    noise: Array | None = None,
    start: Array | None = None,
    trace: bool = False,
    indices: Array | None = None,
) -> ApgdResult:
    r"""Untargeted APGD; any misclassified evaluated point counts as success, including the start.

    Follows the reference code, even where it differs from the paper: checkpoints from truncated
    recursions, the first loss compared with 0 instead of :math:`\ell(x_0)`, "at most" instead of
    "fewer than" rho k increases, momentum kept when returning to the best point. It deviates in its
    random numbers (one key per image instead of one stream per batch), for L1 in that coordinates
    projected back to 0 equal the image's exactly, and for L2 in that gradients below 1e-4 are
    scaled up before the division by their norm plus 1e-12, which would shorten tiny ones.

    Args:
        key: typed PRNG key. Image i draws from ``fold_in(fold_in(key, indices[i]), run)``.
        logits_fn: maps images of shape (B, H, W, C) to logits of shape (B, K).
        images: clean images x of shape (B, H, W, C), floats in [0, 1].
        labels: integers of shape (B,).
        norm: "linf", "l2" or "l1".
        eps: radius, in the units of the images.
        num_steps: N, >= 1; costs N + 1 evaluations.
        num_restarts: independent runs; later runs skip broken images.
        loss: "ce" (cross-entropy), "dlr" (K >= 3) or "margin".
        rho: the fraction of increases below which the step is halved.
        eot: average gradients of a randomized model over this many draws; losses and predictions
        come from the last one.
        rule: "repo", or "paper" for the checkpoints, the strict comparison and the baseline
            :math:`\ell(x_0)` of the paper.
        three_radii: L1: 0.3 N steps in the ball of radius 3 eps, 0.3 N in that of radius 2 eps, the
        rest in that of radius eps, each from the previous best point.
        best_loss: run every restart on every image and return the point of the largest loss.
        early_stop: stop an image at its first misclassified point. ``success`` is the same, the
            adversarial image is the first instead of the latest.
        randomized: whether ``logits_fn`` takes a key as its second argument.
        l1_exact_zeros: False reproduces the rounding of the reference, where a coordinate that
            moves and is projected back may differ from that of the image in the last bit.
        noise: start noise instead of random draws, of shape (num_restarts, B, H, W, C), as
            described in :func:`jaxadv.attacks._apgd.kernel.start_points`.
        start: start images for every run, clipped to the box, instead of noise.
        trace: return a :class:`Trace`; needs ``num_restarts=1``.
        indices: integers of shape (B,), default 0 to B - 1: the index of each image in the data
            set.

    Returns:
        An :class:`ApgdResult`.

    Raises:
        ValueError: on images outside [0, 1] or of a wrong dtype or shape, labels out of range, too
            few classes for the loss, an unknown norm, loss or rule, or counts below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 2 - x.sum((1, 2, 3))], 1)
        >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
        >>> result = apgd(jax.random.key(0), logits_fn, x, y, norm="l2", eps=0.6, num_steps=5)
        >>> bool(result.success[0]), int(result.forward[0])
        (True, 7)

    References:
        Croce and Hein 2020, algorithm 1; Croce and Hein 2021, algorithm 1.
    """
    check_choice("loss", loss, LOSSES)
    kernel = APGD(
        num_steps=num_steps, num_restarts=num_restarts, early_stop=early_stop, loss=loss, rho=rho,
        rule=rule, eot=eot, three_radii=three_radii, l1_exact_zeros=l1_exact_zeros,
    )  # fmt: skip
    return _run(
        key, logits_fn, images, labels, kernel, norm=norm, eps=eps, noise=noise, start=start,
        indices=indices, randomized=randomized, trace=trace, best_loss=best_loss,
    )  # fmt: skip


def apgd_targeted(
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
    loss: str = "dlr-targeted",
    rho: float = 0.75,
    eot: int = 1,
    rule: Rule = "repo",
    three_radii: bool = False,
    early_stop: bool = False,
    randomized: bool = False,
    l1_exact_zeros: bool = True,
    noise: Array | None = None,
    start: Array | None = None,
    trace: bool = False,
    indices: Array | None = None,
) -> ApgdResult:
    r"""APGD toward the classes with the 2nd, 3rd, ... largest clean logits, one run each.

    Only the loss is targeted: any misclassification counts as success. With fewer than
    ``num_targets + 1`` classes the reference fails; here there are K - 1 targets.

    Args:
        key: as in :func:`apgd`, like every argument not listed here.
        logits_fn: as in :func:`apgd`.
        images: as in :func:`apgd`.
        labels: as in :func:`apgd`.
        norm: as in :func:`apgd`.
        eps: as in :func:`apgd`.
        num_steps: as in :func:`apgd`.
        num_targets: the number of target classes.
        num_restarts: runs for each target.
        loss: "dlr-targeted" (K >= 4) or "ce-targeted" (minus the cross-entropy of the target).
        rho: as in :func:`apgd`.
        eot: as in :func:`apgd`.
        rule: as in :func:`apgd`.
        three_radii: as in :func:`apgd`.
        early_stop: as in :func:`apgd`.
        randomized: as in :func:`apgd`.
        l1_exact_zeros: as in :func:`apgd`.
        noise: of shape (num_targets * num_restarts, B, H, W, C), the runs of one target together.
        start: as in :func:`apgd`.
        trace: as in :func:`apgd`; needs one target and one restart.
        indices: as in :func:`apgd`.

    Returns:
        An :class:`ApgdResult`.

    Raises:
        ValueError: see :func:`apgd`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> logits_fn = lambda x: x.reshape(x.shape[0], -1)
        >>> x = jnp.array([0.9, 0.5, 0.4, 0.1]).reshape(1, 2, 2, 1)
        >>> result = apgd_targeted(jax.random.key(0), logits_fn, x, jnp.array([0]),
        ...                        norm="linf", eps=0.25, num_steps=5)
        >>> bool(result.success[0]), int(result.images.argmax())
        (True, 1)

    References:
        Croce and Hein 2020, section 4 and the published code.
    """
    check_choice("loss", loss, TARGETED_LOSSES)
    check_count("num_targets", num_targets, 1)
    kernel = APGD(
        num_steps=num_steps, num_restarts=num_restarts, num_targets=num_targets,
        early_stop=early_stop, loss=loss, rho=rho, rule=rule, eot=eot, three_radii=three_radii,
        l1_exact_zeros=l1_exact_zeros,
    )  # fmt: skip
    return _run(
        key, logits_fn, images, labels, kernel, norm=norm, eps=eps, noise=noise, start=start,
        indices=indices, randomized=randomized, trace=trace,
    )  # fmt: skip


def _run(
    key: Key,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    kernel: APGD,
    *,
    norm: Norm,
    eps: Radius,
    noise: Array | None,
    start: Array | None,
    indices: Array | None,
    randomized: bool,
    trace: bool,
    best_loss: bool = False,
) -> ApgdResult:
    """Checks the arguments and runs the kernel."""
    check_count("num_steps", kernel.num_steps, 3 if kernel.three_radii else 1)
    check_count("num_restarts", kernel.num_restarts, 1)
    check_count("eot", kernel.eot, 1)
    check_choice("rule", kernel.rule, ("repo", "paper"))
    if kernel.three_radii and norm != "l1":
        raise ValueError(f"three_radii=True applies only to norm='l1', not {norm!r}; leave it out")
    given = _model.prepare(
        key, logits_fn, images, labels, norm=norm, eps=eps, indices=indices,
        randomized=randomized, per_image=True,
    )  # fmt: skip
    if given.num_classes < MIN_CLASSES[kernel.loss]:
        raise ValueError(
            f"loss={kernel.loss!r} needs at least {MIN_CLASSES[kernel.loss]} classes "
            f"and the model has {given.num_classes}; "
            "use loss='ce' or loss='margin' (untargeted) or loss='ce-targeted'"
        )
    targets = min(kernel.num_targets, given.num_classes - 1)
    kernel = dataclasses.replace(kernel, num_targets=targets, explicit=start is not None)
    noise = _model.noise_on_device(noise, kernel.num_runs, images)
    if start is not None:
        if start.shape != images.shape:
            raise ValueError(f"start has shape {start.shape}; expected {images.shape}")
        start = _model.on_device(start)
    if trace and (kernel.num_runs > 1 or kernel.three_radii):
        raise ValueError(f"trace=True records one run, not {kernel.num_runs}; use one restart")
    found = attack(
        given, (noise, start), kernel=kernel, norm=norm, randomized=randomized,
        trace=trace, best=best_loss, every=best_loss,
    )  # fmt: skip
    outcome = found.outcome
    images, success, forward = outcome.images, outcome.success, outcome.forward
    if best_loss:
        images = outcome.best_images
        chunk = images[None], given.indices[None]  # of one block
        stream = (Stream.JUDGE, 0)
        [logits] = logits_of(
            given.model, given.key, stream, *chunk, randomized=randomized, mesh=None
        )
        success, forward = ~_model.is_correct(logits, given.labels), forward + 1
    return ApgdResult(
        images=images,
        success=success,
        best_images=outcome.best_images,
        best_losses=outcome.scores,
        robust=~outcome.success,
        broken_at=outcome.broken_at,
        forward=forward,
        backward=outcome.backward,
        zero_gradients=outcome.zero_gradients,
        trace=found.events,
    )
