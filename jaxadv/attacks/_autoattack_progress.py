"""Progress of a long evaluation: a line on stderr, or a call of the user's function."""

import sys
import time
from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """Where an evaluation is.

    Attributes:
        attack: the attack that is running.
        run: "2/9": its run (target or restart) out of how many.
        images_left: images of this run that are still to be attacked.
        accuracy: robust accuracy so far.
        elapsed: seconds since the start.
        remaining: estimate of the seconds left in this attack.
    """

    attack: str
    run: str
    images_left: int
    accuracy: float
    elapsed: float
    remaining: float


class Reporter:
    """Calls ``show`` with the progress after every chunk.

    Args:
        show: True for a line on stderr, False for silence, or a function of a :class:`Progress`.
    """

    def __init__(self, show: bool | Callable[[Progress], object]):
        self._show = show if callable(show) else (_write if show else None)
        self._line = show is True
        self._start = time.monotonic()
        self._attack, self._attack_start = "", self._start

    def update(self, attack: str, run: int, runs: int, done: int, total: int, accuracy: float):
        """Reports that ``done`` of the ``total`` images of a run are finished."""
        if self._show is None:
            return
        now = time.monotonic()
        if attack != self._attack:
            self._attack, self._attack_start = attack, now
        share = (run + done / max(total, 1)) / max(runs, 1)
        spent = now - self._attack_start
        remaining = spent * (1 - share) / share if share > 0 else float("nan")
        text = f"{run + 1}/{runs}"
        self._show(Progress(attack, text, total - done, accuracy, now - self._start, remaining))

    def close(self) -> None:
        """Ends the line."""
        if self._line:
            sys.stderr.write("\n")


def _write(progress: Progress) -> None:
    sys.stderr.write(
        f"\r{progress.attack:10} {progress.run:>5}  {progress.images_left:6} images left  "
        f"robust {100 * progress.accuracy:6.2f} %  {progress.elapsed:7.0f} s  "
        f"left {progress.remaining:7.0f} s "
    )
    sys.stderr.flush()
