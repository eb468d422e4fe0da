"""Argument checks for public functions: each error names the argument, the value and the fix.

Shapes and dtypes are always checked. Values are checked only if concrete: inside ``jax.jit`` they
are tracers, which the caller has already checked.
"""

import difflib
import fractions
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from .types import NORMS, Array


def is_concrete(x: object) -> bool:
    """Whether the value of ``x`` is concrete, so that it can be checked.

    Example:
        >>> is_concrete(jnp.ones(2)), bool(jax.jit(lambda x: is_concrete(x))(1.0))
        (True, False)
    """
    return not isinstance(x, jax.core.Tracer)


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises a ``ValueError`` with the closest match unless ``value`` is one of ``choices``.

    Args:
        name: name of the argument.
        value: its value.
        choices: allowed values.

    Example:
        >>> check_choice("loss", "drl", ("ce", "dlr"))
        Traceback (most recent call last):
        ValueError: loss='drl' is not one of 'ce', 'dlr'; did you mean 'dlr'?
    """
    choices = tuple(choices)
    if value in choices:
        return
    # The cutoff lets the first word of a choice find it: "ucla" and "ucla_exact" score 0.57.
    near = difflib.get_close_matches(str(value).lower(), choices, n=1, cutoff=0.55)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}{hint}")


def check_norm(norm: str) -> None:
    """Raises a ``ValueError`` unless ``norm`` is one of the three supported norms.

    Example:
        >>> check_norm("Linf")
        Traceback (most recent call last):
        ValueError: norm='Linf' is not one of 'linf', 'l2', 'l1'; did you mean 'linf'?
    """
    check_choice("norm", norm, NORMS)


def check_images(images: Array, *, name: str = "images") -> None:
    """Raises a ``ValueError`` unless ``images`` are floats of shape (B, H, W, C) in [0, 1].

    Args:
        images: the argument.
        name: name of the argument.

    Example:
        >>> check_images(jnp.zeros((8, 3)), name="x")
        Traceback (most recent call last):
        ValueError: x has shape (8, 3); expected (B, H, W, C); for a single image pass x[None]
    """
    if not hasattr(images, "dtype") or not hasattr(images, "shape"):
        raise ValueError(
            f"{name} is a {type(images).__name__}; pass an array of shape (B, H, W, C)"
        )
    _check_framework(name, images, " in NHWC")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"{name} has dtype {images.dtype}; pass floats in [0, 1], "
            f"for 8-bit images {name}.astype('float32') / 255"
        )
    shape = tuple(images.shape)
    if len(shape) != 4:
        raise ValueError(
            f"{name} has shape {shape}; expected (B, H, W, C); for a single image pass {name}[None]"
        )
    if 0 in shape:
        raise ValueError(f"{name} is empty: shape {shape}; pass at least one image")
    if shape[1] in (1, 3) and shape[2] == shape[3] > 4:
        raise ValueError(
            f"{name} has shape {shape}, which looks like channels first; "
            f"pass {name}.transpose(0, 2, 3, 1)"
        )
    if is_concrete(images):
        _check_range(images, name)


def _check_framework(name: str, array: Any, layout: str = "") -> None:
    """Raises a ``ValueError`` for a tensor whose dtype NumPy does not know, such as PyTorch's."""
    try:
        np.dtype(array.dtype)
    except TypeError:
        framework = type(array).__module__.partition(".")[0]
        instead = ", or use jaxadv.interop.torch_attack" if framework == "torch" else ""
        raise ValueError(
            f"{name} is a {framework} {type(array).__name__}; pass {name}.numpy(){layout}{instead}"
        ) from None


def _check_range(images: Array, name: str) -> None:
    xp = jnp if isinstance(images, jax.Array) else np  # large sets may be on the host
    with jax.ensure_compile_time_eval():  # evaluate now, even while tracing a surrounding jit
        low, high = (jax.device_get(v)[()] for v in (xp.min(images), xp.max(images)))
        if low >= 0 and high <= 1:
            return
        place = xp.argmax(xp.where(xp.isnan(images), xp.inf, xp.maximum(images, 1 - images)))
        place = int(jax.device_get(place))
        where = tuple(int(i) for i in np.unravel_index(place, images.shape))
        value = jax.device_get(images[where])
    if not np.isfinite(value):
        raise ValueError(
            f"{name} contains values that are not finite, {value!s} at {where}; remove that image"
        )
    span = f"{name} spans [{low!s}, {high!s}], farthest from [0, 1] at {where}"
    if low > -1e-3 and high < 1 + 1e-3:
        raise ValueError(f"{span}: probably rounding; pass {name}.clip(0, 1)")
    raise ValueError(f"{span}; rescale to [0, 1] and move normalization into the model")


def check_labels(labels: Array, num_images: int, *, num_classes: int | None = None) -> None:
    """Raises a ``ValueError`` unless ``labels`` are integers of shape (num_images,) in range.

    Args:
        labels: the argument.
        num_images: B.
        num_classes: K; None leaves the range open.

    Example:
        >>> check_labels(jnp.array([0.0]), 1)
        Traceback (most recent call last):
        ValueError: labels has dtype float32; pass class indices, labels.astype('int32')
    """
    if not hasattr(labels, "dtype") or not hasattr(labels, "shape"):
        raise ValueError(
            f"labels is a {type(labels).__name__}; pass an integer array of shape (B,)"
        )
    _check_framework("labels", labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels has dtype {labels.dtype}; pass class indices, labels.astype('int32')"
        )
    if tuple(labels.shape) != (num_images,):
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} for {num_images} images; expected "
            f"({num_images},); for one-hot labels pass labels.argmax(-1)"
        )
    if num_classes is not None and is_concrete(labels):
        values = np.asarray(jax.device_get(labels))
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= num_classes:
            wrong = low if low < 0 else high
            raise ValueError(
                f"labels contains {wrong}, but the model has {num_classes} classes "
                f"(0 to {num_classes - 1}); relabel or use a model with more classes"
            )


def as_radius(value: Any, name: str, *, num_images: int | None = None) -> Any:
    """A radius or step as an array of shape () or, where ``num_images`` is given, (num_images,).

    Args:
        value: a number, a fraction as text ("8/255"), or one number per image as an array or list
            of shape (B,), (B, 1, 1, 1).
        name: name of the argument.
        num_images: B, None where all images share one radius.

    Returns:
        A NumPy or JAX array of floats, or the given tracer.

    Raises:
        ValueError: for anything else; names the argument.

    Example:
        >>> float(as_radius("1/4", "eps")), as_radius([0.5, 1], "eps", num_images=2).tolist()
        (0.25, [0.5, 1.0])
    """
    wanted = "one number" if num_images is None else f"one number or shape ({num_images},)"
    if isinstance(value, str):
        try:
            return np.asarray(float(fractions.Fraction(value)))
        except (ValueError, ZeroDivisionError):
            raise ValueError(
                f"{name}={value!r} is not a number; pass, for example, 8 / 255"
            ) from None
    if not isinstance(value, jax.Array):
        try:
            value = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"{name}={value!r} is not a number; pass {wanted}") from None
    if value.shape == () or value.size == 1:
        return value.reshape(())
    if num_images is not None and value.shape in ((num_images,), (num_images, 1, 1, 1)):
        return value.reshape(num_images)
    raise ValueError(f"{name} has shape {value.shape}; pass {wanted}")


def check_eps(eps: Any, norm: str, *, num_features: int | None = None, name: str = "eps") -> None:
    """Raises a ``ValueError`` unless every radius is valid for the box [0, 1]^d.

    The largest useful radius is the diameter of the box: 1 for Linf, sqrt(d) for L2, d for L1.

    Args:
        eps: one radius or an array of them, of any shape.
        norm: norm of the ball.
        num_features: d; None skips the upper limit for L2 and L1.
        name: name of the argument.

    Example:
        >>> check_eps(8 / 255, "linf")
        >>> check_eps(-1.0, "l2")
        Traceback (most recent call last):
        ValueError: eps=-1.0 must be a finite number >= 0, in units of [0, 1] images
    """
    if not is_concrete(eps):
        return
    values = np.asarray(jax.device_get(eps), np.float64)
    d = math.inf if num_features is None else float(num_features)
    limit = {"linf": 1.0, "l2": math.sqrt(d), "l1": d}[norm]
    for value in values.ravel()[~np.isfinite(values.ravel()) | (values.ravel() < 0)]:
        raise ValueError(f"{name}={value} must be a finite number >= 0, in units of [0, 1] images")
    for value in values.ravel()[values.ravel() > limit]:
        raise ValueError(
            f"{name}={value} exceeds {limit:g}, the {norm} diameter of the image box [0, 1]; "
            f"images are in [0, 1], so write {value:g}/255 if the radius is in 8-bit units"
        )


def check_step(step_size: Any, *, name: str = "step_size") -> None:
    """Raises a ``ValueError`` unless every step is finite and not negative.

    Args:
        step_size: one step or an array of them, of any shape.
        name: name of the argument.

    Example:
        >>> check_step(float("inf"))
        Traceback (most recent call last):
        ValueError: step_size=inf must be a finite number >= 0
    """
    if not is_concrete(step_size):
        return
    values = np.asarray(jax.device_get(step_size), np.float64).ravel()
    for value in values[~np.isfinite(values) | (values < 0)]:
        raise ValueError(f"{name}={value} must be a finite number >= 0")


def check_indices(indices: Any, num_images: int) -> Any:
    """The indices of the images in their data set as an integer array of shape (B,).

    Args:
        indices: array, list, range or None for 0 to B - 1.
        num_images: B.

    Raises:
        ValueError: if the shape differs, or a value is not an integer >= 0.

    Example:
        >>> check_indices(range(5, 7), 2).tolist(), check_indices(None, 2).tolist()
        ([5, 6], [0, 1])
    """
    if indices is None:
        return np.arange(num_images, dtype=np.int32)
    if not isinstance(indices, jax.Array):
        indices = np.asarray(indices)
    if indices.shape != (num_images,) or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(
            f"indices has shape {indices.shape} and dtype {indices.dtype}; pass {num_images} "
            "integers, indices of the images in their data set"
        )
    if is_concrete(indices) and int(np.asarray(jax.device_get(indices)).min()) < 0:
        raise ValueError("indices contains negative numbers; pass indices >= 0")
    return indices


def check_count(name: str, value: int, minimum: int) -> None:
    """Raises a ``ValueError`` unless ``value`` is an integer of at least ``minimum``.

    Args:
        name: name of the argument.
        value: its value.
        minimum: smallest allowed value.

    Example:
        >>> check_count("num_steps", -1, 0)
        Traceback (most recent call last):
        ValueError: num_steps=-1 must be an integer >= 0
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name}={value!r} must be an integer >= {minimum}")
