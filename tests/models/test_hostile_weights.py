"""Files of weights that mean harm, or were damaged: one clear error, at once, in little memory."""

import io
import json
import pickle
import struct
import time
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest

from jaxadv import models
from jaxadv.models._torch_file import read_torch_file, write_torch_file
from tests.helpers import hostile_pickles

MODULE = models.preact_resnet18(3, width=2, blocks=(1, 1))
HEAD = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(MODULE.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    return models.to_torch_state_dict(MODULE, variables)


def load(path, memory=60e6, seconds=20):
    """Loads a file; ``seconds`` leaves room for a slow machine under a tracer of memory."""
    started = time.process_time()
    tracemalloc.start()
    try:
        return models.load_torch(path, MODULE)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < memory
        assert time.process_time() - started < seconds


def refused(path, problem="", **limits):
    with pytest.raises(ValueError, match=rf"^{path.name}: {problem}") as caught:
        load(path, **limits)
    assert len(str(caught.value)) < 400


def zipped(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("name", hostile_pickles.PICKLES)
def test_pickles(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    body = hostile_pickles.HEAD + hostile_pickles.PICKLES[name]
    refused(zipped(tmp_path / "zip.pt", {"archive/data.pkl": body}))
    head = b"".join(pickle.dumps(value, 2) for value in HEAD)
    (tmp_path / "older.pt").write_bytes(head + body + pickle.dumps([], 2))
    with pytest.raises(ValueError, match=r"^older\.pt: "):
        models.load_torch(tmp_path / "older.pt", MODULE)
    assert not (tmp_path / "pwned").exists()


# ------------------------------------------------------------------------ tensors


def with_shape(path, tensor, shape, strides, count=4):
    """A file whose tensor "conv1.weight" of ``count`` numbers claims another shape."""
    write_torch_file(path, {tensor: np.arange(count, dtype=np.float32)})
    content = members(path)
    ints = lambda *values: b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"
    old = ints(count) + ints(1)
    assert content["archive/data.pkl"].count(old) == 1
    new = content["archive/data.pkl"].replace(old, ints(*shape) + ints(*strides))
    return zipped(path, content | {"archive/data.pkl": new})


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((40_000, 40_000), (0, 0)),
        ((2**31 - 1,), (0,)),
        ((40_000,), (1,)),
        ((2,), (2**31 - 1,)),
        ((2, -2), (1, 1)),
        ((2, 2), (1, -1)),
        ((2, 2), (1,)),
        ((1,) * 65, (1,) * 65),
    ],
)
def test_a_tensor_that_claims_more_than_there_is(tmp_path, shape, strides):
    path = with_shape(tmp_path / "x.pt", "conv1.weight", shape, strides)
    with pytest.raises(ValueError, match=r"x\.pt: "):
        load(path)
    with pytest.raises(ValueError, match="shape|tensor"):
        read_torch_file(path)["conv1.weight"].numpy()


def test_tensors_of_one_storage_read_only_their_own_bytes(tmp_path):
    path = with_shape(tmp_path / "x.pt", "w", (3,), (1,), count=4_000_000)
    tensor = read_torch_file(path)["w"]
    tracemalloc.start()
    assert tensor.numpy().tolist() == [0.0, 1.0, 2.0]
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_loading_takes_no_more_than_twice_the_weights(tmp_path):
    module = models.preact_resnet18(10, width=16)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    models.save_torch(tmp_path / "x.pt", module, variables)
    models.load_torch(tmp_path / "x.pt", module)  # what is compiled and imported stays
    tracemalloc.start()
    models.load_torch(tmp_path / "x.pt", module)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * size


# ------------------------------------------------------------------------ archives


def test_compressed_members_are_refused(tmp_path, arrays):
    write_torch_file(tmp_path / "x.pt", arrays)
    bomb = members(tmp_path / "x.pt") | {"archive/data/bomb": bytes(50_000_000)}
    path = zipped(tmp_path / "bomb.pt", bomb, compression=zipfile.ZIP_DEFLATED)
    refused(path, "its members are compressed", memory=5e6)


def test_a_compressed_array_is_inflated_as_far_as_it_fits(tmp_path, arrays):
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    found = load(tmp_path / "x.npz")
    assert np.asarray(found["params"]["linear"]["bias"]).tolist() == arrays["linear.bias"].tolist()
    arrays = arrays | {"conv1.weight": np.zeros((5000, 5000), np.float32)}
    np.savez_compressed(tmp_path / "bomb.npz", **arrays)
    with pytest.raises(ValueError, match=r"conv1\.weight has \(5000, 5000\)"):
        load(tmp_path / "bomb.npz", memory=5e6)


def test_arrays_of_objects_and_torn_headers_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", w=np.array([{}], object))
    refused(tmp_path / "x.npz", r"w\.npy is not an array of plain numbers")
    raw = io.BytesIO()
    np.save(raw, np.zeros(3, np.float32))
    for bad in (raw.getvalue()[:-1], raw.getvalue()[:20], b"", raw.getvalue() + b"\0"):
        refused(zipped(tmp_path / "y.npz", {"w.npy": bad}))


def test_an_enormous_table_of_contents_is_refused(tmp_path):
    many = {f"{number:050d}": b"" for number in range(15_000)}
    refused(zipped(tmp_path / "many.pt", many), "an archive with an enormous table of contents")
    many = {str(number): b"" for number in range(12_000)}
    refused(zipped(tmp_path / "some.pt", many), "an archive of 12000 members")


def test_members_that_share_their_bytes_are_refused(tmp_path, arrays):
    write_torch_file(tmp_path / "x.pt", arrays)
    raw = (tmp_path / "x.pt").read_bytes()
    start = raw.index(b"PK\x01\x02")  # the table, whose rows all get the size of the first
    size = raw[start + 20 : start + 28]
    rows = raw[start:].split(b"PK\x01\x02")
    table = b"PK\x01\x02".join([rows[0], *(row[:16] + size + row[24:] for row in rows[1:])])
    (tmp_path / "x.pt").write_bytes(raw[:start] + table)
    refused(tmp_path / "x.pt", "its members overlap")


def test_a_member_twice_or_encrypted_is_refused(tmp_path, arrays):
    write_torch_file(tmp_path / "x.pt", arrays)
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(tmp_path / "x.pt", "a") as archive,
    ):
        archive.writestr("archive/data.pkl", b"N.")
    refused(tmp_path / "x.pt", "an archive of")
    write_torch_file(tmp_path / "y.pt", arrays)
    raw = (tmp_path / "y.pt").read_bytes()
    start = raw.index(b"PK\x01\x02") + 8
    (tmp_path / "y.pt").write_bytes(raw[:start] + b"\x01" + raw[start + 1 :])
    refused(tmp_path / "y.pt", "archive/data.pkl is encrypted")


# ------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    "form",
    [
        lambda n: f"p{n}.conv1.weight",
        lambda n: f"conv{n}.weight" + "x" * 50,
        lambda n: "a." * 200 + str(n),
        lambda n: f"m{n}.mean",
        lambda n: "\ud800\n\x1b[31m" + str(n),
    ],
)
def test_thousands_of_names_take_no_longer_than_their_number(tmp_path, form):
    names = [form(n) for n in range(1000 if len(form(0)) > 100 else 9000)]
    entry = {"dtype": "I8", "shape": [1]}
    table = {n: entry | {"data_offsets": [i, i + 1]} for i, n in enumerate(names)}
    text = json.dumps(table).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(len(names)))
    with pytest.raises(ValueError, match=r"x\.safetensors: ") as caught:
        load(path)
    assert len(str(caught.value).splitlines()) < 25 and "nearest" not in str(caught.value)
    assert str(caught.value).replace("\n", "").isprintable()


def test_a_container_of_far_too_many_tensors_is_refused(tmp_path):
    name = lambda n: b"X\x05\x00\x00\x00" + b"%05d" % n
    write_torch_file(tmp_path / "x.pt", {"w": np.zeros(1, np.float32)})
    content = members(tmp_path / "x.pt")
    tensor = content["archive/data.pkl"].split(b"w", 1)[1][:-2]
    many = b"".join(name(n) + b"h\x01" for n in range(30_000))
    content["archive/data.pkl"] = b"\x80\x02}(" + name(0) + tensor + b"q\x01" + many + b"u."
    refused(zipped(tmp_path / "y.pt", content), "30000 tensors in one dictionary")


# ------------------------------------------------------------------------ the whole


def test_special_files_are_refused(tmp_path):
    with pytest.raises(IsADirectoryError):
        models.load_torch(tmp_path, MODULE)
    with pytest.raises(ValueError, match="null: not a regular file"):
        models.load_torch("/dev/null", MODULE)


def older(arrays):
    """What torch.save wrote before 1.6."""
    raw = io.BytesIO()
    write = lambda value: raw.write(pickle.dumps(value, 2))
    for value in HEAD:
        write(value)
    raw.write(b"\x80\x02}(")
    for key, (name, array) in enumerate(arrays.items()):
        kind = b"ctorch\nFloatStorage\n" if array.dtype == np.float32 else b"ctorch\nLongStorage\n"
        text = lambda t: b"X" + struct.pack("<I", len(t)) + t.encode()
        ints = lambda values: b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"
        raw.write(text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + kind)
        raw.write(text(str(key)) + text("cpu") + b"J" + struct.pack("<i", array.size) + b"NtQK\x00")
        raw.write(ints(array.shape) + ints(s // array.itemsize for s in array.strides))
        raw.write(b"\x89ccollections\nOrderedDict\n)RtR")
    raw.write(b"u.")
    write([str(key) for key in range(len(arrays))])
    for array in arrays.values():
        raw.write(struct.pack("<q", array.size) + array.tobytes())
    return raw.getvalue()


def safetensors(arrays):
    table, body = {}, b""
    for name, array in arrays.items():
        kind = {"float32": "F32", "int64": "I64"}[array.dtype.name]
        span = [len(body), len(body) + array.nbytes]
        table[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": span}
        body += array.tobytes()
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize("form", ["zip", "older", "safetensors", "npz"])
def test_damaged_files_load_or_are_refused(tmp_path, arrays, form):
    path = tmp_path / "x.pt"
    if form == "zip":
        write_torch_file(path, arrays)
    elif form == "npz":
        np.savez(tmp_path / "x.npz", **arrays)
        (tmp_path / "x.npz").rename(path)
    else:
        path.write_bytes({"older": older, "safetensors": safetensors}[form](arrays))
    whole = path.read_bytes()
    found = models.load_torch(path, MODULE)
    np.testing.assert_array_equal(found["params"]["linear"]["bias"], arrays["linear.bias"])
    rng, refusals = np.random.default_rng(0), 0
    for number in range(60):
        data = bytearray(whole)
        if number % 4 == 0:
            data = data[: rng.integers(len(data))]
        for place in rng.integers(0, max(1, len(data)), rng.integers(1, 6)) if data else ():
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            models.load_torch(path, MODULE)
        except ValueError as error:
            assert str(error).startswith("x.pt: ")
            refusals += 1
    assert refusals > 15
