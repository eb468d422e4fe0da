"""Frozen parameters: leaves hidden by optax.masked, prefix masks, and structure checks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..checks import is_concrete
from ..types import Params, PyTree


def _hidden(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def hides_leaves(tree: PyTree) -> bool:
    """Whether ``optax.masked`` or ``optax.multi_transform`` has removed leaves from ``tree``."""
    return any(_hidden(node) for node in jax.tree.leaves(tree, is_leaf=_hidden))


def fill(tree: PyTree, whole: PyTree) -> PyTree:
    """``tree`` with its hidden leaves taken from ``whole``."""
    return jax.tree.map(
        lambda node, full: full if _hidden(node) else node, tree, whole, is_leaf=_hidden
    )


def hide(tree: PyTree, like: PyTree) -> PyTree:
    """``tree`` without the leaves hidden in ``like``."""
    return jax.tree.map(
        lambda node, full: node if _hidden(node) else full, like, tree, is_leaf=_hidden
    )


def same_place(path: tuple) -> tuple[str, ...]:
    """A path that does not distinguish a dictionary from a FrozenDict or a named tuple."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def check_like(name: str, tree: PyTree, params: Params) -> None:
    """Raises a ``ValueError`` that names the first leaf in which ``tree`` differs from ``params``.

    Raises:
        ValueError: ``tree`` has a different structure or shape.
    """
    if jax.tree.structure(tree) != jax.tree.structure(params):
        found, wanted = (
            {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(t)}
            for t in (tree, params)
        )
        for path in sorted(wanted - found):
            raise ValueError(
                f"{name} has no leaf {path}, but params has; pass zeros for it, or freeze it with "
                "optax.masked"
            )
        for path in sorted(found - wanted):
            raise ValueError(f"{name} has a leaf {path}, but params has none; leave it out")
        raise ValueError(
            f"{name} is a {type(tree).__name__} with other containers than params, a "
            f"{type(params).__name__}; build both from the same containers"
        )
    for (path, leaf), param in zip(
        jax.tree.leaves_with_path(tree), jax.tree.leaves(params), strict=True
    ):
        if jnp.shape(leaf) != jnp.shape(param):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}, but the "
                f"parameter has {jnp.shape(param)}"
            )


def check_floating(params: Params, what: str, remedy: str) -> None:
    """Raises a ``ValueError`` unless all leaves of ``params`` are floating-point numbers."""
    for path, leaf in jax.tree.leaves_with_path(params):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} has dtype {dtype}, but {what} "
                f"floating-point numbers only; {remedy}"
            )


def expand_mask(mask: Any, params: Params) -> PyTree:
    """A mask with one Boolean per leaf of ``params``.

    Args:
        mask: a pytree of Booleans shaped like ``params`` or a prefix of it, where one Boolean
        covers everything below; or a function of ``params`` that returns one.
        params: the parameters.

    Returns:
        Python Booleans in the structure of ``params``.

    Raises:
        ValueError: a mask entry is not a Boolean or covers nothing, or a leaf is not covered.

    Example:
        >>> expand_mask({"body": False, "head": True}, {"body": {"w": 1.0, "b": 1.0}, "head": 1.0})
        {'body': {'b': False, 'w': False}, 'head': True}
    """
    given = mask(params) if callable(mask) else mask
    empty = lambda node: not jax.tree.leaves(node)
    places = jax.tree.leaves_with_path(params, is_leaf=empty)
    gaps = {same_place(path) for path, leaf in places if empty(leaf)}
    entries = {}
    for path, value in jax.tree.leaves_with_path(given, is_leaf=lambda node: node is None):
        if value is None and same_place(path) in gaps:
            continue
        if not _is_boolean(value):
            raise ValueError(
                f"mask{jax.tree_util.keystr(path)}={value!r} is not True or False; pass one "
                "Boolean for each leaf or layer of params"
            )
        entries[same_place(path)] = (jax.tree_util.keystr(path), bool(value))
    used, values = set(), []
    for path, leaf in places:
        place = same_place(path)
        covering = [place[:n] for n in range(len(place) + 1) if place[:n] in entries]
        used.update(covering)
        if empty(leaf):
            continue
        if not covering:
            raise ValueError(
                f"mask has no entry for params{jax.tree_util.keystr(path)}; pass True or False for "
                "it or for a layer above it"
            )
        values.append(entries[covering[0]][1])
    for place, (name, _) in entries.items():
        if place not in used:
            raise ValueError(f"mask{name} matches nothing in params; remove it or fix its name")
    return jax.tree.unflatten(jax.tree.structure(params), values)


def _is_boolean(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return True
    known = isinstance(value, np.ndarray | jax.Array) and is_concrete(value)
    return known and value.shape == () and value.dtype == bool
