"""AutoAttack in shards from the command line: what is written, what is merged, what is refused."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import evaluate as entry
from experiments.evaluation import shards
from experiments.evaluation.evaluate import evaluate
from jaxadv.attacks import AutoAttackResult

STRONG = dict(attack="autoattack", eps=0.3, number=20, verbose=False)


@pytest.mark.slow
def test_shards_and_their_merge_report_what_one_process_does(finished, tmp_path):
    workdir = finished("at").directory.path
    path = tmp_path / "parts.json"
    for index in range(2):
        part = evaluate(workdir, **STRONG, save=path, shard=(index, 2))
        assert part["images"] == 10 and part["files"] == [str(tmp_path / "parts.progress")]
    assert [file.name for file in tmp_path.iterdir()] == ["parts.progress"]
    merged = evaluate(workdir, **STRONG, save=path)
    whole = evaluate(workdir, **STRONG, save=tmp_path / "whole.json")
    different = {name for name in whole if merged[name] != whole[name]}
    assert different <= {"seconds", "files", "environment"}
    assert json.loads(path.read_text())["robust"] == whole["robust"]


def test_the_command_line(finished, tmp_path, monkeypatch, capsys):
    workdir, path = finished("at").directory.path, tmp_path / "found.json"
    words = ["evaluate", f"--workdir={workdir}", "--attack=autoattack", "--eps=0.3", "--number=4"]
    monkeypatch.setattr(sys, "argv", [*words, f"--output={path}", "--shard=1/2"])
    entry.main()
    said = capsys.readouterr().out
    assert "on 2 test images" in said and "run this without --shard to merge" in said
    assert (tmp_path / "found.progress" / "shard-1-of-2").is_dir() and not path.exists()


@pytest.mark.parametrize(
    ("word", "shard"), [("0/4", (0, 4)), ("3/4", (3, 4)), ("auto", "auto")]
)  # fmt: skip
def test_words_for_shards(word, shard):
    assert shards.parse(word) == shard


@pytest.mark.parametrize("word", ["4/4", "-1/4", "1", "1/", "a/b", "0/0", "", "0.5/2", "1/2/3"])
def test_words_that_are_no_shards(word):
    with pytest.raises(ValueError):
        shards.parse(word)


def test_a_shard_is_of_autoattack_and_kept(tmp_path):
    with pytest.raises(ValueError, match="shard applies only to attack='autoattack'"):
        evaluate(tmp_path, shard=(0, 2), save=True)
    with pytest.raises(ValueError, match="precision applies only to attack='autoattack'"):
        evaluate(tmp_path, precision="high")
    with pytest.raises(ValueError, match=r"shard=\(0, 2\) needs save"):
        evaluate(tmp_path, attack="autoattack", shard=(0, 2))


@pytest.mark.parametrize("index", [0, 1])
def test_processes_under_a_launcher_take_a_shard_each_and_the_first_merges(monkeypatch, index):
    events = []

    def run(shard, verbose):
        events.append((shard, verbose))
        return {"shard": shard}

    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(
        shards.multihost_utils, "sync_global_devices", lambda _: events.append("all are there")
    )
    report, part = shards.run(run, "auto")
    assert part is None
    mine = [((index, 3), index == 0), "all are there"]
    if index == 0:
        assert report == {"shard": None} and events == [*mine, (None, True)]
    else:
        assert report is None and events == mine


def test_one_process_evaluates_everything():
    run = lambda shard, verbose: {"shard": shard}
    assert shards.run(run, "auto") == ({"shard": None}, None)
    assert shards.run(run, None) == ({"shard": None}, None)
    assert shards.run(run, (1, 2)) == ({"shard": (1, 2)}, (1, 2))


PROGRAM = """
import sys, jax, numpy as np
index, port, store, output = int(sys.argv[1]), *sys.argv[2:]
if index >= 0:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
from experiments.evaluation import shards
from jaxadv.attacks import autoattack
images = np.random.default_rng(0).uniform(size=(40, 4, 4, 1)).astype(np.float32)
weights = np.random.default_rng(1).normal(size=(16, 5)).astype(np.float32)
model = lambda x: x.reshape(len(x), -1) @ weights
labels = np.asarray(model(images).argmax(1))
def run(shard, verbose):
    return autoattack(
        0, model, images, labels, eps=0.2, version="custom", attacks=["apgd-ce"], num_steps=5,
        store=store, shard=shard, progress=False,
    )
found, _ = shards.run(run, "auto")
assert (found is None) == (index == 1)
if found is not None:
    found.save(output)
"""


@pytest.mark.slow
def test_two_processes_of_a_launcher(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = pathlib.Path(__file__).parents[3]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}

    def start(index, name):
        words = [str(index), str(port), str(tmp_path / f"{name}-store"), str(tmp_path / name)]
        return subprocess.Popen([sys.executable, "-c", PROGRAM, *words], env=environment)

    both = [start(0, "both.npz"), start(1, "both.npz")]
    assert [process.wait(timeout=400) for process in both] == [0, 0]
    assert start(-1, "alone.npz").wait(timeout=400) == 0
    both, alone = (AutoAttackResult.load(tmp_path / name) for name in ("both.npz", "alone.npz"))
    np.testing.assert_array_equal(both.images, alone.images)
    np.testing.assert_array_equal(both.broken_by, alone.broken_by)
    assert both.evaluations == alone.evaluations and 0 < both.robust.sum() < 40
    assert (tmp_path / "both.npz-store" / "shard-1-of-2").is_dir()
