"""Reads data sets prepared by tensorflow_datasets, without TensorFlow.

Only `array_record` and `parquet` can be read without TensorFlow; folders prepared as `tfrecord` are
skipped. tensorflow_datasets is imported only when there is something to read.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ._dataset import Arrays, DataError
from ._sources import Reader, Spec

_AGAIN = "Prepare it again with file_format='array_record', or move the folder away"
_READABLE = ("array_record", "parquet")


def prepared(name: str) -> Reader:
    """The reader of the data set that tensorflow_datasets calls `name`."""
    hint = f" ({' or '.join(_READABLE)}, here or in its own folder)"
    return Reader(
        "folder prepared by tensorflow_datasets", find_prepared(name), read_prepared, hint
    )


def find_prepared(name: str) -> Callable[[Sequence[Path]], Path | None]:
    """A `Reader.find` for the newest readable version; includes tensorflow_datasets' folder."""

    def find(folders: Sequence[Path]) -> Path | None:
        default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        roots = [*folders, Path(default).expanduser()]
        infos = (info for root in roots for info in (root / name).glob("*/dataset_info.json"))
        readable = [info.parent for info in infos if _file_format(info) in _READABLE]
        return max(readable, key=lambda path: _version(path.name), default=None)

    return find


def read_prepared(spec: Spec, path: Path) -> Arrays:
    """Reads a prepared folder into the order of the official files.

    tensorflow_datasets stores examples sorted by MD5(split name + decimal index), so sorting the
    indices the same way recovers the official order (tensorflow_datasets, core/hashing.py and
    core/shuffle.py; its CIFAR, MNIST and SVHN builders use the index in the official files as the
    key). The published checksums verify the result.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            path,
            f"reading it needs tensorflow_datasets ({error})",
            "Install it with: pip install tensorflow-datasets array_record; or move the folder",
        ) from error
    try:
        return read_builder(spec, tfds.builder_from_directory(path), path)
    except DataError:
        raise
    except Exception as error:  # third-party readers raise their own types on a damaged file
        raise DataError(path, f"tensorflow_datasets cannot read it ({error})", _AGAIN) from error


def read_builder(spec: Spec, builder: Any, path: Path) -> Arrays:
    """Reads both splits of a `tensorflow_datasets` builder into the official order."""
    arrays: list[np.ndarray] = []
    for part, counts in (("train", spec.train_counts), ("test", spec.test_counts)):
        examples = builder.as_data_source(split=part)
        total = sum(counts)
        if len(examples) != total:
            raise DataError(path, f"{part} has {len(examples)} of {total} examples", _AGAIN)
        images = np.empty((total, *spec.image_shape), np.uint8)
        labels = np.empty(total, np.int32)
        for position, index in enumerate(_stored_order(part, total)):
            example = examples[position]
            images[index], labels[index] = example["image"], example["label"]
        arrays += images, labels
    return Arrays(*arrays)


def _stored_order(part: str, total: int) -> list[int]:
    return sorted(range(total), key=lambda i: hashlib.md5(f"{part}{i}".encode()).digest())


def _file_format(info: Path) -> str | None:
    try:
        return json.loads(info.read_text()).get("fileFormat")
    except (OSError, ValueError) as error:
        raise DataError(
            info, f"cannot be read ({error})", "Prepare the data set again, or move the folder away"
        ) from error


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in name.split("."))
