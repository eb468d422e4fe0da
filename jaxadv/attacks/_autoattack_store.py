"""The folder in which AutoAttack keeps its progress: one file a finished chunk.

``manifest.json`` says what the store belongs to; ``000042.npz`` is the record of the 43rd chunk.
A record is written under another name, flushed to disk and renamed, so that a process that is
killed leaves either the whole record or none.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

FORMAT = 1


class Store:
    """Records of finished chunks; ``None`` as folder keeps nothing.

    Args:
        folder: created if it does not exist.
        manifest: what the records belong to, JSON values, compared with what the folder says.
        probe: logits on a few fixed images, compared up to rounding.

    Raises:
        ValueError: if the folder holds another model, other images or other arguments, or files
            that are not a store.
    """

    def __init__(self, folder, manifest: Mapping[str, Any], probe: np.ndarray):
        self._folder = None if folder is None else pathlib.Path(folder)
        self.records: list[dict[str, np.ndarray]] = []
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._folder.glob("*.partial"):
            leftover.unlink()
        manifest = {"format": FORMAT, **manifest}
        path = self._folder / "manifest.json"
        if path.exists():
            self._compare(json.loads(path.read_text()), manifest, probe)
        elif any(self._folder.iterdir()):
            raise ValueError(f"store={str(folder)!r} holds other files; pass a new or empty folder")
        else:
            text = json.dumps({**manifest, "probe": probe.tolist()}, indent=1)
            self._write(path, lambda file: file.write(text.encode()))
        for number in range(len(list(self._folder.glob("*.npz")))):
            with np.load(self._folder / f"{number:06d}.npz", allow_pickle=False) as record:
                self.records.append(dict(record))

    def _compare(self, stored: dict, manifest: Mapping[str, Any], probe: np.ndarray) -> None:
        different = [
            f"{name} was {stored.get(name)!r} and is {value!r}"
            for name, value in manifest.items()
            if stored.get(name) != value
        ]
        old = np.asarray(stored["probe"])
        scale = 1e-4 * (1 + np.abs(probe).max())
        if old.shape != probe.shape or not (np.abs(old - probe) <= scale).all():
            different.append("the model's logits differ")
        if different:
            raise ValueError(
                f"store={str(self._folder)!r} belongs to another evaluation: "
                f"{'; '.join(different)}; pass another folder, or the same arguments to resume"
            )

    def add(self, **record) -> dict[str, np.ndarray]:
        """Keeps a record; on return it is on disk."""
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in record.items()}
        if self._folder is not None:
            path = self._folder / f"{len(self.records):06d}.npz"
            self._write(path, lambda file: np.savez(file, **arrays))
        self.records.append(arrays)
        return arrays

    def _write(self, path: pathlib.Path, write) -> None:
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


def digest(*arrays) -> str:
    """SHA-256 of the dtypes, shapes and bytes of arrays."""
    sha = hashlib.sha256()
    for array in map(np.asarray, arrays):
        sha.update(f"{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
