"""Weights from any file or folder: PyTorch's, safetensors, flax's msgpack, orbax's."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ._flax_file import arrays_of, is_flax_file, read_flax_file, read_folder
from ._torch import check_dtype, load_torch
from ._torch_entries import Match, match
from ._torch_layout import Entry, layout, shapes
from ._torch_tables import TABLES

_MAX_PROBLEMS = 20  # shown


def load(
    path: str | os.PathLike[str],
    module: nn.Module,
    *,
    entry: str | None = None,
    ignore: tuple[str, ...] = (),
    dtype: Any = np.float32,
    image_shape: tuple[int, int, int] | None = None,
) -> dict[str, Any]:
    """Load a network's weights from a file or folder of whatever kind.

    Read are PyTorch's files, safetensors and ``.npz``, as `load_torch` does; flax's msgpack files;
    folders of runs of this project, of flax (``checkpoint_NUMBER``) and of orbax, with or without
    its manager. The kind is found from the content. In a folder with several steps the last one
    is read, in that of a run ``selected.ckpt`` before ``last.ckpt``; give the path of another file
    or step to read that one.

    Names and shapes must be those of ``module``. Checkpoints of JAX programs hold the variables
    anywhere, beside optimizer states and the like, as dictionaries "params" and "batch_stats".
    Image normalization is ``module``'s, as for `load_torch`.

    Args:
      path: a file or folder.
      module: the network: of one of this package's classes for PyTorch's files, else any whose
        ``module.init`` takes a key and images.
      entry: the part of the file to search, by name or dotted path, if several match ("ema").
      ignore: names or name prefixes in the file to skip.
      dtype: dtype of the variables; float64 needs ``jax.enable_x64``.
      image_shape: (H, W, C), if the variables of a module of your own depend on it; default 32, 32,
        and the channels of the module's mean or 3.

    Returns:
      ``{"params": ..., "batch_stats": ...}`` for ``module.apply``; without "batch_stats" if the
      network has none.

    Raises:
      ValueError: if the file is damaged, has no such network or several, or does not match
        ``module``; missing, unexpected and misshapen names are listed. The message names the file.
      OSError: if it cannot be read.

    Example:
      >>> import os, tempfile
      >>> import flax, jax, jax.numpy as jnp
      >>> from jaxadv import models
      >>> module = models.mlp(3, hidden=(5,))
      >>> variables = module.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with open(os.path.join(folder, "checkpoint_1"), "wb") as file:
      ...         size = file.write(flax.serialization.to_bytes({"model": variables, "step": 1}))
      ...     loaded = models.load(folder, module)
      >>> loaded["params"]["linear"]["kernel"].shape
      (5, 3)
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_dir() and not is_flax_file(path):
        return load_torch(path, module, entry=entry, ignore=ignore, dtype=dtype)
    check_dtype(dtype)
    try:
        content = read_folder(path) if path.is_dir() else read_flax_file(path)
        found = {
            name: array
            for name, array in arrays_of(content)
            if (entry is None or f".{entry}." in f".{name}")
            and not (ignore and name.startswith(ignore))
        }
        return _convert(found, module, image_shape, np.dtype(dtype))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _convert(
    found: Mapping[str, np.ndarray],
    module: nn.Module,
    image_shape: tuple[int, int, int] | None,
    dtype: np.dtype,
) -> dict[str, Any]:
    expected = _expected(module, image_shape)
    problems: list[str] = []
    flat: dict[tuple[str, ...], Any] = {}
    for collection in dict.fromkeys(path[0] for path in expected):
        paths = {".".join(path): path for path in expected if path[0] == collection}
        prefix, given = _given(found, paths, collection)
        problems += [f"missing: {name}" for name in paths if name not in given]
        known = {*given.values()}
        extra = [raw for raw in found if raw.startswith(prefix) and raw not in known]
        problems += [f"unexpected: {raw}" for raw in extra]
        for name, raw in given.items():
            array, entry = found[raw], expected[paths[name]]
            if not entry.accepts_ours(array.shape):
                problems.append(f"shape: {raw} has {array.shape}; expected {entry.shape}")
            elif not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer)):
                problems.append(f"{raw}: its numbers are {array.dtype}")
            elif not problems:
                flat[paths[name]] = jax.device_put(array.astype(dtype))
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        shown = problems[:_MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise ValueError(
            f"the variables do not match {type(module).__name__}; {len(problems)} problems:\n  "
            + "\n  ".join(shown)
        )
    return flax.traverse_util.unflatten_dict(flat)


def _given(found: Mapping[str, Any], paths: Mapping[str, Any], collection: str) -> Match:
    """The file's name of each of our names, and what the names of its dictionary begin with."""
    prefix, given = match(list(found), {name: name for name in paths})
    if given or collection != "params":
        return Match(f"{prefix}{collection}.", given)
    bare = {name.removeprefix("params."): name for name in paths}
    return match(list(found), bare)  # the parameters alone


def _expected(module: Any, image_shape: tuple[int, int, int] | None) -> dict[Any, Entry]:
    """Our paths, with what shapes they may have."""
    if type(module) in TABLES:
        entries = layout(module, None if image_shape is None else image_shape[2]).values()
        return {entry.path: entry for entry in entries if entry.path is not None}
    flat = shapes(module, image_shape)
    return {path: Entry(path, shape=tuple(leaf.shape)) for path, leaf in flat.items()}
