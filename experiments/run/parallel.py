"""Independent pieces of work side by side, each in a process of its own."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any

from . import environment, signals

_DONE, _FAILED, _STOPPED = "done", "failed", "stopped"


def side_by_side(
    work: Callable[..., Any],
    arguments: Sequence[tuple],
    jobs: int,
    finished: Callable[[int, Any], object],
) -> None:
    """Calls ``work`` with each of ``arguments`` in at most ``jobs`` processes.

    A process takes one piece after another, so that it starts and compiles once, and has its share
    of the cores where the system lets it choose. When one fails, or this process is interrupted,
    the others are interrupted too, and have ended on return.

    Args:
        work: an importable function; its arguments and results are pickled.
        arguments: of each call.
        jobs: number of processes.
        finished: called here with the position and the result of each call, as it ends.

    Raises:
        KeyboardInterrupt: after a signal, once every process has answered it.
        ChildProcessError: if a process ended without a result.
        Exception: what a call raised.
    """
    context = multiprocessing.get_context("spawn")
    left, running, processes = deque(enumerate(arguments)), {}, []
    try:
        jobs = min(jobs, len(arguments))
        for number in range(jobs):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, work, number, jobs))
            process.start()
            processes.append((process, ours))
            theirs.close()
            running[ours] = _assign(ours, left)
        while running:
            for ready in connection.wait(list(running)):
                assert isinstance(ready, connection.Connection)
                place = running.pop(ready)
                finished(place, _received(ready))
                if left:
                    running[ready] = _assign(ready, left)
    except BaseException:
        for process, _ in processes:
            if process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid or 0, signal.SIGTERM)
        raise
    finally:
        for process, ours in processes:
            ours.close()
            process.join()


def _assign(ours: connection.Connection, left: deque) -> int:
    place, given = left.popleft()
    ours.send(given)
    return place


def _received(ready: connection.Connection) -> Any:
    try:
        kind, value = ready.recv()
    except (EOFError, OSError):
        raise ChildProcessError(
            "a process ended without a result (out of memory?); run the same command to resume, "
            "with fewer --jobs"
        ) from None
    if kind == _STOPPED:
        raise signals.Stopped(value)
    if kind == _FAILED:
        raise value
    return value


def _serve(theirs: connection.Connection, work: Callable[..., Any], number: int, jobs: int) -> None:
    """The main function of a process: answers until the other end closes."""
    environment.configure()
    if hasattr(os, "sched_setaffinity"):  # threads of all processes on all cores are slower
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number::jobs] or cores)
    try:
        with signals.installed():
            while True:
                try:
                    given = theirs.recv()
                except (EOFError, OSError):
                    return
                theirs.send((_DONE, work(*given)))
    except KeyboardInterrupt as error:
        with contextlib.suppress(OSError):
            theirs.send((_STOPPED, getattr(error, "signum", signal.SIGINT)))
        signals.leave(error)
    except Exception as error:
        error.add_note(f"in a process of its own:\n{traceback.format_exc()}")
        with contextlib.suppress(OSError):
            theirs.send((_FAILED, _sendable(error)))


def _sendable(error: Exception) -> Exception:
    """The error, or its text where it cannot be pickled and read again."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        readable = RuntimeError(f"{type(error).__name__}: {error}")
        readable.add_note(error.__notes__[-1])
        return readable
    return error
