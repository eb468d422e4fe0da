"""What an attack is to the driver: a kernel, the batch that it sees, and what it found.

A kernel is a few functions on rows, one image each. The driver (:mod:`jaxadv.attacks._driver`)
runs it: as a public attack on one batch, or as a member of AutoAttack, which drops the rows that
are finished and regroups the others between steps.
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
    """What one run of a kernel came to, one row an image.

    Attributes:
        images: the adversarial image where there is one.
        success: whether there is one.
        best_images: the point of the highest score, adversarial or not.
        scores: what the kernel maximizes, at that point.
        steps: steps that the image has taken.
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
        active: whether to attack the image at all, of shape (B,).
        norm: "linf", "l2" or "l1".
        eps: radius, of shape () or (B,).
        key: of the attack.
        indices: places in the data set, of shape (B,).
        run: number of the run: a restart, or a target and its restart.
        logits: from points (B, H, W, C) and a number to logits (B, K). The number separates the
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
        """One key an image, of (key, place in the data set, run), folded with a number if given.

        What an attack draws from them does not depend on how the data set is cut into batches.
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

        The published attacks make these passes and count them, and so do these.
        """
        return jax.lax.optimization_barrier((self.images, self.run))[0]

    def target(self, num_restarts: int) -> Array:
        """The class that this run aims at: by clean logit the 2nd, 3rd, ..., of shape (B,)."""
        ranked = _model.rank_classes(self.logits(self.again(), 0))
        return jnp.take(ranked, self.run // num_restarts + 1, axis=1).astype(jnp.int32)


class Search(NamedTuple):
    """A state for kernels that need no more than to try points, one row an image.

    Attributes:
        points: the latest points.
        adversarial: the first misclassified point, the clean image before there is one.
        robust: whether the image is still to be attacked.
        steps: how many points were tried.
        broken_at: number of the first step that was misclassified, -1 if none.
        backward: backward passes.
        memory: whatever else the kernel remembers: a pytree of arrays with a row an image.
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
        """The state after a step: points that are misclassified end the search of their image.

        Args:
            points: what the step tried, (B, H, W, C); images that are broken keep theirs.
            correct: whether each is classified correctly, (B,).
            number: of the step.
            backward: backward passes that the step took.
            memory: what to remember from now on; by default what was remembered.
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
    """An attack as functions on rows. Subclass it to run an attack of your own in AutoAttack.

    A subclass writes :meth:`begin` and :meth:`step` on a state of its choice: a pytree of arrays
    with a row an image, with an attribute ``robust`` that says which images are still to be
    attacked. With :class:`Search` as state nothing else is needed; with another one
    :meth:`outcome` too. Rows must not depend on each other, and what is drawn must come from
    :meth:`Batch.keys`: then verdicts do not depend on the batch size. Options of a subclass are
    fields (``@dataclasses.dataclass(frozen=True)``): they are fixed in the compiled program and
    have to be hashable.

    AutoAttack runs it as its own attacks: on the images that are still robust, which it takes out
    and regroups as they break; with every adversarial image verified on its own; resumable, in a
    store that knows the code of the kernel.

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
        """The step and what is to be recorded of it."""
        return self.step(batch, state, number), None

    def advance(self, batch: Batch, state: Any, first: Any, last: Any) -> Any:
        """The state after steps ``first`` to ``last - 1``, which end when no image is left."""

        def unfinished(carry: tuple[Array, Any]) -> Array:
            number, state = carry
            going = number < last
            return going & state.robust.any() if self.early_stop else going

        def body(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            number, state = carry
            return number + 1, self.step(batch, state, number)

        return jax.lax.while_loop(unfinished, body, (jnp.asarray(first, jnp.int32), state))[1]

    def outcome(self, batch: Batch, state: Any) -> Outcome:
        """What a state amounts to."""
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
        """Kernels that take turns in one run; all but the first start with :meth:`resume`."""
        return (self,)

    def resume(self, batch: Batch, before: Any) -> Any:
        """The state in which a phase takes over from the last state of the phase before."""
        raise NotImplementedError(f"{type(self).__name__} is not a later phase")

    def cost(self, num_classes: int) -> tuple[int, int]:
        """Forward and backward passes of a run on an image that nothing breaks, for estimates."""
        del num_classes
        return self.num_steps, self.num_steps * self.uses_gradients

    def spans(self) -> list[tuple[int, int]]:
        """First and end of consecutive steps, between which finished images are taken out."""
        stops = [self.first_step, *range(self.span, self.num_steps, self.span), self.num_steps]
        return list(zip(stops, stops[1:], strict=False))
