"""Checks of arguments at the door: each error names the argument, the value and the remedy.

Shapes and dtypes are always checked. Values are checked only where they are known: inside
``jax.jit`` they are tracers, and the caller has checked them before.
"""

import difflib
import math
from collections.abc import Iterable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ._types import NORMS, Array


def is_concrete(x) -> bool:
    """Whether the value of ``x`` is known now, so that it can be checked."""
    return not isinstance(x, jax.core.Tracer)


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises a ``ValueError`` naming the nearest of ``choices`` unless ``value`` is one of them."""
    choices = tuple(choices)
    if value in choices:
        return
    near = difflib.get_close_matches(str(value).lower(), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}{hint}")


def check_norm(norm: str) -> None:
    """Raises a ``ValueError`` unless ``norm`` is one of the three supported norms."""
    check_choice("norm", norm, NORMS)


def check_images(images: Array, name: str = "images") -> None:
    """Raises a ``ValueError`` unless ``images`` are floats of shape (B, H, W, C) in [0, 1]."""
    if not hasattr(images, "dtype") or not hasattr(images, "shape"):
        raise ValueError(
            f"{name} is a {type(images).__name__}; pass an array of shape (B, H, W, C)"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"{name} has dtype {images.dtype}; pass floats in [0, 1], "
            f"for 8-bit images {name}.astype('float32') / 255"
        )
    if len(images.shape) != 4:
        raise ValueError(
            f"{name} has shape {tuple(images.shape)}; expected (B, H, W, C), for a single image "
            f"{name}[None], for channels-first images {name}.transpose(0, 2, 3, 1)"
        )
    if 0 in images.shape:
        raise ValueError(f"{name} is empty: shape {tuple(images.shape)}; pass at least one image")
    if is_concrete(images):
        low, high = float(jnp.min(images)), float(jnp.max(images))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{name} contains values that are not finite; remove those images")
        if low < 0.0 or high > 1.0:
            raise ValueError(
                f"{name} spans [{low:.6g}, {high:.6g}]; rescale to [0, 1] and move any "
                "normalisation into the model"
            )


def check_labels(labels: Array, num_images: int, num_classes: int | None = None) -> None:
    """Raises a ``ValueError`` unless ``labels`` are integers of shape (num_images,) in range."""
    if not hasattr(labels, "dtype") or not hasattr(labels, "shape"):
        raise ValueError(
            f"labels is a {type(labels).__name__}; pass an integer array of shape (B,)"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels has dtype {labels.dtype}; pass class indices, labels.astype('int32')"
        )
    if tuple(labels.shape) != (num_images,):
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} for {num_images} images; expected "
            f"({num_images},), for one-hot labels labels.argmax(-1)"
        )
    if num_classes is not None and is_concrete(labels):
        values = np.asarray(labels)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= num_classes:
            wrong = low if low < 0 else high
            raise ValueError(
                f"labels contains {wrong}, but the model has {num_classes} classes "
                f"(0 to {num_classes - 1}); relabel or use a model with more classes"
            )


def check_eps(eps: float, norm: str, num_features: int | None = None, name: str = "eps") -> None:
    """Raises a ``ValueError`` unless ``eps`` is a radius that makes sense inside the box [0, 1]^d.

    The largest useful radius is the diameter of the box: 1 for Linf, sqrt(d) for L2, d for L1.
    """
    if not is_concrete(eps):
        return
    value = float(eps)
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value} must be a finite number >= 0, in units of [0, 1] images")
    d = math.inf if num_features is None else float(num_features)
    limit = {"linf": 1.0, "l2": math.sqrt(d), "l1": d}[norm]
    if value > limit:
        raise ValueError(
            f"{name}={value} exceeds {limit:g}, the {norm} diameter of the image box [0, 1]; "
            f"images are in [0, 1], so write {value:g}/255 if the radius is in 8-bit units"
        )


def check_step(step_size: float, name: str = "step_size") -> None:
    """Raises a ``ValueError`` unless ``step_size`` is finite and not negative."""
    if is_concrete(step_size) and not (math.isfinite(float(step_size)) and float(step_size) >= 0):
        raise ValueError(f"{name}={float(step_size)} must be a finite number >= 0")


def check_count(name: str, value: int, minimum: int) -> None:
    """Raises a ``ValueError`` unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name}={value!r} must be an integer >= {minimum}")
