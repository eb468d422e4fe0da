r"""The Square Attack: gradient-free random search with square-shaped changes.

Each query changes the perturbation inside one random square (L2, L1: moves the perturbation of
one window into another) and keeps the change if it lowers the margin
:math:`z_y - \max_{j \ne y} z_j`. The squares shrink on a fixed schedule.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxadv.attacks import square
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 17 - x.sum((1, 2, 3))], 1)
    >>> images, labels = jnp.full((1, 4, 4, 1), 0.55), jnp.array([0])
    >>> result = square(jax.random.key(0), logits_fn, images, labels, norm="linf", eps=0.1)
    >>> bool(result.success[0])
    True

References:
    Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via
    random search", 2020; L1: Croce and Hein, "Mind the box", 2021; and the code of AutoAttack.
"""

from typing import NamedTuple

import jax

from ...checks import check_choice, check_count
from ...types import Array, Key, LogitsFn, Norm, Radius
from .. import _model
from .._driver import attack
from .._kernel import Outcome
from .kernel import Square, SquareDraws

LOSSES = ("margin", "ce")


class SquareResult(NamedTuple):
    """The result of the Square Attack, one row per image.

    Attributes:
        images: the adversarial image if there is one, else the clean image.
        success: whether ``images`` is misclassified.
        best_images: the point with the smallest loss, adversarial or not.
        margins: its margin; infinity for misclassified clean images.
        queries: queries of the search, including the initial one.
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
    eps: Radius,
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

    Unlike AutoAttack's code, every image has its own squares, as the attack's authors published it;
    ``shared=True`` gives all images of the batch the same squares (and, for Linf, the same signs).
    Initial tiles that would leave the image are omitted.

    Args:
        key: typed PRNG key; image i draws from ``fold_in(key, indices[i])``.
        logits_fn: maps images of shape (B, H, W, C) to logits of shape (B, K).
        images: clean images x of shape (B, H, W, C), floats in [0, 1].
        labels: integers of shape (B,).
        norm: "linf", "l2" or "l1".
        eps: radius, in the units of the images.
        num_queries: Q; the initial perturbation takes one more query.
        p_init: the fraction of the image that the first squares cover.
        loss: "margin" or "ce" (log-probability of the label).
        rescale_schedule: stretch the schedule of sizes, made for 10,000 queries, to Q; recommended
        if Q is far from 5,000.
        shared: use one square for the whole batch, as in AutoAttack's code.
        full_range: let squares touch the last row and column, which the published codes never
            do after the initial perturbation.
        draws: injected random numbers.
        indices: integers of shape (B,), default 0 to B - 1: the index of each image in the data
            set.

    Returns:
        A :class:`SquareResult`.

    Raises:
        ValueError: on images outside [0, 1] or of a wrong dtype or shape, labels out of range, an
            unknown norm or loss, or num_queries < 1.

    Example:
        >>> import jax, jax.numpy as jnp
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
            f"draws has {draws.queries.positions.shape[0]} queries for num_queries={num_queries}"
        )
    kernel = Square(
        num_steps=num_queries, p_init=p_init, loss=loss, rescale_schedule=rescale_schedule,
        shared=shared, full_range=full_range,
    )  # fmt: skip
    found = attack(given, draws, kernel=kernel, norm=norm)
    return _result(found.outcome)


@jax.jit
def _result(outcome: Outcome) -> SquareResult:
    return SquareResult(
        images=outcome.images,
        success=outcome.success,
        best_images=outcome.best_images,
        margins=-outcome.scores,
        queries=outcome.steps,
        forward=outcome.forward,
    )
