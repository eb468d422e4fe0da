"""What the convolution of :mod:`jaxadv._convolution` computes, on CPU and elsewhere."""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from . import _channels, _grouped, _winograd
from ._winograd import Pads, Pair
from .types import Array

Layout: TypeAlias = tuple[str, str, str]  # of images, kernel and result, in JAX's letters

Role: TypeAlias = Literal["images", "kernel", "result"]
ROLES: tuple[Role, ...] = ("images", "kernel", "result")
LAYOUT: Layout = ("NHWC", "HWIO", "NHWC")  # the fast one
# Names of the axes. Besides the spatial ones, any two arrays share exactly one.
_NAMES = {
    "images": str.maketrans("NHWC", "nHWc"),
    "kernel": str.maketrans("HWIO", "hwco"),
    "result": str.maketrans("NHWC", "nYXo"),
}


def operands_of(missing: Role) -> list[Role]:
    """The arrays that are not missing, in the order in which they are given."""
    return [role for role in ROLES if role != missing]


def letters(role: Role, layout: Layout) -> str:
    """The layout of one array."""
    return layout[ROLES.index(role)]


def axes_of(role: Role, layout: Layout) -> str:
    """The names of the axes of an array, in order."""
    return letters(role, layout).translate(_NAMES[role])


def space_of(role: Role, layout: Layout) -> list[int]:
    """Where height and width are in the shape of an array."""
    return [*map(letters(role, layout).index, "HW")]


def missing_array(
    a: Array,
    b: Array,
    *,
    missing: Role,
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
    sizes: dict[Role, Pair] = {missing: size}
    first, second = operands_of(missing)
    for role, operand in ((first, a), (second, b)):
        shape = operand.shape[maps:]
        sizes[role] = tuple(shape[axis] for axis in space_of(role, layout))  # pyright: ignore
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
            counts = (
                a.shape[letters(first, form).index("C")],
                b.shape[letters(second, form).index("C")],
            )
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
            dense = functools.partial(missing_array, **again)
            return restore(_grouped.blocks(a, b, missing, groups, channels, dense), missing)
        if is_product:
            return restore(_product(a, b, missing, size, strides, precision), missing)
        if whole and groups == 1 and strides == dilation == (1, 1):
            found = _winograd.computed(a, b, missing, size, padding, precision)
            if found is not None:
                return restore(found, missing)
        if missing == "images":
            a, b = b, lax.rev(a, space_of("kernel", form))
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


def _of_a_group(a: Array, b: Array, missing: Role, groups: int) -> Pair:
    """Numbers of channels and features of a group, from the two given arrays."""
    wide = a if missing == "images" else b
    channels = a.shape[3] // groups if missing == "kernel" else wide.shape[2]
    return channels, wide.shape[3] // groups


def _native(
    a: Array,
    b: Array,
    missing: Role,
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
        dict(zip(axes_of(role, layout), x.shape, strict=True))
        for role, x in zip(operands_of(missing), (a, b), strict=True)
    )
    known = first | second
    if missing == "images":
        known |= dict(zip("HW", size, strict=True), c=known["c"] * groups)
        adjoint = lambda images: run(images, a)
    else:
        known |= dict(zip("hw", size, strict=True), c=known["c"] // groups)
        adjoint = lambda kernel: run(a, kernel)
    shape = tuple(known[name] for name in axes_of(missing, layout))
    (found,) = jax.linear_transpose(adjoint, jax.ShapeDtypeStruct(shape, a.dtype))(b)
    return found


def _geometry(
    missing: Role,
    sizes: dict[Role, Pair],
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


def _permuted(array: Array, role: Role, *, given: Layout, wanted: Layout) -> Array:
    """The array of this role in another layout."""
    return _transposed(array, letters(role, given), letters(role, wanted))


def _transposed(array: Array, given: str, wanted: str) -> Array:
    """The array with its axes in another order."""
    return array if given == wanted else lax.transpose(array, [*map(given.index, wanted)])


def _dilated(size: int, stride: int) -> int:
    """Length of an axis with stride - 1 zeros between its entries."""
    return 0 if size == 0 else 1 + stride * (size - 1)


def _product(a: Array, b: Array, missing: Role, size: Pair, strides: Pair, precision: Any) -> Array:
    """`missing_array` of a 1x1 kernel in the fast layout: a product of matrices."""
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
