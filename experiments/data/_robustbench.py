"""The 5,000 ImageNet images behind RobustBench's figures, in its order.

They are read from array_record files with names (see `_imagenet`), or from the pictures as
RobustBench has them:

    DATA/imagenet/val/n01440764/ILSVRC2012_val_00000293.JPEG, and so on: a folder for each class
"""

import functools
import importlib.resources
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import _imagenet
from ._dataset import DataError, DataMissingError
from ._rows import Files, Pictures, Records, Rows, take
from ._sources import data_folder

_EXTRACT = "Extract the validation images to imagenet/val/SYNSET/, or prepare them again with names"


class Judged(NamedTuple):
    """Test images.

    Attributes:
      images: to be read by row, uint8 of shape (N, side, side, 3).
      labels: int32 of shape (N,).
      class_names: one name per class.
    """

    images: Rows
    labels: np.ndarray
    class_names: tuple[str, ...]


def robustbench_images(preparation: str, data_dir: str | Path | None = None) -> Judged:
    """The 5,000 ImageNet images behind RobustBench's figures, as a published model expects them.

    The first n are those that RobustBench takes for ``n_examples=n``.

    Args:
      preparation: in RobustBench's words: "BicubicRes256Crop224" scales the shorter side to 256 by
        cubic interpolation and takes the central 224 pixels; linear without "Bicubic"; "Crop288"
        does not scale.
      data_dir: folder with the data; see :func:`experiments.data.load`.

    Returns:
      Images, labels, and names of the classes.

    Raises:
      DataMissingError: if there are no validation images of ImageNet.
      DataError: if some of the 5,000 are not there, or their labels are others.
      ValueError: if the preparation is not of that form.
    """
    found = re.fullmatch(r"(Bicubic)?(?:Res(\d+))?Crop(\d+)", preparation)
    if found is None:
        raise ValueError(
            f"preparation={preparation!r} is not [Bicubic][ResN]CropN, such as Res256Crop224"
        )
    bicubic, scale, side = found.groups()
    options = {"scale": int(scale or 0), "bicubic": bicubic is not None}
    pictures = data_folder(data_dir) / "imagenet" / "val"
    if pictures.is_dir():
        paths, names = _paths(pictures)
        return Judged(Pictures(Files(paths), int(side), **options), chosen()[1], names)
    try:
        folder = _imagenet.find_imagenet(data_dir, parts=("validation",))
    except DataMissingError as error:
        problem = f"{error.missing}, nor are pictures in {pictures}"
        raise DataMissingError(problem, error.remedy) from error
    records = Records(_imagenet.files(folder, "validation"))
    rows = _rows(records, *_imagenet.index(records, "validation", data_folder(data_dir)))
    images = take(Pictures(records, int(side), **options), rows)
    return Judged(images, chosen()[1], _imagenet.class_names(folder))


@functools.cache
def chosen() -> tuple[np.ndarray, np.ndarray]:
    """Numbers N of the names ILSVRC2012_val_N.JPEG, and labels, in RobustBench's order."""
    file = importlib.resources.files("experiments.data") / "imagenet_robustbench.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    return np.array(content["numbers"], np.int32), np.array(content["labels"], np.int32)


def _name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def _paths(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The pictures, and the synsets, whose order is that of the labels."""
    synsets = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    if len(synsets) != _imagenet.NUM_CLASSES:
        problem = f"has {len(synsets)} folders, not one for each of {_imagenet.NUM_CLASSES} classes"
        raise DataError(folder, problem, _EXTRACT)
    paths = [folder / synsets[label] / _name(n) for n, label in zip(*chosen(), strict=True)]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        problem = f"not there, as {len(absent):,} of RobustBench's {len(paths):,} images"
        raise DataError(absent[0], problem, _EXTRACT)
    return paths, synsets


def _rows(records: Records, labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The rows of the images among records of these labels and numbers."""
    row_of = {int(number): row for row, number in enumerate(numbers)}
    wanted, expected = chosen()
    absent = [number for number in wanted.tolist() if number not in row_of]
    if absent:
        problem = (
            f"{len(absent):,} of RobustBench's {len(wanted):,} images are not there by their "
            f"names in 'file_name', such as {_name(absent[0])}"
        )
        raise DataError(records.paths[0].parent, problem, _EXTRACT)
    rows = np.array([row_of[number] for number in wanted.tolist()])
    wrong = np.flatnonzero(labels[rows] != expected)
    if len(wrong):
        row, label = int(rows[wrong[0]]), expected[wrong[0]]
        problem = f"its label is {labels[row]}, but {label} in RobustBench"
        raise DataError(
            records.where(row), problem, "Number the classes by the order of their synsets"
        )
    return rows
