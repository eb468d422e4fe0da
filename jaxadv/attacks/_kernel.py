"""The interface between attacks and driver: a kernel, its batch, and its outcome.

A kernel is a few functions on rows, one image each. The driver (:mod:`jaxadv.attacks._driver`)
runs it: as a public attack on one batch, or as a member of AutoAttack, which drops finished rows
and regroups the others between steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import balls
from ..types import Array, Key, Norm
from . import _model, _rows


class Outcome(NamedTuple):
    """The result of one run of a kernel, one row per image.

    Attributes:
        images: the adversarial image if there is one.
        success: whether an adversarial image was found.
        best_images: the point of the highest score, adversarial or not.
        scores: the value that the kernel maximizes, at that point.
        steps: number of steps taken.
        broken_at: number of the first step that succeeded, -1 if none.
        forward: forward passes of the image.
        backward: backward passes of the image.
        zero_gradients: how many of its gradients were exactly 0.
    """

    images: Array
    success: Array
    best_images: Array
    scores: Array
    steps: Array
    broken_at: Array
    forward: Array
    backward: Array
    zero_gradients: Array


class Batch(NamedTuple):
    """The images that a kernel attacks.

    Attributes:
        images: clean images of shape (B, H, W, C) in [0, 1].
        labels: true classes of shape (B,).
        active: whether to attack the image, of shape (B,).
        norm: "linf", "l2" or "l1".
        eps: radius, of shape () or (B,).
        key: of the attack.
        indices: indices in the data set, of shape (B,).
        run: number of the run: a restart, or a target and its restart.
        logits: maps points (B, H, W, C) and a number to logits (B, K). The number separates the
            draws of a randomized model.
        draws: random numbers given by the caller, or None.
    """

    images: Array
    labels: Array
    active: Array
    norm: Norm
    eps: Array
    key: Key
    indices: Array
    run: Array
    logits: Callable[[Array, Any], Array]
    draws: Any = None

    def keys(self, number: Any = None) -> Key:
        """One key per image, of (key, index in the data set, run), folded with a number if given.

        Draws from them do not depend on how the data set is split into batches.
        """
        keys = _model.fold(_model.image_keys(self.key, self.indices), self.run)
        return keys if number is None else _model.fold(keys, number)

    def noise(self, given: Array | None = None) -> Array:
        """Start noise, one draw an image: uniform in [-1, 1] for Linf, else normal.

        Args:
            given: of shape (runs, B, H, W, C), to be used instead.
        """
        if given is not None:
            return given[self.run]
        shape, dtype = self.images.shape[1:], self.images.dtype
        if self.norm == "linf":
            return jax.vmap(lambda key: jax.random.uniform(key, shape, dtype, -1, 1))(self.keys())
        return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(self.keys())

    def correct(self, points: Array, number: Any) -> Array:
        """Whether points are classified correctly, (B,)."""
        return _model.is_correct(self.logits(points, number), self.labels)

    @property
    def num_classes(self) -> int:
        """K."""
        return jax.eval_shape(lambda points: self.logits(points, 0), self.images).shape[1]

    def project(self, points: Array) -> Array:
        """Points moved into the ball and the box (:func:`jaxadv.balls.project`)."""
        return balls.project(points, self.images, norm=self.norm, eps=self.eps)

    def again(self) -> Array:
        """The clean images; a pass over them is not merged with those of other runs.

        The published attacks make and count these passes, so these do too.
        """
        return jax.lax.optimization_barrier((self.images, self.run))[0]

    def target(self, num_restarts: int) -> Array:
        """The target class of this run: the 2nd, 3rd, ... by clean logit, of shape (B,)."""
        ranked = _model.rank_classes(self.logits(self.again(), 0))
        return jnp.take(ranked, self.run // num_restarts + 1, axis=1).astype(jnp.int32)


class Search(NamedTuple):
    """A state for kernels that only try points, one row per image.

    Attributes:
        points: the latest points.
        adversarial: the first misclassified point, the clean image before there is one.
        robust: whether to keep attacking the image.
        steps: number of points tried.
        broken_at: number of the first step that was misclassified, -1 if none.
        backward: backward passes.
        memory: whatever else the kernel remembers: a pytree of arrays with one row per image.
    """

    points: Array
    adversarial: Array
    robust: Array
    steps: Array
    broken_at: Array
    backward: Array
    memory: Any = None

    @classmethod
    def start(cls, batch: Batch, points: Array | None = None, memory: Any = None) -> "Search":
        """The state before the first step, at the clean images unless there are other points."""
        zeros = jnp.zeros_like(batch.labels)
        points = batch.images if points is None else points
        return cls(points, batch.images, batch.active, zeros, zeros - 1, zeros, memory)

    def tried(
        self, points: Array, correct: Array, number: Any, *, backward: int = 0, memory: Any = None
    ) -> "Search":
        """The state after a step: a misclassified point ends the search for its image.

        Args:
            points: the points tried, (B, H, W, C); broken images keep theirs.
            correct: whether each is classified correctly, (B,).
            number: number of the step.
            backward: backward passes of the step.
            memory: the new memory; unchanged by default.
        """
        broken = self.robust & ~correct
        alive = self.robust.astype(jnp.int32)
        return Search(
            points=_rows.where(self.robust, points, self.points),
            adversarial=_rows.where(broken, points, self.adversarial),
            robust=self.robust & correct,
            steps=self.steps + alive,
            broken_at=jnp.where(broken, jnp.int32(number), self.broken_at),
            backward=self.backward + backward * alive,
            memory=self.memory if memory is None else memory,
        )


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An attack as functions on rows. Subclass it to run your own attack in AutoAttack.

    A subclass implements :meth:`begin` and :meth:`step` on a state of its choice: a pytree of
    arrays with one row per image, and an attribute ``robust`` that marks images still to be
    attacked. :class:`Search` needs nothing else; other states also need :meth:`outcome`. Rows must
    be independent, and random draws must come from :meth:`Batch.keys`, so that verdicts do not
    depend on the batch size. Options of a subclass are fields
    (``@dataclasses.dataclass(frozen=True)``): they are static in the compiled program and must be
    hashable.

    AutoAttack runs it like its own attacks: on the images that are still robust, with early exit
    and regrouping; verifying every adversarial image on its own; and resumable, with a store that
    tracks the kernel's code.

    Attributes:
        num_steps: steps of a run.
        num_restarts: runs, for each target.
        num_targets: number of target classes, 0 for an untargeted attack.
        early_stop: whether an image is left alone once it is broken.

    Example:
        Gradient ascent with momentum, in the box and the ball.

        >>> import dataclasses, jax, jax.numpy as jnp
        >>> from jaxadv import attacks, balls, losses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Momentum(attacks.Kernel):
        ...     decay: float = 0.9
        ...
        ...     def begin(self, batch):
        ...         return attacks.Search.start(batch, memory=jnp.zeros_like(batch.images))
        ...
        ...     def step(self, batch, state, number):
        ...         def loss(points):
        ...             logits = batch.logits(points, number)
        ...             return losses.cross_entropy(logits, batch.labels).sum()
        ...
        ...         velocity = self.decay * state.memory + jax.grad(loss)(state.points)
        ...         move = balls.ascent_step(
        ...             velocity, state.points, norm=batch.norm, step_size=batch.eps / 4
        ...         )
        ...         points = batch.project(state.points + move)
        ...         correct = batch.correct(points, number)
        ...         return state.tried(points, correct, number, backward=1, memory=velocity)
        >>> weights = jax.random.normal(jax.random.key(0), (16, 4))
        >>> logits_fn = lambda x: x.reshape(x.shape[0], -1) @ weights
        >>> images = jnp.full((2, 4, 4, 1), 0.5)
        >>> labels = logits_fn(images).argmax(1).astype("int32")
        >>> result = attacks.autoattack(
        ...     0, logits_fn, images, labels, eps=0.2, version="custom",
        ...     attacks=[Momentum(num_steps=10), "square"], num_queries=10, progress=False,
        ... )
        >>> result.broken_by.tolist(), result.evaluations["momentum"].backward > 0
        (['momentum', 'momentum'], True)
    """

    num_steps: int = 100
    num_restarts: int = 1
    num_targets: int = 0
    early_stop: bool = True

    first_step = 0  # not fields: the same for all attacks of a kind
    span = 10  # steps after which finished images are taken out
    uses_gradients = True
    final_pass = False  # whether the driver evaluates what is found once more, as published

    @property
    def name(self) -> str:
        """As in the report."""
        return type(self).__name__.lower()

    @property
    def num_runs(self) -> int:
        """Runs of an image that nothing breaks."""
        return max(self.num_targets, 1) * self.num_restarts

    def begin(self, batch: Batch) -> Any:
        """The state before the first step."""
        raise NotImplementedError(f"{type(self).__name__} has no begin(batch)")

    def step(self, batch: Batch, state: Any, number: Any) -> Any:
        """The state after step ``number``."""
        raise NotImplementedError(f"{type(self).__name__} has no step(batch, state, number)")

    def traced_step(self, batch: Batch, state: Any, number: Any) -> tuple[Any, Any]:
        """The step and its trace."""
        return self.step(batch, state, number), None

    def advance(self, batch: Batch, state: Any, first: Any, last: Any) -> Any:
        """The state after steps ``first`` to ``last - 1``, stopping when no image is left."""

        def unfinished(carry: tuple[Array, Any]) -> Array:
            number, state = carry
            going = number < last
            return going & state.robust.any() if self.early_stop else going

        def body(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            number, state = carry
            return number + 1, self.step(batch, state, number)

        return jax.lax.while_loop(unfinished, body, (jnp.asarray(first, jnp.int32), state))[1]

    def outcome(self, batch: Batch, state: Any) -> Outcome:
        """The outcome of a state."""
        success = batch.active & ~state.robust
        return Outcome(
            images=state.adversarial,
            success=success,
            best_images=_rows.where(success, state.adversarial, state.points),
            scores=jnp.zeros(batch.labels.shape, batch.images.dtype),
            steps=state.steps,
            broken_at=state.broken_at,
            forward=state.steps + int(self.num_targets > 0),
            backward=state.backward,
            zero_gradients=jnp.zeros_like(batch.labels),
        )

    def phases(self) -> tuple["Kernel", ...]:
        """Kernels that run in sequence within a run; later ones start with :meth:`resume`."""
        return (self,)

    def resume(self, batch: Batch, before: Any) -> Any:
        """The initial state of a phase, from the last state of the previous one."""
        raise NotImplementedError(f"{type(self).__name__} is not a later phase")

    def cost(self, num_classes: int) -> tuple[int, int]:
        """Forward and backward passes of a run on an unbroken image, for estimates."""
        del num_classes
        return self.num_steps, self.num_steps * self.uses_gradients

    def spans(self) -> list[tuple[int, int]]:
        """Start and end of spans of steps, between which finished images are removed."""
        stops = [self.first_step, *range(self.span, self.num_steps, self.span), self.num_steps]
        return list(zip(stops, stops[1:], strict=False))
