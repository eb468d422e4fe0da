"""Provenance for every benchmark: options, hardware, versions, commit."""

import json
import os
import pathlib
import re

import jax

from experiments.run import environment


def use_devices(number: int) -> jax.sharding.NamedSharding | None:
    """A sharding of minibatches over that many devices; on CPU, one device per core.

    Args:
        number: number of devices.

    Returns:
        The sharding, None for one device.

    Raises:
        SystemExit: if there are fewer devices.
    """
    if number == 1:
        return None
    try:
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError:  # JAX is already initialized with the devices it has
        pass
    if number > jax.device_count():
        raise SystemExit(f"--devices={number}: only {jax.device_count()} available")
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((number,), ("batch",), auto, devices=jax.devices()[:number])
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))


def provenance(options) -> dict:
    """The command line without local folders, and the environment."""
    described = environment.describe()
    if hasattr(os, "sched_getaffinity"):
        described["cpu_cores_used"] = len(os.sched_getaffinity(0))
    return {
        "options": {name: _short(value) for name, value in vars(options).items()},
        "environment": described | {"command": _short(described["command"])},
    }


def save(report: dict, path: str | pathlib.Path | None) -> None:
    """Writes a report as JSON, if there is a path."""
    if path:
        text = json.dumps(report, indent=1) + "\n"
        pathlib.Path(path).write_text(text, encoding="utf-8")


def _short(value):
    """Strips folders from the absolute paths in a text."""
    if isinstance(value, pathlib.Path):
        return value.name
    return (
        re.sub(r"(?<![^\s=])/(?:[^\s/=]+/)*(?=[^\s/=]+)", "", value)
        if isinstance(value, str)
        else value
    )
