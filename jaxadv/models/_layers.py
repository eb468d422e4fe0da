"""Shared layers: input normalization, BatchNorm, MeanSparse, initializers, activations, head."""

import difflib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from .._batch_norm import batch_norm, normalized
from ..types import Array

Activation: TypeAlias = str | Callable[[Array], Array]
Standardize: TypeAlias = Literal["image"] | None
Padding: TypeAlias = Literal["symmetric", "same"]

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2471, 0.2435, 0.2616)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "swish": nn.swish,
    "silu": nn.silu,
    "tanh": nn.tanh,
    "softplus": nn.softplus,
    "gelu": nn.gelu,
    "gelu_exact": functools.partial(nn.gelu, approximate=False),
    "elu": nn.elu,
    "leaky_relu": nn.leaky_relu,
    "sigmoid": nn.sigmoid,
}

# PyTorch's default for kernels: U(-b, b) with b = 1/sqrt(fan_in), "kaiming_uniform(a=sqrt(5))".
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# The TRADES and AWP code's WideResNet: N(0, 2 / (kh kw c_out)).
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def torch_uniform_bias(fan_in: int) -> Callable[..., Array]:
    """PyTorch's default for the bias of a linear layer: U(-b, b) with b = 1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def unknown_name(kind: str, name: str, known: Any, listed: str = "") -> ValueError:
    """A ValueError that suggests the closest known name, and all, or ``listed``: where they are."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.3)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return ValueError(
        f"{kind} is {name!r}, which is unknown. {hint}{listed or 'Known: ' + ', '.join(known)}."
    )


def activation_fn(activation: Activation) -> Callable[[Array], Array]:
    """The activation function of a name; a function is returned unchanged."""
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise unknown_name("activation", activation, ACTIVATIONS)
    return ACTIVATIONS[activation]


def normalize(
    images: Array,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    standardize: Standardize = None,
) -> Array:
    """(images - mean) / std per channel, or of each image; None leaves the images unchanged."""
    if images.ndim != 4:
        raise ValueError(f"images has shape {images.shape}; it must be (B, H, W, C).")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images is {images.dtype}; convert to float in [0, 1] (uint8 / 255).")
    if standardize == "image":
        return _standardized(images)
    if mean is None and std is None:
        return images
    channels = images.shape[-1]
    if mean is None or std is None or len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"mean is {mean} and std is {std}, but images have {channels} channels; give one "
            "number per channel for both, or None for both to disable normalization."
        )
    shape = (1, 1, 1, channels)
    mean_, std_ = (jnp.asarray(v, images.dtype).reshape(shape) for v in (mean, std))
    return (images - mean_) / std_


def _standardized(images: Array) -> Array:
    """(x - mean(x)) / max(std(x), 1/sqrt(n)) over the n numbers of each image; unbiased std."""
    axes, count = (1, 2, 3), math.prod(images.shape[1:])
    centered = images - jnp.mean(images, axes, keepdims=True)
    variance = jnp.sum(jnp.square(centered), axes, keepdims=True) / (count - 1)
    return centered * jax.lax.rsqrt(jnp.maximum(variance, 1 / count))


class BatchNorm(nn.Module):
    r"""Batch normalization with PyTorch's conventions.

    .. math:: y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta

    With ``train`` the mean and the (biased) variance of the batch are used and, if "batch_stats" is
    mutable, the running ones move toward them:
    ``running = momentum * running + (1 - momentum) * batch``. PyTorch, and thus the reference
    results, keep the unbiased variance, n/(n-1) times the biased one; Flax's own BatchNorm keeps
    the biased one. Statistics are at least float32 for any input. In a training program for several
    CPU devices their exchange has another form, with other last bits.

    Attributes:
      momentum: weight of the old running statistics (1 minus PyTorch's momentum).
      epsilon: added to the variance.
      unbiased: keep the unbiased running variance (PyTorch); False keeps the biased one (Flax).
      param_dtype: dtype of scale, bias and running statistics.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalize over all axes but the last; the dtype of x is kept."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            count = math.prod(x.shape[:-1])
            if count < 2:
                raise ValueError(
                    f"BatchNorm got {count} value per channel (shape {x.shape}); with train=True "
                    "it needs at least 2: use a larger batch or larger images."
                )
            y, mean, var = batch_norm(wide, scale, bias, epsilon=self.epsilon)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                kept = var * (count / (count - 1)) if self.unbiased else var
                for running, batch in ((running_mean, mean), (running_var, kept)):
                    old = running.value
                    new = self.momentum * old + (1 - self.momentum) * batch
                    running.value = new.astype(old.dtype)
        else:
            mean, var = running_mean.value, running_var.value
            y = normalized(wide, mean, var, scale, bias, epsilon=self.epsilon)
        return y.astype(x.dtype)


class MeanSparse(nn.Module):
    r"""Snaps values near their channel's mean to it (Amini et al., 2024, "MeanSparse").

    .. math:: y = \mu \text{ where } |x - \mu| < t \sigma, \text{ else } x

    Mean, variance and threshold t (0, the initial one: y = x) are fixed after training; they are in
    "batch_stats". The derivative is 0 where a value is snapped, also in RobustBench.

    Attributes:
      param_dtype: dtype of mean, variance and threshold.
    """

    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (..., C) to the same shape and dtype."""
        shape = (1,) * (x.ndim - 1) + (-1,)
        mean, var, threshold = (
            self.variable("batch_stats", name, jnp.zeros, size, self.param_dtype).value
            for name, size in (("mean", x.shape[-1:]), ("var", x.shape[-1:]), ("threshold", ()))
        )
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, reach = mean.reshape(shape), (threshold * jnp.sqrt(var)).reshape(shape)
        return jnp.where(jnp.abs(wide - mean) < reach, mean, wide).astype(x.dtype)


class Head(nn.Module):
    """Global average pooling and a linear layer; the logits are at least float32.

    Attributes:
      num_classes: K.
      zero_bias: initialize the bias to 0 (WideResNet) instead of PyTorch's default (PreActResNet).
      use_bias: whether there is a bias.
      cosine: divide the pooled features and each class's weights by their lengths.
      param_dtype: dtype of the parameters.
    """

    num_classes: int
    zero_bias: bool = False
    use_bias: bool = True
    cosine: bool = False
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (B, H, W, C) to (B, K)."""
        pooled = jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), (1, 2))
        kernel = self.param(
            "kernel", torch_uniform, (x.shape[-1], self.num_classes), self.param_dtype
        )
        if self.cosine:
            pooled, kernel = _unit(pooled, 1), _unit(kernel, 0)
        logits = pooled @ kernel
        if not self.use_bias:
            return logits
        bias_init = nn.initializers.zeros if self.zero_bias else torch_uniform_bias(x.shape[-1])
        bias = self.param("bias", bias_init, (self.num_classes,), self.param_dtype)
        return logits + bias.reshape(1, -1)


def _unit(x: Array, axis: int) -> Array:
    """Vectors along an axis divided by their lengths, or by 1e-12 if that is larger."""
    squares = jnp.sum(jnp.square(x), axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def check_positive(**sizes: int) -> None:
    """Raises a ValueError that names the size unless it is a positive integer."""
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} is {size!r}; it must be a positive integer.")


def check_blocks(blocks: Sequence[int]) -> None:
    """Raises a ``ValueError`` unless every stage has at least one block, and there is a stage."""
    if not blocks:
        raise ValueError(f"blocks is {blocks!r}; it must give the number of blocks of each stage.")
    check_positive(**{f"blocks[{i}]": n for i, n in enumerate(blocks)})


def check_normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, standardize: Any
) -> None:
    """Raises a ``ValueError`` for an unknown ``standardize``, or one beside ``mean`` or ``std``."""
    if standardize not in (None, "image"):
        raise ValueError(f'standardize is {standardize!r}; it must be "image" or None.')
    if standardize and (mean is not None or std is not None):
        raise ValueError(
            f"standardize is {standardize!r}, which replaces the mean {mean} and std {std}; pass "
            "mean=None, std=None."
        )


def check_literal(name: str, value: Any, kind: Any) -> None:
    """Raises a ``ValueError`` unless the value is one of the literals of a type."""
    if value not in get_args(kind):
        known = " or ".join(f'"{choice}"' for choice in get_args(kind))
        raise ValueError(f"{name} is {value!r}; it must be {known}.")


def as_tuple(values: Any) -> tuple[Any, ...] | None:
    """A sequence as a tuple, since linen attributes must be hashable; None stays None."""
    return None if values is None else tuple(values)
