"""Reads checkpoints of JAX programs: flax's msgpack, this project's runs, and orbax folders."""

import hashlib
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import serialization

_RUN_MAGIC = b"jaxadv-checkpoint-1\n"
_MAPS = [bytes([first]) for first in (*range(0x81, 0x90), 0xDE, 0xDF)]
_RUN_FILES = ("selected.ckpt", "last.ckpt")
_MAX_DEPTH = 64


def is_flax_file(path: pathlib.Path) -> bool:
    """Whether a file starts like a run's checkpoint, or like a dictionary in msgpack.

    A safetensors file may have the same first byte, of the length of its table.
    """
    with open(path, "rb") as file:
        head = file.read(len(_RUN_MAGIC))
    if head == _RUN_MAGIC:
        return True
    is_safetensors = head[5:9] == b"\0\0\0{"
    return not is_safetensors and head[:1] in _MAPS


def read_flax_file(path: pathlib.Path) -> Any:
    """The content of a flax msgpack file, with or without the header of a run's checkpoint.

    Raises:
      ValueError: if it is damaged.
    """
    data = path.read_bytes()
    if data.startswith(_RUN_MAGIC):
        start = len(_RUN_MAGIC) + 40
        digest, body = data[len(_RUN_MAGIC) : start - 8], data[start:]
        if hashlib.sha256(body).digest() != digest:
            raise ValueError("the checkpoint is truncated or damaged; copy it again")
        data = body
    try:
        return serialization.msgpack_restore(data)
    except Exception as error:  # of any kind, since the bytes may be anything
        raise ValueError(f"not flax's msgpack, or truncated ({error}); copy it again") from error


def read_folder(path: pathlib.Path) -> Any:
    """The newest checkpoint in a folder of a run, of flax or of orbax.

    Raises:
      ValueError: if there is none, or orbax can't read it.
    """
    for name in _RUN_FILES:
        if (path / name).is_file():
            return read_flax_file(path / name)
    if (path / "_METADATA").is_file():
        return _read_orbax(path)
    entries = [(number, entry) for entry in path.iterdir() if (number := _step(entry)) is not None]
    if entries:
        newest = max(entries)[1]
        return read_folder(newest) if newest.is_dir() else read_flax_file(newest)
    items = {p.name: p for p in path.iterdir() if (p / "_METADATA").is_file()}
    if items:
        return {name: _read_orbax(item) for name, item in items.items()}
    raise ValueError(
        "a folder without a checkpoint; there should be selected.ckpt or last.ckpt, flax's "
        "checkpoint_NUMBER, or orbax's _METADATA"
    )


def _step(entry: pathlib.Path) -> int | None:
    """The number in a name such as "20" or "checkpoint_20"."""
    found = re.fullmatch(r"(?:[A-Za-z][\w-]*_)?(\d{1,18})", entry.name)
    return int(found[1]) if found else None


def _read_orbax(path: pathlib.Path) -> Any:
    import orbax.checkpoint as ocp  # takes seconds

    with ocp.PyTreeCheckpointer() as reader:
        try:
            # As NumPy arrays: the devices that wrote them need not be here.
            tree = reader.metadata(path.absolute()).item_metadata.tree
            kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return reader.restore(path.absolute(), restore_args=kinds)
        except Exception as error:  # of any kind, since the files may be anything
            first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise ValueError(f"orbax can't read {path.name}: {first}") from error


def arrays_of(content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """All arrays of nested dictionaries and lists by dotted name.

    Raises:
      ValueError: if they are nested too deeply.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"dictionaries are nested more than {_MAX_DEPTH} deep")
    if isinstance(content, Mapping):
        items = [(str(name), value) for name, value in content.items()]
    elif isinstance(content, list | tuple):
        items = [(str(i), value) for i, value in enumerate(content)]
    else:
        if isinstance(content, np.ndarray | np.generic | jax.Array):
            yield prefix[:-1], np.asarray(content)
        return
    for name, value in items:
        yield from arrays_of(value, f"{prefix}{name}.", depth + 1)
