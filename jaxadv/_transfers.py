"""Host-device transfers under a transfer guard that disallows implicit ones."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

_F = TypeVar("_F", bound=Callable)


def on_host(function: _F) -> _F:
    """Marks a function that runs on the host and passes arrays to compiled programs.

    ``jax.transfer_guard("disallow")`` is for loops that must stay on the device. Such a function's
    purpose is to move arrays, so it allows transfers while it runs.

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
