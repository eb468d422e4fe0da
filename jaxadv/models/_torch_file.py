"""Read and write ``torch.save`` files without PyTorch and without executing pickles.

A PyTorch file is a pickle of containers whose tensors are references into separate raw storages:
a zip archive (``data.pkl`` and ``data/0``, ``data/1``, ...) since PyTorch 1.6, before that five
pickles followed by the storages. The pickle is interpreted as data; storages are read only after
comparison with the module.
"""

import math
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._files import write_atomically
from ..inert_pickle import Unpickler
from ._npz_file import read_npz
from ._safetensors import is_safetensors, read_safetensors
from ._stored import FileBytes, Storage, dtypes
from ._torch_names import STORAGES, Names, TypeName
from ._zip_file import Archive

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_PICKLE = 1 << 24  # bytes; a checkpoint with its optimizer has about 100,000

_UNKNOWN = "an unknown reference; save the file again with a newer PyTorch."


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """Reads the containers of a weights file, with a `Tensor` for every tensor.

    Args:
      path: a file written by ``torch.save``, in the zip or the older format, by ``np.savez``, or a
        safetensors file; detected from its content.

    Returns:
      The saved object, usually a dictionary.

    Raises:
      ValueError: if the file is truncated, is none of these, needs to run code or expands beyond
        what weights need. The message names the file.
      OSError: if it cannot be read.
    """
    path = pathlib.Path(path).expanduser()
    try:
        return _read(FileBytes(path))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _read(source: FileBytes) -> Any:
    head = source.read(0, min(4, source.size))
    if head in (b"PK\x03\x04", b"PK\x05\x06"):
        archive = Archive(source)
        if all(name.endswith(".npy") for name in archive.names):
            return read_npz(archive)
        return _read_zip(archive)
    if is_safetensors(source):
        return read_safetensors(source)
    if source.path.suffix == ".safetensors":
        raise ValueError("not a safetensors file, or truncated; download it again")
    return _read_legacy(source)


class _References:
    """The storages referenced by a pickle."""

    def __init__(self) -> None:
        self.found: dict[str, Storage] = {}

    def load(self, reference: Any) -> Storage:
        """Resolves a persistent identifier to a storage, or part of one."""
        if type(reference) is not tuple or len(reference) not in (5, 6):
            raise ValueError(_UNKNOWN)
        kind, dtype, key, _location, size, *view = reference
        number = dtype.dtype if type(dtype) is TypeName else None
        if kind != "storage" or number is None or type(key) not in (str, int):
            raise ValueError(_UNKNOWN)
        if type(size) is not int or not 0 <= size < 2**62:
            raise ValueError(_UNKNOWN)
        key = str(key)
        if key not in self.found:
            shown = key if len(key) <= 40 and key.isprintable() else ascii(key[:40])
            self.found[key] = Storage(shown, number, size)
        storage = self.found[key]
        if storage.dtype != number:
            raise ValueError(f"storage {storage.name} has two types; the file is damaged.")
        if not view or view[0] is None:
            return storage
        _name, offset, length = view[0]  # the older format's parts of storages
        if type(offset) is not int or type(length) is not int:
            raise ValueError(_UNKNOWN)
        return storage.part(number, offset * number.itemsize, length)


def _read_zip(archive: Archive) -> Any:
    pickles = [name for name in archive.names if name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise ValueError("a zip archive without data.pkl; it was not written by torch.save.")
    root = pickles[0][: -len("data.pkl")]
    if root + "constants.pkl" in archive.names:
        raise ValueError("a TorchScript program; save model.state_dict() instead.")
    if any(archive.is_compressed(name) for name in archive.names):
        raise ValueError(
            "its members are compressed, but torch.save never compresses; save it again."
        )
    order = b"little"
    if root + "byteorder" in archive.names:
        order = archive.read(root + "byteorder", 16)
    big_endian, references = order == b"big", _References()
    content = Unpickler(
        archive.read(pickles[0], _MAX_PICKLE),
        Names(big_endian).find,
        persistent_load=references.load,
    ).load()
    members = set(archive.names)
    for key, storage in references.found.items():
        member = f"{root}data/{key}"
        if member not in members or archive.size(member) != storage.nbytes:
            raise ValueError(
                f"storage {storage.name} is missing or too short; the file is truncated."
            )
        storage.read = _part_of(archive, member)
    return content


def _part_of(archive: Archive, member: str) -> Any:
    def read(start: int, length: int) -> bytes:
        try:
            return archive.read_part(member, start, length)
        except ValueError as error:
            raise ValueError(f"storage {member.split('/')[-1]}: {error}") from error

    return read


def _read_legacy(source: FileBytes) -> Any:
    data, references = source.read(0, min(source.size, _MAX_PICKLE)), _References()
    names = Names(big_endian=False)
    pickles = Unpickler(data, names.find, persistent_load=references.load)
    try:
        magic, protocol, system = pickles.load(), pickles.load(), pickles.load()
    except ValueError as error:
        refused = "the file refers to" in str(error)
        hint = (
            str(error) if refused else f"not a file written by torch.save, or truncated ({error})."
        )
        raise ValueError(hint) from error
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or type(system) is not dict:
        raise ValueError("not a file written by torch.save.")
    names.big_endian = not system.get("little_endian", True)
    content, keys = pickles.load(), pickles.load()
    if type(keys) is not list or len(keys) != len(references.found):
        raise ValueError("its storages do not match its tensors; the file is damaged.")
    at, order = pickles.position, "big" if names.big_endian else "little"
    for key in keys:
        storage = references.found.get(str(key)) if type(key) in (str, int) else None
        if storage is None or storage.read is not None:
            raise ValueError("a storage belongs to no tensor; the file is damaged.")
        size = int.from_bytes(source.read(at, 8), order)
        if size != storage.size or at + 8 + storage.nbytes > source.size:
            raise ValueError(
                f"storage {storage.name} is too short; the file is truncated, download it again."
            )
        storage.read = lambda start, length, at=at + 8: source.read(at + start, length)
        at += 8 + storage.nbytes
    return content


def write_torch_file(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a state dict readable by ``torch.load(path, weights_only=True)``.

    The file appears under its name only once it is complete and on disk.

    Args:
      path: output path.
      arrays: the tensors by name; float16, bfloat16, float32, float64, integers or bool.

    Raises:
      ValueError: for an array of another dtype.
      OSError: if the disk is full or read-only; an existing file is kept.
    """
    names = {dtypes()[dtype]: name for name, dtype in reversed(STORAGES.items())}
    for name, array in arrays.items():
        dtype = np.asarray(array).dtype
        if dtype not in names or dtype.kind == "c":
            raise ValueError(f"{name} is {dtype}, which PyTorch does not support.")
    flat = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    body = b"".join(
        _text(name) + _tensor_opcodes(str(i), names[array.dtype], array.shape)
        for i, (name, array) in enumerate(flat.items())
    )
    opcodes = pickle.PROTO + b"\x02" + _EMPTY + pickle.MARK + body + pickle.SETITEMS + pickle.STOP

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _member(archive, "data.pkl", opcodes)
            _member(archive, "byteorder", b"little")
            for i, array in enumerate(flat.values()):
                words = array.reshape(-1).view(f"u{array.itemsize}")
                _member(archive, f"data/{i}", words.astype(words.dtype.newbyteorder("<")).tobytes())
            _member(archive, "version", b"3\n")

    write_atomically(pathlib.Path(path).expanduser(), write)


_EMPTY = b"ccollections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE


def _member(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    # A fixed date, so that equal weights produce equal files.
    archive.writestr(zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0)), data)


def _text(text: str) -> bytes:
    raw = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw


def _ints(*values: int) -> bytes:
    items = b"".join(pickle.BININT + struct.pack("<i", value) for value in values)
    return pickle.MARK + items + pickle.TUPLE


def _tensor_opcodes(key: str, storage: str, shape: tuple[int, ...]) -> bytes:
    """A call of torch._utils._rebuild_tensor_v2, spelled out: pickling it would import torch."""
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    number = pickle.BININT + struct.pack("<i", math.prod(shape))
    reference = _text("storage") + b"ctorch\n" + storage.encode() + b"\n" + _text(key)
    reference = pickle.MARK + reference + _text("cpu") + number + pickle.TUPLE + pickle.BINPERSID
    offset = pickle.BININT + struct.pack("<i", 0)
    arguments = reference + offset + _ints(*shape) + _ints(*strides) + pickle.NEWFALSE + _EMPTY
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return rebuild + pickle.MARK + arguments + pickle.TUPLE + pickle.REDUCE
