r"""The Square Attack: random search with square changes, without gradients.

Each query changes the perturbation inside one random square (L2, L1: moves the perturbation of
one window into another) and keeps the change where it lowers the margin
:math:`z_y - \max_{j \ne y} z_j`. The squares shrink on a fixed schedule.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxadv.attacks._square import square
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 17 - x.sum((1, 2, 3))], 1)
    >>> images, labels = jnp.full((1, 4, 4, 1), 0.55), jnp.array([0])
    >>> result = square(jax.random.key(0), logits_fn, images, labels, norm="linf", eps=0.1)
    >>> bool(result.success[0])
    True

References:
    Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via
    random search", 2020; L1: Croce and Hein, "Mind the box", 2021; and the code of AutoAttack.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._checks import check_choice, check_count
from .._types import Array, Key, LogitsFn, Norm
from . import _model
from . import _square_run as runs
from ._apgd_run import _where

LOSSES = ("margin", "ce")
SEGMENT = 250  # queries whose random numbers are drawn together
_INITIAL_STREAM = 2**31 - 1  # beyond the numbers of segments, which share the image's key


class SquareDraws(NamedTuple):
    """Random numbers in place of the key's.

    Attributes:
        initial_signs: of shape (B, W, C) for Linf, else (B, rows, columns, C) of the tiles.
        initial_flips: of shape (B, rows, columns), booleans; for Linf not used, pass None.
        queries: a :class:`Draws` for all queries.
    """

    initial_signs: Array
    initial_flips: Array | None
    queries: runs.Draws


class SquareResult(NamedTuple):
    """What the Square Attack found, one row an image.

    Attributes:
        images: the adversarial image where there is one, else the clean image.
        success: whether ``images`` is misclassified.
        best_images: the point with the smallest loss, adversarial or not.
        margins: its margin; the clean images that are misclassified have infinity.
        queries: queries of the search, the initial one included.
        forward: number of forward passes: the queries, the clean image and the final check.
    """

    images: Array
    success: Array
    best_images: Array
    margins: Array
    queries: Array
    forward: Array


def square(
    key: Key,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: Norm,
    eps,
    num_queries: int = 5000,
    p_init: float = 0.8,
    loss: str = "margin",
    rescale_schedule: bool = False,
    shared: bool = False,
    full_range: bool = False,
    draws: SquareDraws | None = None,
    indices: Array | None = None,
) -> SquareResult:
    r"""Square Attack with the settings of AutoAttack.

    Deviates from the code of AutoAttack in that every image has its own squares, as the authors of
    the attack published it: ``shared=True`` gives all images of the batch the same squares (and,
    for Linf, the same signs). Initial tiles that would leave the image are left out.

    Args:
        key: typed PRNG key; image i draws from ``fold_in(key, indices[i])``.
        logits_fn: from images of shape (B, H, W, C) to logits of shape (B, K).
        images: clean images x of shape (B, H, W, C), floats in [0, 1].
        labels: integers of shape (B,).
        norm: "linf", "l2" or "l1".
        eps: radius, in the units of the images.
        num_queries: Q; the initial perturbation is one query more.
        p_init: the fraction of the image that the first squares cover.
        loss: "margin" or "ce" (log-probability of the label).
        rescale_schedule: stretch the schedule of sizes, made for 10,000 queries, to Q; advisable
            when Q is far from 5,000.
        shared: one square for the whole batch, as in AutoAttack's code.
        full_range: let squares touch the last row and column, which the published codes never
            do after the initial perturbation.
        draws: injected random numbers.
        indices: integers of shape (B,), default 0 to B - 1: the place of each image in the data
            set.

    Returns:
        A :class:`SquareResult`.

    Raises:
        ValueError: on images outside [0, 1] or of a wrong dtype or shape, labels out of range, an
            unknown norm or loss, or num_queries < 1.

    Example:
        >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 17 - x.sum((1, 2, 3))], 1)
        >>> images, labels = jnp.full((1, 4, 4, 1), 0.55), jnp.array([0])
        >>> result = square(jax.random.key(0), logits_fn, images, labels, norm="linf", eps=0.1,
        ...                 num_queries=50)
        >>> bool(result.success[0])
        True

    References:
        Andriushchenko et al. 2020, algorithms 1 to 3.
    """
    given = _model.prepare(key, logits_fn, images, labels, norm=norm, eps=eps, indices=indices)
    check_choice("loss", loss, LOSSES)
    check_count("num_queries", num_queries, 1)
    if not 0 < p_init <= 1:
        raise ValueError(f"p_init={p_init} must be in (0, 1], a fraction of the image")
    if draws is not None and draws.queries.positions.shape[0] < num_queries:
        raise ValueError(
            f"draws holds {draws.queries.positions.shape[0]} queries for num_queries={num_queries}"
        )
    options = runs.Options(norm, num_queries, p_init, loss, rescale_schedule, full_range)
    return _compiled(
        given.key,
        given.model,
        given.images,
        given.labels,
        given.indices,
        draws,
        given.eps,
        options=options,
        shared=shared,
    )


@functools.partial(jax.jit, static_argnames=("options", "shared"))
def _compiled(key, model, images, labels, indices, draws, eps, *, options, shared) -> SquareResult:
    forward = lambda points, number: model(points)
    keys = image_keys(key, indices, shared)
    correct = _model.is_correct(forward(images, 0), labels)
    state = start(forward, images, labels, correct, keys, draws, eps, options)
    if draws is not None:
        state = runs.advance(
            forward, images, labels, state, draws.queries, 0, options.num_queries, eps, options
        )
    else:

        def segment(carry):
            number, state = carry
            state = search(forward, images, labels, state, keys, number, eps, options)
            return number + 1, state

        def unfinished(carry):
            number, state = carry
            return (number * SEGMENT < options.num_queries) & state.robust.any()

        state = jax.lax.while_loop(unfinished, segment, (jnp.int32(0), state))[1]
    wrong = ~_model.is_correct(forward(state.points, 0), labels)
    success = wrong | ~correct
    result = SquareResult(
        images=_where(wrong & correct, state.points, images),
        success=success,
        best_images=state.points,
        margins=state.margins,
        queries=state.queries,
        forward=state.queries + jnp.where(correct, 2, 1),
    )
    return jax.lax.stop_gradient(result)


def image_keys(key: Key, indices: Array, shared: bool) -> Key:
    """One key an image, or the same key for all."""
    return _model.image_keys(key, jnp.zeros_like(indices) if shared else indices)


def start(forward, images, labels, active, keys, draws, eps, options) -> runs.State:
    """The state after the initial query."""
    size, dtype = images.shape[1:], images.dtype
    if draws is None:
        initial_keys = _model.fold(keys, _INITIAL_STREAM)
        signs, flips = runs.draw_initial(initial_keys, size, options.norm, dtype)
    else:
        signs, flips = draws.initial_signs, draws.initial_flips
    points = runs.initial_points(images, signs, flips, eps, options.norm)
    return runs.accept(forward, labels, runs.begin(images, active), points, 0, options)


def search(forward, images, labels, state, keys, segment, eps, options) -> runs.State:
    """The queries of one segment."""
    drawn = runs.draw(
        _model.fold(keys, segment), SEGMENT, images.shape[1:], options.norm, images.dtype
    )
    first = segment * SEGMENT
    last = jnp.minimum(first + SEGMENT, options.num_queries)
    return runs.advance(forward, images, labels, state, drawn, first, last, eps, options)
