"""What goes wrong round a run: other runs' files, damage, schedulers, impatience."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from experiments.evaluation import subjects
from experiments.run import checkpoints, patience, progress, train
from experiments.run.directory import RunDirectory
from tests.helpers.tiny_runs import ROOT, Stopped, assert_same_run, parts, python, stop_after, tiny

DRIVER = "tests.helpers.killed_run"


def half_done(workdir, monkeypatch, config=None, calls=2):
    """A run that was stopped after its second epoch."""
    monkeypatch.setattr("experiments.run.loop.CALL_MINIBATCHES", {"cpu": 5})
    with monkeypatch.context() as patch:
        stop_after(patch, calls)
        with pytest.raises(Stopped):
            train.train_and_evaluate(config or tiny(), workdir, verbose=False)
    return RunDirectory(workdir)


def test_checkpoints_of_another_run_are_refused(tmp_path, monkeypatch):
    ours = half_done(tmp_path / "ours", monkeypatch)
    theirs = half_done(tmp_path / "theirs", monkeypatch, tiny(seed=1))
    shutil.copy(theirs.last, ours.last)
    before = ours.last.read_bytes()
    with pytest.raises(
        ValueError, match=r"last\.ckpt belongs to a run with a different configuration"
    ):
        train.train_and_evaluate(tiny(), ours.path, verbose=False)
    assert ours.last.read_bytes() == before


def test_checkpoints_of_another_run_are_not_evaluated(tmp_path, monkeypatch, finished):
    ours = RunDirectory(shutil.copytree(finished("at").directory.path, tmp_path / "ours"))
    theirs = half_done(tmp_path / "theirs", monkeypatch, tiny(seed=1))
    for name in ("selected", "last"):
        good = (ours.path / f"{name}.ckpt").read_bytes()
        shutil.copy(theirs.path / f"{name}.ckpt", ours.path)
        with pytest.raises(ValueError, match="belongs to a run with a different configuration"):
            subjects.from_run(ours.path, name, "test")
        (ours.path / f"{name}.ckpt").write_bytes(good)
    record = checkpoints.load_record(ours.selected)
    tree = checkpoints._read(ours.selected)["tree"]
    checkpoints.save(ours.selected, tree, record | {"epoch": record["epoch"] + 1})
    with pytest.raises(ValueError, match=r"is from epoch \d, but last.ckpt records \d; run"):
        subjects.from_run(ours.path, "selected", "test")


def test_an_extended_run_keeps_its_checkpoints_and_no_other_does(tmp_path):
    constant = tiny(lr_drops=())
    longer = tiny(lr_drops=(), num_epochs=4)
    directory = RunDirectory(tmp_path)
    assert directory.digest(constant) == directory.digest(longer)
    assert directory.digest(tiny()) != directory.digest(tiny(num_epochs=4))


def test_a_selected_checkpoint_of_another_run_is_replaced_by_its_copy(
    tmp_path, monkeypatch, finished, capsys
):
    ours = half_done(tmp_path / "ours", monkeypatch)
    theirs = half_done(tmp_path / "theirs", monkeypatch, tiny(seed=1))
    shutil.copy(theirs.selected, ours.selected)
    train.train_and_evaluate(tiny(), ours.path)
    assert "restored selected.ckpt from its copy" in capsys.readouterr().out
    assert_same_run(ours, finished("at"))


@pytest.mark.parametrize("damage", ["torn", "gone", "another epoch"])
def test_a_damaged_selected_checkpoint_is_noticed_at_resume_and_recovered(
    tmp_path, monkeypatch, finished, damage
):
    ours = half_done(tmp_path, monkeypatch)
    if damage == "torn":
        ours.selected.write_bytes(ours.selected.read_bytes()[:-9])
    elif damage == "gone":
        ours.selected.unlink()
    else:
        config = tiny()
        names = ("params", "batch_stats")
        tree = dict(zip(names, parts(ours.selected, config), strict=True))
        record = checkpoints.load_record(ours.selected)
        checkpoints.save(ours.selected, tree, record | {"epoch": 77})
    train.train_and_evaluate(tiny(), tmp_path, verbose=False)
    assert_same_run(ours, finished("at"))


def test_without_a_good_copy_the_advice_loses_nothing(tmp_path, monkeypatch):
    ours = half_done(tmp_path, monkeypatch)
    for path in (ours.selected, ours.selected_copy):
        path.write_bytes(b"gone")
    checkpoints_now = lambda: sorted((p.name, p.read_bytes()) for p in tmp_path.glob("*.ckpt"))
    before = checkpoints_now()
    with pytest.raises(ValueError, match="selected.*restore it from a backup.*nowhere else"):
        train.train_and_evaluate(tiny(), tmp_path, verbose=False)
    assert (
        sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir() if p.suffix == ".ckpt")
        == before
    )


def test_checkpoints_of_earlier_versions_still_resume(tmp_path, monkeypatch, finished):
    ours = half_done(tmp_path, monkeypatch)
    for path, names in ((ours.last, None), (ours.selected, ("params", "batch_stats"))):
        content = checkpoints._read(path)
        record = json.loads(content["record"])
        del record["config"], record["machine"], names
        checkpoints.save(path, content["tree"], record)
    ours.selected_copy.unlink()
    train.train_and_evaluate(tiny(), tmp_path, verbose=False)
    assert_same_run(ours, finished("at"))


def test_a_refused_start_changes_nothing(tmp_path, monkeypatch):
    ours = half_done(tmp_path, monkeypatch)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with ours.lock(), pytest.raises(ValueError, match="another process is training there"):
        train.train_and_evaluate(tiny(), tmp_path, verbose=False)
    with pytest.raises(ValueError, match="a different configuration"):
        train.train_and_evaluate(tiny(seed=3), tmp_path, verbose=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_report_records_its_own_process(tmp_path, monkeypatch):
    ours = half_done(tmp_path, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["finisher.py", "--mine"])
    report = train.train_and_evaluate(tiny(), tmp_path, verbose=False)
    assert "--mine" in report["environment"]["command"]
    starts = ours.environment()
    train.train_and_evaluate(tiny(), tmp_path, verbose=False)  # finished: no start
    assert ours.environment() == starts


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_what_schedulers_send_saves_like_ctrl_c(name, finished, tmp_path):
    workdir = tmp_path / "run"
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # nohup's children ignore hang-ups
    try:
        done = python("-m", DRIVER, "at", str(workdir), name, "update", "2", cwd=tmp_path)
    finally:
        signal.signal(number, before)
    assert done.returncode == 128 + number, done.stderr
    assert "interrupted and saved" in done.stdout and "Traceback" not in done.stderr
    train.train_and_evaluate(tiny(), workdir, verbose=False)
    assert_same_run(RunDirectory(workdir), finished("at"))


LONG = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import sys, time
from tests.helpers.tiny_runs import tiny
from experiments.cli import process
from experiments.run import loop, train
from jaxadv import training

loop.CALL_MINIBATCHES = {"cpu": 5}
real, calls = training.Program.advance, []

def advance(*arguments):
    calls.append(None)
    result = jax.block_until_ready(real(*arguments))
    if len(calls) == int(sys.argv[2]):
        print("computing", flush=True)
        time.sleep(300)
    return result

training.Program.advance = advance
process.execute(lambda: train.train_and_evaluate(tiny(), sys.argv[1]))
"""


def test_a_call_of_many_minutes_is_left_within_seconds(tmp_path, finished):
    """The first call of a process, whose length nobody knows yet."""
    path = [str(ROOT)]
    running = subprocess.Popen(
        [sys.executable, "-c", LONG, str(tmp_path / "run"), "1"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with running:
        assert running.stdout is not None
        for line in running.stdout:
            if "computing" in line:
                break
        running.send_signal(signal.SIGINT)
        started = time.monotonic()
        out, errors = running.communicate(timeout=60)
    assert time.monotonic() - started < 20 and running.returncode == 130, errors
    assert "before the running call, whose work is lost" in out and "Traceback" not in errors
    train.train_and_evaluate(tiny(), tmp_path / "run", verbose=False)
    assert_same_run(RunDirectory(tmp_path / "run"), finished("at"))


def test_a_short_call_is_finished_before_it_stops():
    waiter = patience.Waiter()
    waiter.usual, waiter.signum = 0.5, signal.SIGTERM
    assert waiter.call(lambda: time.sleep(0.5) or 3) == 3
    waiter.usual = 600.0
    started = time.monotonic()
    with pytest.raises(patience.Stopped) as caught:
        waiter.call(lambda: time.sleep(3))
    assert caught.value.computing and time.monotonic() - started < 2
    waiter.close()


def test_more_epochs_go_on_where_they_change_nothing(tmp_path):
    constant = dict(lr_drops=())
    short, long = tiny(num_epochs=2, **constant), tiny(num_epochs=4, **constant)
    train.train_and_evaluate(short, tmp_path / "a", verbose=False)
    train.train_and_evaluate(long, tmp_path / "a", verbose=False)
    train.train_and_evaluate(long, tmp_path / "b", verbose=False)
    extended, straight = RunDirectory(tmp_path / "a"), RunDirectory(tmp_path / "b")
    assert checkpoints._read(extended.last)["tree"].keys()
    for ours, theirs in zip(parts(extended.last, long), parts(straight.last, long), strict=True):
        assert str(ours) == str(theirs)
    assert (tmp_path / "a" / "report-2-epochs.json").is_file()
    assert [row["epoch"] for row in extended.metrics()] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("at", r"cannot be extended: lr_drops=\(0\.4,\) are fractions of the run"),
        ("at_ensgd", "cannot be extended: lr_drops"),
    ],
)
def test_more_epochs_are_refused_where_they_would_change_others(tmp_path, method, message):
    directory = RunDirectory(tmp_path)
    directory.open(tiny(method), needed_bytes=1)
    with pytest.raises(ValueError, match=message):
        train.train_and_evaluate(tiny(method, num_epochs=5), tmp_path, verbose=False)
    with pytest.raises(ValueError, match="cannot be shortened"):
        train.train_and_evaluate(tiny(method, num_epochs=2), tmp_path, verbose=False)


def test_another_machine_is_told(tmp_path, monkeypatch, capsys):
    half_done(tmp_path, monkeypatch)
    from experiments.run import environment

    machine = environment.machine()
    monkeypatch.setattr(environment, "machine", lambda: machine | {"devices": 64})
    train.train_and_evaluate(tiny(), tmp_path)
    said = capsys.readouterr().out
    assert "resuming on a different machine (devices 2 -> 64): the last bits may differ" in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", r"config\.json: is damaged \(no object\)"),
        ("config.json", '{"a":', r"config\.json: is damaged"),
        ("environment.json", '{"a": 1}', r"environment\.json: is damaged \(not a list of starts\)"),
        ("metrics.jsonl", '{"epoch": 1}\n{"epo', r"metrics\.jsonl: is damaged \(line 2\)"),
        ("metrics.jsonl", "3\n", r"metrics\.jsonl: is damaged \(line 1\)"),
        ("report.json", "3", r"report\.json: is damaged"),
    ],
)
def test_damaged_files_of_a_run_are_one_line_that_names_them(tmp_path, name, content, message):
    directory = RunDirectory(tmp_path)
    directory.open(tiny(), needed_bytes=1)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        directory.config(), directory.environment(), directory.metrics(), directory.report()


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    lines = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.Bar(1000, 0, lines.append)
    for _ in range(100):
        now[0] += 1.0
        bar.update(5, "loss 1.000")
    bar.close()
    assert len(lines) == 3 and capsys.readouterr().err == ""
    assert lines[0] == "minibatch 150 of 1,000  loss 1.000  0:02:50 left"
