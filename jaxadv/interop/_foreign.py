"""Models outside JAX as functions that can be compiled and differentiated, by callbacks.

A compiled program knows a model by a number among its arguments, so a new model needs no new
compilation, and no compiled program keeps a model alive.

On CPU the callback gets the program's own buffers. ``jax.pure_callback`` would copy its arguments
to a JAX array, in a thread of the pool that also runs the callbacks: once callbacks hold all
threads, as they do when several programs run at a time, each waits for its copy forever. On other
platforms, whose pool is idle then, it is used.
"""

import collections
import functools
import itertools
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from .._program import give_meaning
from .._program_key import Stable
from ..types import Array, Key


class Model(Protocol):
    """What a model outside JAX can do. Images are (B, H, W, C), and ``seed`` is None or (2,)."""

    name: str

    def logits(self, images: np.ndarray, seed: np.ndarray | None) -> np.ndarray:
        """Logits of shape (B, K)."""
        ...

    def gradients(
        self, images: np.ndarray, cotangents: np.ndarray, seed: np.ndarray | None
    ) -> np.ndarray:
        """Cotangents (M, B, K) of the logits pulled back to the images, (M, B, H, W, C)."""
        ...


_models: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)
# JAX may run a program after the call that started it returned, and the caller dropped the model.
_recent: collections.deque = collections.deque(maxlen=4)


class Foreign:
    """A model outside JAX as a function of images, (B, H, W, C) to (B, K), and maybe of a key.

    Args:
        model: the model.
        describe: a text that identifies model and weights, the same in every process; None if
            there is none, and then a store tells models apart by their logits alone.
        check: called with the dtype of the images at every trace; raises a ``ValueError``.
        randomized: whether the model takes a key.
    """

    def __init__(
        self,
        model: Model,
        *,
        describe: Callable[[], str] | None = None,
        check: Callable[[np.dtype], None] | None = None,
        randomized: bool = False,
    ) -> None:
        self.model, self._randomized, self._check = model, randomized, check
        self._describe = (lambda: "") if describe is None else describe
        self._number = next(_numbers)
        self._handle: Array | None = None
        self._classes: dict[tuple, int] = {}

    def __call__(self, images: Array, key: Key | None = None) -> Array:
        """The logits."""
        if self._randomized == (key is None):
            takes = "takes images and a key" if self._randomized else "takes images only"
            raise ValueError(f"{self.model.name} {takes}; see its randomized=")
        if len(images.shape) != 4:
            raise ValueError(f"images has shape {images.shape}; expected (B, H, W, C)")
        if self._check is not None:
            self._check(np.dtype(images.dtype))
        num_classes = self._num_classes(images.shape[1:], np.dtype(images.dtype))
        handle = self._handle
        if handle is None:
            with jax.ensure_compile_time_eval():
                handle = self._handle = jax.device_put(np.uint32(self._number))
            give_meaning(handle, self._describe)
        _models[self._number] = self.model
        _recent.append(self.model)
        seed = None if key is None else jax.random.key_data(key)
        return _operation(num_classes)(handle, images, seed)

    def _num_classes(self, shape: tuple[int, ...], dtype: np.dtype) -> int:
        """K, from one black image; once per shape."""
        found = self._classes.get((shape, dtype))
        if found is None:
            seed = np.zeros(2, np.uint32) if self._randomized else None
            logits = self.model.logits(np.zeros((1, *shape), dtype), seed)
            found = self._classes[shape, dtype] = _checked(self.model, logits, 1, dtype).shape[1]
        return found


def _checked(model: Model, logits: Any, rows: int, dtype: np.dtype) -> np.ndarray:
    """Logits, if that is what they are."""
    if not isinstance(logits, np.ndarray):
        raise ValueError(
            f"{model.name} returns a {type(logits).__name__}; return the logits alone, (B, K)"
        )
    if logits.ndim != 2 or logits.shape[0] != rows or logits.shape[1] == 0:
        raise ValueError(
            f"{model.name} returns shape {logits.shape} for {rows} images; expected logits (B, K)"
        )
    if logits.dtype != dtype:
        raise ValueError(
            f"{model.name} returns {logits.dtype} logits for {dtype} images; return {dtype}"
        )
    return logits


@functools.cache
def _operation(num_classes: int) -> Callable[[Array, Array, Array | None], Array]:
    """The logits as an operation of JAX, with a derivative."""

    @jax.custom_vjp
    def logits(handle: Array, images: Array, seed: Array | None) -> Array:
        out = jax.ShapeDtypeStruct((images.shape[0], num_classes), images.dtype)
        return _call(_LOGITS, out, handle, images, seed)

    def forward(handle: Array, images: Array, seed: Array | None) -> tuple[Array, tuple]:
        return logits(handle, images, seed), (handle, images, seed)

    def backward(known: tuple, cotangents: Array) -> tuple[None, Array, None]:
        handle, images, seed = known
        out = jax.ShapeDtypeStruct(images.shape, images.dtype)
        return None, _call(_GRADIENTS, out, handle, images, seed, cotangents), None

    logits.defvjp(forward, backward)
    return logits


def _call(callback: "_Callback", out: jax.ShapeDtypeStruct, *args: Array | None) -> Array:
    into = buffer_callback(callback.into, out, vmap_method="expand_dims")
    elsewhere = lambda *args: jax.pure_callback(callback, out, *args, vmap_method="expand_dims")
    return jax.lax.platform_dependent(*args, cpu=into, default=elsewhere)


class _Callback(Stable):
    """Calls a model. Under ``vmap``, arguments have leading axes, some of them of size 1."""

    def __init__(self, compute: Callable[..., np.ndarray], name: str) -> None:
        self._compute, self._name = compute, name

    def __repr__(self) -> str:
        return f"jaxadv.interop.{self._name}"

    def __call__(self, handle: Any, *args: Any) -> np.ndarray:
        model = _models[int(np.asarray(handle).ravel()[0])]
        return self._compute(model, *(None if arg is None else np.asarray(arg) for arg in args))

    def into(self, context: Any, out: Any, handle: Any, *args: Any) -> None:
        """Writes to a buffer of JAX."""
        del context
        np.asarray(out)[...] = self(handle, *args)


def _logits(model: Model, images: np.ndarray, seed: np.ndarray | None) -> np.ndarray:
    """Logits (..., B, K) of images (..., B, H, W, C)."""
    lead, rows = images.shape[:-4], images.shape[-4]
    if seed is None:
        flat = images.reshape(-1, *images.shape[-3:])
        found = _checked(model, model.logits(flat, None), len(flat), images.dtype)
        return found.reshape(*lead, rows, -1)
    lead = np.broadcast_shapes(lead, seed.shape[:-1])
    images = np.broadcast_to(images, (*lead, *images.shape[-4:]))
    seed = np.broadcast_to(seed, (*lead, 2))
    each = [
        _checked(model, model.logits(images[index], seed[index]), rows, images.dtype)
        for index in np.ndindex(*lead)
    ]
    return np.stack(each).reshape(*lead, rows, -1)


def _gradients(
    model: Model, images: np.ndarray, seed: np.ndarray | None, cotangents: np.ndarray
) -> np.ndarray:
    """Cotangents (..., B, K) pulled back to images (..., B, H, W, C)."""
    shape = images.shape[-4:]
    if seed is None and images.size == np.prod(shape):  # several cotangents at the same images
        stacked = cotangents.reshape(-1, *cotangents.shape[-2:])
        found = model.gradients(images.reshape(shape), stacked, None)
        return _shaped(model, found, (len(stacked), *shape)).reshape(*cotangents.shape[:-2], *shape)
    lead = np.broadcast_shapes(images.shape[:-4], cotangents.shape[:-2])
    lead = lead if seed is None else np.broadcast_shapes(lead, seed.shape[:-1])
    images = np.broadcast_to(images, (*lead, *shape))
    cotangents = np.broadcast_to(cotangents, (*lead, *cotangents.shape[-2:]))
    if seed is None:
        flat = images.reshape(-1, *shape[1:])
        found = model.gradients(flat, cotangents.reshape(1, len(flat), -1), None)
        return _shaped(model, found, (1, *flat.shape)).reshape(images.shape)
    seed = np.broadcast_to(seed, (*lead, 2))
    each = [
        _shaped(model, model.gradients(images[i], cotangents[i][None], seed[i]), (1, *shape))
        for i in np.ndindex(*lead)
    ]
    return np.stack(each).reshape(*lead, *shape)


def _shaped(model: Model, gradients: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if np.shape(gradients) != shape:
        raise ValueError(
            f"the gradient of {model.name} has shape {np.shape(gradients)[1:]}; expected that of "
            f"the images, {shape[1:]}"
        )
    return gradients


_LOGITS = _Callback(_logits, "logits")
_GRADIENTS = _Callback(_gradients, "gradients")
