r"""The Square Attack as a kernel: its schedule, its state and its queries.

Query 0 is the initial perturbation, queries 1 to Q change one square each.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...types import Array, Key, Norm
from .. import _model, _rows
from .._kernel import Batch, Kernel, Outcome
from . import windows
from .windows import Draws

SEGMENT = 250  # queries whose random numbers are drawn together
_INITIAL_STREAM = 2**31 - 1  # above all segment numbers, which share the image's key


class SquareDraws(NamedTuple):
    """Explicit random numbers instead of the key's.

    Attributes:
        initial_signs: of shape (B, W, C) for Linf, else (B, rows, columns, C) of the tiles.
        initial_flips: of shape (B, rows, columns), booleans; unused for Linf, pass None.
        queries: a :class:`Draws` for all queries.
    """

    initial_signs: Array
    initial_flips: Array | None
    queries: Draws


class State(NamedTuple):
    """One row per image.

    Attributes:
        points: the best point so far.
        margins: z_y minus the largest other logit there.
        losses: its loss, which is minimized.
        robust: whether the margin is still positive.
        queries: queries used.
    """

    points: Array
    margins: Array
    losses: Array
    robust: Array
    queries: Array


@dataclasses.dataclass(frozen=True)
class Square(Kernel):
    """Square; ``num_steps`` are queries, the options are those of :func:`jaxadv.attacks.square`.

    Attributes:
        p_init: the fraction of the image that the first squares cover.
        loss: "margin" or "ce".
        rescale_schedule: whether the schedule is stretched to the number of queries.
        shared: whether all images get the same squares.
        full_range: whether squares touch the last row and column.
    """

    p_init: float = 0.8
    loss: str = "margin"
    rescale_schedule: bool = False
    shared: bool = False
    full_range: bool = False

    span = SEGMENT
    uses_gradients = False
    final_pass = True

    def cost(self, num_classes: int) -> tuple[int, int]:
        """The queries, the initial one and the final check."""
        del num_classes
        return self.num_steps + 2, 0

    def begin(self, batch: Batch) -> State:
        """After the initial query."""
        images, norm = batch.images, batch.norm
        if batch.draws is None:
            keys = _model.fold(self._keys(batch), _INITIAL_STREAM)
            signs, flips = windows.draw_initial(keys, images.shape[1:], norm, images.dtype)
        else:
            signs, flips = batch.draws.initial_signs, batch.draws.initial_flips
        points = windows.initial_points(images, signs, flips, batch.eps, norm)
        infinite = jnp.full(batch.labels.shape, jnp.inf, images.dtype)
        zeros = jnp.zeros_like(batch.labels)
        return self._accept(
            batch, State(images, infinite, infinite, batch.active, zeros), points, 0
        )

    def advance(self, batch: Batch, state: State, first: Any, last: Any) -> State:
        """Queries ``first`` to ``last - 1``, of 0 to Q - 1, a segment of random numbers at a time.

        ``first`` is a multiple of the length of a segment.
        """
        if batch.draws is not None:
            return self._queries(batch, state, batch.draws.queries, first, last)

        # All queries at once would need memory for Q draws an image, one at a time a call of the
        # generator each. A segment has a key of its own, so that a run may resume at any.
        def segment(carry: tuple[Array, State]) -> tuple[Array, State]:
            number, state = carry
            keys = _model.fold(self._keys(batch), number // SEGMENT)
            shape, dtype = batch.images.shape[1:], batch.images.dtype
            draws = windows.draw(keys, SEGMENT, shape, batch.norm, dtype)
            end = jnp.minimum(number + SEGMENT, last)
            return number + SEGMENT, self._queries(batch, state, draws, number, end)

        def unfinished(carry: tuple[Array, State]) -> Array:
            number, state = carry
            return (number < last) & state.robust.any()

        return jax.lax.while_loop(unfinished, segment, (jnp.asarray(first, jnp.int32), state))[1]

    def outcome(self, batch: Batch, state: State) -> Outcome:
        """Success is a margin of 0 or less; the score is minus the margin."""
        zeros = jnp.zeros_like(batch.labels)
        return Outcome(
            images=state.points,
            success=batch.active & ~state.robust,
            best_images=state.points,
            scores=-state.margins,
            steps=state.queries,
            broken_at=state.queries - 1,
            forward=state.queries + 1,  # the final pass
            backward=zeros,
            zero_gradients=zeros,
        )

    def _keys(self, batch: Batch) -> Key:
        indices = jnp.zeros_like(batch.indices) if self.shared else batch.indices
        return _model.image_keys(batch.key, indices)

    def _queries(self, batch: Batch, state: State, draws: Draws, first: Any, last: Any) -> State:
        """Queries ``first`` to ``last - 1``; the draws start with query ``first``."""
        images, eps, norm = batch.images, batch.eps, batch.norm
        size = images.shape[1:3]
        sides, places_of, patterns = self._schedule(size, norm)

        def body(carry: tuple[Array, State]) -> tuple[Array, State]:
            number, state = carry
            now = jax.tree.map(lambda values: values[number - first], draws)
            side = jnp.asarray(sides)[number]  # traced: one program serves all sides
            room = jnp.asarray(size) - side + int(self.full_range)
            places = jnp.floor(now.positions.reshape(-1, 2) * room[None].astype(images.dtype))
            places = places.astype(jnp.int32).reshape(images.shape[0], -1)
            if norm == "linf":
                inside = windows.window(places, side, size).astype(images.dtype)
                points = state.points + 2 * eps * now.signs[:, None, None] * inside
                points = batch.project(points)
            else:
                shape = jnp.asarray(patterns, images.dtype)[jnp.asarray(places_of)[number]]
                points = windows.move_windows(
                    images, state.points, places, side, shape, now, eps, norm
                )
            return number + 1, self._accept(batch, state, points, number + 1)

        def unfinished(carry: tuple[Array, State]) -> Array:
            number, state = carry
            return (number < last) & state.robust.any()

        return jax.lax.while_loop(unfinished, body, (jnp.asarray(first, jnp.int32), state))[1]

    def _schedule(
        self, size: tuple[int, ...], norm: Norm
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sides of all queries, the place of each among the distinct ones, and their patterns."""
        sides = windows.side_lengths(self.num_steps, size, norm, self.p_init, self.rescale_schedule)
        distinct = np.unique(sides)
        largest = int(distinct[-1])  # smaller patterns are padded with zeros, which have no effect
        patterns = np.zeros((len(distinct), largest, largest))
        if norm != "linf":
            for place, side in enumerate(distinct):
                patterns[place, :side, :side] = windows.pattern(int(side), norm)
        return sides, np.searchsorted(distinct, sides), patterns

    def _accept(self, batch: Batch, state: State, points: Array, number: Any) -> State:
        """Queries the model and keeps the points that lower the loss or are misclassified."""
        margins, values = _loss(batch.logits(points, number), batch.labels, self.loss)
        # Keep a misclassified point even if the cross-entropy is not lower: it ends the run.
        better = state.robust & ((values < state.losses) | (margins <= 0))
        lower = state.robust & (values < state.losses)
        chosen = jnp.where(better, margins, state.margins)
        return State(
            points=_rows.where(better, points, state.points),
            margins=chosen,
            losses=jnp.where(lower, values, state.losses),
            robust=state.robust & (chosen > 0),
            queries=state.queries + state.robust.astype(jnp.int32),
        )


def _loss(logits: Array, labels: Array, loss: str) -> tuple[Array, Array]:
    """The margin, and the loss that is minimized."""
    true_class = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    own = jnp.sum(jnp.where(true_class, logits, 0), axis=1)
    margins = own - jnp.where(true_class, -jnp.inf, logits).max(axis=1)
    # Non-finite logits count as misclassified.
    margins = jnp.where(jnp.isfinite(logits).all(axis=1), margins, -jnp.inf)
    if loss == "margin":
        return margins, margins
    return margins, own - jax.nn.logsumexp(logits, axis=1)
