"""The folder where AutoAttack saves its progress: one file per finished chunk.

``manifest.json`` identifies the evaluation; ``000042.npz`` is the record of the 43rd chunk, with a
digest of the manifest, its number and its content. A damaged record, or one copied from another
store or number, does not match its digest: it is set aside and its images are recomputed. ``lock``
keeps other processes and threads out.
"""

import hashlib
import io
import json
import os
import pathlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from ..._files import is_partial, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 2
_MANIFEST, _LOCK, _SEAL = "manifest.json", "lock", "seal"
_RECORD = r"\d{6}\.npz"
# Files that file browsers and version control put into otherwise empty folders.
_IGNORED = {".DS_Store", "Thumbs.db", "desktop.ini", ".gitkeep", ".gitignore"}


class Store:
    """Records of finished chunks, open to one evaluation at a time; a context manager.

    Args:
        folder: created if it does not exist, "~" expanded; None keeps nothing.

    Raises:
        ValueError: if the folder is in use or contains files that are not a store.
        OSError: if it cannot be created or written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.records: list[dict[str, np.ndarray]] = []
        self._folder = None if folder is None else pathlib.Path(folder).expanduser()
        self._lock: int | None = None
        self._next = 0
        if self._folder is not None:
            self._claim(self._folder)

    def open(self, manifest: Mapping[str, Any], probe: np.ndarray) -> None:
        """Loads the records of an evaluation, or initializes the store for a new one.

        Args:
            manifest: JSON values that identify the evaluation, compared with the folder's.
            probe: logits on a few fixed images, compared up to rounding.

        Raises:
            ValueError: if the folder belongs to a different model, images or arguments, or its
            manifest cannot be read.
        """
        if self._folder is None:
            return
        manifest = {"format": FORMAT, **manifest}
        path = self._folder / _MANIFEST
        if path.exists():
            self._compare(path, manifest, probe)
        else:
            text = json.dumps({**manifest, "probe": probe.tolist()}, indent=1)
            write_atomically(path, lambda file: file.write(text.encode()))
        self._seal = hashlib.sha256(path.read_bytes()).digest()
        self._read(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def add(self, **record: Any) -> dict[str, np.ndarray]:
        """Saves a record; on return it is on disk."""
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in record.items()}
        if self._folder is not None:
            data = _pack(arrays, self._seal + str(self._next).encode())
            path = self._folder / f"{self._next:06d}.npz"
            write_atomically(path, lambda file: file.write(data))
            self._next += 1
        self.records.append(arrays)
        return arrays

    def _claim(self, folder: pathlib.Path) -> None:
        """Checks that the folder is a store or empty, and locks it."""
        name = f"store={str(folder)!r}"
        if fcntl is None:
            raise ValueError(f"{name} needs file locks, which this system lacks; pass store=None")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _check_contents(folder, name)
            self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            text = f"cannot be a store ({error.strerror}); pass another folder"
            raise type(error)(error.errno, text, str(folder)) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise ValueError(
                f"{name} is in use by another evaluation; wait for it, or pass another folder"
            ) from None

    def _compare(self, path: pathlib.Path, manifest: Mapping[str, Any], probe: np.ndarray) -> None:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            version, old = stored["format"], np.asarray(stored["probe"], np.float64)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is damaged ({type(error).__name__}); restore it, or pass another folder"
            ) from error
        if version != FORMAT:
            raise ValueError(
                f"store={str(self._folder)!r} was written by another version of jaxadv; "
                "pass another folder"
            )
        different = [
            f"{name} was {_short(stored.get(name))} and is {_short(value)}"
            for name, value in manifest.items()
            if stored.get(name) != json.loads(json.dumps(value))
        ]
        if not _same_logits(old, probe):
            different.append("the model's logits differ")
        if different:
            raise ValueError(
                f"store={str(self._folder)!r} belongs to another evaluation: "
                f"{'; '.join(different)}; pass another folder, or the same arguments to resume"
            )

    def _read(self, folder: pathlib.Path) -> None:
        """The records with a valid digest; others are renamed."""
        aside = []
        for path in sorted(folder.iterdir()):
            if is_partial(path.name, f"{_RECORD}|{re.escape(_MANIFEST)}"):
                path.unlink()  # left by a killed evaluation
            if not re.fullmatch(_RECORD, path.name):
                continue
            number = int(path.name[:6])
            self._next = max(self._next, number + 1)
            record = _unpack(path.read_bytes(), self._seal + str(number).encode())
            if record is None:
                aside.append(path.name)
                os.replace(path, _unused(path))
            else:
                self.records.append(record)
        if aside:
            listed = ", ".join(aside[:3]) + (", ..." if len(aside) > 3 else "")
            warnings.warn(
                f"store={str(folder)!r}: {len(aside)} records are damaged or not from this "
                f"evaluation ({listed}); they were renamed and will be recomputed",
                stacklevel=4,
            )


def _check_contents(folder: pathlib.Path, name: str) -> None:
    """Raises a ``ValueError`` for a folder that is neither empty nor a store."""
    names = {path.name for path in folder.iterdir()} - _IGNORED - {_LOCK}
    if _MANIFEST in names:
        return
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


def _unused(path: pathlib.Path) -> pathlib.Path:
    """An unused name for a record that is set aside."""
    number = 1
    while (moved := path.with_name(f"{path.name}.rejected{number}")).exists():
        number += 1
    return moved


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _pack(arrays: Mapping[str, np.ndarray], owner: bytes) -> bytes:
    """An npz file with a digest: SHA-256 of its owner and its members' names and bytes."""
    buffer, sha = io.BytesIO(), hashlib.sha256(owner)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            sha.update(f"{name} {len(member.getvalue())} ".encode() + member.getvalue())
            archive.writestr(f"{name}.npy", member.getvalue())
        archive.writestr(_SEAL, sha.hexdigest())
    return buffer.getvalue()


def _unpack(data: bytes, owner: bytes) -> dict[str, np.ndarray] | None:
    """The arrays of a file from :func:`_pack`, or None unless its digest matches this owner.

    Nothing is parsed before the digest is checked, and nothing is decompressed.
    """
    sha = hashlib.sha256(owner)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                return None
            *members, seal = [(entry.filename, archive.read(entry)) for entry in entries]
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError, OSError):
        return None
    for name, content in members:
        sha.update(f"{name.removesuffix('.npy')} {len(content)} ".encode() + content)
    if seal != (_SEAL, sha.hexdigest().encode()):
        return None
    read = np.lib.format.read_array
    return {name.removesuffix(".npy"): read(io.BytesIO(content)) for name, content in members}


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of the dtypes, shapes and bytes of arrays."""
    sha = hashlib.sha256()
    for array in map(np.asarray, arrays):
        sha.update(f"{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
