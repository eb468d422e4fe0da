"""The convolution of the models as a function and as a layer; see :mod:`jaxadv._convolution`."""

from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax

from .._convolution import convolve
from .._convolution_forms import LAYOUT, Pads, Pair
from ..types import Array

Gradients: TypeAlias = Literal["auto", "native", "explicit"]
Padding: TypeAlias = int | Literal["SAME", "VALID"] | tuple[Pair, Pair]

GRADIENTS: tuple[Gradients, ...] = ("auto", "native", "explicit")


def conv2d(
    images: Array,
    kernel: Array,
    *,
    strides: int | Pair = 1,
    padding: Padding = 0,
    gradients: Gradients = "auto",
) -> Array:
    r"""Cross-correlate images with a kernel (what deep learning calls a convolution).

    .. math:: y_{nhwo} = \sum_{ijc} x_{n,\,sh+i-p,\,sw+j-p,\,c}\; k_{ijco}

    Args:
      images: x, of shape (B, H, W, C).
      kernel: k, of shape (kh, kw, C, O) and of the dtype of ``images``.
      strides: s, one number or one per axis.
      padding: p, zeros on every side; or ``"SAME"``, ``"VALID"``, ((top, bottom), (left, right)).
      gradients: ``"native"`` uses JAX's own derivatives, ``"explicit"`` expresses every derivative
        as a convolution in the layout that is fast inside loops on CPU; values and derivatives
        agree to rounding. ``"auto"`` is explicit in programs for CPU and native in programs for
        other platforms (on GPU the native derivatives are faster), wherever they are traced.

    Returns:
      y, of shape (B, H', W', O), with H' = floor((H + 2p - kh) / s) + 1.

    Raises:
      ValueError: for an unknown ``gradients``, or incompatible shapes or dtypes.

    Example:
      >>> import jax.numpy as jnp
      >>> conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2)), strides=2, padding=1).shape
      (1, 2, 2, 2)
    """
    if gradients not in GRADIENTS:
        raise ValueError(f"gradients is {gradients!r}; it must be one of {GRADIENTS}.")
    if images.ndim != 4 or kernel.ndim != 4 or images.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"images has shape {images.shape} and kernel {kernel.shape}; they must be (B, H, W, C) "
            "and (kh, kw, C, O) with the same C."
        )
    if images.dtype != kernel.dtype:
        raise ValueError(f"images is {images.dtype} and kernel {kernel.dtype}; cast one of them.")
    steps = (strides, strides) if isinstance(strides, int) else strides
    size = kernel.shape[:2]
    pads: Pads
    if isinstance(padding, str):
        rows, columns = lax.padtype_to_pads(images.shape[1:3], size, steps, padding)
        pads = (rows, columns)
    else:
        pads = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    if gradients == "native":
        return lax.conv_general_dilated(
            images, kernel, window_strides=steps, padding=pads, dimension_numbers=LAYOUT
        )
    return convolve(
        images,
        kernel,
        strides=steps,
        padding=pads,
        # Lowering happens outside of the user's `with jax.default_matmul_precision(...)`.
        precision=jax.config.jax_default_matmul_precision or "default",  # pyright: ignore
        explicit=gradients == "explicit",
    )


class Conv(nn.Module):
    """The linen module of `conv2d`, by default without bias.

    Attributes:
      features: number of output channels O.
      kernel_size: (kh, kw).
      strides: as for `conv2d`.
      padding: as for `conv2d`.
      use_bias: add a bias of shape (O,).
      kernel_init: initializer of the kernel (kh, kw, C, O).
      bias_init: initializer of the bias; called with its shape only.
      dtype: dtype of the computation; None is the common dtype of images and parameters.
      param_dtype: dtype of the parameters.
      gradients: as for `conv2d`.
    """

    features: int
    kernel_size: Pair = (3, 3)
    strides: int | Pair = 1
    padding: Padding = 0
    use_bias: bool = False
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros_init()
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gradients: Gradients = "auto"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Map (B, H, W, C) to (B, H', W', features)."""
        shape = (*self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        images, kernel = promote_dtype(images, kernel, dtype=self.dtype)
        y = conv2d(
            images, kernel, strides=self.strides, padding=self.padding, gradients=self.gradients
        )
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            y = y + bias.astype(y.dtype).reshape(1, 1, 1, -1)
        return y
