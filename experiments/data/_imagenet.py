"""ImageNet (ILSVRC 2012): 1,000 classes, read from array_record files while training runs.

The files are those that tensorflow_datasets prepares, or any with the same records: serialized
``tf.train.Example`` with the JPEG in "image" and the class in "label". They are found as

    DATA/imagenet2012/5.1.0/imagenet2012-train.array_record-00000-of-01024   (or in TFDS_DATA_DIR)
    DATA/imagenet/train-00000.array_record, DATA/imagenet/validation-00000.array_record

Training images have 256 pixels, for the augmentation "resized_crop_flip" to cut 224 from; test
images are the central 224 pixels of 256. Labels are collected once, which reads all files, and
kept in the data folder.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ._dataset import DataError, DataMissingError, Dataset
from ._rows import Center, Pictures, Records, example
from ._sources import data_folder

SIDE, CENTER = 256, 224
NUM_CLASSES = 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PARTS = ("train", "validation")


def load_imagenet(data_dir: str | Path | None = None) -> Dataset:
    """Opens ImageNet; its images stay in the files.

    Args:
      data_dir: folder with the data; see :func:`experiments.data.load`.

    Returns:
      The data set: images are read by row, ``dataset.train_images[np.array([5, 7])]``.

    Raises:
      DataMissingError: if there are no such files.
      DataError: if one is damaged, or a label is not within 0 to 999.
    """
    folder = find_imagenet(data_dir)
    images, labels = [], []
    for part in _PARTS:
        records = Records(files(folder, part))
        images.append(Pictures(records, SIDE))
        labels.append(index(records, part, data_folder(data_dir))[0])
    train, test = images
    return Dataset(
        "imagenet",
        train,
        labels[0],
        Center(test, CENTER),
        labels[1],
        class_names=class_names(folder),
        source=f"array_record files ({folder.name})",
        verification=f"none: {len(train):,} training and {len(test):,} test records",
        mean=MEAN,
        std=STD,
    )


def find_imagenet(data_dir: str | Path | None = None, parts: Sequence[str] = _PARTS) -> Path:
    """The folder with ImageNet's files of some parts.

    Raises:
      DataMissingError: if there is none.
    """
    folder = data_folder(data_dir)
    default = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    prepared = [path for root in (folder, default) for path in (root / "imagenet2012").glob("*")]
    for path in (folder / "imagenet", *sorted(prepared, reverse=True)):
        if all(files(path, part) for part in parts):
            return path
    raise DataMissingError(
        f"imagenet is not in {folder} (imagenet/ or imagenet2012/) nor in {default}",
        "It cannot be downloaded freely: get the archives from image-net.org, then run "
        "`tfds build imagenet2012 --file_format=array_record` where TensorFlow is installed",
    )


def files(folder: Path, part: str) -> list[Path]:
    """The files of a part, "train" or "validation", in order."""
    return sorted(folder.glob(f"*{part}*.array_record*"))


def index(records: Records, part: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels and numbers of all records, from an earlier call's copy if the files are the same.

    Args:
      records: all records.
      part: "train" or "validation".
      folder: where the copy is kept.

    Returns:
      Labels, and the numbers N of the names ILSVRC2012_val_N.JPEG or -1; int32 (N,).
    """
    found = [(path.name, path.stat()) for path in records.paths]
    text = ";".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in found)
    identity = hashlib.sha256(text.encode()).hexdigest()
    kept = folder / f"imagenet-{part}-index.npz"
    if kept.is_file():
        try:
            with np.load(kept, allow_pickle=False) as file:
                if str(file["identity"]) == identity and len(file["labels"]) == len(records):
                    return file["labels"], file["numbers"]
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(f"{kept} is damaged ({error}); reading the labels again", stacklevel=3)
    facts = np.array([_facts(records, row) for row in range(len(records))], np.int32)
    labels, numbers = facts.T
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, identity=identity, labels=labels, numbers=numbers)
        partial.rename(kept)
    except OSError as error:
        warnings.warn(f"the labels can't be kept in {kept} ({error})", stacklevel=3)
    return labels, numbers


def _facts(records: Records, row: int) -> tuple[int, int]:
    """Label of a record, and number of its name."""
    try:
        features = example(records.read(row))
    except Exception as error:  # array_record has no type of its own
        raise DataError(
            records.where(row), f"cannot be read ({error})", "Restore the file from a copy"
        ) from error
    label, name = features.get("label"), features.get("file_name")
    if not isinstance(label, int) or not 0 <= label < NUM_CLASSES:
        problem = f"its label is {label!r}, not within 0 to {NUM_CLASSES - 1}"
        raise DataError(records.where(row), problem, "Prepare the data again with labels")
    number = re.search(rb"ILSVRC2012_val_(\d{8})\.JPEG$", name if isinstance(name, bytes) else b"")
    return label, int(number[1]) if number else -1


def class_names(folder: Path) -> tuple[str, ...]:
    """The synsets that tensorflow_datasets writes, or else the numbers of the classes."""
    file = folder / "label.labels.txt"
    names = file.read_text(encoding="utf-8").split() if file.is_file() else []
    return tuple(names) if len(names) == NUM_CLASSES else tuple(map(str, range(NUM_CLASSES)))
