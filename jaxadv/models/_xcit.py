"""XCiT, the cross-covariance image transformer (Ali et al., 2021), as in timm and RobustBench."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.types import Array

from ._conv import Conv, Gradients
from ._layers import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Activation,
    BatchNorm,
    activation_fn,
    as_tuple,
    check_positive,
    normalize,
    torch_uniform,
    torch_uniform_bias,
)
from ._tokens import DepthwiseConv, Mlp, layer_norm, narrow

_WAVES = 32  # of the positional encoding, for each axis


class _CrossCovariance(nn.Module):
    """Attention between channels: the softmax of normalized covariances over the tokens."""

    heads: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels, options = x.shape[-1], _dense_options(self)
        qkv = nn.Dense(3 * channels, name="qkv", **options)(x)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, self.heads, -1), 2, 0)
        shape = (self.heads, 1, 1)
        temperature = self.param("temperature", nn.initializers.ones, shape, self.param_dtype)
        scores = jnp.einsum("bnhd,bnhe->bhde", _unit(q), _unit(k))
        scores = scores.astype(jnp.promote_types(x.dtype, jnp.float32)) * temperature[None]
        weights = jax.nn.softmax(scores).astype(v.dtype)
        mixed = jnp.einsum("bhde,bnhe->bnhd", weights, v).reshape(x.shape)
        return nn.Dense(channels, name="proj", **options)(mixed)


class _ClassAttention(nn.Module):
    """Attention of the class token to all tokens."""

    heads: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map tokens (B, N, C) to the class token (B, 1, C)."""
        batch, _, channels = x.shape
        options = _dense_options(self)

        def project(name: str, tokens: Array) -> Array:
            projected = nn.Dense(channels, name=name, **options)(tokens)
            return projected.reshape(*tokens.shape[:2], self.heads, -1)

        q, k, v = project("q", x[:, :1]), project("k", x), project("v", x)
        scores = jnp.einsum("bmhd,bnhd->bhmn", q * q.shape[-1] ** -0.5, k)
        scores = scores.astype(jnp.promote_types(x.dtype, jnp.float32))
        weights = jax.nn.softmax(scores).astype(v.dtype)
        mixed = jnp.einsum("bhmn,bnhd->bmhd", weights, v).reshape(batch, 1, channels)
        return nn.Dense(channels, name="proj", **options)(mixed)


class _Block(nn.Module):
    """Cross-covariance attention, 3x3 depthwise convolutions and a perceptron, each added."""

    heads: int
    activation: Activation = "gelu_exact"
    unbiased: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map (B, H, W, C) to the same shape."""
        options: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        tokens = (x.shape[0], -1, x.shape[-1])

        def scaled(number: int, y: Array) -> Array:
            gamma = self.param(
                f"gamma{number}", nn.initializers.ones, (x.shape[-1],), self.param_dtype
            )
            return _scale(y, gamma, x.dtype)

        y = layer_norm("norm1", **options)(x)
        y = _CrossCovariance(self.heads, name="attn", **options)(y.reshape(tokens))
        x = x + scaled(1, y.reshape(x.shape))
        y = DepthwiseConv(3, kernel_init=torch_uniform, name="local1", **options)(
            layer_norm("norm3", **options)(x)
        )
        norm = BatchNorm(unbiased=self.unbiased, param_dtype=self.param_dtype, name="local_bn")
        y = norm(activation_fn(self.activation)(y), train=train)
        x = x + scaled(3, DepthwiseConv(3, kernel_init=torch_uniform, name="local2", **options)(y))
        y = Mlp(self.activation, name="mlp", **options)(layer_norm("norm2", **options)(x))
        return x + scaled(2, y)


class _ClassBlock(nn.Module):
    """Class attention and a perceptron, which change the class token only, with all normalized."""

    heads: int
    activation: Activation = "gelu_exact"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map tokens (B, N, C), the first being the class token, to the same shape."""
        options: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        gamma1, gamma2 = (
            self.param(f"gamma{n}", nn.initializers.ones, x.shape[-1:], self.param_dtype)
            for n in (1, 2)
        )
        normed = layer_norm("norm1", **options)(x)
        token = _ClassAttention(self.heads, name="attn", **options)(normed)
        x = x + _scale(jnp.concatenate([token, normed[:, 1:]], 1), gamma1, x.dtype)
        x = layer_norm("norm2", **options)(x)
        token = _scale(Mlp(self.activation, name="mlp", **options)(x[:, :1]), gamma2, x.dtype)
        return x + jnp.concatenate([token, x[:, 1:]], 1)


class XCiT(nn.Module):
    """Convolutional patches, positional encoding, blocks, class attention, linear.

    Attributes:
      num_classes: K.
      patch_size: 16 (four 3x3 convolutions of stride 2) or 4 (the first two of stride 1).
      width: channels C of the tokens, a multiple of 8 and of ``heads``.
      depth: number of blocks.
      heads: number of attention heads.
      class_depth: number of class-attention blocks.
      mean: per-channel mean to subtract from the images, or None (with ``std=None``).
      std: per-channel divisor, or None.
      activation: a name ("gelu_exact", "softplus", ...) or a function.
      unbiased: running variance as in PyTorch, see `BatchNorm`.
      dtype: dtype of the computation (``jnp.bfloat16`` for mixed precision); None is the common
        dtype of images and parameters. Statistics, softmax and logits are at least float32.
      param_dtype: dtype of parameters and running statistics.
      gradients: of the patches' convolutions, see `conv2d`.
    """

    num_classes: int = 1000
    patch_size: Literal[4, 16] = 16
    width: int = 384
    depth: int = 12
    heads: int = 8
    class_depth: int = 2
    mean: tuple[float, ...] | None = IMAGENET_MEAN
    std: tuple[float, ...] | None = IMAGENET_STD
    activation: Activation = "gelu_exact"
    unbiased: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gradients: Gradients = "auto"

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """Map images (B, H, W, C) in [0, 1] to logits (B, K)."""
        options: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = self._patches(normalize(images, self.mean, self.std), train)
        places = jnp.asarray(_waves(*x.shape[1:3]), x.dtype)[None]
        x = x + Conv(
            self.width,
            (1, 1),
            use_bias=True,
            kernel_init=torch_uniform,
            bias_init=torch_uniform_bias(2 * _WAVES),
            gradients=self.gradients,
            name="pos_embed",
            **options,
        )(places)
        for block in range(self.depth):
            x = _Block(
                self.heads, self.activation, self.unbiased, name=f"block_{block}", **options
            )(x, train=train)
        token = self.param("cls_token", narrow, (1, 1, self.width), self.param_dtype)
        token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.width))
        x = jnp.concatenate([token, x.reshape(x.shape[0], -1, self.width)], 1)
        for block in range(self.class_depth):
            x = _ClassBlock(self.heads, self.activation, name=f"class_{block}", **options)(x)
        x = layer_norm("norm", **options)(x)[:, 0]
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        head = nn.Dense(
            self.num_classes, kernel_init=narrow, param_dtype=self.param_dtype, name="head"
        )
        return head(x)

    def _patches(self, x: Array, train: bool) -> Array:
        for i in range(4):
            x = Conv(
                self.width * 2**i // 8,
                strides=1 if self.patch_size == 4 and i < 2 else 2,
                padding=1,
                kernel_init=torch_uniform,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                gradients=self.gradients,
                name=f"patch{i}",
            )(x)
            norm = BatchNorm(
                unbiased=self.unbiased, param_dtype=self.param_dtype, name=f"patch{i}_bn"
            )
            x = norm(x, train=train)
            x = activation_fn(self.activation)(x) if i < 3 else x
        return x


def _dense_options(module: Any) -> dict[str, Any]:
    return dict(kernel_init=narrow, dtype=module.dtype, param_dtype=module.param_dtype)


def _scale(x: Array, gamma: Array, dtype: Any) -> Array:
    return x * gamma.reshape((1,) * (x.ndim - 1) + (-1,)).astype(dtype)


def _unit(x: Array) -> Array:
    """Divided by the norm over the tokens; the derivative at 0 is finite."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.sum(jnp.square(wide), 1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))).astype(x.dtype)


def _waves(height: int, width: int) -> np.ndarray:
    """Sines and cosines of the places, in float32 as in PyTorch: (H, W, 2 * _WAVES)."""
    number = np.arange(_WAVES, dtype=np.float32)
    periods = np.float32(10000) ** (2 * (number // 2) / np.float32(_WAVES))

    def along(size: int) -> np.ndarray:
        place = np.arange(1, size + 1, dtype=np.float32)
        place = place / (place[-1] + np.float32(1e-6)) * np.float32(2 * np.pi)
        angles = place[:, None] / periods
        return np.where(np.arange(_WAVES) % 2, np.cos(angles), np.sin(angles))

    rows = np.broadcast_to(along(height)[:, None], (height, width, _WAVES))
    columns = np.broadcast_to(along(width)[None], (height, width, _WAVES))
    return np.concatenate([rows, columns], -1)


def xcit_small12(
    num_classes: int = 1000,
    *,
    patch_size: Literal[4, 16] = 16,
    width: int = 384,
    depth: int = 12,
    heads: int = 8,
    mean: tuple[float, ...] | None = IMAGENET_MEAN,
    std: tuple[float, ...] | None = IMAGENET_STD,
    activation: Activation = "gelu_exact",
    unbiased: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    gradients: Gradients = "auto",
) -> XCiT:
    """XCiT-S12: 26,253,304 parameters at 1,000 classes; no dropout.

    Args:
      num_classes: K.
      patch_size: see `XCiT`; RobustBench has 16 for ImageNet and 4 for CIFAR.
      width: see `XCiT`; 16 makes a network for small machines.
      depth: see `XCiT`.
      heads: see `XCiT`.
      mean: see `XCiT`; the default is ImageNet's.
      std: see `XCiT`.
      activation: see `XCiT`.
      unbiased: see `XCiT`.
      dtype: see `XCiT`.
      param_dtype: see `XCiT`.
      gradients: see `XCiT`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: for non-positive sizes, a width that is no multiple of 8 and ``heads``, another
        patch size, or an unknown activation.

    References:
      Ali et al., 2021, "XCiT: Cross-Covariance Image Transformers"; as in timm. Debenedetti et
      al., 2022, "A Light Recipe to Train Robust Vision Transformers".

    Example:
      >>> import jax, jax.numpy as jnp
      >>> module = xcit_small12(10, patch_size=4, width=16, depth=1, heads=2)
      >>> images = jnp.zeros((2, 8, 8, 3))
      >>> variables = module.init(jax.random.key(0), images)
      >>> module.apply(variables, images).shape
      (2, 10)
    """
    check_positive(num_classes=num_classes, width=width, depth=depth, heads=heads)
    if patch_size not in (4, 16):
        raise ValueError(f"patch_size is {patch_size!r}; it must be 4 or 16.")
    if width % 8 or width % heads:
        raise ValueError(f"width is {width}; it must be a multiple of 8 and of heads={heads}.")
    activation_fn(activation)
    return XCiT(
        num_classes=num_classes,
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=heads,
        mean=as_tuple(mean),
        std=as_tuple(std),
        activation=activation,
        unbiased=unbiased,
        dtype=dtype,
        param_dtype=param_dtype,
        gradients=gradients,
    )


def xcit_medium12(num_classes: int = 1000, *, width: int = 512, **options: Any) -> XCiT:
    """XCiT-M12, of 512 channels: 46,401,160 parameters at 1,000 classes.

    Args:
      num_classes: K.
      width: see `XCiT`.
      **options: options of `xcit_small12`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: see `xcit_small12`.

    References:
      See `xcit_small12`.

    Example:
      >>> xcit_medium12(10, patch_size=4).heads
      8
    """
    return xcit_small12(num_classes, width=width, **options)


def xcit_large12(
    num_classes: int = 1000, *, width: int = 768, heads: int = 16, **options: Any
) -> XCiT:
    """XCiT-L12, of 768 channels and 16 heads: 103,792,648 parameters at 1,000 classes.

    Args:
      num_classes: K.
      width: see `XCiT`.
      heads: see `XCiT`.
      **options: options of `xcit_small12`.

    Returns:
      A linen module, called like that of `preact_resnet18`.

    Raises:
      ValueError: see `xcit_small12`.

    References:
      See `xcit_small12`.

    Example:
      >>> xcit_large12(10, patch_size=4).width
      768
    """
    return xcit_small12(num_classes, width=width, heads=heads, **options)
