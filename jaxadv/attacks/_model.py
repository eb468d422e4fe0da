"""Preparation of attack inputs: argument checks, and the model as a program and its arrays.

A model is traced at every call (:func:`jaxadv._program.trace`), whatever it is: a function, a bound
method, a callable object, a linen, nnx or equinox module. New weights do not recompile, and weights
changed in place take effect.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import DTypeLike

from .._program import auto_layout, program_of, trace
from ..checks import as_radius, check_eps, check_images, check_indices, check_labels, check_norm
from ..keys import as_key
from ..types import Array, ArrayLike, Key, Norm

# points of shape (B, H, W, C) and the number of the evaluation -> logits (B, K)
Forward = Callable[[Array, Any], Array]

_MODEL_STREAM = 2**31 - 1  # above all run numbers, which share the image's key


class Given(NamedTuple):
    """The arguments of an attack, checked and on the device.

    Attributes:
        key: typed threefry key.
        model: the model traced for the batch, or for single images with a key if randomized.
        images: (B, H, W, C).
        labels: (B,) int32.
        indices: (B,).
        eps: () or (B,), of the dtype of the images.
    """

    key: Key
    model: Partial
    images: Array
    labels: Array
    indices: Array
    eps: Array

    @property
    def num_classes(self) -> int:
        """K."""
        return program_of(self.model).out.shape[1]


def prepare(
    key: Key | int,
    logits_fn: Callable[..., Array],
    images: Array,
    labels: Array,
    *,
    norm: Norm,
    eps: ArrayLike,
    indices: ArrayLike | None = None,
    randomized: bool = False,
    per_image: bool = False,
) -> Given:
    """Checks and converts the arguments common to all attacks.

    Args:
        key: see :func:`jaxadv.keys.as_key`.
        logits_fn: the model.
        images: (B, H, W, C), floats in [0, 1].
        labels: (B,) integers.
        norm: the norm.
        eps: radius; with ``per_image`` also one per image.
        indices: indices of the images in their data set.
        randomized: whether the model takes a key.
        per_image: whether the attack has radii per image.

    Raises:
        ValueError: on images outside [0, 1] or of a wrong dtype or shape, labels out of range, an
            unknown norm, an invalid radius, an invalid key, or a model that cannot
            be traced or does not return logits of shape (B, K).
    """
    key = as_key(key)
    eps = check_attack(images, labels, norm, eps, per_image)
    indices = on_device(check_indices(indices, images.shape[0]))
    pixels = on_device(images)
    rows = 1 if randomized else images.shape[0]
    model = trace_model(logits_fn, (rows, *pixels.shape[1:]), pixels.dtype, randomized)
    num_classes = program_of(model).out.shape[1]
    check_labels(labels, images.shape[0], num_classes=num_classes)
    check_devices(model, images)
    return Given(
        key=key,
        model=model,
        images=pixels,
        labels=on_device(labels).astype(jnp.int32),
        indices=indices,
        eps=on_device(eps).astype(pixels.dtype),
    )


def check_attack(
    images: Array, labels: Array, norm: Norm, eps: ArrayLike, per_image: bool = False
) -> Array | np.ndarray:
    """The checks of an attack that need no model; returns the radius as an array."""
    check_norm(norm)
    check_images(auto_layout(images))
    check_labels(labels, images.shape[0])
    radius = as_radius(eps, "eps", num_images=images.shape[0] if per_image else None)
    check_eps(radius, norm, num_features=math.prod(images.shape[1:]))
    return radius


def trace_model(
    logits_fn: Callable[..., Array],
    shape: tuple[int, ...],
    dtype: DTypeLike,
    randomized: bool = False,
) -> Partial:
    """The model as a program for images of this shape, (B, H, W, C), and its arrays.

    Raises:
        ValueError: if it cannot be traced or does not return logits of shape (B, K), K >= 2.
    """
    images = jax.ShapeDtypeStruct(shape, dtype)
    if randomized:
        _check_takes_key(logits_fn)
        traced = trace(logits_fn, images, jax.eval_shape(lambda: as_key(0)))
    else:
        traced = trace(logits_fn, images)
    logits = program_of(traced).out
    if not isinstance(logits, jax.ShapeDtypeStruct):
        pick = next((f"[{name!r}]" for name in logits), "") if isinstance(logits, dict) else "[0]"
        raise ValueError(
            f"logits_fn returns a {type(logits).__name__}; return the logits alone, "
            f"for example lambda x: logits_fn(x){pick}"
        )
    if logits.shape in ((shape[0],), (shape[0], 1)):
        raise ValueError(
            f"logits_fn returns shape {logits.shape}, one logit an image; return two, "
            "for example jnp.stack([-z, z], axis=1)"
        )
    if len(logits.shape) != 2 or logits.shape[0] != shape[0] or logits.shape[1] == 0:
        raise ValueError(
            f"logits_fn returns shape {logits.shape} for images of shape {shape}; "
            "expected logits of shape (B, K)"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits_fn returns {logits.dtype}; return logits, not classes")
    return traced


def _check_takes_key(logits_fn: Callable) -> None:
    try:
        inspect.signature(logits_fn).bind(None, None)
    except TypeError:
        raise ValueError(
            "logits_fn takes no second argument; a randomized model is called with images and a "
            "key: lambda images, key: ..."
        ) from None
    except ValueError:  # a callable without a signature
        return


def noise_on_device(noise: Any, num_runs: int, images: Array) -> Array | None:
    """Start noise that the caller gives, checked."""
    expected = (num_runs, *images.shape)
    if noise is not None and noise.shape != expected:
        raise ValueError(f"noise has shape {noise.shape}; expected {expected}")
    return None if noise is None else on_device(noise)


def on_device(values: ArrayLike) -> Array:
    """An array of the host as one of JAX, by an explicit transfer."""
    if isinstance(values, jax.Array):
        return auto_layout(values)
    return jax.device_put(np.asarray(values))


def check_devices(model: Partial, images: Array) -> None:
    """Raises a ``ValueError`` if the model's arrays and the images are on different devices."""
    where = {
        frozenset(array.sharding.device_set)
        for array in (*jax.tree.leaves(model), images)
        if isinstance(array, jax.Array)
        and not isinstance(array, jax.core.Tracer)
        and getattr(array, "committed", False)
    }
    if len(where) > 1:
        listed = " and ".join(sorted(str(sorted(map(str, devices))) for devices in where))
        raise ValueError(
            f"the arrays of logits_fn and the images are on different devices, {listed}; "
            "move them together with jax.device_put"
        )


def image_keys(key: Key, indices: Array) -> Key:
    """One key per image, from its index in the data set: independent of the batch it is in."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def fold(keys: Key, number: int | Array) -> Key:
    """``fold_in`` of one number into each key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def model_keys(key: Key, indices: Array) -> Key:
    """One key per image for the draws of a randomized model, apart from those of the attack."""
    return fold(image_keys(key, indices), _MODEL_STREAM)


def forward_fn(model: Callable, keys: Key) -> Forward:
    """A randomized model as a function of points and the number of the evaluation.

    It is called per image (under ``vmap``), each with its own key, so that its noise does not
    depend on the batch either.
    """

    def call(points: Array, number: int | Array) -> Array:
        one = lambda point, key: model(point[None], key)[0]
        return jax.vmap(one)(points, fold(keys, number))

    return call


def is_correct(logits: Array, labels: Array) -> Array:
    """Whether each image is classified correctly, (B,); False where a logit is not finite."""
    return (logits.argmax(axis=1) == labels) & jnp.isfinite(logits).all(axis=1)


def finite(gradients: Array) -> Array:
    """Gradients with non-finite entries set to 0, so that no step is taken there."""
    return jnp.where(jnp.isfinite(gradients), gradients, 0)


def rank_classes(logits: Array) -> Array:
    """Classes by decreasing logit, ties by decreasing class: (B, K) to (B, K)."""
    return jnp.flip(jnp.argsort(logits, axis=1, stable=True), axis=1)
