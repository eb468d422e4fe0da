"""A 2-D convolution whose derivatives of every order are fast on CPU, also inside loops.

XLA's CPU backend has one fast convolution: NHWC images, HWIO kernel, NHWC result. JAX's own
derivatives of a convolution are convolutions with permuted dimension numbers. Outside loops XLA
rewrites them into the fast form; inside ``scan``, ``fori_loop`` and ``while_loop`` it does not, and
they are 2 to 200 times slower (``benchmarks/conv.py``). Here the *operands* are permuted instead,
so that a derivative is again a convolution in the fast form. With the general convolution
``C(x, w)`` (stride, padding, dilation of the image a, dilation of the kernel b)

* the adjoint in x is ``C(g, w')`` with w' flipped in space and its two channel axes swapped,
* the adjoint in w is ``C(x', g')'`` with batch and channel axes swapped (' swaps them),

so the family is closed: a single bilinear primitive, its own transpose, gives forward, reverse,
forward-over-reverse and all higher derivatives from the same fast convolution. It must be a
primitive because ``jax.custom_vjp`` forbids forward mode, and JAX would still transpose a
``jax.custom_jvp`` rule with its own rules, which permute the dimension numbers again.
"""

from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxadv.types import Array

Gradients: TypeAlias = Literal["auto", "native", "explicit"]
Pair: TypeAlias = tuple[int, int]
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
        agree to rounding. ``"auto"`` is explicit on a CPU default backend and native otherwise (on
        GPU the native derivatives are faster).

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
    if isinstance(padding, str):
        pads = tuple(lax.padtype_to_pads(images.shape[1:3], size, steps, padding))
    else:
        pads = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    params: Any = dict(strides=steps, padding=pads, image_dilation=(1, 1), kernel_dilation=(1, 1))
    if gradients == "native" or (gradients == "auto" and jax.default_backend() != "cpu"):
        return _convolve(images, kernel, **params)
    if size == (1, 1) and pads == ((0, 0), (0, 0)):
        # A 1x1 convolution is a matrix product, whose JAX derivatives are fast.
        picked = images[:, :: steps[0], :: steps[1]] if steps != (1, 1) else images
        return lax.dot_general(picked, kernel[0, 0], (((3,), (0,)), ((), ())))
    return _conv_p.bind(images, kernel, **params)


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


def _convolve(
    x: Array,
    w: Array,
    *,
    strides: Pair,
    padding: tuple[Pair, Pair],
    image_dilation: Pair,
    kernel_dilation: Pair,
) -> Array:
    """C(x, w): the one form that XLA's CPU backend always compiles to its fast convolution."""
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=strides,
        padding=padding,
        lhs_dilation=image_dilation,
        rhs_dilation=kernel_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _dilated(size: int, dilation: int) -> int:
    return 0 if size == 0 else 1 + dilation * (size - 1)


def _adjoint_in_images(
    g: Array,
    x: ad.UndefinedPrimal,
    w: Array,
    *,
    strides: Pair,
    padding: tuple[Pair, Pair],
    image_dilation: Pair,
    kernel_dilation: Pair,
) -> Array:
    x_shape = x.aval.shape
    pads = []
    for axis, (low, _) in enumerate(padding):
        kernel = _dilated(w.shape[axis], kernel_dilation[axis])
        before = kernel - 1 - low
        full = _dilated(x_shape[axis + 1], image_dilation[axis]) + kernel - 1
        pads.append((before, full - _dilated(g.shape[axis + 1], strides[axis]) - before))
    return _conv_p.bind(
        g,
        lax.transpose(lax.rev(w, (0, 1)), (0, 1, 3, 2)),
        strides=image_dilation,
        padding=tuple(pads),
        image_dilation=strides,
        kernel_dilation=kernel_dilation,
    )


def _adjoint_in_kernel(
    g: Array,
    x: Array,
    w: ad.UndefinedPrimal,
    *,
    strides: Pair,
    padding: tuple[Pair, Pair],
    image_dilation: Pair,
    kernel_dilation: Pair,
) -> Array:
    w_shape = w.aval.shape
    if 0 in g.shape:  # a convolution with an empty kernel is undefined
        return jnp.zeros(w_shape, g.dtype)
    pads = []
    for axis, (low, _) in enumerate(padding):
        image = _dilated(x.shape[axis + 1], image_dilation[axis])
        kernel = _dilated(w_shape[axis], kernel_dilation[axis])
        out = _dilated(g.shape[axis + 1], strides[axis])
        pads.append((low, out - image + kernel - 1 - low))
    dw = _conv_p.bind(
        lax.transpose(x, (3, 1, 2, 0)),
        lax.transpose(g, (1, 2, 0, 3)),
        strides=kernel_dilation,
        padding=tuple(pads),
        image_dilation=image_dilation,
        kernel_dilation=strides,
    )
    return lax.transpose(dw, (1, 2, 0, 3))


def _batch(args: tuple[Array, Array], dims: tuple[Any, Any], **params: Any) -> tuple[Array, int]:
    """Fold a batched operand into the batch or the output channels: one convolution, still fast."""
    (x, w), (x_dim, w_dim) = args, dims
    if w_dim is None:
        x = jnp.moveaxis(x, x_dim, 0)
        y = _conv_p.bind(x.reshape(-1, *x.shape[2:]), w, **params)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    if x_dim is None:
        w = jnp.moveaxis(w, w_dim, 3)
        y = _conv_p.bind(x, w.reshape(*w.shape[:3], -1), **params)
        return y.reshape(*y.shape[:3], *w.shape[3:]), 3
    x, w = jnp.moveaxis(x, x_dim, 0), jnp.moveaxis(w, w_dim, 0)
    return lax.map(lambda operands: _conv_p.bind(*operands, **params), (x, w)), 0


def _abstract(x: ShapedArray, w: ShapedArray, **params: Any) -> ShapedArray:
    out = jax.eval_shape(lambda x, w: _convolve(x, w, **params), x, w)
    return ShapedArray(out.shape, out.dtype)


_conv_p = Primitive("jaxadv_conv")
_conv_p.def_impl(
    jax.jit(
        _convolve,
        static_argnames=("strides", "padding", "image_dilation", "kernel_dilation"),
    )
)
_conv_p.def_abstract_eval(_abstract)
mlir.register_lowering(_conv_p, mlir.lower_fun(_convolve, multiple_results=False))
ad.defbilinear(_conv_p, _adjoint_in_images, _adjoint_in_kernel)
batching.primitive_batchers[_conv_p] = _batch
