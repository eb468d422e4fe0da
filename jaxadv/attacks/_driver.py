"""The driver of all attacks: runs a kernel on one batch, or step by step on blocks of images.

:func:`attack` is a public attack as one compiled program. :func:`begin` and :func:`advance`
are the same steps one by one, for AutoAttack, which regroups images between them.
They work on chunks of shape (blocks, rows, H, W, C); the blocks are worked on one after the other
(and in parallel over devices), each by its own loop, which ends when the block has no image left.
On CPU a block has a fixed number of rows, whatever the batch size: XLA's kernels round differently
for different shapes, and a fixed shape makes the result of an image bit for bit independent of the
batch size, of the other images and of the number of devices. This costs nothing on CPU; on
accelerators a block is as large as the batch.
"""

import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jax.tree_util import Partial

from .._program import digest, program_of
from .._program import trace as trace_program
from ..types import Array, Key, Norm, PyTree
from . import _model, _rows
from ._kernel import Batch, Kernel, Outcome


class Stream(enum.IntEnum):
    """The random streams of a randomized model. Runs of an attack have their own streams."""

    CLEAN = 0
    RUN = 1
    FILTER = 2
    RECHECK = 3
    VOTE = 4
    JUDGE = 5


class Found(NamedTuple):
    """The combined result of all runs of a kernel, one row per image; see :class:`Outcome`.

    Attributes:
        correct: whether the clean image is classified correctly.
        outcome: of all runs together; a misclassified clean image counts as success.
        events: the recorded trace, if any.
    """

    correct: Array
    outcome: Outcome
    events: Any = None


@functools.partial(
    jax.jit, static_argnames=("kernel", "norm", "randomized", "trace", "best", "every")
)
def attack(
    given: _model.Given,
    draws: Any = None,
    *,
    kernel: Kernel,
    norm: Norm,
    randomized: bool = False,
    trace: bool = False,
    best: bool = False,
    every: bool = False,
) -> Found:
    """All runs of a kernel on one batch.

    Args:
        given: what is attacked, the model traced for the batch.
        draws: random numbers in place of the key's, as the kernel takes them.
        kernel: the attack.
        norm: the norm.
        randomized: whether the model takes a key.
        trace: whether to record every step of the only run (``kernel.traced_step``).
        best: whether to keep the highest-scoring point instead of the last run's.
        every: whether later runs also attack broken images.
    """
    key, model, images, labels, indices, eps = given
    logits = _logits(model, key, indices, randomized)
    correct = _model.is_correct(logits(Stream.CLEAN, 0)(images, 0), labels)

    def run(number: Array, found: Found) -> Found:
        active = jnp.ones_like(correct) if every else ~found.outcome.success
        batch = Batch(
            images, labels, active, norm, eps, key, indices, number,
            logits(Stream.RUN, number), draws,
        )  # fmt: skip
        new, events = _run(kernel, batch, trace)
        if kernel.final_pass:
            new = new._replace(success=new.success & ~batch.correct(new.images, 0))
        return _merge(found, batch, new, best, events)

    zeros = jnp.zeros_like(labels)
    lowest = jnp.full(labels.shape, -jnp.inf, images.dtype)
    # Misclassified clean images count as broken by the clean pass, without a step. A trace has all.
    broken = ~(correct | trace)
    nothing = Outcome(images, broken, images, lowest, zeros, zeros - 1, zeros + 1, zeros, zeros)
    found = Found(correct, nothing)
    if kernel.num_runs == 1:
        found = run(jnp.int32(0), found)
    else:
        found = jax.lax.fori_loop(0, kernel.num_runs, run, found)
    return jax.lax.stop_gradient(found)


def _run(kernel: Kernel, batch: Batch, trace: bool = False) -> tuple[Any, Any]:
    """One run of a kernel through all its phases: its outcome, and the trace of the last phase."""
    state, events, phases = None, None, kernel.phases()
    for phase in phases:
        if state is None:
            state = phase.begin(batch)
            _check_state(state, type(kernel).__name__, len(batch.images))
        else:
            state = phase.resume(batch, state)
        if trace:
            step = functools.partial(phase.traced_step, batch)
            numbers = jnp.arange(phase.first_step, phase.num_steps)
            state, events = jax.lax.scan(step, state, numbers)
        else:
            state = phase.advance(batch, state, phase.first_step, phase.num_steps)
    return phases[-1].outcome(batch, state), events


def _merge(found: Found, batch: Batch, new: Outcome, best: bool, events: Any) -> Found:
    """Combines the results so far with one more run."""
    old, active = found.outcome, batch.active
    better = active & (new.scores > old.scores) if best else active
    count = lambda before, now: before + jnp.where(active, now, 0)
    first = new.success & (old.broken_at < 0)
    outcome = Outcome(
        images=_rows.where(new.success, new.images, old.images),
        success=old.success | new.success,
        best_images=_rows.where(better, new.best_images, old.best_images),
        scores=jnp.where(better, new.scores, old.scores),
        steps=count(old.steps, new.steps),
        broken_at=jnp.where(first, old.steps + new.broken_at, old.broken_at),
        forward=count(old.forward, new.forward),
        backward=count(old.backward, new.backward),
        zero_gradients=count(old.zero_gradients, new.zero_gradients),
    )
    return Found(found.correct, outcome, events)


def code_of(kernel: Kernel, shape: tuple[int, ...], num_classes: int, norm: Norm) -> str:
    """A digest of a user's retraced kernel: its code, and the globals it reads.

    It keys compiled programs and stores, so that a kernel edited in a notebook is never confused
    with its old version. The library's own kernels are identified by their options.

    Args:
        kernel: the attack.
        shape: of an image.
        num_classes: K.
        norm: the norm.

    Raises:
        ValueError: if it cannot run, or its state or outcome does not have one row per image.
    """
    try:
        hash(kernel)
    except TypeError as error:
        raise ValueError(
            f"{type(kernel).__name__} has options that are not hashable ({error}); "
            "use numbers, strings and tuples"
        ) from None
    if type(kernel).__module__.startswith(f"{__package__}."):
        return ""
    rows = 2  # of a toy model
    name = type(kernel).__name__

    def run(
        images: Array, labels: Array, eps: Array, key: Key, indices: Array, run: Array
    ) -> Outcome:
        active = jnp.ones(rows, bool)
        weights = jnp.arange(1, num_classes + 1, dtype=images.dtype)
        logits = lambda points, number: points.mean((1, 2, 3))[:, None] * weights[None]
        batch = Batch(images, labels, active, norm, eps, key, indices, run, logits)
        return _run(kernel, batch)[0]

    def arguments() -> tuple:
        images, eps = jnp.zeros((rows, *shape), jnp.float32), jnp.float32(0)
        integers, number = jnp.zeros(rows, jnp.int32), jnp.int32(0)
        return images, integers, eps, jax.random.key(0), integers, number

    program = trace_program(run, *jax.eval_shape(arguments), name=name)
    if not isinstance(program_of(program).out, Outcome):
        raise ValueError(f"outcome of {name} does not return a jaxadv.attacks.Outcome")
    return digest(program)


def _check_state(state: Any, name: str, rows: int) -> None:
    for leaf in jax.tree.leaves(state):
        if jnp.shape(leaf)[:1] != (rows,):
            raise ValueError(
                f"the state of {name} has an array of shape {jnp.shape(leaf)} for {rows} images; "
                "every array needs one row per image"
            )
    if getattr(getattr(state, "robust", None), "dtype", None) != jnp.bool:
        raise ValueError(
            f"the state of {name} needs a boolean array robust that marks images still to attack"
        )


class Rows(NamedTuple):
    """The images of a chunk: leading axes (blocks, rows), or (rows,) inside a block.

    Attributes:
        images: clean images.
        labels: true classes.
        indices: indices in the data set.
        active: False for padding.
    """

    images: Array
    labels: Array
    indices: Array
    active: Array


class Shared(NamedTuple):
    """What the blocks of a chunk have in common.

    Attributes:
        model: traced for the rows of a block.
        key: of the attack.
        eps: radius, of shape ().
        run: number of the run.
    """

    model: Partial
    key: Key
    eps: Array
    run: Array


class Program(NamedTuple):
    """The static arguments of a compiled program: a kernel, its code, and the devices."""

    kernel: Kernel
    code: str
    norm: Norm
    randomized: bool
    mesh: Mesh | None

    def batch(self, shared: Shared, rows: Rows) -> Batch:
        """The rows of a block, as the kernel takes them."""
        model, key, eps, run = shared
        logits = _logits(model, key, rows.indices, self.randomized)(Stream.RUN, run)
        images, labels, indices, active = rows
        return Batch(images, labels, active, self.norm, eps, key, indices, run, logits)


@functools.partial(jax.jit, static_argnames="program")
def begin(shared: Shared, rows: Rows, before: Any, *, program: Program) -> Any:
    """The state of a run before its first step, or where a phase takes over from ``before``."""

    def block(shared: Shared, rows: Rows, before: Any) -> Any:
        batch, kernel = program.batch(shared, rows), program.kernel
        return kernel.begin(batch) if before is None else kernel.resume(batch, before)

    return _over_blocks(block, program.mesh, shared, rows, before)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def advance(
    shared: Shared, rows: Rows, state: Any, span: Array, *, program: Program
) -> tuple[Any, Outcome]:
    """The state after the steps span[0] to span[1] - 1, and what it amounts to."""

    def block(common: tuple[Shared, Array], rows: Rows, state: Any) -> tuple[Any, Outcome]:
        shared, span = common
        batch, kernel = program.batch(shared, rows), program.kernel
        last = jnp.where(rows.active.any(), span[1], span[0])  # nothing to do if all is padding
        state = kernel.advance(batch, state, span[0], last)
        return state, kernel.outcome(batch, state)

    return _over_blocks(block, program.mesh, (shared, span), rows, state)


@functools.partial(jax.jit, static_argnames=("randomized", "mesh"))
def logits_of(
    model: Partial,
    key: Key,
    stream: tuple[Array, Array],
    images: Array,
    indices: Array,
    *,
    randomized: bool,
    mesh: Mesh | None,
) -> Array:
    """Logits of a chunk, (blocks, rows, K); ``stream`` is one of :class:`Stream` and a number.

    With blocks of one row, every image is evaluated alone.
    """

    def block(common: tuple, images: Array, indices: Array) -> Array:
        model, key, stream = common
        return _logits(model, key, indices, randomized)(*stream)(images, 0)

    return _over_blocks(block, mesh, (model, key, stream), images, indices)


@jax.jit
def regroup(tree: PyTree, order: Array) -> PyTree:
    """The rows of a chunk in another order, of shape (blocks, rows)."""
    return jax.tree.map(lambda values: values.reshape(-1, *values.shape[2:])[order], tree)


def _logits(
    model: Partial, key: Key, indices: Array, randomized: bool
) -> Callable[[int | Array, int | Array], _model.Forward]:
    """The model for a stream and a number in it, as a function of points and one more number."""

    def of(stream: int | Array, number: int | Array) -> _model.Forward:
        if not randomized:
            return lambda points, draw: model(points)
        # One key per image, from its index in the data set: its draws are the same in any batch.
        keys = _model.fold(_model.model_keys(key, indices), stream)
        return _model.forward_fn(model, _model.fold(keys, number))

    return of


def _over_blocks(block: Callable, mesh: Mesh | None, common: Any, *split: Any) -> Any:
    """Maps over the leading axis of the arguments after ``common``, split over the devices."""
    chunk = lambda common, *split: jax.lax.map(lambda part: block(common, *part), split)
    if mesh is not None:
        # Blocks do not communicate: every device runs its own loops to their ends.
        each = PartitionSpec(mesh.axis_names[0])
        specs = (PartitionSpec(), *(each for _ in split))
        chunk = jax.shard_map(chunk, mesh=mesh, in_specs=specs, out_specs=each, check_vma=False)
    return chunk(common, *split)
