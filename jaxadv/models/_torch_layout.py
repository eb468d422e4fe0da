"""Where each tensor of PyTorch's state dict is in the variables of a module, and its shape."""

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ._small import SmallConvNet
from ._torch_tables import KINDS, TABLES, Axes, Leaf

Shape = tuple[int | None, ...]


class Entry(NamedTuple):
    """A tensor in PyTorch.

    Attributes:
      path: in the Flax variables, or None for a buffer without counterpart.
      axes: see `_torch_tables.Leaf`.
      shape: in PyTorch; None where any size will do, that of flattened images.
      channels: of the images that are flattened.
      value: of a buffer without counterpart.
    """

    path: tuple[str, ...] | None
    axes: Axes = None
    shape: Shape = ()
    channels: int = 1
    value: Any = None

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor in PyTorch may have this shape."""
        return fits(shape, self.shape) and (self.axes != "flat" or shape[1] % self.channels == 0)

    def accepts_ours(self, shape: tuple[int, ...]) -> bool:
        """Whether our array may have this shape."""
        axes = (1, 0) if self.axes == "flat" else self.axes
        if axes is None or len(shape) != len(axes):
            return self.accepts(shape)
        return self.accepts(tuple(shape[axis] for axis in axes))

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Our array in PyTorch's layout."""
        if self.axes == "flat":
            cut = array.reshape(-1, self.channels, array.shape[1])
            return cut.transpose(2, 1, 0).reshape(array.shape[::-1])
        return array if self.axes is None else array.transpose(self.axes)

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """PyTorch's array in our layout."""
        if self.axes == "flat":
            cut = array.reshape(array.shape[0], self.channels, -1)
            return cut.transpose(2, 1, 0).reshape(array.shape[::-1])
        return array if self.axes is None else array.transpose(np.argsort(self.axes))


def check_module(module: nn.Module) -> None:
    """Raises a ``ValueError`` for a module without a table."""
    if type(module) not in TABLES:
        known = ", ".join(kind.__name__ for kind in TABLES)
        raise ValueError(
            f"module is a {type(module).__name__}, which has no PyTorch names; those have: {known}."
        )


def channels_of(module: nn.Module, flat: Mapping[tuple[str, ...], Any]) -> int | None:
    """Channels of the images that a module's variables take, if it begins with a convolution."""
    check_module(module)
    for section in TABLES[type(module)](module):
        for line in section.strip().splitlines():
            _, path, kind = line.split()
            kernel = flat.get(("params", *path.split("."), "kernel"))
            if kernel is not None:
                return kernel.shape[2] if kind == "conv" and kernel.ndim == 4 else None
    return None


def shapes(
    module: Any, image_shape: tuple[int, int, int] | None = None
) -> dict[tuple[str, ...], Any]:
    """Shapes and dtypes of a module's variables by path."""
    if image_shape is None:
        mean = getattr(module, "mean", None)
        image_shape = (32, 32, 3 if mean is None else len(mean))
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return flax.traverse_util.flatten_dict(jax.eval_shape(module.init, key, images))


def layout(module: nn.Module, channels: int | None = None) -> dict[str, Entry]:
    """All tensors by PyTorch name, in the order of the state dict.

    Args:
      module: of a class in `TABLES`.
      channels: of the images; default those of the module's mean, or 3.

    Raises:
      ValueError: for a module without a table.
    """
    check_module(module)
    flat = shapes(module, None if channels is None else (32, 32, channels))
    cut = module.features[-1] if isinstance(module, SmallConvNet) and module.features else 1
    found: dict[str, Entry] = {}
    for name, path, kind in _rows(module, flat):
        places = {leaf: _place(leaf, path) for leaf in KINDS[kind]}
        there = [leaf for leaf in KINDS[kind] if places[leaf] in flat]
        for leaf, where in places.items():
            if leaf in there:
                shape = _torch_shape(tuple(flat[where].shape), leaf.axes)
                found[name + leaf.suffix] = Entry(where, leaf.axes, shape, cut)
            elif there and leaf.value is not None:
                found[name + leaf.suffix] = Entry(None, value=np.asarray(leaf.value))
    left = flat.keys() - {entry.path for entry in found.values()}
    if left:
        raise ValueError(f"no PyTorch name for {'/'.join(sorted(left)[0])}; add it to its table.")
    return found


def wanted(entries: Mapping[str, Entry]) -> dict[str, Shape]:
    """The shapes that a file must have by name."""
    return {name: entry.shape for name, entry in entries.items() if entry.path is not None}


def fits(shape: Any, expected: Shape) -> bool:
    """Whether a shape is the expected one, in which None is any size."""
    if shape is None or len(shape) != len(expected):
        return False
    return all(e is None or n == e for n, e in zip(shape, expected, strict=True))


def _place(leaf: Leaf, path: tuple[str, ...]) -> tuple[str, ...]:
    return (leaf.collection, *path, leaf.name) if leaf.name else (leaf.collection, *path)


def _torch_shape(shape: tuple[int, ...], axes: Axes) -> Shape:
    if axes == "flat":
        return shape[1], None
    return shape if axes is None else tuple(shape[axis] for axis in axes)


def _rows(module: Any, flat: Mapping[Any, Any]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Name, path and kind of the modules of a network, some of which it may lack."""
    prefixes = {path[1 : end + 1] for path in flat for end in range(1, len(path))}
    for section in TABLES[type(module)](module):
        rows = [line.split() for line in section.strip().splitlines()]
        numbers = functools.partial(_numbers, rows, prefixes)
        for stage, block in numbers("{stage", "{block"):
            for row in rows:
                name, path, kind = (
                    part.format(stage=stage, stage1=stage + 1, block=block) for part in row
                )
                yield name, tuple(path.split(".")), kind


def _numbers(rows: list[list[str]], prefixes: Any, *marks: str) -> Iterator[tuple[int, int]]:
    """The stages and blocks of a section: as long as the first module of its first row is there."""
    path = rows[0][1].split(".")[0]

    def there(stage: int, block: int) -> bool:
        return (path.format(stage=stage, stage1=stage + 1, block=block),) in prefixes

    staged, blocked = (mark in path for mark in marks)
    for stage in itertools.count() if staged else (0,):
        if staged and not there(stage, 0):
            return
        for block in itertools.count() if blocked else (0,):
            if blocked and not there(stage, block):
                break
            yield stage, block
