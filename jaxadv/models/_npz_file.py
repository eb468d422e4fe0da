"""Arrays of an ``.npz`` file: headers are read first, data on demand."""

import math
import re

import numpy as np

from ._stored import Storage, Tensor, tensor_of
from ._zip_file import Archive

_MAX_HEADER = 1000
_HEADER = re.compile(
    rb"\{'descr': '([<>|][fiub]\d)', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,19}(?:, )?)*,?)\), \}\s*"
)


def read_npz(archive: Archive) -> dict[str, Tensor]:
    """The arrays of ``np.savez`` or ``np.savez_compressed`` by name.

    Raises:
      ValueError: if a member is truncated, or is not an array of plain numbers.
    """
    return {name.removesuffix(".npy"): _array(archive, name) for name in archive.names}


def _array(archive: Archive, name: str) -> Tensor:
    size = archive.size(name)
    head = archive.peek(name, 12 + _MAX_HEADER)
    wide = head[6:7] > b"\x01"
    begin = 12 if wide else 10
    length = int.from_bytes(head[8:begin], "little")
    found = _HEADER.fullmatch(head[begin : begin + length])
    if head[:6] != b"\x93NUMPY" or length > _MAX_HEADER or not found:
        raise ValueError(f"{name} is not an array of plain numbers")
    dtype = np.dtype(found[1].decode())
    shape = tuple(int(n) for n in found[3].decode().split(",") if n.strip())
    count = math.prod(shape)
    if begin + length + count * dtype.itemsize != size:
        raise ValueError(f"{name} has {size} bytes, which does not match its shape {shape}")
    storage = Storage(name, dtype.newbyteorder("="), count)
    skipped = begin + length

    def read(start: int, wanted: int) -> bytes:
        if archive.is_compressed(name):
            return archive.read(name, size)[skipped + start :][:wanted]
        return archive.read_part(name, skipped + start, wanted)

    storage.read = read
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if found[2] == b"True":
        steps = [math.prod(shape[:axis]) for axis in range(len(shape))]
    return tensor_of(storage, 0, shape, tuple(steps), dtype.str.startswith(">"))
