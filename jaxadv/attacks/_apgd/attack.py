r"""APGD: projected gradient ascent with a step size that adapts itself, untargeted and targeted.

With P the projection of the norm, :math:`\eta` the step size of the image and m = 0.75 (1 in the
first step),

.. math::
    s = P(x_k + \eta\,d(\nabla \ell(x_k))), \qquad
    x_{k+1} = P\big(x_k + m (s - x_k) + (1 - m)(x_k - x_{k-1})\big)

d is the sign (Linf) or the normalised gradient (L2). At checkpoints :math:`\eta` is halved, and the
image goes back to its best point, where the loss grew in at most a fraction rho of the steps or
the best loss has stalled. L1 takes sparse steps without momentum and projects exactly onto the
intersection of ball and box.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxadv.attacks._apgd import apgd
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
    they published, whose behaviour is the default where it differs from the papers.
"""

from .._checks import check_choice, check_count
from .._types import Array, Key, LogitsFn, Norm
from . import _apgd_run as runs
from ._apgd_parts import LOSSES, TARGETED_LOSSES
from ._apgd_restarts import ApgdResult, run_all


def apgd(
    key: Key,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: Norm,
    eps,
    num_steps: int = 100,
    num_restarts: int = 1,
    loss: str = "ce",
    rho: float = 0.75,
    eot: int = 1,
    rule: runs.Rule = "repo",
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
    r"""Untargeted APGD; success is any evaluated point that is misclassified, the start included.

    Follows the reference code, also where it differs from the paper: checkpoints from truncated
    recursions, the first loss compared with 0 instead of :math:`\ell(x_0)`, "at most" instead of
    "fewer than" rho k increases, momentum that survives the return to the best point. It deviates
    in its random numbers (one key an image instead of one stream a batch) and, for L1, in that
    coordinates which the projection returns to 0 are exactly those of the image.

    Args:
        key: typed PRNG key. Image i draws from ``fold_in(fold_in(key, indices[i]), run)``.
        logits_fn: from images of shape (B, H, W, C) to logits of shape (B, K).
        images: clean images x of shape (B, H, W, C), floats in [0, 1].
        labels: integers of shape (B,).
        norm: "linf", "l2" or "l1".
        eps: radius, in the units of the images.
        num_steps: N, >= 1; costs N + 1 evaluations.
        num_restarts: independent runs; an image that is broken is left out of later runs.
        loss: "ce" (cross-entropy), "dlr" (K >= 3) or "margin".
        rho: the fraction of increases below which the step is halved.
        eot: gradients of a randomised model are averaged over so many draws; losses and
            predictions are those of the last.
        rule: "repo", or "paper" for the checkpoints, the strict comparison and the baseline
            :math:`\ell(x_0)` of the paper.
        three_radii: L1: 0.3 N steps in the ball of radius 3 eps, 0.3 N in that of 2 eps, the rest
            in that of eps, each from the best point of the one before.
        best_loss: run every restart on every image and return the point of the largest loss.
        early_stop: stop an image at its first misclassified point. ``success`` is the same, the
            adversarial image is the first instead of the latest.
        randomized: whether ``logits_fn`` takes a key as its second argument.
        l1_exact_zeros: False reproduces the rounding of the reference, where a coordinate that
            moves and is projected back may differ from that of the image in the last bit.
        noise: start noise instead of random draws, of shape (num_restarts, B, H, W, C), as
            described in :func:`jaxadv.attacks._apgd_run.start_points`.
        start: start images for every run, clipped to the box, instead of noise.
        trace: return a :class:`Trace`; needs ``num_restarts=1``.
        indices: integers of shape (B,), default 0 to B - 1: the place of each image in the data
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
    check_count("num_restarts", num_restarts, 1)
    if three_radii and norm != "l1":
        raise ValueError(f"three_radii=True is for norm='l1', not {norm!r}; leave it out")
    return run_all(
        key,
        logits_fn,
        images,
        labels,
        eps=eps,
        noise=noise,
        start=start,
        indices=indices,
        options=runs.Options(norm, num_steps, rho, rule, early_stop, l1_exact_zeros),
        loss=loss,
        targets=0,
        num_restarts=num_restarts,
        eot=eot,
        three_radii=three_radii,
        best_loss=best_loss,
        randomized=randomized,
        trace=trace,
    )


def apgd_targeted(
    key: Key,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: Norm,
    eps,
    num_steps: int = 100,
    num_targets: int = 9,
    num_restarts: int = 1,
    loss: str = "dlr-targeted",
    rho: float = 0.75,
    eot: int = 1,
    rule: runs.Rule = "repo",
    three_radii: bool = False,
    early_stop: bool = False,
    randomized: bool = False,
    l1_exact_zeros: bool = True,
    noise: Array | None = None,
    start: Array | None = None,
    trace: bool = False,
    indices: Array | None = None,
) -> ApgdResult:
    r"""APGD towards the classes with the 2nd, 3rd, ... largest clean logit, one run each.

    The loss is targeted, success is not: any misclassification counts. With fewer classes than
    ``num_targets + 1`` the reference fails; here there are K - 1 targets.

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
        ValueError: as :func:`apgd`.

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
    check_count("num_restarts", num_restarts, 1)
    if three_radii and norm != "l1":
        raise ValueError(f"three_radii=True is for norm='l1', not {norm!r}; leave it out")
    return run_all(
        key,
        logits_fn,
        images,
        labels,
        eps=eps,
        noise=noise,
        start=start,
        indices=indices,
        options=runs.Options(norm, num_steps, rho, rule, early_stop, l1_exact_zeros),
        loss=loss,
        targets=num_targets,
        num_restarts=num_restarts,
        eot=eot,
        three_radii=three_radii,
        best_loss=False,
        randomized=randomized,
        trace=trace,
    )
