"""Checkpoints: what goes in comes out, and nothing is lost when a disk or a file fails."""

import errno
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.run import checkpoints
from experiments.run.checkpoints import CheckpointError
from jaxadv import training


class Moments(NamedTuple):
    mean: Any
    count: Any
    key: Any


def example(width=3):
    params = {"dense": {"kernel": jnp.arange(2.0 * width).reshape(2, width)}}
    params["half"] = jnp.full((2,), 1 / 3, jnp.bfloat16)
    tx = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, momentum=0.9))
    state = training.TrainState.create(params, {}, tx)
    moments = Moments(jnp.full((2,), np.nan), jnp.int32(7), jax.random.key(5))
    return state.replace(opt_state=(state.opt_state, moments, None))


def plain(tree):
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return [
        np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        for leaf in jax.tree.leaves(tree)
    ]


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(plain(found), plain(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_round_trip_keeps_structure_dtypes_keys_and_record(tmp_path):
    state, record = example(), {"rows": [{"loss": 0.1 + 0.2}], "best": None}
    checkpoints.save(tmp_path / "a.ckpt", state, record)
    found, found_record = checkpoints.load(tmp_path / "a.ckpt", jax.eval_shape(example))
    assert_same(found, state)
    assert found_record == record == checkpoints.load_record(tmp_path / "a.ckpt")
    key = found.opt_state[1].key
    assert jax.random.normal(key) == jax.random.normal(jax.random.key(5))
    assert isinstance(found.opt_state[1], Moments)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_part_is_loaded_without_the_rest(tmp_path):
    state = example()
    checkpoints.save(tmp_path / "a.ckpt", state, {})
    templates = (jax.eval_shape(lambda: example().params), {})
    params, batch_stats = checkpoints.load_part(
        tmp_path / "a.ckpt", ("params", "batch_stats"), templates
    )
    assert_same(params, state.params)
    assert batch_stats == {}
    with pytest.raises(CheckpointError, match="has no 'weights'; was it written by another"):
        checkpoints.load_part(tmp_path / "a.ckpt", ("weights",), templates[:1])


def test_another_architecture_is_refused_naming_the_place(tmp_path):
    path = tmp_path / "a.ckpt"
    checkpoints.save(path, example(), {})
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(path, jax.eval_shape(lambda: example(width=4)))
    for part in (str(path), "kernel", "float32[2, 3]", "float32[2, 4]", "--workdir"):
        assert part in str(error.value)
    more = jax.eval_shape(lambda: example().replace(batch_stats={"mean": jnp.zeros(2)}))
    with pytest.raises(CheckpointError, match="at /batch_stats/mean the file has nothing"):
        checkpoints.load(path, more)
    wide = jax.eval_shape(lambda: jax.tree.map(lambda p: p.astype("float16"), example().params))
    with pytest.raises(CheckpointError, match=r"float32\[2, 3\] and the model float16\[2, 3\]"):
        checkpoints.load_part(path, ("params",), (wide,))


def test_a_torn_file_is_refused_wherever_it_was_cut(tmp_path):
    path, template = tmp_path / "a.ckpt", jax.eval_shape(example)
    checkpoints.save(path, example(), {"rows": []})
    whole = path.read_bytes()
    cuts = {*range(0, 80), *range(80, len(whole), 37), len(whole) - 1}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: is (truncated|not a)"):
            checkpoints.load(path, template)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="is truncated or damaged"):
        checkpoints.load(path, template)


def test_a_flipped_bit_is_found_anywhere(tmp_path):
    path, template = tmp_path / "a.ckpt", jax.eval_shape(example)
    checkpoints.save(path, example(), {"rows": []})
    whole = path.read_bytes()
    for place in {*range(0, 70), *range(70, len(whole), 41)}:
        data = bytearray(whole)
        data[place] ^= 0x10
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="is (truncated or damaged|not a checkpoint)"):
            checkpoints.load(path, template)


def test_what_is_no_checkpoint_says_so(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(CheckpointError, match="is not a checkpoint of this project"):
        checkpoints.load_record(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="no such checkpoint; train first, or check"):
        checkpoints.load_record(tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoints.load_record(tmp_path)


class Breaks:
    """Stands for a file whose ``write`` fails half-way with ``number``."""

    def __init__(self, file, number):
        self.file, self.number = file, number

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise OSError(self.number, os.strerror(self.number))


def fail(number):
    def raises(*_args, **_options):
        raise OSError(number, os.strerror(number))

    return raises


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("stage", ["open", "write", "fsync", "replace"])
def test_a_failing_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, stage, number):
    path = tmp_path / "a.ckpt"
    checkpoints.save(path, example(), {"epoch": 1})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        if stage in ("fsync", "replace"):
            patch.setattr(os, stage, fail(number))
        elif stage == "open":
            patch.setattr(checkpoints, "open", fail(number), raising=False)
        else:
            opened = lambda *a: Breaks(open(*a), number)
            patch.setattr(checkpoints, "open", opened, raising=False)
        with pytest.raises(OSError, match="the previous file is untouched") as error:
            checkpoints.save(path, example(), {"epoch": 2})
    assert error.value.errno == number
    for part in (str(path), os.strerror(number), "Free some space", "--workdir"):
        assert part in str(error.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
def test_a_really_full_disk_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "a.ckpt"
    checkpoints.save(path, example(), {"epoch": 1})
    before = path.read_bytes()
    (tmp_path / "a.ckpt.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device.*untouched"):
        checkpoints.save(path, example(), {"epoch": 2})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_ctrl_c_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    checkpoints.save(path, example(), {"epoch": 1})

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(path, example(), {"epoch": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    assert checkpoints.load_record(path) == {"epoch": 1}


def test_the_rename_comes_after_the_flush(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
    checkpoints.write_atomically(tmp_path / "a", b"data")
    assert calls == ["fsync", "replace"]
    assert (tmp_path / "a").read_bytes() == b"data"
