"""Weights of PreActResNet and WideResNet from PyTorch state dicts, and back.

The names are those of the AWP code and of RobustBench; kernels are (O, C, kh, kw) there and
(kh, kw, C, O) here, the weight of the linear layer (K, F) there and (F, K) here.
"""

import difflib
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ._preact_resnet import PreActResNet
from ._safetensors import LazyArray
from ._torch_file import Tensor, read_torch_file, write_torch_file
from ._wide_resnet import WideResNet

# Where checkpoints keep their weights, in the order in which they are looked for.
_CONTAINERS = (
    "state_dict", "model_state_dict", "model", "net", "network", "model_state", "weights", "params",
    "parameters", "net_state_dict", "model_weights", "backbone", "classifier", "module",
)  # fmt: skip
_AVERAGED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "model_ema_state_dict",
    "ema_model_state_dict", "swa_state_dict", "swa_model",
)  # fmt: skip
_DEPTH = 8  # of containers in containers
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
    """Read the weights of a PyTorch checkpoint; PyTorch is not needed and no code is run.

    **The normalisation is not in the file.** The variables are for ``module`` as it was made: with
    ``mean=None, std=None`` it takes images in [0, 1] as they are, as most published robust networks
    do; others need the mean and std that they were trained with. A file that carries its own mean
    and std is compared with the module's.

    The state dict is searched in the usual containers ("state_dict", "model_state_dict", "model",
    "net", "weights", "params", ..., in this order; averaged weights, "ema" and the like, where
    there are no others: a warning says so where there are), wrapper prefixes ("module.",
    "model.", "0.", ...) are stripped, and both spellings of shortcuts ("shortcut.0",
    "convShortcut") and of the last layers are known.

    Args:
      path: a file written by ``torch.save`` (any version), ``safetensors`` or ``np.savez``.
      module: what the weights are for: a `PreActResNet` or a `WideResNet`.
      entry: the container to take, where the file has several.
      ignore: names in the file, or their beginnings, that are not wanted.
      dtype: dtype of the variables; float64 needs ``jax.enable_x64``.

    Returns:
      ``{"params": ..., "batch_stats": ...}`` for ``module.apply``.

    Raises:
      ValueError: if the file is torn, holds anything but weights, or does not fit ``module``; all
        missing, unexpected and misshapen names are listed. Also if the file's own normalisation
        is not that of ``module``.

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
    content = read_torch_file(path)
    try:
        state_dict = _find_state_dict(content, entry)
        return from_torch_state_dict(state_dict, module, ignore=ignore, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{os.path.basename(path)}: {error}") from error


def from_torch_state_dict(
    state_dict: Mapping[str, Any],
    module: nn.Module,
    *,
    ignore: tuple[str, ...] = (),
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """Flax variables from a state dict that is in memory.

    Args:
      state_dict: arrays (or tensors that NumPy can read) by their PyTorch names.
      module: as for `load_torch`.
      ignore: as for `load_torch`.
      dtype: as for `load_torch`.

    Returns:
      ``{"params": ..., "batch_stats": ...}`` for ``module.apply``.

    Raises:
      ValueError: as `load_torch`.
    """
    dtype = np.dtype(dtype)
    if dtype == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore
        raise ValueError("dtype is float64; call this inside `with jax.enable_x64(True):`.")
    shapes = _shapes(module)
    wanted = {e.name: e for e in _layout(module, shapes)}
    names = [
        name
        for name in state_dict
        if not name.endswith("num_batches_tracked") and not (ignore and name.startswith(ignore))
    ]
    prefix, given = _strip_prefix(names, wanted)
    extra = [name for name in names if name not in given.values()]
    extra = [name for name in extra if not _is_normalization(name, state_dict[name], module)]
    unused = [name for name in extra if name.startswith(f"{prefix}sub_block1.")]
    if unused:
        # RobustBench's WRN-34-10 files carry a copy of the first stage that forward never calls.
        warnings.warn(
            f"ignored {len(unused)} tensors of the unused stage sub_block1: {', '.join(unused)}",
            stacklevel=2,
        )
    problems = [f"missing: {name}{_nearest(name, extra)}" for name in wanted if name not in given]
    problems += [f"unexpected: {name}" for name in extra if name not in unused]
    flat: dict[tuple[str, ...], Any] = {}
    for name, entry in wanted.items():
        if name not in given:
            continue
        axes, expected = entry.axes, tuple(shapes[entry.path].shape)
        wanted_shape = expected if axes is None else tuple(expected[a] for a in axes)
        found_shape = tuple(state_dict[given[name]].shape)
        if found_shape != wanted_shape:
            problems.append(f"shape: {given[name]} has {found_shape}; {wanted_shape} wanted")
        elif not problems:  # only what fits is read
            array = _numpy(state_dict[given[name]])
            array = array if axes is None else array.transpose(np.argsort(axes))
            flat[entry.path] = jnp.asarray(array.astype(dtype))
    if problems:
        raise ValueError(
            f"the weights do not fit {type(module).__name__}"
            f" ({_describe(module)}); {len(problems)} problems:\n  " + "\n  ".join(problems)
        )
    return flax.traverse_util.unflatten_dict(flat)


def to_torch_state_dict(module: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict that the PyTorch definition of ``module`` loads, strictly.

    Args:
      module: a `PreActResNet` or a `WideResNet`.
      variables: its variables, with "params" and "batch_stats".

    Returns:
      Arrays by name, in PyTorch's order and layout and with the dtype of the variables;
      BatchNorm's counter ``num_batches_tracked``, which Flax does not keep, is 0.

    Raises:
      ValueError: if ``variables`` are not those of ``module``.
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
            f"variables are not those of {type(module).__name__} ({_describe(module)}); missing, "
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
    """Write a state dict that ``torch.load(path, weights_only=True)`` reads; `load_torch` too.

    Args:
      path: where to write; the file appears only when it is complete.
      module: a `PreActResNet` or a `WideResNet`.
      variables: its variables.

    Raises:
      ValueError: if ``variables`` are not those of ``module``.
    """
    write_torch_file(path, to_torch_state_dict(module, variables))


def _shapes(module: nn.Module, channels: int | None = None) -> dict[tuple[str, ...], Any]:
    if not isinstance(module, PreActResNet | WideResNet):
        raise ValueError(
            f"module is a {type(module).__name__}; only PreActResNet and WideResNet have PyTorch "
            "names."
        )
    if channels is None:
        channels = 3 if module.mean is None else len(module.mean)
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return flax.traverse_util.flatten_dict(jax.eval_shape(module.init, key, images))


def _channels(flat: Mapping[Any, Any]) -> int | None:
    kernel = flat.get(("params", "conv1", "kernel"))
    return None if kernel is None else kernel.shape[2]


def _layout(module: nn.Module, flat: Mapping[tuple[str, ...], Any]) -> Iterator[_Entry]:
    """All tensors in the order of PyTorch's state dict."""

    def conv(name, *path):
        yield _Entry(f"{name}.weight", ("params", *path, "kernel"), (3, 2, 0, 1))

    def norm(name, *path):
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


def _find_state_dict(content: Any, entry: str | None) -> Mapping[str, Any]:
    if entry is not None:
        if not isinstance(content, Mapping) or not isinstance(content.get(entry), Mapping):
            raise ValueError(f"the file has no dictionary {entry!r}; it has {_listed(content)}.")
        content = content[entry]
    for _ in range(_DEPTH):
        if not isinstance(content, Mapping):
            break
        tensors = {k: v for k, v in content.items() if _is_tensor(v) and isinstance(k, str)}
        inner = [name for name in _CONTAINERS if isinstance(content.get(name), Mapping)]
        averaged = [name for name in _AVERAGED if isinstance(content.get(name), Mapping)]
        both = [*inner[:1], *averaged[:1]]
        if averaged and (inner or tensors):
            warnings.warn(
                f"the file has trained and averaged weights ({', '.join([*inner, *averaged])}); "
                f"the trained ones are read, entry={averaged[0]!r} (--entry) reads the others",
                stacklevel=3,
            )
        if not both or (tensors and not inner):
            if tensors:
                return tensors
            break
        content = content[both[0]]
    raise ValueError(
        f"the file has no tensors under any known name; it has {_listed(content)}. "
        "Name the right one with entry=... (--entry)."
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | LazyArray | np.ndarray)


def _listed(content: Any) -> str:
    """The names at the top of a file, in one line."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    names = [str(name)[:40] for name in content if isinstance(name, str | int)]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"


def _canonical(name: str, wanted: Mapping[str, _Entry]) -> str:
    """The spelling that this architecture uses, for the spellings that occur in public files."""
    if name in wanted:
        return name
    stem = re.sub(r"\.(convShortcut|shortcut|shortcut\.0)\.weight$", ".", name)
    for spelling in ("convShortcut", "shortcut.0"):
        if stem != name and f"{stem}{spelling}.weight" in wanted:
            return f"{stem}{spelling}.weight"
    for group in (("linear.", "fc."), ("bn.", "bn1.")):
        for ours in group:
            for theirs in group:
                swapped = ours + name.removeprefix(theirs)
                if name.startswith(theirs) and swapped in wanted:
                    return swapped
    return name


def _strip_prefix(names: list[str], wanted: Mapping[str, _Entry]) -> tuple[str, dict[str, str]]:
    """The wrapper prefix that fits best, and the file's name for each wanted one under it."""
    prefixes = {""} | {name[: dot.end()] for name in names for dot in re.finditer(r"\.", name)}
    found: dict[str, dict[str, str]] = {}
    for prefix in prefixes:
        inside = {
            _canonical(n.removeprefix(prefix), wanted): n for n in names if n.startswith(prefix)
        }
        found[prefix] = {name: raw for name, raw in inside.items() if name in wanted}
    most = max(len(inside) for inside in found.values())
    winners = sorted((p for p, inside in found.items() if len(inside) == most), key=len)
    if most == len(wanted) and len(winners) > 1:
        raise ValueError(
            f"the file holds several networks that fit, under {', '.join(map(repr, winners))}; "
            "exclude all but one with ignore=(...)."
        )
    return winners[0], found[winners[0]]


def _is_normalization(name: str, value: Any, module: Any) -> bool:
    """Whether a tensor is a wrapper's mean or std; it must then be that of the module."""
    leaf = name.split(".")[-1]
    if leaf not in _MEAN + _STD:
        return False
    option, neutral = ("mean", 0.0) if leaf in _MEAN else ("std", 1.0)
    ours = getattr(module, option)
    if math.prod(value.shape) > 1024:
        return False
    theirs = _numpy(value).astype(np.float64).ravel()
    values = np.full(theirs.shape, neutral) if ours is None else np.asarray(ours, np.float64)
    if values.shape != theirs.shape or not np.allclose(values, theirs, atol=1e-6, rtol=1e-5):
        raise ValueError(
            f"{name} in the file is {tuple(theirs.tolist())}, but module.{option} is {ours}; make "
            f"the module with {option}={tuple(theirs.round(6).tolist())}, or pass "
            f"ignore=({name!r},)."
        )
    return True


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, Tensor | LazyArray):
        return value.numpy()
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _nearest(name: str, candidates: Any) -> str:
    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f" (nearest in the file: {close[0]})" if close else ""


def _describe(module: Any) -> str:
    fields = ("num_classes", "width", "blocks", "depth", "widen_factor")
    return ", ".join(f"{f}={getattr(module, f)}" for f in fields if hasattr(module, f))
