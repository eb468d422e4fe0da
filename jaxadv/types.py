"""Type aliases shared by the whole library."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import numpy.typing as npt

Array: TypeAlias = jax.Array
ArrayLike: TypeAlias = npt.ArrayLike | jax.Array  # what jnp.asarray takes
Key: TypeAlias = jax.Array  # a typed PRNG key, made by jax.random.key
PyTree: TypeAlias = Any
Params: TypeAlias = Any
Norm: TypeAlias = Literal["linf", "l2", "l1"]
Radius: TypeAlias = float | str | Array  # a number, a fraction such as "8/255", or one per image

LogitsFn: TypeAlias = Callable[[Array], Array]  # images (B, H, W, C) -> logits (B, K)
LossFn: TypeAlias = Callable[[Array, Array], Array]  # logits (B, K), labels (B,) -> losses (B,)

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
