"""ImageNet's layout, synthetic: records are found, decoded, trained on, and never all in memory."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from experiments import data, settings
from experiments.data import DataError, DataMissingError, _imagenet, _rows
from experiments.run import build, checkpoints, train
from experiments.run.directory import RunDirectory
from experiments.run.task import load_task
from tests.helpers.data_layouts import prepare, tiny_cifar10
from tests.helpers.picture_records import pictures, record, write
from tests.helpers.tiny_runs import ROOT, assert_bitwise

TRAIN, VALIDATION = 40, 12


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path_factory):
    """Pictures of 32 pixels, of which 28 are central, and nothing of the developer's own."""
    monkeypatch.setattr(_imagenet, "SIDE", 32)
    monkeypatch.setattr(_imagenet, "CENTER", 28)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))
    monkeypatch.delenv("JAXADV_DATA", raising=False)


@pytest.fixture
def folder(tmp_path):
    for part, number, seed in (("train", TRAIN, 1), ("validation", VALIDATION, 2)):
        write(tmp_path / "imagenet2012" / "5.1.0", part, *pictures(number, seed))
    return tmp_path


def test_pictures_are_scaled_and_cut_as_by_torchvision(folder):
    """Resize(32), CenterCrop(28) by their definitions, from the JPEGs themselves."""
    files, labels = pictures(VALIDATION, 2)
    dataset = data.load("imagenet", folder)
    assert dataset.num_classes == 1000 and dataset.image_shape == (28, 28, 3)
    np.testing.assert_array_equal(dataset.test_labels, labels)
    for file, found in zip(files, dataset.test_images[:], strict=True):
        image = Image.open(io.BytesIO(file)).convert("RGB")
        width, height = image.size
        if width < height:
            size = (32, int(32 * height / width))
        else:
            size = (int(32 * width / height), 32)
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (int(round((side - 28) / 2.0)) for side in size)
        np.testing.assert_array_equal(found, image.crop((left, top, left + 28, top + 28)))


def test_rows_are_indexed_like_arrays(folder):
    images = data.load("imagenet", folder).train_images
    whole = np.asarray(images)
    assert whole.shape == images.shape == (TRAIN, 32, 32, 3) and len(images) == TRAIN
    assert len(np.unique(whole.reshape(TRAIN, -1), axis=0)) == TRAIN
    rows = np.array([33, 2, 2, 39, 0])
    np.testing.assert_array_equal(images[rows], whole[rows])
    np.testing.assert_array_equal(images[-3:], whole[-3:])
    some = data.take(images, rows)
    np.testing.assert_array_equal(some[1:4], whole[rows][1:4])
    np.testing.assert_array_equal(data.central(some, (28, 28, 3))[:], whole[rows][:, 2:30, 2:30])
    assert some.where(0) == images.where(33) and "record" in some.where(0)


def test_few_files_are_open_at_once(folder, monkeypatch):
    monkeypatch.setattr(_rows, "_OPEN_FILES", 1)
    images = data.load("imagenet", folder).train_images
    order = np.random.default_rng(0).permutation(TRAIN)
    found = images[order]
    assert len(images.records._files) == 1
    monkeypatch.undo()
    monkeypatch.setattr(_imagenet, "SIDE", 32)
    np.testing.assert_array_equal(found, data.load("imagenet", folder).train_images[order])


def test_records_are_read_as_tensorflow_datasets_writes_them(tmp_path):
    spec, arrays = tiny_cifar10()
    path = prepare(spec, arrays, tmp_path, "array_record")
    records = _rows.Records(sorted(path.glob("*train*")))
    found = _rows.Pictures(records, 32)[:]
    labels = [_rows.example(records.read(row))["label"] for row in range(len(records))]
    pairs = {(image.tobytes(), label) for image, label in zip(found, labels, strict=True)}
    expected = zip(arrays.train_images, arrays.train_labels, strict=True)
    assert pairs == {(image.tobytes(), int(label)) for image, label in expected}
    assert len(pairs) == len(arrays.train_labels)


def test_labels_are_kept_until_the_files_change(folder, monkeypatch):
    first = data.load("imagenet", folder)
    kept = folder / "imagenet-train-index.npz"
    read = _rows.Records.read
    monkeypatch.setattr(_rows.Records, "read", lambda self, row: pytest.fail("read again"))
    np.testing.assert_array_equal(data.load("imagenet", folder).train_labels, first.train_labels)
    monkeypatch.setattr(_rows.Records, "read", read)
    files, _ = pictures(TRAIN, 3)
    write(folder / "imagenet2012" / "5.1.0", "train", files, np.arange(TRAIN))
    np.testing.assert_array_equal(data.load("imagenet", folder).train_labels, np.arange(TRAIN))
    kept.write_bytes(b"PK damaged")
    with pytest.warns(UserWarning, match="imagenet-train-index.npz is damaged"):
        found = data.load("imagenet", folder)
    np.testing.assert_array_equal(found.train_labels, np.arange(TRAIN))


def test_what_is_missing_is_said_with_what_to_do(tmp_path):
    with pytest.raises(
        DataMissingError, match="imagenet is not in .*[.] .*tfds build imagenet2012"
    ):
        data.load("imagenet", tmp_path)


def test_damaged_files_are_named(folder):
    shard = sorted((folder / "imagenet2012" / "5.1.0").glob("*train*"))[-1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{shard.name}: has no records. Restore"):
        data.load("imagenet", folder)
    shard.write_bytes(whole[:1000] + bytes(2000) + whole[3000:])
    with pytest.raises(DataError, match=rf"{shard.name}, record \d+: cannot be read"):
        data.load("imagenet", folder)


@pytest.mark.parametrize(
    ("picture", "label", "message"),
    [
        (b"not a picture", 3, "validation.*, record 0: not a picture"),
        (None, 1000, "validation.*, record 0: its label is 1000, not within 0 to 999"),
    ],
)
def test_wrong_records_are_named(folder, picture, label, message):
    file = pictures(1)[0][0] if picture is None else picture
    write(folder / "imagenet2012" / "5.1.0", "validation", [file] * 12, [label] * 12)
    with pytest.raises(DataError, match=message):
        np.asarray(data.load("imagenet", folder).test_images[:1])


@pytest.mark.parametrize("cut", [3, 40, -5])
def test_a_record_that_ends_early_is_an_error(cut):
    with pytest.raises(ValueError, match="not a tf.train.Example"):
        _rows.example(record(b"x" * 50, 7)[:cut])


def tiny(**fields):
    config = settings.load_config("at", "smoke", "imagenet")
    config.unlock()
    values = dict(
        model="mlp", width=8, train_size=24, test_size=8, selection_size=8, batch_size=8,
        num_epochs=2,
    )  # fmt: skip
    for name, value in (values | fields).items():
        section, _, leaf = name.rpartition("__")
        (config[section] if section else config)[leaf] = value
    for section in ("threat", "eval"):
        config[section].num_steps = 2
    return settings.resolve(config, "imagenet")


def test_training_from_the_files_has_the_bits_of_training_from_memory(folder, tmp_path):
    reports, states = [], []
    for stream in ("true", "false"):
        config, workdir = tiny(data__stream=stream), tmp_path / stream
        reports.append(train.train_and_evaluate(config, workdir, data_dir=folder, verbose=False))
        shapes = build.build(config, load_task(config, folder)).shapes
        states.append(checkpoints.load(RunDirectory(workdir).last, shapes)[0])
    assert_bitwise(*states)
    assert reports[0]["test"] == reports[1]["test"]
    assert reports[0]["data"]["train"] == 24 and reports[0]["dataset"] == "imagenet"
    table = train.describe_report(reports[0])
    assert len(reports[0]["test"]["last"]["classes"]) == 1000 and len(table.splitlines()) < 10


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """An epoch of 64 and of 256 pictures of 256 pixels, which would be 38 MB more in memory."""
    found = []
    for number in (64, 256):
        write(tmp_path / str(number), "train", *pictures(number, size=(300, 400)))
        command = [sys.executable, "-m", "tests.helpers.picture_records", tmp_path / str(number)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        found.append(float(done.stdout))
    assert found[1] < found[0] + 15


@pytest.mark.slow
def test_adversarial_training_on_224_pixels_is_one_config(folder, tmp_path, monkeypatch):
    """All layers with few channels, images of the full size, two steps of each attack."""
    monkeypatch.undo()
    config = tiny(model="resnet50", width=2, num_epochs=1, train_size=16)
    report = train.train_and_evaluate(config, tmp_path / "run", data_dir=folder, verbose=False)
    assert load_task(config, folder).dataset.image_shape == (224, 224, 3)
    assert report["model"] == "resnet50" and report["num_parameters"] > 20_000
    assert np.isfinite(RunDirectory(tmp_path / "run").metrics()[0]["train_loss"])
