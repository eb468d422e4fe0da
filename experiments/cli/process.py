"""Shared program scaffolding: devices, signals, and one-line errors."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import jax

from ..run import environment, hosts, metrics, signals


def split_cpu(dataset: str, batch_size: int = 128) -> None:
    """Uses one CPU device per core when training on larger images."""
    if dataset != "digits":
        environment.split_cpu(batch_size)


def execute(
    action: Callable[[], object], among: str | None = None, *, together: bool = True
) -> None:
    """Calls ``action``; expected failures print a message, not a traceback, and set the status.

    Args:
        action: the program.
        among: the other processes, see :func:`experiments.run.hosts.start`.
        together: whether the processes compute together.
    """
    environment.configure()
    try:
        hosts.start(among, together=together)
        with signals.installed():
            action()
    except KeyboardInterrupt as error:
        signals.leave(error)
    except hosts.WriterFailed:
        _exit(2)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("JAXADV_TRACEBACK"):
            raise
        if not isinstance(error, hosts.Common) or hosts.is_writer():
            print(f"error: {error}", file=sys.stderr)
        _exit(2)
    except jax.errors.JaxRuntimeError as error:
        if among is None:
            raise
        reason = str(error).splitlines()[0]
        print(
            "error: lost another process of the run; run the same command in every process to "
            f"resume from the last checkpoint ({reason})",
            file=sys.stderr,
        )
        _exit(1)


def logs(text: str) -> tuple[str, ...]:
    """Files of metrics, for ``argparse``; see :func:`experiments.run.metrics.parse`."""
    try:
        return metrics.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def processes(text: str) -> str:
    """The processes of a command, for ``argparse``; see :func:`experiments.run.hosts.start`."""
    try:
        hosts.check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def fail(error: BaseException) -> NoReturn:
    """Prints the message of an error and exits with status 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None


def _exit(status: int) -> NoReturn:
    """Exits; among several processes without waiting for them, who may wait for this one."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status) from None
