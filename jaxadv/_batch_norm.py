r"""BatchNorm by the statistics of a minibatch, a primitive that may be spread over devices.

.. math:: y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta

On several devices the mean must be exchanged before the squares around it are summed, and
derivatives of both cost two exchanges more in every layer. On CPU an exchange takes as long as a
small convolution. Here it is one exchange forward and one in each derivative: a device
sums around the mean of its own images, and moments around different centers are combined exactly,

.. math:: \sigma^2 = E_d[E_d[(x - c_d)^2] + 2 (c_d - c) E_d[x - c_d] + (c_d - c)^2] - (\mu - c)^2

with the mean c of the centers. :mod:`jaxadv._spread` says on which devices.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from ._spread import Spread
from .types import Array

Outputs = tuple[Array, Array, Array]


def batch_norm(x: Array, scale: Array, bias: Array, *, epsilon: float) -> Outputs:
    """The normalized array, and mean and (biased) variance over all axes but the last.

    Args:
      x: of shape (..., C).
      scale: gamma, of shape (C,).
      bias: beta, of shape (C,).
      epsilon: added to the variance.
    """
    return tuple(batch_norm_p.bind(x, scale, bias, epsilon=epsilon, spread=None))


def normalized(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, *, epsilon: float
) -> Array:
    """The normalized array, for any mean and variance; all but ``x`` of shape (C,)."""
    factor = scale * jax.lax.rsqrt(var + epsilon)
    shape = (1,) * (x.ndim - 1) + mean.shape
    return (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)


def _form(
    x: Array, scale: Array, bias: Array, *, epsilon: float, spread: Spread | None
) -> list[Array]:
    moments = _moments if spread is None else _exchanged_once(spread)

    def run(x: Array, scale: Array, bias: Array) -> list[Array]:
        mean, var = moments(x)
        return [normalized(x, mean, var, scale, bias, epsilon=epsilon), mean, var]

    if spread is not None:
        everywhere, split = PartitionSpec(), spread.rows()
        run = jax.shard_map(
            run,
            mesh=spread.mesh,
            in_specs=(split, everywhere, everywhere),
            out_specs=[split, everywhere, everywhere],
            check_vma=False,  # an all-gather has the same result everywhere, which it cannot know
        )
    return run(x, scale, bias)


def _mean(x: Array) -> Array:
    return jnp.mean(x, tuple(range(x.ndim - 1)))


def _around(x: Array, center: Array) -> Array:
    return x - jnp.expand_dims(center, tuple(range(x.ndim - 1)))


def _moments(x: Array) -> tuple[Array, Array]:
    mean = _mean(x)
    return mean, _mean(jnp.square(_around(x, mean)))


def _exchanged_once(spread: Spread) -> Callable[[Array], tuple[Array, Array]]:
    """The moments of all devices' images, from those of one device."""
    devices, axis = spread.mesh.size, spread.axis

    @jax.custom_jvp
    def moments(x: Array) -> tuple[Array, Array]:
        center = _mean(x)
        off = _around(x, center)
        row = jnp.stack([center, _mean(off), _mean(jnp.square(off))])
        rows = list(jax.lax.all_gather(row, axis))  # a loop of Python compiles faster than sums
        middle = sum(center for center, _, _ in rows) / devices
        shift, square = jnp.zeros_like(middle), jnp.zeros_like(middle)
        for center, first, second in rows:
            apart = center - middle
            shift += (first + apart) / devices
            square += (second + 2 * first * apart + jnp.square(apart)) / devices
        return middle + shift, square - jnp.square(shift)

    @moments.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple, tuple]:
        [x], [t] = primals, tangents
        mean, var = moments(x)
        # The variance does not depend on the center, so the tangent of the mean is not in its own.
        both = jnp.stack([_mean(t), _mean(2 * _around(x, mean) * t)])
        return (mean, var), tuple(jax.lax.pmean(both, axis))

    return moments


def _jvp(primals: Any, tangents: Any, **params: Any) -> tuple[list, list]:
    moves = tuple(not isinstance(t, ad.Zero) for t in tangents)
    moving = [t for m, t in zip(moves, tangents, strict=True) if m]
    return _along(primals, moving, moves=moves, **params)


# Layers of one shape are traced once.
@functools.partial(jax.jit, static_argnames=("moves", "epsilon", "spread"))
def _along(primals: Any, tangents: Any, *, moves: tuple[bool, ...], **params: Any) -> Any:
    """Values, and their derivative along the tangents of the operands that move."""

    def form(*moving: Array) -> list[Array]:
        given = iter(moving)
        every = [next(given) if m else x for m, x in zip(moves, primals, strict=True)]
        return _form(*every, **params)

    return jax.jvp(form, [x for m, x in zip(moves, primals, strict=True) if m], tangents)


def _batch(args: Any, dims: Any, **params: Any) -> tuple[list, list]:
    out = jax.vmap(functools.partial(_form, **params), in_axes=tuple(dims))(*args)
    return out, [0] * len(out)


def _abstract(*avals: ShapedArray, **params: Any) -> Any:
    return jax.make_jaxpr(functools.partial(_form, **params | {"spread": None}))(*avals).out_avals


batch_norm_p = Primitive("jaxadv_batch_norm")
batch_norm_p.multiple_results = True
batch_norm_p.def_impl(_form)
batch_norm_p.def_abstract_eval(_abstract)
mlir.register_lowering(batch_norm_p, mlir.lower_fun(_form, multiple_results=True))
ad.primitive_jvps[batch_norm_p] = _jvp
batching.primitive_batchers[batch_norm_p] = _batch
