"""Images that stay in files and are read by row, with the indexing of an array."""

import abc
import concurrent.futures
import functools
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ._dataset import DataError

_OPEN_FILES = 128  # of one data set, at most
_RESTORE = "Restore the file from a copy"


class Rows(abc.ABC):
    """Images of one shape, read by row: ``rows[3:5]``, ``rows[np.array([7, 2])]``, ``len(rows)``.

    Attributes:
      shape: (N, H, W, C).
      dtype: uint8.
    """

    shape: tuple[int, ...]
    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Reads some images; what NumPy takes as an index of one axis."""
        return self.read(np.arange(len(self))[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All images, in memory."""
        del copy  # reading always makes one
        return self[:].astype(dtype or self.dtype, copy=False)

    @abc.abstractmethod
    def read(self, rows: np.ndarray) -> np.ndarray:
        """Reads the images of row numbers (B,), as an array (B, H, W, C)."""

    @abc.abstractmethod
    def where(self, row: int) -> str:
        """Names an image and its file."""


class Records:
    """The records of array_record files, in the order of the files.

    Args:
      paths: the files.

    Raises:
      DataError: if a file has no records or cannot be read, or array_record is missing.
    """

    def __init__(self, paths: Sequence[Path]):
        try:
            from array_record.python import array_record_module  # pyright: ignore
        except ImportError as error:
            raise DataError(
                paths[0],
                f"reading it needs array_record ({error})",
                "Install it with: pip install array_record",
            ) from error
        self._module = array_record_module
        self._lock = threading.Lock()
        self._files: OrderedDict[int, Any] = OrderedDict()  # open, the latest last
        self.paths = list(paths)
        self.ends = np.cumsum([self._count(index) for index in range(len(paths))])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, row: int) -> bytes:
        """The record of a row."""
        index, position = self._place(row)
        with self._lock:
            return self._open(index).read([position])[0]

    def picture(self, row: int) -> bytes:
        """The JPEG or PNG of a record."""
        found = example(self.read(row)).get("image")
        if not isinstance(found, bytes):
            raise DataError(self.where(row), "has no feature 'image'", "Prepare the data again")
        return found

    def where(self, row: int) -> str:
        """Names a record."""
        index, position = self._place(row)
        return f"{self.paths[index]}, record {position}"

    def _place(self, row: int) -> tuple[int, int]:
        index = int(np.searchsorted(self.ends, row, side="right"))
        return index, int(row - (self.ends[index - 1] if index else 0))

    def _open(self, index: int) -> Any:
        if index not in self._files:
            while len(self._files) >= _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            # Rows come in random order: what follows one on the disk is of no use.
            options = "readahead_buffer_size:0"
            reader = self._module.ArrayRecordReader(str(self.paths[index]), options)
            self._files[index] = reader
        self._files.move_to_end(index)
        return self._files[index]

    def _count(self, index: int) -> int:
        try:
            count = self._open(index).num_records()
        except Exception as error:  # the reader has no type of its own
            raise DataError(self.paths[index], f"cannot be read ({error})", _RESTORE) from error
        if not count:  # what the reader makes of a file that was cut off
            raise DataError(self.paths[index], "has no records", _RESTORE)
        return count


class Files:
    """JPEG or PNG files, one a picture.

    Args:
      paths: the files.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, row: int) -> bytes:
        """The content of a file."""
        return self.paths[row].read_bytes()

    def where(self, row: int) -> str:
        """Names a file."""
        return str(self.paths[row])


class Pictures(Rows):
    """Pictures from files: decoded, scaled to the shorter side, their central square.

    Args:
      records: files, or serialized ``tf.train.Example`` with a JPEG or PNG in "image".
      side: H and W.
      options: of :func:`square`.
    """

    def __init__(self, records: Records | Files, side: int, **options: Any):
        self.records, self.shape = records, (len(records), side, side, 3)
        self.options = options

    def read(self, rows: np.ndarray) -> np.ndarray:
        return np.stack(list(_pool().map(self._picture, rows.tolist())))

    def where(self, row: int) -> str:
        return self.records.where(row)

    def _picture(self, row: int) -> np.ndarray:
        found = self.records.picture(row)
        try:
            return square(found, self.shape[1], **self.options)
        except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others
            raise DataError(self.where(row), f"not a picture ({error})", _RESTORE) from error


class Subset(Rows):
    """Some rows of others."""

    def __init__(self, whole: Rows, rows: np.ndarray):
        self.whole, self.rows = whole, rows
        self.shape = (len(rows), *whole.shape[1:])

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.whole.read(self.rows[rows])

    def where(self, row: int) -> str:
        return self.whole.where(int(self.rows[row]))


class Center(Rows):
    """The central squares of others."""

    def __init__(self, whole: Rows, side: int):
        self.whole = whole
        self.shape = (len(whole), side, side, whole.shape[3])

    def read(self, rows: np.ndarray) -> np.ndarray:
        top, left = ((have - want) // 2 for have, want in zip(*self._sides(), strict=True))
        bottom, right = top + self.shape[1], left + self.shape[2]
        return np.ascontiguousarray(self.whole.read(rows)[:, top:bottom, left:right])

    def where(self, row: int) -> str:
        return self.whole.where(row)

    def _sides(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.whole.shape[1:3], self.shape[1:3]


def take(images: np.ndarray | Rows, rows: np.ndarray) -> Any:
    """Some images: an array of an array, and otherwise rows that are still to be read.

    Example:
      >>> take(np.zeros((5, 8, 8, 1), np.uint8), np.array([0, 4])).shape
      (2, 8, 8, 1)
    """
    return Subset(images, rows) if isinstance(images, Rows) else images[rows]


def central(images: np.ndarray | Rows, image_shape: tuple[int, ...]) -> Any:
    """Training images as the model is evaluated on them: larger ones lose their borders.

    Example:
      >>> central(np.zeros((5, 8, 8, 1), np.uint8), (8, 8, 1)).shape
      (5, 8, 8, 1)
    """
    if images.shape[1:] == image_shape or not isinstance(images, Rows):
        return images
    return Center(images, image_shape[0])


def square(
    picture: bytes, side: int, *, scale: int | None = None, bicubic: bool = False
) -> np.ndarray:
    """The central square of a JPEG or PNG: (side, side, 3) uint8.

    The rounding is that of torchvision's Resize and CenterCrop.

    Args:
      picture: the file's content.
      side: H and W; smaller pictures get a black border.
      scale: what the shorter side is scaled to first: the side by default, 0 for not at all.
      bicubic: scale by cubic instead of linear interpolation.
    """
    scale = side if scale is None else scale
    resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    with Image.open(io.BytesIO(picture), formats=["JPEG", "PNG"]) as image:
        (width, height), short = image.size, min(image.size)
        scaled = image.convert("RGB")
        if scale:
            size = int(scale * width / short), int(scale * height / short)
            scaled = scaled.resize(size, resample)
    left, top = (
        round((length - side) / 2) if length >= side else -((side - length) // 2)
        for length in scaled.size
    )
    return np.asarray(scaled.crop((left, top, left + side, top + side)))


def example(record: bytes) -> dict[str, bytes | int]:
    """The first value of each feature of a serialized ``tf.train.Example``.

    Raises:
      ValueError: if it is not one.

    Example:
      >>> example(bytes.fromhex("0a100a0e0a056c6162656c12051a030a0107"))
      {'label': 7}
    """
    found = {}
    for features in _values(record, 1):
        for entry in _values(features, 1):
            name, value = _first(entry, 1), _first(entry, 2)
            strings, integers = _first(value, 1), _first(value, 3)
            if strings is not None:
                found[_text(name)] = _first(strings, 1)
            elif integers is not None:
                number = _first(integers, 1)
                found[_text(name)] = number if isinstance(number, int) else _varint(number, 0)[0]
    return found


def _text(name: Any) -> str:
    if not isinstance(name, bytes):
        raise ValueError("not a tf.train.Example: a feature has no name")
    return name.decode()


def _first(message: Any, field: int) -> Any:
    return next(_values(message, field), None) if isinstance(message, bytes) else None


def _values(message: bytes, field: int) -> Iterator[Any]:
    """The values of a field of a protocol buffer: bytes or integers."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
        else:
            if kind == 2:
                size, position = _varint(message, position)
            elif kind in (1, 5):
                size = {1: 8, 5: 4}[kind]
            else:
                raise ValueError(f"not a tf.train.Example: wire type {kind}")
            value, position = message[position : position + size], position + size
            if position > len(message):
                raise ValueError("not a tf.train.Example: it ends early")
        if tag >> 3 == field:
            yield value


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """An integer and the position after it."""
    value = shift = 0
    while position < len(message):
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
    raise ValueError("not a tf.train.Example: it ends early")


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    """Threads that decode; Pillow and zlib do their work outside Python's lock."""
    return concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "jaxadv-decode")
