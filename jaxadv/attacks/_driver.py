"""All runs of an APGD attack, its restarts and targets, as one compiled program."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._checks import check_choice, check_count
from .._types import Array
from . import _apgd_run as runs
from . import _model
from ._apgd_parts import MIN_CLASSES, evaluator, phase_start, phases

RULES = ("repo", "paper")
_MODEL_STREAM = 2**31 - 1  # beyond the numbers of runs, which share the image's key


class ApgdResult(NamedTuple):
    """What APGD found, one row an image.

    Attributes:
        images: the adversarial image where there is one, else the clean image (with ``best_loss``
            the image of the largest loss).
        success: whether ``images`` is misclassified.
        best_images: the point with the largest loss in the last run of the image.
        best_losses: its loss.
        robust: whether no evaluated point of any run was misclassified.
        broken_at: number of the evaluation, over all runs, that was first misclassified; -1: none.
        forward: number of forward passes of the image.
        backward: number of backward passes of the image.
        zero_gradients: how many of those gradients were exactly 0.
        trace: with ``trace=True`` everything that happened, else None.
    """

    images: Array
    success: Array
    best_images: Array
    best_losses: Array
    robust: Array
    broken_at: Array
    forward: Array
    backward: Array
    zero_gradients: Array
    trace: runs.Trace | None


def run_all(key, logits_fn, images, labels, *, eps, noise, start, indices, **static) -> ApgdResult:
    """Checks the arguments of the public functions and runs the compiled program."""
    options, loss = static["options"], static["loss"]
    check_count("num_steps", options.num_steps, 3 if static["three_radii"] else 1)
    check_count("eot", static["eot"], 1)
    check_choice("rule", options.rule, RULES)
    given = _model.prepare(
        key, logits_fn, images, labels, norm=options.norm, eps=eps, indices=indices,
        randomized=static["randomized"], per_image=True,
    )  # fmt: skip
    classes = given.num_classes
    if classes < MIN_CLASSES[loss]:
        raise ValueError(
            f"loss={loss!r} needs at least {MIN_CLASSES[loss]} classes "
            f"and the model has {classes}; "
            "use loss='ce' or loss='margin' (untargeted) or loss='ce-targeted'"
        )
    static["targets"] = min(static["targets"], classes - 1)
    num_runs = max(static["targets"], 1) * static["num_restarts"]
    if noise is not None and noise.shape != (num_runs, *images.shape):
        raise ValueError(f"noise has shape {noise.shape}; expected {(num_runs, *images.shape)}")
    if start is not None and start.shape != images.shape:
        raise ValueError(f"start has shape {start.shape}; expected {images.shape}")
    if static["trace"] and (num_runs > 1 or static["three_radii"]):
        raise ValueError(f"trace=True records one run, not {num_runs}; ask for one restart")
    return _compiled(
        given.key,
        given.model,
        given.images,
        given.labels,
        given.indices,
        None if noise is None else _model.on_device(noise),
        None if start is None else _model.on_device(start),
        given.eps,
        **static,
    )


@functools.partial(
    jax.jit,
    static_argnames=(
        "options",
        "loss",
        "targets",
        "num_restarts",
        "eot",
        "three_radii",
        "best_loss",
        "randomized",
        "trace",
    ),
)
def _compiled(
    key,
    model,
    images,
    labels,
    indices,
    noise,
    start,
    eps,
    *,
    options,
    loss,
    targets,
    num_restarts,
    eot,
    three_radii,
    best_loss,
    randomized,
    trace,
) -> ApgdResult:
    keys = _model.image_keys(key, indices)
    model_keys = _model.fold(keys, _MODEL_STREAM)
    forward = _model.forward_fn(model, model_keys, randomized)
    clean = forward(images, jnp.int32(0))
    correct = _model.is_correct(clean, labels)
    num_runs = max(targets, 1) * num_restarts
    parts = phases(options, three_radii)
    per_run = sum(part.num_steps + 1 for _, part in parts)

    def run(number, found):
        target = None
        if targets:
            # The barrier makes this a pass of its own in every run, as counted (and as published).
            again, _ = jax.lax.optimization_barrier((images, found.forward))
            ranked = _model.rank_classes(forward(again, jnp.int32(0)))
            target = jnp.take(ranked, number // num_restarts + 1, axis=1)
        stride = 1 + per_run * eot
        shifted = lambda points, at: forward(points, at + number * stride + 1)
        evaluate = evaluator(shifted, loss, labels, target, eot)
        if noise is None:
            drawn = runs.draw_noise(_model.fold(keys, number), images, options.norm)
        else:
            drawn = noise[number]
        first_radius = parts[0][0] * eps
        points = runs.start_points(images, drawn, options.norm, first_radius)
        points = points if start is None else jnp.clip(start, 0, 1)
        active = jnp.ones_like(correct) if best_loss else found.robust
        spent = jnp.zeros(labels.shape, jnp.int32)
        zero = spent
        at = 0
        for factor, part in parts:
            if three_radii:
                points = phase_start(images, points, factor * eps)
            explicit = three_radii or start is not None
            state = runs.begin(images, points, active, factor * eps, part, explicit)
            counted = lambda points, step, at=at: evaluate(points, step + at)
            if trace:
                state, events = jax.lax.scan(
                    functools.partial(_traced, counted, images, factor * eps, part),
                    state,
                    jnp.arange(-1, part.num_steps),
                )
            else:
                events = None
                state = runs.advance(counted, images, state, -1, part.num_steps, factor * eps, part)
            points, at = state.best_images, at + part.num_steps + 1
            spent, zero = spent + state.evaluations, zero + state.zero_gradients
        broken = active & ~state.robust
        better = state.best_losses > found.best_losses if best_loss else active
        counts = jnp.where(active, spent, 0)
        # Evaluations of the phases before the last do not count as attempts, but as passes.
        first = found.backward // eot + (per_run - parts[-1][1].num_steps - 1) + state.broken_at
        return (
            found._replace(
                images=runs._where(broken, state.adversarial, found.images),
                best_images=runs._where(better, state.best_images, found.best_images),
                best_losses=jnp.where(better, state.best_losses, found.best_losses),
                robust=found.robust & ~broken,
                broken_at=jnp.where(broken & (found.broken_at < 0), first, found.broken_at),
                forward=found.forward + counts * eot + jnp.where(active, int(targets > 0), 0),
                backward=found.backward + counts * eot,
                zero_gradients=found.zero_gradients + jnp.where(active, zero, 0),
            ),
            events,
        )

    rows = labels.shape[0]
    found = ApgdResult(
        images=images,
        success=~correct,
        best_images=images,
        best_losses=jnp.full((rows,), -jnp.inf, images.dtype),
        robust=correct | trace,
        broken_at=jnp.full((rows,), -1, jnp.int32),
        forward=jnp.ones((rows,), jnp.int32),
        backward=jnp.zeros((rows,), jnp.int32),
        zero_gradients=jnp.zeros((rows,), jnp.int32),
        trace=None,
    )
    if num_runs == 1:
        found, events = run(0, found)
    else:
        found = jax.lax.fori_loop(0, num_runs, lambda n, found: run(n, found)[0], found)
        events = None
    result = found._replace(success=~found.robust, trace=events)
    if best_loss:
        logits = forward(found.best_images, num_runs * (1 + per_run * eot) + 1)
        wrong = ~_model.is_correct(logits, labels)
        result = result._replace(images=found.best_images, success=wrong, forward=found.forward + 1)
    return jax.lax.stop_gradient(result)


def _traced(evaluate, images, eps, options, state, number):
    return runs.step(evaluate, images, state, number, eps, options)
