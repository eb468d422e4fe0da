"""Termination signals: Ctrl-C, and those from schedulers and terminals."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


PATIENCE = 5.0  # seconds that a compiled call may delay the answer to a signal


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by a signal; ends a program like Ctrl-C.

    Attributes:
        signum: the signal.
        computing: whether a compiled call, whose inputs must no longer be used, is still running.
    """

    def __init__(self, signum: int, computing: bool = False):
        super().__init__()
        self.signum, self.computing = signum, computing


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Makes termination signals raise :class:`Stopped` inside, if this is the main thread.

    Python runs handlers between bytecodes, so a compiled call delays them until it returns. If that
    takes more than ``PATIENCE`` seconds, the process exits at once with the signal's status: files
    are renamed into place when complete, so only the work of the running call is lost.
    """
    with handled(_stop), _watched():
        yield


def leave_to_others(signum: int) -> None:
    """Never installs a handler for ``signum``, because something else in this process has one."""
    _left_to_others.add(signum)


@contextlib.contextmanager
def handled(handler) -> Iterator[None]:
    """Installs ``handler(signum, frame)`` for termination signals, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def answer(signum, frame):
        global _answered
        _answered = time.monotonic()
        handler(signum, frame)

    # Under nohup, keep ignoring SIGHUP.
    wanted = [
        number
        for number in ENDING
        if signal.getsignal(number) is not signal.SIG_IGN and number not in _left_to_others
    ]
    before = {number: signal.signal(number, answer) for number in wanted}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Exits if a signal inside isn't answered in time; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # The C handler writes the signal's number here even while the main thread computes.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(reader, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.write(writer, bytes(1))
        watcher.join()
        os.close(reader)
        os.close(writer)


def _watch(reader: int, ended: threading.Event) -> None:
    while True:
        select.select([reader], [], [])
        signum, arrived = os.read(reader, 1)[0], time.monotonic()
        if ended.is_set():
            return
        if signum not in ENDING or signal.getsignal(signum) is signal.SIG_IGN:
            continue
        # The handler may have run just before this thread woke up.
        while _answered < arrived - 0.5 and time.monotonic() < arrived + PATIENCE:
            if ended.wait(0.05):
                return
        if _answered < arrived - 0.5:
            print("interrupted; the work of the running call is lost", file=sys.stderr, flush=True)
            os._exit(128 + signum)


def status(error: KeyboardInterrupt) -> int:
    """The conventional exit status: 128 plus the signal number."""
    return 128 + getattr(error, "signum", signal.SIGINT)


def leave(error: KeyboardInterrupt) -> NoReturn:
    """Exits with the signal's status, without waiting for computations that still run."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status(error))


def quiet_while_importing(package: str) -> None:
    """Makes Ctrl-C exit without a traceback while a program is starting up.

    Only for programs run with ``python -m``; importing the package leaves signals alone.
    """
    words = sys.orig_argv
    is_program = "-m" in words and words[words.index("-m") + 1].split(".")[0] == package
    if is_program and threading.current_thread() is threading.main_thread():
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))


_left_to_others: set[int] = set()
_answered = 0.0  # when a handler last ran


def _stop(signum, frame):
    raise Stopped(signum)
