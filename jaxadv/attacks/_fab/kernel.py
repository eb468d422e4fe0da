r"""FAB as a kernel: its state and its step.

FAB minimizes the norm of the perturbation: the radius enters the random start and, with early stop,
the moment at which an image is broken.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...types import Array, Norm
from .. import _rows
from .._kernel import Batch, Kernel, Outcome
from .._model import finite
from .projections import project_to_hyperplane

_DUALS: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}


class State(NamedTuple):
    """One row per image.

    Attributes:
        points: the iterate.
        adversarial: the misclassified point of the smallest norm so far, or the clean image.
        norms: its norm, infinity if there is none.
        robust: whether to keep attacking: no point within the radius was misclassified yet.
        steps: steps used.
        broken_at: number of the first step that ended within the radius, -1 if none.
        targets: target classes of a targeted run.
    """

    points: Array
    adversarial: Array
    norms: Array
    robust: Array
    steps: Array
    broken_at: Array
    targets: Array


@dataclasses.dataclass(frozen=True)
class FAB(Kernel):
    """FAB; the options are those of :func:`jaxadv.attacks.fab`.

    Attributes:
        alpha_max: the largest weight of the projection of the clean image.
        eta: overshoot.
        beta: how far a misclassified iterate is pulled back.
    """

    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    final_pass = True

    @property
    def name(self) -> str:
        """Targeted "fab-t", else "fab"."""
        return "fab-t" if self.num_targets else "fab"

    def cost(self, num_classes: int) -> tuple[int, int]:
        """Two forward passes per step; untargeted, a backward pass for every class."""
        return 2 * self.num_steps + 3, self._backward(self.num_steps, num_classes)

    def _backward(self, steps: Any, num_classes: int) -> Any:
        return steps * (1 if self.num_targets else num_classes)

    def begin(self, batch: Batch) -> State:
        """At the clean image; restarts at a random point at half the radius."""
        images, norm = batch.images, batch.norm
        # The published code re-evaluates its inputs once.
        active = batch.active & batch.correct(batch.again(), 0)
        zeros = jnp.zeros_like(batch.labels)
        targets = batch.target(self.num_restarts) if self.num_targets else zeros
        start = images
        if self.num_restarts > 1:
            noise = batch.noise(batch.draws)
            step = 0.5 * batch.eps * noise / _rows.column(_rows.norms(noise, norm), noise)
            start = jnp.where(
                batch.run % self.num_restarts > 0, jnp.clip(images + step, 0, 1), images
            )
        infinite = jnp.full(batch.labels.shape, jnp.inf, images.dtype)
        return State(start, images, infinite, active, zeros, zeros - 1, targets)

    def step(self, batch: Batch, state: State, number: Any) -> State:
        """Toward the linearized boundary, biased toward the clean image; back if beyond it."""
        x, images, norm = state.points, batch.images, batch.norm
        values, gradients = self._linearize(batch, state, 2 * number)
        rows = x.shape[0]
        normals = gradients.reshape(rows, -1)
        from_image = values + jnp.sum(normals * (images - x).reshape(rows, -1), axis=1)
        # The step from the point and the one from the clean image, as one batch: the projection is
        # a loop that lasts as long as its slowest row.
        both = project_to_hyperplane(
            jnp.concatenate([x, images]).reshape(2 * rows, -1),
            jnp.concatenate([normals, normals]),
            jnp.concatenate([values, from_image]),
            norm,
        )
        lengths = jnp.maximum(_rows.norms(both, norm), 1e-8)
        alpha = _rows.column(self.bias(lengths[:rows], lengths[rows:]), x)
        moves = both.reshape(2, *x.shape)
        points = (x + self.eta * moves[0]) * (1 - alpha) + (images + self.eta * moves[1]) * alpha
        points = jnp.clip(points, 0, 1)

        wrong = ~batch.correct(points, 2 * number + 1)
        alive = state.robust if self.early_stop else jnp.ones_like(state.robust)
        sizes = _rows.norms(points - images, norm)
        better = wrong & alive & (sizes < state.norms)
        norms = jnp.where(better, sizes, state.norms)
        within = norms <= batch.eps
        at = jnp.asarray(number, jnp.int32)
        return State(
            # Back across the boundary, from where the next step searches for a nearer point.
            points=_rows.where(wrong, images + self.beta * (points - images), points),
            adversarial=_rows.where(better, points, state.adversarial),
            norms=norms,
            robust=state.robust & ~within,
            steps=state.steps + alive.astype(jnp.int32),
            broken_at=jnp.where(within & (state.broken_at < 0), at, state.broken_at),
            targets=state.targets,
        )

    def bias(self, from_point: Array, from_image: Array) -> Array:
        """Weight of the step from the clean image: alpha of the paper, of shape (B,).

        Args:
            from_point: lengths of the steps from the current points, of shape (B,).
            from_image: lengths of the steps from the clean images.
        """
        return jnp.clip(from_point / (from_point + from_image), 0, self.alpha_max)

    def outcome(self, batch: Batch, state: State) -> Outcome:
        """Success is a point within the radius; the score is minus the norm."""
        inside = _rows.norms(state.adversarial - batch.images, batch.norm) <= batch.eps
        return Outcome(
            images=state.adversarial,
            success=batch.active & jnp.isfinite(state.norms) & inside,
            best_images=state.adversarial,
            scores=-state.norms,
            steps=state.steps,
            broken_at=state.broken_at,
            # Two passes per step, one before, one after and one that ranks the targets.
            forward=2 * state.steps + (3 if self.num_targets else 2),
            backward=self._backward(state.steps, batch.num_classes),
            zero_gradients=jnp.zeros_like(batch.labels),
        )

    def _linearize(self, batch: Batch, state: State, number: Any) -> tuple[Array, Array]:
        """The logit difference that defines the boundary, (B,), and its gradient."""
        if self.num_targets:
            return _towards_target(batch, state, number)
        return _towards_nearest(batch, state, number)


def _towards_target(batch: Batch, state: State, number: Any) -> tuple[Array, Array]:
    """Between the logits of target and label: one backward pass."""

    def total(points: Array) -> tuple[Array, Array]:
        logits = batch.logits(points, number)
        difference = _select(logits, state.targets) - _select(logits, batch.labels)
        return difference.sum(), difference

    gradients, values = jax.grad(total, has_aux=True)(state.points)
    return finite(values), finite(gradients)


def _towards_nearest(batch: Batch, state: State, number: Any) -> tuple[Array, Array]:
    """With the class whose boundary is nearest to first order: K backward passes."""
    points, labels = state.points, batch.labels

    def differences(points: Array) -> Array:
        logits = batch.logits(points, number)
        return logits - _select(logits, labels)[:, None]

    values, pull = jax.vjp(differences, points)
    values = finite(values)

    def consider(label: Array, best: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        distances, chosen, gradients = best
        cotangent = jnp.zeros_like(values).at[:, label].set(1)
        gradient = finite(pull(cotangent)[0])
        value = jnp.where(labels == label, 1e10, values[:, label])  # never the label itself
        slope, difference = _rows.enlarged(gradient, value)
        distance = jnp.abs(difference) / (_rows.TINY + _rows.norms(slope, _DUALS[batch.norm]))
        nearer = distance < distances
        return (
            jnp.where(nearer, distance, distances),
            jnp.where(nearer, value, chosen),
            _rows.where(nearer, gradient, gradients),
        )

    start = (jnp.full(labels.shape, jnp.inf, points.dtype), values[:, 0], points * 0)
    _, chosen, gradients = jax.lax.fori_loop(0, values.shape[1], consider, start)
    return chosen, gradients


def _select(logits: Array, classes: Array) -> Array:
    return jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]
