"""Tensors in files: shapes are known immediately, data are read on demand.

A file can thus be compared with the module first, and mismatched tensors are never read.
"""

import functools
import math
import os
import pathlib
import stat
import zlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

_CHUNK = 1 << 20
_SPREAD = 1 << 24  # bytes a view may skip, beyond three times its own size
_EXPANDED = 1 << 20  # maximum bytes of an expanded tensor


@functools.cache
def dtypes() -> dict[str, np.dtype]:
    """NumPy dtypes by PyTorch name."""
    plain = "float64 float32 float16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool"
    found = {name: np.dtype(name) for name in (*plain.split(), "complex64", "complex128")}
    floats = "bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"
    return found | {name: np.dtype(getattr(jnp, name)) for name in floats.split()}


class FileBytes:
    """Parts of a file, read on demand.

    Args:
      path: path of a regular file.

    Attributes:
      size: size in bytes.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is not a regular file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        status = os.stat(self.path)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise ValueError("not a regular file")
        with open(self.path, "rb") as file:  # raises its own error for a folder
            status = os.fstat(file.fileno())
        self._state, self.size = _state(status), status.st_size

    def read(self, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``."""
        if start < 0 or length < 0 or start + length > self.size:
            raise ValueError("the file is truncated; download it again")
        with open(self.path, "rb") as file:
            if _state(os.fstat(file.fileno())) != self._state:
                raise ValueError("the file changed while it was read")
            file.seek(start)
            raw = file.read(length)
        if len(raw) != length:
            raise ValueError("the file changed while it was read")
        return raw

    def crc32(self, start: int, length: int) -> int:
        """Checksum of a part, computed in little memory."""
        crc = 0
        for at in range(start, start + length, _CHUNK):
            crc = zlib.crc32(self.read(at, min(_CHUNK, start + length - at)), crc)
        return crc


def _state(status: os.stat_result) -> tuple:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Storage:
    """A flat buffer in a file, or part of one.

    Args:
      name: name for error messages.
      dtype: dtype, or None if NumPy lacks it.
      size: number of elements.

    Attributes:
      read: ``read(start, length)`` returns bytes; set once the buffer is found in the file.
    """

    __slots__ = ("_base", "_begin", "dtype", "name", "read", "size")

    def __init__(self, name: str, dtype: np.dtype | None, size: int) -> None:
        self.name, self.dtype, self.size = name, dtype, size
        self.read: Callable[[int, int], bytes] | None = None
        self._base: Storage | None = None
        self._begin = 0

    def part(self, dtype: np.dtype | None, begin: int, size: int) -> "Storage":
        """A view of ``size`` elements of another dtype, from byte ``begin``."""
        part = Storage(self.name, dtype, size)
        part._base, part._begin = self, begin
        if begin < 0 or size < 0 or begin + part.nbytes > self.nbytes:
            raise ValueError(f"a part of storage {self.name} lies outside; the file is damaged")
        return part

    @property
    def nbytes(self) -> int:
        """Its length in the file."""
        return self.size * (1 if self.dtype is None else self.dtype.itemsize)

    def bytes(self, start: int, length: int) -> bytes:
        """Reads a part of it."""
        if self._base is not None:
            return self._base.bytes(self._begin + start, length)
        if self.read is None:
            raise ValueError(
                f"storage {self.name} is missing; the file is truncated, download it again"
            )
        return self.read(start, length)


class Tensor:
    """A tensor in a file, not read yet.

    Attributes:
      storage: its storage, of the tensor's own dtype.
      offset: index of its first element in the storage.
      shape: its shape.
      strides: in elements, one per axis.
      big_endian: byte order of the file.
    """

    __slots__ = ("big_endian", "offset", "shape", "storage", "strides")

    def __init__(
        self,
        storage: Storage,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        big_endian: bool = False,
    ) -> None:
        self.storage, self.offset, self.shape = storage, offset, shape
        self.strides, self.big_endian = strides, big_endian

    @property
    def dtype(self) -> np.dtype | None:
        """Its dtype, or None if NumPy lacks it."""
        return self.storage.dtype

    @property
    def problem(self) -> str | None:
        """Why it can't be read, judging by its metadata."""
        if self.storage.dtype is None:
            return "its numbers are of a type that is not supported; save it as float32"
        if self.storage.dtype.kind == "c":
            return "its numbers are complex"
        if 0 in self.shape:
            return None
        count, item = math.prod(self.shape), self.storage.dtype.itemsize
        if count > self.storage.size and count * item > _EXPANDED:
            return f"it claims {count} numbers of the {self.storage.size} in its storage"
        if self.offset < 0 or self._end() > self.storage.size:
            return f"it does not fit in storage {self.storage.name} of {self.storage.size} numbers"
        if (self._end() - self.offset - 3 * count) * item > _SPREAD:
            return f"its {count} numbers are spread over {self._end() - self.offset} others"
        return None

    def numpy(self) -> np.ndarray:
        """Reads the data; check ``shape`` first, since that determines the size."""
        if self.problem:
            raise ValueError(f"a tensor of shape {self.shape}: {self.problem}")
        dtype: Any = self.storage.dtype
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        start, end = self.offset * dtype.itemsize, self._end() * dtype.itemsize
        raw = self.storage.bytes(start, end - start)
        words = np.frombuffer(raw, f"{'>' if self.big_endian else '<'}u{dtype.itemsize}")
        strides = tuple(s * words.itemsize for s in self.strides)
        words = np.lib.stride_tricks.as_strided(words, self.shape, strides)
        return np.array(words, words.dtype.newbyteorder("="), order="C").view(dtype)

    def _end(self) -> int:
        """One past its last element."""
        steps = zip(self.shape, self.strides, strict=True)
        return 1 + self.offset + sum((n - 1) * stride for n, stride in steps)


class Unreadable:
    """A tensor of an unsupported kind; an error only if it is needed.

    Attributes:
      problem: the reason.
      shape: None, for unknown.
    """

    __slots__ = ("problem",)
    shape = None

    def __init__(self, problem: str) -> None:
        self.problem = problem

    def numpy(self) -> np.ndarray:
        """Raises a ValueError with the reason."""
        raise ValueError(self.problem)

    def build(self, state: Any) -> None:
        """Receives the argument of `__setstate__`."""


def tensor_of(
    storage: Any, offset: Any, shape: Any, strides: Any, big_endian: bool = False
) -> Tensor:
    """Creates a `Tensor` after checking its metadata."""
    numbers: list[Any] = [None]
    if type(shape) is type(strides) is tuple:
        numbers = [offset, *shape, *strides]
    if type(storage) is not Storage or any(type(n) is not int for n in numbers):
        raise ValueError("a tensor in the file is invalid; the file is damaged, download it again")
    if len(shape) != len(strides) or len(shape) > 64 or min(numbers) < 0 or max(numbers) >> 62:
        raise ValueError("a tensor in the file has an impossible shape; the file is damaged")
    return Tensor(storage, offset, shape, strides, big_endian)
