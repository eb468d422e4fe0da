"""Placement of minibatches, state and data on devices."""

import math

import jax


def data_sharding(batch_size: int) -> jax.sharding.NamedSharding | None:
    """A sharding of minibatches over as many devices as divide them, or None for one device."""
    count = math.gcd(batch_size, jax.device_count())
    if count == 1:
        return None
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((count,), ("batch",), auto, devices=jax.devices()[:count])
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))


def everywhere(sharding: jax.sharding.NamedSharding | None) -> jax.sharding.NamedSharding | None:
    """Replicates a pytree on each device of ``sharding``.

    State and data must start out replicated: a first call with them on one device would compile a
    second program for its outputs, and copy the data set again at every call.
    """
    if sharding is None:
        return None
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
