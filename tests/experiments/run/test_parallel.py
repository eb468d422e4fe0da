"""Work side by side: every result arrives, and failures and signals leave no process behind."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.run.parallel import side_by_side

ROOT = pathlib.Path(__file__).parents[3]


def square(number):
    return number * number, os.getpid()


def fails(number, folder):
    if number == 1:
        raise ValueError("number=1 is refused; pass another")
    (pathlib.Path(folder) / f"began{number}").touch()
    time.sleep(60)


class Odd(Exception):
    """Cannot be read again after pickling."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def odd():
    raise Odd(1, 2)


def dies():
    os._exit(9)


def test_every_call_has_its_result_and_processes_are_used_again():
    found = {}
    side_by_side(square, [(n,) for n in range(5)], 2, lambda place, out: found.update({place: out}))
    assert {place: value for place, (value, _) in found.items()} == {n: n * n for n in range(5)}
    pids = {pid for _, pid in found.values()}
    assert len(pids) <= 2 and os.getpid() not in pids


def test_nothing_to_do():
    found = []
    side_by_side(square, [], 4, lambda place, out: found.append(out))
    assert found == []


@pytest.mark.parametrize(
    ("work", "error", "message"),
    [
        (odd, RuntimeError, "Odd: 1 and 2"),
        (dies, ChildProcessError, "a process ended without a result .* fewer --jobs"),
    ],
)
def test_failures_are_raised_here(work, error, message):
    with pytest.raises(error, match=message) as raised:
        side_by_side(work, [()], 1, print)
    if work is odd:  # where it was raised is not lost
        (note,) = raised.value.__notes__
        assert "in odd" in note and "raise Odd(1, 2)" in note


def test_a_failure_interrupts_the_others(tmp_path):
    began = time.monotonic()
    with pytest.raises(ValueError, match="number=1 is refused"):
        side_by_side(fails, [(0, tmp_path), (1, tmp_path)], 2, print)
    assert time.monotonic() - began < 40  # not the minute that the other one sleeps


PROGRAM = """
import os, time
from experiments.cli import process
from experiments.run.parallel import side_by_side

def work(number):
    try:
        print("began", os.getpid(), flush=True)
        time.sleep(60)
    finally:
        print("saved", os.getpid(), flush=True)

if __name__ == "__main__":
    process.execute(lambda: side_by_side(work, [(0,), (1,), (2,)], 2, print))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_by_all(tmp_path, signum):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    command, env = [sys.executable, str(path)], os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as program:
        assert program.stdout is not None
        pids = [int(program.stdout.readline().split()[1]) for _ in range(2)]
        program.send_signal(signum)
        rest = program.stdout.read()
        assert program.wait() == 128 + signum
    assert sorted(rest.split()) == sorted(["saved", str(pids[0]), "saved", str(pids[1])])
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
