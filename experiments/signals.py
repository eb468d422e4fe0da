"""Signals that end a program: Ctrl-C, and what schedulers and terminals send."""

import contextlib
import os
import signal
import sys
import threading

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stopped(KeyboardInterrupt):
    """What a signal raises in the main thread; it ends a program as Ctrl-C does.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int):
        super().__init__()
        self.signum = signum


def install() -> None:
    """Makes every ending signal raise :class:`Stopped`, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in ENDING:
        signal.signal(number, _stop)


def status(error: KeyboardInterrupt) -> int:
    """The exit status that shells expect: 128 and the number of the signal."""
    return 128 + getattr(error, "signum", signal.SIGINT)


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
