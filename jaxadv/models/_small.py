"""Small networks: one for 8x8 and 28x28 images, and smooth ones for the theory."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxadv.types import Array

from ._conv import Conv, Gradients
from ._layers import Activation, activation_fn, as_tuple, check_positive, normalize

_he = nn.initializers.he_normal()
_lecun = nn.initializers.lecun_normal()


class SmallConvNet(nn.Module):
    """4x4 convolutions of stride 2, one hidden layer, linear; no BatchNorm.

    Attributes:
      num_classes: K.
      features: channels of the convolutions; each halves the image.
      hidden: units of the hidden layer.
      activation: a name ("relu", "swish", "softplus", ...) or a function.
      mean: per-channel mean to subtract from the images, or None (with ``std=None``).
      std: per-channel divisor, or None.
      dtype: dtype of the computation; None is the common dtype of images and parameters. Logits
        are at least float32.
      param_dtype: dtype of the parameters.
      gradients: see `conv2d`.
    """

    num_classes: int = 10
    features: tuple[int, ...] = (16, 32)
    hidden: int = 64
    activation: Activation = "relu"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gradients: Gradients = "auto"

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """Map images (B, H, W, C) in [0, 1] to logits (B, K); ``train`` has no effect."""
        del train
        smallest = 2 ** len(self.features)
        if min(images.shape[1:3]) < smallest:
            raise ValueError(
                f"images has shape {images.shape}; {len(self.features)} convolutions of stride 2 "
                f"need height and width of at least {smallest}: use fewer features."
            )
        act = activation_fn(self.activation)
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = normalize(images, self.mean, self.std)
        for i, features in enumerate(self.features):
            x = Conv(
                features,
                (4, 4),
                strides=2,
                padding=1,
                use_bias=True,
                kernel_init=_he,
                gradients=self.gradients,
                name=f"conv{i + 1}",
                **dtypes,
            )(x)
            x = act(x)
        x = x.reshape(x.shape[0], -1)
        x = act(nn.Dense(self.hidden, kernel_init=_he, name="hidden", **dtypes)(x))
        return _logits(self.num_classes, self.param_dtype)(_wide(x))


class MLP(nn.Module):
    """Fully connected network on flattened images; as smooth as its activation.

    Attributes:
      num_classes: K.
      hidden: units of each hidden layer; () is a linear model.
      activation: "swish", "tanh", "softplus", "relu", ... or a function.
      mean: per-channel mean to subtract from the images, or None (with ``std=None``).
      std: per-channel divisor, or None.
      dtype: dtype of the computation; None is the common dtype of images and parameters. Logits
        are at least float32.
      param_dtype: dtype of the parameters.
    """

    num_classes: int = 10
    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "swish"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """Map images (B, H, W, C) in [0, 1] to logits (B, K); ``train`` has no effect."""
        del train
        act = activation_fn(self.activation)
        x = normalize(images, self.mean, self.std)
        x = x.reshape(x.shape[0], -1)
        for i, units in enumerate(self.hidden):
            x = act(
                nn.Dense(
                    units,
                    kernel_init=_lecun,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=f"hidden{i + 1}",
                )(x)
            )
        return _logits(self.num_classes, self.param_dtype)(_wide(x))


def small_convnet(
    num_classes: int = 10,
    *,
    features: tuple[int, ...] = (16, 32),
    hidden: int = 64,
    activation: Activation = "relu",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    gradients: Gradients = "auto",
) -> SmallConvNet:
    """A convolutional network that trains in seconds on 8x8 or 28x28 images with any channels.

    Args:
      num_classes: K.
      features: see `SmallConvNet`.
      hidden: see `SmallConvNet`.
      activation: see `SmallConvNet`.
      mean: see `SmallConvNet`.
      std: see `SmallConvNet`.
      dtype: see `SmallConvNet`.
      param_dtype: see `SmallConvNet`.
      gradients: see `SmallConvNet`.

    Returns:
      A linen module: ``module.apply(variables, images, train=False)`` gives logits (B, K).

    Raises:
      ValueError: for non-positive sizes or an unknown activation.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> module = small_convnet(10)
      >>> images = jnp.zeros((2, 8, 8, 1))
      >>> module.apply(module.init(jax.random.key(0), images), images).shape
      (2, 10)
    """
    check_positive(num_classes=num_classes, hidden=hidden, **_named("features", features))
    activation_fn(activation)
    return SmallConvNet(
        num_classes=num_classes,
        features=tuple(features),
        hidden=hidden,
        activation=activation,
        mean=as_tuple(mean),
        std=as_tuple(std),
        dtype=dtype,
        param_dtype=param_dtype,
        gradients=gradients,
    )


def cifar_convnet(num_classes: int = 10, *, width: int = 32, **options: Any) -> SmallConvNet:
    """`small_convnet` at the size for 32x32 images: 0.56 million parameters at width 32.

    On a CPU it trains about ten times as many images a second as `preact_resnet18` of width 16.

    Args:
      num_classes: K.
      width: channels of the first convolution; the second has twice, the hidden layer four times as
        many.
      **options: other options of `small_convnet`.

    Returns:
      A linen module: ``module.apply(variables, images, train=False)`` gives logits (B, K).

    Raises:
      ValueError: for non-positive sizes or an unknown activation.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = cifar_convnet(10).init(jax.random.key(0), images)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
      560106
    """
    check_positive(width=width)
    return small_convnet(num_classes, features=(width, 2 * width), hidden=4 * width, **options)


def mlp(
    num_classes: int = 10,
    *,
    hidden: tuple[int, ...] = (64, 64),
    activation: Activation = "swish",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> MLP:
    """A fully connected network, smooth by default, for the theory.

    Args:
      num_classes: K.
      hidden: see `MLP`.
      activation: see `MLP`.
      mean: see `MLP`.
      std: see `MLP`.
      dtype: see `MLP`.
      param_dtype: see `MLP`.

    Returns:
      A linen module: ``module.apply(variables, images, train=False)`` gives logits (B, K).

    Raises:
      ValueError: for non-positive sizes or an unknown activation.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> module = mlp(3, hidden=(5,), activation="softplus")
      >>> images = jnp.zeros((2, 1, 1, 2))
      >>> module.apply(module.init(jax.random.key(0), images), images).shape
      (2, 3)
    """
    check_positive(num_classes=num_classes, **_named("hidden", hidden))
    activation_fn(activation)
    return MLP(
        num_classes=num_classes,
        hidden=tuple(hidden),
        activation=activation,
        mean=as_tuple(mean),
        std=as_tuple(std),
        dtype=dtype,
        param_dtype=param_dtype,
    )


def _named(name: str, sizes: Sequence[int]) -> dict[str, int]:
    return {f"{name}[{i}]": size for i, size in enumerate(sizes)}


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _logits(num_classes: int, param_dtype: Any) -> nn.Dense:
    return nn.Dense(num_classes, kernel_init=_lecun, param_dtype=param_dtype, name="linear")
