"""Transfers between host and device where a caller has forbidden the implicit ones."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

_F = TypeVar("_F", bound=Callable)


def on_host(function: _F) -> _F:
    """Marks a function that runs on the host and hands its arrays to compiled programs.

    ``jax.transfer_guard("disallow")`` is for loops that must stay on the device. Moving arrays is
    what such a function is for, so it allows that for its own duration.

    Example:
        >>> import jax.numpy as jnp
        >>> with jax.transfer_guard("disallow"):
        ...     on_host(lambda: jnp.asarray(0.5) + 1)()
        Array(1.5, dtype=float32, weak_type=True)
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with jax.transfer_guard("allow"):
            return function(*args, **kwargs)

    return cast(_F, wrapped)
