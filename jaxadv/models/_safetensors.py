"""Read and write safetensors files: a length, a JSON table, and the data.

See https://huggingface.co/docs/safetensors for the format; it contains nothing executable.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from .._files import write_atomically
from ._stored import FileBytes, Storage, Tensor, dtypes, tensor_of

_MAX_TABLE = 1 << 21  # bytes: some 20,000 tensors
_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


def is_safetensors(source: FileBytes) -> bool:
    """Whether a file starts like a safetensors file."""
    head = source.read(0, min(source.size, 9))
    return len(head) == 9 and head[8:] == b"{" and head[5:8] == bytes(3)


def read_safetensors(source: FileBytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises:
      ValueError: if the table is truncated, or does not account for every byte exactly once.
    """
    length = int.from_bytes(source.read(0, 8), "little")
    if length > _MAX_TABLE:
        raise ValueError(f"a safetensors table of {length} bytes exceeds the limit of {_MAX_TABLE}")
    if 8 + length > source.size:
        raise ValueError("a safetensors file that ends too early; download it again")
    begin = 8 + length
    try:
        table = json.loads(source.read(8, length), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a safetensors file with a damaged table ({error})") from error
    if not isinstance(table, dict):
        raise ValueError("a safetensors file with a damaged table (not an object)")
    table.pop("__metadata__", None)
    found, spans = {}, []
    for name, row in table.items():
        found[name], span = _tensor(source, begin, name, row)
        spans.append(span)
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise ValueError(f"a safetensors file with bytes {min(first, end)} used twice or never")
        end = last
    if begin + end != source.size:
        raise ValueError(
            f"a safetensors file of {source.size} bytes whose table describes {begin + end}; get "
            "it again"
        )
    return found


def write_safetensors(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a state dict readable by ``safetensors.torch.load_file`` and `read_safetensors`.

    The file appears under its name only once it is complete and on disk.

    Args:
      path: output path.
      arrays: the tensors by name, of the types of safetensors.

    Raises:
      ValueError: for an array of another dtype.
      OSError: if the disk is full or read-only; an existing file is kept.
    """
    kinds = {dtypes()[ours]: theirs for theirs, ours in _NAMES.items()}
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        if array.dtype not in kinds:
            raise ValueError(f"{name} is {array.dtype}, which safetensors does not have.")
        begin, end = end, end + array.nbytes
        table[name] = {
            "dtype": kinds[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]
        }  # fmt: skip
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file: Any) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            words = np.asarray(array, order="C").reshape(-1).view(f"u{array.itemsize}")
            file.write(words.astype(words.dtype.newbyteorder("<")).tobytes())

    write_atomically(pathlib.Path(path).expanduser(), write)


def _tensor(source: FileBytes, begin: int, name: str, row: Any) -> tuple[Tensor, tuple[int, int]]:
    row = row if type(row) is dict else {}
    kind, shape, span = row.get("dtype"), row.get("shape"), row.get("data_offsets")
    if not _are_sizes(shape) or not _are_sizes(span) or len(span) != 2:
        raise ValueError(f"a safetensors file whose tensor {name[:80]!r} is not described properly")
    first, last = span
    dtype = dtypes()[_NAMES[kind]] if type(kind) is str and kind in _NAMES else None
    count = math.prod(shape)
    if first > last or (dtype is not None and count * dtype.itemsize != last - first):
        raise ValueError(
            f"a safetensors file whose tensor {name[:80]!r} of shape {shape[:8]} has "
            f"{last - first} bytes"
        )
    storage = Storage(f"of {name[:80]!r}", dtype, count if dtype else last - first)
    storage.read = lambda start, wanted: source.read(begin + first + start, wanted)
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return tensor_of(storage, 0, tuple(shape), strides), (first, last)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    short = type(value) is list and len(value) <= 64
    return short and all(type(n) is int and 0 <= n < 2**62 for n in value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate name")
    return found
