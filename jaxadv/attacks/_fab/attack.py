r"""FAB: the fast adaptive boundary attack, which minimises the norm of the perturbation.

Each step linearises the decision boundary at :math:`x_k`, projects both :math:`x_k` and the clean
image x onto it inside the box, and moves to a convex combination of the two (overshot by eta),

.. math::
    x_{k+1} = \mathrm{clip}\big((1-\alpha)(x_k + \eta\,\delta_k) + \alpha\,(x + \eta\,\delta)\big)

with :math:`\alpha = \min(\|\delta_k\| / (\|\delta_k\| + \|\delta\|), \alpha_{max})`.
A misclassified iterate is kept if it is nearer than the nearest so far, and pulled back by beta.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxadv.attacks._fab import fab
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 2 - x.sum((1, 2, 3))], 1)
    >>> images, labels = jnp.full((1, 2, 2, 1), 0.5).at[0, 0, 0].set(0.7), jnp.array([0])
    >>> result = fab(jax.random.key(0), logits_fn, images, labels, norm="linf", eps=0.1)
    >>> round(float(result.norms[0]), 2)  # the boundary is 1.2 / 4 away, at sum 1
    0.3

References:
    Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
    2020, and the code of AutoAttack, which has no final search.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._checks import check_count
from .._types import Array, Key, LogitsFn, Norm
from . import _fab_run as runs
from . import _model
from ._apgd_run import _norms, _where, draw_noise


class FabResult(NamedTuple):
    """What FAB found, one row an image.

    Attributes:
        images: the adversarial image where there is one within the radius, else the clean image.
        success: whether there is one.
        best_images: the misclassified image of the smallest norm, within the radius or not; the
            clean image where none was found or where it is misclassified itself.
        norms: the norm of that perturbation; infinity where none was found, 0 where the clean
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
    eps,
    num_steps: int = 100,
    num_restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    early_stop: bool = False,
    noise: Array | None = None,
    indices: Array | None = None,
) -> FabResult:
    r"""Untargeted FAB: in every step the boundary that is nearest to first order.

    Costs K backward passes a step. The first run starts at the clean image, the others at random
    points at half the radius; images broken within the radius are left out of later runs.

    Args:
        key: typed PRNG key of the random starts; image i draws from ``fold_in(key, indices[i])``.
        logits_fn: from images of shape (B, H, W, C) to logits of shape (B, K).
        images: clean images x of shape (B, H, W, C), floats in [0, 1].
        labels: integers of shape (B,).
        norm: "linf", "l2" or "l1".
        eps: radius within which an image counts as broken (exactly: norm <= eps). The search itself
            does not depend on it: ``best_images`` and ``norms`` are what FAB minimised.
        num_steps: steps a run.
        num_restarts: runs.
        alpha_max: the largest weight of the projection of the clean image.
        eta: overshoot.
        beta: how far a misclassified iterate is pulled back.
        early_stop: stop an image at its first misclassified point within the radius.
        noise: for the random starts, of shape (num_restarts, B, H, W, C); entry 0 is not used.
        indices: integers of shape (B,), default 0 to B - 1: the place of each image in the data
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
        key, logits_fn, images, labels, eps=eps, noise=noise, indices=indices,
        options=runs.Options(norm, num_steps, alpha_max, eta, beta, early_stop),
        targets=0, num_restarts=num_restarts,
    )  # fmt: skip


def fab_targeted(
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
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    early_stop: bool = False,
    noise: Array | None = None,
    indices: Array | None = None,
) -> FabResult:
    r"""FAB towards the classes with the 2nd, 3rd, ... largest clean logit, one run each.

    Only the boundary is that of the target: any misclassification counts. One backward pass a step
    instead of K.

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
        ValueError: as :func:`fab`.

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
        key, logits_fn, images, labels, eps=eps, noise=noise, indices=indices,
        options=runs.Options(norm, num_steps, alpha_max, eta, beta, early_stop),
        targets=num_targets, num_restarts=num_restarts,
    )  # fmt: skip


def _run(key, logits_fn, images, labels, *, eps, noise, indices, **static) -> FabResult:
    options = static["options"]
    given = _model.prepare(
        key, logits_fn, images, labels, norm=options.norm, eps=eps, indices=indices
    )
    check_count("num_steps", options.num_steps, 1)
    check_count("num_restarts", static["num_restarts"], 1)
    static["targets"] = min(static["targets"], given.num_classes - 1)
    shape = (max(static["targets"], 1) * static["num_restarts"], *images.shape)
    if noise is not None and noise.shape != shape:
        raise ValueError(f"noise has shape {noise.shape}; expected {shape}")
    noise = None if noise is None else _model.on_device(noise)
    return _compiled(
        given.key, given.model, given.images, given.labels, given.indices, noise, given.eps,
        **static,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("options", "targets", "num_restarts"))
def _compiled(
    key, model, images, labels, indices, noise, eps, *, options, targets, num_restarts
) -> FabResult:
    keys = _model.image_keys(key, indices)
    forward = lambda points, number: model(points)
    clean = forward(images, 0)
    correct = _model.is_correct(clean, labels)
    norm, classes = options.norm, clean.shape[1]

    def run(number, found):
        again, third, _ = jax.lax.optimization_barrier((images, images, found.forward))
        active = ~found.success & _model.is_correct(forward(again, 0), labels)
        if targets:
            ranked = _model.rank_classes(forward(third, 0))
            target = jnp.take(ranked, number // num_restarts + 1, axis=1)
            linearize = runs.targeted(forward, labels, target)
        else:
            linearize = runs.untargeted(forward, labels, norm)
        drawn = (
            draw_noise(_model.fold(keys, number), images, norm) if noise is None else noise[number]
        )
        moved = runs.random_start(images, drawn, eps, norm)
        start = jnp.where(number % num_restarts > 0, moved, images)
        state = runs.begin(images, start, active)
        state = runs.advance(
            forward, linearize, images, labels, state, 0, options.num_steps, eps, options
        )
        wrong = ~_model.is_correct(forward(state.adversarial, 0), labels)
        inside = _norms(state.adversarial - images, norm) <= eps
        broken = active & wrong & inside
        nearer = active & (state.norms < found.norms)
        checks = 3 if targets else 2
        first = found.backward // (1 if targets else classes) + state.broken_at
        return FabResult(
            images=_where(broken, state.adversarial, found.images),
            success=found.success | broken,
            best_images=_where(nearer, state.adversarial, found.best_images),
            norms=jnp.where(nearer, state.norms, found.norms),
            broken_at=jnp.where(broken & (found.broken_at < 0), first, found.broken_at),
            forward=found.forward + jnp.where(active, 2 * state.steps + checks, 0),
            backward=found.backward
            + jnp.where(active, state.steps, 0) * (1 if targets else classes),
        )

    rows = labels.shape[0]
    found = FabResult(
        images=images,
        success=~correct,
        best_images=images,
        norms=jnp.where(correct, jnp.inf, 0).astype(images.dtype),
        broken_at=jnp.full((rows,), -1, jnp.int32),
        forward=jnp.ones((rows,), jnp.int32),
        backward=jnp.zeros((rows,), jnp.int32),
    )
    num_runs = max(targets, 1) * num_restarts
    found = jax.lax.fori_loop(0, num_runs, run, found)
    return jax.lax.stop_gradient(found)
