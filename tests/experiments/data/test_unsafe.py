"""Malicious pickles and archives: one clear error each, nothing is run and nothing is lost."""

import io
import os
import pickle
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from experiments.data import DataError, extract
from experiments.data._archives import read_members
from experiments.data._sources import load_spec
from experiments.data._unpickle import unpickle_batch
from tests.helpers import hostile_pickles
from tests.helpers.data_layouts import (
    assert_refused,
    files_of,
    pack,
    python2_pickle,
    tiny_cifar10,
    write_binary,
    write_python,
)


@pytest.fixture(autouse=True)
def no_prepared_data(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))


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
        spec, tmp_path, r"\(data_batch_2\): not a pickle of CIFAR data: it asks for .* None of"
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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in hostile_pickles.LARGE else name
        for name in hostile_pickles.PICKLES
    ],
)
def test_pickles_that_would_hang_or_fill_the_memory(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = time.process_time()
    tracemalloc.start()
    try:
        batch = unpickle_batch(hostile_pickles.HEAD + hostile_pickles.PICKLES[name], "test_batch")
    except DataError as error:
        assert str(error).startswith("test_batch: ") and len(str(error)) < 400
    else:
        assert "data" not in batch
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()
    assert time.process_time() - started < 20
    assert not list(tmp_path.iterdir())


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
    (member("/etc/evil"), "has an absolute path"),
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
    with pytest.raises(
        DataError, match="x.tar: cannot be extracted .*Delete it and download it again"
    ):
        extract(archive, tmp_path / "data")
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").iterdir())
    with pytest.raises(DataError, match="is not a file"):
        extract(tmp_path / "none.tar", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another folder"):
        extract(archive_with(tmp_path / "y.tar.gz"), tmp_path / "file")


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    archive = archive_with(tmp_path / "x.tar.gz", member("other/good.txt"))
    with pytest.raises(DataError, match="contains 'good.txt' twice"):
        read_members(archive, ["good.txt"])


def test_a_member_that_claims_to_be_enormous_is_not_read(tmp_path):
    info = tarfile.TarInfo("data_batch_1.bin")
    info.size = 2**40
    (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(DataError, match="'data_batch_1.bin' claims to have 1099511627776 bytes"):
        read_members(tmp_path / "x.tar", ["data_batch_1.bin"])


@pytest.mark.parametrize("place", [-8, -5, -3])
def test_a_wrong_checksum_at_the_end_of_an_archive_is_noticed(tmp_path, place):
    """The CRC of gzip stands behind everything that tar reads."""
    archive = tmp_path / "data.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        info = tarfile.TarInfo("folder/a")
        info.size = 3
        file.addfile(info, io.BytesIO(b"abc"))
    data = bytearray(archive.read_bytes())
    data[place] ^= 1
    archive.write_bytes(data)
    with pytest.raises(DataError, match="cannot be extracted"):
        extract(archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_an_archive_of_far_more_bytes_than_its_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.data._archives._MIN_ROOM", 10_000)
    archive = tmp_path / "data.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        info = tarfile.TarInfo("folder/a")
        info.size = 1_000_000
        file.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(DataError, match="contains more than"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
