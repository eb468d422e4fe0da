"""Run directories: the resolved configuration, environment, metrics, checkpoints, report.

config.json         resolved configuration
environment.json    hardware, versions, commit, command: a list, one entry per start
metrics.jsonl       one line per epoch
last.ckpt           everything needed to resume training
selected.ckpt       parameters and statistics from the best epoch on the selection images
selected-copy.ckpt  a copy, in case that file is damaged
predictions-selected.npz   predictions and labels of the test images, selected checkpoint
report.json         final accuracies; its presence means "finished"
report.html         the run as a page; ``python -m experiments.report`` rewrites it
autoattack-*.json   AutoAttack on a checkpoint, by ``python -m experiments.evaluate``
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from .. import settings
from ..settings import Config
from . import checkpoints, environment
from .checkpoints import write_atomically

# Fields that were added later, and what they were before. At these values they do not enter the
# digest, so that the checkpoints of earlier runs still belong to them.
_ADDED = {"bn.sync": True, "trades.bn_order": "adversarial_first", "threat.warmup": 0.0}


class RunDirectory:
    """A run directory on disk.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path).expanduser().resolve()
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.report_file = self.path / "report.json"
        self.last = self.path / "last.ckpt"
        self.selected = self.path / "selected.ckpt"
        self.selected_copy = self.path / "selected-copy.ckpt"

    @contextlib.contextmanager
    def held(self, config: Config, needed_bytes: int) -> Iterator[None]:
        """Opens and locks the folder for a run; a rejected start writes nothing to it.

        Args:
            config: resolved configuration.
            needed_bytes: upper bound on what the run will write.

        Raises:
            ValueError: see :meth:`open`; also if another process has the folder locked.
            OSError: see :meth:`open`.
        """
        self._check(config, needed_bytes)
        with self.lock():
            self.open(config, needed_bytes)
            yield

    def open(self, config: Config, needed_bytes: int) -> None:
        """Creates the folder or checks that its configuration matches, and records the start.

        Args:
            config: resolved configuration.
            needed_bytes: upper bound on what the run will write.

        Raises:
            ValueError: if the folder has a different configuration; names the fields that differ.
            OSError: if the folder is not writable or the disk is too full.
        """
        self._check(config, needed_bytes)
        if self.config_file.is_file():
            before = _fields(self.config())
            if self.report_file.is_file() and before != _fields(config):
                self.report_file.rename(self.path / f"report-{before['num_epochs']}-epochs.json")
        write_json(self.config_file, config.to_dict())
        self.write_start()

    def _check(self, config: Config, needed_bytes: int) -> None:
        if self.config_file.is_file():
            self.check_same(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise type(error)(
                error.errno,
                f"can't be used as a run directory ({error.strerror}); choose another --workdir",
                str(self.path),
            ) from error
        if free < needed_bytes:
            raise OSError(
                f"{self.path}: the disk has {free / 1e6:.0f} MB left and the checkpoints need "
                f"{needed_bytes / 1e6:.0f} MB; free some space or choose another --workdir"
            )

    def write_start(self) -> None:
        """Records the start of this process."""
        starts = self.environment() + [environment.describe()]
        write_json(self.path / "environment.json", starts)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the folder against other processes; the OS releases the lock if this process dies.

        Raises:
            ValueError: if another process has it locked.
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

    def digest(self, config: Config) -> str:
        """SHA-256 of a resolved configuration, which ties a checkpoint to its run."""
        return _digest(_fields(config))

    def check_digest(self, path: Path, record: dict, config: Config) -> None:
        """Raises a ``ValueError`` if a checkpoint records a different configuration.

        Checkpoints from earlier versions do not record one.
        """
        found = record.get("config")
        if found is not None and found != self.digest(config):
            raise ValueError(
                f"{path} belongs to a run with a different configuration; copy the whole run "
                "directory, or choose another --workdir"
            )

    def check_checkpoint(self, path: Path, config: Config) -> None:
        """Raises a ``ValueError`` unless a checkpoint to evaluate belongs to this run.

        The selected checkpoint must match the epoch recorded in the last one.
        """
        record = checkpoints.load_record(path)
        self.check_digest(path, record, config)
        if path == self.selected and self.last.is_file():
            last = checkpoints.load_record(self.last)
            self.check_digest(self.last, last, config)
            named = (last.get("best") or {}).get("epoch")
            if record["epoch"] != named:
                raise ValueError(
                    f"{path} is from epoch {record['epoch']}, but {self.last.name} records "
                    f"{named}; run the training command again, or copy the whole run directory"
                )

    def check_selected(self, epoch: int, config: Config, say) -> None:
        """Ensures that the selected checkpoint is intact and from the selected epoch.

        A damaged checkpoint is replaced with its copy.

        Raises:
            ValueError: if neither matches the last checkpoint's record.
        """
        problems = []
        for path in (self.selected, self.selected_copy):
            try:
                record = checkpoints.load_record(path)
                self.check_digest(path, record, config)
                if record["epoch"] != epoch:
                    raise ValueError(f"{path} is from epoch {record['epoch']}, not {epoch}")
            except ValueError as error:
                problems.append(str(error))
                continue
            if path == self.selected_copy:
                checkpoints.write_atomically(self.selected, path.read_bytes())
                say(f"restored {self.selected.name} from its copy: {problems[0]}")
            return
        raise ValueError(
            f"{problems[0]}; restore it from a backup: the best parameters (epoch {epoch}) are "
            "nowhere else"
        )

    def environment(self) -> list[dict]:
        """The environments of the run's starts, oldest first."""
        file = self.path / "environment.json"
        starts = _read_json(file) if file.is_file() else []
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            raise _damaged(file, "not a list of starts")
        return starts

    def config(self) -> Config:
        """The resolved configuration of the run.

        Raises:
            FileNotFoundError: if this is not a run directory.
            ValueError: if a different version of the code wrote it.
        """
        if not self.config_file.is_file():
            raise FileNotFoundError(
                f"{self.path} is not a run directory (no config.json); train first, for example "
                f"python -m experiments.digits --config=configs/at.py:laptop --workdir={self.path}"
            )
        stored = _read_json(self.config_file)
        if not isinstance(stored, dict):
            raise _damaged(self.config_file, "no object")
        config = ConfigDict(stored)
        for section in ("diagnostics", "data"):
            if section not in config:  # from a version without it
                config[section] = settings.base()[section]
        for name, value in _ADDED.items():
            section, field = name.split(".")
            part: Any = config.get(section)
            if part is not None and field not in part:
                part[field] = value
        known = {name for name, _ in settings.flatten(config)}
        missing = [name for name, _ in settings.flatten(settings.base()) if name not in known]
        if missing:
            raise ValueError(
                f"{self.config_file} has no field {missing[0]!r}: a different version of jaxadv "
                "wrote it. Use the commit in environment.json, or train again in another "
                "--workdir"
            )
        return config

    def metrics(self) -> list[dict]:
        """Metrics of the epochs so far."""
        if not self.metrics_file.is_file():
            return []
        lines = self.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines()
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise _damaged(self.metrics_file, f"line {number}")
            rows.append(row)
        return rows

    def write_metrics(self, rows: list[dict]) -> None:
        """Replaces the metrics with these rows."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.metrics_file, text.encode())

    def report(self, *, partial: bool = False) -> dict | None:
        """The final report, or None while the run is unfinished.

        "autoattack" has AutoAttack's results on the test images by checkpoint, if it was run with
        the run's own threat model; with ``partial``, on the first of them if not on all.
        """
        if not self.report_file.is_file():
            return None
        files = {n: self.autoattack_file(n, partial=partial) for n in ("selected", "last")}
        strong = {name: _read_json(file) for name, file in files.items() if file.is_file()}
        report = _read_json(self.report_file)
        if not isinstance(report, dict):
            raise _damaged(self.report_file, "no report")
        return report | ({"autoattack": strong} if strong else {})

    def report_of(self, config: Config) -> dict | None:
        """The final report if the run is finished with this configuration.

        Raises:
            ValueError: if the folder has a different configuration.
        """
        if self.config_file.is_file():
            self.check_same(config)
            if _fields(self.config()) == _fields(config):
                return self.report()
        return None

    def autoattack_file(self, checkpoint: str, *, partial: bool = False) -> Path:
        """Path of AutoAttack's report on all test images.

        With ``partial``, if there is none, of the one on the most of the first.
        """
        whole = self.path / f"autoattack-{checkpoint}-test.json"
        if not partial or whole.is_file():
            return whole
        files = {
            f.stem.rpartition("-first")[2]: f for f in self.path.glob(f"{whole.stem}-first*.json")
        }
        counts = [count for count in files if count.isdigit()]
        return files[max(counts, key=int)] if counts else whole

    def check_same(self, config: Config) -> None:
        """Raises a ``ValueError`` that names the fields in which the run's configuration differs.

        A run may be extended by more epochs if they do not change the finished ones.
        """
        stored, asked = _fields(self.config()), _fields(config)
        different = [name for name in asked if stored.get(name) != asked[name]]
        if not different:
            return
        listed = ", ".join(f"{n}={stored.get(n)!r} there" for n in different[:3])
        why = ""
        if different == ["num_epochs"]:
            why = _why_not_extended(stored, asked)
            if not why:
                return
        raise ValueError(
            f"{self.path} contains a run with a different configuration ({listed}; "
            f"{len(different)} different){why}; choose another --workdir or the same fields"
        )


def _why_not_extended(stored: dict, asked: dict) -> str:
    """Why more epochs would change the finished ones, or "" if they would not."""
    if asked["num_epochs"] < stored["num_epochs"]:
        return " and cannot be shortened"
    if asked["lr_drops"]:
        return (
            f" and cannot be extended: lr_drops={tuple(asked['lr_drops'])} are fractions of the run"
        )
    if asked["optimizer"] == "entropy_sgd" and asked["entropy.stop_at"] != 1.0:
        return " and cannot be extended: entropy.stop_at is a fraction of the run"
    return ""


def _fields(config: Config) -> dict:
    """The fields that a run's results depend on."""
    fields = {name: _plain(value) for name, value in settings.flatten(config)}
    del fields["data.stream"]
    return fields


def _digest(fields: dict) -> str:
    fields = {n: value for n, value in fields.items() if n not in _ADDED or value != _ADDED[n]}
    if not _why_not_extended(fields, fields):  # an extended run keeps its checkpoints
        fields = {name: value for name, value in fields.items() if name != "num_epochs"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path}: is damaged ({what}); restore it from a copy, or choose another --workdir"
    )


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, str(error)) from None


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
