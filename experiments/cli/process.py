"""Shared program scaffolding: devices, signals, and one-line errors."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from ..run import environment, signals


def split_cpu(dataset: str) -> None:
    """Uses one CPU device per core when training on larger images."""
    if dataset != "digits":
        environment.split_cpu()


def execute(action: Callable[[], object]) -> None:
    """Calls ``action``; expected failures print a message, not a traceback, and set the status."""
    environment.configure()
    try:
        with signals.installed():
            action()
    except KeyboardInterrupt as error:
        signals.leave(error)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("JAXADV_TRACEBACK"):
            raise
        fail(error)


def fail(error: BaseException) -> NoReturn:
    """Prints the message of an error and exits with status 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None
