"""ConvNeXt (Liu et al., 2022), as in timm, with patches or RobustBench's ConvStem."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxadv.types import Array

from ._conv import Conv, Gradients
from ._layers import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Activation,
    activation_fn,
    as_tuple,
    check_blocks,
    check_positive,
    normalize,
)
from ._tokens import DepthwiseConv, Mlp, layer_norm, narrow


class _Block(nn.Module):
    """7x7 depthwise convolution, layer norm and a perceptron, scaled and added to the input."""

    activation: Activation = "gelu_exact"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        options: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        gamma = self.param("gamma", nn.initializers.constant(1e-6), x.shape[-1:], self.param_dtype)
        y = layer_norm("norm", **options)(DepthwiseConv(7, name="conv_dw", **options)(x))
        y = Mlp(self.activation, name="mlp", **options)(y)
        return x + y * gamma.reshape(1, 1, 1, -1).astype(y.dtype)


class ConvNeXt(nn.Module):
    """Stem, stages of blocks with layer norm and a 2x2 convolution between, mean, norm, linear.

    Attributes:
      num_classes: K.
      width: channels of the first stage; each later stage doubles them.
      blocks: number of blocks of each stage; all stages but the first halve the image.
      stem_convs: 0 for a 4x4 convolution of stride 4; 2 or 3 for so many 3x3 convolutions, two of
        them of stride 2, of width/2, (3/4 width) and width channels: a ConvStem.
      mean: per-channel mean to subtract from the images, or None (with ``std=None``).
      std: per-channel divisor, or None.
      activation: a name ("gelu_exact", "softplus", ...) or a function.
      dtype: dtype of the computation (``jnp.bfloat16`` for mixed precision); None is the common
        dtype of images and parameters. Logits are at least float32.
      param_dtype: dtype of the parameters.
      gradients: of the convolutions that are not depthwise, see `conv2d`.
    """

    num_classes: int = 1000
    width: int = 96
    blocks: tuple[int, ...] = (3, 3, 9, 3)
    stem_convs: int = 0
    mean: tuple[float, ...] | None = IMAGENET_MEAN
    std: tuple[float, ...] | None = IMAGENET_STD
    activation: Activation = "gelu_exact"
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gradients: Gradients = "auto"

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """Map images (B, H, W, C) in [0, 1] to logits (B, K); ``train`` has no effect."""
        del train
        options: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = self._stem(normalize(images, self.mean, self.std))
        for stage, num_blocks in enumerate(self.blocks):
            if stage > 0:
                x = layer_norm(f"down{stage}_norm", **options)(x)
                x = self._conv(f"down{stage}", self.width * 2**stage, 2, 2, 0)(x)
            for block in range(num_blocks):
                x = _Block(self.activation, name=f"stage{stage}_{block}", **options)(x)
        x = jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), (1, 2))
        x = layer_norm("norm", dtype=None, param_dtype=self.param_dtype)(x)
        head = nn.Dense(
            self.num_classes, kernel_init=narrow, param_dtype=self.param_dtype, name="fc"
        )
        return head(x)

    def _stem(self, x: Array) -> Array:
        options: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if not self.stem_convs:
            x = self._conv("stem0", self.width, 4, 4, 0)(x)
            return layer_norm("stem0_norm", **options)(x)
        middle = [3 * self.width // 4] if self.stem_convs == 3 else []
        for i, features in enumerate([self.width // 2, *middle, self.width]):
            x = self._conv(f"stem{i}", features, 3, 2 if i < 2 else 1, 1)(x)
            x = activation_fn(self.activation)(layer_norm(f"stem{i}_norm", **options)(x))
        return x

    def _conv(self, name: str, features: int, size: int, strides: int, padding: int) -> Conv:
        return Conv(
            features,
            (size, size),
            strides=strides,
            padding=padding,
            use_bias=True,
            kernel_init=narrow,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            gradients=self.gradients,
            name=name,
        )


def convnext_tiny(
    num_classes: int = 1000,
    *,
    conv_stem: bool = False,
    width: int = 96,
    blocks: tuple[int, ...] = (3, 3, 9, 3),
    stem_convs: int = 2,
    mean: tuple[float, ...] | None = IMAGENET_MEAN,
    std: tuple[float, ...] | None = IMAGENET_STD,
    activation: Activation = "gelu_exact",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    gradients: Gradients = "auto",
) -> ConvNeXt:
    """ConvNeXt-T: 28,589,128 parameters at 1,000 classes; no stochastic depth.

    Args:
      num_classes: K.
      conv_stem: whether the stem is a ConvStem.
      width: see `ConvNeXt`; 4 makes a network for small machines.
      blocks: see `ConvNeXt`.
      stem_convs: convolutions of a ConvStem, 2 or 3.
      mean: see `ConvNeXt`; the default is ImageNet's.
      std: see `ConvNeXt`.
      activation: see `ConvNeXt`.
      dtype: see `ConvNeXt`.
      param_dtype: see `ConvNeXt`.
      gradients: see `ConvNeXt`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: for non-positive sizes, a width that is no multiple of 4, another number of
        convolutions, or an unknown activation.

    References:
      Liu et al., 2022, "A ConvNet for the 2020s"; as in timm. Singh et al., 2023, "Revisiting
      Adversarial Training for ImageNet" (ConvStem).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> module = convnext_tiny(10, conv_stem=True, width=4, blocks=(1, 1))
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = module.init(jax.random.key(0), images)
      >>> module.apply(variables, images).shape
      (2, 10)
    """
    check_positive(num_classes=num_classes, width=width)
    check_blocks(blocks)
    activation_fn(activation)
    if width % 4:
        raise ValueError(f"width is {width}; it must be a multiple of 4.")
    if stem_convs not in (2, 3):
        raise ValueError(f"stem_convs is {stem_convs!r}; it must be 2 or 3.")
    return ConvNeXt(
        num_classes=num_classes,
        width=width,
        blocks=tuple(blocks),
        stem_convs=stem_convs if conv_stem else 0,
        mean=as_tuple(mean),
        std=as_tuple(std),
        activation=activation,
        dtype=dtype,
        param_dtype=param_dtype,
        gradients=gradients,
    )


def convnext_small(
    num_classes: int = 1000, *, blocks: tuple[int, ...] = (3, 3, 27, 3), **options: Any
) -> ConvNeXt:
    """ConvNeXt-S, with 27 blocks in the third stage: 50,223,688 parameters.

    Args:
      num_classes: K.
      blocks: see `convnext_tiny`.
      **options: options of `convnext_tiny`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: see `convnext_tiny`.

    References:
      See `convnext_tiny`.

    Example:
      >>> len(convnext_small(10).blocks)
      4
    """
    return convnext_tiny(num_classes, blocks=blocks, **options)


def convnext_base(
    num_classes: int = 1000,
    *,
    width: int = 128,
    blocks: tuple[int, ...] = (3, 3, 27, 3),
    stem_convs: int = 3,
    **options: Any,
) -> ConvNeXt:
    """ConvNeXt-B, of 128 channels: 88,591,464 parameters at 1,000 classes.

    Args:
      num_classes: K.
      width: see `convnext_tiny`.
      blocks: see `convnext_tiny`.
      stem_convs: see `convnext_tiny`.
      **options: options of `convnext_tiny`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: see `convnext_tiny`.

    References:
      See `convnext_tiny`.

    Example:
      >>> convnext_base(10).width
      128
    """
    return convnext_tiny(num_classes, width=width, blocks=blocks, stem_convs=stem_convs, **options)


def convnext_large(
    num_classes: int = 1000,
    *,
    width: int = 192,
    blocks: tuple[int, ...] = (3, 3, 27, 3),
    stem_convs: int = 3,
    **options: Any,
) -> ConvNeXt:
    """ConvNeXt-L, of 192 channels: 197,767,336 parameters at 1,000 classes.

    Args:
      num_classes: K.
      width: see `convnext_tiny`.
      blocks: see `convnext_tiny`.
      stem_convs: see `convnext_tiny`.
      **options: options of `convnext_tiny`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: see `convnext_tiny`.

    References:
      See `convnext_tiny`.

    Example:
      >>> convnext_large(10, conv_stem=True).stem_convs
      3
    """
    return convnext_tiny(num_classes, width=width, blocks=blocks, stem_convs=stem_convs, **options)
