"""Read and write what ``torch.save`` writes, without PyTorch and without running a pickle.

A PyTorch file is a pickle of containers whose tensors are references into separate raw storages:
a zip archive (``data.pkl`` and ``data/0``, ``data/1``, ...) since PyTorch 1.6, before that five
pickles followed by the storages. The pickle is read by an unpickler that knows tensors, storages,
dictionaries and numbers and refuses every other name before it is imported.
"""

import collections
import io
import math
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_BFLOAT16 = np.dtype(jnp.bfloat16)
_STORAGES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype("f8"),
    "FloatStorage": np.dtype("f4"),
    "HalfStorage": np.dtype("f2"),
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": np.dtype("i8"),
    "IntStorage": np.dtype("i4"),
    "ShortStorage": np.dtype("i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class _Storage:
    """A flat buffer; its numbers are read when a tensor asks for them."""

    def __init__(self, key: str, dtype: np.dtype, size: int):
        self.key, self.dtype, self.size = key, dtype, size
        self.load: Any = None  # () -> bytes

    def array(self, big_endian: bool) -> np.ndarray:
        try:
            raw = self.load()
        except zipfile.BadZipFile as error:
            raise ValueError(f"storage {self.key}: {error}; get the file again.") from error
        if len(raw) != self.size * self.dtype.itemsize:
            raise ValueError(
                f"storage {self.key} has {len(raw)} bytes instead of "
                f"{self.size * self.dtype.itemsize}; the file is torn, get it again."
            )
        words = np.frombuffer(raw, f"{'>' if big_endian else '<'}u{self.dtype.itemsize}")
        return words.astype(words.dtype.newbyteorder("=")).view(self.dtype)


class Tensor(NamedTuple):
    """A tensor of a file, not read yet.

    Attributes:
      storage: where its numbers are.
      offset: of its first number in the storage.
      shape: its shape.
      strides: in numbers, one per axis.
      big_endian: byte order of the file.
    """

    storage: Any
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    big_endian: bool

    def numpy(self) -> np.ndarray:
        """Read it."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.storage.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min(self.offset, *self.shape, *self.strides, 0) < 0 or last >= self.storage.size:
            raise ValueError(
                f"a tensor of shape {self.shape} does not fit in storage {self.storage.key} of "
                f"{self.storage.size} numbers; the file is damaged, get it again."
            )
        flat = self.storage.array(self.big_endian)[self.offset :]
        strides = tuple(s * flat.itemsize for s in self.strides)
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides).copy()


class _Inert:
    """Stands for a NumPy scalar of a checkpoint (a stored accuracy, say): accepted, not decoded."""

    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


class _Unpickler(pickle.Unpickler):
    """Knows the names that a state dict needs, and no other."""

    def __init__(self, file: io.BytesIO, big_endian: bool = False):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}
        self._big_endian = big_endian

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda data, *_: data
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch", "Size"):
            return tuple
        inert = ("scalar", "dtype", "encode")  # what a pickled NumPy scalar consists of
        if name in inert and module.split(".")[0] in ("numpy", "_codecs"):
            return _Inert
        raise ValueError(
            f"the file refers to {module}.{name}, which a file of weights does not need; refused. "
            "If you trust it, open it with PyTorch and save model.state_dict() alone."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, size, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(v is not None for v in view):
            raise ValueError(
                f"unknown reference {pid!r}; save the file again with a newer PyTorch."
            )
        if key not in self.storages:
            self.storages[key] = _Storage(str(key), dtype, int(size))
        return self.storages[key]

    def _tensor(self, storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise ValueError("a tensor of the file has no storage; the file is damaged.")
        return Tensor(storage, int(offset), tuple(shape), tuple(strides), self._big_endian)


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """The containers of a PyTorch file (or an .npz), with a `Tensor` for every tensor.

    Args:
      path: a file written by ``torch.save``, in the zip or the older format, or by ``np.savez``.

    Returns:
      What was saved: usually a dictionary.

    Raises:
      ValueError: if the file is torn, is no PyTorch file or needs code to be run.
    """
    path = pathlib.Path(path)
    data = path.read_bytes()
    try:
        if not zipfile.is_zipfile(io.BytesIO(data)):
            return _read_legacy(io.BytesIO(data))
        archive = zipfile.ZipFile(io.BytesIO(data))
        if all(name.endswith(".npy") for name in archive.namelist()):
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        return _read_zip(archive)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(
            f"{path.name}: {error if isinstance(error, ValueError) else _torn(error)}"
        ) from error


def _torn(error: Exception) -> str:
    return f"not a file written by torch.save, or torn ({type(error).__name__}: {error})."


def _read_zip(archive: zipfile.ZipFile) -> Any:
    names = archive.namelist()
    pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise ValueError("a zip archive without data.pkl; it was not written by torch.save.")
    root = pickles[0][: -len("data.pkl")]
    order = archive.read(root + "byteorder") if root + "byteorder" in names else b"little"
    unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])), order == b"big")
    content = unpickler.load()
    for key, storage in unpickler.storages.items():
        member = f"{root}data/{key}"
        if member not in names or (
            archive.getinfo(member).file_size != storage.size * storage.dtype.itemsize
        ):
            raise ValueError(f"storage {key} is missing or too short; the file is torn.")
        storage.load = lambda member=member: archive.read(member)
    return content


def _read_legacy(file: io.BytesIO) -> Any:
    magic = _Unpickler(file).load()
    if magic != _LEGACY_MAGIC or _Unpickler(file).load() != _LEGACY_PROTOCOL:
        raise ValueError("not a file written by torch.save.")
    system = _Unpickler(file).load()
    unpickler = _Unpickler(file, not system.get("little_endian", True))
    content = unpickler.load()
    for key in _Unpickler(file).load():
        storage = unpickler.storages.get(key)
        if storage is None:
            raise ValueError(f"storage {key} belongs to no tensor; the file is damaged.")
        (size,) = struct.unpack("<q" if system.get("little_endian", True) else ">q", file.read(8))
        raw = file.read(size * storage.dtype.itemsize)
        if size != storage.size or len(raw) != size * storage.dtype.itemsize:
            raise ValueError(f"storage {key} is too short; the file is torn, get it again.")
        storage.load = lambda raw=raw: raw
    if any(storage.load is None for storage in unpickler.storages.values()):
        raise ValueError("storages are missing; the file is torn, get it again.")
    return content


def write_torch_file(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a state dict that ``torch.load(path, weights_only=True)`` reads.

    The file appears under its name only when it is complete.

    Args:
      path: where to write.
      arrays: the tensors by name; float16, bfloat16, float32, float64, integers or bool.

    Raises:
      ValueError: for an array of another dtype.
      OSError: if the disk is full or read-only; a file that was there before is kept.
    """
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    names = {dtype: name for name, dtype in _STORAGES.items()}
    for name, array in arrays.items():
        if np.asarray(array).dtype not in names:
            raise ValueError(f"{name} is {np.asarray(array).dtype}, which PyTorch has no type for.")
    flat = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    body = b"".join(
        _text(name) + _tensor_opcodes(str(i), names[array.dtype], array.shape)
        for i, (name, array) in enumerate(flat.items())
    )
    opcodes = pickle.PROTO + b"\x02" + _EMPTY + pickle.MARK + body + pickle.SETITEMS + pickle.STOP
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            _member(archive, "data.pkl", opcodes)
            _member(archive, "byteorder", b"little")
            for i, array in enumerate(flat.values()):
                words = array.reshape(-1).view(f"u{array.itemsize}")
                _member(archive, f"data/{i}", words.astype(words.dtype.newbyteorder("<")).tobytes())
            _member(archive, "version", b"3\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


_EMPTY = b"ccollections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE


def _member(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    # A fixed date, so that equal weights give equal files.
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
