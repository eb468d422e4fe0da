"""Weights from PyTorch files: formats, names, shapes, hostile and torn files, and back."""

import fractions
import json
import os
import pathlib
import pickle
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models
from jaxadv.models._torch_entries import find_weights
from jaxadv.models._torch_file import read_torch_file, write_torch_file
from jaxadv.models._torch_layout import layout, wanted
from tests.helpers.small_models import SMALL

PREACT = models.preact_resnet18(3, width=2, blocks=(1, 1))
WIDE = models.wide_resnet34_10(3, depth=10, widen_factor=1)


def _variables(module):
    rng = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def _state_dict(module):
    return models.to_torch_state_dict(module, _variables(module))


def _assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("file", ["torch_zip.pt", "torch_legacy.pt"])
def test_files_of_pytorch_give_its_logits(golden, file):
    reference = json.loads((golden / "torch_small.json").read_text())
    images = np.asarray(reference["images"], np.float32).transpose(0, 2, 3, 1)
    variables = models.load_torch(golden / file, PREACT)
    for train in (False, True):
        logits = jax.jit(lambda v, x, t=train: PREACT.apply(v, x, train=t))(variables, images)
        expected = reference["train_logits" if train else "eval_logits"]
        np.testing.assert_allclose(logits, expected, atol=1e-6)


@pytest.mark.parametrize("file", ["torch_dtypes.pt", "torch_dtypes_legacy.pt"])
def test_all_dtypes_and_layouts(golden, file):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected = {
        "f16": np.array([1.5, -2], np.float16),
        "bf16": np.array([1.5, -2, 3.140625], jnp.bfloat16),
        "f64": np.array([[np.float32(0.1), np.float32(0.2)]], np.float64),
        "i64": np.array(7),
        "u8": np.array([1, 255], np.uint8),
        "bool": np.array([True, False]),
        "transposed": base.T,
        "slice": base[1:3, 2:5],
        "empty": np.zeros((0, 3), np.float32),
        "parameter": np.ones(2, np.float32),
        "expanded": np.ones((2, 3), np.float32),
        "i32": np.array([-5], np.int32),
    }
    tensors = read_torch_file(golden / file)["model"]
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        got = tensors[name].numpy()
        assert got.dtype == value.dtype, name
        np.testing.assert_array_equal(got, value, name)


def test_float64_is_kept_where_asked_for(golden, x64):
    variables = models.load_torch(golden / "torch_zip.pt", PREACT, dtype=np.float64)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float64)}


def test_float64_without_x64_is_an_error(golden):
    with pytest.raises(ValueError, match="enable_x64"):
        models.load_torch(golden / "torch_zip.pt", PREACT, dtype=np.float64)


# ------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", models.MODELS)
def test_round_trip_is_bitwise(tmp_path, name):
    module = models.build(name, num_classes=3, **SMALL[name])
    variables = _variables(module)
    models.save_torch(tmp_path / "a.pt", module, variables)
    models.save_safetensors(tmp_path / "a.safetensors", module, variables)
    _assert_equal(models.load_torch(tmp_path / "a.pt", module), variables)
    _assert_equal(models.load_torch(tmp_path / "a.safetensors", module), variables)


@pytest.mark.parametrize("save", [models.save_torch, models.save_safetensors])
def test_equal_weights_make_equal_files(tmp_path, save):
    for name in ("a", "b"):
        save(tmp_path / name, PREACT, _variables(PREACT))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_flattened_images_are_channels_first_in_pytorch():
    """The published networks of 28-pixel images: Sequential, with names 0, 2, 5 and 7."""
    module = models.small_convnet(3, features=(2, 4), hidden=5)
    variables = _variables(module)  # of 8x8 images, which become 2x2
    state_dict = models.to_torch_state_dict(module, variables)
    assert list(state_dict) == [f"{n}.{leaf}" for n in (0, 2, 5, 7) for leaf in ("weight", "bias")]
    ours = variables["params"]["hidden"]["kernel"].reshape(2, 2, 4, 5)
    np.testing.assert_array_equal(
        state_dict["5.weight"].reshape(5, 4, 2, 2), ours.transpose(3, 2, 0, 1)
    )
    state_dict["5.weight"] = np.zeros((5, 15), np.float32)
    with pytest.raises(ValueError, match=r"5\.weight has \(5, 15\); expected \(5, None\)"):
        models.from_torch_state_dict(state_dict, module)


def test_npz(tmp_path):
    np.savez(tmp_path / "weights.npz", **_state_dict(PREACT))
    _assert_equal(models.load_torch(tmp_path / "weights.npz", PREACT), _variables(PREACT))


def test_names_and_layout_are_those_of_pytorch(golden):
    reference = json.loads((golden / "torch_models.json").read_text())
    for name in ("preact_resnet18", "wide_resnet34_10"):
        module = getattr(models, name)(10)
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        shapes = jax.eval_shape(module.init, jax.random.key(0), images)
        zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
        state_dict = models.to_torch_state_dict(module, zeros)
        for number, tensor, shape in reference[name]["tensors"]:
            assert list(state_dict)[number] == tensor
            assert state_dict[tensor].shape == tuple(shape)


def test_pytorch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    models.save_torch(tmp_path / "a.pt", WIDE, _variables(WIDE))
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)
    expected = _state_dict(WIDE)
    assert list(loaded) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded[name].numpy(), value)
    for new_format in (True, False):
        torch.save(loaded, tmp_path / "b.pt", _use_new_zipfile_serialization=new_format)
        _assert_equal(models.load_torch(tmp_path / "b.pt", WIDE), _variables(WIDE))


# ------------------------------------------------------------------- names


@pytest.mark.parametrize("prefix", ["module.", "model.", "0.", "1.", "module.basic_net.", "a.b."])
@pytest.mark.parametrize("module", [PREACT, WIDE])
def test_wrapper_prefixes(prefix, module):
    wrapped = {prefix + name: value for name, value in _state_dict(module).items()}
    _assert_equal(models.from_torch_state_dict(wrapped, module), _variables(module))


@pytest.mark.parametrize(
    "swap",
    [
        ("shortcut.0", "convShortcut"),
        ("shortcut.0", "shortcut"),
        ("linear.", "fc."),
    ],
)
def test_other_spellings(swap):
    renamed = {name.replace(*swap): value for name, value in _state_dict(PREACT).items()}
    assert renamed.keys() != _state_dict(PREACT).keys()
    _assert_equal(models.from_torch_state_dict(renamed, PREACT), _variables(PREACT))


def _load(content, module, entry=None):
    found = find_weights(content, wanted(layout(module)), entry)
    return models.from_torch_state_dict(found, module)


PATHS = [
    "",
    "state_dict",
    "state_dict_ema",
    "model_ema",
    "params",
    "net.model_state",
    "mine",
    "a.0",
]


@pytest.mark.parametrize("path", PATHS)
def test_the_weights_are_found_whatever_they_are_called(path):
    content = {f"module.{name}": value for name, value in _state_dict(PREACT).items()}
    for part in reversed(path.split(".") if path else []):
        content = [content] if part == "0" else {part: content, "lr": 0.1}
    content = content | {"epoch": 3, "optimizer": {"state": {"step": np.ones(2)}}}
    _assert_equal(_load(content, PREACT), _variables(PREACT))
    with pytest.raises(ValueError, match="no entry 'theirs' with tensors; available: "):
        _load(content, PREACT, "theirs")


def test_only_what_fits_is_taken():
    first, second = _state_dict(PREACT), _state_dict(WIDE)
    content = {"epoch": 3, "net": {"model_state_dict": first, "ema_state_dict": second}}
    _assert_equal(_load(content, PREACT), _variables(PREACT))
    _assert_equal(_load(content, WIDE), _variables(WIDE))
    _assert_equal(_load(content, WIDE, "net.ema_state_dict"), _variables(WIDE))
    with pytest.raises(ValueError, match="do not match WideResNet"):
        _load(content, WIDE, "model_state_dict")
    with pytest.raises(ValueError, match="no tensors"):
        _load({"epoch": 3}, PREACT)


def test_of_several_that_fit_the_usual_one_is_taken_aloud_and_others_by_name():
    first = _state_dict(PREACT)
    second = {name: value + 1 for name, value in first.items()}
    both = {"state_dict_ema": second, "epoch": 1, "state_dict": first, "best": dict(first)}
    with pytest.warns(
        UserWarning, match=r"2 matching sets.*'state_dict', pass entry='state_dict_ema'"
    ):
        _assert_equal(_load(both, PREACT), _variables(PREACT))
    averaged = models.from_torch_state_dict(second, PREACT)
    _assert_equal(_load(both, PREACT, "state_dict_ema"), averaged)
    with pytest.raises(ValueError, match=r"2 matching sets of weights, 'a', 'b'; choose one"):
        _load({"a": first, "b": second}, PREACT)
    # One state dict under two names is one, and is found under both.
    shared = {"a": {"net": first}, "b": {"net": first}}
    _assert_equal(_load(shared, PREACT), _variables(PREACT))
    _assert_equal(_load(shared, PREACT, "b"), _variables(PREACT))
    with pytest.raises(ValueError, match="no entry 'c' with tensors; available: 'a.net', 'b.net'"):
        _load(shared, PREACT, "c")
    _assert_equal(_load({"a": first, "b": dict(first)}, PREACT), _variables(PREACT))


def test_the_unused_stage_of_robustbench_is_reported():
    state_dict = {f"module.{name}": value for name, value in _state_dict(WIDE).items()}
    state_dict |= {
        name.replace("block1", "sub_block1"): value
        for name, value in state_dict.items()
        if "block1" in name
    }
    with pytest.warns(UserWarning, match=r"sub_block1.*module\.sub_block1\.layer\.0\.conv1"):
        variables = models.from_torch_state_dict(state_dict, WIDE)
    _assert_equal(variables, _variables(WIDE))


def test_normalisation_of_the_wrapper():
    state_dict = {f"model.{name}": value for name, value in _state_dict(PREACT).items()}
    mean, std = (np.reshape(v, (1, 3, 1, 1)) for v in (PREACT.mean, PREACT.std))
    same = {"normalize.mean": mean, "normalize.std": std, **state_dict}
    _assert_equal(models.from_torch_state_dict(same, PREACT), _variables(PREACT))
    other = {"mu": mean + 0.1, **state_dict}
    with pytest.raises(ValueError, match=r"create the module with mean=\(0.5914, 0.5822, 0.5465\)"):
        models.from_torch_state_dict(other, PREACT)
    ignored = models.from_torch_state_dict(other, PREACT, ignore=("mu",))
    _assert_equal(ignored, _variables(PREACT))


def test_all_problems_are_listed():
    state_dict = _state_dict(PREACT)
    state_dict["conv1.wieght"] = state_dict.pop("conv1.weight")
    del state_dict["bn.running_var"]
    state_dict["linear.weight"] = np.zeros((4, 4), np.float32)
    with pytest.raises(ValueError) as error:
        models.from_torch_state_dict(state_dict, PREACT)
    text = str(error.value)
    assert "missing: conv1.weight (nearest in the file: conv1.wieght)" in text
    assert "missing: bn.running_var" in text
    assert "unexpected: conv1.wieght" in text
    assert "linear.weight has (4, 4); expected (3, 4)" in text
    assert "4 problems" in text


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (PREACT, WIDE),
        (WIDE, PREACT),
        (PREACT, models.preact_resnet18(3, width=4, blocks=(1, 1))),
        (PREACT, models.preact_resnet18(3, width=2, blocks=(1, 2))),
        (models.preact_resnet18(3, width=2, blocks=(1, 2)), PREACT),
    ],
)
def test_another_architecture_is_refused(ours, theirs):
    with pytest.raises(ValueError, match="do not match"):
        models.from_torch_state_dict(_state_dict(theirs), ours)


def test_two_networks_that_both_fit_are_ambiguous():
    state_dict = _state_dict(PREACT)
    both = {f"{p}.{k}": v for p in ("student", "teacher") for k, v in state_dict.items()}
    with pytest.raises(ValueError, match=r"'student\.', 'teacher\.'|'teacher\.', 'student\.'"):
        models.from_torch_state_dict(both, PREACT)
    chosen = models.from_torch_state_dict(both, PREACT, ignore=("teacher.",))
    _assert_equal(chosen, _variables(PREACT))


def test_a_module_without_names_is_refused():
    with pytest.raises(ValueError, match="module is a Dense, which has no PyTorch names; .*ResNet"):
        models.from_torch_state_dict({}, nn.Dense(3))
    with pytest.raises(ValueError, match="do not match"):
        models.to_torch_state_dict(PREACT, _variables(WIDE))


# ------------------------------------------------------- torn and hostile files


class _Evil:
    def __reduce__(self):
        return os.system, ("echo pwned > pwned",)


@pytest.mark.parametrize("container", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("evil", [_Evil(), fractions.Fraction(1, 2), pathlib.PurePosixPath("a")])
def test_nothing_but_weights_is_unpickled(tmp_path, monkeypatch, container, evil):
    monkeypatch.chdir(tmp_path)
    payload = pickle.dumps({"state_dict": evil}, protocol=2)
    path = tmp_path / "evil.pt"
    if container == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
    else:
        head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        head = head if container == "legacy" else []
        path.write_bytes(b"".join(pickle.dumps(h, 2) for h in head) + payload)
    with pytest.raises(ValueError, match=r"evil\.pt: the file refers to \S+\.\w+, which"):
        models.load_torch(path, PREACT)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("file", ["torch_zip.pt", "torch_legacy.pt"])
def test_torn_files(tmp_path, golden, file):
    data = (golden / file).read_bytes()
    for length in [0, 1, 40, *range(100, len(data), len(data) // 25), len(data) - 1]:
        (tmp_path / "torn.pt").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"torn\.pt: "):
            models.load_torch(tmp_path / "torn.pt", PREACT)


def test_a_flipped_byte_is_noticed(tmp_path, golden):
    """The checksum of the zip format covers every storage."""
    data = bytearray((golden / "torch_zip.pt").read_bytes())
    with zipfile.ZipFile(golden / "torch_zip.pt") as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("data/2"))
        data[data.index(archive.read(name))] ^= 0xFF
    (tmp_path / "bad.pt").write_bytes(data)
    with pytest.raises(ValueError, match="storage 2: Bad CRC"):
        models.load_torch(tmp_path / "bad.pt", PREACT)


def test_a_tensor_outside_its_storage_is_refused(tmp_path):
    write_torch_file(tmp_path / "a.pt", {"w": np.zeros(4, np.float32)})
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    four, many = (pickle.BININT + n.to_bytes(4, "little") for n in (4, 4000))
    old = members["archive/data.pkl"]
    members["archive/data.pkl"] = old.replace(b"(" + four + b"t", b"(" + many + b"t")
    assert members["archive/data.pkl"] != old
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match="does not fit in storage"):
        read_torch_file(tmp_path / "a.pt")["w"].numpy()


def test_files_without_weights(tmp_path):
    np.savez(tmp_path / "empty.npz")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    (tmp_path / "text.pt").write_text("not a pickle")
    for name in ("empty.npz", "other.zip", "text.pt"):
        with pytest.raises(ValueError):
            models.load_torch(tmp_path / name, PREACT)
    with pytest.raises(FileNotFoundError):
        models.load_torch(tmp_path / "absent.pt", PREACT)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    models.save_torch(tmp_path / "a.pt", PREACT, _variables(PREACT))
    before = (tmp_path / "a.pt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        models.save_torch(tmp_path / "a.pt", PREACT, _variables(PREACT))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    assert (tmp_path / "a.pt").read_bytes() == before


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(ValueError, match="complex128"):
        write_torch_file(tmp_path / "a.pt", {"w": np.zeros(2, complex)})
