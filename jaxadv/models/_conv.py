"""A 2-D convolution lowered to the form that is fast on the platform it is lowered for.

Images x, kernel w and result y = C(x, w) are tied by a trilinear form, and each is a bilinear
function of the two others: C itself, its adjoint in x (of w and y) and its adjoint in w (of x and
y). The derivatives of each are the two others, so a single primitive that names the missing array
gives forward and reverse mode of every order. It must be a primitive because ``jax.custom_vjp``
forbids forward mode, and because its form is chosen at lowering, by the platform that is lowered
for, which need not be the one that traces:

* CPU: XLA has one fast convolution there, of NHWC images and an HWIO kernel. Adjoints are
  convolutions with permuted dimension numbers. Outside loops XLA rewrites them into the fast form;
  inside ``scan``, ``fori_loop`` and ``while_loop`` it does not, and they are 2 to 200 times slower
  (``benchmarks/conv.py``). So the *operands* are permuted instead, and 1x1 convolutions are
  matrix products.
* Everywhere else: convolutions with dimension numbers, those of JAX's own derivatives.
"""

import functools
from collections.abc import Callable
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

_Role: TypeAlias = Literal["images", "kernel", "result"]
_LAYOUT = ("NHWC", "HWIO", "NHWC")
# The axes of the three arrays. Besides the spatial ones, any two share exactly one.
_AXES: dict[_Role, str] = {"images": "nHWc", "kernel": "hwco", "result": "nYXo"}


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
    if isinstance(padding, str):
        pads = tuple(lax.padtype_to_pads(images.shape[1:3], size, steps, padding))
    else:
        pads = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    native = functools.partial(
        lax.conv_general_dilated,
        window_strides=steps,
        padding=pads,
        dimension_numbers=_LAYOUT,
    )
    if gradients == "native":
        return native(images, kernel)
    like = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in (images, kernel)]
    return _conv_p.bind(
        *_varying_alike(images, kernel),
        missing="result",
        size=jax.eval_shape(native, *like).shape[1:3],
        strides=steps,
        padding=tuple(map(tuple, pads)),
        maps=0,
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


def _varying_alike(*operands: Array) -> tuple[Array, ...]:
    """Marks all as varying over the same axes of a ``shard_map``, so that gradients are summed."""

    def axes(operand: Array) -> frozenset:
        kind: Any = jax.typeof(operand)
        return getattr(kind, "manual_axis_type", kind).varying

    together = frozenset[Any]().union(*map(axes, operands))
    lacking = [tuple(sorted(together - axes(operand))) for operand in operands]
    return tuple(
        lax.pcast(operand, names, to="varying") if names else operand
        for operand, names in zip(operands, lacking, strict=True)
    )


def _given(missing: _Role) -> list[_Role]:
    """The arrays that are not missing, in the order in which they are given."""
    return [role for role in _AXES if role != missing]


def _space(role: _Role) -> slice:
    """Where height and width are in the shape of an array."""
    return slice(0, 2) if role == "kernel" else slice(1, 3)


def _convolve(
    a: Array,
    b: Array,
    *,
    missing: _Role,
    size: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair],
    maps: int,
    precision: Any,
    explicit: bool,
) -> Array:
    """The missing array from the two others, given in the order images, kernel, result.

    Args:
      a: the first array.
      b: the second array.
      missing: the name of the third.
      size: height and width of the third.
      strides: of the convolution.
      padding: of the convolution.
      maps: number of leading axes of both arrays to map over.
      precision: of the products.
      explicit: whether to use the form for CPU.
    """
    sizes: dict[_Role, Pair] = {missing: size}
    for role, operand in zip(_given(missing), (a, b), strict=True):
        sizes[role] = operand.shape[maps:][_space(role)]  # pyright: ignore
    is_product = explicit and sizes["kernel"] == (1, 1) and padding == ((0, 0), (0, 0))

    def one(a: Array, b: Array) -> Array:
        if missing == "kernel" and b.size == 0:  # a convolution with an empty kernel is undefined
            return jnp.zeros((*size, a.shape[3], b.shape[3]), a.dtype)
        if is_product:
            return _product(a, b, missing, size, strides, precision)
        if missing == "images":
            a, b = b, lax.rev(a, (0, 1))
        layout, options = _geometry(missing, sizes, strides, padding)
        convolve = functools.partial(lax.conv_general_dilated, precision=precision, **options)
        if not explicit:
            return convolve(a, b, dimension_numbers=layout)
        a, b = _permuted(a, layout[0], _LAYOUT[0]), _permuted(b, layout[1], _LAYOUT[1])
        return _permuted(convolve(a, b, dimension_numbers=_LAYOUT), _LAYOUT[2], layout[2])

    mapped: Callable[[Array, Array], Array] = one
    for _ in range(maps):
        # Under vmap it becomes a grouped convolution, which is slow on CPU.
        mapped = _looped(mapped) if explicit and not is_product else jax.vmap(mapped)
    return mapped(a, b)


def _geometry(
    missing: _Role, sizes: dict[_Role, Pair], strides: Pair, padding: tuple[Pair, Pair]
) -> tuple[tuple[str, str, str], dict[str, Any]]:
    """Layout and window of the convolution that gives the missing array."""
    if missing == "result":
        return _LAYOUT, dict(window_strides=strides, padding=padding)
    pads = []
    for axis, (low, _) in enumerate(padding):
        images, kernel = sizes["images"][axis], sizes["kernel"][axis]
        result = _dilated(sizes["result"][axis], strides[axis])
        if missing == "images":
            low = kernel - 1 - low
            pads.append((low, images + kernel - 1 - result - low))
        else:
            pads.append((low, result + kernel - 1 - images - low))
    # The result with the kernel turned round, or the images with the result as the kernel.
    layout, dilation = {
        "images": (("NHWC", "HWOI", "NHWC"), "lhs_dilation"),
        "kernel": (("CHWN", "IHWO", "HWNC"), "rhs_dilation"),
    }[missing]
    return layout, {"window_strides": (1, 1), "padding": tuple(pads), dilation: strides}


def _looped(one: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, b: lax.map(lambda pair: one(*pair), (a, b))


def _permuted(array: Array, given: str, wanted: str) -> Array:
    """The array with its axes in another order."""
    return array if given == wanted else lax.transpose(array, [*map(given.index, wanted)])


def _dilated(size: int, stride: int) -> int:
    """Length of an axis with stride - 1 zeros between its entries."""
    return 0 if size == 0 else 1 + stride * (size - 1)


def _product(
    a: Array, b: Array, missing: _Role, size: Pair, strides: Pair, precision: Any
) -> Array:
    """`_convolve` of a 1x1 kernel: a product of matrices."""
    dot = functools.partial(lax.dot_general, precision=precision)
    if missing == "images":
        picked = dot(b, a[0, 0], (((3,), (1,)), ((), ())))
        if strides == (1, 1):
            return picked
        sizes = zip(size, picked.shape[1:3], strides, strict=True)
        space = [(0, n - _dilated(m, s), s - 1) for n, m, s in sizes]
        zero = jnp.zeros((), picked.dtype)
        return lax.pad(picked, zero, [(0, 0, 0), *space, (0, 0, 0)])
    picked = a[:, :: strides[0], :: strides[1]] if strides != (1, 1) else a
    if missing == "result":
        return dot(picked, b[0, 0], (((3,), (0,)), ((), ())))
    axes = (0, 1, 2)
    return dot(b, picked, ((axes, axes), ((), ()))).T[None, None]


def _adjoint(which: int, g: Array, a: Any, b: Any, *, missing: _Role, **params: Any) -> Array:
    """The cotangent of operand ``which`` from that of the missing array: another of the three."""
    names = _given(missing)
    wanted, other = names[which], names[1 - which]
    arrays = {missing: g, other: (b, a)[which]}
    shape = (a, b)[which].aval.shape[params["maps"] :]
    params["size"] = shape[_space(wanted)]
    return _conv_p.bind(*(arrays[name] for name in _given(wanted)), missing=wanted, **params)


def _batch(args: tuple[Array, Array], dims: tuple[Any, Any], **params: Any) -> tuple[Array, int]:
    """Fold a batched operand into the axis that it shares with the result; map over two."""
    maps, missing = params["maps"], params["missing"]
    if None not in dims:
        both = (jnp.moveaxis(x, dim, 0) for x, dim in zip(args, dims, strict=True))
        return _conv_p.bind(*both, **params | {"maps": maps + 1}), 0
    which = 1 - dims.index(None)
    mine, its = _AXES[_given(missing)[which]], _AXES[missing]
    (axis,) = set(mine) & set(its)
    place, target = maps + mine.index(axis), maps + its.index(axis)
    x = jnp.moveaxis(args[which], dims[which], place)
    number, each = x.shape[place : place + 2]
    operands = list(args)
    operands[which] = x.reshape(*x.shape[:place], number * each, *x.shape[place + 2 :])
    out = _conv_p.bind(*operands, **params)
    return out.reshape(*out.shape[:target], number, each, *out.shape[target + 1 :]), target


def _abstract(a: ShapedArray, b: ShapedArray, **params: Any) -> ShapedArray:
    native = functools.partial(_convolve, **params | {"explicit": False})
    return jax.make_jaxpr(native)(a, b).out_avals[0]


def _lowered(a: Array, b: Array, *, cpu: bool, explicit: bool, **params: Any) -> Array:
    return _convolve(a, b, explicit=explicit or cpu, **params)


_conv_p = Primitive("jaxadv_conv")
_STATIC = ("missing", "size", "strides", "padding", "maps", "precision", "explicit")
_conv_p.def_impl(jax.jit(_conv_p.bind, static_argnames=_STATIC))
_conv_p.def_abstract_eval(_abstract)
for _platform in (None, "cpu"):
    _rule = functools.partial(_lowered, cpu=_platform == "cpu")
    mlir.register_lowering(_conv_p, mlir.lower_fun(_rule, multiple_results=False), _platform)
ad.defbilinear(_conv_p, *(functools.partial(_adjoint, which) for which in (0, 1)))
batching.primitive_batchers[_conv_p] = _batch
