r"""One run of FAB: its state and its step.

The state holds one row an image. FAB minimises the norm of the perturbation: the radius enters the
random start and, with early exit, the moment at which an image is broken.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._types import Array, Norm
from ._apgd_run import _column, _norms, _where
from ._fab_projections import project_to_hyperplane
from ._model import finite, is_correct

# points (B, ...) and the number of the evaluation -> differences f (B,) and gradients (B, ...)
Linearize = Callable[[Array, Array], tuple[Array, Array]]


class Options(NamedTuple):
    """What is fixed for a run, and for its compiled program."""

    norm: Norm
    num_steps: int
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    early_exit: bool = False


class State(NamedTuple):
    """One row an image.

    Attributes:
        points: the iterate.
        adversarial: the misclassified point of the smallest norm so far, or the clean image.
        norms: its norm, infinity if there is none.
        robust: whether the image is still to be attacked: with early exit, until a point is
            misclassified within the radius.
        steps: steps used.
        broken_at: number of the first step that ended within the radius, -1 if none.
    """

    points: Array
    adversarial: Array
    norms: Array
    robust: Array
    steps: Array
    broken_at: Array


def random_start(images: Array, noise: Array, eps, norm: Norm) -> Array:
    """A point at half the radius, clipped to the box."""
    return jnp.clip(images + 0.5 * eps * noise / _column(_norms(noise, norm), noise), 0, 1)


def begin(images: Array, start: Array, active: Array) -> State:
    """The state before the first step."""
    rows = images.shape[:1]
    return State(
        points=start,
        adversarial=images,
        norms=jnp.full(rows, jnp.inf, images.dtype),
        robust=active,
        steps=jnp.zeros(rows, jnp.int32),
        broken_at=jnp.full(rows, -1, jnp.int32),
    )


def targeted(forward, labels: Array, targets: Array) -> Linearize:
    """The difference between the logits of target and label: one backward pass."""

    def linearize(points, number):
        def total(points):
            logits = forward(points, number)
            difference = _select(logits, targets) - _select(logits, labels)
            return difference.sum(), difference

        gradients, values = jax.grad(total, has_aux=True)(points)
        return finite(values), finite(gradients)

    return linearize


def untargeted(forward, labels: Array, norm: Norm) -> Linearize:
    """The difference with the class whose boundary is nearest to first order: K backward passes."""
    duals: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
    dual = duals[norm]

    def linearize(points, number):
        def differences(points):
            logits = forward(points, number)
            return logits - _select(logits, labels)[:, None]

        values, pull = jax.vjp(differences, points)
        values = finite(values)
        classes = values.shape[1]

        def consider(label, best):
            distances, chosen, gradients = best
            cotangent = jnp.zeros_like(values).at[:, label].set(1)
            gradient = finite(pull(cotangent)[0])
            value = jnp.where(labels == label, 1e10, values[:, label])
            distance = jnp.abs(value) / (1e-12 + _norms(gradient, dual))
            nearer = distance < distances
            return (
                jnp.where(nearer, distance, distances),
                jnp.where(nearer, value, chosen),
                _where(nearer, gradient, gradients),
            )

        start = (jnp.full(labels.shape, jnp.inf, points.dtype), values[:, 0], points * 0)
        _, chosen, gradients = jax.lax.fori_loop(0, classes, consider, start)
        return chosen, gradients

    return linearize


def advance(forward, linearize, images, labels, state: State, first, last, eps, options) -> State:
    """Steps ``first`` to ``last - 1``, stopping when no image is left with early exit.

    Args:
        forward: from points and the number of the evaluation to logits.
        linearize: :func:`targeted` or :func:`untargeted`.
        images: x of shape (B, ...).
        labels: of shape (B,).
        state: the state before.
        first: number of the first step.
        last: one more than that of the last.
        eps: the radius.
        options: fixed options.

    Returns:
        The state after.
    """

    def unfinished(carry):
        number, state = carry
        going = number < last
        return going & state.robust.any() if options.early_exit else going

    def body(carry):
        number, state = carry
        return number + 1, step(forward, linearize, images, labels, state, number, eps, options)

    return jax.lax.while_loop(unfinished, body, (jnp.asarray(first, jnp.int32), state))[1]


def step(forward, linearize, images, labels, state: State, number, eps, options) -> State:
    """Towards the linearised boundary, biased towards the clean image; then back if beyond it."""
    x, norm = state.points, options.norm
    values, gradients = linearize(x, 2 * number)
    rows = x.shape[0]
    normals = gradients.reshape(rows, -1)
    from_image = values + jnp.sum(normals * (images - x).reshape(rows, -1), axis=1)
    both = project_to_hyperplane(
        jnp.concatenate([x, images]).reshape(2 * rows, -1),
        jnp.concatenate([normals, normals]),
        jnp.concatenate([values, from_image]),
        norm,
    )
    lengths = jnp.maximum(_norms(both, norm), 1e-8)
    alpha = _column(bias(lengths[:rows], lengths[rows:], options.alpha_max), x)
    moves = both.reshape(2, *x.shape)
    points = (x + options.eta * moves[0]) * (1 - alpha) + (images + options.eta * moves[1]) * alpha
    points = jnp.clip(points, 0, 1)

    wrong = ~is_correct(forward(points, 2 * number + 1), labels)
    alive = state.robust if options.early_exit else jnp.ones_like(state.robust)
    sizes = _norms(points - images, norm)
    better = wrong & alive & (sizes < state.norms)
    norms = jnp.where(better, sizes, state.norms)
    within = norms <= eps
    at = jnp.asarray(number, jnp.int32)
    return State(
        points=_where(wrong, images + options.beta * (points - images), points),
        adversarial=_where(better, points, state.adversarial),
        norms=norms,
        robust=state.robust & ~within,
        steps=state.steps + alive.astype(jnp.int32),
        broken_at=jnp.where(within & (state.broken_at < 0), at, state.broken_at),
    )


def bias(from_point: Array, from_image: Array, alpha_max: float) -> Array:
    """Weight of the step from the clean image: alpha of the paper, for each image.

    Args:
        from_point: lengths of the steps from the current points, of shape (B,).
        from_image: lengths of the steps from the clean images.
        alpha_max: the largest weight.
    """
    return jnp.clip(from_point / (from_point + from_image), 0, alpha_max)


def _select(logits: Array, classes: Array) -> Array:
    return jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]
