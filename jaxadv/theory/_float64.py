"""Enables float64 around theory calls, never for the user's other code.

* Called with arrays, a theory function enables 64-bit types while it runs, casts its floating
  inputs to float64 and restores the caller's setting. A caller in 32-bit mode gets NumPy arrays,
  because JAX truncates (and warns about) its own 64-bit arrays outside the context; one in 64-bit
  mode gets JAX arrays.
* Inside ``jax.jit``, ``jax.vmap`` or ``jax.grad`` the caller controls the types and must enable 64
bits around the outer call.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from .._transfers import on_host
from ..checks import is_concrete

_F = TypeVar("_F", bound=Callable)


def to_float64(tree: Any) -> Any:
    """Casts the floating arrays and numbers of a pytree to float64; the rest is unchanged."""

    def convert(leaf: Any) -> Any:
        is_number = isinstance(leaf, np.ndarray | np.generic | jax.Array | float)
        if is_number and jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return jnp.asarray(leaf, jnp.float64)
        return leaf

    return jax.tree.map(convert, tree)


def to_numpy(tree: Any) -> Any:
    """Converts the JAX arrays of a pytree to NumPy arrays; typed keys are unchanged."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return np.asarray(leaf)
        return leaf

    return jax.tree.map(convert, tree)


def _all_concrete(tree: Any) -> bool:
    return all(is_concrete(leaf) for leaf in jax.tree.leaves(tree))


def in_float64(function: _F) -> _F:
    """Decorates a function of arrays so that it computes in float64; see the module docstring.

    Raises:
        ValueError: (the decorated function) called inside a transformation with 64 bits disabled.

    Example:
        >>> import jax.numpy as jnp
        >>> double = in_float64(lambda x: 2 * x)
        >>> double(jnp.ones(2, "float32")).dtype, jnp.ones(2).dtype
        (dtype('float64'), dtype('float32'))
    """

    @on_host
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        enabled = bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]
        if enabled:
            args, kwargs = to_float64((args, kwargs))
            return function(*args, **kwargs)
        if _all_concrete((args, kwargs)):
            with jax.enable_x64(True):
                args, kwargs = to_float64((args, kwargs))
                result = function(*args, **kwargs)
            # A closed-over tracer makes the result a tracer even with concrete arguments.
            if _all_concrete(result):
                return to_numpy(result)
        raise ValueError(
            f"{function.__name__} was called inside jax.jit, vmap or grad with 64-bit types "
            "disabled, and the theory computes in float64; wrap the outer call: "
            "`with jax.enable_x64(True): ...`"
        )

    return cast(_F, wrapped)
