"""Pre-activation ResNet-18 for small images (He et al., 2016), as in the AWP code."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxadv.types import Array

from ._conv import Conv, Gradients
from ._layers import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    Activation,
    BatchNorm,
    Head,
    activation_fn,
    as_tuple,
    check_blocks,
    check_positive,
    normalize,
    torch_uniform,
)


class PreActBlock(nn.Module):
    """BN, activation, 3x3 convolution, twice, plus the input (or a 1x1 convolution of it).

    Attributes:
      features: number of output channels.
      strides: strides of the first convolution and the shortcut.
      shortcut_input: input of a 1x1 shortcut, see `PreActResNet`.
      conv_init: initializer of the kernels.
      activation, dtype, param_dtype, gradients, unbiased: see `PreActResNet`.
    """

    features: int
    strides: int = 1
    shortcut_input: Literal["activated", "raw"] = "activated"
    conv_init: Any = torch_uniform
    activation: Activation = "relu"
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gradients: Gradients = "auto"
    unbiased: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map (B, H, W, C) to (B, H/strides, W/strides, features)."""

        def conv(name: str, kernel_size: int, strides: int, padding: int) -> Conv:
            return Conv(
                self.features,
                (kernel_size, kernel_size),
                strides=strides,
                padding=padding,
                kernel_init=self.conv_init,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                gradients=self.gradients,
                name=name,
            )

        def norm(name: str) -> BatchNorm:
            return BatchNorm(unbiased=self.unbiased, param_dtype=self.param_dtype, name=name)

        act = activation_fn(self.activation)
        out = act(norm("bn1")(x, train=train))
        shortcut = x
        if self.strides != 1 or x.shape[-1] != self.features:
            source = out if self.shortcut_input == "activated" else x
            shortcut = conv("shortcut", 1, self.strides, 0)(source)
        out = conv("conv1", 3, self.strides, 1)(out)
        out = conv("conv2", 3, 1, 1)(act(norm("bn2")(out, train=train)))
        return out + shortcut


class PreActResNet(nn.Module):
    """Pre-activation ResNet: 3x3 stem, stages of `PreActBlock`, BN, activation, mean, linear.

    Attributes:
      num_classes: K.
      width: channels of the stem and the first stage; each later stage doubles them.
      blocks: number of blocks of each stage; all stages but the first halve the image.
      mean: per-channel mean to subtract from the images, or None (with ``std=None``).
      std: per-channel divisor, or None.
      activation: a name ("relu", "swish", "softplus", ...) or a function.
      shortcut_input: whether a 1x1 shortcut takes the block's input after BN and activation
        ("activated", the AWP code) or before ("raw", some RobustBench models).
      unbiased: running variance as in PyTorch, see `BatchNorm`.
      dtype: dtype of the computation (``jnp.bfloat16`` for mixed precision); None is the common
        dtype of images and parameters. Statistics and logits are at least float32.
      param_dtype: dtype of parameters and running statistics.
      gradients: see `conv2d`.
    """

    num_classes: int = 10
    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    mean: tuple[float, ...] | None = CIFAR10_MEAN
    std: tuple[float, ...] | None = CIFAR10_STD
    activation: Activation = "relu"
    shortcut_input: Literal["activated", "raw"] = "activated"
    unbiased: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gradients: Gradients = "auto"

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """Map images (B, H, W, C) in [0, 1] to logits (B, K)."""
        x = normalize(images, self.mean, self.std)
        x = Conv(
            self.width,
            padding=1,
            kernel_init=torch_uniform,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            gradients=self.gradients,
            name="conv1",
        )(x)
        for stage, num_blocks in enumerate(self.blocks):
            for block in range(num_blocks):
                x = PreActBlock(
                    self.width * 2**stage,
                    strides=2 if stage > 0 and block == 0 else 1,
                    shortcut_input=self.shortcut_input,
                    activation=self.activation,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    gradients=self.gradients,
                    unbiased=self.unbiased,
                    name=f"layer{stage + 1}_{block}",
                )(x, train=train)
        x = BatchNorm(unbiased=self.unbiased, param_dtype=self.param_dtype, name="bn")(
            x, train=train
        )
        x = activation_fn(self.activation)(x)
        return Head(self.num_classes, param_dtype=self.param_dtype, name="linear")(x)


def preact_resnet18(
    num_classes: int = 10,
    *,
    width: int = 64,
    blocks: tuple[int, ...] = (2, 2, 2, 2),
    mean: tuple[float, ...] | None = CIFAR10_MEAN,
    std: tuple[float, ...] | None = CIFAR10_STD,
    activation: Activation = "relu",
    shortcut_input: Literal["activated", "raw"] = "activated",
    unbiased: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    gradients: Gradients = "auto",
) -> PreActResNet:
    """PreActResNet-18: 11,172,170 parameters at 10 classes, 11,218,340 at 100.

    Initialized with PyTorch's defaults: kernels and the linear layer's bias
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)), BatchNorm 1 and 0.

    Args:
      num_classes: K.
      width: channels of the first stage; 16 makes a network for small machines.
      blocks: blocks per stage; three stages make a network for small images.
      mean: see `PreActResNet`; the default is CIFAR-10's.
      std: see `PreActResNet`.
      activation: see `PreActResNet`.
      shortcut_input: see `PreActResNet`.
      unbiased: see `PreActResNet`.
      dtype: see `PreActResNet`.
      param_dtype: see `PreActResNet`.
      gradients: see `PreActResNet`.

    Returns:
      A linen module: ``module.apply(variables, images, train=False)`` gives logits (B, K). With
        ``train=True`` it uses batch statistics, and with ``mutable=["batch_stats"]`` it also
        returns the updated running statistics.

    Raises:
      ValueError: for non-positive sizes, or an unknown activation or ``shortcut_input``.

    References:
      He et al., 2016, "Identity Mappings in Deep Residual Networks"; architecture and
      initialization as in the code of Wu et al., 2020 (AWP).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> module = preact_resnet18(10, width=4)
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = module.init(jax.random.key(0), images)
      >>> module.apply(variables, images).shape
      (2, 10)
    """
    check_positive(num_classes=num_classes, width=width)
    check_blocks(blocks)
    activation_fn(activation)
    if shortcut_input not in ("activated", "raw"):
        raise ValueError(f'shortcut_input is {shortcut_input!r}; it must be "activated" or "raw".')
    return PreActResNet(
        num_classes=num_classes,
        width=width,
        blocks=tuple(blocks),
        mean=as_tuple(mean),
        std=as_tuple(std),
        activation=activation,
        shortcut_input=shortcut_input,
        unbiased=unbiased,
        dtype=dtype,
        param_dtype=param_dtype,
        gradients=gradients,
    )
