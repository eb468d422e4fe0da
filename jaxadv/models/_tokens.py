"""Layers of XCiT and ConvNeXt: depthwise convolution, layer normalization, two-layer perceptron."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax

from jaxadv.types import Array

from ._layers import Activation, activation_fn

narrow = nn.initializers.truncated_normal(0.02)


class DepthwiseConv(nn.Module):
    """A convolution of each channel with a kernel of its own, with bias; the size is kept.

    Attributes:
      size: size of the kernel, odd.
      kernel_init: initializer of the kernel (size, size, 1, C).
      dtype: dtype of the computation; None is the common dtype of images and parameters.
      param_dtype: dtype of the parameters.
    """

    size: int
    kernel_init: Any = narrow
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (B, H, W, C) to the same shape."""
        channels, around = x.shape[-1], (self.size // 2, self.size // 2)
        shape = (self.size, self.size, 1, channels)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(1, 1),
            padding=(around, around),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )
        return y + bias.reshape(1, 1, 1, -1)


class Mlp(nn.Module):
    """Linear layer to four times the channels, activation, linear layer back.

    Attributes:
      activation: a name or a function.
      dtype: dtype of the computation; None is the common dtype of inputs and parameters.
      param_dtype: dtype of the parameters.
    """

    activation: Activation = "gelu_exact"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (..., C) to the same shape."""
        channels = x.shape[-1]
        options: dict[str, Any] = dict(
            kernel_init=narrow, dtype=self.dtype, param_dtype=self.param_dtype
        )
        x = nn.Dense(4 * channels, name="fc1", **options)(x)
        return nn.Dense(channels, name="fc2", **options)(activation_fn(self.activation)(x))


def layer_norm(name: str, *, dtype: Any, param_dtype: Any) -> nn.LayerNorm:
    """Layer normalization over the channels, with PyTorch's variance and epsilon 1e-6."""
    return nn.LayerNorm(
        epsilon=1e-6, use_fast_variance=False, dtype=dtype, param_dtype=param_dtype, name=name
    )
