"""Pre-activation ResNet-18 for small images (He et al., 2016), as in the AWP and DeepMind code."""

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
    check_blocks,
    check_literal,
    check_normalization,
    check_positive,
    normalize,
    torch_uniform,
)

ShortcutInput: TypeAlias = Literal["activated", "raw"]
Names: TypeAlias = Literal["awp", "deepmind"]


class SqueezeExcitation(nn.Module):
    r"""Weighs channels by what their means say (Hu et al., 2018, "Squeeze-and-Excitation").

    .. math:: y = x \, \sigma(W_2 \max(W_1 \bar x + b_1, 0) + b_2)

    Attributes:
      features: number of rows of W_1.
      dtype: dtype of the computation; None is the common dtype of images and parameters.
      param_dtype: dtype of the parameters.
    """

    features: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (B, H, W, C) to the same shape."""
        options: dict[str, Any] = dict(
            use_bias=True, kernel_init=torch_uniform, dtype=self.dtype, param_dtype=self.param_dtype
        )
        y = jnp.mean(x, (1, 2), keepdims=True)
        y = nn.relu(Conv(self.features, (1, 1), name="fc1", **options)(y))
        return x * nn.sigmoid(Conv(x.shape[-1], (1, 1), name="fc2", **options)(y))


class PreActBlock(nn.Module):
    """BN, activation, 3x3 convolution, twice, plus the input (or a convolution of it).

    Attributes:
      features: number of output channels.
      strides: strides of the first convolution and the shortcut.
      shortcut_input: input of a convolved shortcut, see `PreActResNet`.
      shortcut_size: size of its kernel, 1 or 3.
      padding: of 3x3 convolutions with stride 2, see `PreActResNet`.
      mean_sparse: a `MeanSparse` after each BN and at the end.
      squeeze: features of a `SqueezeExcitation` after the second convolution, as a share of its
        channels; None for none.
      conv_init: initializer of the kernels.
      activation, dtype, param_dtype, gradients, unbiased: see `PreActResNet`.
    """

    features: int
    strides: int = 1
    shortcut_input: ShortcutInput = "activated"
    shortcut_size: int = 1
    padding: Padding = "symmetric"
    mean_sparse: bool = False
    squeeze: float | None = None
    conv_init: Any = torch_uniform
    activation: Activation = "relu"
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gradients: Gradients = "auto"
    unbiased: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map (B, H, W, C) to (B, H/strides, W/strides, features)."""

        def conv(name: str, kernel_size: int, strides: int) -> Conv:
            around: Any = kernel_size // 2
            if self.padding == "same" and kernel_size == 3 and strides == 2:
                around = ((0, 1), (0, 1))
            return Conv(
                self.features,
                (kernel_size, kernel_size),
                strides=strides,
                padding=around,
                kernel_init=self.conv_init,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                gradients=self.gradients,
                name=name,
            )

        def sparse(number: str, x: Array) -> Array:
            if not self.mean_sparse:
                return x
            return MeanSparse(param_dtype=self.param_dtype, name=f"sparse{number}")(x)

        def activated(number: str, x: Array) -> Array:
            norm = BatchNorm(
                unbiased=self.unbiased, param_dtype=self.param_dtype, name=f"bn{number}"
            )
            return activation_fn(self.activation)(sparse(number, norm(x, train=train)))

        out = activated("1", x)
        shortcut = x
        if self.strides != 1 or x.shape[-1] != self.features:
            source = out if self.shortcut_input == "activated" else x
            shortcut = conv("shortcut", self.shortcut_size, self.strides)(source)
        out = conv("conv1", 3, self.strides)(out)
        out = conv("conv2", 3, 1)(activated("2", out))
        if self.squeeze is not None:
            out = SqueezeExcitation(
                round(self.squeeze * self.features), self.dtype, self.param_dtype, name="se"
            )(out)
        return sparse("3", out + shortcut)


class PreActResNet(nn.Module):
    """Pre-activation ResNet: 3x3 stem, stages of `PreActBlock`, BN, activation, mean, linear.

    Attributes:
      num_classes: K.
      width: channels of the stem and the first stage; each later stage doubles them.
      blocks: number of blocks of each stage; all stages but the first halve the image.
      mean: per-channel mean to subtract from the images, or None (with ``std=None``).
      std: per-channel divisor, or None.
      activation: a name ("relu", "swish", "softplus", ...) or a function.
      shortcut_input: whether a convolved shortcut takes the block's input after BN and activation
        ("activated", the AWP code) or before ("raw", some RobustBench models).
      shortcut_size: size of the shortcut's kernel, 1, or 3 (DeepMind).
      padding: zeros around 3x3 convolutions with stride 2: one on every side ("symmetric"), or one
        at the bottom and one on the right, as TensorFlow's SAME does for even sizes ("same").
      last_norm: whether BN and activation precede the mean.
      names: code whose state dict the network has, "awp" or "deepmind", see `load_torch`.
      standardize: "image" to subtract each image's mean and divide by its standard deviation, or
        1/sqrt(n) for n numbers if that is larger, instead of ``mean`` and ``std``; or None.
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
    shortcut_input: ShortcutInput = "activated"
    shortcut_size: int = 1
    padding: Padding = "symmetric"
    last_norm: bool = True
    names: Names = "awp"
    standardize: Standardize = None
    unbiased: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gradients: Gradients = "auto"

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """Map images (B, H, W, C) in [0, 1] to logits (B, K)."""
        x = normalize(images, self.mean, self.std, self.standardize)
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
                    shortcut_size=self.shortcut_size,
                    padding=self.padding,
                    activation=self.activation,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    gradients=self.gradients,
                    unbiased=self.unbiased,
                    name=f"layer{stage + 1}_{block}",
                )(x, train=train)
        if self.last_norm:
            norm = BatchNorm(unbiased=self.unbiased, param_dtype=self.param_dtype, name="bn")
            x = activation_fn(self.activation)(norm(x, train=train))
        return Head(self.num_classes, param_dtype=self.param_dtype, name="linear")(x)


def preact_resnet18(
    num_classes: int = 10,
    *,
    width: int = 64,
    blocks: tuple[int, ...] = (2, 2, 2, 2),
    mean: tuple[float, ...] | None = CIFAR10_MEAN,
    std: tuple[float, ...] | None = CIFAR10_STD,
    activation: Activation = "relu",
    shortcut_input: ShortcutInput = "activated",
    shortcut_size: int = 1,
    padding: Padding = "symmetric",
    last_norm: bool = True,
    names: Names = "awp",
    standardize: Standardize = None,
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
      shortcut_size: see `PreActResNet`.
      padding: see `PreActResNet`.
      last_norm: see `PreActResNet`.
      names: see `PreActResNet`.
      standardize: see `PreActResNet`; needs ``mean=None, std=None``.
      unbiased: see `PreActResNet`.
      dtype: see `PreActResNet`.
      param_dtype: see `PreActResNet`.
      gradients: see `PreActResNet`.

    Returns:
      A linen module: ``module.apply(variables, images, train=False)`` gives logits (B, K). With
        ``train=True`` it uses batch statistics, and with ``mutable=["batch_stats"]`` it also
        returns the updated running statistics.

    Raises:
      ValueError: for non-positive sizes, unknown names, or two normalizations at once.

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
    check_literal("shortcut_input", shortcut_input, ShortcutInput)
    check_literal("padding", padding, Padding)
    check_literal("names", names, Names)
    check_normalization(mean, std, standardize)
    if shortcut_size not in (1, 3):
        raise ValueError(f"shortcut_size is {shortcut_size!r}; it must be 1 or 3.")
    return PreActResNet(
        num_classes=num_classes,
        width=width,
        blocks=tuple(blocks),
        mean=as_tuple(mean),
        std=as_tuple(std),
        activation=activation,
        shortcut_input=shortcut_input,
        shortcut_size=shortcut_size,
        padding=padding,
        last_norm=last_norm,
        names=names,
        standardize=standardize,
        unbiased=unbiased,
        dtype=dtype,
        param_dtype=param_dtype,
        gradients=gradients,
    )


def dm_preact_resnet18(
    num_classes: int = 10, *, activation: Activation = "silu", **options: Any
) -> PreActResNet:
    """DeepMind's PreActResNet-18: 12,548,426 parameters at 10 classes.

    It differs from `preact_resnet18` in its 3x3 shortcuts of the raw input, in the padding of
    convolutions with stride 2, and in its names.

    Args:
      num_classes: K.
      activation: see `PreActResNet`.
      **options: options of `preact_resnet18`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: see `preact_resnet18`.

    References:
      Gowal et al., 2020, "Uncovering the Limits of Adversarial Training against Norm-Bounded
      Adversarial Examples"; as in its PyTorch code.

    Example:
      >>> dm_preact_resnet18(10, width=4).shortcut_size
      3
    """
    fixed: dict[str, Any] = dict(
        shortcut_input="raw", shortcut_size=3, padding="same", names="deepmind"
    )
    return preact_resnet18(num_classes, activation=activation, **fixed | options)
