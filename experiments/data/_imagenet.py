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
        records = Records(_files(folder, part))
        images.append(Pictures(records, SIDE))
        labels.append(_labels(records, part, data_folder(data_dir)))
    train, test = images
    return Dataset(
        "imagenet",
        train,
        labels[0],
        Center(test, CENTER),
        labels[1],
        class_names=_class_names(folder),
        source=f"array_record files ({folder.name})",
        verification=f"none: {len(train):,} training and {len(test):,} test records",
        mean=MEAN,
        std=STD,
    )


def imagenet_test_images(preparation: str, data_dir: str | Path | None = None) -> Pictures:
    """ImageNet's test pictures as images, prepared as published models expect them.

    Args:
      preparation: in RobustBench's words: "BicubicRes256Crop224" scales the shorter side to 256 by
        cubic interpolation and takes the central 224 pixels; linear without "Bicubic"; "Crop288"
        does not scale.
      data_dir: folder with the data; see :func:`experiments.data.load`.

    Returns:
      Images to be read by row, in the order of the data set's labels.

    Raises:
      DataMissingError: if there are no files of ImageNet.
      ValueError: if the preparation is not of that form.
    """
    found = re.fullmatch(r"(Bicubic)?(?:Res(\d+))?Crop(\d+)", preparation)
    if found is None:
        raise ValueError(
            f"preparation={preparation!r} is not [Bicubic][ResN]CropN, such as Res256Crop224"
        )
    records = Records(_files(find_imagenet(data_dir), "validation"))
    bicubic, scale, side = found.groups()
    return Pictures(records, int(side), scale=int(scale or 0), bicubic=bicubic is not None)


def find_imagenet(data_dir: str | Path | None = None) -> Path:
    """The folder with ImageNet's files.

    Raises:
      DataMissingError: if there is none.
    """
    folder = data_folder(data_dir)
    default = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    prepared = [path for root in (folder, default) for path in (root / "imagenet2012").glob("*")]
    for path in (folder / "imagenet", *sorted(prepared, reverse=True)):
        if all(_files(path, part) for part in _PARTS):
            return path
    raise DataMissingError(
        f"imagenet is not in {folder} (imagenet/ or imagenet2012/) nor in {default}",
        "It cannot be downloaded freely: get the archives from image-net.org, then run "
        "`tfds build imagenet2012 --file_format=array_record` where TensorFlow is installed",
    )


def _files(folder: Path, part: str) -> list[Path]:
    return sorted(folder.glob(f"*{part}*.array_record*"))


def _labels(records: Records, part: str, folder: Path) -> np.ndarray:
    """The labels of all records, from the copy of an earlier call if the files are the same."""
    found = [(path.name, path.stat()) for path in records.paths]
    text = ";".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in found)
    identity = hashlib.sha256(text.encode()).hexdigest()
    kept = folder / f"imagenet-{part}-labels.npz"
    if kept.is_file():
        try:
            with np.load(kept, allow_pickle=False) as file:
                if str(file["identity"]) == identity and len(file["labels"]) == len(records):
                    return file["labels"]
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(f"{kept} is damaged ({error}); reading the labels again", stacklevel=2)
    labels = np.array([_label(records, row) for row in range(len(records))], np.int32)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, identity=identity, labels=labels)
        partial.rename(kept)
    except OSError as error:
        warnings.warn(f"the labels can't be kept in {kept} ({error})", stacklevel=2)
    return labels


def _label(records: Records, row: int) -> int:
    try:
        label = example(records.read(row)).get("label")
    except Exception as error:  # array_record has no type of its own
        raise DataError(
            records.where(row), f"cannot be read ({error})", "Restore the file from a copy"
        ) from error
    if not isinstance(label, int) or not 0 <= label < NUM_CLASSES:
        problem = f"its label is {label!r}, not within 0 to {NUM_CLASSES - 1}"
        raise DataError(records.where(row), problem, "Prepare the data again with labels")
    return label


def _class_names(folder: Path) -> tuple[str, ...]:
    """The synsets that tensorflow_datasets writes, or else the numbers of the classes."""
    file = folder / "label.labels.txt"
    names = file.read_text(encoding="utf-8").split() if file.is_file() else []
    return tuple(names) if len(names) == NUM_CLASSES else tuple(map(str, range(NUM_CLASSES)))
