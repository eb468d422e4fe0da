"""Reads the pickles of the CIFAR archives without letting them run anything.

A pickle is a program. The CIFAR ones only ever build dictionaries, lists, numbers, strings and one
uint8 array, so everything else is refused, and the three NumPy names that an array needs stand
for inert classes below: no NumPy constructor sees a byte of an unchecked file.
"""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxadv.models._pickle import read_pickle

from ._dataset import DataError


class _Dtype:
    def __init__(self, code: Any = None, *flags: Any):
        del flags
        self.code = code.decode("ascii", "replace") if isinstance(code, bytes) else code


class _Array:
    def __init__(self, *_: Any):
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Takes the shape, type and bytes that the pickle sets."""
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or dtype.code != "u1" or not isinstance(raw, bytes):
            raise ValueError("it holds an array that is not uint8")
        if not isinstance(shape, tuple) or any(not isinstance(n, int) or n < 0 for n in shape):
            raise ValueError("it holds an array without a shape")
        if math.prod(shape) != len(raw):
            raise ValueError(f"it holds {len(raw)} bytes for an array of shape {shape}")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _refused_array(*_: Any) -> None:
    raise ValueError("it makes an array other than by numpy's _reconstruct")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _refused_array,
    ("numpy", "dtype"): _Dtype,
}


def _find(module: str, name: str) -> Any:
    try:
        return _ALLOWED[module, name]
    except KeyError:
        text = f"it asks for {module[:80]}.{name[:80]}, which a CIFAR file has no use for"
        raise ValueError(text) from None


def unpickle_batch(raw: bytes, where: str | Path) -> dict[str, Any]:
    """Reads one `data_batch_k`, `test_batch`, `train` or `test` file of the CIFAR archives.

    Args:
      raw: content of the file, pickled by Python 2 or 3.
      where: what to call the file in an error.

    Returns:
      The dictionary of the file, keys as str, arrays as uint8 `numpy.ndarray`.

    Raises:
      DataError: if the pickle is torn, asks for anything but numbers, strings, lists,
        dictionaries and uint8 arrays, or is not a dictionary.

    Example:
      >>> import pickle
      >>> unpickle_batch(pickle.dumps({b"labels": [3, 1]}), "data_batch_1")
      {'labels': [3, 1]}
    """
    remedy = "Nothing of it was run; delete the file and get a fresh copy of the official archive"
    try:
        content = read_pickle(io.BytesIO(raw), _find, text=False)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(where, f"not a pickle of CIFAR data: {error}", remedy) from error
    if not isinstance(content, dict):
        raise DataError(where, f"a pickled {type(content).__name__}, not a dictionary", remedy)
    batch = {}
    for key, value in content.items():
        key = key.decode("ascii", "replace") if isinstance(key, bytes) else str(key)
        batch[key] = value.value if isinstance(value, _Array) else value
    return batch
