"""The devices that share the minibatches of a training program, for primitives that split by hand.

The compiler splits most of a program over devices well. Where it does not, a primitive has a
parameter ``spread``, which :mod:`jaxadv._rewrite` sets, since a layer under ``jax.jit`` is traced
once and called in several programs.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


class Spread(NamedTuple):
    """The devices that share the images of a minibatch, and the axis of the mesh."""

    mesh: Mesh
    axis: str

    def rows(self, place: int = 0) -> PartitionSpec:
        """The images split over the devices, on this axis of an array."""
        return PartitionSpec(*[None] * place, self.axis)


_spread: contextvars.ContextVar[Spread | None] = contextvars.ContextVar("spread", default=None)


@contextlib.contextmanager
def spread_over(sharding: jax.sharding.Sharding | None) -> Iterator[None]:
    """Layers of models that are traced inside are split over several CPU devices by hand.

    Args:
      sharding: of the images of a minibatch. Nothing changes unless it splits the first axis over
        all devices of a mesh of CPUs.
    """
    token = _spread.set(_spread_of(sharding))
    try:
        yield
    finally:
        _spread.reset(token)


def spread_of(number: int) -> Spread | None:
    """The devices that share so many images of what is traced now; None if they cannot."""
    found = _spread.get()
    return None if found is None or number % found.mesh.size else found


def _spread_of(sharding: jax.sharding.Sharding | None) -> Spread | None:
    if not isinstance(sharding, NamedSharding) or len(sharding.spec) != 1:
        return None
    mesh, [axis] = sharding.mesh, sharding.spec
    split = isinstance(axis, str) and mesh.shape[axis] == mesh.size > 1
    if not split or not isinstance(mesh, Mesh) or set(mesh.axis_types) != {AxisType.Auto}:
        return None
    return Spread(mesh, axis) if mesh.devices.flat[0].platform == "cpu" else None
