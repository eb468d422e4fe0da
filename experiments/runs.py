"""Run directories: the resolved configuration, what it ran on, metrics, checkpoints, report.

config.json         resolved configuration
environment.json    hardware, versions, commit, command: a list, one entry a start
metrics.jsonl       one line an epoch
last.ckpt           everything that training needs to go on
selected.ckpt       parameters and statistics of the best epoch on the selection images
predictions-selected.npz   predicted classes and labels of the test images, selected checkpoint
report.json         final accuracies; its presence means "finished"
report.html         the run as a page; ``python -m experiments.report`` writes it anew
autoattack-*.json   AutoAttack of a checkpoint, by ``python -m experiments.evaluate``
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from . import cli, environment, settings
from .checkpoints import write_atomically
from .settings import Config


class RunDirectory:
    """A run directory on disk.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path).resolve()
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.report_file = self.path / "report.json"
        self.last = self.path / "last.ckpt"
        self.selected = self.path / "selected.ckpt"

    def open(self, config: Config, needed_bytes: int) -> None:
        """Creates the folder or checks that it belongs to this configuration.

        Args:
            config: resolved configuration.
            needed_bytes: what the run will write at most.

        Raises:
            ValueError: if another configuration lives there; names the fields that differ.
            OSError: if the folder can't be written or the disk is too full.
        """
        if self.config_file.is_file():
            self.check_same(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise type(error)(
                error.errno,
                f"can't use it as a run directory ({error.strerror}); choose another --workdir",
                str(self.path),
            ) from error
        if free < needed_bytes:
            raise OSError(
                f"{self.path}: the disk has {free / 1e6:.0f} MB left and the checkpoints need "
                f"{needed_bytes / 1e6:.0f} MB; free some space or choose another --workdir"
            )
        write_json(self.config_file, config.to_dict())
        starts = self.environment() + [environment.describe()]
        write_json(self.path / "environment.json", starts)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes out of the folder; the system lets go if this one dies.

        Raises:
            ValueError: if another process holds it.
        """
        with open(self.path / "lock", "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{self.path}: another process is training there; wait for it, stop it, or "
                    "choose another --workdir"
                ) from None
            yield

    def environment(self) -> list[dict]:
        """What the run's starts ran on, oldest first."""
        file = self.path / "environment.json"
        return _read_json(file) if file.is_file() else []

    def config(self) -> Config:
        """The resolved configuration of the run.

        Raises:
            FileNotFoundError: if this is no run directory.
            ValueError: if another version of the code wrote it.
        """
        if not self.config_file.is_file():
            raise FileNotFoundError(
                f"{self.path} is not a run directory (no config.json); train first, for example "
                f"python -m experiments.digits --config=configs/at.py:laptop --workdir={self.path}"
            )
        config = ConfigDict(_read_json(self.config_file))
        if "diagnostics" not in config:  # a run from before there were any: they were off
            config.diagnostics = settings.base().diagnostics
        known = {name for name, _ in cli.fields(config)}
        missing = [name for name, _ in cli.fields(settings.base()) if name not in known]
        if missing:
            raise ValueError(
                f"{self.config_file} has no field {missing[0]!r}: another version of jaxadv wrote "
                "it. environment.json names its commit; use that one, or train again in another "
                "--workdir"
            )
        return config

    def metrics(self) -> list[dict]:
        """The metrics of the epochs so far."""
        if not self.metrics_file.is_file():
            return []
        lines = self.metrics_file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def write_metrics(self, rows: list[dict]) -> None:
        """Replaces the metrics by these rows."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.metrics_file, text.encode())

    def report(self) -> dict | None:
        """The final report, None while the run is unfinished.

        "autoattack" holds what AutoAttack found on the test images, by checkpoint, where it has
        been run with the run's own threat model.
        """
        if not self.report_file.is_file():
            return None
        files = {name: self.autoattack_file(name) for name in ("selected", "last")}
        strong = {name: _read_json(file) for name, file in files.items() if file.is_file()}
        return _read_json(self.report_file) | ({"autoattack": strong} if strong else {})

    def autoattack_file(self, checkpoint: str) -> Path:
        """Where AutoAttack's report on the test images goes."""
        return self.path / f"autoattack-{checkpoint}-test.json"

    def check_same(self, config: Config) -> None:
        """Raises a ``ValueError`` naming the fields in which the run's configuration differs."""
        stored, asked = (
            {name: _plain(value) for name, value in cli.fields(c)} for c in (self.config(), config)
        )
        different = [name for name in asked if stored.get(name) != asked[name]]
        if different:
            listed = ", ".join(f"{n}={stored.get(n)!r} there" for n in different[:3])
            raise ValueError(
                f"{self.path} holds a run of another configuration ({listed}; "
                f"{len(different)} different); choose another --workdir or the same fields"
            )


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: is damaged ({error}); restore it from a copy, or choose another --workdir"
        ) from None


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
