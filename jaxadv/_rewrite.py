"""Convolutions of any traced function, computed by the primitive of :mod:`jaxadv._convolution`.

XLA's CPU backend is slow at gradients of convolutions inside loops, and at convolutions of NCHW
images. A network made of ``flax.linen.Conv``, nnx, Haiku, Equinox or ``jax.lax`` has them, so they
are replaced before it is differentiated: equation by equation, inside nested ``jit``,
``checkpoint``, ``cond``, ``scan``, ``while_loop``, ``shard_map`` and functions with derivative
rules of their own. Shapes, dtypes, precision, and what is computed on platforms other than CPU stay
the same.

Replaced are 2-D convolutions of floats in every layout, with strides, padding, kernel dilation and
feature groups. Transposed (``lhs_dilation``), 1-D and 3-D convolutions, and those with
``batch_group_count``, ``preferred_element_type`` or ``out_sharding``, stay as they are. BatchNorm
of :mod:`jaxadv.models` gets the form for the devices of a training program.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend import core as jex

from ._batch_norm import batch_norm_p
from ._convolution import conv_p, parameters, split_over_devices
from ._spread import spread_of

_NESTED = (
    "jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "cond", "scan", "while",
    "shard_map",
)  # fmt: skip
_FLOATS = tuple(map(np.dtype, (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64)))

_enabled: contextvars.ContextVar[bool] = contextvars.ContextVar("fast_convolutions", default=True)


def is_enabled() -> bool:
    """Whether convolutions of what is traced now are replaced."""
    return _enabled.get()


@contextlib.contextmanager
def native_convolutions() -> Iterator[None]:
    """Leaves the convolutions of models that are traced inside as they are.

    On CPU every attack, objective and function of ``jaxadv.theory`` computes the 2-D convolutions
    of the model that it is given in the form of :func:`jaxadv.models.conv2d`, which has the same
    values and derivatives up to rounding. Inside this context it does not: to compare, or to repeat
    bits of an earlier version. Objectives and training programs keep what held when they were made;
    functions that you compile yourself, what held when they were traced.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxadv import attacks, models
        >>> conv = lambda x, k: jax.lax.conv(x.transpose(0, 3, 1, 2), k, (1, 1), "SAME")
        >>> logits_fn = lambda x: conv(x, jnp.ones((3, 1, 3, 3))).mean((2, 3))
        >>> x, y = jnp.full((1, 4, 4, 1), 0.5), jnp.array([0])
        >>> with models.native_convolutions():
        ...     adversarial = attacks.fgsm(0, logits_fn, x, y, norm="linf", eps=0.1)
    """
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


def fast_convolutions(function: Callable) -> Callable:
    """The function with its 2-D convolutions in the form that is fast inside loops on CPU.

    For your own loops over ``jax.grad``; attacks, objectives and the theory do it by themselves.
    Values and derivatives of every order are those of the function up to rounding, and on other
    platforms than CPU the compiled program is the same. Transposed, 1-D and 3-D convolutions are
    left as they are.

    Args:
        function: with JAX operations, pure; traced at every call, so call it inside ``jax.jit``.

    Returns:
        A function with the same arguments and results; inside :func:`native_convolutions` the
        function itself.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen
        >>> from jaxadv import models
        >>> module, x = linen.Conv(4, (3, 3)), jnp.ones((1, 8, 8, 3))
        >>> variables = module.init(jax.random.key(0), x)
        >>> loss = models.fast_convolutions(lambda x: module.apply(variables, x).sum())
        >>> step = lambda _, x: x + 0.1 * jnp.sign(jax.grad(loss)(x))
        >>> jax.jit(lambda x: jax.lax.fori_loop(0, 10, step, x))(x).shape
        (1, 8, 8, 3)
    """
    if not is_enabled():
        return function

    @functools.wraps(function)
    def fast(*args: Any, **kwargs: Any) -> Any:
        return evaluate(lambda: function(*args, **kwargs))

    return fast


def evaluate(function: Callable[[], Any]) -> Any:
    """Calls a function with its convolutions replaced; it closes over its arguments."""
    closed, out = jax.make_jaxpr(function, return_shape=True)()
    outputs = jax.core.eval_jaxpr(replaced(closed.jaxpr), closed.consts)
    return jax.tree.unflatten(jax.tree.structure(out), outputs)


def replaced(jaxpr: jex.Jaxpr) -> jex.Jaxpr:
    """A traced function with its convolutions replaced; itself if it has none."""
    done: dict[int, Any] = {}  # a function that is called twice stays one function

    def once(value: Any) -> Any:
        if id(value) not in done:
            done[id(value)] = value, _each(value, once)
        return done[id(value)][1]

    return once(jaxpr)


def _each(value: Any, inside: Callable[[Any], Any]) -> Any:
    """A parameter of an equation, with the functions in it replaced."""
    # In newer versions of JAX the two classes are one, whose ``jaxpr`` is itself.
    if isinstance(value, jex.ClosedJaxpr) and value.jaxpr is not value:
        jaxpr = inside(value.jaxpr)
        return value if jaxpr is value.jaxpr else value.replace(jaxpr=jaxpr)
    if isinstance(value, jex.Jaxpr):
        equations = [_equation(equation, inside) for equation in value.eqns]
        same = all(new is old for new, old in zip(equations, value.eqns, strict=True))
        return value if same else value.replace(eqns=equations)
    if type(value) is tuple:
        items = tuple(map(inside, value))
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    return value


def _equation(equation: jex.JaxprEqn, inside: Callable[[Any], Any]) -> jex.JaxprEqn:
    name, params = equation.primitive.name, equation.params
    if name == batch_norm_p.name:
        spread = spread_of(_aval(equation.outvars[0]).shape[0])
        return equation if spread is None else equation.replace(params=params | {"spread": spread})
    if name == "conv_general_dilated":
        options = _options(equation)
        if options is None:
            return equation
        equation = equation.replace(primitive=conv_p, params=options)
    if equation.primitive is conv_p:
        avals = map(_aval, (*equation.invars, *equation.outvars))
        options = split_over_devices(*avals, **equation.params)
        return equation if options == equation.params else equation.replace(params=options)
    if name in ("custom_jvp_call", "custom_vjp_call"):
        return _with_rule(equation, inside(params["call_jaxpr"]))
    if name not in _NESTED:
        return equation
    found = {key: inside(value) for key, value in params.items()}
    same = all(found[key] is params[key] for key in params)
    return equation if same else equation.replace(params=found)


def _options(equation: jex.JaxprEqn) -> dict[str, Any] | None:
    """The parameters of the primitive for a convolution, None if it is not of its kind."""
    params = equation.params
    images, kernel, out = map(_aval, (*equation.invars, *equation.outvars))
    ours = (
        out.ndim == 4
        and {images.dtype, kernel.dtype, out.dtype} == {out.dtype}
        and out.dtype in _FLOATS
        and params["batch_group_count"] == 1
        and params["lhs_dilation"] == (1, 1)
        and params.get("out_sharding") is None
    )
    if not ours:
        return None
    numbers = params["dimension_numbers"]
    specs = (numbers.lhs_spec, "NCHW"), (numbers.rhs_spec, "OIHW"), (numbers.out_spec, "NCHW")
    layout: Any = tuple(_letters(*spec) for spec in specs)
    size = tuple(out.shape[axis] for axis in numbers.out_spec[2:])
    return parameters(
        size, params["window_strides"], params["padding"],  # pyright: ignore[reportArgumentType]
        "default" if params["precision"] is None else params["precision"],
        dilation=params["rhs_dilation"], layout=layout, groups=params["feature_group_count"],
    )  # fmt: skip


def _letters(axes: tuple[int, ...], letters: str) -> str:
    """The layout of an array from the axes that these letters name."""
    return "".join(letter for _, letter in sorted(zip(axes, letters, strict=True)))


def _aval(atom: jex.Var | jex.Literal) -> Any:
    """Shape and dtype of what an equation reads or writes."""
    return atom.aval


def _with_rule(equation: jex.JaxprEqn, function: jex.ClosedJaxpr) -> jex.JaxprEqn:
    """A call of a function with a derivative rule, with the convolutions of both replaced.

    A ``custom_jvp`` without such convolutions stays as it is, whatever its rule.
    """
    params, is_jvp = equation.params, equation.primitive.name == "custom_jvp_call"
    avals = [*map(_aval, equation.invars)]
    floating = [jnp.issubdtype(_aval(v).dtype, jnp.inexact) for v in equation.outvars]
    if (is_jvp and function is params["call_jaxpr"]) or not all(floating):
        return equation
    original = lambda *args: equation.primitive.bind(
        *args, **equation.primitive.get_bind_params(params)
    )
    make = _custom_jvp if is_jvp else _custom_vjp
    bound = make(jex.jaxpr_as_fun(function), original)
    traced = jax.make_jaxpr(bound)(*avals).jaxpr
    (new,) = traced.eqns
    # The arguments may come in another order.
    given = dict(zip(traced.invars, equation.invars, strict=True))
    assert list(new.outvars) == list(traced.outvars)
    return equation.replace(params=new.params, invars=[given[variable] for variable in new.invars])


def _custom_jvp(function: Callable, original: Callable) -> Callable:
    """The function with the rule of the original for forward mode."""
    new = jax.custom_jvp(function)
    new.defjvp(lambda *given: evaluate(lambda: jax.jvp(original, *given)))
    return new


def _custom_vjp(function: Callable, original: Callable) -> Callable:
    """The function with the rule of the original for reverse mode."""
    new = jax.custom_vjp(function)

    def forward(*given: Any) -> tuple:
        # What the original closes over is among the arguments, and must not be differentiated.
        moving = [one.value for one in given if one.perturbed]

        def moved(*moving: Any) -> Any:
            values = iter(moving)
            return original(*(next(values) if one.perturbed else one.value for one in given))

        out, pull = evaluate(lambda: jax.vjp(moved, *moving))
        return out, (pull, [() if one.perturbed else None for one in given])

    def backward(saved: tuple, cotangents: Any) -> tuple:
        pull, which = saved
        dense = [_instantiated(cotangent) for cotangent in cotangents]
        found = iter(evaluate(lambda: pull(dense)))
        return tuple(None if one is None else next(found) for one in which)

    new.defvjp(forward, backward, symbolic_zeros=True)
    return new


def _instantiated(cotangent: Any) -> Any:
    if not isinstance(cotangent, SymbolicZero):
        return cotangent
    like: Any = cotangent
    return jnp.zeros(like.shape, like.dtype)
