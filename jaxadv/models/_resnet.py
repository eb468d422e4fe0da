"""ResNet-50 and WideResNet-50-2 for 224-pixel images (He et al., 2016), as in torchvision."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxadv.types import Array

from ._conv import Conv, Gradients
from ._layers import (
    Activation,
    BatchNorm,
    Head,
    activation_fn,
    as_tuple,
    check_blocks,
    check_positive,
    kaiming_fan_out,
    normalize,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_EXPANSION = 4  # channels of a block's output over those of its stage


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each with BN, plus the input or a 1x1 convolution of it.

    Attributes:
      features: channels of the stage; the output has four times as many.
      inner: channels of the first two convolutions.
      strides: strides of the 3x3 convolution and the shortcut.
      activation, dtype, param_dtype, gradients, unbiased: see `ResNet50`.
    """

    features: int
    inner: int
    strides: int = 1
    activation: Activation = "relu"
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gradients: Gradients = "auto"
    unbiased: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map (B, H, W, C) to (B, H/strides, W/strides, 4 * features)."""

        def conv_norm(x: Array, number: str, features: int, size: int, strides: int = 1) -> Array:
            x = Conv(
                features,
                (size, size),
                strides=strides,
                padding=size // 2,
                kernel_init=kaiming_fan_out,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                gradients=self.gradients,
                name=f"conv{number}",
            )(x)
            norm = BatchNorm(
                unbiased=self.unbiased, param_dtype=self.param_dtype, name=f"bn{number}"
            )
            return norm(x, train=train)

        act = activation_fn(self.activation)
        outer = _EXPANSION * self.features
        out = act(conv_norm(x, "1", self.inner, 1))
        out = act(conv_norm(out, "2", self.inner, 3, self.strides))
        out = conv_norm(out, "3", outer, 1)
        if self.strides != 1 or x.shape[-1] != outer:
            x = conv_norm(x, "_shortcut", outer, 1, self.strides)
        return act(out + x)


class ResNet50(nn.Module):
    """7x7 stem and max pooling, which divide the sides by 4, stages of `Bottleneck`, mean, linear.

    Attributes:
      num_classes: K.
      width: channels of the stem and the first stage; each later stage doubles them.
      blocks: number of blocks of each stage; all stages but the first halve the image.
      widen_factor: inner channels of a block over those of its stage.
      mean: per-channel mean to subtract from the images, or None (with ``std=None``).
      std: per-channel divisor, or None.
      activation: a name ("relu", "swish", "softplus", ...) or a function.
      unbiased: running variance as in PyTorch, see `BatchNorm`.
      dtype: dtype of the computation (``jnp.bfloat16`` for mixed precision); None is the common
        dtype of images and parameters. Statistics and logits are at least float32.
      param_dtype: dtype of parameters and running statistics.
      gradients: see `conv2d`.
    """

    num_classes: int = 1000
    width: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    widen_factor: int = 1
    mean: tuple[float, ...] | None = IMAGENET_MEAN
    std: tuple[float, ...] | None = IMAGENET_STD
    activation: Activation = "relu"
    unbiased: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gradients: Gradients = "auto"

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """Map images (B, H, W, C) in [0, 1] to logits (B, K)."""
        options: dict[str, Any] = dict(
            dtype=self.dtype, param_dtype=self.param_dtype, gradients=self.gradients
        )
        x = normalize(images, self.mean, self.std)
        stem = Conv(
            self.width, (7, 7), strides=2, padding=3, kernel_init=kaiming_fan_out, name="conv1",
            **options,
        )  # fmt: skip
        norm = BatchNorm(unbiased=self.unbiased, param_dtype=self.param_dtype, name="bn1")
        x = activation_fn(self.activation)(norm(stem(x), train=train))
        around: Any = ((1, 1), (1, 1))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=around)
        for stage, num_blocks in enumerate(self.blocks):
            features = self.width * 2**stage
            for block in range(num_blocks):
                x = Bottleneck(
                    features,
                    inner=self.widen_factor * features,
                    strides=2 if stage > 0 and block == 0 else 1,
                    activation=self.activation,
                    unbiased=self.unbiased,
                    name=f"layer{stage + 1}_{block}",
                    **options,
                )(x, train=train)
        return Head(self.num_classes, param_dtype=self.param_dtype, name="fc")(x)


def resnet50(
    num_classes: int = 1000,
    *,
    width: int = 64,
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    widen_factor: int = 1,
    mean: tuple[float, ...] | None = IMAGENET_MEAN,
    std: tuple[float, ...] | None = IMAGENET_STD,
    activation: Activation = "relu",
    unbiased: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    gradients: Gradients = "auto",
) -> ResNet50:
    """ResNet-50 with strides in the 3x3 convolutions: 25,557,032 parameters at 1,000 classes.

    Initialized as in torchvision: kernels N(0, 2/(kh kw c_out)), BatchNorm 1 and 0, the linear
    layer U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Args:
      num_classes: K.
      width: channels of the first stage; 4 makes a network for small machines.
      blocks: blocks per stage.
      widen_factor: see `ResNet50`.
      mean: see `ResNet50`; the default is ImageNet's.
      std: see `ResNet50`.
      activation: see `ResNet50`.
      unbiased: see `ResNet50`.
      dtype: see `ResNet50`.
      param_dtype: see `ResNet50`.
      gradients: see `ResNet50`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: for non-positive sizes, or an unknown activation.

    References:
      He et al., 2016, "Deep Residual Learning for Image Recognition"; strides and initialization
      as in torchvision (version 1.5 of the network).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> module = resnet50(10, width=2, blocks=(1, 1))
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = module.init(jax.random.key(0), images)
      >>> module.apply(variables, images).shape
      (2, 10)
    """
    check_positive(num_classes=num_classes, width=width, widen_factor=widen_factor)
    check_blocks(blocks)
    activation_fn(activation)
    return ResNet50(
        num_classes=num_classes,
        width=width,
        blocks=tuple(blocks),
        widen_factor=widen_factor,
        mean=as_tuple(mean),
        std=as_tuple(std),
        activation=activation,
        unbiased=unbiased,
        dtype=dtype,
        param_dtype=param_dtype,
        gradients=gradients,
    )


def wide_resnet50_2(
    num_classes: int = 1000,
    *,
    width: int = 64,
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    widen_factor: int = 2,
    mean: tuple[float, ...] | None = IMAGENET_MEAN,
    std: tuple[float, ...] | None = IMAGENET_STD,
    activation: Activation = "relu",
    unbiased: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    gradients: Gradients = "auto",
) -> ResNet50:
    """WideResNet-50-2: `resnet50` with twice the inner channels, 68,883,240 parameters.

    Args:
      num_classes: K.
      width: see `resnet50`.
      blocks: see `resnet50`.
      widen_factor: inner channels of a block over those of its stage.
      mean: see `resnet50`.
      std: see `resnet50`.
      activation: see `resnet50`.
      unbiased: see `resnet50`.
      dtype: see `resnet50`.
      param_dtype: see `resnet50`.
      gradients: see `resnet50`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: see `resnet50`.

    References:
      Zagoruyko and Komodakis, 2016, "Wide Residual Networks"; as in torchvision.

    Example:
      >>> wide_resnet50_2(10, width=2).widen_factor
      2
    """
    return resnet50(
        num_classes,
        width=width,
        blocks=blocks,
        widen_factor=widen_factor,
        mean=mean,
        std=std,
        activation=activation,
        unbiased=unbiased,
        dtype=dtype,
        param_dtype=param_dtype,
        gradients=gradients,
    )
