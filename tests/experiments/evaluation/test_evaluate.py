"""Evaluation of a checkpoint: the table, the JSON, the options and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import evaluate as entry
from experiments.evaluation import evaluate
from experiments.run import accuracy
from experiments.run.checkpoints import CheckpointError
from experiments.run.task import load_task
from jaxadv.training import Predictions
from tests.helpers.tiny_runs import METHODS, python


def evaluated(workdir, **options):
    return evaluate.evaluate(workdir, verbose=False, **options)


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of a finished run, to be damaged."""
    shutil.copytree(finished("at").directory.path, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("checkpoint", ["selected", "last"])
def test_it_agrees_with_the_report_of_the_run(method, checkpoint, finished):
    done = finished(method)
    found = evaluated(done.directory.path, checkpoint=checkpoint)
    reported = done.report["test"][checkpoint]
    assert {name: found[name] for name in reported} == reported
    assert found["checkpoint"] == checkpoint and found["evaluated_on"] == "test"
    assert found["attack"] == {
        "name": "pgd",
        "norm": "linf",
        "eps": 0.05,
        "step_size": 0.02,
        "num_steps": 5,
        "num_restarts": 1,
    }
    json.dumps(found)


@pytest.mark.parametrize("images", ["test", "selection", "train"])
def test_classes_add_up(images, finished):
    done = finished("at")
    found = evaluated(done.directory.path, images=images)
    labels = getattr(load_task(done.config), images).labels
    classes = found["classes"]
    assert [row["images"] for row in classes] == np.bincount(labels, minlength=10).tolist()
    assert found["images"] == len(labels)
    for name in ("clean", "robust"):
        correct = sum(row["images"] * (row[name] or 0) / 100 for row in classes)
        assert found[name] == pytest.approx(100 * correct / len(labels))
    assert all(row["robust"] <= row["clean"] for row in classes if row["images"])


@pytest.mark.parametrize("batch_size", [7, 50, 1000])
def test_the_batch_size_changes_nothing(batch_size, finished):
    done = finished("at")
    found = evaluated(done.directory.path, batch_size=batch_size)
    reported = done.report["test"]["selected"]
    assert {name: found[name] for name in reported} == reported


def test_options_override_the_run(finished):
    path = finished("at").directory.path
    robust = lambda **options: evaluated(path, **options)["robust"]
    whole = evaluated(path)
    assert robust(eps=0.0) == whole["clean"] == evaluated(path, eps=0.0)["clean"]
    assert robust(eps=0.3, step_size=0.1, num_steps=20) < 5
    assert robust(num_steps=50, num_restarts=3) <= whole["robust"]
    weak = evaluated(path, num_steps=0, seed=1)
    assert weak["robust"] >= whole["robust"] and weak["attack"]["num_steps"] == 0
    # Another norm brings its own radius.
    l2 = evaluated(path, norm="l2", eps=0.5, step_size=0.2)
    assert l2["attack"]["norm"] == "l2" and l2["robust"] < l2["clean"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(norm="l2"), "norm='l2' differs from the run's .'linf'.*give --eps and --step-size"),
        (dict(norm="l2", eps=0.5), "give --eps and --step-size"),
        (dict(norm="linfty", eps=0.1, step_size=0.1), "norm='linfty' .*did you mean 'linf'"),
        (dict(eps=-0.1), "eps=-0.1 must be a finite number >= 0"),
        (dict(eps=8.0), "eps=8.0 exceeds 1, .*write 8/255"),
        (dict(norm="l2", eps=9.0, step_size=1.0), "eps=9.0 exceeds 8"),
        (dict(step_size=-1.0), "step_size=-1.0 must be"),
        (dict(num_steps=-1), "num_steps=-1 must be an integer >= 0"),
        (dict(num_restarts=0), "num_restarts=0 must be an integer >= 1"),
        (dict(batch_size=0), "batch_size=0 must be an integer >= 1"),
        (dict(checkpoint="best"), "checkpoint='best' is not one of 'selected', 'last'"),
        (dict(images="validation"), "images='validation' is not one of 'test', 'selection'"),
    ],
)
def test_options_that_make_no_sense(options, message, finished):
    with pytest.raises(ValueError, match=message):
        evaluated(finished("at").directory.path, **options)


def test_a_folder_that_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match="is not a run directory .*; train first"):
            evaluated(path)


def test_a_run_without_a_checkpoint(workdir):
    (workdir / "selected.ckpt").unlink()
    with pytest.raises(CheckpointError, match="selected.ckpt: no such checkpoint; train first"):
        evaluated(workdir)
    assert evaluated(workdir, checkpoint="last")["images"] == 50


def test_a_torn_checkpoint(workdir):
    data = (workdir / "selected.ckpt").read_bytes()
    (workdir / "selected.ckpt").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="selected.ckpt: is truncated or damaged"):
        evaluated(workdir)


def test_a_checkpoint_of_another_architecture(workdir):
    config = json.loads((workdir / "config.json").read_text())
    config["width"] = 17
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"does not match this model; .*float32\[16\].*\[17\]"
    ):
        evaluated(workdir)
    config["model"], config["width"] = "small_convnet", None
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not match this model; .*has nothing|the model"):
        evaluated(workdir)


# The command


def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, arguments)])
    monkeypatch.setattr("experiments.run.environment.configure", lambda: None)
    entry.main()


def test_the_command_prints_a_table_and_writes_json(workdir, monkeypatch, capsys):
    command(monkeypatch, f"--workdir={workdir}", "--eps=8/255", "--step-size=2/255")
    report = json.loads((workdir / "evaluation-selected-test.json").read_text())
    assert report["attack"]["eps"] == 8 / 255 and report["attack"]["step_size"] == 2 / 255
    lines = capsys.readouterr().out.splitlines()
    place = "on 50 test images of digits, at, scale smoke"
    assert lines[0] == f"Accuracy in % and its 95 % interval {place}"
    assert lines[1] == "PGD-5: linf, eps 0.031373, step 0.0078431, float32"
    table = {line.split()[0]: line.split()[1:] for line in lines if line[:1].isalnum()}
    rows = [("all", report), *((row["class"], row) for row in report["classes"])]
    for name, row in rows:
        assert table[name] == [
            str(row["images"]),
            *(
                word
                for n in ("clean", "robust")
                for word in (accuracy.with_interval(row[n], row["images"]) or "-").split()
            ),
        ]
    assert lines[-1] == f"written to {workdir / 'evaluation-selected-test.json'}"


def test_the_command_writes_where_it_is_told(workdir, tmp_path, monkeypatch, capsys):
    command(monkeypatch, "--workdir", workdir, "--output", tmp_path / "a.json", "--num-steps", 0,
            "--log=csv")  # fmt: skip
    assert json.loads((tmp_path / "a.json").read_text())["attack"]["num_steps"] == 0
    files = capsys.readouterr().out.splitlines()[-1].removeprefix("written to ").split(", ")
    assert files == [str(tmp_path / "a.json"), str(tmp_path / "a.csv")]
    assert all(Path(file).is_file() for file in files)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eps=8/0"], "--eps='8/0' is not a number, or a fraction such as 8/255"),
        (["--eps=big"], "--eps='big' is not a number, or a fraction such as 8/255"),
        (["--norm=l3"], "--norm='l3' is not one of linf, l2, l1"),
        (["--epsilon=1"], "unknown option --epsilon"),
        (["--eps=2"], "error: eps=2.0 exceeds 1"),
        (["--workdir=nothing"], "is not a run directory"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message, workdir, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        command(monkeypatch, f"--workdir={workdir}", *arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_the_module_is_a_command(tmp_path):
    done = python("-m", "experiments.evaluate", f"--workdir={tmp_path}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path} is not a run directory")
    assert len(done.stderr.splitlines()) == 1


# The arithmetic


def test_summaries_by_hand():
    predictions = Predictions(np.array([0, 1, 1, 0]), np.array([1, 1, 0, 0]))
    labels = np.array([0, 1, 1, 1])
    summary = accuracy.summarize(predictions, labels, ("a", "b", "c"))
    assert (summary["clean"], summary["robust"], summary["images"]) == (75.0, 25.0, 4)
    a, b, c = summary["classes"]
    counts = lambda row: {k: v for k, v in row.items() if not k.endswith("_interval")}
    assert counts(a) == {"class": "a", "images": 1, "clean": 100.0, "robust": 0.0}
    assert counts(b) == {"class": "b", "images": 3, "clean": 100 * (2 / 3), "robust": 100 * (1 / 3)}
    assert counts(c) == {"class": "c", "images": 0, "clean": None, "robust": None}
    for row, ends in ((summary, (30.06, 95.44)), (b, (20.77, 93.85))):  # Wilson's formula by hand
        np.testing.assert_allclose(row["clean_interval"], ends, atol=0.01)
    assert (c["clean_interval"], c["robust_interval"]) == (None, None)
    table = accuracy.format_table({"one": summary, "two": summary}, "PGD-20")
    assert table.splitlines()[-1].split() == ["c", "0", "-", "-", "-", "-"]
    assert len({len(line) for line in table.splitlines()[1:]}) == 1


def test_batches_are_put_together_in_order():
    """Each image once, under its own index, whatever the padding of the last batch."""

    def predict(params, batch_stats, key, images, labels, indices):
        assert len(images) == 4
        return Predictions(images[:, 0, 0, 0] * 1, indices)

    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    found = accuracy.predict_all(
        predict, None, None, None, images, np.zeros(10, np.int32), batch_size=4
    )
    assert found.clean.tolist() == found.adversarial.tolist() == list(range(10))
