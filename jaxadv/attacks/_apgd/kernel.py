r"""One run of APGD: its schedule of checkpoints, its state and its step.

The state holds one row an image and nothing else, so rows can be gathered, dropped and regrouped
between steps. Step -1 evaluates the start point; steps 0 to N - 1 move and evaluate. Everything is
per row: which other images are in the batch does not matter.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Array, Key, Norm
from ._apgd_l1 import order_statistic, project_l1_box

Rule = Literal["repo", "paper"]

# points and the number of the evaluation -> losses (B,), whether still correct (B,), gradients
Evaluate = Callable[[Array, Array], tuple[Array, Array, Array]]

_TINY = 1e-12
_MOMENTUM = 0.75
_INITIAL_TOPK = 0.2


class Options(NamedTuple):
    """What is fixed for a run, and for its compiled program."""

    norm: Norm
    num_steps: int
    rho: float = 0.75
    rule: Rule = "repo"
    early_exit: bool = False
    l1_exact_zeros: bool = True


class State(NamedTuple):
    """One row an image.

    Attributes:
        points: the iterate.
        previous: the iterate before it.
        gradients: the gradient that the next step follows.
        best_images: the point with the largest loss so far.
        best_gradients: its gradient.
        best_losses: its loss.
        adversarial: the latest misclassified iterate (the first with early exit).
        robust: whether no iterate was misclassified yet.
        broken_at: number of the first misclassified evaluation, -1 if none.
        evaluations: how many evaluations the image has used.
        zero_gradients: how many of them had a gradient of exactly 0.
        last_losses: the loss of the evaluation before.
        increases: how often the loss grew since the last checkpoint.
        check_losses: the best loss at the last checkpoint.
        reduced: whether the last checkpoint reduced the step.
        step_sizes: eta.
        topk: L1: the fraction of coordinates that a step may change.
        sparsity: L1: the number of changed coordinates at the last checkpoint.
    """

    points: Array
    previous: Array
    gradients: Array
    best_images: Array
    best_gradients: Array
    best_losses: Array
    adversarial: Array
    robust: Array
    broken_at: Array
    evaluations: Array
    zero_gradients: Array
    last_losses: Array
    increases: Array
    check_losses: Array
    reduced: Array
    step_sizes: Array
    topk: Array
    sparsity: Array


class Trace(NamedTuple):
    """What happened in each evaluation, stacked: the first is that of the start point.

    Attributes:
        points: of shape (N + 1, B, H, W, C).
        losses: of shape (N + 1, B).
        gradient_norms: L2 norms of the gradients, of shape (N + 1, B).
        correct: whether the point was classified correctly, of shape (N + 1, B).
        step_sizes: eta after the evaluation, of shape (N + 1, B).
        reduced: whether eta was reduced here, of shape (N + 1, B).
        checked: whether the evaluation was a checkpoint, of shape (N + 1,).
    """

    points: Array
    losses: Array
    gradient_norms: Array
    correct: Array
    step_sizes: Array
    reduced: Array
    checked: Array


def checkpoints(num_steps: int, norm: Norm = "linf", rule: Rule = "repo") -> list[int]:
    """The numbers of steps after which the step size is examined.

    Args:
        num_steps: N.
        norm: with "l1" the checkpoints are equidistant.
        rule: "repo" for the recursion of the reference code with its truncations, "paper" for
            ``ceil(p_j N)`` with ``p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)``.

    Returns:
        Increasing numbers in [1, num_steps].

    Example:
        >>> checkpoints(100)
        [22, 41, 57, 70, 80, 87, 93, 99]
    """
    found = []
    if norm == "l1":
        window = max(int(0.04 * num_steps), 1)
        return list(range(window, num_steps + 1, window))
    if rule == "paper":
        # In hundredths, so that ceil sees exact numbers: 0.22 + 0.19 + ... drifts in floats.
        before, now = 0, 22
        while now <= 100:
            found.append(-(-now * num_steps // 100))
            before, now = now, now + max(now - before - 3, 6)
        return sorted(set(found))
    window = max(int(0.22 * num_steps), 1)
    shortest, shrink = max(int(0.06 * num_steps), 1), max(int(0.03 * num_steps), 1)
    now = window
    while now <= num_steps:
        found.append(now)
        window = max(window - shrink, shortest)
        now += window
    return found


def start_points(images: Array, noise: Array, norm: Norm, eps) -> Array:
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
    return jnp.clip(
        images + _column(eps, noise) * (noise / _column(_norms(noise, norm) + _TINY, noise)), 0, 1
    )


def draw_noise(keys: Key, images: Array, norm: Norm) -> Array:
    """One draw of start noise an image, from one key an image."""
    shape, dtype = images.shape[1:], images.dtype
    if norm == "linf":
        return jax.vmap(lambda key: jax.random.uniform(key, shape, dtype, -1, 1))(keys)
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def begin(images: Array, start: Array, active: Array, eps, options: Options, explicit) -> State:
    """The state before the start point is evaluated.

    Args:
        images: x of shape (B, ...).
        start: the start points, in the box.
        active: (B,) whether to attack the image at all.
        eps: the radius of this run, of shape () or (B,).
        options: fixed options.
        explicit: whether the start was supplied, not drawn: decides the first sparsity of L1.

    Returns:
        The state.
    """
    rows, dtype = images.shape[0], images.dtype
    size = math.prod(images.shape[1:])
    full = lambda value, kind: jnp.full((rows,), value, kind)
    topk, sparsity = full(_INITIAL_TOPK, dtype), full(size, dtype)
    if options.norm == "l1" and explicit:
        sparsity = _sparsity(start, images)
        topk = sparsity / size / 1.5
    eta = 1.0 if options.norm == "l1" else 2.0
    return State(
        points=start,
        previous=start,
        gradients=jnp.zeros_like(start),
        best_images=start,
        best_gradients=jnp.zeros_like(start),
        best_losses=full(-jnp.inf, dtype),
        adversarial=images,
        robust=active,
        broken_at=full(-1, jnp.int32),
        evaluations=full(0, jnp.int32),
        zero_gradients=full(0, jnp.int32),
        last_losses=full(0, dtype),
        increases=full(0, jnp.int32),
        check_losses=full(-jnp.inf, dtype),
        reduced=full(True, bool),
        step_sizes=jnp.broadcast_to(jnp.asarray(eta * eps, dtype), (rows,)),
        topk=topk,
        sparsity=sparsity,
    )


def advance(evaluate: Evaluate, images: Array, state: State, first, last, eps, options) -> State:
    """Steps ``first`` to ``last - 1``, stopping when no image is left with early exit.

    Args:
        evaluate: the model, its loss and its gradient.
        images: x of shape (B, ...).
        state: the state before step ``first``.
        first: -1 for a fresh state.
        last: at most ``options.num_steps``.
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
        return number + 1, step(evaluate, images, state, number, eps, options)[0]

    return jax.lax.while_loop(unfinished, body, (jnp.asarray(first, jnp.int32), state))[1]


def step(
    evaluate: Evaluate, images: Array, state: State, number, eps, options: Options
) -> tuple[State, Trace]:
    """One step, its evaluation and, where it is due, the checkpoint."""
    starting = number < 0
    alive = state.robust if options.early_exit else jnp.ones_like(state.robust)
    points = jnp.where(starting, state.points, _move(images, state, number, eps, options))
    losses, correct, gradients = evaluate(points, number + 1)

    failed = ~correct & alive
    at = jnp.asarray(number + 1, jnp.int32)
    news = failed & state.robust if options.early_exit else failed
    better = losses > state.best_losses
    grew = losses > state.last_losses
    # The reference compares the first loss with the last, still empty row of its history: 0.
    empty = jnp.inf if options.num_steps == 1 else 0.0
    baseline = losses if options.rule == "paper" else jnp.full_like(losses, empty)
    zero = jnp.sum(jnp.abs(gradients), axis=tuple(range(1, gradients.ndim))) == 0
    state = state._replace(
        points=points,
        previous=jnp.where(starting, state.previous, state.points),
        gradients=gradients,
        best_images=_where(better, points, state.best_images),
        best_gradients=_where(better, gradients, state.best_gradients),
        best_losses=jnp.where(better, losses, state.best_losses),
        adversarial=_where(news, points, state.adversarial),
        robust=state.robust & correct,
        broken_at=jnp.where((state.broken_at < 0) & failed, at, state.broken_at),
        evaluations=state.evaluations + alive.astype(jnp.int32),
        zero_gradients=state.zero_gradients + (zero & alive).astype(jnp.int32),
        last_losses=jnp.where(starting, baseline, losses),
        increases=jnp.where(starting, 0, state.increases + grew.astype(jnp.int32)),
        check_losses=jnp.where(starting, losses, state.check_losses),
    )
    due, windows = _calendar(options)
    checked = jnp.asarray(due)[jnp.maximum(number, 0)] & ~starting
    window = jnp.asarray(windows)[jnp.maximum(number, 0)]
    before = state.step_sizes
    check = _check_l1 if options.norm == "l1" else _check
    state = jax.lax.cond(
        checked, lambda s: check(images, s, window, eps, options), lambda s: s, state
    )
    lengths = _norms(gradients, "l2")
    reduced = state.step_sizes < before
    return state, Trace(points, losses, lengths, correct, state.step_sizes, reduced, checked)


def _calendar(options: Options) -> tuple[np.ndarray, np.ndarray]:
    """For every step, whether it ends with a checkpoint and the length of its window."""
    at = checkpoints(options.num_steps, options.norm, options.rule)
    due = np.zeros(max(options.num_steps, 1), bool)
    windows = np.ones(max(options.num_steps, 1), np.int32)
    for before, now in zip([0, *at], at, strict=False):
        due[now - 1] = True
        windows[now - 1] = now - before
    return due, windows


def _move(images: Array, state: State, number, eps, options: Options) -> Array:
    """The next iterate."""
    x, gradients = state.points, state.gradients
    eta = _column(state.step_sizes, x)
    if options.norm == "l1":
        return _move_l1(images, x, gradients, eta, state.topk, eps, options)
    if options.norm == "linf":
        target = _project(images, x + eta * jnp.sign(gradients), eps, "linf")
    else:
        direction = gradients / _column(_norms(gradients, "l2") + _TINY, gradients)
        target = _project(images, x + eta * direction, eps, "l2")
    a = jnp.where(number == 0, 1.0, _MOMENTUM).astype(x.dtype)
    return _project(
        images, x + a * (target - x) + (1 - a) * (x - state.previous), eps, options.norm
    )


def _move_l1(images, x, gradients, eta, topk, eps, options: Options) -> Array:
    """No momentum: the signs of the largest gradient entries, then the exact projection."""
    magnitudes = jnp.abs(gradients).reshape(x.shape[0], -1)
    size = magnitudes.shape[1]
    rank = jnp.clip((1 - topk) * size, 0, size - 1).astype(jnp.int32)
    threshold = order_statistic(magnitudes, rank)
    signs = jnp.sign(jnp.where(magnitudes >= threshold[:, None], gradients.reshape(-1, size), 0))
    signs = signs.reshape(x.shape)
    moved = x + eta * signs / _column(_norms(signs, "l1") + 1e-10, x)
    deltas = moved - images
    inside = project_l1_box(images, deltas, eps)
    if options.l1_exact_zeros:
        return images + inside
    return images + deltas + (inside - deltas)


def _project(images: Array, points: Array, eps, norm: Norm) -> Array:
    eps = _column(eps, images)
    if norm == "linf":
        return jnp.clip(jnp.clip(points, images - eps, images + eps), 0, 1)
    deltas = points - images
    lengths = _column(_norms(deltas, "l2"), deltas)
    return jnp.clip(images + deltas / (lengths + _TINY) * jnp.minimum(eps, lengths), 0, 1)


def _check(images: Array, state: State, window, eps, options: Options) -> State:
    """Halves eta and returns to the best point where the loss oscillates or has stalled."""
    limit = window.astype(jnp.float32) * options.rho
    increases = state.increases.astype(jnp.float32)
    oscillates = increases < limit if options.rule == "paper" else increases <= limit
    stalled = ~state.reduced & (state.check_losses >= state.best_losses)
    reduce = oscillates | stalled
    return state._replace(
        points=_where(reduce, state.best_images, state.points),
        gradients=_where(reduce, state.best_gradients, state.gradients),
        increases=jnp.zeros_like(state.increases),
        check_losses=state.best_losses,
        reduced=reduce,
        step_sizes=jnp.where(reduce, state.step_sizes / 2, state.step_sizes),
    )


def _check_l1(images: Array, state: State, window, eps, options: Options) -> State:
    """Restarts from the best point with a full step where it has become sparser."""
    sparsity = _sparsity(state.best_images, images)
    # From 0 changed coordinates (the best point was the image itself) nothing becomes sparser.
    ratio = sparsity / jnp.maximum(state.sparsity, 1)
    sparser = (state.sparsity > 0) & (ratio < 0.95)
    eta = jnp.where(sparser, eps, state.step_sizes / 1.5).astype(state.step_sizes.dtype)
    return state._replace(
        points=_where(sparser, state.best_images, state.points),
        gradients=_where(sparser, state.best_gradients, state.gradients),
        step_sizes=jnp.clip(eta, eps / 10, eps).astype(eta.dtype),
        topk=sparsity / math.prod(images.shape[1:]) / 1.5,
        sparsity=sparsity,
    )


def _sparsity(points: Array, images: Array) -> Array:
    changed = (points != images).reshape(images.shape[0], -1)
    return changed.sum(axis=1).astype(images.dtype)


def _norms(deltas: Array, norm: Norm) -> Array:
    flat = deltas.reshape(deltas.shape[0], -1)
    if norm == "linf":
        return jnp.abs(flat).max(axis=1)
    return jnp.sqrt((flat**2).sum(axis=1)) if norm == "l2" else jnp.abs(flat).sum(axis=1)


def _column(values: Array, like: Array) -> Array:
    """One value an image, or one for all, in a shape that multiplies images."""
    return jnp.reshape(values, (-1,) + (1,) * (like.ndim - 1))


def _where(mask: Array, yes: Array, no: Array) -> Array:
    return jnp.where(_column(mask, yes), yes, no)
