"""Metrics for other tools: every epoch's and every evaluation's numbers, as CSV or TensorBoard.

A program passes each row, a dictionary, to a function ``on_metrics``: yours, or the adapters that
``--log=csv,tensorboard`` selects.
"""

import contextlib
import csv
import importlib.util
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from jaxadv.checks import check_choice

from . import hosts

OnMetrics: TypeAlias = Callable[[dict], object]


class Csv:
    """One line per step in ``PATH.csv``. A row whose step is there already completes its line.

    Args:
        path: without the suffix. An existing file is continued.
    """

    def __init__(self, path: Path):
        self._path = self.place(path)
        self._rows: dict[str, dict] = {}
        if self._path.is_file():
            with self._path.open(encoding="utf-8", newline="") as file:
                self._rows = {row.get("step") or "": row for row in csv.DictReader(file)}

    @staticmethod
    def place(path: Path) -> Path:
        """The file."""
        return path.with_name(f"{path.name}.csv")

    def __call__(self, row: dict) -> None:
        """Writes the row."""
        step = str(row.get("step", ""))
        self._rows[step] = self._rows.get(step, {}) | row
        columns = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows.values())
        self._path.write_text(text.getvalue(), encoding="utf-8")

    def close(self) -> None:
        """Nothing is left to write."""


class TensorBoard:
    """Event files in the folder ``PATH-tensorboard``.

    Args:
        path: without the suffix.
    """

    def __init__(self, path: Path):
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        self._writer = SummaryWriter(str(self.place(path)))

    @staticmethod
    def place(path: Path) -> Path:
        """The folder."""
        return path.with_name(f"{path.name}-tensorboard")

    def __call__(self, row: dict) -> None:
        """Writes the row's numbers as scalars at its step."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, row.get("step", 0))
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


ADAPTERS = {"csv": Csv, "tensorboard": TensorBoard}
_PACKAGES = {"tensorboard": "tensorboardX"}


def parse(text: str) -> tuple[str, ...]:
    """The adapters of ``--log=csv,tensorboard``.

    Raises:
        ValueError: on an unknown name, or if its package is not installed.
    """
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        check_choice("log", name, tuple(ADAPTERS))
        package = _PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ValueError(f"log={name!r} needs {package}; pip install {package}")
    return names


@contextlib.contextmanager
def logs(names: Sequence[str], path: Path) -> Iterator[OnMetrics | None]:
    """The adapters as one function, None if there are none.

    Args:
        names: of adapters.
        path: of what they write, without suffix; its folder is created with the first row. With
            several processes, process 0 writes.
    """
    if not names:
        yield None
        return
    opened: list[Any] = []

    def write(row: dict) -> None:
        if not hosts.is_writer():
            return
        if not opened:
            path.parent.mkdir(parents=True, exist_ok=True)
            opened.extend(ADAPTERS[name](path) for name in names)
        for adapter in opened:
            adapter(row)

    try:
        yield write
    finally:
        for adapter in opened:
            adapter.close()


def numbers(values: dict, prefix: str = "") -> dict[str, float]:
    """The numbers of nested dictionaries, with names joined by underscores."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{name}_")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = value
    return found
