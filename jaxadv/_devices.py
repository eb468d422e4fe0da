"""Data parallelism by hand: each device works on its own rows, and the results are averaged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

from .types import Array, PyTree


def batch_axis(sharding: Any, batch_size: int) -> str:
    """The name of the mesh axis over which ``sharding`` splits the images of a minibatch.

    Raises:
        ValueError: if it is not a ``NamedSharding`` of the first axis over one mesh axis, or the
            devices cannot get equal shares.
    """
    spec = tuple(sharding.spec) if isinstance(sharding, NamedSharding) else ()
    if len(spec) != 1 or not isinstance(spec[0], str):
        raise ValueError(
            f"sharding={sharding} does not split the first axis over one mesh axis; pass "
            "NamedSharding(mesh, PartitionSpec('batch'))"
        )
    devices = sharding.mesh.shape[spec[0]]
    if batch_size % devices:
        raise ValueError(
            f"batch_size={batch_size} is not a multiple of {devices} devices, which "
            "sync_batch_norm=False needs; change either"
        )
    return spec[0]


def averaged(tree: PyTree, axis: str) -> PyTree:
    """The mean of ``tree`` over the devices of a mesh axis, in one all-reduce."""
    # As one vector: an all-reduce per leaf would cost its latency a hundred times per minibatch.
    vector, restore = ravel_pytree(tree)
    return restore(jax.lax.pmean(vector, axis)) if vector.size else tree


def all_at_once(function: Callable) -> Callable:
    """``function(shared, rows, None)`` of all rows at once; see `on_each_device`."""
    return lambda shared, rows: function(shared, rows, None)


def on_each_device(
    function: Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]], sharding: Any
) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]:
    """Runs ``function(shared, rows, indices) -> (results, by_row)`` on every device's rows alone.

    ``indices`` are the positions of the device's rows in the minibatch. The compiler adds no
    communication; the only one is the average of ``results`` over the devices.

    Args:
        function: of values shared by all devices, and a pytree of arrays with a row per image.
        sharding: that of the rows, see `batch_axis`.

    Returns:
        A function of ``shared`` and all ``rows``, for use inside ``jax.jit``.
    """
    [axis] = sharding.spec

    def local(shared: PyTree, rows: PyTree) -> tuple[PyTree, PyTree]:
        size = jax.tree.leaves(rows)[0].shape[0]
        indices = jax.lax.axis_index(axis) * size + jnp.arange(size)
        results, by_row = function(shared, rows, indices)
        return averaged(results, axis), by_row

    everywhere, split = PartitionSpec(), PartitionSpec(axis)
    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(everywhere, split),
        out_specs=(everywhere, split),
        check_vma=False,  # gradients inside are those of the device's own rows
    )
