"""What every comparison writes beside its numbers: options, hardware, versions, commit."""

import pathlib
import re

import jax

from experiments.run import environment


def use_devices(number: int) -> jax.sharding.NamedSharding | None:
    """A layout that splits minibatches over that many devices, on CPU made of its cores.

    Args:
        number: of devices.

    Returns:
        The layout, None for one device.

    Raises:
        SystemExit: if there are not as many.
    """
    if number == 1:
        return None
    try:
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError:  # JAX runs in this process already, with what it has
        pass
    if number > jax.device_count():
        raise SystemExit(f"--devices={number}: there are {jax.device_count()}")
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((number,), ("batch",), auto, devices=jax.devices()[:number])
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))


def provenance(options) -> dict:
    """The command line without folders of this machine, and what it ran on."""
    described = environment.describe()
    return {
        "options": {name: _short(value) for name, value in vars(options).items()},
        "environment": described | {"command": _short(described["command"])},
    }


def _short(value):
    """A text without the folders of the paths in it."""
    if isinstance(value, pathlib.Path):
        return value.name
    return re.sub(r"/(?:[^\s/=]+/)*(?=[^\s/=]+)", "", value) if isinstance(value, str) else value
