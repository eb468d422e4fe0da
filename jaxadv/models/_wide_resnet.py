"""WideResNet for small images (Zagoruyko and Komodakis, 2016), as in TRADES and DeepMind's code."""

from typing import Any, Literal, TypeAlias

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
    MeanSparse,
    Padding,
    Standardize,
    activation_fn,
    as_tuple,
    check_literal,
    check_normalization,
    check_positive,
    kaiming_fan_out,
    normalize,
    torch_uniform,
)
from ._preact_resnet import PreActBlock

Names: TypeAlias = Literal["trades", "deepmind", "huang2021", "huang2022"]


class WideResNet(nn.Module):
    """3x3 stem of 16 channels, three stages of `PreActBlock`, BN, activation, mean, linear.

    Attributes:
      num_classes: K.
      depth: number of layers, 6 n + 4 for n blocks per stage.
      widen_factor: the stages have 16, 32 and 64 times as many channels.
      blocks: blocks of the three stages instead of those of ``depth``, or None.
      channels: of the stem and the three stages instead of those of ``widen_factor``, or None.
      mean: per-channel mean to subtract from the images, or None (with ``std=None``).
      std: per-channel divisor, or None.
      activation: a name ("relu", "swish", "softplus", ...) or a function.
      padding: zeros around 3x3 convolutions with stride 2, see `PreActResNet`.
      mean_sparse: a `MeanSparse` after each BN and each block.
      squeeze: a `SqueezeExcitation` in each block with this share of its channels, or None.
      bias_last: whether the linear layer has a bias.
      cosine: whether logits are the cosines of features and weights, see `Head`.
      names: code whose state dict and initialization the network has: "trades", "deepmind", or of
        Huang et al., "huang2021" or "huang2022".
      standardize: "image" to standardize each image, or None, see `PreActResNet`.
      unbiased: running variance as in PyTorch, see `BatchNorm`.
      dtype: dtype of the computation (``jnp.bfloat16`` for mixed precision); None is the common
        dtype of images and parameters. Statistics and logits are at least float32.
      param_dtype: dtype of parameters and running statistics.
      gradients: see `conv2d`.
    """

    num_classes: int = 10
    depth: int = 34
    widen_factor: int = 10
    blocks: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = CIFAR10_MEAN
    std: tuple[float, ...] | None = CIFAR10_STD
    activation: Activation = "relu"
    padding: Padding = "symmetric"
    mean_sparse: bool = False
    squeeze: float | None = None
    bias_last: bool = True
    cosine: bool = False
    names: Names = "trades"
    standardize: Standardize = None
    unbiased: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gradients: Gradients = "auto"

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """Map images (B, H, W, C) in [0, 1] to logits (B, K)."""
        trades = self.names in ("trades", "huang2021")
        blocks = self.blocks or 3 * ((self.depth - 4) // 6,)
        stem, *stages = self.channels or (16, *(16 * self.widen_factor * 2**i for i in range(3)))
        conv_init = kaiming_fan_out if trades else torch_uniform
        x = normalize(images, self.mean, self.std, self.standardize)
        x = Conv(
            stem,
            padding=1,
            kernel_init=conv_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            gradients=self.gradients,
            name="conv1",
        )(x)
        for stage, features in enumerate(stages):
            for block in range(blocks[stage]):
                x = PreActBlock(
                    features,
                    strides=2 if stage > 0 and block == 0 else 1,
                    padding=self.padding,
                    mean_sparse=self.mean_sparse,
                    squeeze=self.squeeze,
                    conv_init=conv_init,
                    activation=self.activation,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    gradients=self.gradients,
                    unbiased=self.unbiased,
                    name=f"block{stage + 1}_{block}",
                )(x, train=train)
        norm = BatchNorm(unbiased=self.unbiased, param_dtype=self.param_dtype, name="bn1")
        x = norm(x, train=train)
        if self.mean_sparse:
            x = MeanSparse(param_dtype=self.param_dtype, name="sparse1")(x)
        x = activation_fn(self.activation)(x)
        head = Head(
            self.num_classes,
            zero_bias=trades,
            use_bias=self.bias_last,
            cosine=self.cosine,
            param_dtype=self.param_dtype,
            name="fc",
        )
        return head(x)


def wide_resnet(
    num_classes: int = 10,
    *,
    depth: int = 28,
    width: int = 10,
    blocks: tuple[int, ...] | None = None,
    channels: tuple[int, ...] | None = None,
    mean: tuple[float, ...] | None = CIFAR10_MEAN,
    std: tuple[float, ...] | None = CIFAR10_STD,
    activation: Activation = "relu",
    padding: Padding = "symmetric",
    mean_sparse: bool = False,
    squeeze: float | None = None,
    bias_last: bool = True,
    cosine: bool = False,
    names: Names = "trades",
    standardize: Standardize = None,
    unbiased: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    gradients: Gradients = "auto",
) -> WideResNet:
    """WideResNet-28-10 or another size: 36,479,194 parameters at 10 classes; no dropout.

    Initialized as in the TRADES and AWP code: kernels N(0, 2/(kh kw c_out)), BatchNorm 1 and
    0, linear weight U(-1/sqrt(fan_in), 1/sqrt(fan_in)), linear bias 0. With the names of DeepMind's
    code PyTorch's defaults: kernels and linear bias U(-1/sqrt(fan_in), 1/sqrt(fan_in)) too.

    Args:
      num_classes: K.
      depth: 6 n + 4; 10 makes the smallest network.
      width: the stages have 16, 32 and 64 times as many channels; 1 is for small machines.
      blocks: see `WideResNet`, such as (27, 28, 13) of WRN-A4.
      channels: see `WideResNet`, such as (16, 160, 448, 384) of WRN-A4.
      mean: see `WideResNet`; the default is CIFAR-10's.
      std: see `WideResNet`.
      activation: see `WideResNet`.
      padding: see `WideResNet`.
      mean_sparse: see `WideResNet`.
      squeeze: see `WideResNet`.
      bias_last: see `WideResNet`.
      cosine: see `WideResNet`; usual with ``bias_last=False``.
      names: see `WideResNet`.
      standardize: see `WideResNet`; needs ``mean=None, std=None``.
      unbiased: see `WideResNet`.
      dtype: see `WideResNet`.
      param_dtype: see `WideResNet`.
      gradients: see `WideResNet`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: for non-positive sizes, a depth that is not 6 n + 4, unknown names, or two
        normalizations at once.

    References:
      Zagoruyko and Komodakis, 2016, "Wide Residual Networks"; architecture and initialization as
      in the code of Zhang et al., 2019 (TRADES) and Wu et al., 2020 (AWP).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> module = wide_resnet(10, depth=10, width=1)
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = module.init(jax.random.key(0), images)
      >>> module.apply(variables, images).shape
      (2, 10)
    """
    check_positive(num_classes=num_classes, depth=depth, width=width)
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth is {depth}; it must be 6 n + 4 with n >= 1: 10, 16, 22, 28, 34.")
    for name, sizes, number in (("blocks", blocks, 3), ("channels", channels, 4)):
        if sizes is not None:
            if len(sizes) != number:
                raise ValueError(f"{name} is {sizes!r}; it must have {number} numbers, or be None.")
            check_positive(**{f"{name}[{i}]": size for i, size in enumerate(sizes)})
    if squeeze is not None and not 0 < squeeze <= 1:
        raise ValueError(f"squeeze is {squeeze!r}; it must be within (0, 1], or None.")
    activation_fn(activation)
    check_literal("padding", padding, Padding)
    check_literal("names", names, Names)
    check_normalization(mean, std, standardize)
    return WideResNet(
        num_classes=num_classes,
        depth=depth,
        widen_factor=width,
        blocks=as_tuple(blocks),
        channels=as_tuple(channels),
        mean=as_tuple(mean),
        std=as_tuple(std),
        activation=activation,
        padding=padding,
        mean_sparse=mean_sparse,
        squeeze=squeeze,
        bias_last=bias_last,
        cosine=cosine,
        names=names,
        standardize=standardize,
        unbiased=unbiased,
        dtype=dtype,
        param_dtype=param_dtype,
        gradients=gradients,
    )


def wide_resnet34_10(
    num_classes: int = 10, *, depth: int = 34, widen_factor: int = 10, **options: Any
) -> WideResNet:
    """WideResNet-34-10: 46,160,474 parameters at 10 classes; see `wide_resnet`.

    Args:
      num_classes: K.
      depth: 6 n + 4; 10 makes the smallest network.
      widen_factor: the ``width`` of `wide_resnet`.
      **options: options of `wide_resnet`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: see `wide_resnet`.

    References:
      See `wide_resnet`.

    Example:
      >>> wide_resnet34_10(10).depth
      34
    """
    check_positive(widen_factor=widen_factor)
    return wide_resnet(num_classes, depth=depth, width=widen_factor, **options)


def dm_wide_resnet(
    num_classes: int = 10,
    *,
    depth: int = 28,
    width: int = 10,
    activation: Activation = "silu",
    mean_sparse: bool = False,
    **options: Any,
) -> WideResNet:
    """DeepMind's WideResNet, with SiLU: 36,479,194 parameters at 28-10 and 10 classes.

    It differs from `wide_resnet` in the padding of convolutions with stride 2, in its names and in
    its initialization, PyTorch's default.

    Args:
      num_classes: K.
      depth: see `wide_resnet`; published are 28, 34, 70, 82, 94 and 106.
      width: see `wide_resnet`; published are 8, 10, 16 and 20.
      activation: see `WideResNet`.
      mean_sparse: see `WideResNet`.
      **options: options of `wide_resnet`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: see `wide_resnet`.

    References:
      Gowal et al., 2020, "Uncovering the Limits of Adversarial Training against Norm-Bounded
      Adversarial Examples"; as in its PyTorch code. Amini et al., 2024, "MeanSparse".

    Example:
      >>> dm_wide_resnet(10, depth=94, width=16, mean_sparse=True).padding
      'same'
    """
    fixed: dict[str, Any] = dict(padding="same", names="deepmind")
    return wide_resnet(
        num_classes,
        depth=depth,
        width=width,
        activation=activation,
        mean_sparse=mean_sparse,
        **fixed | options,
    )
