"""CIFAR-100: 60,000 32x32 color images in a hundred classes (Krizhevsky, 2009).

Labels are the fine ones. MD5s are published for the files of the Python archive and for the binary
archive as a whole, and are checked when one of these is read. None are published for the files
inside the binary archive, so for an extracted binary folder or a folder prepared by
tensorflow_datasets only the labels are checked; the source says which was read.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ._archives import read_members
from ._dataset import Arrays, DataError
from ._sources import Download, OfficialFile, Reader, Spec, check_md5, named
from ._tfds import prepared
from ._unpickle import unpickle_batch

_FRESH = "Delete it and download it again with: python -m experiments.data cifar100"
_BINARY = "cifar-100-binary.tar.gz"


def serialise(spec: Spec, arrays: Arrays) -> Iterator[OfficialFile]:
    """The fine labels of both parts, one byte each."""
    del spec
    for name, labels in (("train", arrays.train_labels), ("test", arrays.test_labels)):
        yield f"{name} labels", functools.partial(_bytes, labels)


def read_python(spec: Spec, path: Path) -> Arrays:
    """Reads cifar-100-python.tar.gz or cifar-100-python without executing pickles."""
    content, arrays = read_members(path, ("train", "test")), []
    for name, count in (("train", sum(spec.train_counts)), ("test", sum(spec.test_counts))):
        raw, where = content.pop(name), f"{path} ({name})"
        check_md5(spec, name, raw, where, _FRESH)
        batch = unpickle_batch(raw, where)
        rows, labels = batch.get("data"), batch.get("fine_labels")
        width = int(np.prod(spec.image_shape))
        if not isinstance(rows, np.ndarray) or rows.shape != (count, width):
            got = rows.shape if isinstance(rows, np.ndarray) else type(rows).__name__
            problem = f"'data' is {got}, not a uint8 array of shape ({count}, {width})"
            raise DataError(where, problem, _FRESH)
        if not isinstance(labels, list) or any(
            type(label) is not int or not 0 <= label < len(spec.class_names) for label in labels
        ):
            raise DataError(where, "'fine_labels' is not a list of integers in 0..99", _FRESH)
        if len(labels) != count:
            raise DataError(where, f"{len(labels)} labels for {count} images", _FRESH)
        arrays += _nhwc(spec, rows), np.array(labels, np.int32)
    return Arrays(*arrays)


def read_binary(spec: Spec, path: Path) -> Arrays:
    """Reads cifar-100-binary.tar.gz or cifar-100-binary: coarse label, fine label, planes."""
    if path.is_file():
        check_md5(spec, _BINARY, path.read_bytes(), path, _FRESH)
    content, arrays = read_members(path, ("train.bin", "test.bin")), []
    for name, count in (("train.bin", sum(spec.train_counts)), ("test.bin", sum(spec.test_counts))):
        raw, record = content[name], 2 + int(np.prod(spec.image_shape))
        if len(raw) != count * record:
            raise DataError(path, f"{name} has {len(raw)} bytes, not {count * record}", _FRESH)
        records = np.frombuffer(raw, np.uint8).reshape(count, record)
        arrays += _nhwc(spec, records[:, 2:]), records[:, 1].astype(np.int32)
    return Arrays(*arrays)


def _nhwc(spec: Spec, rows: np.ndarray) -> np.ndarray:
    """(B, C*H*W) rows of the official files to (B, H, W, C)."""
    height, width, channels = spec.image_shape
    return np.array(rows.reshape(-1, channels, height, width).transpose(0, 2, 3, 1), order="C")


def _bytes(labels: np.ndarray) -> bytes:
    return labels.astype(np.uint8).tobytes()


CIFAR100 = Spec(
    name="cifar100",
    image_shape=(32, 32, 3),
    class_names=tuple(
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
        keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
        mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
        plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
        worm""".split()
    ),
    train_counts=(50_000,),
    test_counts=(10_000,),
    # MD5 of the fine labels in order, one byte each, computed from the complete label vectors.
    md5={
        "train labels": "00c0899b82d482aefa46cdb301dbaf9c",
        "test labels": "1ddeb59844e0066662ddddaec17677b9",
    },
    file_md5={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        _BINARY: "03b5dce01913d631647c71ecec9e9cb8",
    },
    verification="MD5 of the labels; for the images, see the source",
    serialise=serialise,
    readers=(
        prepared("cifar100"),
        Reader(
            "official Python archive or folder",
            named("cifar-100-python.tar.gz", "cifar-100-python"),
            read_python,
            checks="files with the published MD5",
        ),
        Reader(
            "official binary archive",
            named(_BINARY),
            read_binary,
            checks="with the published MD5",
        ),
        Reader("official binary folder", named("cifar-100-binary"), read_binary),
    ),
    downloads=(
        Download(
            "https://www.cs.toronto.edu/~kriz/",
            (("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
        ),
    ),
    npm=None,
    mean=(0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    std=(0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
)
