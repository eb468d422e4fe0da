"""Progress of a long evaluation, on stderr or passed to a callback."""

import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

_LOG_SECONDS = 30.0  # between lines if stderr is a file
_LARGEST_CHANGE = 1.4  # of the estimated total from one report to the next


class Progress(NamedTuple):
    """The progress of an evaluation.

    Attributes:
        attack: the attack that is running.
        run: "2/9": its run (target or restart) out of how many; "check" for a pass over the images
            before or after the runs.
        images_left: images still to be attacked in this run.
        accuracy: robust accuracy so far, on the images evaluated.
        elapsed: seconds since the start.
        remaining: estimate of the seconds left until the end of the evaluation; NaN until an
            attack has been timed.
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
        show: True for stderr, False for silence, or a function of a :class:`Progress`. On a
        terminal one line is redrawn; otherwise a line is added every 30 seconds and at the start of
        every attack.
    """

    def __init__(self, show: bool | Callable[[Progress], object]) -> None:
        self._show = show if callable(show) else (self._write if show else None)
        self._start = time.monotonic()
        self._paces: deque[float] = deque(maxlen=9)  # seconds per pass of the last chunks
        self._total = math.nan
        self._redrawn, self._logged = False, ("", -math.inf)

    def update(
        self,
        attack: str,
        run: str,
        images_left: int,
        accuracy: float,
        *,
        spent: tuple[int, float | None],
        left: float,
    ) -> None:
        """Reports a finished chunk.

        Args:
            attack: name.
            run: "2/9".
            images_left: in this run.
            accuracy: robust accuracy so far.
            spent: passes of the chunk, and its seconds, or None if they are not representative.
            left: estimated passes until the end of the evaluation.
        """
        if self._show is None:
            return
        elapsed = time.monotonic() - self._start
        if spent[1] is not None:
            self._paces.append(spent[1] / max(spent[0], 1))
        remaining = math.nan
        if self._paces:
            self._estimate(elapsed, left)
            remaining = max(self._total - elapsed, 0.0) if left > 0 else 0.0
        self._show(Progress(attack, run, images_left, accuracy, elapsed, remaining))

    def _estimate(self, elapsed: float, left: float) -> None:
        """Moves the estimated total toward that of the last chunks, in bounded steps.

        The median pace ignores chunks that waited for the compiler.
        """
        fresh = elapsed + left * statistics.median(self._paces)
        if not math.isnan(self._total):
            change = math.sqrt(fresh / self._total)
            fresh = self._total * min(max(change, 1 / _LARGEST_CHANGE), _LARGEST_CHANGE)
        self._total = fresh

    def close(self) -> None:
        """Ends the line."""
        if self._redrawn:
            sys.stderr.write("\n")
            self._redrawn = False

    def _write(self, progress: Progress) -> None:
        line = (
            f"{progress.attack:10} {progress.run:>5}  {progress.images_left:6} images left  "
            f"robust {100 * progress.accuracy:6.2f} %  {_clock(progress.elapsed)} elapsed, "
            f"{_clock(progress.remaining)} left"
        )
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{line} ")
            self._redrawn = True
        elif progress.attack != self._logged[0] or (
            progress.elapsed - self._logged[1] >= _LOG_SECONDS
        ):
            sys.stderr.write(line + "\n")
            self._logged = progress.attack, progress.elapsed
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    if math.isnan(seconds):
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
