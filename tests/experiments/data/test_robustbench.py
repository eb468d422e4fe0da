"""The ImageNet images behind RobustBench's figures, from records and from pictures, synthetic."""

import io

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data import DataError, DataMissingError, _robustbench
from experiments.evaluation import published
from jaxadv import models
from jaxadv.models import zoo
from tests.helpers.picture_records import pictures, record, write

FILES, LABELS = pictures(12, 2)
CHOSEN = [6, 1, 10, 3]  # pictures, which have the numbers 7, 2, 11, 4
SYNSETS = [f"n{10**7 + 3 * label:08d}" for label in range(1000)]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path_factory):
    """Four images are RobustBench's, and nothing is the developer's own."""
    monkeypatch.setattr(
        _robustbench, "chosen", lambda: (np.array(CHOSEN, np.int32) + 1, LABELS[CHOSEN])
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))
    monkeypatch.delenv("JAXADV_DATA", raising=False)


@pytest.fixture
def records(tmp_path):
    write(tmp_path / "imagenet2012" / "5.1.0", "validation", FILES, LABELS)
    return tmp_path


@pytest.fixture
def folders(tmp_path):
    """A folder for each class, as RobustBench has the validation images."""
    for synset in reversed(SYNSETS):
        (tmp_path / "imagenet" / "val" / synset).mkdir(parents=True)
    for row, (file, label) in enumerate(zip(FILES, LABELS, strict=True)):
        path = tmp_path / "imagenet" / "val" / SYNSETS[label]
        (path / f"ILSVRC2012_val_{row + 1:08d}.JPEG").write_bytes(file)
    return tmp_path


def test_the_list_is_robustbench_s(monkeypatch):
    monkeypatch.undo()
    numbers, labels = _robustbench.chosen()
    assert len(set(numbers.tolist())) == len(labels) == 5000
    assert numbers.min() >= 1 and numbers.max() <= 50_000
    assert set(labels.tolist()) <= set(range(1000))
    # Its first three lines and its last.
    assert numbers[:3].tolist() == [15253, 20685, 39611] and numbers[-1] == 25432
    assert labels[:3].tolist() == [979, 441, 980]  # valley, beer glass, volcano


@pytest.mark.parametrize("place", ["records", "folders"])
@pytest.mark.parametrize(
    ("preparation", "scale", "resample", "side"),
    [
        ("Res32Crop28", 32, Image.Resampling.BILINEAR, 28),
        ("BicubicRes32Crop28", 32, Image.Resampling.BICUBIC, 28),
        ("BicubicRes28Crop28", 28, Image.Resampling.BICUBIC, 28),
        ("Crop28", None, None, 28),
        ("Crop61", None, None, 61),  # larger than pictures, which get a border
    ],
)
def test_pictures_are_prepared_as_published_models_expect(
    request, place, preparation, scale, resample, side
):
    """Resize and CenterCrop of torchvision by their definitions, from the JPEGs themselves."""
    images, labels, names = data.robustbench_images(preparation, request.getfixturevalue(place))
    assert images.shape == (len(CHOSEN), side, side, 3) and len(names) == 1000
    np.testing.assert_array_equal(labels, LABELS[CHOSEN])
    bordered = 0
    for row, found in zip(CHOSEN, images[:], strict=True):
        image = Image.open(io.BytesIO(FILES[row])).convert("RGB")
        if scale is not None:
            width, height = image.size
            short = min(width, height)
            image = image.resize((scale * width // short, scale * height // short), resample)
        expected = np.asarray(image)
        # Padded by half of what is missing, rounded down at the top left, then cut.
        missing = [max(side - length, 0) for length in expected.shape[:2]]
        bordered += any(missing)
        pads = [(n // 2, n - n // 2) for n in missing]
        expected = np.pad(expected, [*pads, (0, 0)])
        top, left = (int(round((length - side) / 2.0)) for length in expected.shape[:2])
        np.testing.assert_array_equal(found, expected[top : top + side, left : left + side])
    assert (bordered > 0) == (scale is None)


def test_the_order_of_the_files_does_not_count(folders, tmp_path_factory):
    """tensorflow_datasets shuffles the records; their names tell."""
    from array_record.python import array_record_module

    shuffled = tmp_path_factory.mktemp("shuffled")
    place = shuffled / "imagenet"
    place.mkdir()
    path = str(place / "validation-00000.array_record")
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    for row in np.random.default_rng(0).permutation(12):
        name = f"val/ILSVRC2012_val_{row + 1:08d}.JPEG"
        writer.write(record(FILES[row], int(LABELS[row]), name))
    writer.close()
    images = [data.robustbench_images("Crop28", f).images for f in (folders, shuffled, shuffled)]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])  # by the copy of names
    assert "ILSVRC2012_val_00000007.JPEG" in images[0].where(0)
    assert "record" in images[1].where(0)


def test_a_model_by_name_is_judged_on_them(folders, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "load", lambda *arguments, **options: {"params": {}})
    (tmp_path / "weights.pt").write_bytes(b"")
    entry = zoo.entry("Salman2020Do_R18")
    subject = published.load(entry, tmp_path / "weights.pt", data_dir=folders)
    np.testing.assert_array_equal(subject.first(3).labels, LABELS[CHOSEN[:3]])
    assert subject.images.shape == (4, 224, 224, 3) and subject.class_names == tuple(SYNSETS)


def test_what_is_missing_is_said(folders, tmp_path_factory):
    with pytest.raises(ValueError, match="preparation='Res224' is not .*such as Res256Crop224"):
        data.robustbench_images("Res224", folders)
    with pytest.raises(DataMissingError, match="imagenet is not in .*, nor are pictures in .*/val"):
        data.robustbench_images("Crop28", tmp_path_factory.mktemp("empty"))
    first = folders / "imagenet" / "val" / SYNSETS[LABELS[6]] / "ILSVRC2012_val_00000007.JPEG"
    first.write_bytes(b"not a picture")
    with pytest.raises(DataError, match="00000007.JPEG: not a picture"):
        data.robustbench_images("Crop28", folders).images[:]
    first.unlink()
    with pytest.raises(DataError, match="00000007.JPEG: not there, as 1 of RobustBench's 4 images"):
        data.robustbench_images("Crop28", folders)
    first.parent.rmdir()
    with pytest.raises(DataError, match="has 999 folders, not one for each of 1000 classes"):
        data.robustbench_images("Crop28", folders)


def test_records_of_other_names_or_labels_are_refused(records, monkeypatch):
    wrong = LABELS[CHOSEN].copy()
    wrong[2] = (wrong[2] + 1) % 1000
    numbers = np.array(CHOSEN, np.int32) + 1
    monkeypatch.setattr(_robustbench, "chosen", lambda: (numbers, wrong))
    with pytest.raises(DataError, match=rf"its label is {LABELS[10]}, but {wrong[2]} in Robust"):
        data.robustbench_images("Crop28", records)
    monkeypatch.setattr(_robustbench, "chosen", lambda: (numbers + 20, wrong))
    with pytest.raises(DataError, match="4 of RobustBench's 4 .*such as ILSVRC2012_val_00000027"):
        data.robustbench_images("Crop28", records)
