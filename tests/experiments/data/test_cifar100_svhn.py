"""CIFAR-100 and SVHN from the official layouts: synthetic, and partial real data where it is given.

The environment variable JAXADV_PARTIAL_DATA names a folder with cifar100_partial.npz and
svhn_partial.npz: the first images of each set in their order, and all labels.
"""

import dataclasses
import hashlib
import os
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.io

from experiments import data, settings
from experiments.data import DataMissingError, _registry
from experiments.data._cifar100 import CIFAR100
from experiments.data._dataset import Arrays
from experiments.data._fetch import fetch
from experiments.data._sources import load_spec
from experiments.data._svhn import SVHN
from experiments.run import build
from experiments.run.task import load_task
from tests.helpers.data_layouts import (
    assert_holds,
    assert_refused,
    pack,
    prepare,
    python2_pickle,
    random_arrays,
)

PARTIAL = os.environ.get("JAXADV_PARTIAL_DATA")
needs_partial = pytest.mark.skipif(PARTIAL is None, reason="JAXADV_PARTIAL_DATA is not set")


@pytest.fixture(autouse=True)
def no_prepared_data(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))
    monkeypatch.delenv("JAXADV_DATA", raising=False)


def md5(raw) -> str:
    return hashlib.md5(raw).hexdigest()


def shrunk(spec, arrays: Arrays):
    """The spec of a smaller data set."""
    labels = {
        "train labels": md5(arrays.train_labels.astype(np.uint8)),
        "test labels": md5(arrays.test_labels.astype(np.uint8)),
    }
    counts = {
        "train_counts": (len(arrays.train_labels),),
        "test_counts": (len(arrays.test_labels),),
    }
    return dataclasses.replace(spec, md5=labels, file_md5={}, **counts)


def synthetic(spec):
    small = dataclasses.replace(spec, train_counts=(100,), test_counts=(40,))
    arrays = random_arrays(small, seed=3)
    return shrunk(spec, arrays), arrays


def cifar_parts(arrays: Arrays):
    for name, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
        yield name, planes, labels.astype(int).tolist()


def write_python(spec, arrays, folder: Path, *, python: int):
    """cifar-100-python as it is pickled by Python 2 (the official one) or 3."""
    folder.mkdir()
    for name, planes, labels in cifar_parts(arrays):
        if python == 2:
            raw = python2_pickle(planes, labels, name.encode())
            raw = raw.replace(b"U\x06labels", b"U\x0bfine_labels")
        else:
            coarse = [label // 5 for label in labels]
            files = [f"{i}.png" for i in range(len(labels))]
            batch = {"data": planes, "fine_labels": labels, "coarse_labels": coarse}
            raw = pickle.dumps(batch | {"filenames": files, "batch_label": name}, protocol=4)
        (folder / name).write_bytes(raw)
        spec.file_md5[name] = md5(raw)
    (folder / "meta").write_bytes(b"not read")
    return folder


def write_binary(spec, arrays, folder: Path):
    folder.mkdir()
    for name, planes, labels in cifar_parts(arrays):
        head = np.array([[label // 5, label] for label in labels], np.uint8)
        (folder / f"{name}.bin").write_bytes(np.concatenate([head, planes], axis=1).tobytes())
    return folder


def binary_archive(spec, arrays, folder: Path):
    path = pack(
        folder / "cifar-100-binary.tar.gz",
        write_binary(spec, arrays, folder / "x"),
        "cifar-100-binary",
    )
    spec.file_md5[path.name] = md5(path.read_bytes())
    return path


def write_mat(spec, arrays, folder: Path):
    for name, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        file = folder / f"{name}_32x32.mat"
        official = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        scipy.io.savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": official})
        spec.file_md5[file.name] = md5(file.read_bytes())
    return folder / "train_32x32.mat"


CIFAR100_SOURCES = {
    "python 2 folder": lambda s, a, d: write_python(s, a, d / "cifar-100-python", python=2),
    "python 3 archive": lambda s, a, d: pack(
        d / "cifar-100-python.tar.gz",
        write_python(s, a, d / "x", python=3),
        "cifar-100-python",
    ),
    "binary folder": lambda s, a, d: write_binary(s, a, d / "cifar-100-binary"),
    "binary archive": binary_archive,
}
SOURCES = [(CIFAR100, name, write) for name, write in CIFAR100_SOURCES.items()]
SOURCES.append((SVHN, "MATLAB files", write_mat))
every_source = pytest.mark.parametrize(
    ("spec", "name", "write"), SOURCES, ids=[name.replace(" ", "-") for _, name, _ in SOURCES]
)


@every_source
def test_official_layouts(spec, name, write, tmp_path):
    small, arrays = synthetic(spec)
    write(small, arrays, tmp_path)
    dataset = load_spec(small, tmp_path)
    assert_holds(dataset, arrays)
    assert dataset.num_classes == {"cifar100": 100, "svhn": 10}[spec.name]
    assert ("published MD5" in dataset.source) == (name != "binary folder")
    assert dataset.verification == "MD5 of the labels; for the images, see the source"
    again = load_spec(small, tmp_path)
    assert_holds(again, arrays)
    assert dataset.source in again.source and "verified copy" in again.source


@every_source
def test_changed_files_are_refused(spec, name, write, tmp_path):
    """One bit of an image, or (where files have no published MD5) of a label."""
    small, arrays = synthetic(spec)
    file = write(small, arrays, tmp_path)
    if file.is_dir():
        file = file / ("train.bin" if name == "binary folder" else "train")
    raw = bytearray(file.read_bytes())
    raw[1 if name == "binary folder" else len(raw) // 2] ^= 1
    file.write_bytes(raw)
    message = "train labels, have MD5" if name == "binary folder" else "MD5|truncated|not a tar"
    assert_refused(small, tmp_path, message)


@pytest.mark.parametrize("fault", ["labels", "shape", "short", "pickle"])
def test_cifar100_files_that_are_not_what_they_should_be(fault, tmp_path):
    small, arrays = synthetic(CIFAR100)
    folder = write_python(small, arrays, tmp_path / "cifar-100-python", python=3)
    batch = pickle.loads((folder / "train").read_bytes())
    if fault == "labels":
        batch["fine_labels"][3] = 100
    elif fault == "shape":
        batch["data"] = batch["data"][:, :-1]
    elif fault == "short":
        batch["fine_labels"].pop()
    raw = pickle.dumps(print if fault == "pickle" else batch, protocol=4)
    (folder / "train").write_bytes(raw)
    small.file_md5["train"] = md5(raw)
    assert_refused(
        small,
        tmp_path,
        {
            "labels": "not a list of integers in 0..99",
            "shape": "not a uint8 array of shape",
            "short": "99 labels for 100 images",
            "pickle": "builtins.print",
        }[fault],
    )


@pytest.mark.parametrize("fault", ["X", "y", "range", "torn", "missing"])
def test_svhn_files_that_are_not_what_they_should_be(fault, tmp_path):
    small, arrays = synthetic(SVHN)
    write_mat(small, arrays, tmp_path)
    file = tmp_path / "test_32x32.mat"
    content = scipy.io.loadmat(file)
    if fault == "X":
        content["X"] = content["X"][..., :-1]
    elif fault == "y":
        del content["y"]
    elif fault == "range":
        content["y"][0] = 0
    scipy.io.savemat(file, {k: v for k, v in content.items() if k in "Xy"})
    if fault == "torn":
        file.write_bytes(file.read_bytes()[:3000])
    small.file_md5[file.name] = md5(file.read_bytes())
    if fault == "missing":
        file.unlink()
    messages = {"X": "X is uint8", "y": "not a MATLAB", "range": "0 to", "torn": "not a MATLAB"}
    assert_refused(small, tmp_path, messages.get(fault, "cannot be read"))


@pytest.mark.parametrize(
    ("spec", "name", "file_format"),
    [(CIFAR100, "cifar100", "array_record"), (SVHN, "svhn_cropped", "parquet")],
    ids=["cifar100", "svhn"],
)
def test_prepared_by_tensorflow_datasets(spec, name, file_format, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    small, arrays = synthetic(spec)
    prepare(dataclasses.replace(small, name=name), arrays, tmp_path, file_format)
    dataset = load_spec(small, tmp_path)
    assert_holds(dataset, arrays)
    assert dataset.source.startswith("folder prepared by tensorflow_datasets")


@pytest.mark.parametrize("spec", [CIFAR100, SVHN], ids=["cifar100", "svhn"])
def test_a_host_that_is_out_of_reach_is_named_with_what_to_copy(spec, tmp_path):
    nowhere = dataclasses.replace(
        spec,
        downloads=tuple(d._replace(base="http://localhost:1/") for d in spec.downloads),
    )
    with pytest.raises(DataMissingError) as error:
        fetch(nowhere, tmp_path, timeout=1, say=[].append)
    text = str(error.value)
    assert all(name in text for name, _ in spec.downloads[0].files) and " or None" not in text
    with pytest.raises(DataMissingError, match=f"python -m experiments.data {spec.name}"):
        data.load(spec.name, tmp_path)


@pytest.mark.parametrize("spec", [CIFAR100, SVHN], ids=["cifar100", "svhn"])
def test_a_run_gets_its_images_classes_and_normalisation(spec, tmp_path, monkeypatch):
    small, arrays = synthetic(spec)
    source = CIFAR100_SOURCES["binary folder"] if spec is CIFAR100 else write_mat
    source(small, arrays, tmp_path)
    monkeypatch.setitem(_registry.SPECS, spec.name, small)
    config = settings.load_config("at", "smoke", spec.name)
    task = load_task(config, tmp_path)
    assert task.train.images.shape == (64, 32, 32, 3) and len(task.selection.labels) == 32
    module = build.build_model(config, task.dataset)
    assert module.num_classes == len(spec.class_names)
    assert (module.mean, module.std) == (spec.mean, spec.std)
    trades = build.build_model(settings.load_config("trades", "smoke", spec.name), task.dataset)
    assert trades.mean is None and trades.std is None
    params, _ = jax.eval_shape(
        lambda: build.init_variables(module, jax.random.key(0), task.dataset.image_shape)
    )
    assert jax.tree.leaves(params)


# Real images


def partial(spec) -> Arrays:
    assert PARTIAL is not None
    with np.load(Path(PARTIAL) / f"{spec.name}_partial.npz") as file:
        train = file["train_x"], file["train_y"].astype(np.int32)
        if spec is CIFAR100:
            return Arrays(*train, file["test_x"], file["test_y"].astype(np.int32))
        # Of SVHN's test images there are none: the last training images stand in.
        return Arrays(train[0][:1000], train[1][:1000], train[0][1000:], train[1][1000:])


@needs_partial
@every_source
def test_partial_real_data(spec, name, write, tmp_path):
    arrays = partial(spec)
    small = shrunk(spec, arrays)
    write(small, arrays, tmp_path)
    dataset = load_spec(small, tmp_path)
    assert_holds(dataset, arrays)
    # Photographs, the right way round: neighbouring pixels are close in both directions.
    images = dataset.train_images.astype(float)
    rows, columns = (np.abs(np.diff(images, axis=axis)).mean() for axis in (1, 2))
    assert max(rows, columns) < 0.5 * np.abs(images - images[::-1]).mean()


@needs_partial
def test_the_labels_and_names_of_the_specs_are_the_published_ones():
    assert PARTIAL is not None
    with np.load(Path(PARTIAL) / "cifar100_partial.npz") as file:
        assert CIFAR100.md5["train labels"] == md5(file["all_train_fine"].tobytes())
        assert CIFAR100.md5["test labels"] == md5(file["all_test_fine"].tobytes())
        assert CIFAR100.class_names == tuple(file["fine_names"].tolist())
        assert len(file["all_train_fine"]) == sum(CIFAR100.train_counts)
    with np.load(Path(PARTIAL) / "svhn_partial.npz") as file:
        assert SVHN.md5["train labels"] == md5(file["all_train_y"].tobytes())
        assert SVHN.md5["test labels"] == md5(file["all_test_y"].tobytes())
        assert len(file["all_test_y"]) == sum(SVHN.test_counts)
