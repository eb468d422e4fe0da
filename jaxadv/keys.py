"""Converts any PRNG key to the one kind whose draws do not depend on the batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .types import Key

_IMPL = "threefry2x32"


def as_key(key: Any, *, name: str = "key") -> Key:
    """One typed threefry key, from a typed or raw key of any implementation or from a seed.

    Under ``jax.vmap``, draws of the "rbg" generators depend on the batch. An image's draws must
    not, so their key data seed a threefry key instead.

    Args:
        key: ``jax.random.key(...)``, ``jax.random.PRNGKey(...)`` or an integer in [0, 2^32).
        name: name of the argument, for messages.

    Returns:
        A typed key of shape (); a threefry key is returned unchanged.

    Raises:
        ValueError: for anything else, including several keys.

    Example:
        >>> bool(as_key(7) == jax.random.key(7))
        True
    """
    remedy = f"pass {name}=jax.random.key(0)"
    if isinstance(key, bool) or not (hasattr(key, "dtype") or isinstance(key, int)):
        raise ValueError(f"{name}={key!r} is not a PRNG key; {remedy}")
    if isinstance(key, int | np.integer):
        if not 0 <= key < 2**32:
            raise ValueError(f"{name}={key} is not a seed in [0, 2**32); {remedy}")
        return jax.random.key(np.uint32(key), impl=_IMPL)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape != ():
            raise ValueError(f"{name} contains keys of shape {key.shape}; pass one of them")
        if key.dtype == _threefry_dtype():
            return key
        words = jax.random.key_data(key)
    elif key.dtype == np.uint32 and key.shape in ((2,), (4,)):
        words = jnp.asarray(key)
    else:
        raise ValueError(
            f"{name} has dtype {key.dtype} and shape {key.shape}, which is not a PRNG key; {remedy}"
        )
    first = jax.random.wrap_key_data(words[:2], impl=_IMPL)
    if words.shape == (2,):
        return first
    return jax.random.fold_in(jax.random.fold_in(first, words[2]), words[3])


def typed_key(key: Any, *, name: str = "key") -> Key:
    """Like `as_key`, but leaves typed keys of other generators unchanged.

    For draws that are never batched, such as noise on weights.

    Args:
        key: see `as_key`.
        name: name of the argument, for messages.

    Raises:
        ValueError: see `as_key`.

    Example:
        >>> jax.random.key_impl(typed_key(jax.random.key(0, impl="rbg")))
        'rbg'
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.shape == ():
        return key
    return as_key(key, name=name)


@functools.cache
def _threefry_dtype() -> object:
    return jax.eval_shape(lambda: jax.random.key(0, impl=_IMPL)).dtype
