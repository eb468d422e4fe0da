r"""Projected gradient descent (PGD) and the fast gradient sign method (FGSM).

.. math::
    x'_0 \in C(x), \qquad x'_{t+1} = \Pi_C\big(x'_t + v_t\big), \qquad
    v_t = \arg\max_{\|v\|_p \le \eta_P} v^T \nabla_x l(x'_t, \theta)

with the geometry of :mod:`jaxadv.balls`. The result is a constant for differentiation
(Danskin): training differentiates the loss at it, not through it.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxadv import attacks
    >>> weights = jax.random.normal(jax.random.key(0), (16, 3))
    >>> logits_fn = lambda images: images.reshape(images.shape[0], -1) @ weights
    >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([0, 1])
    >>> adversarial = attacks.pgd(
    ...     jax.random.key(1), logits_fn, images, labels,
    ...     norm="linf", eps=8 / 255, step_size=2 / 255, num_steps=10,
    ... )
    >>> bool((jnp.abs(adversarial - images) <= 8 / 255 + 1e-6).all())
    True

References:
    Madry et al., "Toward deep learning models resistant to adversarial attacks", 2018;
    Goodfellow et al., "Explaining and harnessing adversarial examples", 2015;
    Kanai et al. (arXiv 2103.01400), section 2; Wu et al. (AWP code) for starts and defaults.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from .. import balls, losses
from .._program import program_of, trace
from ..checks import as_radius, check_choice, check_count, check_step
from ..types import Array, Key, LogitsFn, LossFn, Norm, PyTree, Radius
from . import _model

INITS = ("uniform", "zero")

# images (B, H, W, C) and a carried value -> logits (B, K) and the new carried value
StatefulLogitsFn = Callable[[Array, PyTree], tuple[Array, PyTree]]


class _Point(NamedTuple):
    """The iterate of one restart, and the best point so far of every example."""

    images: Array
    best_images: Array
    best_losses: Array
    carry: Any


def pgd(
    key: Key,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: Norm,
    eps: Radius,
    step_size: Radius,
    num_steps: int,
    num_restarts: int = 1,
    loss: LossFn = losses.cross_entropy,
    init: str | Array = "uniform",
    keep_best: bool = False,
    early_stop: bool = False,
    indices: Array | None = None,
) -> Array:
    r"""Adversarial images by projected gradient ascent on the loss, in one compiled program.

    .. math:: x'_{t+1} = \Pi_{C(x)}\big(x'_t + v_t\big),\; t = 0, \dots, \text{num\_steps} - 1

    Every example is attacked independently: its random start depends only on ``key``, the restart
    and its index, and the loss is summed, so other images in the batch do not matter.

    Args:
        key: PRNG key of the random starts, or a seed.
        logits_fn: maps images of shape (B, H, W, C) to logits of shape (B, K); any callable. It is
        retraced at every call, so its current weights are attacked, and models that differ only in
        their arrays share one compilation.
        images: clean images x of shape (B, H, W, C), floats in [0, 1].
        labels: integers of shape (B,).
        norm: "linf", "l2" or "l1".
        eps: radius of the ball, in the units of the images (``8 / 255``); a number or shape (B,).
        step_size: :math:`\eta_P`, same units; a number or shape (B,).
        num_steps: number of gradient steps, >= 0.
        num_restarts: independent starts; each example keeps the one with the largest loss. With
            ``init="zero"`` the first start is x itself and the others are random.
        loss: maximized; from logits and labels to losses of shape (B,).
        init: "uniform" (:func:`jaxadv.balls.sample`), "zero" (the clean image) or an array of start
            images, projected into the ball and the box; with restarts, only the first start.
        keep_best: return the iterate with the largest loss instead of the last; costs one more
        forward pass per restart.
        early_stop: freeze an example once it is misclassified; with a loss that grows with the
        label's logit (a targeted attack with targets as labels), once it is classified as the
        target.
        indices: integers of shape (B,), default 0 to B - 1: the index of each image in the data
            set. If you pass it, results do not depend on how the data set is split into batches.

    Returns:
        Adversarial images of the shape and dtype of ``images``, inside the ball and the box, with
        gradients stopped. An example with a zero or non-finite gradient does not move.

    Raises:
        ValueError: on images outside [0, 1] or of a wrong dtype or shape, labels out of range, an
            unknown norm or init, a radius or step that is negative, not finite or larger than the
            box, num_steps < 0, num_restarts < 1, or a model that cannot be traced or returns
            anything but logits of shape (B, K).

    Example:
        >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 2 - x.sum((1, 2, 3))], 1)
        >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
        >>> x_adv = pgd(jax.random.key(0), logits_fn, x, y,
        ...             norm="l2", eps=0.2, step_size=0.1, num_steps=5)
        >>> round(float(jnp.linalg.norm(x_adv - x)), 4)
        0.2
    """
    given = _model.prepare(
        key, logits_fn, images, labels, norm=norm, eps=eps, indices=indices, per_image=True
    )
    rows, shape = given.images.shape[0], given.images.shape
    step_size = as_radius(step_size, "step_size", num_images=rows)
    check_step(step_size)
    check_count("num_steps", num_steps, 0)
    check_count("num_restarts", num_restarts, 1)
    start = None
    if isinstance(init, str):
        check_choice("init", init, INITS)
    elif jnp.shape(init) != shape:
        raise ValueError(f"init has shape {jnp.shape(init)}; start images must have {shape}")
    else:
        start = _model.on_device(init).astype(given.images.dtype)
    return _pgd(
        given.key,
        given.model,
        given.images,
        given.labels,
        indices=given.indices,
        start=start,
        eps=given.eps,
        step_size=_model.on_device(step_size).astype(given.images.dtype),
        norm=norm,
        num_steps=num_steps,
        num_restarts=num_restarts,
        loss=_traced_loss(loss, given),
        random_start=init == "uniform" if isinstance(init, str) else False,
        keep_best=keep_best,
        early_stop=early_stop,
    )


def _traced_loss(loss: LossFn, given: _model.Given) -> Partial:
    logits = program_of(given.model).out
    traced = trace(loss, logits, given.labels, name="loss")
    out = program_of(traced).out
    if getattr(out, "shape", None) != logits.shape[:1]:
        found = getattr(out, "shape", type(out).__name__)
        raise ValueError(f"loss returns {found}; expected one loss per image, shape (B,)")
    return traced


def fgsm(
    key: Key,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: Norm,
    eps: Radius,
    step_size: Radius | None = None,
    loss: LossFn = losses.cross_entropy,
    init: str | Array = "zero",
    indices: Array | None = None,
) -> Array:
    r"""One gradient step: :math:`\Pi_C(x_0 + v)`, by default of length eps from the clean image.

    With ``init="uniform"`` and ``step_size=1.25 * eps`` this is the attack of fast adversarial
    training (Wong et al. 2020).

    Args:
        key: typed PRNG key, used only with ``init="uniform"``.
        logits_fn: maps images of shape (B, H, W, C) to logits of shape (B, K).
        images: clean images of shape (B, H, W, C), floats in [0, 1].
        labels: integers of shape (B,).
        norm: "linf" (the sign method), "l2" or "l1".
        eps: radius of the ball, in the units of the images.
        step_size: length of the step, default ``eps``.
        loss: maximized; from logits and labels to losses of shape (B,).
        init: as in :func:`pgd`.
        indices: as in :func:`pgd`.

    Returns:
        Adversarial images, like :func:`pgd` with ``num_steps=1``.

    Raises:
        ValueError: see :func:`pgd`.

    Example:
        >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 2 - x.sum((1, 2, 3))], 1)
        >>> x_adv = fgsm(jax.random.key(0), logits_fn, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]),
        ...              norm="linf", eps=0.25)
        >>> x_adv.ravel().tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    return pgd(
        key,
        logits_fn,
        images,
        labels,
        norm=norm,
        eps=eps,
        step_size=eps if step_size is None else step_size,
        num_steps=1,
        loss=loss,
        init=init,
        indices=indices,
    )


def pgd_stateful(
    key: Key,
    forward: StatefulLogitsFn,
    carry: PyTree,
    images: Array,
    labels: Array,
    *,
    indices: Array,
    start: Array | None = None,
    eps: float | Array,
    step_size: float | Array,
    norm: Norm,
    num_steps: int,
    num_restarts: int = 1,
    loss: LossFn = losses.cross_entropy,
    random_start: bool = True,
    keep_best: bool = False,
    early_stop: bool = False,
) -> tuple[Array, PyTree]:
    """PGD around a model that changes with every forward pass; for use inside a compiled program.

    Training attacks the network in train mode, where each forward pass updates BatchNorm's running
    statistics; ``forward`` returns them with the logits and the next pass receives them.

    Args:
        key: typed PRNG key of the random starts.
        forward: maps images and the carried value to logits and the new carried value.
        carry: the first carried value, a pytree.
        images: clean images of shape (B, H, W, C).
        labels: of shape (B,), or any second argument of ``loss``.
        indices: integers of shape (B,) from which the random starts are derived.
        start: start images of the first restart, or None.
        eps: radius, a number or one per image, shape (B,).
        step_size: step, likewise.
        norm: as in :func:`pgd`, like all the arguments below.
        num_steps: number of steps.
        num_restarts: number of restarts.
        loss: maximized.
        random_start: whether the first restart starts at random when ``start`` is None.
        keep_best: return the best iterate.
        early_stop: freeze misclassified examples.

    Returns:
        The adversarial images, shape (B, H, W, C), and the final carried value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxadv import attacks
        >>> def forward(images, passes):
        ...     return images.reshape(len(images), -1) * jnp.array([1.0, -1.0]), passes + 1
        >>> images, labels = jnp.full((1, 1, 1, 2), 0.5), jnp.array([0])
        >>> adversarial, passes = attacks.pgd_stateful(
        ...     jax.random.key(0), forward, jnp.array(0), images, labels, indices=jnp.arange(1),
        ...     norm="linf", eps=0.1, step_size=0.1, num_steps=3,
        ... )
        >>> bool((images - adversarial > 0.099).all()), int(passes)
        (True, 3)
    """
    compare = keep_best or num_restarts > 1

    def evaluate(points: Array, carry: PyTree) -> tuple[Array, Array, PyTree]:
        logits, carry = forward(points, carry)
        return loss(logits, labels), logits, carry

    def total(points: Array, carry: PyTree) -> tuple[Array, tuple[Array, Array, PyTree]]:
        values, logits, carry = evaluate(points, carry)
        return values.sum(), (values, logits, carry)

    def step(_: Array, point: _Point) -> _Point:
        (_, (values, logits, carry)), gradients = jax.value_and_grad(total, has_aux=True)(
            point.images, point.carry
        )
        move = balls.ascent_step(gradients, point.images, norm=norm, step_size=step_size)
        moved = balls.project(point.images + move, images, norm=norm, eps=eps)
        if early_stop:
            reached = _model.is_correct(logits, labels) == _seeks_label(loss, logits, labels)
            moved = _where(reached, point.images, moved)
        if keep_best:
            point = _keep(point, point.images, values)
        return point._replace(images=moved, carry=carry)

    def restart(number: int | Array, point: _Point) -> _Point:
        drawn = balls.sample(
            jax.random.fold_in(key, number), images, norm=norm, eps=eps, indices=indices
        )
        if start is not None:
            first = balls.project(start, images, norm=norm, eps=eps)
        else:
            first = drawn if random_start else images
        point = point._replace(images=jnp.where(number == 0, first, drawn))
        point = jax.lax.fori_loop(0, num_steps, step, point)
        if compare:
            values, _, carry = evaluate(point.images, point.carry)
            point = _keep(point._replace(carry=carry), point.images, values)
        return point

    lowest = jnp.full(images.shape[:1], -jnp.inf, images.dtype)
    point = _Point(images, images, lowest, carry)
    if num_restarts == 1:
        point = restart(0, point)
    else:
        point = jax.lax.fori_loop(0, num_restarts, restart, point)
    result = point.best_images if compare else point.images
    return jax.lax.stop_gradient((result, point.carry))


@functools.partial(
    jax.jit,
    static_argnames=(
        "norm",
        "num_steps",
        "num_restarts",
        "random_start",
        "keep_best",
        "early_stop",
    ),
)
def _pgd(key: Key, model: LogitsFn, images: Array, labels: Array, **options: Any) -> Array:
    forward = lambda points, _: (model(points), ())
    return pgd_stateful(key, forward, (), images, labels, **options)[0]


def _where(mask: Array, yes: Array, no: Array) -> Array:
    return jnp.where(mask.reshape((-1,) + (1,) * (yes.ndim - 1)), yes, no)


def _keep(point: _Point, images: Array, values: Array) -> _Point:
    better = values > point.best_losses
    return point._replace(
        best_images=_where(better, images, point.best_images),
        best_losses=jnp.where(better, values, point.best_losses).astype(point.best_losses.dtype),
    )


def _seeks_label(loss: LossFn, logits: Array, labels: Array) -> Array:
    """Whether the loss grows with the label's logit, as in a targeted attack."""
    neutral = jnp.broadcast_to(jnp.arange(logits.shape[1]) / logits.shape[1], logits.shape)
    lift = 2 * jax.nn.one_hot(labels, logits.shape[1])
    up, down = ((neutral + s * lift).astype(logits.dtype) for s in (1, -1))
    return loss(up, labels) > loss(down, labels)
