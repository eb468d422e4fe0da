"""Weights of PreActResNet and WideResNet from PyTorch state dicts, and back.

The names are those of the AWP code and of RobustBench; kernels are (O, C, kh, kw) in PyTorch and
(kh, kw, C, O) here, the weight of the linear layer (K, F) in PyTorch and (F, K) here.
"""

import difflib
import math
import os
import pathlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ._preact_resnet import PreActResNet
from ._stored import Tensor, Unreadable
from ._torch_entries import find_weights, match, spellings
from ._torch_file import read_torch_file, write_torch_file
from ._wide_resnet import WideResNet

_MAX_PROBLEMS, _MAX_UNUSED = 20, 100  # shown
_MAX_SCALES = 16  # tensors named mean or std to compare with the module's
_MAX_CHANNELS = 64
_MAX_COMPARED = 20_000  # pairs of names to compare for hints
_MEAN, _STD = ("mean", "mu"), ("std", "sigma")


class _Entry(NamedTuple):
    """One tensor: its name in PyTorch, its path in the Flax variables, the axes to permute."""

    name: str
    path: tuple[str, ...]
    axes: tuple[int, ...] | None


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
      module: the network: a `PreActResNet` or a `WideResNet`.
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
    _check(module, dtype)
    content = read_torch_file(path)
    layout = _torch_layout(module)
    try:
        state_dict = find_weights(content, _wanted(layout), entry, ignore)
        return _convert(state_dict, module, layout, ignore, np.dtype(dtype))
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
    _check(module, dtype)
    return _convert(state_dict, module, _torch_layout(module), ignore, np.dtype(dtype))


def _convert(
    state_dict: Mapping[str, Any],
    module: nn.Module,
    layout: Mapping[str, "_Target"],
    ignore: tuple[str, ...],
    dtype: np.dtype,
) -> dict[str, Any]:
    wanted = _wanted(layout)
    names = [
        name
        for name in state_dict
        if not name.endswith("num_batches_tracked") and not (ignore and name.startswith(ignore))
    ]
    prefix, given = match(names, spellings(wanted))
    known = set(given.values())
    extra = [name for name in names if name not in known]
    scales = [name for name in extra if name.split(".")[-1] in _MEAN + _STD][:_MAX_SCALES]
    scales = {name for name in scales if _is_normalization(name, state_dict[name], module)}
    extra = [name for name in extra if name not in scales]
    unused = {name for name in extra if name.startswith(f"{prefix}sub_block1.")}
    problems = _misfits(state_dict, given, wanted, [n for n in extra if n not in unused])
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
    for name, (path, axes, _) in layout.items():
        array = _numpy(state_dict[given[name]])
        if axes is not None:
            array = array.transpose(np.argsort(axes))
        flat[path] = jax.device_put(array.astype(dtype))
    return flax.traverse_util.unflatten_dict(flat)


def _misfits(
    state_dict: Mapping[str, Any],
    given: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
    extra: list[str],
) -> list[str]:
    """Missing, unexpected and misshapen tensors, without reading data."""
    missing = [name for name in wanted if name not in given]
    near = extra if len(missing) * len(extra) <= _MAX_COMPARED else []
    problems = [f"missing: {name}{_nearest(name, near)}" for name in missing]
    problems += [f"unexpected: {_shown(name)}" for name in extra]
    for name, raw in given.items():
        value = state_dict[raw]
        problem = getattr(value, "problem", None)
        if not isinstance(value, Unreadable) and _shape(value) != wanted[name]:
            problems.append(f"shape: {_shown(raw)} has {_shape(value)}; expected {wanted[name]}")
        elif problem or "complex" in str(getattr(value, "dtype", "")):
            problems.append(f"{_shown(raw)}: {problem or 'its numbers are complex'}")
    return problems


def to_torch_state_dict(module: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict for the PyTorch definition of ``module``, loadable with ``strict=True``.

    Args:
      module: a `PreActResNet` or a `WideResNet`.
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
    layout = list(_layout(module, flat))
    expected = _shapes(module, channels=_channels(flat))
    wrong = sorted(
        "/".join(path)
        for path in flat.keys() | expected.keys()
        if path not in flat
        or path not in expected
        or tuple(flat[path].shape) != tuple(expected[path].shape)
    )
    if wrong:
        raise ValueError(
            f"variables do not match {type(module).__name__} ({_describe(module)}); missing, "
            f"unexpected or of another shape: {', '.join(wrong)}."
        )
    out: dict[str, np.ndarray] = {}
    for name, path, axes in layout:
        array = np.asarray(flat[path])
        out[name] = np.ascontiguousarray(array if axes is None else array.transpose(axes))
        if name.endswith(".running_var"):
            out[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return out


def save_torch(
    path: str | os.PathLike[str], module: nn.Module, variables: Mapping[str, Any]
) -> None:
    """Write a state dict readable by ``torch.load(path, weights_only=True)`` and `load_torch`.

    Args:
      path: output path; the file appears only once complete.
      module: a `PreActResNet` or a `WideResNet`.
      variables: its variables.

    Raises:
      ValueError: if ``variables`` do not match ``module``.

    Example:
      See `load_torch`, which reads such a file back:

      >>> from jaxadv import models
      >>> models.save_torch("/nowhere.pt", models.mlp(10), {})
      Traceback (most recent call last):
      ValueError: module is a MLP, which has no PyTorch names.
    """
    write_torch_file(path, to_torch_state_dict(module, variables))


def _shapes(module: nn.Module, channels: int | None = None) -> dict[tuple[str, ...], Any]:
    _check_module(module)
    if channels is None:
        channels = 3 if module.mean is None else len(module.mean)
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return flax.traverse_util.flatten_dict(jax.eval_shape(module.init, key, images))


def _check_module(module: nn.Module) -> None:
    if not isinstance(module, PreActResNet | WideResNet):
        raise ValueError(
            f"module is a {type(module).__name__}; only PreActResNet and WideResNet have PyTorch "
            "names."
        )


class _Target(NamedTuple):
    """The destination of a PyTorch tensor: its path, the axes to permute, and its shape."""

    path: tuple[str, ...]
    axes: tuple[int, ...] | None
    shape: tuple[int, ...]


def _torch_layout(module: nn.Module) -> dict[str, _Target]:
    """All tensors by PyTorch name."""
    flat, layout = _shapes(module), {}
    for name, path, axes in _layout(module, flat):
        shape = tuple(flat[path].shape)
        layout[name] = _Target(path, axes, shape if axes is None else tuple(shape[a] for a in axes))
    return layout


def _wanted(layout: Mapping[str, _Target]) -> dict[str, tuple[int, ...]]:
    return {name: target.shape for name, target in layout.items()}


def _check(module: nn.Module, dtype: Any) -> None:
    _check_module(module)
    if np.dtype(dtype) == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore
        raise ValueError("dtype is float64; call this inside `with jax.enable_x64(True):`.")


def _channels(flat: Mapping[Any, Any]) -> int | None:
    kernel = flat.get(("params", "conv1", "kernel"))
    return None if kernel is None else kernel.shape[2]


def _layout(module: nn.Module, flat: Mapping[tuple[str, ...], Any]) -> Iterator[_Entry]:
    """All tensors in the order of PyTorch's state dict."""

    def conv(name: str, *path: str) -> Iterator[_Entry]:
        yield _Entry(f"{name}.weight", ("params", *path, "kernel"), (3, 2, 0, 1))

    def norm(name: str, *path: str) -> Iterator[_Entry]:
        yield _Entry(f"{name}.weight", ("params", *path, "scale"), None)
        yield _Entry(f"{name}.bias", ("params", *path, "bias"), None)
        yield _Entry(f"{name}.running_mean", ("batch_stats", *path, "mean"), None)
        yield _Entry(f"{name}.running_var", ("batch_stats", *path, "var"), None)

    if isinstance(module, WideResNet):
        blocks, ours, theirs = ((module.depth - 4) // 6,) * 3, "block{}_{}", "block{}.layer.{}"
        shortcut, last, linear = "convShortcut", "bn1", "fc"
    elif isinstance(module, PreActResNet):
        blocks, ours, theirs = module.blocks, "layer{}_{}", "layer{}.{}"
        shortcut, last, linear = "shortcut.0", "bn", "linear"
    else:
        raise ValueError(f"module is a {type(module).__name__}, which has no PyTorch names.")
    yield from conv("conv1", "conv1")
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            path, name = ours.format(stage, block), theirs.format(stage, block)
            yield from norm(f"{name}.bn1", path, "bn1")
            yield from conv(f"{name}.conv1", path, "conv1")
            yield from norm(f"{name}.bn2", path, "bn2")
            yield from conv(f"{name}.conv2", path, "conv2")
            if ("params", path, "shortcut", "kernel") in flat:
                yield from conv(f"{name}.{shortcut}", path, "shortcut")
    yield from norm(last, last)
    yield _Entry(f"{linear}.weight", ("params", linear, "kernel"), (1, 0))
    yield _Entry(f"{linear}.bias", ("params", linear, "bias"), None)


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
