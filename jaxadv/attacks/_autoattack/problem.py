"""The problem that AutoAttack evaluates: everything a verdict depends on."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from ..._program import digest
from ...types import Key, Norm
from .._kernel import Kernel

# "default" is what JAX is set to, for float32 often less than float32 on accelerators.
PRECISIONS = ("default", "high", "highest")


class Problem(NamedTuple):
    """A model on images, and the attacks.

    Attributes:
        trace: maps a number of rows and a precision of matrix products and convolutions to the
            model traced for them.
        precision: that of the attacks, one of ``PRECISIONS``. Verdicts have the highest.
        key: typed PRNG key.
        images: clean images, (N, H, W, C).
        labels: true classes, (N,), integers; the dtype is part of the digest.
        num_classes: K.
        norm: the norm.
        eps: the radius.
        randomized: whether the model takes a key.
        plan: the attacks by name, in order.
        code: what each of them computes, see :func:`jaxadv.attacks._driver.code_of`.
    """

    trace: Callable[[int, str], Partial]
    precision: str
    key: Key
    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    norm: Norm
    eps: float
    randomized: bool
    plan: dict[str, Kernel]
    code: dict[str, str]

    def model(self, rows: int) -> Partial:
        """The model that is attacked, for so many rows; one that draws takes them one by one."""
        return self.trace(1 if self.randomized else rows, self.precision)

    def judge(self, rows: int) -> Partial:
        """The model that decides, for so many rows."""
        return self.trace(1 if self.randomized else rows, "highest")

    def key_of(self, number: int) -> Key:
        """The key of the passes over predictions (0), or of an attack by its place from 1."""
        return jax.random.fold_in(self.key, number)

    def describe(self) -> dict[str, Any]:
        """The problem in JSON values: equal for equal problems."""
        return {
            "norm": self.norm,
            "eps": self.eps,
            "precision": self.precision,
            "attacks": {name: repr(kernel) for name, kernel in self.plan.items()},
            "key": [str(jax.random.key_impl(self.key)), jax.random.key_data(self.key).tolist()],
            "images": _digest(self.images),
            "labels": _digest(self.labels),
            "model": digest(self.model(1)),
        }


def _digest(array: np.ndarray) -> str:
    """SHA-256 of the dtype, shape and bytes of an array."""
    sha = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
