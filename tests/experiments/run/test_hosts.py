"""Runs in several processes on this machine: the bits of one process with as many devices."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments.run import accuracy, hosts, signals
from experiments.run.directory import RunDirectory
from tests.helpers.hosts_run import config
from tests.helpers.tiny_runs import (
    ROOT,
    Finished,
    Stopped,
    assert_same_run,
    parts,
    python,
    run,
    stop_after,
    tiny,
)

METHODS = ("at", "at_ensgd", "awp", "trades")


def launch(workdir, methods, *more, processes=2, **environment):
    command = [sys.executable, "-m", "experiments.launch", f"--processes={processes}", "--"]
    command += ["python", "-m", "tests.helpers.hosts_run", str(workdir), ",".join(methods), *more]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


@pytest.fixture
def one_process(norm_model, tmp_path):
    """A run of this process, with its two devices."""

    def finished(method):
        path = tmp_path / "one" / method
        return Finished(config(method), RunDirectory(path), run(config(method), path))

    return finished


def test_two_processes_give_the_bits_of_one(one_process, tmp_path):
    done = launch(tmp_path, ["at"])
    assert done.returncode == 0, done.stdout
    assert "2 devices of 2 processes with 12 images each" in done.stdout
    assert_same_run(RunDirectory(tmp_path / "at"), one_process("at"))
    assert not (tmp_path / "elsewhere").exists()
    # Process 1 says nothing but what its libraries say.
    said = [line for line in done.stdout.splitlines() if line.startswith("[1] ")]
    assert all("[Gloo]" in line for line in said), said


@pytest.mark.slow
def test_every_method_gives_the_bits_of_one_process(one_process, tmp_path):
    done = launch(tmp_path, METHODS[1:])
    assert done.returncode == 0, done.stdout
    for method in METHODS[1:]:
        assert_same_run(RunDirectory(tmp_path / method), one_process(method))


@pytest.mark.slow
def test_statistics_of_each_device_give_the_bits_of_one_process(one_process, tmp_path, monkeypatch):
    monkeypatch.setenv("SYNC", "false")
    done = launch(tmp_path, ["at", "awp"])
    assert done.returncode == 0, done.stdout
    for method in ("at", "awp"):
        assert_same_run(RunDirectory(tmp_path / method), one_process(method))


@pytest.mark.slow
def test_two_processes_that_stream_their_part_give_the_bits_of_one(one_process, tmp_path):
    done = launch(tmp_path, ["at_ensgd"], STREAM="true")
    assert done.returncode == 0 and "are streamed from the host" in done.stdout, done.stdout
    assert_same_run(RunDirectory(tmp_path / "at_ensgd"), one_process("at_ensgd"))


@pytest.mark.slow
def test_diagnostics_are_those_of_one_process(one_process, tmp_path, monkeypatch):
    monkeypatch.setenv("DIAGNOSTICS", "5")
    done = launch(tmp_path, ["at"])
    assert done.returncode == 0, done.stdout
    expected = [d for row in one_process("at").directory.metrics() for d in row["diagnostics"]]
    found = [d for row in RunDirectory(tmp_path / "at").metrics() for d in row["diagnostics"]]
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == {name: pytest.approx(value, rel=1e-3) for name, value in theirs.items()}


@pytest.mark.slow
def test_four_processes_agree_with_four_devices(norm_model, tmp_path, monkeypatch):
    # Gloo adds the terms of an all-reduce of four in another order than one process does.
    monkeypatch.setenv("EPOCHS", "1")
    done = launch(tmp_path / "four", METHODS, processes=4)
    assert done.returncode == 0, done.stdout
    program = (
        "import sys; from pathlib import Path; from jaxadv.models import MODELS;"
        "from tests.helpers.hosts_run import config; from tests.helpers.tiny_runs import *;"
        "MODELS['tiny_norm'] = tiny_norm; path = Path(sys.argv[1]);"
        "[run(config(m), path / m) for m in sys.argv[2].split(',')]"
    )
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")
    python("-c", program, str(tmp_path / "one"), ",".join(METHODS), cwd=ROOT, check=True)
    for method in METHODS:
        found, expected = (
            jax.tree.leaves(parts(tmp_path / where / method / "last.ckpt", config(method)))
            for where in ("four", "one")
        )
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_signal_during_an_evaluation_saves_the_epoch(finished, tmp_path, monkeypatch):
    real = accuracy.predict_all

    def interrupted(*arguments, **options):
        monkeypatch.setattr(hosts, "stopping", lambda: True)
        return real(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(signals.Stopped):
        patch.setattr(accuracy, "predict_all", interrupted)
        run(tiny(), tmp_path)
    monkeypatch.undo()
    assert int(parts(tmp_path / "last.ckpt", tiny(), ("step",))[0]) == 5
    run(tiny(), tmp_path)
    assert_same_run(RunDirectory(tmp_path), finished("at"))


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "index"), [(1, 0), (2, 0), (2, 1)])
def test_a_signal_to_one_process_stops_all_and_one_process_goes_on(
    processes, index, one_process, tmp_path
):
    done = launch(tmp_path, ["at_ensgd"], f"SIGINT@{index}:2", processes=processes,
                  JAX_NUM_CPU_DEVICES=str(2 // processes))  # fmt: skip
    assert done.returncode == 128 + signal.SIGTERM, done.stdout
    # After an update, or during the evaluation of an epoch, whichever all processes reach first.
    saved = ("interrupted and saved", "saved the state before the running call")
    assert sum(map(done.stdout.count, saved)) == 1, done.stdout
    directory = RunDirectory(tmp_path / "at_ensgd")
    assert directory.last.is_file() and not directory.report_file.exists()
    run(config("at_ensgd"), directory.path)
    assert_same_run(directory, one_process("at_ensgd"))


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two(norm_model, one_process, tmp_path, monkeypatch):
    expected = one_process("at")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 2)
        run(config("at"), tmp_path / "at")
    done = launch(tmp_path, ["at"])
    assert done.returncode == 0 and "resuming at minibatch" in done.stdout
    assert "processes 1 -> 2" in done.stdout
    assert_same_run(RunDirectory(tmp_path / "at"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_resumes(index, one_process, tmp_path):
    began = time.monotonic()
    done = launch(tmp_path, ["at"], f"SIGKILL@{index}:4")
    # The others may notice before the launcher does.
    assert done.returncode in (1, 128 + signal.SIGKILL) and time.monotonic() - began < 300
    assert "lost another process" in done.stdout or "heartbeat" in done.stdout, done.stdout
    assert not RunDirectory(tmp_path / "at").report_file.exists()
    assert launch(tmp_path, ["at"]).returncode == 0
    assert_same_run(RunDirectory(tmp_path / "at"), one_process("at"))


@pytest.mark.slow
def test_a_slow_starter_is_waited_for(tmp_path):
    done = launch(tmp_path, ["at"], "SLEEP@1:20")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_devices_that_do_not_divide_a_batch_and_other_configurations_are_refused(tmp_path):
    done = launch(tmp_path, ["at"], processes=5)
    assert done.returncode == 2
    assert "batch_size=24 cannot be divided among 5 devices" in done.stdout
    assert "use --config.batch_size=20 or 25" in done.stdout
    assert not (tmp_path / "at").exists()


def under_open_mpi(port, index):
    """What Open MPI tells process ``index`` of two on this machine."""
    return {
        "OMPI_MCA_orte_hnp_uri": f"1.0;tcp://127.0.0.1:{port}",
        "JAX_COORDINATOR_PORT": str(port),
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
    }


def under_slurm(port, index):
    """What SLURM tells process ``index`` of two on this machine."""
    return {
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "JAX_COORDINATOR_PORT": str(port),
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [under_open_mpi, under_slurm])
def test_auto_finds_the_processes_of_a_launcher(launcher, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "experiments.digits", "--config=configs/at.py:smoke"]
    command += ["--hosts=auto", f"--workdir={tmp_path / 'run'}"]
    running = [
        subprocess.Popen(command, cwd=ROOT, env=os.environ | launcher(port, index),
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for index in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert "2 devices of 2 processes with 16 images each" in said[0]


@pytest.mark.parametrize("text", ["", "1", "host,2,0", "host:1,2", "host:1,2,2", "host:1,0,0"])
def test_misspelled_hosts_are_refused(text):
    with pytest.raises(ValueError, match=r"--hosts=.* ADDRESS:PORT,NUMBER,INDEX"):
        hosts.check(text)


def test_one_process_is_the_plain_thing():
    assert hosts.is_writer() and not hosts.stopping() and not hosts.stops_together()
    assert hosts.from_writer(lambda: b"abc") == b"abc" and hosts.from_writer(lambda: None) is None
    assert hosts.fetch({"a": jax.numpy.arange(3)})["a"].tolist() == [0, 1, 2]
    hosts.check_equal("anything", "x")
    with pytest.raises(ZeroDivisionError):
        hosts.from_writer(lambda: json.dumps(1 // 0).encode())


def test_without_a_launcher_auto_says_so():
    done = python("-m", "experiments.digits", "--hosts=auto", cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("error: --hosts=auto found no launcher")
    assert len(done.stderr.strip().splitlines()) == 1
