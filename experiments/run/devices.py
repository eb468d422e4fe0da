"""How minibatches, state and data lie on the devices."""

import math

import jax


def data_sharding(batch_size: int) -> jax.sharding.NamedSharding | None:
    """Minibatches spread over all devices that divide them, or None on one device."""
    count = math.gcd(batch_size, jax.device_count())
    if count == 1:
        return None
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((count,), ("batch",), auto, devices=jax.devices()[:count])
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))


def everywhere(sharding: jax.sharding.NamedSharding | None) -> jax.sharding.NamedSharding | None:
    """A copy on each device of ``sharding``.

    State and data have to start there: a first call with them on one device would compile a second
    program for what it returns, and copy the data set again in every call.
    """
    if sharding is None:
        return None
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
