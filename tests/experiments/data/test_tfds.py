"""What tensorflow_datasets has prepared is read without TensorFlow, in the official order."""

import dataclasses
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from experiments.data import DataError, DataMissingError
from experiments.data._sources import load_spec, verified
from experiments.data._tfds import read_builder
from tests.helpers.data_layouts import (
    assert_holds,
    prepare,
    random_arrays,
    tiny_cifar10,
    tiny_mnist,
    write_idx,
)


@pytest.fixture(autouse=True)
def no_prepared_data(tmp_path_factory, monkeypatch):
    """Nothing that the developer has on disk gets into a test."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))
    monkeypatch.delenv("JAXADV_DATA", raising=False)


@pytest.mark.parametrize("tiny", [tiny_cifar10, tiny_mnist])
@pytest.mark.parametrize("place", ["data_dir", "own folder"])
def test_prepared_tensorflow_datasets_come_first(tiny, place, tmp_path):
    spec, arrays = tiny()
    root = tmp_path if place == "data_dir" else Path(os.environ["TFDS_DATA_DIR"])
    path = prepare(spec, arrays, root, "array_record")
    assert path == root / spec.name / "3.0.2"
    write_idx(random_arrays(spec, seed=5), tmp_path)
    dataset = load_spec(spec, tmp_path)
    assert dataset.source == "folder prepared by tensorflow_datasets (3.0.2)"
    assert_holds(dataset, arrays)


def test_parquet_is_read_too(tmp_path):
    spec, arrays = tiny_mnist()
    prepare(spec, arrays, tmp_path, "parquet")
    assert_holds(load_spec(spec, tmp_path), arrays)


@pytest.mark.skipif(bool(find_spec("tensorflow")), reason="TensorFlow is installed here")
def test_the_reader_runs_without_tensorflow(tmp_path):
    spec, arrays = tiny_mnist()
    path = prepare(spec, arrays, tmp_path, "array_record")
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from tests.helpers.data_layouts import tiny_mnist\n"
        "from experiments.data._tfds import read_prepared\n"
        "from pathlib import Path\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "spec, arrays = tiny_mnist()\n"
        f"got = read_prepared(spec, Path({str(path)!r}))\n"
        "assert all(np.array_equal(a, b) for a, b in zip(got, arrays, strict=True))\n"
        "assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules\n"
    )
    paths = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_mock_data_has_the_right_shapes_and_is_refused(tmp_path):
    import tensorflow_datasets as tfds

    spec, _ = tiny_cifar10()
    # The mock gives every split the same length.
    spec = dataclasses.replace(spec, test_counts=(20,))
    with tfds.testing.mock_data(num_examples=20):
        arrays = read_builder(spec, tfds.builder("cifar10"), tmp_path)
    assert arrays.train_images.shape == arrays.test_images.shape == (20, 32, 32, 3)
    assert arrays.train_labels.shape == (20,) and arrays.train_labels.max() < 10
    with pytest.raises(DataError, match="not the published cifar10.*have MD5"):
        verified(spec, arrays, tmp_path, "mock")


def test_a_prepared_folder_that_is_torn_or_short_is_one_clear_error(tmp_path):
    spec, arrays = tiny_mnist()
    path = prepare(spec, arrays, tmp_path, "array_record")
    longer = dataclasses.replace(spec, train_counts=(31,))
    with pytest.raises(DataError, match="train has 30 of 31 examples. Prepare it again"):
        load_spec(longer, tmp_path)
    shard = next(path.glob("*train*"))
    shard.write_bytes(shard.read_bytes()[:500])
    with pytest.raises(DataError, match="tensorflow_datasets cannot read it"):
        load_spec(spec, tmp_path)
    assert shard.exists()
    (path / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="dataset_info.json: cannot be read"):
        load_spec(spec, tmp_path)


def test_tfrecord_needs_tensorflow_and_is_passed_over(tmp_path):
    spec, arrays = tiny_mnist()
    path = prepare(spec, arrays, tmp_path, "array_record")
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataMissingError, match="array_record or parquet"):
        load_spec(spec, tmp_path)
