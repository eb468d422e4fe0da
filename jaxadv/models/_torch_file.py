"""Read and write what ``torch.save`` writes, without PyTorch and without running a pickle.

A PyTorch file is a pickle of containers whose tensors are references into separate raw storages:
a zip archive (``data.pkl`` and ``data/0``, ``data/1``, ...) since PyTorch 1.6, before that five
pickles followed by the storages. The pickle is interpreted as data (:mod:`._pickle`); of a storage
only the bytes of a wanted tensor are read, and a tensor cannot be larger than its bytes.
"""

import functools
import math
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._files import write_atomically
from ._pickle import Opaque, read_pickle
from ._safetensors import is_safetensors, read_safetensors

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
# Storages that no weights come from, but whose bytes have to be counted.
_OTHER_STORAGES: dict[str, np.dtype] = {
    "ComplexFloatStorage": np.dtype("c8"),
    "ComplexDoubleStorage": np.dtype("c16"),
    "QInt8Storage": np.dtype("i1"),
    "QUInt8Storage": np.dtype("u1"),
    "QInt32Storage": np.dtype("i4"),
    "QUInt4x2Storage": np.dtype("u1"),
    "QUInt2x4Storage": np.dtype("u1"),
}
_DTYPES = {
    "float64": "f8", "float32": "f4", "float16": "f2", "int64": "i8", "int32": "i4",
    "int16": "i2", "int8": "i1", "uint8": "u1", "bool": "?",
}  # fmt: skip
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_BLOCK = 2**20
_MAX_PICKLE = 2**26  # bytes; that of a large checkpoint with its optimizer is below 2^22


class _Storage:
    """A flat buffer in a file.

    Attributes:
        key: its name in the file.
        dtype: of its numbers; None for raw bytes.
        size: how many.
        read: from the first byte and a number of bytes to those bytes; None until it is found.
    """

    def __init__(self, key: str, dtype: np.dtype | None, size: int):
        self.key, self.dtype, self.size = key, dtype, size
        self.read: Callable[[int, int], bytes] | None = None


class Tensor(NamedTuple):
    """A tensor of a file, not read yet.

    Attributes:
        storage: where its numbers are.
        dtype: of its numbers.
        offset: of its first number in the storage.
        shape: its shape.
        strides: in numbers, one per axis.
        big_endian: byte order of the file.
    """

    storage: Any
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    big_endian: bool

    def numpy(self) -> np.ndarray:
        """Reads it.

        Raises:
            ValueError: if the file does not hold as many numbers as its shape has.
        """
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        count = math.prod(self.shape)
        span = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        width = self.dtype.itemsize
        bytes_there = self.storage.size * (self.storage.dtype or np.dtype("u1")).itemsize
        fits = (self.offset + span) * width <= bytes_there
        # A tensor that repeats its numbers may not make more of a file than twice its bytes.
        if not fits or span > 2 * count or count * width > 2 * bytes_there:
            raise ValueError(
                f"a tensor of shape {self.shape} does not fit in storage {self.storage.key} of "
                f"{bytes_there // width} numbers; the file is damaged, get it again."
            )
        try:
            raw = self.storage.read(self.offset * width, span * width)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(f"storage {self.storage.key}: {error}; get the file again.") from error
        if len(raw) != span * width:
            raise ValueError(f"storage {self.storage.key} ends early; the file is torn.")
        words = np.frombuffer(raw, f"{'>' if self.big_endian else '<'}u{width}")
        flat = words.astype(words.dtype.newbyteorder("=")).view(self.dtype)
        strides = tuple(s * width for s in self.strides)
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides).copy()


class _Reader:
    """What the names in the pickle of one file stand for."""

    def __init__(self, big_endian: bool = False):
        self.storages: dict[str, _Storage] = {}
        self._big_endian = big_endian

    def read(self, file: BinaryIO) -> Any:
        return read_pickle(file, self._find, persistent=self._reference)

    def _find(self, module: str, name: str) -> Callable:
        if module == "torch._utils" and name in _REBUILDS:
            return functools.partial(getattr(self, _REBUILDS[name]))
        if module == "torch" and name in _STORAGES | _OTHER_STORAGES:
            return _StorageType((_STORAGES | _OTHER_STORAGES)[name])
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return _StorageType(None)
        if module == "torch" and name in _DTYPES:
            return _DType(np.dtype(_DTYPES[name]))
        if (module, name) == ("torch", "bfloat16"):
            return _DType(_BFLOAT16)
        if (module, name) in _DATA:
            return _DATA[module, name]
        if _is_inert(module, name):
            return Opaque
        raise ValueError(
            f"the file refers to {module[:80]}.{name[:80]}, which a file of weights does not need; "
            "refused. If you trust it, open it with PyTorch and save model.state_dict() alone."
        )

    def _reference(self, pid: Any) -> Any:
        parts: list = list(pid) if isinstance(pid, tuple) and len(pid) >= 5 else [None] * 5
        kind = _made(parts[1])
        view = any(part is not None for part in parts[5:])
        if parts[0] != "storage" or not isinstance(kind, _StorageType) or view:
            raise ValueError("an unknown kind of reference; save the file with a newer PyTorch.")
        key, size = parts[2], parts[4]
        if not isinstance(key, str | int) or not isinstance(size, int) or size < 0:
            raise ValueError("a reference to a storage makes no sense; the file is damaged.")
        return self.storages.setdefault(str(key), _Storage(str(key), kind.dtype, size))

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
        """_rebuild_tensor and _rebuild_tensor_v2."""
        return self._typed(storage, offset, shape, strides, None)

    def _tensor_v3(
        self, storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any,
        dtype: Any, *_: Any,
    ) -> Any:  # fmt: skip
        return self._typed(storage, offset, shape, strides, _made(dtype))

    def _typed(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any) -> Any:
        numbers = (offset, *shape, *strides) if _are_tuples(shape, strides) else (-1,)
        if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > 64:
            raise ValueError("a tensor of the file has no storage; the file is damaged.")
        if any(not isinstance(n, int) or not 0 <= n < 2**48 for n in numbers):
            raise ValueError("a tensor of the file has no sensible shape; the file is damaged.")
        kind = dtype.dtype if isinstance(dtype, _DType) else storage.dtype
        if kind is None and dtype is not None or getattr(kind, "kind", "") == "c":
            return Opaque()  # of a type that weights do not have
        if kind is None:
            raise ValueError("a tensor of the file has no type; the file is damaged.")
        return Tensor(storage, kind, offset, shape, strides, self._big_endian)

    def _parameter(self, data: Any = None, *_: Any) -> Any:
        return data

    def _opaque(self, *_: Any) -> Opaque:
        """A sparse, quantized or meta tensor: not weights that could be used here."""
        return Opaque()


class _StorageType:
    def __init__(self, dtype: np.dtype | None):
        self.dtype = dtype

    def __call__(self, *_):
        return Opaque()


class _DType:
    def __init__(self, dtype: np.dtype):
        self.dtype = dtype

    def __call__(self, *_):
        return Opaque()


class _Namespace(dict):
    """The options of a program (argparse), as a dictionary."""

    def build(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


def _made(value: Any) -> Any:
    """What the table gave for a name that the pickle passes as a value."""
    return getattr(value, "make", value)


def _are_tuples(*values: Any) -> bool:
    return all(isinstance(value, tuple) for value in values)


def _mapping(items: Any = (), *_: Any) -> dict:
    if isinstance(items, dict):
        return dict(items)
    if isinstance(items, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str | int)
        for pair in items
    ):
        return dict(items)
    return {}


def _encoded(text: Any = "", encoding: Any = "latin1", *_: Any) -> Any:
    """Bytes, which protocol 2 writes as text."""
    return text.encode("latin1") if isinstance(text, str) and encoding == "latin1" else Opaque()


def _sized(sizes: Any = (), *_: Any) -> tuple:
    return tuple(sizes) if isinstance(sizes, list | tuple) else ()


# The functions of torch._utils that weights-only files may name, and what they do here.
_REBUILDS = {
    "_rebuild_tensor": "_tensor",
    "_rebuild_tensor_v2": "_tensor",
    "_rebuild_tensor_v3": "_tensor_v3",
    "_rebuild_parameter": "_parameter",
    "_rebuild_parameter_with_state": "_parameter",
    "_rebuild_qtensor": "_opaque",
    "_rebuild_sparse_tensor": "_opaque",
    "_rebuild_meta_tensor_no_storage": "_opaque",
    "_rebuild_nested_tensor": "_opaque",
    "_rebuild_wrapper_subclass": "_opaque",
    "_rebuild_device_tensor_from_numpy": "_opaque",
    "_rebuild_device_tensor_from_cpu_tensor": "_opaque",
}
_DATA: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): _mapping,
    ("collections", "Counter"): _mapping,
    ("collections", "defaultdict"): lambda *_: {},
    ("argparse", "Namespace"): _Namespace,
    ("torch", "Size"): _sized,
    ("torch.nn.parameter", "Parameter"): lambda data=None, *_: data,
    ("_codecs", "encode"): _encoded,
}
_INERT = {
    "builtins": ("set", "frozenset", "complex", "bytearray", "slice", "range"),
    "__builtin__": ("set", "frozenset", "complex", "bytearray"),
    "torch.serialization": ("_get_layout",),
    "torch._tensor": ("_rebuild_from_type_v2",),
    "copyreg": ("_reconstructor",),
    # A pickled NumPy scalar or array: a stored accuracy, or its history.
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("scalar", "_reconstruct"),
    "numpy._core.multiarray": ("scalar", "_reconstruct"),
    "numpy.dtypes": None,
}
_TORCH_WORDS = ("device", "Tensor", "strided", "sparse_coo", "per_", "contiguous_format")


def _is_inert(module: str, name: str) -> bool:
    """Whether PyTorch's weights-only reader takes the name, and no weights come of it."""
    if module == "torch":
        kinds = ("complex", "float", "int", "uint", "quint", "qint", "bits", "channels_last")
        return name.startswith(_TORCH_WORDS + kinds) or name.endswith(("Storage", "Tensor"))
    if module in _INERT:
        names = _INERT[module]
        return names is None or name in names
    return module == "torch.cuda" and name.endswith(("Storage", "Tensor"))


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """The containers of a file of weights, with a `Tensor` for every tensor.

    Args:
        path: a file written by ``torch.save``, in the zip or the older format, by ``safetensors``
            or by ``np.savez``.

    Returns:
        What was saved: usually a dictionary.

    Raises:
        ValueError: if the file is torn, is no file of weights or needs code to be run.
    """
    path = pathlib.Path(path).expanduser()
    with open(path, "rb") as file:
        try:
            if is_safetensors(file):
                return read_safetensors(file, path)
            if zipfile.is_zipfile(file):
                return _read_zip(path)
            file.seek(0)
            return _read_legacy(file, path)
        except Exception as error:  # a damaged pickle or archive can raise nearly anything
            text = error if isinstance(error, ValueError) else _torn(error)
            raise ValueError(f"{path.name}: {text}") from error


def _torn(error: Exception) -> str:
    return (
        f"not a file written by torch.save, or torn ({type(error).__name__}: {str(error)[:100]})."
    )


def _read_zip(path: pathlib.Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("its members are compressed; torch.save and np.savez do not do that.")
        if sum(entry.file_size for entry in entries.values()) > path.stat().st_size:
            raise ValueError("its members are larger than the file; it is damaged.")
        if entries and all(name.endswith(".npy") for name in entries):
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        pickles = [name for name in entries if name.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("a zip archive without data.pkl; it was not written by torch.save.")
        if entries[pickles[0]].file_size > _MAX_PICKLE:
            raise ValueError(f"its data.pkl has more than {_MAX_PICKLE} bytes.")
        root = pickles[0][: -len("data.pkl")]
        big = root + "byteorder" in entries and archive.read(root + "byteorder")[:3] == b"big"
        reader = _Reader(big)
        with archive.open(pickles[0]) as opened:
            content = reader.read(opened)  # pyright: ignore[reportArgumentType]
    for key, storage in reader.storages.items():
        entry = entries.get(f"{root}data/{key}")
        width = (storage.dtype or np.dtype("u1")).itemsize
        if entry is None or entry.file_size != storage.size * width:
            raise ValueError(f"storage {key} is missing or too short; the file is torn.")
        storage.read = functools.partial(_read_member, path, entry)
    return content


def _read_member(path: pathlib.Path, entry: zipfile.ZipInfo, start: int, count: int) -> bytes:
    """Bytes of an uncompressed member, all of which is checked against its CRC on the way."""
    with zipfile.ZipFile(path) as archive, archive.open(entry) as opened:
        for _ in range(start // _BLOCK):
            opened.read(_BLOCK)
        opened.read(start % _BLOCK)
        found = opened.read(count)
        while opened.read(_BLOCK):
            pass
    return found


def _read_legacy(file: BinaryIO, path: pathlib.Path) -> Any:
    reader = _Reader()
    if reader.read(file) != _LEGACY_MAGIC or reader.read(file) != _LEGACY_PROTOCOL:
        raise ValueError("not a file written by torch.save.")
    system = reader.read(file)
    little = not isinstance(system, dict) or bool(system.get("little_endian", True))
    reader = _Reader(not little)
    content = reader.read(file)
    keys = reader.read(file)
    size_of_file = path.stat().st_size
    for key in keys if isinstance(keys, list) else []:
        storage = reader.storages.get(str(key))
        if storage is None:
            raise ValueError("a storage belongs to no tensor; the file is damaged.")
        (size,) = struct.unpack("<q" if little else ">q", file.read(8))
        start, length = file.tell(), storage.size * (storage.dtype or np.dtype("u1")).itemsize
        if size != storage.size or start + length > size_of_file:
            raise ValueError(f"storage {storage.key} is too short; the file is torn, get it again.")
        storage.read = functools.partial(_read_part, path, start)
        file.seek(start + length)
    if any(storage.read is None for storage in reader.storages.values()):
        raise ValueError("storages are missing; the file is torn, get it again.")
    return content


def _read_part(path: pathlib.Path, first: int, start: int, count: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(first + start)
        return file.read(count)


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
    path = pathlib.Path(path).expanduser()
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

    def write(file):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _member(archive, "data.pkl", opcodes)
            _member(archive, "byteorder", b"little")
            for i, array in enumerate(flat.values()):
                words = array.reshape(-1).view(f"u{array.itemsize}")
                _member(archive, f"data/{i}", words.astype(words.dtype.newbyteorder("<")).tobytes())
            _member(archive, "version", b"3\n")

    write_atomically(path, write)


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
