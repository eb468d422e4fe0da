"""Metrics for other tools: the function that is called, and the files of ``--log``."""

import csv
import sys

import pytest

from experiments.cli import train as command
from experiments.evaluation.evaluate import evaluate
from experiments.run import metrics, train
from tests.helpers.tiny_runs import Stopped, stop_after, tiny


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_training_and_evaluation_call_the_function(tmp_path, monkeypatch):
    rows = []
    config = tiny(num_epochs=3)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            train.train_and_evaluate(config, tmp_path, verbose=False, on_metrics=rows.append)
    report = train.train_and_evaluate(config, tmp_path, verbose=False, on_metrics=rows.append)
    *epochs, last = rows
    assert [row["epoch"] for row in epochs] == [1, 2, 3]  # none twice, none lost
    assert {"step", "seconds", "train_loss", "selection_robust"} <= set(epochs[0])
    assert last["step"] == epochs[-1]["step"] == report["minibatch_gradients"]
    assert last["test_last_robust"] == report["test"]["last"]["robust"]
    found = []
    report = evaluate(tmp_path, num_steps=2, verbose=False, on_metrics=found.append)
    assert [(row["clean"], row["robust"]) for row in found] == [(report["clean"], report["robust"])]
    train.train_and_evaluate(config, tmp_path, verbose=False, on_metrics=rows.append)
    assert len(rows) == 4  # the run is finished


def test_csv_of_a_run_from_the_command_line(tmp_path, monkeypatch):
    def run(config, workdir, *, data_dir, on_metrics):
        on_metrics({"epoch": 1, "step": 4, "train_loss": 0.5, "selection_robust": None})
        on_metrics({"step": 4, "test_last_robust": 20.0})

    monkeypatch.setattr(sys, "argv", ["x", f"--workdir={tmp_path / 'run'}", "--log", "csv"])
    command.main("digits", run)
    (row,) = read(tmp_path / "run" / "metrics.csv")
    assert row == {
        "epoch": "1",
        "step": "4",
        "train_loss": "0.5",
        "selection_robust": "",
        "test_last_robust": "20.0",
    }


def test_csv_continues_a_file_and_takes_new_columns(tmp_path):
    for step, row in enumerate([{"a": 1}, {"a": 2, "b": 0.5}, {"b": 3}]):
        with metrics.logs(("csv",), tmp_path / "new" / "m") as write:
            write({"step": step} | row)
    assert [list(row.values()) for row in read(tmp_path / "new" / "m.csv")] == [
        ["0", "1", ""],
        ["1", "2", "0.5"],
        ["2", "", "3"],
    ]


def test_nothing_is_asked_for_and_nothing_is_written(tmp_path):
    with metrics.logs((), tmp_path / "m") as write:
        assert write is None
    with metrics.logs(("csv",), tmp_path / "new" / "m"):
        pass
    assert not list(tmp_path.iterdir())


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    with metrics.logs(metrics.parse("tensorboard"), tmp_path / "m") as write:
        write({"step": 4, "loss": 0.5, "robust": None})
    (file,) = (tmp_path / "m-tensorboard").iterdir()
    data, found = file.read_bytes(), []
    while data:  # records: length, its checksum, an event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + size :]
    assert found == [(4, "loss", 0.5)]


def test_an_adapter_that_is_not_there(monkeypatch):
    with pytest.raises(ValueError, match="log='wandb' is not one of 'csv', 'tensorboard'"):
        metrics.parse("csv,wandb")
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="log='tensorboard' needs tensorboardX; pip install"):
        metrics.parse("csv, tensorboard")


def test_numbers_of_a_report():
    report = {"clean": 90.5, "accuracy": {"apgd-ce": 3}, "checks": [1], "ok": True, "name": "x"}
    assert metrics.numbers(report) == {"clean": 90.5, "accuracy_apgd-ce": 3}
