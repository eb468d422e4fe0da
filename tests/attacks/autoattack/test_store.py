"""The store of AutoAttack: nobody's files, nobody else's records, one evaluation at a time."""

import json
import subprocess
import sys
import threading
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.attacks import AutoAttackResult, autoattack
from jaxadv.attacks._autoattack.store import Store

KEY = jax.random.key(0)
IMAGES = np.asarray(jax.random.uniform(jax.random.key(1), (40, 4, 4, 1)))
WEIGHTS = jax.random.normal(jax.random.key(2), (16, 5))
MODEL = lambda x: x.reshape(len(x), -1) @ WEIGHTS
LABELS = np.asarray(MODEL(jnp.asarray(IMAGES)).argmax(1).astype(jnp.int32))


def evaluate(store, *, images=IMAGES, labels=LABELS, **options):
    settings = dict(eps=0.02, version="custom", attacks=["apgd-ce"], num_steps=5, batch_size=16)
    return autoattack(KEY, MODEL, images, labels, store=store, progress=False, **settings | options)


@pytest.fixture(scope="module")
def wanted():
    return evaluate(None)


@pytest.fixture
def store(tmp_path):
    evaluate(tmp_path / "store")
    return tmp_path / "store"


def records(store):
    return sorted(store.glob("[0-9]*.npz"))


def check_recomputed(store, wanted, number):
    """The evaluation says that records were set aside, and comes to the same result."""
    with pytest.warns(UserWarning, match=f"{number} records are damaged or not from this eval"):
        found = evaluate(store)
    np.testing.assert_array_equal(found.images, wanted.images)
    np.testing.assert_array_equal(found.robust, wanted.robust)
    assert found.evaluations == wanted.evaluations
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(store).evaluations == wanted.evaluations


@pytest.mark.parametrize("name", ["notes.txt", "thesis.partial", "000001.npz.mine", "model.npz"])
def test_a_folder_of_other_files_is_refused_and_untouched(tmp_path, name):
    file = tmp_path / name
    file.write_text("mine")
    with pytest.raises(ValueError, match="contains other files; pass a new or empty folder"):
        evaluate(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name] and file.read_text() == "mine"


def test_other_files_in_a_store_survive(store):
    others = ["thesis.partial", "000001.npz.partial.bak", "x.0123456789abcdef.partial", "notes.txt"]
    for name in others:
        (store / name).write_text("mine")
    left = store / "000099.npz.0123456789abcdef.partial"
    left.write_bytes(b"half a record of a killed evaluation")
    evaluate(store)
    assert all((store / name).read_text() == "mine" for name in others)
    assert not left.exists()


def test_files_of_browsers_do_not_count(tmp_path, wanted):
    for name in (".DS_Store", "Thumbs.db", ".gitkeep"):
        (tmp_path / name).write_text("")
    np.testing.assert_array_equal(evaluate(tmp_path).robust, wanted.robust)


def test_records_of_another_evaluation_are_not_counted(store, tmp_path, wanted):
    flipped = IMAGES[:, ::-1].copy()
    evaluate(tmp_path / "other", images=flipped)
    copied = records(tmp_path / "other")
    for path in copied:
        (store / path.name).write_bytes(path.read_bytes())
    check_recomputed(store, wanted, len(copied))


def test_a_record_copied_over_another_is_not_counted_twice(store, wanted):
    first, second = records(store)[:2]
    second.write_bytes(first.read_bytes())
    check_recomputed(store, wanted, 1)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "compressed"])
def test_damaged_records_are_computed_again(store, wanted, damage):
    path = records(store)[-1]
    data = path.read_bytes()
    if damage == "compressed":
        with zipfile.ZipFile(path) as old:
            members = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name, content in members.items():
                new.writestr(name, content)
    else:
        middle = len(data) // 2
        changed = bytes([data[middle] ^ 4])
        path.write_bytes({
            "cut": data[:middle],
            "flipped": data[:middle] + changed + data[middle + 1 :],
            "empty": b"",
            "text": b"not a record",
        }[damage])  # fmt: skip
    check_recomputed(store, wanted, 1)


def test_every_flipped_byte_of_a_record_is_noticed(tmp_path):
    folder = tmp_path / "store"
    with Store(folder) as kept:
        kept.open({"eps": 1}, np.zeros((1, 2)))
        kept.add(ids=np.arange(3))
    path = records(folder)[0]
    data = path.read_bytes()
    noticed = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with Store(folder) as kept, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept.open({"eps": 1}, np.zeros((1, 2)))
            # What zip files say twice, or not at all, may change without changing the content.
            assert not kept.records or kept.records[0]["ids"].tolist() == [0, 1, 2]
            noticed += not kept.records
    assert noticed > len(data) // 3


def test_a_gap_in_the_numbers_is_filled(store, wanted):
    records(store)[0].unlink()
    assert evaluate(store).evaluations == wanted.evaluations


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"format": 2}', "\x00\x01", "null"])
def test_a_damaged_manifest_is_one_line_that_names_it(store, content):
    (store / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .*; restore it") as caught:
        evaluate(store)
    assert "\n" not in str(caught.value)
    assert records(store)


def test_records_without_a_manifest_are_refused(store):
    (store / "manifest.json").unlink()
    with pytest.raises(ValueError, match="records without manifest.json"):
        evaluate(store)
    assert records(store)


def test_a_store_of_an_older_version_is_refused(store):
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    with pytest.raises(ValueError, match="another version of jaxadv; pass another folder"):
        evaluate(store)


def test_a_store_in_use_is_refused(tmp_path):
    with Store(tmp_path), pytest.raises(ValueError, match="in use by another evaluation"):
        evaluate(tmp_path)
    evaluate(tmp_path)


def test_threads_on_one_store_agree_or_are_refused(tmp_path, wanted):
    outcomes = []

    def run():
        try:
            outcomes.append(evaluate(tmp_path / "store").robust.tolist())
        except ValueError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = [outcome for outcome in outcomes if isinstance(outcome, list)]
    assert results and all(outcome == wanted.robust.tolist() for outcome in results)
    assert all("in use" in outcome for outcome in outcomes if isinstance(outcome, str))


def test_the_lock_goes_with_its_process(tmp_path):
    code = (
        "import sys, time; from jaxadv.attacks._autoattack.store import Store\n"
        f"store = Store({str(tmp_path)!r}); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="in use"):
            Store(tmp_path)
        holder.kill()
    Store(tmp_path).close()


def test_a_folder_that_cannot_be_one_is_refused_before_the_model_runs(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="pass another folder"):
            evaluate(folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    evaluate("~/store")
    assert (tmp_path / "store" / "manifest.json").exists()
    evaluate(None).save("~/result.npz")
    assert AutoAttackResult.load("~/result.npz").robust.shape == (40,)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"[]"])
def test_a_damaged_result_is_one_line_that_names_it(tmp_path, content):
    (tmp_path / "result.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"result\.npz is not an AutoAttack result or is dam"):
        AutoAttackResult.load(tmp_path / "result.npz")
    np.savez(tmp_path / "other.npz", x=np.arange(3))
    with pytest.raises(ValueError, match=r"other\.npz is not an AutoAttack result"):
        AutoAttackResult.load(tmp_path / "other.npz")
