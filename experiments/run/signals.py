"""Signals that end a program: Ctrl-C, and what schedulers and terminals send."""

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
    """What a signal raises in the main thread; it ends a program as Ctrl-C does.

    Attributes:
        signum: the signal.
        computing: whether a compiled call was left behind that nothing can stop: the process has to
            end without waiting for it.
    """

    def __init__(self, signum: int, computing: bool = False):
        super().__init__()
        self.signum, self.computing = signum, computing


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Every ending signal raises :class:`Stopped` inside, if this is the main thread."""
    with handled(_stop):
        yield


@contextlib.contextmanager
def handled(handler) -> Iterator[None]:
    """Inside, ``handler(signum, frame)`` takes every ending signal, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A program under nohup ignores hang-ups, and should go on doing so.
    wanted = [n for n in ENDING if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def status(error: KeyboardInterrupt) -> int:
    """The exit status that shells expect: 128 and the number of the signal."""
    return 128 + getattr(error, "signum", signal.SIGINT)


def leave(error: KeyboardInterrupt) -> NoReturn:
    """Ends the program with the status of the signal."""
    if getattr(error, "computing", False):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status(error))
    raise SystemExit(status(error)) from None


def quiet_while_importing(package: str) -> None:
    """Ctrl-C ends a program of this package without a traceback until it has started.

    Only where the program is run with ``python -m``: an imported package leaves signals alone.
    """
    words = sys.orig_argv
    is_program = "-m" in words and words[words.index("-m") + 1].split(".")[0] == package
    if is_program and threading.current_thread() is threading.main_thread():
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))


def _stop(signum, frame):
    raise Stopped(signum)
