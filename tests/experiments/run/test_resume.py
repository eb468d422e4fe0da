"""A run that was killed or interrupted ends with the bits of one that was not."""

import signal
import sys
import time

import pytest

from experiments.cli import process
from experiments.run import checkpoints, loop, train
from experiments.run.directory import RunDirectory
from jaxadv import training
from tests.helpers.tiny_runs import Stopped, assert_same_run, parts, python, stop_after, tiny

DRIVER = "tests.helpers.killed_run"


def start(method, workdir, name, point, count):
    return python("-m", DRIVER, method, str(workdir), name, point, str(count), cwd=workdir.parent)


# A run writes config.json, environment.json, then last.ckpt after every call, with selected.ckpt
# and metrics.jsonl at the end of an epoch.
KILLS = {
    "at": [("write", 7)],
    "at_ensgd": [("replace", 6)],
    "at, often": [("update", 2), ("write", 7)],
    "at_ensgd, often": [("replace", 6), ("write", 4)],
}


@pytest.mark.parametrize(
    "kills", [pytest.param(n, marks=pytest.mark.slow) if "often" in n else n for n in KILLS]
)
def test_sigkill_and_resume_give_the_same_parameters(kills, finished, tmp_path, capsys):
    method = kills.split(",")[0]
    expected = finished(method)
    workdir = tmp_path / "run"
    for point, count in KILLS[kills]:
        done = start(method, workdir, "SIGKILL", point, count)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not RunDirectory(workdir).report_file.exists()
    train.train_and_evaluate(tiny(method), workdir)
    assert "resuming at minibatch" in capsys.readouterr().out
    assert_same_run(RunDirectory(workdir), expected)
    assert len(RunDirectory(workdir).environment()) == len(KILLS[kills]) + 1


def test_ctrl_c_leaves_a_resumable_run_and_exits_with_130(finished, tmp_path):
    workdir = tmp_path / "run"
    done = start("at", workdir, "SIGINT", "update", 2)
    assert done.returncode == 130
    assert "interrupted and saved; run the same command to resume" in done.stdout
    assert "Traceback" not in done.stderr and "error" not in done.stderr
    step = int(parts(workdir / "last.ckpt", tiny(), ("step",))[0])
    assert 0 < step < 15 and step % 5 != 0  # inside an epoch
    train.train_and_evaluate(tiny(), workdir, verbose=False)
    assert_same_run(RunDirectory(workdir), finished("at"))


@pytest.mark.parametrize(
    "method", ["at", "at_ensgd", pytest.param("at_2nd_ensgd", marks=pytest.mark.slow)]
)
def test_stopping_at_every_call_changes_nothing(method, finished, tmp_path, monkeypatch):
    """One compiled call, a checkpoint and a new process's worth of state each time."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    monkeypatch.setattr(loop, "CALL_MINIBATCHES", {"cpu": 3})
    for _ in range(20):
        with monkeypatch.context() as patch:
            stop_after(patch, 2)
            try:
                train.train_and_evaluate(tiny(method), tmp_path, verbose=False)
                break
            except Stopped:
                continue
    assert len(RunDirectory(tmp_path).environment()) >= 3
    assert_same_run(RunDirectory(tmp_path), finished(method))


def test_a_full_disk_in_the_middle_loses_nothing(finished, tmp_path, monkeypatch):
    save, calls = checkpoints.save, []

    def fails(path, tree, record):
        calls.append(path.name)
        if calls.count("last.ckpt") == 2:
            raise OSError(28, "can't write (No space left on device)", str(path))
        save(path, tree, record)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", fails)
        with pytest.raises(OSError, match="No space left"):
            train.train_and_evaluate(tiny(), tmp_path, verbose=False)
    assert [row["epoch"] for row in RunDirectory(tmp_path).metrics()] == [1]
    train.train_and_evaluate(tiny(), tmp_path, verbose=False)
    assert_same_run(RunDirectory(tmp_path), finished("at"))


def test_a_torn_checkpoint_is_refused_and_left_alone(finished, tmp_path):
    good = finished("at").directory
    directory = RunDirectory(tmp_path)
    directory.open(tiny(), needed_bytes=1)
    data = good.last.read_bytes()
    directory.last.write_bytes(data[:-100])
    with pytest.raises(
        checkpoints.CheckpointError, match="last.ckpt: is truncated .*delete it to start"
    ):
        train.train_and_evaluate(tiny(), tmp_path, verbose=False)
    assert directory.last.read_bytes() == data[:-100]
    assert directory.report() is None


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    def advance(*_):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.3)  # signals of one kind that come together count once
        raise AssertionError("the second one did not stop it")

    monkeypatch.setattr(training.Program, "advance", advance)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as exit_:
        monkeypatch.setattr("experiments.run.environment.configure", lambda: None)
        monkeypatch.setattr("os._exit", sys.exit)
        process.execute(lambda: train.train_and_evaluate(tiny(), tmp_path, verbose=False))
    assert exit_.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    config = tiny()
    directory = RunDirectory(tmp_path)
    with directory.lock(), pytest.raises(ValueError, match="another process is training there"):
        train.train_and_evaluate(config, tmp_path, verbose=False)
    train.train_and_evaluate(config, tmp_path, verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["at", "at_ensgd"])
def test_without_the_compilation_cache_the_bits_are_the_same(
    method, finished, tmp_path, monkeypatch
):
    """The runs of this session read and fill a cache; a process that has none compiles afresh."""
    expected = finished(method)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    done = start(method, tmp_path / "run", "SIGTERM", "none", 1)
    assert done.returncode == 0, done.stderr
    assert_same_run(RunDirectory(tmp_path / "run"), expected)
