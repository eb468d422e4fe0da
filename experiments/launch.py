"""Runs a command in several processes on this machine, to try a run over hosts without any.

    python -m experiments.launch --processes=2 -- python -m experiments.digits

Adds ``--hosts=127.0.0.1:PORT,NUMBER,INDEX`` to the command of each process and prefixes every line
of output with the process's index. On a CPU each process gets one device, unless
``JAX_NUM_CPU_DEVICES`` is set. If a process fails, the others are stopped and the exit status is
that of the process that failed first; Ctrl-C and SIGTERM reach all of them.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

from .cli.options import Parser

GRACE = 30.0  # seconds that the others get to stop when one process has failed


def main() -> None:
    """The command line."""
    options = _parser().parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        _parser().error("give the command after --, for example -- python -m experiments.digits")
    raise SystemExit(launch(command, options.processes))


def launch(command: list[str], number: int) -> int:
    """Runs ``command`` in ``number`` connected processes and returns their exit status."""
    environment = {"JAX_NUM_CPU_DEVICES": "1"} | os.environ | {"PYTHONUNBUFFERED": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    if command[0] == "python":
        command = [sys.executable, *command[1:]]
    running: list[subprocess.Popen] = []
    forward = lambda signum, _: [process.send_signal(signum) for process in running]
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, forward)
    for index in range(number):
        running.append(
            subprocess.Popen(
                [*command, f"--hosts={address},{number},{index}"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches them once, through this process
            )
        )
    printers = [
        threading.Thread(target=_print, args=(f"[{index}] ", process.stdout))
        for index, process in enumerate(running)
    ]
    for printer in printers:
        printer.start()
    status = _wait(running)
    for printer in printers:
        printer.join()
    return status


def _wait(running: list[subprocess.Popen]) -> int:
    """Waits for all processes; the status of the first that failed, otherwise 0."""
    status, deadline = 0, float("inf")
    while any(process.poll() is None for process in running):
        failed = [process.returncode for process in running if process.returncode]
        if failed and not status:
            status, deadline = failed[0], time.monotonic() + GRACE
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
        time.sleep(0.1)
    failed = [process.returncode for process in running if process.returncode]
    status = status or (failed[0] if failed else 0)
    return 128 - status if status < 0 else status


def _print(prefix: str, stream: IO[bytes]) -> None:
    for line in stream:
        # One write a line, so that lines of different processes do not mix.
        sys.stdout.write(prefix + line.decode(errors="replace"))
        sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m experiments.launch",
        description="Runs a command in several connected processes on this machine.",
    )
    parser.add_argument("--processes", type=int, required=True, help="number of processes")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command, after --")
    return parser


if __name__ == "__main__":
    main()
