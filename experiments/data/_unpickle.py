"""Reads the pickles of the CIFAR archives without letting them run anything.

A pickle is a program. The CIFAR ones only ever build dictionaries, lists, numbers, strings and one
uint8 array, so everything else is refused, and the three NumPy names that an array needs stand
for inert classes below: no NumPy constructor sees a byte of an unchecked file.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxadv.inert_pickle import Inert, Name, Unpickler

from ._dataset import DataError


class _Dtype(Inert):
    """A type of numbers; byte order and alignment, which would be its state, a byte has not."""

    __slots__ = ("code",)

    def __init__(self, code: Any, *flags: Any):
        super().__init__("numpy.dtype")
        del flags
        self.code = code.decode("ascii") if isinstance(code, bytes) else code


class _Array:
    """An array as `numpy._reconstruct` leaves it: empty until its state comes."""

    __slots__ = ("value",)

    def __init__(self, subtype: Any, shape: Any, code: Any):
        del subtype, shape, code
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Takes shape, type, order and bytes."""
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or dtype.code != "u1" or not isinstance(raw, bytes):
            raise ValueError("it holds an array that is not uint8")
        if type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError("it holds an array without a shape")
        if len(shape) > 8 or math.prod(shape) != len(raw):
            raise ValueError(f"it holds {len(raw)} bytes for an array of shape {_short(shape)}")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _short(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) < 9 and max(shape) < 2**62 else "that is impossible"


def _ndarray(*_: Any) -> None:
    """Stands for `numpy.ndarray`, which a pickled array names and never calls."""
    raise ValueError("it makes an array other than by numpy's _reconstruct")


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): Name("_reconstruct", _Array),
    ("numpy._core.multiarray", "_reconstruct"): Name("_reconstruct", _Array),
    ("numpy", "ndarray"): Name("ndarray", _ndarray),
    ("numpy", "dtype"): Name("dtype", _Dtype),
}


def _find(module: str, name: str) -> Name:
    if (module, name) not in _KNOWN:
        full = f"{module}.{name}"
        full = full if len(full) <= 100 and full.isprintable() else ascii(full[:100])
        raise ValueError(f"it asks for {full}, which a CIFAR file has no use for")
    return _KNOWN[module, name]


def unpickle_batch(raw: bytes, where: str | Path) -> dict[str, Any]:
    """Reads one `data_batch_k`, `test_batch`, `train` or `test` file of the CIFAR archives.

    Args:
      raw: content of the file, pickled by Python 2 or 3.
      where: what to call the file in an error.

    Returns:
      The dictionary of the file, keys as str, arrays as uint8 `numpy.ndarray`.

    Raises:
      DataError: if the pickle is torn, asks for anything but numbers, strings, lists,
        dictionaries and uint8 arrays, makes more of itself than CIFAR's do, or is not a dictionary.

    Example:
      >>> import pickle
      >>> unpickle_batch(pickle.dumps({b"labels": [3, 1]}), "data_batch_1")
      {'labels': [3, 1]}
    """
    remedy = "Nothing of it was run; delete the file and get a fresh copy of the official archive"
    try:
        content = Unpickler(raw, _find, encoding=None).load()
    except ValueError as error:
        raise DataError(where, f"not a pickle of CIFAR data: {error}", remedy) from error
    if not isinstance(content, dict):
        raise DataError(where, f"a pickled {type(content).__name__}, not a dictionary", remedy)
    batch = {}
    for key, value in content.items():
        key = key.decode("ascii", "replace") if isinstance(key, bytes) else str(key)
        batch[key] = value.value if isinstance(value, _Array) else value
    return batch
