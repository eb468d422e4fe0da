"""The folder where AutoAttack saves its progress: one file per finished chunk.

``manifest.json`` identifies the evaluation; ``000042.npz`` is the record of the 43rd chunk, with a
digest of the manifest, its number and its content. A damaged record, or one copied from another
store or number, does not match its digest: it is set aside and its images are recomputed. ``lock``
keeps other processes and threads out.

Shards of an evaluation have a folder each, ``shard-0-of-4``, with a manifest, records and a lock of
its own; they share the lock of the store, which an evaluation that is not a shard holds alone. That
one reads the records of all shards, and deletes and renames nothing that another writes.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import reprlib
import secrets
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..._files import is_partial, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 2
_MANIFEST, _LOCK, _SEAL = "manifest.json", "lock", "seal"
_RECORD = r"\d{6}\.npz"
_SHARD, _SHARDS = "shard-{}-of-{}", r"shard-\d+-of-\d+"
_ADDED = {"precision": "default"}  # entries that manifests did not have from the beginning
# Files that file browsers and version control put into otherwise empty folders.
_IGNORED = {".DS_Store", "Thumbs.db", "desktop.ini", ".gitkeep", ".gitignore"}


class Store(contextlib.ExitStack):
    """Records of finished chunks, open to one evaluation at a time; closing it lets others in.

    Args:
        folder: created if it does not exist, "~" expanded; None keeps nothing.
        shard: (i, n) to keep the records of shard i of n, beside the others.

    Raises:
        ValueError: if the folder is in use or contains files that are not a store.
        OSError: if it cannot be created or written.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, shard: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.records: list[dict[str, np.ndarray]] = []
        self._next, self._seal = 0, b""
        self._root = self._own = None if folder is None else pathlib.Path(folder).expanduser()
        if self._root is None:
            return
        try:
            self.callback(os.close, _claim(self._root, shared=shard is not None))
            if shard is not None:
                _check_number(self._root, *shard)
                self._own = self._root / _SHARD.format(*shard)
                self.callback(os.close, _claim(self._own))
        except BaseException:
            self.close()
            raise

    def open(self, manifest: Mapping[str, Any], probe: np.ndarray) -> None:
        """Loads the records of an evaluation, or initializes the store for a new one.

        Args:
            manifest: JSON values that identify the evaluation, compared with the folder's.
            probe: logits on a few fixed images, compared up to rounding.

        Raises:
            ValueError: if the folder belongs to a different model, images or arguments, or its
            manifest cannot be read.
        """
        if self._root is None or self._own is None:
            return
        manifest = {"format": FORMAT, **manifest}
        shards = _shards(self._root)
        wanted = {self._root: manifest} | {p: {**manifest, "shard": p.name} for p in shards}
        for part, entries in wanted.items():
            _check_contents(part)
            if (part / _MANIFEST).exists():
                _compare(part / _MANIFEST, entries, probe)
        own = self._own / _MANIFEST
        if not own.exists():
            text = json.dumps({**wanted[self._own], "probe": probe.tolist()}, indent=1)
            write_atomically(own, lambda file: file.write(text.encode()))
        self._seal = _seal_of(self._own)
        for part in wanted if self._own == self._root else [self._own]:
            if (part / _MANIFEST).exists():
                found = _read(part)
                self.records += found.values()
                if part == self._own:
                    self._next = max(found, default=-1) + 1

    def add(self, **record: Any) -> dict[str, np.ndarray]:
        """Saves a record; on return it is on disk."""
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in record.items()}
        if self._own is not None:
            data = _pack(arrays, self._seal + str(self._next).encode())
            path = self._own / f"{self._next:06d}.npz"
            write_atomically(path, lambda file: file.write(data))
            self._next += 1
        self.records.append(arrays)
        return arrays


def _claim(folder: pathlib.Path, *, shared: bool = False) -> int:
    """Checks that the folder is a store or empty, and locks it; returns the open lock file."""
    name = f"store={str(folder)!r}"
    if fcntl is None:
        raise ValueError(f"{name} needs file locks, which this system lacks; pass store=None")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_contents(folder)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        text = f"cannot be a store ({error.strerror}); pass another folder"
        raise type(error)(error.errno, text, str(folder)) from error
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ValueError(
            f"{name} is in use by another evaluation; wait for it, pass another folder, or "
            "give every process its own shard=(i, n)"
        ) from None
    return lock


def _shards(root: pathlib.Path) -> list[pathlib.Path]:
    """The folders of shards in a store."""
    return sorted(p for p in root.iterdir() if re.fullmatch(_SHARDS, p.name) and p.is_dir())


def _check_number(root: pathlib.Path, index: int, number: int) -> None:
    """Raises a ``ValueError`` if the store has shards of another number."""
    for path in _shards(root):
        other = int(path.name.rpartition("-")[2])
        if other != number:
            raise ValueError(
                f"store={str(root)!r} has shards of {other}; pass n = {other} instead of "
                f"shard=({index}, {number}), or another folder"
            )


def _seal_of(folder: pathlib.Path) -> bytes:
    return hashlib.sha256((folder / _MANIFEST).read_bytes()).digest()


def _compare(path: pathlib.Path, manifest: Mapping[str, Any], probe: np.ndarray) -> None:
    """Raises a ``ValueError`` unless the file is the manifest of this evaluation."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        version, old = stored["format"], np.asarray(stored["probe"], np.float64)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}); restore it, or pass another folder"
        ) from error
    name = f"store={str(path.parent)!r}"
    if version != FORMAT:
        raise ValueError(f"{name} was written by another version of jaxadv; pass another folder")
    stored = _ADDED | stored
    different = [
        f"{entry} was {reprlib.repr(stored.get(entry))} and is {reprlib.repr(value)}"
        for entry, value in manifest.items()
        if stored.get(entry) != json.loads(json.dumps(value))
    ]
    if not _same_logits(old, probe):
        different.append("the model's logits differ")
    if different:
        raise ValueError(
            f"{name} belongs to another evaluation: {'; '.join(different)}; "
            "pass another folder, or the same arguments to resume"
        )


def _read(folder: pathlib.Path) -> dict[int, dict[str, np.ndarray]]:
    """The records with a valid seal, by number; others are renamed."""
    seal, found, aside = _seal_of(folder), {}, []
    for path in sorted(folder.iterdir()):
        if is_partial(path.name, f"{_RECORD}|{re.escape(_MANIFEST)}"):
            path.unlink()  # left by a killed evaluation
        if not re.fullmatch(_RECORD, path.name):
            continue
        number = int(path.name[:6])
        record = _unpack(path.read_bytes(), seal + str(number).encode())
        if record is not None:
            found[number] = record
            continue
        aside.append(path.name)
        os.replace(path, path.with_name(f"{path.name}.rejected-{secrets.token_hex(4)}"))
    if aside:
        listed = ", ".join(aside[:3]) + (", ..." if len(aside) > 3 else "")
        warnings.warn(
            f"store={str(folder)!r}: {len(aside)} records are damaged or not from this "
            f"evaluation ({listed}); they were renamed and will be recomputed",
            stacklevel=4,
        )
    return found


def _check_contents(folder: pathlib.Path) -> None:
    """Raises a ``ValueError`` for a folder that is neither empty nor a store."""
    names = {path.name for path in folder.iterdir()} - _IGNORED - {_LOCK}
    names -= {path.name for path in _shards(folder)}
    if _MANIFEST in names:
        return
    name = f"store={str(folder)!r}"
    if any(re.fullmatch(_RECORD, other) for other in names):
        raise ValueError(
            f"{name} contains records without {_MANIFEST}; restore that file, or pass a new folder"
        )
    if any(not is_partial(other, re.escape(_MANIFEST)) for other in names):
        raise ValueError(f"{name} contains other files; pass a new or empty folder")


def _same_logits(old: np.ndarray, new: np.ndarray) -> bool:
    """Whether two probes agree up to rounding, with identical non-finite values."""
    finite = np.abs(new[np.isfinite(new)])
    tolerance = 1e-4 * (1 + finite.max(initial=0.0))
    return old.shape == new.shape and np.allclose(old, new, rtol=0, atol=tolerance, equal_nan=True)


def _pack(arrays: Mapping[str, Any], owner: bytes) -> bytes:
    """An npz file with a seal, for :func:`_unpack`."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(_SEAL, _sign(archive, owner))
    return buffer.getvalue()


def _unpack(data: bytes, owner: bytes) -> dict[str, np.ndarray] | None:
    """The arrays of a file from :func:`_pack`, or None unless its seal is of this owner.

    Nothing is parsed before the seal is checked, and nothing is decompressed.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return None
            if archive.read(_SEAL) != _sign(archive, owner):
                return None
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, RuntimeError, OSError):
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays if name != _SEAL}


def _sign(archive: zipfile.ZipFile, owner: bytes) -> bytes:
    """SHA-256 of the owner, and of the names and bytes of the arrays."""
    sha = hashlib.sha256(owner)
    for name in archive.namelist():
        if name != _SEAL:
            content = archive.read(name)
            sha.update(f"{name.removesuffix('.npy')} {len(content)} ".encode() + content)
    return sha.hexdigest().encode()
