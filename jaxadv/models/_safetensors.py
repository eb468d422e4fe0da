"""The safetensors format: a length, a JSON header, and the bytes of the tensors."""

import json
import math
import os
import pathlib
import struct
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_MAX_HEADER = 2**26


class LazyArray:
    """A tensor of a safetensors file, not read yet.

    Attributes:
        shape: its shape.
        dtype: its dtype.
    """

    def __init__(self, path: pathlib.Path, start: int, shape: tuple[int, ...], dtype: np.dtype):
        self._path, self._start, self.shape, self.dtype = path, start, shape, dtype

    def numpy(self) -> np.ndarray:
        """Reads it."""
        with open(self._path, "rb") as file:
            file.seek(self._start)
            raw = file.read(math.prod(self.shape) * self.dtype.itemsize)
        return np.frombuffer(raw, self.dtype).reshape(self.shape)


def is_safetensors(file: BinaryIO) -> bool:
    """Whether a file starts as the format does: a length that fits, then a JSON object."""
    file.seek(0)
    start = file.read(9)
    length = os.fstat(file.fileno()).st_size
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= length


def read_safetensors(file: BinaryIO, path: pathlib.Path) -> dict[str, LazyArray]:
    """The tensors of a file by name.

    Raises:
        ValueError: if header and bytes do not belong together.
    """
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    first, end = 8 + length, os.fstat(file.fileno()).st_size
    if length > _MAX_HEADER or first > end:
        raise ValueError("a safetensors file that is torn: its header does not fit.")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise ValueError("a safetensors file whose header is no JSON; it is damaged.") from error
    if not isinstance(header, dict):
        raise ValueError("a safetensors file whose header is no object; it is damaged.")
    tensors, taken = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop, shape, dtype = _checked(name, entry, end - first)
        taken.append((start, stop))
        tensors[name] = LazyArray(path, first + start, shape, dtype)
    taken.sort()
    if any(after[0] < before[1] for before, after in zip(taken, taken[1:], strict=False)):
        raise ValueError("a safetensors file whose tensors overlap; it is damaged.")
    return tensors


def _checked(name: str, entry: Any, room: int) -> tuple[int, int, tuple[int, ...], np.dtype]:
    try:
        shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, start, stop)
        dtype = _DTYPES[entry["dtype"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name[:80]} has no shape, offsets or a dtype that is known; the file is damaged, or "
            "holds tensors of 8 or 4 bits."
        ) from error
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in numbers):
        raise ValueError(f"{name[:80]} has a shape that is none; the file is damaged.")
    if stop > room or math.prod(shape) * dtype.itemsize != stop - start:
        raise ValueError(f"{name[:80]} does not fit its bytes; the file is torn or damaged.")
    return start, stop, shape, dtype
