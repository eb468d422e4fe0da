"""WideResNet for small images (Zagoruyko and Komodakis, 2016), as in the TRADES and AWP code."""

from typing import Any

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
    check_positive,
    kaiming_fan_out,
    normalize,
)
from ._preact_resnet import PreActBlock


class WideResNet(nn.Module):
    """3x3 stem of 16 channels, three stages of `PreActBlock`, BN, activation, mean, linear.

    Attributes:
      num_classes: K.
      depth: number of layers, 6 n + 4 for n blocks per stage.
      widen_factor: the stages have 16, 32 and 64 times as many channels.
      mean: per-channel mean to subtract from the images, or None (with ``std=None``).
      std: per-channel divisor, or None.
      activation: a name ("relu", "swish", "softplus", ...) or a function.
      unbiased: running variance as in PyTorch, see `BatchNorm`.
      dtype: dtype of the computation (``jnp.bfloat16`` for mixed precision); None is the common
        dtype of images and parameters. Statistics and logits are at least float32.
      param_dtype: dtype of parameters and running statistics.
      gradients: see `conv2d`.
    """

    num_classes: int = 10
    depth: int = 34
    widen_factor: int = 10
    mean: tuple[float, ...] | None = CIFAR10_MEAN
    std: tuple[float, ...] | None = CIFAR10_STD
    activation: Activation = "relu"
    unbiased: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gradients: Gradients = "auto"

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """Map images (B, H, W, C) in [0, 1] to logits (B, K)."""
        x = normalize(images, self.mean, self.std)
        x = Conv(
            16,
            padding=1,
            kernel_init=kaiming_fan_out,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            gradients=self.gradients,
            name="conv1",
        )(x)
        for stage in range(3):
            for block in range((self.depth - 4) // 6):
                x = PreActBlock(
                    16 * self.widen_factor * 2**stage,
                    strides=2 if stage > 0 and block == 0 else 1,
                    conv_init=kaiming_fan_out,
                    activation=self.activation,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    gradients=self.gradients,
                    unbiased=self.unbiased,
                    name=f"block{stage + 1}_{block}",
                )(x, train=train)
        x = BatchNorm(unbiased=self.unbiased, param_dtype=self.param_dtype, name="bn1")(
            x, train=train
        )
        x = activation_fn(self.activation)(x)
        return Head(self.num_classes, zero_bias=True, param_dtype=self.param_dtype, name="fc")(x)


def wide_resnet34_10(
    num_classes: int = 10,
    *,
    depth: int = 34,
    widen_factor: int = 10,
    mean: tuple[float, ...] | None = CIFAR10_MEAN,
    std: tuple[float, ...] | None = CIFAR10_STD,
    activation: Activation = "relu",
    unbiased: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    gradients: Gradients = "auto",
) -> WideResNet:
    """WideResNet-34-10: 46,160,474 parameters at 10 classes; no dropout.

    Initialized as in the TRADES and AWP code: kernels N(0, 2/(kh kw c_out)), BatchNorm 1 and
    0, linear weight U(-1/sqrt(fan_in), 1/sqrt(fan_in)), linear bias 0.

    Args:
      num_classes: K.
      depth: 6 n + 4; 10 makes the smallest network.
      widen_factor: 1 makes a network for small machines.
      mean: see `WideResNet`; the default is CIFAR-10's.
      std: see `WideResNet`.
      activation: see `WideResNet`.
      unbiased: see `WideResNet`.
      dtype: see `WideResNet`.
      param_dtype: see `WideResNet`.
      gradients: see `WideResNet`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: for non-positive sizes, a depth that is not 6 n + 4, or an unknown activation.

    References:
      Zagoruyko and Komodakis, 2016, "Wide Residual Networks"; architecture and initialization as
      in the code of Zhang et al., 2019 (TRADES) and Wu et al., 2020 (AWP).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> module = wide_resnet34_10(10, depth=10, widen_factor=1)
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = module.init(jax.random.key(0), images)
      >>> module.apply(variables, images).shape
      (2, 10)
    """
    check_positive(num_classes=num_classes, depth=depth, widen_factor=widen_factor)
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth is {depth}; it must be 6 n + 4 with n >= 1: 10, 16, 22, 28, 34.")
    activation_fn(activation)
    return WideResNet(
        num_classes=num_classes,
        depth=depth,
        widen_factor=widen_factor,
        mean=as_tuple(mean),
        std=as_tuple(std),
        activation=activation,
        unbiased=unbiased,
        dtype=dtype,
        param_dtype=param_dtype,
        gradients=gradients,
    )
