"""Which tensors of a file are the weights of a network: their container, prefix and spelling."""

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ._stored import Tensor, Unreadable

_MAX_TENSORS = 20_000  # in one container
_MAX_CONTAINERS = 20_000
_MAX_DEPTH = 5
_MAX_PREFIX = 8  # dots
_MAX_NAME = 500
# What the top level and its entries are usually called, and in which order they are taken.
_TRAINED = (
    "", "state_dict", "model_state_dict", "model", "net", "network", "model_state", "weights",
    "params", "parameters", "net_state_dict", "model_weights", "backbone", "classifier", "module",
)  # fmt: skip
_AVERAGED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "model_ema_state_dict",
    "ema_model_state_dict", "swa_state_dict", "swa_model", "swa",
)  # fmt: skip
_SHORTCUTS = ("convShortcut", "shortcut.0", "shortcut")
_LAST = (("linear.", "fc."), ("bn.", "bn1."))


class Match(NamedTuple):
    """The names of a network in a container.

    Attributes:
      prefix: what stands before them.
      given: the container's name for each of the network's.
    """

    prefix: str
    given: dict[str, str]


class _Candidate(NamedTuple):
    path: str
    tensors: Mapping[str, Any]
    match: Match
    fitting: int  # tensors that also have the wanted shape


def find_weights(
    content: Any,
    wanted: Mapping[str, tuple[int, ...]],
    entry: str | None,
    ignore: tuple[str, ...] = (),
) -> Mapping[str, Any]:
    """The container of a file that has the wanted tensors.

    All containers are searched, whatever they are called. The one that has every wanted name and
    shape is taken. Where several have, the usual names decide, trained weights before averaged
    ones, and a warning names the others; where those say nothing, none is guessed.

    Args:
      content: of the file.
      wanted: shapes of the network's tensors by name.
      entry: name or dotted path of the container to take, or to search in.
      ignore: names, or their beginnings, that are not wanted.

    Returns:
      Its tensors by name.

    Raises:
      ValueError: if nothing has tensors, there is no such entry, or several containers fit and
        their names don't tell which is meant.
    """
    spelled = spellings(wanted)
    candidates, paths = [], []
    for path, tensors in _containers(content):
        paths.append(path)
        if entry is None or f".{entry}." in f".{path}.":
            names = [name for name in tensors if not (ignore and name.startswith(ignore))]
            found = match(names, spelled)
            shaped = (
                getattr(tensors[raw], "shape", None) == wanted[name]
                for name, raw in found.given.items()
            )
            candidates.append(_Candidate(path, tensors, found, sum(shaped)))
    if not candidates:
        known = ", ".join(map(_quoted, paths[:10]))
        problem = (
            f"no entry {entry!r} with tensors; they are in {known}" if paths else "no tensors in it"
        )
        raise ValueError(f"the file has {problem}")
    fitting = [found for found in candidates if found.fitting == len(wanted)]
    rivals = {_identity(found): found for found in sorted(fitting, key=_usual, reverse=True)}
    if len(rivals) > 1:
        return _choose(sorted(rivals.values(), key=_usual)).tensors
    return max(candidates, key=_fit).tensors


def _choose(rivals: list[_Candidate]) -> _Candidate:
    """The first of several sets of weights by their usual names, aloud; else none."""
    names = ", ".join(_quoted(found.path) for found in rivals[:10])
    first, second = rivals[:2]
    remedy = f"entry={second.path!r} (--entry={second.path})"
    if _usual(first) == _usual(second):
        raise ValueError(
            f"the file has {len(rivals)} sets of weights that fit, {names}; choose one, say with "
            + remedy
        )
    warnings.warn(
        f"the file has {len(rivals)} sets of weights that fit, {names}; {_quoted(first.path)} is "
        f"read, {remedy} reads the next",
        stacklevel=4,
    )
    return first


def _usual(found: _Candidate) -> tuple[int, int]:
    """Trained weights before averaged ones, each by their usual names, before all others."""
    parts = found.path.split(".")
    averaged = [_AVERAGED.index(part) for part in parts if part in _AVERAGED]
    if averaged:
        return 1, min(averaged)
    return (0, _TRAINED.index(parts[-1])) if parts[-1] in _TRAINED else (2, 0)


def _fit(found: _Candidate) -> tuple[int, ...]:
    return found.fitting, len(found.match.given), len(found.tensors), -len(found.path)


def _quoted(path: str) -> str:
    return repr(path if len(path) <= 80 else path[:80] + "...") if path else "its top level"


def _identity(found: _Candidate) -> tuple:
    """Equal for containers that share all tensors, as when one is saved under two names."""
    return tuple(_same(found.tensors[raw]) for _, raw in sorted(found.match.given.items()))


def _same(tensor: Any) -> Any:
    if isinstance(tensor, Tensor):
        return id(tensor.storage), tensor.offset, tensor.shape, tensor.strides
    return id(tensor)


def _containers(content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """All dictionaries with tensors, with their paths; each once."""
    queue: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()
    for path, value in queue:
        if id(value) in seen:
            continue
        seen.add(id(value))
        items = _items(value)
        tensors = {name: v for name, v in items if isinstance(v, Tensor | Unreadable | np.ndarray)}
        if tensors:
            yield ".".join(path), tensors
        if len(path) < _MAX_DEPTH:
            inner = ((n, v) for n, v in items if isinstance(v, Mapping | list | tuple))
            queue += [((*path, name[:_MAX_NAME]), v) for name, v in inner]
        if len(queue) > _MAX_CONTAINERS:
            raise ValueError(
                f"the file has more than {_MAX_CONTAINERS} containers; save model.state_dict() "
                "alone"
            )


def _items(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        return [(str(i), v) for i, v in enumerate(value[:64])]
    if not isinstance(value, Mapping):
        return []
    return [(name, v) for name, v in value.items() if isinstance(name, str)]


def spellings(wanted: Iterable[str]) -> dict[str, str]:
    """The wanted name for every spelling of it that occurs in public files."""
    wanted = list(wanted)
    others = {spelling: name for name in wanted for spelling in _spellings(name)}
    return others | {name: name for name in wanted}


def _spellings(name: str) -> Iterator[str]:
    for ours in _SHORTCUTS:
        if name.endswith(f".{ours}.weight"):
            stem = name.removesuffix(f"{ours}.weight")
            yield from (f"{stem}{theirs}.weight" for theirs in _SHORTCUTS)
    for group in _LAST:
        for ours in group:
            if name.startswith(ours):
                yield from (theirs + name.removeprefix(ours) for theirs in group)


def match(names: Collection[str], spelled: Mapping[str, str]) -> Match:
    """The wrapper prefix under which most wanted names are.

    Raises:
      ValueError: if all are there under several, or there are far too many names.
    """
    if len(names) > _MAX_TENSORS:
        raise ValueError(
            f"{len(names)} tensors in one dictionary; the network has {len(set(spelled.values()))}"
        )
    found: dict[str, dict[str, str]] = {"": {}}
    for name in names:
        at = 0
        for _ in range(_MAX_PREFIX + 1):
            ours = spelled.get(name[at:]) if len(name) <= _MAX_NAME else None
            if ours is not None:
                found.setdefault(name[:at], {})[ours] = name
            at = name.find(".", at) + 1
            if at == 0:
                break
    most = max(len(given) for given in found.values())
    winners = sorted((p for p, given in found.items() if len(given) == most), key=len)
    if most == len(set(spelled.values())) and len(winners) > 1:
        raise ValueError(
            f"the file holds several networks that fit, under {', '.join(map(repr, winners[:10]))}"
            "; exclude all but one with ignore=(...)."
        )
    return Match(winners[0], found[winners[0]])
