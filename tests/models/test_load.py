"""`models.load` finds out what kind of file or folder it is given."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from experiments.run import checkpoints
from jaxadv import models

MODULE = models.preact_resnet18(3, width=2, blocks=(1, 1))


def variables_of(module, seed=0, size=8):
    rng = np.random.default_rng(seed)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


VARIABLES, OTHERS = variables_of(MODULE), variables_of(MODULE, seed=1)
STATE = {
    "step": np.int32(3),
    **VARIABLES,
    "opt_state": [VARIABLES["params"], {"count": np.int32(1)}],
}


def assert_loads(path, module=MODULE, variables=VARIABLES, **options):
    loaded = models.load(path, module, **options)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def pack(path, tree):
    path.write_bytes(serialization.to_bytes(tree))
    return path


def run_checkpoint(path, tree=STATE):
    checkpoints.save(path, tree, {"epoch": 3})
    return path


FILES = {
    "torch": lambda path: models.save_torch(path, MODULE, VARIABLES),
    "safetensors": lambda path: models.save_safetensors(path, MODULE, VARIABLES),
    "npz": lambda path: np.savez(open_for(path), **models.to_torch_state_dict(MODULE, VARIABLES)),
    "variables": lambda path: pack(path, VARIABLES),
    "a training state": lambda path: pack(path, {"state": STATE}),
    "statistics elsewhere": lambda path: pack(
        path,
        {"params": VARIABLES["params"], "model": {"batch_stats": VARIABLES["batch_stats"]}},
    ),
    "a run": run_checkpoint,
}


def open_for(path):
    return path.with_suffix(".npz")


@pytest.mark.parametrize("kind", FILES)
def test_files(tmp_path, kind):
    path = tmp_path / "weights"
    FILES[kind](path)
    assert_loads(path if path.exists() else open_for(path))


@pytest.mark.parametrize("first", [0x81, 0x8F, 0xDE, 0xDF, 0xFF])
def test_a_safetensors_file_may_start_like_a_dictionary(tmp_path, first):
    """Its first byte is the lowest of its table's length."""
    path = tmp_path / "weights"
    models.save_safetensors(path, MODULE, VARIABLES)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    more = (first - length) % 256
    table = data[8 : 8 + length] + b" " * more
    path.write_bytes((length + more).to_bytes(8, "little") + table + data[8 + length :])
    assert path.read_bytes()[0] == first
    assert_loads(path)


def test_the_folder_of_a_run_has_the_selected_weights(tmp_path):
    run_checkpoint(tmp_path / "last.ckpt", {"params": OTHERS["params"], **OTHERS})
    assert_loads(tmp_path, variables=OTHERS)
    run_checkpoint(tmp_path / "selected.ckpt", VARIABLES)
    assert_loads(tmp_path)
    assert_loads(tmp_path / "last.ckpt", variables=OTHERS)


def test_the_newest_of_flax_files(tmp_path):
    pack(tmp_path / "checkpoint_9", OTHERS)
    pack(tmp_path / "checkpoint_10", STATE)
    (tmp_path / "notes.txt").write_text("mine")
    assert_loads(tmp_path)
    assert_loads(tmp_path / "checkpoint_9", variables=OTHERS)


def test_orbax_folders(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "plain", STATE)
    with ocp.CheckpointManager(tmp_path / "managed") as manager:
        for step, variables in ((9, OTHERS), (10, VARIABLES)):
            manager.save(step, args=ocp.args.StandardSave({"model": variables}))
            manager.wait_until_finished()
    assert_loads(tmp_path / "plain")
    assert_loads(tmp_path / "managed")
    assert_loads(tmp_path / "managed" / "9", variables=OTHERS)
    with pytest.raises(ValueError, match=r"plain: the variables do not match WideResNet"):
        models.load(tmp_path / "plain", models.wide_resnet(3, depth=10, width=1))
    # Not its data: where several arrays fail, orbax leaves errors to later tests.
    (tmp_path / "plain" / "_METADATA").write_text("{")
    with pytest.raises(ValueError, match=r"plain: orbax can't read plain: "):
        models.load(tmp_path / "plain", MODULE)


class Mine(nn.Module):
    """A network of somebody else, whose shapes depend on the images."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(3)(nn.relu(nn.Dense(4)(images.reshape(images.shape[0], -1))))


def test_networks_of_others(tmp_path):
    variables = variables_of(Mine(), size=4)
    pack(tmp_path / "mine", variables["params"])  # the parameters alone
    assert_loads(tmp_path / "mine", Mine(), variables, image_shape=(4, 4, 3))
    with pytest.raises(ValueError, match=r"Dense_1.kernel has \(48, 4\); expected \(3072, 4\)"):
        models.load(tmp_path / "mine", Mine())


def test_shapes_that_follow_the_images_need_no_option(tmp_path):
    module = models.mlp(3, hidden=(5,))
    assert_loads(pack(tmp_path / "mlp", variables_of(module)), module, variables_of(module))


def test_several_sets_of_weights_are_chosen_by_name(tmp_path):
    path = pack(tmp_path / "both", {"model": VARIABLES, "ema": OTHERS})
    with pytest.raises(ValueError, match=r"^both: the file contains several matching networks"):
        models.load(path, MODULE)
    assert_loads(path, entry="ema", variables=OTHERS)
    assert_loads(path, ignore=("ema.",))


def test_what_does_not_match_is_listed(tmp_path):
    tree = jax.tree.map(np.asarray, VARIABLES)
    params = tree["params"]
    params["bn"]["scael"] = params["bn"].pop("scale")
    params["linear"]["bias"] = np.zeros(4, np.float32)
    params["linear"]["kernel"] = np.zeros((4, 3), bool)
    with pytest.raises(ValueError) as error:
        models.load(pack(tmp_path / "x", {"all": tree}), MODULE)
    text = str(error.value)
    assert text.startswith("x: the variables do not match PreActResNet; 4 problems:")
    assert "missing: params.bn.scale\n" in text and "unexpected: all.params.bn.scael\n" in text
    assert "all.params.linear.bias has (4,); expected (3,)" in text
    assert "all.params.linear.kernel: its numbers are bool" in text


def test_float64_is_kept_where_asked_for(tmp_path, x64):
    path = pack(tmp_path / "x", jax.tree.map(lambda v: v.astype(np.float64), VARIABLES))
    loaded = models.load(path, MODULE, dtype=np.float64)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float64)}


def test_damaged_files_are_one_error_that_names_them(tmp_path):
    whole = serialization.to_bytes(STATE)
    for length in [1, 2, 40, *range(100, len(whole), len(whole) // 20), len(whole) - 1]:
        (tmp_path / "torn").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"^torn: "):
            models.load(tmp_path / "torn", MODULE)
    data = bytearray(run_checkpoint(tmp_path / "run.ckpt").read_bytes())
    data[-100] ^= 0xFF
    (tmp_path / "run.ckpt").write_bytes(data)
    with pytest.raises(ValueError, match=r"^run\.ckpt: the checkpoint is truncated or damaged"):
        models.load(tmp_path / "run.ckpt", MODULE)
    (tmp_path / "deep").write_bytes(b"\x81\xa1a" * 500 + b"\x01")
    with pytest.raises(ValueError, match=r"^deep: "):
        models.load(tmp_path / "deep", MODULE)
    for length in (3, 10**9):  # an array that claims more numbers than it has
        claim = b"\x81\xa1a\xc7\x0b\x01\x93\x91" + length.to_bytes(1 if length < 9 else 5, "big")
        (tmp_path / "claim").write_bytes(claim)
        with pytest.raises(ValueError, match=r"^claim: "):
            models.load(tmp_path / "claim", MODULE)


def test_folders_without_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"a folder without a checkpoint; there should be"):
        models.load(tmp_path, MODULE)
    with pytest.raises(FileNotFoundError):
        models.load(tmp_path / "absent", MODULE)
