"""Files of weights as people have them, and as people who mean harm would make them."""

import argparse
import collections
import json
import pickle
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models

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
    equal(models.load_torch(path, MODULE, entry="mine"), variables)
    with pytest.raises(ValueError, match=r"y\.pt: .*no entry 'yours' .*available: 'mine'"):
        models.load_torch(path, MODULE, entry="yours")


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
    text = changes.get("text", lambda text: text)(json.dumps(header).encode())
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
    "used twice": dict(header=change_first(data_offsets=[4, 20])),
    "a name twice": dict(text=lambda text: b"{" + text[1:-1] + b"," + text[1:]),
    "deep": dict(text=lambda text: b"{" + b"[" * 100_000),
    "a fraction": dict(header=change_first(shape=[4.0])),
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


def test_a_type_without_numbers_is_an_error_only_where_it_is_needed(variables, tmp_path):
    arrays = models.to_torch_state_dict(MODULE, variables)
    arrays = {k: v for k, v in arrays.items() if v.dtype == np.float32}
    header = lambda h: h | {"conv1.weight": h["conv1.weight"] | {"dtype": "F4"}}
    path = write_safetensors(tmp_path / "x.safetensors", arrays, header=header)
    with pytest.raises(ValueError, match=r"conv1\.weight: its numbers .*; save it as float32$"):
        models.load_torch(path, MODULE)
    arrays["other"] = np.zeros(3, np.float32)
    path = write_safetensors(tmp_path / "y.safetensors", arrays)
    with pytest.raises(ValueError, match="unexpected: other"):
        models.load_torch(path, MODULE)
    equal(models.load_torch(path, MODULE, ignore=("other",)), variables)


def test_the_suffix_says_what_a_file_was_meant_to_be(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"PNG")
    with pytest.raises(ValueError, match=r"x\.safetensors: not a safetensors file, or truncated"):
        models.load_torch(tmp_path / "x.safetensors", MODULE)


# --------------------------------------------------------------- what PyTorch itself writes


def test_tensors_of_every_type_are_read_or_refused_in_words(variables, tmp_path, plain):
    torch = pytest.importorskip("torch")
    weights, numbers = torch.load(plain, weights_only=True), torch.arange(10.0)
    forms = {
        "half": numbers.half(),
        "double": numbers.double(),
        "float8": numbers.to(torch.float8_e5m2),
        "uint16": numbers.to(torch.uint16),
        "a view": torch.arange(-5.0, 25.0)[5:15],
        "a column": torch.arange(20.0).reshape(10, 2)[:, 0] / 2,
        "expanded": torch.ones(1).expand(10),
        "with attributes": torch.nn.Parameter(numbers),
    }
    forms["with attributes"].note = "mine"
    refused = {
        "sparse": numbers.to_sparse(),
        "complex": numbers.to(torch.complex64),
        "meta": numbers.to("meta"),
    }
    path = tmp_path / "x.pt"
    for name, value in (forms | refused).items():
        torch.save(weights | {"linear.bias": value}, path)
        if name in refused:
            with pytest.raises(ValueError, match=rf"1 problems:\n  linear\.bias: .*{name}"):
                models.load_torch(path, MODULE)
        else:
            found = models.load_torch(path, MODULE)["params"]["linear"]["bias"]
            np.testing.assert_array_equal(found, value.detach().float().numpy(), name)
