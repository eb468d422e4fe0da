"""Checkpoints: one file each, written atomically and verified when read.

The content is flax's msgpack serialization of a pytree and a small JSON record; a header with its
length and SHA-256 detects damaged files. A new checkpoint is written to a temporary file in the
same folder, flushed to disk, and renamed over the old one.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

_MAGIC = b"jaxadv-checkpoint-1\n"


class CheckpointError(ValueError):
    """A checkpoint can't be read or does not match: names the file, the problem and the fix."""


def save(path: Path, tree: Any, record: dict) -> None:
    """Writes a checkpoint atomically; the existing file survives any failure.

    Args:
        path: file to write.
        tree: pytree of arrays; typed PRNG keys are stored as their data.
        record: JSON-serializable metadata.

    Raises:
        OSError: if the disk is full or read-only; says that the old checkpoint is untouched.
    """
    body = serialization.msgpack_serialize(
        {
            "record": json.dumps(record),
            "tree": serialization.to_state_dict(jax.tree.map(_to_numpy, tree)),
        }
    )
    header = _MAGIC + hashlib.sha256(body).digest() + len(body).to_bytes(8, "little")
    write_atomically(path, header + body)


def load(path: Path, template: Any, data: bytes | None = None) -> tuple[Any, dict]:
    """Reads a checkpoint into the structure of ``template``.

    Args:
        path: file written by :func:`save`.
        template: a pytree with the same structure, shapes and dtypes, for example from
            ``jax.eval_shape``.
        data: the file's content, default read from ``path``.

    Returns:
        The pytree of NumPy arrays (PRNG keys rewrapped) and the record.

    Raises:
        CheckpointError: if the file is damaged, is not a checkpoint or belongs to another
        architecture.
    """
    content = _read(path, data)
    return restore(path, content["tree"], template), json.loads(content["record"])


def load_record(path: Path) -> dict:
    """Reads only the record of a checkpoint."""
    return json.loads(_read(path)["record"])


def load_part(
    path: Path, names: tuple[str, ...], templates: tuple, data: bytes | None = None
) -> tuple:
    """Reads some top-level parts of a checkpoint, each into the structure of its template."""
    tree = _read(path, data)["tree"]
    missing = [name for name in names if name not in tree]
    if missing:
        raise CheckpointError(f"{path}: has no {missing[0]!r}; was it written by another program?")
    return tuple(
        restore(path, tree[name], template) for name, template in zip(names, templates, strict=True)
    )


def restore(path: Path, stored: Any, template: Any) -> Any:
    """Restores stored arrays into the structure of ``template`` after checking every leaf."""
    expected = _leaves(serialization.to_state_dict(jax.tree.map(_spec, template)))
    found = _leaves(stored)
    different = sorted(set(expected) ^ set(found)) or [
        name
        for name, leaf in expected.items()
        if (leaf.shape, leaf.dtype) != (found[name].shape, found[name].dtype)
    ]
    if different:
        name = different[0]
        raise CheckpointError(
            f"{path}: does not match this model; at {name} the file has "
            f"{_describe(found.get(name))} and the model {_describe(expected.get(name))} "
            f"({len(different)} mismatches); use the config "
            "it was trained with or another --workdir"
        )
    arrays = serialization.from_state_dict(jax.tree.map(_spec, template), stored)
    return jax.tree.map(_rewrap, arrays, template)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file atomically.

    Raises:
        OSError: with the path and the fix; the old file is untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise type(error)(
            error.errno,
            f"can't write ({error.strerror}); the previous file is untouched. Free some space "
            "or choose another --workdir, then run the same command again",
            str(path),
        ) from error


def read_bytes(path: Path) -> bytes:
    """The content of a checkpoint, unverified.

    Raises:
        CheckpointError: if there is no such file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; train first, or check --workdir")
    return path.read_bytes()


def _read(path: Path, data: bytes | None = None) -> dict:
    data = read_bytes(path) if data is None else data
    start = len(_MAGIC) + 40
    if not data.startswith(_MAGIC):
        raise CheckpointError(
            f"{path}: is not a checkpoint of this project, or its header is damaged"
        )
    body = data[start:]
    size = int.from_bytes(data[start - 8 : start], "little")
    if len(body) != size or hashlib.sha256(body).digest() != data[len(_MAGIC) : start - 8]:
        raise CheckpointError(
            f"{path}: is truncated or damaged ({len(body)} of {size} bytes); delete it to start "
            "over, or copy it again from its source"
        )
    return cast(dict, serialization.msgpack_restore(body))


def _is_key(leaf) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_numpy(leaf) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _spec(leaf) -> jax.ShapeDtypeStruct:
    leaf = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _rewrap(array, leaf):
    if not _is_key(leaf):
        return array
    key = jnp.zeros((), leaf.dtype)  # key_impl needs an array, and a template has none
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(key))


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {
            name: leaf
            for key, value in tree.items()
            for name, leaf in _leaves(value, f"{prefix}/{key}").items()
        }
    return {} if tree is None else {prefix: tree}


def _describe(leaf) -> str:
    return "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
