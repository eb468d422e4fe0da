"""AutoAttack in shards: the same bits as one process, and nobody's files but one's own."""

import functools
import shutil
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.attacks import autoattack
from jaxadv.attacks._autoattack.chunks import Chunks
from jaxadv.attacks._autoattack.store import Store

KEY = jax.random.key(0)
IMAGES = np.asarray(jax.random.uniform(jax.random.key(1), (40, 4, 4, 1)))
WEIGHTS = jax.random.normal(jax.random.key(2), (16, 5))
MODEL = lambda x: x.reshape(len(x), -1) @ WEIGHTS
LABELS = np.array(MODEL(jnp.asarray(IMAGES)).argmax(1).astype(jnp.int32))
LABELS[5] = (LABELS[5] + 1) % 5
ARRAYS = (
    "images", "labels", "predictions", "robust", "broken_by", "broken_run", "broken_step", "norms",
    "margins", "individual",
)  # fmt: skip


def evaluate(store, shard=None, *, model=MODEL, images=IMAGES, **options):
    settings = dict(
        eps=0.2, version="custom", attacks=["apgd-ce", "square"], num_steps=5, num_queries=20,
        batch_size=16, progress=False,
    )  # fmt: skip
    return autoattack(KEY, model, images, LABELS, store=store, shard=shard, **settings | options)


def same(one, two, rows=slice(None)):
    """Bit for bit the same outcome."""
    for name in ARRAYS:
        expected = getattr(two, name)
        expected = expected[:, rows] if name == "individual" else expected[rows]
        np.testing.assert_array_equal(getattr(one, name), expected, err_msg=name)


def same_whole(one, two):
    same(one, two)
    assert one.evaluations == two.evaluations and one.accuracy == two.accuracy
    assert one.checks == two.checks and list(one.evaluations) == list(two.evaluations)


@pytest.fixture(scope="module")
def whole():
    found = evaluate(None)
    assert {"", "clean", "apgd-ce"} <= set(found.broken_by)
    return found


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "store"
    for index in range(3):
        evaluate(folder, (index, 3))
    return folder


@pytest.fixture
def store(complete, tmp_path):
    """Three complete shards, not merged."""
    return shutil.copytree(complete, tmp_path / "store")


@pytest.fixture
def idle(monkeypatch):
    """Fails whatever computes."""

    def fail(*_):
        raise AssertionError("something was computed")

    def forbid():
        monkeypatch.setattr(Chunks, "attack", fail)
        monkeypatch.setattr(Chunks, "predict", fail)

    return forbid


@pytest.mark.parametrize("individual", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_three_shards_at_once_and_their_merge_equal_one_process(tmp_path, idle, individual):
    run = functools.partial(evaluate, individual=individual)
    whole, parts = run(None), {}
    threads = [
        threading.Thread(target=lambda i=i: parts.update({i: run(tmp_path, (i, 3))}))
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(3):
        same(parts[index], whole, slice(index, None, 3))
        assert parts[index].settings["shard"] == [index, 3]
        assert parts[index].accuracy["clean"] == (whole.broken_by != "clean")[index::3].mean()
    idle()
    merged = run(tmp_path)
    same_whole(merged, whole)
    assert "shard" not in merged.settings
    same(run(tmp_path, (1, 3)), whole, slice(1, None, 3))


def test_what_shards_did_not_finish_is_computed_by_the_merge(store, whole, idle):
    shutil.rmtree(store / "shard-0-of-3")
    for path in sorted((store / "shard-2-of-3").glob("*.npz"))[2:]:
        path.unlink()
    same_whole(evaluate(store), whole)
    # Shards that come late agree, and nothing counts twice.
    same(evaluate(store, (0, 3)), whole, slice(0, None, 3))
    same(evaluate(store, (2, 3)), whole, slice(2, None, 3))
    idle()
    same_whole(evaluate(store), whole)


def test_a_shard_resumes(store, whole, idle):
    path = sorted((store / "shard-1-of-3").glob("*.npz"))[-1]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=r"shard-1-of-3.*1 records are damaged"):
        same(evaluate(store, (1, 3)), whole, slice(1, None, 3))
    idle()
    same_whole(evaluate(store), whole)


def test_records_of_another_shard_are_not_counted(store, whole):
    name = "000000.npz"
    (store / "shard-1-of-3" / name).write_bytes((store / "shard-0-of-3" / name).read_bytes())
    with pytest.warns(UserWarning, match=r"shard-1-of-3.*1 records are damaged or not from"):
        same_whole(evaluate(store), whole)


def test_a_shard_runs_once_at_a_time_and_not_during_a_merge(tmp_path, whole):
    with Store(tmp_path, (1, 3)):
        with pytest.raises(ValueError, match="shard-1-of-3' is in use by another evaluation"):
            evaluate(tmp_path, (1, 3))
        with pytest.raises(ValueError, match=r"in use by .* own shard=\(i, n\)") as caught:
            evaluate(tmp_path)
        assert "\n" not in str(caught.value)
        same(evaluate(tmp_path, (0, 3)), whole, slice(0, None, 3))
    with Store(tmp_path), pytest.raises(ValueError, match="in use by another evaluation"):
        evaluate(tmp_path, (1, 3))
    same_whole(evaluate(tmp_path), whole)


def test_shards_of_another_number_are_refused(store):
    before = sorted(path.name for path in store.iterdir())
    with pytest.raises(ValueError, match=r"has shards of 3; pass n = 3 instead of shard=\(0, 2\)"):
        evaluate(store, (0, 2))
    assert sorted(path.name for path in store.iterdir()) == before


def test_shards_of_another_evaluation_are_refused(store, tmp_path):
    flipped = IMAGES[:, ::-1].copy()
    with pytest.raises(ValueError, match="belongs to another evaluation: .*images was"):
        evaluate(store, (0, 3), images=flipped)
    # Also where its own folder is new: the others tell.
    shutil.rmtree(store / "shard-0-of-3")
    other = lambda x: x.reshape(len(x), -1) @ (WEIGHTS * 1.001)
    with pytest.raises(ValueError, match="belongs to another evaluation: .*model was"):
        evaluate(store, (0, 3), model=other)
    evaluate(tmp_path / "other", (0, 3), images=flipped)
    shutil.copytree(tmp_path / "other/shard-0-of-3", store / "shard-0-of-3", dirs_exist_ok=True)
    with pytest.raises(ValueError, match="shard-0-of-3' belongs to another evaluation"):
        evaluate(store)


def test_a_shard_that_was_renamed_is_refused(store):
    shutil.rmtree(store / "shard-0-of-3")
    shutil.copytree(store / "shard-1-of-3", store / "shard-0-of-3")
    with pytest.raises(ValueError, match="shard was 'shard-1-of-3' and is 'shard-0-of-3'"):
        evaluate(store)


def test_a_shard_leaves_the_files_of_others_alone(store):
    evaluate(store)
    others = [
        store / "shard-0-of-3" / "000099.npz.0123456789abcdef.partial",
        store / "shard-0-of-3" / "notes.txt",
        store / "000099.npz.0123456789abcdef.partial",
    ]
    for path in others:
        path.write_text("being written")
    damaged = store / "shard-0-of-3" / "000000.npz"
    damaged.write_bytes(b"not a record")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(store, (1, 3))
    assert all(path.exists() for path in [*others, damaged])


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ((3, 3), r"shard=\(3, 3\) of 40 images is not one of \(0, n\) to \(n - 1, n\)"),
        ((-1, 3), "is not one of"),
        ((0, 0), "is not one of"),
        ((0, 41), "n from 1 to 40"),
        ("0/3", "is not a pair"),
        ((0.0, 3), "is not a pair"),
        (1, "is not a pair"),
    ],
)
def test_misuse(tmp_path, shard, message):
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(tmp_path / "store", shard)
    assert "\n" not in str(caught.value) and not (tmp_path / "store").exists()


def test_a_shard_needs_a_store():
    with pytest.raises(ValueError, match=r"shard=\(0, 3\) needs store="):
        evaluate(None, (0, 3))
