"""Files of weights as people have them, and as people who mean harm would make them."""

import argparse
import collections
import io
import json
import pickle
import struct
import time
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models
from jaxadv.models._pickle import read_pickle
from jaxadv.models._torch_file import write_torch_file

MODULE = models.preact_resnet18(10, width=2)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(MODULE.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.fixture(scope="module")
def plain(variables, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "plain.pt"
    models.save_torch(path, MODULE, variables)
    return path


def equal(found, variables):
    jax.tree.map(np.testing.assert_array_equal, found["params"], variables["params"])
    jax.tree.map(np.testing.assert_array_equal, found["batch_stats"], variables["batch_stats"])


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_pickle(path, plain, opcodes):
    """The file with another pickle in front of its storages."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members(plain).items():
            archive.writestr(name, opcodes if name.endswith("data.pkl") else data)
    return path


def around(plain, **beside):
    """The pickle of {"state_dict": the weights, **beside}: protocol 2, without PyTorch."""
    weights = members(plain)["archive/data.pkl"][2:-1]
    key = pickle.BINUNICODE + struct.pack("<I", 10) + b"state_dict"
    rest = b""
    for name, value in beside.items():
        inner = pickle.dumps(value, protocol=2)[2:-1]
        # Memo numbers of their own, so that they don't meet those of the weights.
        rest += pickle.BINUNICODE + struct.pack("<I", len(name)) + name.encode() + inner
    return pickle.PROTO + b"\x02" + b"}(" + key + weights + rest + b"u."


BESIDE = {
    "schedule": {"milestones": collections.Counter([100, 150]), "last_epoch": 3},
    "options": argparse.Namespace(lr=0.1, arch="preact"),
    "seen": {1, 2},
    "frozen": frozenset({"a"}),
    "complex": 1 + 2j,
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"abc"),
    "scalar": np.float64(0.5),
    "history": np.arange(3),
    "nested": [({"a": (1, [2.5, None, True])},)],
}


@pytest.mark.parametrize("name", BESIDE)
def test_data_beside_the_weights_are_no_obstacle(plain, variables, tmp_path, name):
    opcodes = around(plain, **{name: BESIDE[name]})
    equal(models.load_torch(with_pickle(tmp_path / "x.pt", plain, opcodes), MODULE), variables)


CONTAINERS = [
    "state_dict", "model", "state_dict_ema", "model_ema", "params", "weights", "net",
    "model_state_dict", "ema", "network",
]  # fmt: skip


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_weights_are_found_under_their_usual_names(plain, variables, tmp_path, name):
    weights = members(plain)["archive/data.pkl"][2:-1]
    text = lambda word: pickle.BINUNICODE + struct.pack("<I", len(word)) + word.encode()
    opcodes = pickle.PROTO + b"\x02}" + text(name) + weights + b"s."
    equal(models.load_torch(with_pickle(tmp_path / "x.ckpt", plain, opcodes), MODULE), variables)
    other = pickle.PROTO + b"\x02}" + text("mine") + weights + b"s."
    path = with_pickle(tmp_path / "y.pt", plain, other)
    with pytest.raises(ValueError, match=r"y\.pt: .*it has mine.*--entry"):
        models.load_torch(path, MODULE)
    equal(models.load_torch(path, MODULE, entry="mine"), variables)


def test_what_pytorch_calls_safe_is_read(variables, tmp_path, plain):
    torch = pytest.importorskip("torch")
    weights = torch.load(plain, weights_only=True)
    beside = {
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "size": torch.Size([2, 3]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "complex": torch.ones(2, dtype=torch.complex64),
        "sparse": torch.eye(2).to_sparse(),
        "generator": torch.get_rng_state(),
        "counter": collections.Counter("a"),
    }
    for name, value in beside.items():
        for zipped in (True, False):
            content = {"state_dict": weights, name: value}
            path = tmp_path / "x.pt"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            torch.load(path, weights_only=True)
            equal(models.load_torch(path, MODULE), variables)


# ----------------------------------------------------------------------- safetensors


def write_safetensors(path, arrays, **changes):
    kinds = {"float32": "F32", "float16": "F16", "float64": "F64", "bfloat16": "BF16"}
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        start, body = len(body), body + array.tobytes()
        header[name] = dict(
            dtype=kinds[str(array.dtype)], shape=list(array.shape), data_offsets=[start, len(body)]
        )
    header = changes.get("header", lambda h: h)(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", changes.get("length", len(text))) + text + body)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
def test_safetensors_are_read(variables, tmp_path, dtype):
    arrays = models.to_torch_state_dict(MODULE, variables)
    kind = jnp.bfloat16 if dtype == "bfloat16" else dtype
    arrays = {k: v.astype(kind) for k, v in arrays.items() if v.dtype == np.float32}
    path = write_safetensors(tmp_path / "x.safetensors", arrays)
    found = models.load_torch(path, MODULE)
    rounded = jax.tree.map(lambda v: np.asarray(v).astype(kind).astype(np.float32), variables)
    equal(found, rounded)


def change_first(**fields):
    def change(header):
        name = next(name for name in header if name != "__metadata__")
        return header | {name: header[name] | fields}

    return change


BAD_SAFETENSORS = {
    "length": dict(length=2**60),
    "negative": dict(header=change_first(shape=[-1])),
    "too long": dict(header=change_first(shape=[2**40], data_offsets=[0, 2**42])),
    "other size": dict(header=change_first(data_offsets=[0, 3])),
    "dtype": dict(header=change_first(dtype="F4")),
    "no shape": dict(header=lambda h: dict.fromkeys(h, 3)),
    "list": dict(header=lambda h: list(h)),
}


@pytest.mark.parametrize("name", BAD_SAFETENSORS)
def test_damaged_safetensors_are_one_line(tmp_path, name):
    arrays = {"conv1.weight": np.ones(4, np.float32), "bn.weight": np.ones(2, np.float32)}
    path = write_safetensors(tmp_path / "x.safetensors", arrays, **BAD_SAFETENSORS[name])
    with pytest.raises(ValueError, match=r"^x\.safetensors: ") as caught:
        models.load_torch(path, MODULE)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


# --------------------------------------------------------------------------- hostile


def opcodes(*parts):
    return pickle.PROTO + b"\x02" + b"".join(parts) + b"."


STATE = pickle.BINUNICODE + struct.pack("<I", 10) + b"state_dict"
_DOUBLED = [b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60)]
NESTED = b")" + b"\x85" * 100_000
HOSTILE = {
    "a dictionary that contains itself": opcodes(b"}q\x00", STATE, b"h\x00s"),
    "exponential hashing": opcodes(b"})", b"".join(_DOUBLED), b"K\x01s"),
    "nested tuples": opcodes(b"}", NESTED, b"K\x01s"),
    "nested lists": opcodes(b"]" * 100_000 + b"a" * 99_999),
    "a large memo index": opcodes(b"}r" + struct.pack("<I", 2**30)),
    "a long string": opcodes(pickle.BINUNICODE8 + struct.pack("<Q", 2**40)),
    "a long bytearray": opcodes(pickle.BYTEARRAY8 + struct.pack("<Q", 2**40)),
    "a long frame": opcodes(pickle.FRAME + struct.pack("<Q", 2**62), b"}"),
    "an empty stack": opcodes(b"ss"),
    "no mark": opcodes(b"}u"),
    "a value that was never stored": opcodes(b"h\x07"),
    "a function as a value": opcodes(b"cos\nsystem\n"),
    "an object": opcodes(b"(ios\nsystem\n"),
    "an extension": opcodes(b"\x82\x01"),
    "no end": pickle.PROTO + b"\x02}",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", ["zip", "bare"])
def test_hostile_pickles_are_one_line_at_once(plain, tmp_path, name, form):
    path = tmp_path / "evil.pt"
    if form == "zip":
        with_pickle(path, plain, HOSTILE[name])
    else:
        path.write_bytes(HOSTILE[name])
    refused_at_once(path)


def test_the_number_of_opcodes_is_bounded(tmp_path):
    (tmp_path / "x.pt").write_bytes(opcodes(b"}" * (2**20 + 10)))
    with pytest.raises(ValueError, match="more than 1048576 opcodes"):
        models.load_torch(tmp_path / "x.pt", MODULE)


def refused_at_once(path, memory=200e6):
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(ValueError, match=rf"^{path.name}: ") as caught:
            models.load_torch(path, MODULE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < memory and time.process_time() - started < 30
    assert len(str(caught.value)) < 400


def test_compressed_members_are_refused(plain, tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members(plain).items():
            archive.writestr(name, data)
        archive.writestr("archive/data/bomb", b"\0" * 10_000_000)
    refused_at_once(path, memory=5e6)


@pytest.mark.parametrize("shape", [(40_000, 40_000), (10**9,), (1, 1, 1)])
def test_a_tensor_cannot_be_larger_than_its_storage(plain, tmp_path, shape):
    """A stride of 0 repeats one number as often as the shape says."""
    old = members(plain)["archive/data.pkl"]
    ints = lambda *values: b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"
    four = ints(2, 3, 3, 3) + ints(27, 9, 3, 1)
    assert four in old
    path = with_pickle(
        tmp_path / "big.pt", plain, old.replace(four, ints(*shape) + ints(*[0] * len(shape)))
    )
    with pytest.raises(ValueError, match="shape"):
        models.load_torch(path, MODULE)


def test_tensors_of_one_storage_read_only_their_own_bytes(tmp_path):
    write_torch_file(tmp_path / "x.pt", {"w": np.arange(4_000_000, dtype=np.float32)})
    old = members(tmp_path / "x.pt")["archive/data.pkl"]
    number = b"(J" + struct.pack("<i", 4_000_000) + b"t"
    assert number in old
    small = with_pickle(
        tmp_path / "y.pt",
        tmp_path / "x.pt",
        old.replace(number, b"(J" + struct.pack("<i", 3) + b"t"),
    )
    tensor = models._torch_file.read_torch_file(small)["w"]
    tracemalloc.start()
    assert tensor.numpy().tolist() == [0.0, 1.0, 2.0]
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_thousands_of_damaged_files_load_or_are_one_line(plain, variables, tmp_path):
    rng = np.random.default_rng(0)
    arrays = models.to_torch_state_dict(MODULE, variables)
    arrays = {k: v for k, v in arrays.items() if v.dtype == np.float32}
    sources = [plain.read_bytes()]
    sources.append(write_safetensors(tmp_path / "s.safetensors", arrays).read_bytes())
    outcomes = collections.Counter()
    for number in range(400):
        data = bytearray(sources[number % 2])
        head = len(data) if number % 4 < 2 else min(len(data), 9000)
        if number % 5 == 0:
            data = data[: rng.integers(len(data))]
        else:
            for place in rng.integers(0, head, rng.integers(1, 8)):
                data[place] = rng.integers(256)
        path = tmp_path / "x.pt"
        path.write_bytes(data)
        try:
            models.load_torch(path, MODULE)
            outcomes["read"] += 1
        except ValueError as error:
            assert str(error).startswith("x.pt: ")
            outcomes["refused"] += 1
    assert outcomes["refused"] > 200


def test_pickles_of_every_protocol_are_the_data_they_hold():
    data = {"a": [1, 2.5, (3,), "é", True, None, 2**70], (1, 2): "k", "b": [[], {}, ()]}
    for protocol in range(6):
        raw = io.BytesIO(pickle.dumps(data, protocol))
        assert read_pickle(raw, lambda module, name: pytest.fail(name)) == data
