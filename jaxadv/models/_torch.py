"""Weights from PyTorch state dicts, and back.

The names are those of the public code of each architecture (`_torch_tables`). Kernels are
(O, C, kh, kw) in PyTorch and (kh, kw, C, O) here, the weights of a linear layer (K, F) in PyTorch
and (F, K) here.
"""

import difflib
import math
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from ._safetensors import write_safetensors
from ._stored import Tensor, Unreadable
from ._torch_entries import find_weights, match, spellings
from ._torch_file import read_torch_file, write_torch_file
from ._torch_layout import Entry, channels_of, check_module, layout, wanted
from ._torch_tables import UNREAD

_MAX_PROBLEMS, _MAX_UNUSED = 20, 100  # shown
_MAX_SCALES = 16  # tensors named mean or std to compare with the module's
_MAX_CHANNELS = 64
_MAX_COMPARED = 20_000  # pairs of names to compare for hints
_MEAN, _STD = ("mean", "mu"), ("std", "sigma")


def load_torch(
    path: str | os.PathLike[str],
    module: nn.Module,
    *,
    entry: str | None = None,
    ignore: tuple[str, ...] = (),
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """Load the weights of a checkpoint without PyTorch and without running code.

    All dictionaries in the file, including nested ones, are searched for one with all tensors of
    ``module``: "state_dict", "model", "state_dict_ema", "params", or any other name. If several
    match, trained weights take precedence over averaged ones ("ema" and the like), with a warning
    that names the others; if the names are inconclusive, ``entry`` is required. Wrapper prefixes
    ("module.", "model.", "0.", ...) are stripped, and both spellings of shortcuts ("shortcut.0",
    "convShortcut") and of the last layers are recognized. Other content is ignored and may be
    anything that ``torch.load(weights_only=True)`` reads.

    A file does not record image normalization: ``module.mean`` and ``module.std`` are used as is,
    by default CIFAR-10's. For a network that takes raw images in [0, 1], like most published ones,
    create the module with ``mean=None, std=None``. A wrong choice gives wrong accuracies, not an
    error.

    Args:
      path: a file written by ``torch.save`` (any version) or ``np.savez``, or a safetensors file;
        detected from its content.
      module: the network, of one of this package's classes.
      entry: the dictionary to use or search, by name or dotted path ("model_ema",
        "checkpoint.ema").
      ignore: names or name prefixes in the file to skip.
      dtype: dtype of the variables; float64 needs ``jax.enable_x64``.

    Returns:
      ``{"params": ..., "batch_stats": ...}`` for ``module.apply``.

    Raises:
      ValueError: if the file is truncated, contains anything but data, expands beyond what weights
        need, or does not match ``module``; the first missing, unexpected and misshapen names are
        listed. Also if several entries match and none has a usual name, or the file's own
        normalization differs from ``module``'s. The message names the file.
      OSError: if it cannot be read.

    Example:
      >>> import os, tempfile
      >>> import jax, jax.numpy as jnp
      >>> from jaxadv import models
      >>> module = models.preact_resnet18(10, width=2)
      >>> variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = os.path.join(folder, "weights.pt")
      ...     models.save_torch(file, module, variables)
      ...     loaded = models.load_torch(file, module)
      >>> bool((loaded["params"]["bn"]["scale"] == variables["params"]["bn"]["scale"]).all())
      True
    """
    check_module(module)
    check_dtype(dtype)
    content = read_torch_file(path)
    entries = layout(module)
    try:
        state_dict = find_weights(content, wanted(entries), entry, ignore)
        return _convert(state_dict, module, entries, ignore, np.dtype(dtype))
    except ValueError as error:
        raise ValueError(f"{pathlib.Path(path).name}: {error}") from error


def from_torch_state_dict(
    state_dict: Mapping[str, Any],
    module: nn.Module,
    *,
    ignore: tuple[str, ...] = (),
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """Convert an in-memory state dict to Flax variables.

    Args:
      state_dict: arrays (or tensors that NumPy can read) by PyTorch name.
      module: see `load_torch`.
      ignore: see `load_torch`.
      dtype: see `load_torch`.

    Returns:
      ``{"params": ..., "batch_stats": ...}`` for ``module.apply``.

    Raises:
      ValueError: see `load_torch`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxadv import models
      >>> module = models.preact_resnet18(10, width=2)
      >>> variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> state_dict = models.to_torch_state_dict(module, variables)
      >>> again = models.from_torch_state_dict(state_dict, module)
      >>> bool((again["params"]["bn"]["scale"] == variables["params"]["bn"]["scale"]).all())
      True
    """
    check_module(module)
    check_dtype(dtype)
    return _convert(state_dict, module, layout(module), ignore, np.dtype(dtype))


def _convert(
    state_dict: Mapping[str, Any],
    module: nn.Module,
    entries: Mapping[str, Entry],
    ignore: tuple[str, ...],
    dtype: np.dtype,
) -> dict[str, Any]:
    expected = wanted(entries)
    names = [
        name
        for name in state_dict
        if not name.endswith(UNREAD) and not (ignore and name.startswith(ignore))
    ]
    prefix, given = match(names, spellings(expected))
    known = set(given.values())
    extra = [name for name in names if name not in known]
    scales = [name for name in extra if name.split(".")[-1] in _MEAN + _STD][:_MAX_SCALES]
    scales = {name for name in scales if _is_normalization(name, state_dict[name], module)}
    extra = [name for name in extra if name not in scales]
    unused = {name for name in extra if name.startswith(f"{prefix}sub_block1.")}
    problems = _misfits(state_dict, given, entries, [n for n in extra if n not in unused])
    if problems:
        shown = problems[:_MAX_PROBLEMS]
        more = [] if len(problems) == len(shown) else [f"and {len(problems) - len(shown)} more"]
        raise ValueError(
            f"the weights do not match {type(module).__name__}"
            f" ({_describe(module)}); {len(problems)} problems:\n  " + "\n  ".join(shown + more)
        )
    if unused:
        # RobustBench's WRN-34-10 files contain a copy of the first stage that forward never calls.
        warnings.warn(
            f"ignored {len(unused)} tensors of the unused stage sub_block1: "
            + ", ".join([name for name in extra if name in unused][:_MAX_UNUSED]),
            stacklevel=3,
        )
    flat: dict[tuple[str, ...], Any] = {}
    for name, entry in entries.items():
        if entry.path is not None:
            array = entry.from_torch(_numpy(state_dict[given[name]]))
            flat[entry.path] = jax.device_put(array.astype(dtype))
    return flax.traverse_util.unflatten_dict(flat)


def _misfits(
    state_dict: Mapping[str, Any],
    given: Mapping[str, str],
    entries: Mapping[str, Entry],
    extra: list[str],
) -> list[str]:
    """Missing, unexpected and misshapen tensors, without reading data."""
    missing = [name for name in wanted(entries) if name not in given]
    near = extra if len(missing) * len(extra) <= _MAX_COMPARED else []
    problems = [f"missing: {name}{_nearest(name, near)}" for name in missing]
    problems += [f"unexpected: {_shown(name)}" for name in extra]
    for name, raw in given.items():
        value = state_dict[raw]
        problem = getattr(value, "problem", None)
        if not isinstance(value, Unreadable) and not entries[name].accepts(_shape(value)):
            problems.append(
                f"shape: {_shown(raw)} has {_shape(value)}; expected {entries[name].shape}"
            )
        elif problem or "complex" in str(getattr(value, "dtype", "")):
            problems.append(f"{_shown(raw)}: {problem or 'its numbers are complex'}")
    return problems


def to_torch_state_dict(module: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict for the PyTorch definition of ``module``, loadable with ``strict=True``.

    Args:
      module: the network, of one of this package's classes.
      variables: its variables, with "params" and "batch_stats".

    Returns:
      Arrays by name, in PyTorch's order and layout with the dtype of the variables; BatchNorm's
      counter ``num_batches_tracked``, which Flax lacks, is 0.

    Raises:
      ValueError: if ``variables`` do not match ``module``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxadv import models
      >>> module = models.preact_resnet18(10, width=2)
      >>> variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> state_dict = models.to_torch_state_dict(module, variables)
      >>> state_dict["conv1.weight"].shape, list(state_dict)[-1]
      ((2, 3, 3, 3), 'linear.bias')
    """
    flat: dict[Any, Any] = flax.traverse_util.flatten_dict(dict(variables))
    entries = layout(module, channels_of(module, flat))
    places = {entry.path: entry for entry in entries.values() if entry.path is not None}
    wrong = sorted(
        "/".join(path)
        for path in flat.keys() | places.keys()
        if path not in flat
        or path not in places
        or not places[path].accepts_ours(tuple(flat[path].shape))
    )
    if wrong:
        raise ValueError(
            f"variables do not match {type(module).__name__} ({_describe(module)}); missing, "
            f"unexpected or of another shape: {', '.join(wrong)}."
        )
    return {
        name: entry.value
        if entry.path is None
        else np.asarray(entry.to_torch(np.asarray(flat[entry.path])), order="C")
        for name, entry in entries.items()
    }


def save_torch(
    path: str | os.PathLike[str], module: nn.Module, variables: Mapping[str, Any]
) -> None:
    """Write a state dict readable by ``torch.load(path, weights_only=True)`` and `load_torch`.

    Args:
      path: output path; the file appears only once complete.
      module: the network, of one of this package's classes.
      variables: its variables.

    Raises:
      ValueError: if ``variables`` do not match ``module``.

    Example:
      See `load_torch`, which reads such a file back:

      >>> from jaxadv import models
      >>> models.save_torch("/nowhere.pt", models.Conv(3), {})
      Traceback (most recent call last):
      ValueError: module is a Conv, which has no PyTorch names; those have: ...
    """
    write_torch_file(path, to_torch_state_dict(module, variables))


def save_safetensors(
    path: str | os.PathLike[str], module: nn.Module, variables: Mapping[str, Any]
) -> None:
    """Write a state dict as a safetensors file, readable by its libraries and `load_torch`.

    Args:
      path: output path; the file appears only once complete.
      module: the network, of one of this package's classes.
      variables: its variables.

    Raises:
      ValueError: if ``variables`` do not match ``module``.

    Example:
      >>> import os, tempfile
      >>> import jax, jax.numpy as jnp
      >>> from jaxadv import models
      >>> module = models.wide_resnet(10, depth=10, width=1)
      >>> variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = os.path.join(folder, "weights.safetensors")
      ...     models.save_safetensors(file, module, variables)
      ...     loaded = models.load_torch(file, module)
      >>> bool((loaded["params"]["fc"]["bias"] == variables["params"]["fc"]["bias"]).all())
      True
    """
    write_safetensors(path, to_torch_state_dict(module, variables))


def check_dtype(dtype: Any) -> None:
    """Raises a ``ValueError`` for float64 without x64."""
    if np.dtype(dtype) == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore
        raise ValueError("dtype is float64; call this inside `with jax.enable_x64(True):`.")


def _is_normalization(name: str, value: Any, module: Any) -> bool:
    """Whether a tensor is a wrapper's mean or std, which must then match the module's."""
    if isinstance(value, Unreadable) or math.prod(_shape(value)) > _MAX_CHANNELS:
        return False
    is_mean = name.split(".")[-1] in _MEAN
    option, neutral = ("mean", 0.0) if is_mean else ("std", 1.0)
    ours = getattr(module, option)
    theirs = _numpy(value).astype(np.float64).ravel()
    values = np.full(theirs.shape, neutral) if ours is None else np.asarray(ours, np.float64)
    if values.shape != theirs.shape or not np.allclose(values, theirs, atol=1e-6, rtol=1e-5):
        raise ValueError(
            f"{_shown(name)} in the file is {tuple(theirs.tolist())}, but module.{option} is {ours}"
            f"; create the module with {option}={tuple(theirs.round(6).tolist())}, or pass "
            f"ignore=({_shown(name)!r},)."
        )
    return True


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if hasattr(value, "shape") else np.shape(value)


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.numpy()
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _nearest(name: str, candidates: list[str]) -> str:
    close = difflib.get_close_matches(name, [c for c in candidates if len(c) <= 200], n=1)
    return f" (nearest in the file: {_shown(close[0])})" if close else ""


def _shown(name: str) -> str:
    name = name if len(name) <= 80 else name[:80] + "..."
    return name if name.isprintable() else ascii(name)


def _describe(module: Any) -> str:
    fields = ("num_classes", "width", "blocks", "depth", "widen_factor", "mean", "std")
    return ", ".join(f"{f}={getattr(module, f)}" for f in fields if hasattr(module, f))
