"""Placement of minibatches, state and data on devices."""

import jax


def data_sharding(batch_size: int) -> jax.sharding.NamedSharding | None:
    """A sharding of minibatches over all devices of all hosts, or None for one device.

    Raises:
        ValueError: if the devices do not divide the minibatch; names sizes that they do.
    """
    count = jax.device_count()
    if count == 1:
        return None
    if batch_size % count:
        below = batch_size - batch_size % count
        sizes = [size for size in (below, below + count) if size]
        raise ValueError(
            f"config.batch_size={batch_size} cannot be divided among {count} devices; use "
            f"--config.batch_size={' or '.join(map(str, sizes))}, or fewer devices"
        )
    return jax.sharding.NamedSharding(mesh(), jax.sharding.PartitionSpec("batch"))


def everywhere(sharding: jax.sharding.NamedSharding | None) -> jax.sharding.NamedSharding | None:
    """Replicates a pytree on each device of ``sharding``.

    State and data must start out replicated: a first call with them on one device would compile a
    second program for its outputs, and copy the data set again at every call.
    """
    if sharding is None:
        return None
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())


def mesh() -> jax.sharding.Mesh:
    """All devices of all hosts along one axis, "batch"."""
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((jax.device_count(),), ("batch",), auto, devices=jax.devices())
