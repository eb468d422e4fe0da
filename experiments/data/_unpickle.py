"""Reads the pickles of the CIFAR archives without letting them run anything.

A pickle is a program. The CIFAR ones only ever build dictionaries, lists, numbers, strings and one
uint8 array, so everything else is refused, and the three NumPy names that an array needs stand
for inert classes below: no NumPy constructor sees a byte of an unchecked file.
"""

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ._dataset import DataError


class _NdarrayName:
    """Stands for `numpy.ndarray`, which a pickled array names and never calls."""

    def __init__(self):
        raise pickle.UnpicklingError("it makes an array other than by numpy's _reconstruct")


class _Dtype:
    def __init__(self, code: Any, *flags: Any):
        del flags
        self.code = code.decode("ascii") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any):
        # Byte order and alignment: a type of one byte has neither.
        del state


class _Array:
    def __init__(self, subtype: Any, shape: Any, code: Any):
        del subtype, shape, code
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any):
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or dtype.code != "u1" or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("it holds an array that is not uint8")
        if any(not isinstance(n, int) or n < 0 for n in shape) or math.prod(shape) != len(raw):
            raise pickle.UnpicklingError(f"it holds {len(raw)} bytes for an array of shape {shape}")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _NdarrayName,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which a CIFAR file has no use for"
            ) from None


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
      >>> unpickle_batch(pickle.dumps({b"labels": [3, 1]}), "data_batch_1")
      {'labels': [3, 1]}
    """
    remedy = "Nothing of it was run; delete the file and get a fresh copy of the official archive"
    try:
        content = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # The pickle module raises almost anything on a damaged file.
        raise DataError(where, f"not a pickle of CIFAR data: {error}", remedy) from error
    if not isinstance(content, dict):
        raise DataError(where, f"a pickled {type(content).__name__}, not a dictionary", remedy)
    batch = {}
    for key, value in content.items():
        key = key.decode("ascii", "replace") if isinstance(key, bytes) else str(key)
        batch[key] = value.value if isinstance(value, _Array) else value
    return batch
