"""Progress of a training run: a bar on a terminal, occasional lines in a log."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

LOG_SECONDS = 30.0


class Bar:
    """Reports finished minibatches out of the total.

    Args:
        total: minibatches in the run.
        initial: minibatches done before this process started.
        say: called with log lines; None for silence.
    """

    def __init__(self, total: int, initial: int, say: Callable[[str], object] | None):
        self._total, self._first, self._done = total, initial, initial
        self._say = None if say is None or sys.stderr.isatty() else say
        # Average over the whole run, so that the estimate does not jump between lines.
        self._bar = tqdm(
            total=total,
            initial=initial,
            unit="minibatch",
            disable=say is None or not sys.stderr.isatty(),
            dynamic_ncols=True,
            smoothing=0,
        )
        self._started = self._logged = time.monotonic()
        self._compiling = 0.0

    def compiled(self, seconds: float) -> None:
        """Excludes compilation time from the estimate."""
        self._compiling += seconds

    def update(self, minibatches: int, text: str) -> None:
        """Reports finished minibatches."""
        self._done += minibatches
        self._bar.update(minibatches)
        self._bar.set_postfix_str(text)
        now = time.monotonic()
        if self._say is not None and now - self._logged >= LOG_SECONDS:
            self._logged = now
            pace = (now - self._started - self._compiling) / max(self._done - self._first, 1)
            left = _clock(pace * (self._total - self._done))
            self._say(f"minibatch {self._done:,} of {self._total:,}  {text}  {left} left")

    def close(self) -> None:
        """Closes the bar."""
        self._bar.close()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
