"""A 2-D convolution as a primitive, lowered to the form that is fast on the platform lowered for.

Images x, kernel w and result y = C(x, w) are tied by a trilinear form, and each is a bilinear
function of the two others: C itself, its adjoint in x (of w and y) and its adjoint in w (of x and
y). The derivatives of each are the two others, so a single primitive that names the missing array
gives forward and reverse mode of every order. It must be a primitive because ``jax.custom_vjp``
forbids forward mode, and because its form is chosen at lowering, by the platform that is lowered
for, which need not be the one that traces:

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
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from . import _channels, _grouped, _winograd
from ._spread import Spread
from .types import Array

Pair: TypeAlias = tuple[int, int]
Pads: TypeAlias = tuple[Pair, Pair]
Layout: TypeAlias = tuple[str, str, str]  # of images, kernel and result, in JAX's letters

_Role: TypeAlias = Literal["images", "kernel", "result"]
_ROLES: tuple[_Role, ...] = ("images", "kernel", "result")
LAYOUT: Layout = ("NHWC", "HWIO", "NHWC")  # the fast one
# Names of the axes. Besides the spatial ones, any two arrays share exactly one.
_NAMES = {
    "images": str.maketrans("NHWC", "nHWc"),
    "kernel": str.maketrans("HWIO", "hwco"),
    "result": str.maketrans("NHWC", "nYXo"),
}


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


def _given(missing: _Role) -> list[_Role]:
    """The arrays that are not missing, in the order in which they are given."""
    return [role for role in _ROLES if role != missing]


def _of(role: _Role, layout: Layout) -> str:
    """The layout of one array."""
    return layout[_ROLES.index(role)]


def _axes(role: _Role, layout: Layout) -> str:
    """The names of the axes of an array, in order."""
    return _of(role, layout).translate(_NAMES[role])


def _space(role: _Role, layout: Layout) -> list[int]:
    """Where height and width are in the shape of an array."""
    return [*map(_of(role, layout).index, "HW")]


def _convolve(
    a: Array,
    b: Array,
    *,
    missing: _Role,
    size: Pair,
    strides: Pair,
    padding: Pads,
    maps: int,
    precision: Any,
    explicit: bool,
    dilation: Pair = (1, 1),
    layout: Layout = LAYOUT,
    groups: int = 1,
    one_core: bool = False,
    whole: bool = False,
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
      dilation: of the kernel.
      layout: of the three arrays.
      groups: of channels and of features.
      one_core: whether a core computes it while the others are busy.
      whole: whether the arrays are a CPU's own, not to be split over several by the compiler.
    """
    sizes: dict[_Role, Pair] = {missing: size}
    first, second = _given(missing)
    for role, operand in ((first, a), (second, b)):
        shape = operand.shape[maps:]
        sizes[role] = tuple(shape[axis] for axis in _space(role, layout))  # pyright: ignore
    is_product = (
        explicit and groups == 1 and sizes["kernel"] == (1, 1) and padding == ((0, 0), (0, 0))
    )
    permute = functools.partial(_permuted, given=layout, wanted=LAYOUT)
    restore = functools.partial(_permuted, given=LAYOUT, wanted=layout)

    def one(a: Array, b: Array) -> Array:
        form = LAYOUT if explicit else layout
        if explicit:
            a, b = permute(a, first), permute(b, second)
        if missing == "kernel" and b.size == 0:  # a convolution with an empty kernel is undefined
            counts = a.shape[_of(first, form).index("C")], b.shape[_of(second, form).index("C")]
            shape = (*size, counts[0] // groups, counts[1])
            return _transposed(jnp.zeros(shape, a.dtype), LAYOUT[1], layout[1])
        if groups > 1 and not explicit:
            options = dict(window_strides=strides, padding=padding, rhs_dilation=dilation)
            return _native(a, b, missing, size, groups, layout, options | dict(precision=precision))
        channels, features = _of_a_group(a, b, missing, groups)
        if groups > 1 and not _grouped.is_depthwise(channels, features):
            again = dict(missing=missing, size=size, strides=strides, padding=padding, maps=1)
            again |= dict(precision=precision, explicit=True, dilation=dilation)
            again |= dict(one_core=one_core, whole=whole)
            dense = functools.partial(_convolve, **again)
            return restore(_grouped.blocks(a, b, missing, groups, channels, dense), missing)
        if is_product:
            return restore(_product(a, b, missing, size, strides, precision), missing)
        if whole and groups == 1 and strides == dilation == (1, 1):
            found = _winograd.computed(a, b, missing, size, padding, precision)
            if found is not None:
                return restore(found, missing)
        if missing == "images":
            a, b = b, lax.rev(a, _space("kernel", form))
        numbers, options = _geometry(missing, sizes, strides, padding, dilation, form)
        if groups > 1:
            found = _grouped.depthwise(a, b, missing, groups, size, options)
            return restore(found, missing)
        run = functools.partial(lax.conv_general_dilated, precision=precision, **options)
        if not explicit:
            return run(a, b, dimension_numbers=numbers)
        a, b = _transposed(a, numbers[0], LAYOUT[0]), _transposed(b, numbers[1], LAYOUT[1])
        run = functools.partial(run, dimension_numbers=LAYOUT)
        if one_core and missing != "kernel":  # whose "channels" are images
            found = _channels.convolve(run, a, b, size=size, **options)
        else:
            found = run(a, b)
        return restore(_transposed(found, LAYOUT[2], numbers[2]), missing)

    mapped: Callable[[Array, Array], Array] = one
    for _ in range(maps):
        # Under vmap it becomes a grouped convolution, which is slow on CPU.
        mapped = _looped(mapped) if explicit and not is_product else jax.vmap(mapped)
    return mapped(a, b)


def _of_a_group(a: Array, b: Array, missing: _Role, groups: int) -> Pair:
    """Numbers of channels and features of a group, from the two given arrays."""
    wide = a if missing == "images" else b
    channels = a.shape[3] // groups if missing == "kernel" else wide.shape[2]
    return channels, wide.shape[3] // groups


def _native(
    a: Array,
    b: Array,
    missing: _Role,
    size: Pair,
    groups: int,
    layout: Layout,
    options: dict[str, Any],
) -> Array:
    """JAX's own convolution with groups, or its own adjoint."""

    def run(images: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            images, kernel, dimension_numbers=layout, feature_group_count=groups, **options
        )

    if missing == "result":
        return run(a, b)
    first, second = (
        dict(zip(_axes(role, layout), x.shape, strict=True))
        for role, x in zip(_given(missing), (a, b), strict=True)
    )
    known = first | second
    if missing == "images":
        known |= dict(zip("HW", size, strict=True), c=known["c"] * groups)
        adjoint = lambda images: run(images, a)
    else:
        known |= dict(zip("hw", size, strict=True), c=known["c"] // groups)
        adjoint = lambda kernel: run(a, kernel)
    shape = tuple(known[name] for name in _axes(missing, layout))
    (found,) = jax.linear_transpose(adjoint, jax.ShapeDtypeStruct(shape, a.dtype))(b)
    return found


def _geometry(
    missing: _Role,
    sizes: dict[_Role, Pair],
    strides: Pair,
    padding: Pads,
    dilation: Pair,
    layout: Layout,
) -> tuple[Layout, dict[str, Any]]:
    """Layout and window of the convolution that gives the missing array."""
    if missing == "result":
        return layout, dict(window_strides=strides, padding=padding, rhs_dilation=dilation)
    pads = []
    for axis, (low, _) in enumerate(padding):
        images, kernel = sizes["images"][axis], _dilated(sizes["kernel"][axis], dilation[axis])
        result = _dilated(sizes["result"][axis], strides[axis])
        if missing == "images":
            low = kernel - 1 - low
            pads.append((low, images + kernel - 1 - result - low))
        else:
            pads.append((low, result + kernel - 1 - images - low))
    images, kernel, result = layout
    if missing == "images":  # the result with the kernel turned round
        numbers = result, _renamed(kernel, "IO", "OI"), images
        window = dict(window_strides=(1, 1), lhs_dilation=strides, rhs_dilation=dilation)
    else:  # the images with the result as the kernel
        numbers = (
            _renamed(images, "NC", "CN"), _renamed(result, "NC", "IO"), _renamed(kernel, "IO", "NC")
        )  # fmt: skip
        window = dict(window_strides=dilation, rhs_dilation=strides)
    return numbers, dict(padding=tuple(pads), **window)


def _renamed(letters: str, old: str, new: str) -> str:
    return letters.translate(str.maketrans(old, new))


def _looped(one: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, b: lax.map(lambda pair: one(*pair), (a, b))


def _permuted(array: Array, role: _Role, *, given: Layout, wanted: Layout) -> Array:
    """The array of this role in another layout."""
    return _transposed(array, _of(role, given), _of(role, wanted))


def _transposed(array: Array, given: str, wanted: str) -> Array:
    """The array with its axes in another order."""
    return array if given == wanted else lax.transpose(array, [*map(given.index, wanted)])


def _dilated(size: int, stride: int) -> int:
    """Length of an axis with stride - 1 zeros between its entries."""
    return 0 if size == 0 else 1 + stride * (size - 1)


def _product(
    a: Array, b: Array, missing: _Role, size: Pair, strides: Pair, precision: Any
) -> Array:
    """`_convolve` of a 1x1 kernel in the fast layout: a product of matrices."""
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
    places = _space(wanted, params.get("layout", LAYOUT))
    params["size"] = tuple(shape[axis] for axis in places)
    return conv_p.bind(*(arrays[name] for name in _given(wanted)), missing=wanted, **params)


def _batch(args: tuple[Array, Array], dims: tuple[Any, Any], **params: Any) -> tuple[Array, int]:
    """Fold a batched operand into the axis that it shares with the result; map over two."""
    maps, missing, layout = params["maps"], params["missing"], params.get("layout", LAYOUT)
    params.pop("spread", None)  # the images of one minibatch, not of several
    if None not in dims:
        both = (jnp.moveaxis(x, dim, 0) for x, dim in zip(args, dims, strict=True))
        return conv_p.bind(*both, **params | {"maps": maps + 1}), 0
    which = 1 - dims.index(None)
    mine, its = _axes(_given(missing)[which], layout), _axes(missing, layout)
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


def split_over(
    spread_of: Callable[[int], Spread | None],
    images: Any,
    kernel: Any,
    result: Any,
    **params: Any,
) -> dict[str, Any]:
    """The parameters of a forward convolution whose images several CPU devices share.

    The compiler splits a convolution well, but not one of many operations.

    Args:
      spread_of: the devices that share so many images.
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
        tuple(array.shape[axis] for axis in map(_of(role, layout).index, _of(role, LAYOUT)))
        for role, array in zip(_ROLES, (images, kernel, result), strict=True)
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
    """`_convolve`, or the primitive on every device."""
    if spread is None:
        return _convolve(a, b, **params)
    missing, layout = params["missing"], params.get("layout", LAYOUT)

    def local(a: Array, b: Array) -> Array:
        found = conv_p.bind(a, b, **params)
        return lax.psum(found, spread.axis) if missing == "kernel" else found

    def spec(role: _Role) -> PartitionSpec:
        return PartitionSpec() if role == "kernel" else spread.rows(_of(role, layout).index("N"))

    return jax.shard_map(
        local,
        mesh=spread.mesh,
        in_specs=tuple(map(spec, _given(missing))),
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
