"""Waits for compiled calls while staying responsive to signals."""

import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from .signals import Stopped

CALL_SECONDS = 10.0  # an interrupted run finishes calls up to this long
_GRACE = 2.0  # seconds for a call of unknown duration
_POLL = 0.05


class Waiter:
    """Runs blocking calls in a separate thread, while the main thread handles signals.

    Attributes:
        signum: the signal received, 0 for none.
        usual: typical seconds of a call like the running one, None if unknown.
    """

    def __init__(self):
        self.signum = 0
        self.usual: float | None = None
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def call(self, work: Callable[[], Any]) -> Any:
        """The result of ``work()``.

        Raises:
            Stopped: if a signal arrived and the call would take too long; the call keeps running,
            and its inputs must no longer be used.
        """
        if threading.current_thread() is not threading.main_thread():
            return work()
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(1)
        future = self._pool.submit(work)
        started = time.monotonic()
        asked = None
        while True:
            try:
                return future.result(timeout=_POLL)
            except concurrent.futures.TimeoutError:
                if future.done():  # raised by the call itself
                    raise
            if not self.signum:
                continue
            now = time.monotonic()
            asked = now if asked is None else asked
            known = self.usual is not None
            left = (self.usual or 0.0) - (now - started) if known else float("inf")
            if now - asked > (max(left, 0.0) + CALL_SECONDS if known else _GRACE) or (
                known and left > CALL_SECONDS
            ):
                raise Stopped(self.signum, computing=True)

    def close(self) -> None:
        """Releases the thread; it ends with its call."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def wait(arrays: Any) -> Any:
    """Blocks until arrays are computed, in short sleeps so that signal handlers can run."""
    leaves: Any = [leaf for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)]
    nap = 1e-4
    while not all(leaf.is_ready() for leaf in leaves):
        time.sleep(nap)
        nap = min(2 * nap, _POLL)
    return arrays
