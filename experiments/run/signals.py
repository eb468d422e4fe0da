"""Termination signals: Ctrl-C, and those from schedulers and terminals."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by a signal; ends a program like Ctrl-C.

    Attributes:
        signum: the signal.
        computing: whether an unstoppable compiled call is still running, so that the process must
        exit without waiting for it.
    """

    def __init__(self, signum: int, computing: bool = False):
        super().__init__()
        self.signum, self.computing = signum, computing


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Makes termination signals raise :class:`Stopped` inside, if this is the main thread."""
    with handled(_stop):
        yield


@contextlib.contextmanager
def handled(handler) -> Iterator[None]:
    """Installs ``handler(signum, frame)`` for termination signals, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Under nohup, keep ignoring SIGHUP.
    wanted = [n for n in ENDING if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def status(error: KeyboardInterrupt) -> int:
    """The conventional exit status: 128 plus the signal number."""
    return 128 + getattr(error, "signum", signal.SIGINT)


def leave(error: KeyboardInterrupt) -> NoReturn:
    """Exits with the signal's status."""
    if getattr(error, "computing", False):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status(error))
    raise SystemExit(status(error)) from None


def quiet_while_importing(package: str) -> None:
    """Makes Ctrl-C exit without a traceback while a program is starting up.

    Only for programs run with ``python -m``; importing the package leaves signals alone.
    """
    words = sys.orig_argv
    is_program = "-m" in words and words[words.index("-m") + 1].split(".")[0] == package
    if is_program and threading.current_thread() is threading.main_thread():
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))


def _stop(signum, frame):
    raise Stopped(signum)
