"""A 2-D convolution as a primitive, lowered to the form that is fast on the platform lowered for.

Images x, kernel w and result y = C(x, w) are tied by a trilinear form, and each is a bilinear
function of the two others: C itself, its adjoint in x (of w and y) and its adjoint in w (of x and
y). The derivatives of each are the two others, so a single primitive that names the missing array
gives forward and reverse mode of every order. It must be a primitive because ``jax.custom_vjp``
forbids forward mode, and because its form is chosen at lowering, by the platform that is lowered
for, which need not be the one that traces (:mod:`jaxadv._convolution_forms`):

* CPU: XLA has one fast convolution there, of NHWC images and an HWIO kernel. Adjoints are
  convolutions with permuted dimension numbers, and networks ported from PyTorch have NCHW images
  and OIHW kernels. Outside loops XLA rewrites them into the fast form; inside ``scan``,
  ``fori_loop`` and ``while_loop`` it does not, and they are 2 to 200 times slower
  (``benchmarks/conv.py``). So the *operands* are permuted instead, and 1x1 convolutions are
  matrix products. Groups are computed in the forms of :mod:`jaxadv._grouped`, few channels in those
  of :mod:`jaxadv._channels`, many channels with a 3x3 kernel in that of :mod:`jaxadv._winograd`.
* Everywhere else: convolutions with dimension numbers, those of JAX's own derivatives.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from . import _winograd
from ._convolution_forms import (
    LAYOUT,
    ROLES,
    Layout,
    Pads,
    Pair,
    Role,
    axes_of,
    letters,
    missing_array,
    operands_of,
    space_of,
)
from ._spread import Spread, spread_of
from .types import Array


def convolve(
    images: Array,
    kernel: Array,
    *,
    strides: Pair,
    padding: Pads,
    precision: Any,
    explicit: bool = False,
) -> Array:
    """Binds the primitive to NHWC images and an HWIO kernel.

    Args:
      images: x.
      kernel: w, of the dtype of ``images``.
      strides: of the window.
      padding: zeros at the top and bottom, left and right.
      precision: of the products, as for ``jax.lax.conv_general_dilated`` but not None.
      explicit: whether to use the form for CPU on every platform.
    """
    native = functools.partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=LAYOUT
    )
    like = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in (images, kernel)]
    size = jax.eval_shape(native, *like).shape[1:3]
    options = parameters(size, strides, padding, precision, explicit=explicit)
    return conv_p.bind(*_varying_alike(images, kernel), **options)


def parameters(
    size: Pair,
    strides: Pair,
    padding: Pads,
    precision: Any,
    *,
    explicit: bool = False,
    dilation: Pair = (1, 1),
    layout: Layout = LAYOUT,
    groups: int = 1,
) -> dict[str, Any]:
    """Those of the primitive for a forward convolution.

    Args:
      size: height and width of the result.
      strides: as for `convolve`.
      padding: as for `convolve`.
      precision: as for `convolve`.
      explicit: as for `convolve`.
      dilation: of the kernel.
      layout: of images, kernel and result.
      groups: of channels and of features.
    """
    options = dict(
        missing="result", size=size, strides=strides, padding=tuple(map(tuple, padding)), maps=0,
        precision=precision, explicit=explicit,
    )  # fmt: skip
    # The digest of a model is that of its parameters, so only what is unusual is written down.
    usual = dict(dilation=(1, 1), layout=LAYOUT, groups=1)
    given = dict(dilation=dilation, layout=layout, groups=groups)
    return options | {name: value for name, value in given.items() if value != usual[name]}


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


def _adjoint(which: int, g: Array, a: Any, b: Any, *, missing: Role, **params: Any) -> Array:
    """The cotangent of operand ``which`` from that of the missing array: another of the three."""
    names = operands_of(missing)
    wanted, other = names[which], names[1 - which]
    arrays = {missing: g, other: (b, a)[which]}
    shape = (a, b)[which].aval.shape[params["maps"] :]
    places = space_of(wanted, params.get("layout", LAYOUT))
    params["size"] = tuple(shape[axis] for axis in places)
    return conv_p.bind(*(arrays[name] for name in operands_of(wanted)), missing=wanted, **params)


def _batch(args: tuple[Array, Array], dims: tuple[Any, Any], **params: Any) -> tuple[Array, int]:
    """Fold a batched operand into the axis that it shares with the result; map over two."""
    maps, missing, layout = params["maps"], params["missing"], params.get("layout", LAYOUT)
    params.pop("spread", None)  # the images of one minibatch, not of several
    if None not in dims:
        both = (jnp.moveaxis(x, dim, 0) for x, dim in zip(args, dims, strict=True))
        return conv_p.bind(*both, **params | {"maps": maps + 1}), 0
    which = 1 - dims.index(None)
    mine, its = axes_of(operands_of(missing)[which], layout), axes_of(missing, layout)
    (axis,) = set(mine) & set(its)
    if params.get("groups", 1) > 1 and axis != "n":  # it would come between groups and channels
        number = args[which].shape[dims[which]]
        other = jnp.broadcast_to(args[1 - which], (number, *args[1 - which].shape))
        both = [other, other]
        both[which] = jnp.moveaxis(args[which], dims[which], 0)
        return conv_p.bind(*both, **params | {"maps": maps + 1}), 0
    place, target = maps + mine.index(axis), maps + its.index(axis)
    x = jnp.moveaxis(args[which], dims[which], place)
    number, each = x.shape[place : place + 2]
    operands = list(args)
    operands[which] = x.reshape(*x.shape[:place], number * each, *x.shape[place + 2 :])
    out = conv_p.bind(*operands, **params)
    return out.reshape(*out.shape[:target], number, each, *out.shape[target + 1 :]), target


def _abstract(a: ShapedArray, b: ShapedArray, **params: Any) -> ShapedArray:
    native = functools.partial(_form, **params | {"explicit": False, "spread": None})
    return jax.make_jaxpr(native)(a, b).out_avals[0]


_sharing: contextvars.ContextVar[bool] = contextvars.ContextVar("sharing_cores", default=False)


@contextlib.contextmanager
def sharing_cores() -> Iterator[None]:
    """Convolutions lowered inside are for programs that run beside others, a core each."""
    token = _sharing.set(True)
    try:
        yield
    finally:
        _sharing.reset(token)


def split_over_devices(images: Any, kernel: Any, result: Any, **params: Any) -> dict[str, Any]:
    """The parameters of a forward convolution whose images several CPU devices share.

    The compiler splits a convolution well, but not one of many operations.

    Args:
      images: with shape and dtype.
      kernel: with shape and dtype.
      result: with shape and dtype.
      params: those of the primitive.
    """
    plain = params["strides"] == params.get("dilation", (1, 1)) == (1, 1)
    if params["missing"] != "result" or params["maps"] or not plain or "groups" in params:
        return params
    layout = params.get("layout", LAYOUT)
    images_nhwc, kernel_hwio, result_nhwc = (
        tuple(array.shape[axis] for axis in map(letters(role, layout).index, letters(role, LAYOUT)))
        for role, array in zip(ROLES, (images, kernel, result), strict=True)
    )
    spread = spread_of(images_nhwc[0])
    if spread is None:
        return params
    images_nhwc, result_nhwc = (
        (n // spread.mesh.size, *rest) for n, *rest in (images_nhwc, result_nhwc)
    )
    faster = _winograd.is_faster(
        images_nhwc, result_nhwc, kernel_hwio[:2], images.dtype, params["precision"]
    )
    return params | {"spread": spread} if faster else params


def _form(a: Array, b: Array, *, spread: Spread | None = None, **params: Any) -> Array:
    """`missing_array`, or the primitive on every device."""
    if spread is None:
        return missing_array(a, b, **params)
    missing, layout = params["missing"], params.get("layout", LAYOUT)

    def local(a: Array, b: Array) -> Array:
        found = conv_p.bind(a, b, **params)
        return lax.psum(found, spread.axis) if missing == "kernel" else found

    def spec(role: Role) -> PartitionSpec:
        return (
            PartitionSpec() if role == "kernel" else spread.rows(letters(role, layout).index("N"))
        )

    return jax.shard_map(
        local,
        mesh=spread.mesh,
        in_specs=tuple(map(spec, operands_of(missing))),
        out_specs=spec(missing),
        check_vma=False,
    )(a, b)


def _on_cpu(context: Any, a: Any, b: Any, **params: Any) -> Any:
    """The lowering for CPU. Programs for several CPU devices share the cores, too."""
    # Inside ``shard_map`` the mesh says how many devices there are.
    within: Any = context.module_context.axis_context
    devices = getattr(within, "num_devices", None) or getattr(within.mesh, "size", 1)
    if params.get("spread") is None:
        manual = getattr(within, "manual_axes", ())
        alone = devices == 1 or bool(manual) and set(within.mesh.axis_names) <= set(manual)
        params |= {"explicit": True, "one_core": _sharing.get() or devices > 1, "whole": alone}
    rule = mlir.lower_fun(_form, multiple_results=False)
    return rule(context, a, b, **params)


conv_p = Primitive("jaxadv_conv")
_STATIC = (
    "missing", "size", "strides", "padding", "maps", "precision", "explicit", "dilation", "layout",
    "groups", "spread",
)  # fmt: skip
conv_p.def_impl(jax.jit(conv_p.bind, static_argnames=_STATIC))
conv_p.def_abstract_eval(_abstract)
mlir.register_lowering(conv_p, mlir.lower_fun(_form, multiple_results=False))
mlir.register_lowering(conv_p, _on_cpu, "cpu")
ad.defbilinear(conv_p, *(functools.partial(_adjoint, which) for which in (0, 1)))
batching.primitive_batchers[conv_p] = _batch
