r"""APGD as a kernel: its schedule of checkpoints, its state and its step.

Step -1 evaluates the start point; steps 0 to N - 1 move and evaluate. Everything is per row and
independent of the other images in the batch.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import balls
from ..._l1 import order_statistic, project_l1_box
from ...types import Array, Norm
from .. import _model, _rows
from .._kernel import Batch, Kernel, Outcome
from .losses import loss_values
from .state import Rule, State, Trace, checkpoints

_MOMENTUM = 0.75
_INITIAL_TOPK = 0.2


@dataclasses.dataclass(frozen=True)
class APGD(Kernel):
    """APGD; the options are those of :func:`jaxadv.attacks.apgd`.

    Attributes:
        loss: maximized.
        rho: the fraction of increases below which the step is halved.
        rule: "repo" or "paper".
        eot: draws of a randomized model that a gradient averages.
        three_radii: L1: phases in balls of radius 3 eps, 2 eps and eps.
        l1_exact_zeros: whether coordinates projected back to 0 equal the image's exactly.
        explicit: whether the start was given rather than drawn; determines the first sparsity of
        L1.
        factor: multiple of the radius in this phase.
        evaluated: evaluations before this phase.
    """

    loss: str = "ce"
    rho: float = 0.75
    rule: Rule = "repo"
    eot: int = 1
    three_radii: bool = False
    l1_exact_zeros: bool = True
    explicit: bool = False
    factor: float = 1.0
    evaluated: int = 0

    first_step = -1

    @property
    def name(self) -> str:
        """The targeted DLR loss makes it "apgd-t", others are named: "apgd-ce"."""
        return "apgd-t" if self.loss == "dlr-targeted" else f"apgd-{self.loss}"

    def phases(self) -> tuple["APGD", ...]:
        """One, or three with shrinking radii: 0.3 N, 0.3 N and 0.4 N steps."""
        if not self.three_radii:
            return (self,)
        third = math.ceil(0.3 * self.num_steps)
        change = lambda **options: dataclasses.replace(self, explicit=True, **options)
        return (
            change(num_steps=third, factor=3.0, early_stop=False),
            change(num_steps=third, factor=2.0, early_stop=False, evaluated=third + 1),
            change(num_steps=self.num_steps - 2 * third, evaluated=2 * (third + 1)),
        )

    def cost(self, num_classes: int) -> tuple[int, int]:
        """One gradient per evaluation (and draw), and the pass that ranks the targets."""
        gradients = (self.num_steps + (3 if self.three_radii else 1)) * self.eot
        return gradients + int(self.num_targets > 0), gradients

    def begin(self, batch: Batch) -> State:
        """Starts at a random point of the sphere, or at the given point.

        ``batch.draws`` are noise of shape (runs, B, H, W, C), as :func:`start_points` takes it, and
        start points of shape (B, H, W, C), either of them None, or None for both.
        """
        noise, start = batch.draws or (None, None)
        if start is not None:
            points = jnp.clip(start, 0, 1)
        else:
            drawn, eps = batch.noise(noise), self.factor * batch.eps
            points = start_points(batch.images, drawn, batch.norm, eps)
        none = jnp.zeros_like(batch.labels)
        targets = batch.target(self.num_restarts) if self.num_targets else none
        return self._start(batch, points, targets)

    def resume(self, batch: Batch, before: State) -> State:
        """Starts at the best point of the previous phase."""
        state = self._start(batch, before.best_images, before.targets)
        return state._replace(zero_gradients=before.zero_gradients)

    def _start(self, batch: Batch, points: Array, targets: Array) -> State:
        images, eps = batch.images, self.factor * batch.eps
        if self.three_radii:
            points = jnp.clip(images + project_l1_box(images, points - images, eps), 0, 1)
        rows, dtype = images.shape[0], images.dtype
        size = math.prod(images.shape[1:])
        full = lambda value, kind: jnp.full((rows,), value, kind)
        topk, sparsity = full(_INITIAL_TOPK, dtype), full(size, dtype)
        if batch.norm == "l1" and self.explicit:
            sparsity = _sparsity(points, images)
            topk = sparsity / size / 1.5
        eta = 1.0 if batch.norm == "l1" else 2.0
        return State(
            points=points,
            previous=points,
            gradients=jnp.zeros_like(points),
            best_images=points,
            best_gradients=jnp.zeros_like(points),
            best_losses=full(-jnp.inf, dtype),
            adversarial=images,
            robust=batch.active,
            broken_at=full(-1, jnp.int32),
            evaluations=full(self.evaluated, jnp.int32),
            zero_gradients=full(0, jnp.int32),
            last_losses=full(0, dtype),
            increases=full(0, jnp.int32),
            check_losses=full(-jnp.inf, dtype),
            reduced=full(True, bool),
            step_sizes=jnp.broadcast_to(jnp.asarray(eta * eps, dtype), (rows,)),
            topk=topk,
            sparsity=sparsity,
            targets=targets,
        )

    def step(self, batch: Batch, state: State, number: Any) -> State:
        """One step, its evaluation and, when due, the checkpoint."""
        return self.traced_step(batch, state, number)[0]

    def traced_step(self, batch: Batch, state: State, number: Any) -> tuple[State, Trace]:
        """The step and what happened in it."""
        # The same code evaluates the start: a second copy of the model's forward and backward pass
        # would double compilation.
        starting = number < 0
        alive = state.robust if self.early_stop else jnp.ones_like(state.robust)
        points = jnp.where(starting, state.points, self._move(batch, state, number))
        losses, correct, gradients = self._evaluate(batch, state.targets, points, number + 1)

        failed = ~correct & alive
        better = losses > state.best_losses
        grew = (losses > state.last_losses).astype(jnp.int32)
        # The reference compares the first loss with the last row of its history, still 0.
        empty = jnp.inf if self.num_steps == 1 else 0.0
        baseline = losses if self.rule == "paper" else jnp.full_like(losses, empty)
        zero = jnp.sum(jnp.abs(gradients), axis=tuple(range(1, gradients.ndim))) == 0
        state = state._replace(
            points=points,
            previous=jnp.where(starting, state.previous, state.points),
            gradients=gradients,
            best_images=_rows.where(better, points, state.best_images),
            best_gradients=_rows.where(better, gradients, state.best_gradients),
            best_losses=jnp.where(better, losses, state.best_losses),
            adversarial=_rows.where(failed, points, state.adversarial),
            robust=state.robust & correct,
            broken_at=jnp.where((state.broken_at < 0) & failed, state.evaluations, state.broken_at),
            evaluations=state.evaluations + alive.astype(jnp.int32),
            zero_gradients=state.zero_gradients + (zero & alive).astype(jnp.int32),
            last_losses=jnp.where(starting, baseline, losses),
            increases=jnp.where(starting, 0, state.increases + grew),
            check_losses=jnp.where(starting, losses, state.check_losses),
        )
        window = jnp.asarray(self._windows(batch.norm))[jnp.maximum(number, 0)]
        checked = (window > 0) & ~starting
        before = state.step_sizes
        check = lambda state: self._check(batch, state, window)
        # All rows share the schedule, so a branch is cheaper than a select.
        state = jax.lax.cond(checked, check, lambda state: state, state)
        lengths = _rows.norms(gradients, "l2")
        reduced = state.step_sizes < before
        return state, Trace(points, losses, lengths, correct, state.step_sizes, reduced, checked)

    def outcome(self, batch: Batch, state: State) -> Outcome:
        """Success is any misclassified evaluation; the score is the loss."""
        return Outcome(
            images=state.adversarial,
            success=batch.active & ~state.robust,
            best_images=state.best_images,
            scores=state.best_losses,
            steps=state.evaluations,
            broken_at=state.broken_at,
            forward=state.evaluations * self.eot + int(self.num_targets > 0),
            backward=state.evaluations * self.eot,
            zero_gradients=state.zero_gradients,
        )

    def _evaluate(
        self, batch: Batch, targets: Array, points: Array, number: Any
    ) -> tuple[Array, Array, Array]:
        """Losses, whether still correct, and gradients, averaged over ``eot`` draws."""
        first_draw = (number + self.evaluated) * self.eot + 1  # 0 ranks the targets

        def once(draw: int | Array) -> tuple[Array, Array, Array]:
            def total(points: Array) -> tuple[Array, tuple[Array, Array]]:
                logits = batch.logits(points, first_draw + draw)
                values = loss_values(self.loss, logits, batch.labels, targets)
                return values.sum(), (values, _model.is_correct(logits, batch.labels))

            gradients, (values, correct) = jax.grad(total, has_aux=True)(points)
            return values.astype(points.dtype), correct, _model.finite(gradients)

        def add(draw: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            values, correct, gradients = once(draw)
            return values, correct, carry[2] + gradients

        if self.eot == 1:
            return once(0)
        values, correct, gradients = jax.lax.fori_loop(1, self.eot, add, once(0))
        return values, correct, gradients / self.eot

    def _windows(self, norm: Norm) -> np.ndarray:
        """For every step the length of the window that it ends with a checkpoint, else 0."""
        at = checkpoints(self.num_steps, norm, self.rule)
        windows = np.zeros(max(self.num_steps, 1), np.int32)
        windows[np.asarray(at, int) - 1] = np.diff([0, *at])
        return windows

    def _move(self, batch: Batch, state: State, number: Any) -> Array:
        """The next iterate: the projected gradient step, plus a quarter of the last move."""
        images, x, norm = batch.images, state.points, batch.norm
        if norm == "l1":
            return self._move_l1(batch, state)
        eps = self.factor * batch.eps
        direction = jnp.sign(state.gradients)
        if norm == "l2":
            [gradients] = _rows.enlarged(state.gradients)
            direction = gradients / _rows.column(_rows.norms(gradients, "l2") + _rows.TINY, x)
        target = _project(images, x + _rows.column(state.step_sizes, x) * direction, eps, norm)
        # There is no last move to repeat at step 0.
        a = jnp.where(number == 0, 1.0, _MOMENTUM).astype(x.dtype)
        return _project(images, x + a * (target - x) + (1 - a) * (x - state.previous), eps, norm)

    def _move_l1(self, batch: Batch, state: State) -> Array:
        """No momentum: the signs of the largest gradient entries, then the exact projection."""
        eps = jnp.broadcast_to(self.factor * batch.eps, batch.labels.shape)
        given = batch.images, state.points, state.gradients, state.topk, state.step_sizes, eps
        return _rows.one_by_one(self._moved_l1)(*given)

    def _moved_l1(
        self, images: Array, x: Array, gradients: Array, topk: Array, step_sizes: Array, eps: Array
    ) -> Array:
        magnitudes = jnp.abs(gradients).reshape(x.shape[0], -1)
        size = magnitudes.shape[1]
        # The threshold of the largest topk entries, found by bisection instead of a sort.
        rank = jnp.clip((1 - topk) * size, 0, size - 1).astype(jnp.int32)
        threshold = order_statistic(magnitudes, rank)
        signs = jnp.where(magnitudes >= threshold[:, None], gradients.reshape(-1, size), 0)
        signs = jnp.sign(signs).reshape(x.shape)
        eta = _rows.column(step_sizes, x)
        deltas = x + eta * signs / _rows.column(_rows.norms(signs, "l1") + 1e-10, x) - images
        inside = project_l1_box(images, deltas, eps)
        if self.l1_exact_zeros:
            return images + inside
        return images + deltas + (inside - deltas)

    def _check(self, batch: Batch, state: State, window: Array) -> State:
        """Halves eta and returns to the best point where the loss oscillates or has stalled."""
        if batch.norm == "l1":
            return self._check_l1(batch, state)
        limit = window.astype(jnp.float32) * self.rho
        increases = state.increases.astype(jnp.float32)
        # Fewer than a share rho of the steps increased the loss: the iterate jumps across a ridge.
        oscillates = increases < limit if self.rule == "paper" else increases <= limit
        # After halving, the iterate restarts at the best point and gets one window to beat it.
        stalled = ~state.reduced & (state.check_losses >= state.best_losses)
        reduce = oscillates | stalled
        return _back_to_best(state, reduce)._replace(
            increases=jnp.zeros_like(state.increases),
            check_losses=state.best_losses,
            reduced=reduce,
            step_sizes=jnp.where(reduce, state.step_sizes / 2, state.step_sizes),
        )

    def _check_l1(self, batch: Batch, state: State) -> State:
        """Restarts from the best point with a full step where it has become sparser."""
        images, eps = batch.images, self.factor * batch.eps
        sparsity = _sparsity(state.best_images, images)
        # With 0 changed coordinates (the best point is the image itself) it cannot get sparser.
        ratio = sparsity / jnp.maximum(state.sparsity, 1)
        sparser = (state.sparsity > 0) & (ratio < 0.95)
        eta = jnp.where(sparser, eps, state.step_sizes / 1.5).astype(state.step_sizes.dtype)
        return _back_to_best(state, sparser)._replace(
            step_sizes=jnp.clip(eta, eps / 10, eps).astype(eta.dtype),
            topk=sparsity / math.prod(images.shape[1:]) / 1.5,
            sparsity=sparsity,
        )


def start_points(images: Array, noise: Array, norm: Norm, eps: Array) -> Array:
    """The random start of APGD: on the surface of the ball, then clipped to the box.

    Args:
        images: x of shape (B, ...).
        noise: of the same shape: uniform in [-1, 1] for "linf", normal for "l2" and "l1".
        norm: the norm.
        eps: the radius.

    Returns:
        Points of the same shape.
    """
    if norm == "l1":
        return jnp.clip(images + project_l1_box(images, noise, eps), 0, 1)
    lengths = _rows.column(_rows.norms(noise, norm) + _rows.TINY, noise)
    return jnp.clip(images + _rows.column(eps, noise) * (noise / lengths), 0, 1)


def _project(images: Array, points: Array, eps: Array, norm: Norm) -> Array:
    if norm == "linf":
        return balls.project(points, images, norm=norm, eps=eps)
    eps = jnp.broadcast_to(eps, points.shape[:1])
    return _rows.one_by_one(_project_l2)(images, points, eps)


def _project_l2(images: Array, points: Array, eps: Array) -> Array:
    # The published code's formula: with different rounding, trajectories diverge from the reference
    # after about twenty steps.
    deltas = points - images
    lengths = _rows.column(_rows.norms(deltas, "l2"), deltas)
    eps = jnp.minimum(_rows.column(eps, images), lengths)
    return jnp.clip(images + deltas / (lengths + _rows.TINY) * eps, 0, 1)


def _back_to_best(state: State, back: Array) -> State:
    return state._replace(
        points=_rows.where(back, state.best_images, state.points),
        gradients=_rows.where(back, state.best_gradients, state.gradients),
    )


def _sparsity(points: Array, images: Array) -> Array:
    changed = (points != images).reshape(images.shape[0], -1)
    return changed.sum(axis=1).astype(images.dtype)
