"""The networks of entries, and whether the public files fit them."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from .._registry import MODELS
from .._registry import build as build_model
from .._torch_layout import layout, wanted
from ._entries import Entry

# Buffers of training, which no forward pass reads.
UNCOUNTED = ("num_batches_tracked", "flag_update_statistics", "batch_num", "momentum", "epsilon")


def build(entry: Entry, **options: Any) -> nn.Module:
    """Make the network of an entry, with its normalization.

    Args:
      entry: from `entry` or `entries`.
      **options: more options for the architecture: ``dtype`` and the like.

    Returns:
      A linen module for images (B, side, side, 3) in [0, 1].

    Raises:
      ValueError: if this package has no such network, with the reason.

    Example:
      >>> from jaxadv.models import zoo
      >>> module = zoo.build(zoo.entry("Carmon2019Unlabeled"))
      >>> module.num_classes, module.mean
      (10, None)
    """
    if entry.architecture is None or entry.architecture not in MODELS:
        raise ValueError(f"{entry.id} does not load: {_absent(entry)}")
    known = {"num_classes": entry.num_classes, "mean": entry.mean, "std": entry.std}
    return build_model(entry.architecture, **known | dict(entry.options) | options)


def problem(entry: Entry) -> str | None:
    """Why the public file of an entry does not load, or None if it does.

    The network is made and traced without numbers: the names and shapes of its tensors in PyTorch
    must be those of the public class.

    Args:
      entry: from `entry` or `entries`.

    Returns:
      One line, or None.

    Example:
      >>> from jaxadv.models import zoo
      >>> zoo.problem(zoo.entry("Sehwag2021Proxy_ResNest152"))
      "no network for RobustBench's class ResNest"
    """
    if entry.architecture is None or entry.architecture not in MODELS:
        return _absent(entry)
    options = repr(sorted(entry.options.items()))
    return _traced(entry.architecture, options, entry.num_classes, entry.tensors, _Held(entry))


class _Held:
    """An entry that does not count as an argument: others with the same network are not traced."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=256)
def _traced(architecture: str, options: str, classes: int, tensors: str, held: _Held) -> str | None:
    try:
        module = build(held.entry)
        shapes = wanted(layout(module))
    except (ValueError, TypeError) as error:
        return f"{architecture}: {str(error).splitlines()[0]}"
    if fingerprint(shapes) != tensors:
        return f"the tensors of {architecture} are not those of the public file"
    return None


def _absent(entry: Entry) -> str:
    if entry.architecture is None:
        return f"no network for RobustBench's class {entry.network}"
    return f"no network {entry.architecture!r} among jaxadv.models.MODELS"


def fingerprint(shapes: Mapping[str, tuple[int | None, ...]]) -> str:
    """A short digest of names and shapes, whatever their order; `UNCOUNTED` names do not count.

    Args:
      shapes: shapes of tensors by name.

    Returns:
      16 hexadecimal digits of the SHA-256.

    Example:
      >>> fingerprint({"fc.bias": (10,), "bn1.num_batches_tracked": ()})
      '20fa4c3ea9b272ed'
    """
    lines = [
        f"{name} {'x'.join(map(str, shape))}"
        for name, shape in sorted(shapes.items())
        if name.split(".")[-1] not in UNCOUNTED
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
