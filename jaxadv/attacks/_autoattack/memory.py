"""Chooses the number of images in flight, and the devices."""

import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ... import losses
from ...keys import as_key
from ...types import Array, Key
from .problem import Problem

# Rows per block on CPU, whatever the batch size: a fixed shape always rounds the same way. Fewer
# of large images, which the cache of a core does not hold and which fill its kernels alone.
_CPU_ROWS, _CPU_BLOCK = 8, 8 * 64 * 64 * 3
_CPU_LANES = 256
_CPU_BLOCKS = 4  # per worker; fewer would compact badly
_CPU_BYTES = 2**29
_COPIES = 12  # image-sized arrays in the state of an attack


def default_devices() -> list:
    """All accelerators, or one CPU (an empty list: wherever JAX computes by default)."""
    return [] if jax.default_backend() == "cpu" else jax.local_devices()


def default_workers(devices: Sequence[Any]) -> int:
    """Number of chunks processed concurrently, by threads.

    XLA's kernels leave most of a many-core CPU idle on batches this small; concurrent chunks don't.
    """
    if devices or jax.default_backend() != "cpu":
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chunk_shapes(
    problem: Problem, batch_size: int | None, devices: Sequence[Any], workers: int
) -> tuple[int, ...]:
    """Number of blocks in a chunk, then the possible block sizes, decreasing.

    Args:
        problem: what is evaluated.
        batch_size: images in flight, or None.
        devices: devices that share a chunk.
        workers: chunks that are in flight.

    Returns:
        On CPU (blocks, rows), see :func:`cpu_rows`; elsewhere (devices, size, size / 2, size / 4,
        size / 8).
    """
    parts, images = max(len(devices), 1), problem.images
    if jax.default_backend() == "cpu":
        lanes = batch_size or _cpu_lanes(images, workers)
        rows = cpu_rows(images.shape[1:])
        number = math.ceil(min(lanes, len(images)) / rows)
        parts = max(parts, workers)
        return math.ceil(number / parts) * parts // workers, rows
    lanes = batch_size or _accelerator_lanes(problem, devices) * parts
    rows = math.ceil(min(lanes, len(images)) / parts)
    sizes = [math.ceil(rows / 2**halvings) for halvings in range(4)]
    return parts, *dict.fromkeys(size for size in sizes if size == rows or size >= 8)


def cpu_rows(shape: tuple[int, ...]) -> int:
    """Rows of a block on CPU, a power of two: 8 up to 64x64x3 pixels, 1 above 128x128x3."""
    most = max(_CPU_BLOCK // math.prod(shape), 1)
    return min(_CPU_ROWS, 1 << (most.bit_length() - 1))


def _cpu_lanes(images: np.ndarray, workers: int) -> int:
    rows = cpu_rows(images.shape[1:])
    room = _CPU_BYTES // (_COPIES * images[0].nbytes)
    return max(rows, min(max(_CPU_LANES, workers * _CPU_BLOCKS * rows), room))


def _accelerator_lanes(problem: Problem, devices: Sequence[Any]) -> int:
    """The largest power of two whose gradient fits into two fifths of the free memory."""
    rows, images = 1 if problem.randomized else 8, problem.images
    points = jax.ShapeDtypeStruct((rows, *images.shape[1:]), images.dtype)
    key = jax.eval_shape(lambda: as_key(0))
    lowered = _gradient.lower(points, problem.model(rows), key, randomized=problem.randomized)
    used = getattr(lowered.compile().memory_analysis(), "temp_size_in_bytes", 0) / rows
    used += _COPIES * images[0].nbytes
    stats = (devices[0] if devices else jax.local_devices()[0]).memory_stats() or {}
    free = stats.get("bytes_limit", 2**33) - stats.get("bytes_in_use", 0)
    return int(2 ** min(max(math.floor(math.log2(max(0.4 * free / used, 1))), 5), 11))


@functools.partial(jax.jit, static_argnames="randomized")
@jax.grad
def _gradient(points: Array, model: Partial, key: Key, randomized: bool) -> Array:
    """The gradient of an attack's step, whose memory counts."""
    logits = model(points, key) if randomized else model(points)
    return losses.cross_entropy(logits, jnp.zeros(len(points), jnp.int32)).sum()
