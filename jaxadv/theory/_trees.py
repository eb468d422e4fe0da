"""Pytrees as float64 vectors, and the precision of calls to the user's functions.

The diagnostics call the user's functions in the precision of the given parameters: float32
checkpoints stay float32, and float64 parameters use float64 whatever the caller's setting.
Differences, norms and inner products are always taken in float64.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..types import PyTree


def precision_of(*trees: PyTree) -> contextlib.AbstractContextManager:
    """Context with 64-bit types enabled if a leaf is float64 or they are already enabled."""
    leaves = jax.tree.leaves(trees)
    is_double = any(getattr(leaf, "dtype", None) == np.float64 for leaf in leaves)
    enabled = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    return jax.enable_x64(bool(is_double or enabled))


def as_arrays(tree: PyTree) -> PyTree:
    """JAX arrays of the leaves, in the current precision."""
    return jax.tree.map(jnp.asarray, tree)


def vector(tree: PyTree) -> np.ndarray:
    """All leaves in one float64 NumPy vector."""
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def like(values: np.ndarray, tree: PyTree) -> PyTree:
    """The inverse of :func:`vector`: JAX arrays with the shapes and dtypes of ``tree``."""
    leaves, treedef = jax.tree.flatten(tree)
    parts, start = [], 0
    for leaf in leaves:
        size = int(np.size(leaf))
        part = values[start : start + size].reshape(np.shape(leaf))
        parts.append(jnp.asarray(part, jnp.result_type(leaf)))
        start += size
    return jax.tree.unflatten(treedef, parts)


def moved(tree: PyTree, direction: PyTree, amount: float) -> PyTree:
    """``tree + amount * direction`` in the dtypes of ``tree``, as NumPy arrays."""

    def move(p: Any, d: Any) -> np.ndarray:
        p = np.asarray(p)
        return np.asarray(p + amount * np.asarray(d, np.float64), p.dtype)

    return jax.tree.map(move, tree, direction)


def check_same_structure(name: str, tree: Any, other_name: str, other: Any) -> None:
    """Raises a ``ValueError`` unless two pytrees have the same structure and shapes."""
    found, expected = jax.tree.structure(tree), jax.tree.structure(other)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
    wanted = [np.shape(leaf) for leaf in jax.tree.leaves(other)]
    if found != expected or shapes != wanted:
        raise ValueError(
            f"{name} has structure {found} with shapes {shapes}, but {other_name} has {expected} "
            f"with {wanted}; pass pytrees of the same kind"
        )
