"""ResNets (He et al., 2016): torchvision's for 224-pixel images, and those for small images."""

from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax.numpy as jnp

from jaxadv.types import Array

from ._conv import Conv, Gradients
from ._layers import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Activation,
    BatchNorm,
    Head,
    Standardize,
    activation_fn,
    as_tuple,
    check_blocks,
    check_literal,
    check_normalization,
    check_positive,
    kaiming_fan_out,
    normalize,
    torch_uniform,
)

Block: TypeAlias = Literal["bottleneck", "basic"]
Stem: TypeAlias = Literal["imagenet", "cifar"]
Names: TypeAlias = Literal["torchvision", "cifar"]


class ResidualBlock(nn.Module):
    """Convolutions, each with BN, plus the input or a 1x1 convolution of it with BN.

    They are 3x3 and 3x3 ("basic") or 1x1, 3x3 and 1x1 with four times the channels ("bottleneck").

    Attributes:
      features: channels of the stage; those of the output, or a quarter of them.
      inner: channels of all convolutions but the last.
      kind: "basic" or "bottleneck".
      strides: strides of the first 3x3 convolution and the shortcut.
      conv_init: initializer of the kernels.
      activation, dtype, param_dtype, gradients, unbiased: see `ResNet`.
    """

    features: int
    inner: int
    kind: Block = "bottleneck"
    strides: int = 1
    conv_init: Any = kaiming_fan_out
    activation: Activation = "relu"
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gradients: Gradients = "auto"
    unbiased: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map (B, H, W, C) to (B, H/strides, W/strides, output channels)."""

        def conv_norm(x: Array, number: str, features: int, size: int, strides: int = 1) -> Array:
            x = Conv(
                features,
                (size, size),
                strides=strides,
                padding=size // 2,
                kernel_init=self.conv_init,
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
        if self.kind == "basic":
            outer = self.features
            out = act(conv_norm(x, "1", self.inner, 3, self.strides))
            out = conv_norm(out, "2", outer, 3)
        else:
            outer = 4 * self.features
            out = act(conv_norm(x, "1", self.inner, 1))
            out = act(conv_norm(out, "2", self.inner, 3, self.strides))
            out = conv_norm(out, "3", outer, 1)
        if self.strides != 1 or x.shape[-1] != outer:
            x = conv_norm(x, "_shortcut", outer, 1, self.strides)
        return act(out + x)


class ResNet(nn.Module):
    """Stem, stages of `ResidualBlock`, mean, linear.

    Attributes:
      num_classes: K.
      width: channels of the stem and the first stage; each later stage doubles them.
      blocks: number of blocks of each stage; all stages but the first halve the image.
      block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3 and 1x1).
      stem: "imagenet" is a 7x7 convolution and max pooling, which divide the sides by 4; "cifar" a
        3x3 convolution.
      widen_factor: inner channels of a block over those of its stage.
      mean: per-channel mean to subtract from the images, or None (with ``std=None``).
      std: per-channel divisor, or None.
      activation: a name ("relu", "swish", "softplus", ...) or a function.
      names: code whose state dict and initialization the network has, "torchvision" or "cifar".
      standardize: "image" to standardize each image, or None, see `PreActResNet`.
      unbiased: running variance as in PyTorch, see `BatchNorm`.
      dtype: dtype of the computation (``jnp.bfloat16`` for mixed precision); None is the common
        dtype of images and parameters. Statistics and logits are at least float32.
      param_dtype: dtype of parameters and running statistics.
      gradients: see `conv2d`.
    """

    num_classes: int = 1000
    width: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    block: Block = "bottleneck"
    stem: Stem = "imagenet"
    widen_factor: int = 1
    mean: tuple[float, ...] | None = IMAGENET_MEAN
    std: tuple[float, ...] | None = IMAGENET_STD
    activation: Activation = "relu"
    names: Names = "torchvision"
    standardize: Standardize = None
    unbiased: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gradients: Gradients = "auto"

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """Map images (B, H, W, C) in [0, 1] to logits (B, K)."""
        conv_init = kaiming_fan_out if self.names == "torchvision" else torch_uniform
        options: dict[str, Any] = dict(
            dtype=self.dtype, param_dtype=self.param_dtype, gradients=self.gradients
        )
        x = normalize(images, self.mean, self.std, self.standardize)
        size, strides = (7, 2) if self.stem == "imagenet" else (3, 1)
        stem = Conv(
            self.width,
            (size, size),
            strides=strides,
            padding=size // 2,
            kernel_init=conv_init,
            name="conv1",
            **options,
        )
        norm = BatchNorm(unbiased=self.unbiased, param_dtype=self.param_dtype, name="bn1")
        x = activation_fn(self.activation)(norm(stem(x), train=train))
        if self.stem == "imagenet":
            around: Any = ((1, 1), (1, 1))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=around)
        for stage, num_blocks in enumerate(self.blocks):
            features = self.width * 2**stage
            for block in range(num_blocks):
                x = ResidualBlock(
                    features,
                    inner=self.widen_factor * features,
                    kind=self.block,
                    strides=2 if stage > 0 and block == 0 else 1,
                    conv_init=conv_init,
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
    block: Block = "bottleneck",
    stem: Stem = "imagenet",
    widen_factor: int = 1,
    mean: tuple[float, ...] | None = IMAGENET_MEAN,
    std: tuple[float, ...] | None = IMAGENET_STD,
    activation: Activation = "relu",
    names: Names = "torchvision",
    standardize: Standardize = None,
    unbiased: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    gradients: Gradients = "auto",
) -> ResNet:
    """ResNet-50 with strides in the 3x3 convolutions: 25,557,032 parameters at 1,000 classes.

    Initialized as in torchvision: kernels N(0, 2/(kh kw c_out)), BatchNorm 1 and 0, the linear
    layer U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as the kernels are with ``names="cifar"``.

    Args:
      num_classes: K.
      width: channels of the first stage; 4 makes a network for small machines.
      blocks: blocks per stage.
      block: see `ResNet`.
      stem: see `ResNet`.
      widen_factor: see `ResNet`.
      mean: see `ResNet`; the default is ImageNet's.
      std: see `ResNet`.
      activation: see `ResNet`.
      names: see `ResNet`.
      standardize: see `ResNet`; needs ``mean=None, std=None``.
      unbiased: see `ResNet`.
      dtype: see `ResNet`.
      param_dtype: see `ResNet`.
      gradients: see `ResNet`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: for non-positive sizes, unknown names, or two normalizations at once.

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
    check_literal("block", block, Block)
    check_literal("stem", stem, Stem)
    check_literal("names", names, Names)
    check_normalization(mean, std, standardize)
    return ResNet(
        num_classes=num_classes,
        width=width,
        blocks=tuple(blocks),
        block=block,
        stem=stem,
        widen_factor=widen_factor,
        mean=as_tuple(mean),
        std=as_tuple(std),
        activation=activation,
        names=names,
        standardize=standardize,
        unbiased=unbiased,
        dtype=dtype,
        param_dtype=param_dtype,
        gradients=gradients,
    )


def resnet18(
    num_classes: int = 1000, *, blocks: tuple[int, ...] = (2, 2, 2, 2), **options: Any
) -> ResNet:
    """ResNet-18 for 224-pixel images: 11,689,512 parameters at 1,000 classes.

    Args:
      num_classes: K.
      blocks: see `resnet50`.
      **options: options of `resnet50`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: see `resnet50`.

    References:
      See `resnet50`.

    Example:
      >>> resnet18(10, width=2).block
      'basic'
    """
    fixed: dict[str, Any] = {"block": "basic"}
    return resnet50(num_classes, blocks=blocks, **fixed | options)


def wide_resnet50_2(num_classes: int = 1000, *, widen_factor: int = 2, **options: Any) -> ResNet:
    """WideResNet-50-2: `resnet50` with twice the inner channels, 68,883,240 parameters.

    Args:
      num_classes: K.
      widen_factor: inner channels of a block over those of its stage.
      **options: options of `resnet50`.

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
    return resnet50(num_classes, widen_factor=widen_factor, **options)


def resnet18_cifar(
    num_classes: int = 10,
    *,
    blocks: tuple[int, ...] = (2, 2, 2, 2),
    mean: tuple[float, ...] | None = CIFAR10_MEAN,
    std: tuple[float, ...] | None = CIFAR10_STD,
    **options: Any,
) -> ResNet:
    """ResNet-18 for small images, with a 3x3 stem: 11,173,962 parameters at 10 classes.

    Args:
      num_classes: K.
      blocks: see `resnet50`.
      mean: see `ResNet`; the default is CIFAR-10's.
      std: see `ResNet`.
      **options: options of `resnet50`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: see `resnet50`.

    References:
      He et al., 2016, "Deep Residual Learning for Image Recognition"; as in RobustBench.

    Example:
      >>> resnet18_cifar(10, width=2).stem
      'cifar'
    """
    fixed: dict[str, Any] = {"block": "basic", "stem": "cifar", "names": "cifar"}
    return resnet50(num_classes, blocks=blocks, mean=mean, std=std, **fixed | options)


def resnet50_cifar(
    num_classes: int = 10,
    *,
    mean: tuple[float, ...] | None = CIFAR10_MEAN,
    std: tuple[float, ...] | None = CIFAR10_STD,
    **options: Any,
) -> ResNet:
    """ResNet-50 for small images, with a 3x3 stem: 23,520,842 parameters at 10 classes.

    Args:
      num_classes: K.
      mean: see `ResNet`; the default is CIFAR-10's.
      std: see `ResNet`.
      **options: options of `resnet50`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: see `resnet50`.

    References:
      See `resnet18_cifar`.

    Example:
      >>> resnet50_cifar(10, width=2).names
      'cifar'
    """
    fixed: dict[str, Any] = {"stem": "cifar", "names": "cifar"}
    return resnet50(num_classes, mean=mean, std=std, **fixed | options)
