"""Reads the pickles of the CIFAR archives without executing them.

A pickle is a program. CIFAR's only build dictionaries, lists, numbers, strings and one uint8 array,
so everything else is rejected, and the three NumPy names that an array needs map to inert classes
below: no NumPy constructor sees a byte of an unchecked file.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxadv.inert_pickle import Inert, Name, Unpickler

from ._dataset import DataError


class _Dtype(Inert):
    """A number type; its state (byte order, alignment) is ignored, since bytes have neither."""

    __slots__ = ("code",)

    def __init__(self, code: Any, *flags: Any):
        super().__init__("numpy.dtype")
        del flags
        self.code = code.decode("ascii") if isinstance(code, bytes) else code


class _Array:
    """An array as `numpy._reconstruct` returns it: empty until its state is set."""

    __slots__ = ("value",)

    def __init__(self, subtype: Any, shape: Any, code: Any):
        del subtype, shape, code
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Sets shape, type, order and bytes."""
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or dtype.code != "u1" or not isinstance(raw, bytes):
            raise ValueError("it contains an array that is not uint8")
        if type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError("it contains an array without a shape")
        if len(shape) > 8 or math.prod(shape) != len(raw):
            raise ValueError(f"it contains {len(raw)} bytes for an array of shape {_short(shape)}")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _short(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) < 9 and max(shape) < 2**62 else "that is impossible"


def _ndarray(*_: Any) -> None:
    """Stands in for `numpy.ndarray`, which a pickled array names but never calls."""
    raise ValueError("it creates an array without numpy's _reconstruct")


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
        raise ValueError(f"it asks for {full}, which a CIFAR file does not need")
    return _KNOWN[module, name]


def unpickle_batch(raw: bytes, where: str | Path) -> dict[str, Any]:
    """Reads one `data_batch_k`, `test_batch`, `train` or `test` file of the CIFAR archives.

    Args:
      raw: content of the file, pickled by Python 2 or 3.
      where: what to call the file in an error.

    Returns:
      The dictionary of the file, keys as str, arrays as uint8 `numpy.ndarray`.

    Raises:
      DataError: if the pickle is truncated, asks for anything but numbers, strings, lists,
        dictionaries and uint8 arrays, builds more objects than CIFAR's do, or is not a dictionary.

    Example:
      >>> import pickle
      >>> unpickle_batch(pickle.dumps({b"labels": [3, 1]}), "data_batch_1")
      {'labels': [3, 1]}
    """
    remedy = "None of it was executed; delete the file and download the official archive again"
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
