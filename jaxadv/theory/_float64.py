"""Where the theory's float64 is switched on: around a call, never for the user's other code.

* Called with arrays, a function of the theory enables 64-bit types for its own duration, casts its
  floating inputs to float64 and puts the caller's setting back. A caller who works in 32 bits gets
  NumPy arrays, because JAX truncates (and warns about) its own 64-bit arrays outside the context;
  one who works in 64 bits gets JAX arrays.
* Inside ``jax.jit``, ``jax.vmap`` or ``jax.grad`` the types belong to the caller, who has to enable
  64 bits around the outer call.
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
    """Casts the floating arrays and numbers of a pytree to float64; the rest stays."""

    def convert(leaf: Any) -> Any:
        is_number = isinstance(leaf, np.ndarray | np.generic | jax.Array | float)
        if is_number and jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return jnp.asarray(leaf, jnp.float64)
        return leaf

    return jax.tree.map(convert, tree)


def to_numpy(tree: Any) -> Any:
    """Turns the JAX arrays of a pytree into NumPy arrays; typed keys stay."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return np.asarray(leaf)
        return leaf

    return jax.tree.map(convert, tree)


def _all_concrete(tree: Any) -> bool:
    return all(is_concrete(leaf) for leaf in jax.tree.leaves(tree))


def in_float64(function: _F) -> _F:
    """Decorates a function of arrays so that it computes in float64, see the module.

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
            # A closed-over tracer makes the result one although the arguments are concrete.
            if _all_concrete(result):
                return to_numpy(result)
        raise ValueError(
            f"{function.__name__} was called inside jax.jit, vmap or grad with 64-bit types "
            "disabled, and the theory computes in float64; wrap the outer call: "
            "`with jax.enable_x64(True): ...`"
        )

    return cast(_F, wrapped)
