"""Finds a network's weights among the tensors of a file: container, prefix and spelling."""

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ._stored import Tensor, Unreadable
from ._torch_layout import Shape, fits

_MAX_TENSORS = 20_000  # in one container
_MAX_CONTAINERS = 20_000
_MAX_DEPTH = 5
_MAX_PREFIX = 8  # dots
_MAX_NAME = 500
# Usual names of the top level and its entries, in order of precedence. Where both are there, the
# averaged weights are the others, unless the file says that those beside it are not averaged.
_TRAINED = (
    "", "state_dict", "model_state_dict", "model", "net", "network", "model_state", "weights",
    "params", "parameters", "net_state_dict", "model_weights", "backbone", "classifier", "module",
    "last", "best",
)  # fmt: skip
_OTHER = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "model_ema_state_dict",
    "ema_model_state_dict", "swa_state_dict", "swa_model", "swa", "unaveraged_net",
    "unaveraged_model", "unaveraged_model_state_dict", "unaveraged_state_dict",
)  # fmt: skip
_SHORTCUTS = ("convShortcut", "shortcut.0", "shortcut", "downsample.0")
_SHORTCUT_NORMS = ("shortcut.1", "downsample.1")
_LAST = (("linear.", "fc."), ("bn.", "bn1."))


class Match(NamedTuple):
    """A network's names in a container.

    Attributes:
      prefix: common prefix of the names.
      given: the container's name for each of the network's names.
    """

    prefix: str
    given: dict[str, str]


class _Candidate(NamedTuple):
    path: str
    tensors: Mapping[str, Any]
    match: Match
    fitting: int  # tensors that also have the expected shape


def find_weights(
    content: Any,
    wanted: Mapping[str, Shape],
    entry: str | None,
    ignore: tuple[str, ...] = (),
) -> Mapping[str, Any]:
    """Finds the container with the expected tensors.

    Searches all containers, whatever their names, for every expected name and shape. If several
    match, the usual names decide, trained weights before averaged ones, and a warning names the
    others; if the names are inconclusive, it does not guess.

    Args:
      content: content of the file.
      wanted: expected shapes of the network's tensors by name.
      entry: name or dotted path of the container to use or search.
      ignore: names or name prefixes to skip.

    Returns:
      Its tensors by name.

    Raises:
      ValueError: if there are no tensors or no such entry, or several containers match and their
        names are inconclusive.
    """
    spelled = spellings(wanted)
    candidates, paths = [], []
    for path, tensors in _containers(content):
        paths.append(path)
        if entry is None or f".{entry}." in f".{path}.":
            names = [name for name in tensors if not (ignore and name.startswith(ignore))]
            found = match(names, spelled)
            shaped = (
                fits(getattr(tensors[raw], "shape", None), wanted[name])
                for name, raw in found.given.items()
            )
            candidates.append(_Candidate(path, tensors, found, sum(shaped)))
    if not candidates:
        known = ", ".join(map(_quoted, paths[:10]))
        problem = (
            f"no entry {entry!r} with tensors; available: {known}" if paths else "no tensors in it"
        )
        raise ValueError(f"the file has {problem}")
    fitting = [found for found in candidates if found.fitting == len(wanted)]
    rivals = {_identity(found): found for found in sorted(fitting, key=_usual, reverse=True)}
    if len(rivals) > 1:
        return _choose(sorted(rivals.values(), key=_usual)).tensors
    return max(candidates, key=_fit).tensors


def _choose(rivals: list[_Candidate]) -> _Candidate:
    """Chooses among several sets of weights by their usual names, with a warning; else None."""
    names = ", ".join(_quoted(found.path) for found in rivals[:10])
    first, second = rivals[:2]
    remedy = f"entry={second.path!r} (--entry={second.path})"
    if _usual(first) == _usual(second):
        raise ValueError(
            f"the file has {len(rivals)} matching sets of weights, {names}; choose one, for "
            f"example with {remedy}"
        )
    warnings.warn(
        f"the file has {len(rivals)} matching sets of weights, {names}; using "
        f"{_quoted(first.path)}, pass {remedy} for the next",
        stacklevel=4,
    )
    return first


def _usual(found: _Candidate) -> tuple[int, int]:
    """Trained weights before averaged ones, by their usual names, before all others."""
    parts = found.path.split(".")
    others = [_OTHER.index(part) for part in parts if part in _OTHER]
    if others:
        return 1, min(others)
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
    """All dictionaries with tensors, under each of their paths; a path enters none twice."""
    queue: list[tuple[tuple[str, ...], Any, tuple[int, ...]]] = [((), content, ())]
    for path, value, above in queue:
        items = _items(value)
        tensors = {name: v for name, v in items if isinstance(v, Tensor | Unreadable | np.ndarray)}
        if tensors:
            yield ".".join(path), tensors
        if len(path) < _MAX_DEPTH:
            above = (*above, id(value))
            inner = ((n, v) for n, v in items if isinstance(v, Mapping | list | tuple))
            queue += [((*path, n[:_MAX_NAME]), v, above) for n, v in inner if id(v) not in above]
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
    """The expected name for every spelling found in public files."""
    wanted = list(wanted)
    others = {spelling: name for name in wanted for spelling in _spellings(name)}
    return others | {name: name for name in wanted}


def _spellings(name: str) -> Iterator[str]:
    for group in (_SHORTCUTS, _SHORTCUT_NORMS):
        stem, _, leaf = name.rpartition(".")
        for ours in group:
            if stem.endswith(f".{ours}"):
                yield from (f"{stem.removesuffix(ours)}{theirs}.{leaf}" for theirs in group)
    for group in _LAST:
        for ours in group:
            if name.startswith(ours):
                yield from (theirs + name.removeprefix(ours) for theirs in group)


def match(names: Collection[str], spelled: Mapping[str, str]) -> Match:
    """The wrapper prefix of most expected names.

    Raises:
      ValueError: if several prefixes have all names, or there are far too many names.
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
            "the file contains several matching networks, under "
            f"{', '.join(map(repr, winners[:10]))}; exclude all but one with ignore=(...)."
        )
    return Match(winners[0], found[winners[0]])
