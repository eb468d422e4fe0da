"""Tiny data sets in the official layouts, written without the code under test."""

import dataclasses
import gzip
import hashlib
import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.data import DataError, Dataset
from experiments.data._cifar10 import CIFAR10
from experiments.data._dataset import Arrays
from experiments.data._mnist import MNIST
from experiments.data._sources import Spec, load_spec


def random_arrays(spec: Spec, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    parts = []
    for counts in (spec.train_counts, spec.test_counts):
        shape = (sum(counts), *spec.image_shape)
        parts.append(rng.integers(0, 256, shape, dtype=np.uint8))
        parts.append(rng.integers(0, len(spec.class_names), shape[0], dtype=np.int32))
    return Arrays(*parts)


def cifar_records(images: np.ndarray, labels: np.ndarray) -> bytes:
    planes = ((image[..., c].tobytes() for c in range(3)) for image in images)
    return b"".join(
        bytes([label]) + b"".join(rgb) for label, rgb in zip(labels, planes, strict=True)
    )


def cifar_batches(spec: Spec, arrays: Arrays) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    edges = np.cumsum(spec.train_counts)[:-1]
    images, labels = np.split(arrays.train_images, edges), np.split(arrays.train_labels, edges)
    batches = {
        f"data_batch_{k}": batch for k, batch in enumerate(zip(images, labels, strict=True), 1)
    }
    return batches | {"test_batch": (arrays.test_images, arrays.test_labels)}


def tiny_cifar10() -> tuple[Spec, Arrays]:
    spec = dataclasses.replace(CIFAR10, train_counts=(4, 4, 4, 4, 4), test_counts=(6,))
    arrays = random_arrays(spec)
    md5 = {
        f"{name}.bin": hashlib.md5(cifar_records(*batch)).hexdigest()
        for name, batch in cifar_batches(spec, arrays).items()
    }
    return dataclasses.replace(spec, md5=md5), arrays


def tiny_mnist() -> tuple[Spec, Arrays]:
    spec = dataclasses.replace(MNIST, train_counts=(30,), test_counts=(7,))
    arrays = random_arrays(spec, seed=1)
    md5 = {name: hashlib.md5(raw).hexdigest() for name, raw in idx_files(arrays).items()}
    return dataclasses.replace(spec, md5=md5), arrays


def write_binary(spec: Spec, arrays: Arrays, folder: Path) -> Path:
    folder.mkdir()
    for name, batch in cifar_batches(spec, arrays).items():
        (folder / f"{name}.bin").write_bytes(cifar_records(*batch))
    (folder / "batches.meta.txt").write_text("\n".join(spec.class_names))
    return folder


def python2_pickle(rows: np.ndarray, labels: list[int], name: bytes) -> bytes:
    """One batch as Python 2 pickled it in 2009 (protocol 2, str where Python 3 has bytes)."""

    def integer(value: int) -> bytes:
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)

    def string(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        + b"(K\x01" + integer(rows.shape[0]) + integer(rows.shape[1]) + b"\x86"
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T" + struct.pack("<i", rows.size) + rows.tobytes() + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(map(integer, labels)) + b"e"
    items = string(b"data") + array + string(b"labels") + numbers
    return b"\x80\x02}(" + items + string(b"batch_label") + string(name) + b"u."


def write_python(spec: Spec, arrays: Arrays, folder: Path) -> Path:
    folder.mkdir()
    for name, (images, labels) in cifar_batches(spec, arrays).items():
        rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
        (folder / name).write_bytes(python2_pickle(rows, labels.tolist(), name.encode()))
    return folder


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_npm_cifar10(spec: Spec, arrays: Arrays, folder: Path) -> Path:
    folder.mkdir()
    for name, (images, _) in cifar_batches(spec, arrays).items():
        (folder / f"{name}.png").write_bytes(png(images.reshape(len(images), 1024, 3)))
    (folder / "train_lables.json").write_text(json.dumps(arrays.train_labels.tolist()))
    (folder / "test_lables.json").write_text(json.dumps(arrays.test_labels.tolist()))
    (folder / "package.json").write_text("{}")
    return folder


def idx_files(arrays: Arrays) -> dict[str, bytes]:
    def images(array: np.ndarray) -> bytes:
        return struct.pack(">IIII", 2051, len(array), 28, 28) + array.tobytes()

    def labels(array: np.ndarray) -> bytes:
        return struct.pack(">II", 2049, len(array)) + bytes(array.tolist())

    return {
        "train-images-idx3-ubyte": images(arrays.train_images),
        "train-labels-idx1-ubyte": labels(arrays.train_labels),
        "t10k-images-idx3-ubyte": images(arrays.test_images),
        "t10k-labels-idx1-ubyte": labels(arrays.test_labels),
    }


def write_idx(arrays: Arrays, folder: Path, compress: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in idx_files(arrays).items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
        else:
            (folder / name).write_bytes(raw)
    return folder


def pack(path: Path, folder: Path, prefix: str) -> Path:
    """A .tar.gz of `folder` with `prefix` for its name inside; the folder is removed."""
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname=prefix)
    for file in sorted(folder.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    folder.rmdir()
    return path


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_refused(spec, folder: Path, message: str) -> None:
    """Loading fails with one DataError and leaves every file as it was."""
    before = files_of(folder)
    with pytest.raises(DataError, match=message) as caught:
        load_spec(spec, folder)
    assert str(folder) in str(caught.value), "the error must name the file"
    assert files_of(folder) == before


def assert_holds(dataset: Dataset, arrays: Arrays) -> None:
    for field, expected in arrays._asdict().items():
        actual = getattr(dataset, field)
        assert actual.dtype == (np.uint8 if "images" in field else np.int32)
        assert actual.flags.writeable
        np.testing.assert_array_equal(actual, expected)


def prepare(spec, arrays: Arrays, folder: Path, file_format: str) -> Path:
    """Prepares a data set as tensorflow_datasets' own builders do: the key is the index."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        # Of a module in a package it would look for the package's files, and need one more library.
        __module__ = "data_layouts"
        VERSION = tfds.core.Version("3.0.2")
        name = spec.name

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=spec.image_shape, encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=len(spec.class_names)),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {
                "train": self._generate_examples(arrays.train_images, arrays.train_labels),
                "test": self._generate_examples(arrays.test_images, arrays.test_labels),
            }

        def _generate_examples(self, images, labels):
            # PNG bytes, because arrays are encoded with TensorFlow.
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                encoded = png(image if image.shape[-1] == 3 else image[..., 0])
                yield index, {"image": encoded, "label": int(label)}

    builder = Builder(data_dir=folder, file_format=file_format)
    builder.download_and_prepare()
    return Path(builder.data_dir)
