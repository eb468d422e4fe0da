"""Models behind functions on NumPy arrays."""

from collections.abc import Callable

import numpy as np

from ..types import LogitsFn
from ._foreign import Foreign


def numpy_logits_fn(
    logits: Callable[[np.ndarray], np.ndarray],
    gradient: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> LogitsFn:
    r"""A model of another framework, on a server or a device, as ``logits_fn`` of every attack.

    The functions are called during the attack, from threads of JAX and maybe several at a time,
    with arrays that must not be changed or kept. They must not call JAX.

    Args:
        logits: maps images of shape (B, H, W, C) to logits of shape (B, K), of the same dtype. Each
            image independently of the rest of the batch.
        gradient: maps images of shape (B, H, W, C) and cotangents v of shape (B, K) to
            :math:`\nabla_x \sum_{ik} v_{ik} z_k(x_i)`, of the shape of the images.

    Returns:
        A function of images, which can be compiled, differentiated once, and mapped.

    Raises:
        ValueError: when it is called, if logits or gradient have another shape or dtype.

    Example:
        >>> import numpy as np
        >>> from jaxadv.attacks import pgd
        >>> from jaxadv.interop import numpy_logits_fn
        >>> weights = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
        >>> logits_fn = numpy_logits_fn(
        ...     lambda x: x.reshape(len(x), 16) @ weights,
        ...     lambda x, v: (v @ weights.T).reshape(x.shape),
        ... )
        >>> x = np.full((2, 4, 4, 1), 0.5, np.float32)
        >>> y = logits_fn(x).argmax(1)
        >>> adversarial = pgd(
        ...     0, logits_fn, x, y, norm="linf", eps=0.2, step_size=0.05, num_steps=10
        ... )
        >>> (logits_fn(adversarial).argmax(1) != y).tolist()
        [True, True]
    """
    for name, function in (("logits", logits), ("gradient", gradient)):
        if not callable(function):
            raise ValueError(f"{name} is a {type(function).__name__}; pass a function")
    return Foreign(_NumpyModel(logits, gradient))


class _NumpyModel:
    """The two functions."""

    name = "logits"

    def __init__(self, logits: Callable, gradient: Callable) -> None:
        self._logits, self._gradient = logits, gradient

    def logits(self, images: np.ndarray, seed: np.ndarray | None) -> np.ndarray:
        """(B, K)."""
        del seed
        return self._logits(images)

    def gradients(
        self, images: np.ndarray, cotangents: np.ndarray, seed: np.ndarray | None
    ) -> np.ndarray:
        """(M, B, H, W, C)."""
        del seed
        return np.stack([self._gradient(images, each) for each in cotangents])
