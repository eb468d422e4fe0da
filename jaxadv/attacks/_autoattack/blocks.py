"""The compiled programs of AutoAttack: every attack as operations on blocks of images.

A chunk of images has shape (blocks, rows, H, W, C). The blocks are worked on one after the other
(and in parallel over devices), each by its own loop, which ends when the block has no image left.
On CPU a block has a fixed number of rows, whatever the batch size: XLA's kernels round differently
for different shapes, and a fixed shape makes the result of an image bit for bit independent of the
batch size, of the other images and of the number of devices. It costs nothing there; on
accelerators a block is as large as the batch.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from .._types import Array, Norm
from . import _apgd_parts, _apgd_run, _fab_run, _model, _square, _square_run
from ._autoattack_plan import Attack

_MODEL_STREAM = 2**31 - 1


class Rows(NamedTuple):
    """The images of a chunk: leading axes (blocks, rows), or (rows,) inside a block.

    Attributes:
        images: clean images.
        labels: true classes.
        indices: places in the data set.
        active: False for padding.
    """

    images: Array
    labels: Array
    indices: Array
    active: Array


class Lanes(NamedTuple):
    """The state of a run, one row an image.

    Attributes:
        run: the state of the attack.
        targets: target classes.
        spent: evaluations of earlier phases of the run.
    """

    run: Any
    targets: Array
    spent: Array


class Program(NamedTuple):
    """What a compiled program is specialised to."""

    attack: Attack | None
    norm: Norm
    early_exit: bool
    randomized: bool
    mesh: Mesh | None


def phases(attack: Attack, norm: Norm, early_exit: bool) -> list[tuple[float, Any]]:
    """Factors of eps and options of the consecutive phases of a run."""
    if attack.kind == "apgd":
        options = _apgd_run.Options(norm, attack.steps, rule=attack.rule, early_exit=early_exit)
        return _apgd_parts.phases(options, attack.three_radii)
    if attack.kind == "fab":
        return [(1.0, _fab_run.Options(norm, attack.steps, early_exit=early_exit))]
    return [(1.0, _square_run.Options(norm, attack.steps, full_range=attack.full_range))]


def segments(attack: Attack, norm: Norm, early_exit: bool) -> list[tuple[int, int, int]]:
    """(phase, first step, end) between which finished images are taken out."""
    out = []
    for phase, (_, options) in enumerate(phases(attack, norm, early_exit)):
        if attack.kind == "square":
            stops = list(range(0, attack.steps, _square.SEGMENT)) + [attack.steps]
        else:
            first = -1 if attack.kind == "apgd" else 0
            stops = [first, *range(10, options.num_steps, 10), options.num_steps]
        out += [(phase, first, last) for first, last in zip(stops, stops[1:], strict=False)]
    return out


@functools.partial(jax.jit, static_argnames=("program", "phase"))
def enter(model, key, eps, run, rows: Rows, lanes, *, program: Program, phase: int) -> Lanes:
    """The state of a run (or of its next phase) before its first step."""

    def block(model, key, eps, run, rows, lanes):
        return _enter(model, key, eps, run, rows, lanes, program, phase)

    return _over_blocks(block, program.mesh)((model, key, eps, run), (rows, lanes))


@functools.partial(jax.jit, static_argnames=("program", "phase"), donate_argnames=("lanes",))
def advance(model, key, eps, run, span, rows, lanes, *, program: Program, phase: int) -> Lanes:
    """The state after the steps span[0] to span[1] - 1."""

    def block(model, key, eps, run, span, rows, lanes):
        return _advance(model, key, eps, run, span, rows, lanes, program, phase)

    return _over_blocks(block, program.mesh)((model, key, eps, run, span), (rows, lanes))


@functools.partial(jax.jit, static_argnames=("program",))
def logits_of(model, key, number, images, indices, *, program: Program) -> Array:
    """Logits of a chunk, (blocks, rows, K)."""

    def block(model, key, number, images, indices):
        return _forward(model, key, indices, program)(images, number)

    return _over_blocks(block, program.mesh)((model, key, number), (images, indices))


@functools.partial(jax.jit, static_argnames=("program",))
def logits_alone(model, key, number, images, indices, *, program: Program) -> Array:
    """Logits of images, each evaluated in a batch of its own: (B, H, W, C) to (B, K)."""

    def one(args):
        image, index = args
        return _forward(model, key, index[None], program)(image[None], number)[0]

    return jax.lax.map(one, (images, indices))


@functools.partial(jax.jit, static_argnames=("shape",))
def regroup(tree, order: Array, *, shape: tuple[int, int]):
    """The rows of a chunk in another order."""

    def take(values):
        flat = values.reshape(-1, *values.shape[2:])
        return flat[order].reshape(*shape, *values.shape[2:])

    return jax.tree.map(take, tree)


def _over_blocks(block, mesh: Mesh | None):
    """Maps over the leading axis of the second group of arguments, split over the devices."""

    def chunk(shared, split):
        return jax.lax.map(lambda part: block(*shared, *part), split)

    if mesh is None:
        return chunk
    specs = (PartitionSpec(), PartitionSpec(mesh.axis_names[0]))
    return jax.shard_map(chunk, mesh=mesh, in_specs=specs, out_specs=specs[1], check_vma=False)


def _forward(model, key, indices, program: Program) -> _model.Forward:
    if not program.randomized:
        return lambda points, number: model(points)
    keys = _model.fold(_model.image_keys(key, indices), _MODEL_STREAM)
    return _model.forward_fn(model, keys, True)


def _evaluations(forward, run):
    """Separates the draws of a randomised model in different runs."""
    return lambda points, number: forward(points, run * 100_000 + number)


def _enter(model, key, eps, run, rows: Rows, lanes, program: Program, phase: int) -> Lanes:
    attack, norm, images = program.attack, program.norm, rows.images
    assert attack is not None
    factor, options = phases(attack, norm, program.early_exit)[phase]
    keys = _model.image_keys(key, rows.indices)
    forward = _evaluations(_forward(model, key, rows.indices, program), run)
    zeros = jnp.zeros_like(rows.labels)
    targets = zeros
    active = rows.active
    if phase == 0 and attack.kind == "fab":
        # A pass of its own, as in the published code: counted, and therefore made.
        again, _ = jax.lax.optimization_barrier((images, run))
        active = active & _model.is_correct(forward(again, 0), rows.labels)
    if phase > 0:
        targets = lanes.targets
    elif attack.targets:
        ranked = _model.rank_classes(forward(images, 0))
        targets = jnp.take(ranked, run // attack.restarts + 1, axis=1).astype(zeros.dtype)
    if attack.kind == "square":
        keys = _square.image_keys(key, rows.indices, attack.shared)
        state = _square.start(forward, images, rows.labels, active, keys, None, eps, options)
        return Lanes(state, targets, zeros)
    noise = _model.fold(keys, run)
    if attack.kind == "fab":
        start = images
        if attack.restarts > 1:
            moved = _fab_run.random_start(
                images, _apgd_run.draw_noise(noise, images, norm), eps, norm
            )
            start = jnp.where(run % attack.restarts > 0, moved, images)
        return Lanes(_fab_run.begin(images, start, active), targets, zeros)
    if phase > 0:
        points, spent = lanes.run.best_images, lanes.spent + lanes.run.evaluations
    else:
        drawn = _apgd_run.draw_noise(noise, images, norm)
        points, spent = _apgd_run.start_points(images, drawn, norm, factor * eps), zeros
    if attack.three_radii:
        points = _apgd_parts.phase_start(images, points, factor * eps)
    state = _apgd_run.begin(images, points, active, factor * eps, options, attack.three_radii)
    return Lanes(state, targets, spent)


def _advance(model, key, eps, run, span, rows: Rows, lanes, program: Program, phase: int) -> Lanes:
    attack, images = program.attack, rows.images
    assert attack is not None
    factor, options = phases(attack, program.norm, program.early_exit)[phase]
    first = span[0]
    last = jnp.where(rows.active.any(), span[1], first)
    forward = _evaluations(_forward(model, key, rows.indices, program), run)
    if attack.kind == "apgd":
        shifted = lambda points, number: forward(points, 1000 * phase + 1 + number)
        evaluate = _apgd_parts.evaluator(
            shifted, attack.loss, rows.labels, lanes.targets, attack.eot
        )
        state = _apgd_run.advance(evaluate, images, lanes.run, first, last, factor * eps, options)
    elif attack.kind == "fab":
        if attack.targets:
            linearize = _fab_run.targeted(forward, rows.labels, lanes.targets)
        else:
            linearize = _fab_run.untargeted(forward, rows.labels, program.norm)
        state = _fab_run.advance(
            forward, linearize, images, rows.labels, lanes.run, first, last, eps, options
        )
    else:
        keys = _square.image_keys(key, rows.indices, attack.shared)
        state = _square.search(
            forward, images, rows.labels, lanes.run, keys, first // _square.SEGMENT, eps, options
        )
    return lanes._replace(run=state)
