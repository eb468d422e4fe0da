"""Converts and checks training images (8-bit or floats in [0, 1]) and labels."""

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._transfers import on_host
from ..checks import check_labels, is_concrete
from ..types import Array, Params
from ._minibatches import Source
from ._state import DeviceData

_REMEDY = "pass uint8, or floats in [0, 1]"


@on_host
def to_float(images: Array, *, dtype: Any = jnp.float32) -> Array:
    """8-bit images as floats in [0, 1]; floats are assumed to be in [0, 1].

    Args:
        images: integers of 0 to 255, or floats in [0, 1].
        dtype: of the result.

    Returns:
        Floats of the same shape.

    Raises:
        ValueError: for other dtypes.

    Example:
        >>> to_float(jnp.array([0, 255], jnp.uint8)).tolist()
        [0.0, 1.0]
        >>> to_float(jnp.array([0.0, 0.5])).tolist()
        [0.0, 0.5]
    """
    _check_dtype(images)
    floats = images.astype(dtype)
    return floats if jnp.issubdtype(images.dtype, jnp.floating) else floats / 255


def image_dtype(params: Params) -> Any:
    """The dtype of a model's images: float64 if a parameter has it, otherwise float32."""
    return jnp.result_type(jnp.float32, *(x for x in jax.tree.leaves(params) if _is_double(x)))


def _is_double(x: Any) -> bool:
    return jnp.result_type(x) == jnp.float64


def check_pixels(images: Any) -> None:
    """Raises a ``ValueError`` unless images are integers of 0 to 255 or floats in [0, 1]."""
    _check_dtype(images)
    if images.dtype == jnp.uint8 or not is_concrete(images) or not images.size:
        return
    low, high = _extremes(images)
    top = 1 if jnp.issubdtype(images.dtype, jnp.floating) else 255
    if not 0 <= low <= high <= top:
        raise ValueError(
            f"images of dtype {images.dtype} reach from {low:g} to {high:g}, not within "
            f"[0, {top}]; {_REMEDY}"
        )


def check_range(labels: Array, num_classes: int) -> None:
    """Raises a ``ValueError`` unless known labels are within 0 to ``num_classes - 1``."""
    if not is_concrete(labels) or not labels.size:
        return
    low, high = map(int, _extremes(labels))
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels contains {low if low < 0 else high}, but the model has {num_classes} classes "
            f"(0 to {num_classes - 1}); relabel or use a model with more classes"
        )


def check_labels_fit(apply_fn: Callable, state: Any, labels: Any, images: Any) -> None:
    """Raises a ``ValueError`` unless the model has a class for each of the labels.

    Args:
        apply_fn: the model.
        state: with its parameters.
        labels: of shape (N,).
        images: shape and dtype of a minibatch, as the model gets it.
    """
    model = lambda params, stats, points: apply_fn(params, stats, points, False)[0]
    logits = jax.eval_shape(model, state.params, state.batch_stats, images)
    check_range(labels, logits.shape[-1])


class CheckedStep:
    """A compiled update that checks its data before their first use.

    Args:
        step: ``jax.jit`` of ``(state, data, ...) -> (state, metrics)``; this object forwards other
        attributes, such as ``lower``.
        apply_fn: the model, for its number of classes.
        shape_of: ``(data, params)`` to shape and dtype of a minibatch, as the model gets it.
        most: ``data`` to the largest last argument of a step, a number of minibatches.
    """

    def __init__(
        self,
        step: Callable,
        apply_fn: Callable,
        shape_of: Callable[[Source, Params], Any],
        most: Callable[[DeviceData], int] | None = None,
    ) -> None:
        self._step, self._apply_fn, self._shape_of, self._most = step, apply_fn, shape_of, most
        self._seen: tuple[weakref.ref, weakref.ref] | None = None

    def __call__(self, state: Any, data: Source, *arguments: Any) -> Any:
        if isinstance(data, DeviceData) and (  # a stream checks its chunks itself
            self._seen is None
            or any(
                seen() is not leaf
                for seen, leaf in zip(self._seen, (data.pixels, data.labels), strict=True)
            )
        ):
            self._check(state, data)
        if self._most is not None and isinstance(data, DeviceData):
            number, most = arguments[-1], self._most(data)
            if isinstance(number, int | np.integer) and number > most:
                raise ValueError(
                    f"num_steps={number} is more than an epoch of {most} minibatches; take several "
                    "calls"
                )
        return self._step(state, data, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def _check(self, state: Any, data: DeviceData) -> None:
        pixels, labels = data.pixels, data.labels
        check_pixels(pixels)
        check_labels(labels, pixels.shape[0])
        check_labels_fit(self._apply_fn, state, labels, self._shape_of(data, state.params))
        # JAX arrays never change; NumPy arrays are rechecked in every call.
        if all(isinstance(leaf, jax.Array) and is_concrete(leaf) for leaf in (pixels, labels)):
            self._seen = weakref.ref(pixels), weakref.ref(labels)


def _check_dtype(images: Array) -> None:
    if not hasattr(images, "dtype"):
        raise ValueError(f"images is a {type(images).__name__}; pass an array")
    if not (
        jnp.issubdtype(images.dtype, jnp.floating) or jnp.issubdtype(images.dtype, jnp.integer)
    ):
        raise ValueError(f"images has dtype {images.dtype}; {_REMEDY}")


def _extremes(values: Array) -> tuple[Any, Any]:
    """The smallest and largest value; NaN if there is one."""
    if isinstance(values, np.ndarray):
        return values.min(), values.max()
    return jax.device_get((jnp.min(values), jnp.max(values)))
