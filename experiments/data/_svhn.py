"""SVHN, cropped digits: 99,289 32x32 color images of house numbers (Netzer et al., 2011).

For non-commercial use only. The "extra" images are not used. The official files label the digit 0
as 10; here it is 0.
"""

import functools
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ._archives import read_file
from ._dataset import Arrays, DataError
from ._sources import Download, OfficialFile, Reader, Spec, check_md5, named
from ._tfds import prepared

_FILES = ("train_32x32.mat", "test_32x32.mat")
_FRESH = "Delete it and download it again with: python -m experiments.data svhn"


def serialise(spec: Spec, arrays: Arrays) -> Iterator[OfficialFile]:
    """The labels of both parts, one byte each, with the digit 0 as 0."""
    del spec
    for name, labels in (("train", arrays.train_labels), ("test", arrays.test_labels)):
        yield f"{name} labels", functools.partial(_bytes, labels)


def read_mat(spec: Spec, path: Path) -> Arrays:
    """Reads train_32x32.mat and test_32x32.mat from the same folder.

    `X` is (height, width, channels, images) uint8, `y` is (images, 1) in 1..10.
    """
    arrays = []
    for name, count in zip(_FILES, (sum(spec.train_counts), sum(spec.test_counts)), strict=True):
        file = path.with_name(name)
        raw = read_file(file)
        # Check before SciPy sees a byte: its parser is not hardened against malicious files.
        check_md5(spec, name, raw, file, _FRESH)
        images, labels = _variables(raw, file)
        if images.dtype != np.uint8 or images.shape != (*spec.image_shape, count):
            problem = f"X is {images.dtype} {images.shape}, not uint8 {(*spec.image_shape, count)}"
            raise DataError(file, problem, _FRESH)
        if not np.issubdtype(labels.dtype, np.integer) or labels.size != count:
            raise DataError(file, f"y is {labels.dtype} {labels.shape}, not {count} ints", _FRESH)
        labels = labels.reshape(-1).astype(np.int32)
        if labels.min() < 1 or labels.max() > 10:
            problem = f"labels go from {labels.min()} to {labels.max()}, not 1 to 10"
            raise DataError(file, problem, _FRESH)
        arrays += np.array(images.transpose(3, 0, 1, 2), order="C"), labels % 10
    return Arrays(*arrays)


def _variables(raw: bytes, file: Path) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat  # slow: takes as long as all other imports together

    try:
        content = loadmat(io.BytesIO(raw), variable_names=("X", "y"))
        return np.asarray(content["X"]), np.asarray(content["y"])
    except Exception as error:  # SciPy raises ValueError, TypeError, KeyError and others.
        raise DataError(file, f"not a MATLAB file with X and y ({error})", _FRESH) from error


def _bytes(labels: np.ndarray) -> bytes:
    return labels.astype(np.uint8).tobytes()


SVHN = Spec(
    name="svhn",
    image_shape=(32, 32, 3),
    class_names=tuple(str(digit) for digit in range(10)),
    train_counts=(73_257,),
    test_counts=(26_032,),
    # MD5 of the labels in order, one byte each, computed from the complete label vectors.
    md5={
        "train labels": "c5a0fdf820e3fec4d60e40d73a439774",
        "test labels": "96a15e7cc0886c4cadd305cbe3d154f0",
    },
    file_md5={
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    },
    verification="MD5 of the labels; for the images, see the source",
    serialise=serialise,
    readers=(
        prepared("svhn_cropped"),
        Reader(
            "official MATLAB files",
            named(_FILES[0]),
            read_mat,
            checks="with the published MD5",
        ),
    ),
    downloads=(
        Download(
            "http://ufldl.stanford.edu/housenumbers/",
            (
                ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
                ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
            ),
        ),
    ),
    npm=None,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
