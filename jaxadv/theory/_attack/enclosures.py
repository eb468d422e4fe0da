"""Enclosures of a scalar function over a box, by passing jets through its jaxpr.

Calls are entered, except those that JAX itself computes by cases, ``logaddexp`` and jaxadv's
``logsumexp``: they are known by name. `check` holds every enclosure against JAX's own derivatives,
so that a function of the same name that computes something else is noticed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ...types import Array
from . import jets
from .intervals import SILU, SOFTPLUS, UNARY, Interval, power, reciprocal, total
from .jets import Jet

_CALLS = ("jit", "pjit", "closed_call", "remat", "checkpoint", "custom_jvp_call", "custom_vjp_call")
_MOVES = ("reshape", "broadcast_in_dim", "squeeze", "slice", "transpose", "rev", "copy",
          "expand_dims", "dynamic_slice", "gather")  # fmt: skip
_EXACT = (*_MOVES, "concatenate", "select_n", "max", "neg", "abs", "iota", "stop_gradient")


class Rough(NamedTuple):
    """A maximum of jets: it has no derivatives, and is only good to be stopped."""

    value: Interval


def enclose(jaxpr: jex.ClosedJaxpr, box: Interval, order: int = 2) -> Jet:
    """Value and derivatives of a scalar function of z over a box.

    Args:
        jaxpr: of a function of z, shape (d,), to a scalar; all float64.
        box: of shape (d,).
        order: 2, or 1 to leave out the second derivatives.

    Raises:
        ValueError: an operation that is not known, or not smooth.
    """
    (found,) = _run(jaxpr.jaxpr, [*jaxpr.consts, jets.seeds(box, order)])
    return _jet(found)


def _jet(value: Any) -> Jet:
    return value if isinstance(value, Jet) else jets.constant(value)


def _run(jaxpr: Any, inputs: list) -> list:
    """Evaluates; what does not depend on z and is exact stays an array."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))
    origin = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    read = lambda var: var.val if isinstance(var, jex.Literal) else values[var]
    for eqn in _needed(jaxpr):
        given = [read(var) for var in eqn.invars]
        summed = _log_of_exponentials(eqn, origin)
        if summed is not None:
            outputs = [_log_sum(read, *summed)]
        elif _is_exact(eqn, given):
            outputs = eqn.primitive.bind(*given, **eqn.params)
            outputs = outputs if eqn.primitive.multiple_results else [outputs]
        elif eqn.primitive.name in _CALLS:
            outputs = _call(eqn.params, given)
        else:
            outputs = [_apply(eqn, given)]
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _needed(jaxpr: Any) -> list:
    """The equations that the outputs depend on, in order."""
    wanted = {var for var in jaxpr.outvars if not isinstance(var, jex.Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(eqn.outvars):
            kept.append(eqn)
            wanted.update(var for var in eqn.invars if not isinstance(var, jex.Literal))
    return kept[::-1]


def _is_exact(eqn: Any, given: list) -> bool:
    """Whether an operation does not depend on z and rounds nothing."""
    name = eqn.primitive.name
    if name in _CALLS or any(isinstance(value, Jet | Rough) for value in given):
        return False
    floats = any(jnp.issubdtype(var.aval.dtype, jnp.floating) for var in eqn.outvars)
    return not floats or name in _EXACT or _widens(eqn)


def _widens(eqn: Any) -> bool:
    return eqn.primitive.name == "convert_element_type" and eqn.params["new_dtype"] == jnp.float64


def _call(params: dict, given: list) -> list:
    closed = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
    inner = getattr(closed, "jaxpr", closed)
    name = inner.debug_info.func_name
    if name == "logaddexp" and "call_jaxpr" in params:
        first, second = map(_jet, given)
        if first.value.lo.shape != inner.outvars[0].aval.shape:
            first, second = second, first
        return [jets.plus(jets.chain(jets.plus(first, jets.minus(second)), SOFTPLUS), second)]
    if name == "_logsumexp" and "call_jaxpr" in params:
        return [jets.logsumexp(_jet(given[0]))]
    if name == "silu":
        return [jets.chain(_jet(given[0]), SILU)]
    return _run(inner, [*getattr(closed, "consts", ()), *given])


def _apply(eqn: Any, given: list) -> Jet | Rough | Array:
    """One operation."""
    name, params = eqn.primitive.name, eqn.params
    if name in ("max", "reduce_max"):
        return _maximum(name, params, given)
    if name == "is_finite":
        return jnp.ones(eqn.outvars[0].aval.shape, bool)  # otherwise the bounds are not finite
    if name == "stop_gradient":
        return given[0].value.mid
    if name == "select_n":
        return _selected(*given)
    if any(isinstance(value, Rough) for value in given):
        if name in _MOVES:
            return Rough(jets.rearranged(_mover(eqn, given), Jet(given[0].value)).value)
        raise ValueError(
            f"the loss takes {name} of a maximum, which is not smooth: certificate='global' needs "
            "smooth activations (softplus, swish, tanh, sigmoid) and no pooling by maxima"
        )
    if name in _MOVES:
        return jets.rearranged(_mover(eqn, given), _jet(given[0]))
    if name not in _RULES:
        raise ValueError(
            f"certificate='global' does not know the operation {name!r} of the loss; write it with "
            f"{', '.join(sorted(_RULES))}, or pass certificate='local'"
        )
    return _RULES[name](params, *map(_jet, given))


def _mover(eqn: Any, given: list) -> Callable[[Array], Array]:
    return lambda v: eqn.primitive.bind(v, *given[1:], **eqn.params)


def _maximum(name: str, params: dict, given: list) -> Rough:
    parts = [value.value if isinstance(value, Jet | Rough) else [value] * 2 for value in given]
    if name == "reduce_max":
        return Rough(Interval(*(jnp.max(end, params["axes"]) for end in parts[0])))
    return Rough(Interval(*(jnp.maximum(a, b) for a, b in zip(*parts, strict=True))))


def _selected(which: Array, *cases: Any) -> Jet | Rough:
    """select_n by an exact predicate."""
    if isinstance(which, Jet | Rough) or len(cases) != 2:
        raise ValueError(
            "the loss chooses between values by comparing them, which is not smooth; "
            "pass certificate='local'"
        )
    choose = lambda a, b: jnp.where(which, b, a)
    if any(isinstance(case, Rough) for case in cases):
        ends = [c.value if isinstance(c, Jet | Rough) else [c] * 2 for c in cases]
        return Rough(Interval(*(choose(a, b) for a, b in zip(*ends, strict=True))))
    keep = [jets.constant(jnp.asarray(mask, float)) for mask in (~which, which)]
    return jets.plus(
        *(jets.times(mask, _jet(case)) for mask, case in zip(keep, cases, strict=True))
    )


def _log_of_exponentials(eqn: Any, origin: dict) -> tuple | None:
    """(u, axes, operations in between) where the equation is log(sum(exp(u))); else None."""
    if eqn.primitive.name != "log":
        return None
    between, inner = [], origin.get(eqn.invars[0])
    while inner is not None and inner.primitive.name in ("abs", *_MOVES[:3]):
        between.append(inner)
        inner = origin.get(inner.invars[0])
    if inner is None or inner.primitive.name != "reduce_sum":
        return None
    last = origin.get(inner.invars[0])
    if last is None or last.primitive.name != "exp":
        return None
    return last.invars[0], inner.params["axes"], between[::-1]


def _log_sum(read: Callable, var: Any, axes: tuple[int, ...], between: list) -> Jet:
    found = jets.logsumexp(_jet(read(var)), axes)
    for eqn in between:
        if eqn.primitive.name != "abs":  # of a sum of exponentials
            found = jets.rearranged(_mover(eqn, [None]), found)
    return found


def _concatenated(params: dict, *parts: Jet) -> Jet:
    """Constants get derivatives of 0."""
    longest = max(parts, key=lambda jet: sum(part is not None for part in jet))
    ends = []
    for which in range(3):
        like = longest[which]
        if like is None:
            ends.append(None)
            continue
        lead = like.lo.shape[:1] if which else ()
        filled = [
            jet[which] or Interval(*[jnp.zeros(lead + jet.value.lo.shape)] * 2) for jet in parts
        ]
        axis = params["dimension"] + (which > 0)
        ends.append(Interval(*(jnp.concatenate(end, axis) for end in zip(*filled, strict=True))))
    return Jet(*ends)


def _integer_power(params: dict, jet: Jet) -> Jet:
    exponent = params["y"]
    base = jets.chain(jet, reciprocal) if exponent < 0 else jet
    return jets.chain(base, power(abs(exponent)))


def _cast(params: dict, jet: Jet) -> Jet:
    if params["new_dtype"] != jnp.float64:
        raise ValueError(f"the loss casts to {params['new_dtype']}; compute it in float64")
    return jet


def _absolute(params: dict, jet: Jet) -> Jet:
    """Of what is certainly positive; elsewhere it has a kink and bounds are infinite."""
    low = jnp.where(jet.value.lo > 0, jet.value.lo, jnp.nan)
    return jet._replace(value=Interval(low, jet.value.hi))


_RULES: dict[str, Callable] = {
    "add": lambda params, a, b: jets.plus(a, b),
    "sub": lambda params, a, b: jets.plus(a, jets.minus(b)),
    "mul": lambda params, a, b: jets.chain(a, power(2)) if a is b else jets.times(a, b),
    "div": lambda params, a, b: jets.times(a, jets.chain(b, reciprocal)),
    "neg": lambda params, a: jets.minus(a),
    "abs": _absolute,
    "dot_general": lambda params, a, b: jets.contracted(a, b, params["dimension_numbers"]),
    "reduce_sum": lambda params, a: jets.linear(lambda part: total(part, params["axes"]), a),
    "integer_pow": _integer_power,
    "concatenate": _concatenated,
    "convert_element_type": _cast,
    **{name: (lambda params, a, f=f: jets.chain(a, f)) for name, f in UNARY.items()},
}


def agrees(function: Callable, jaxpr: jex.ClosedJaxpr, z: Array) -> Array:
    """Whether the enclosure at a point has JAX's value and gradient, and those fit each other.

    They do not if the loss depends on what ``stop_gradient`` holds back, has a wrong custom
    derivative, or calls something else by a name that is known here.
    """
    value, slope = jax.value_and_grad(function)(z)
    found = enclose(jaxpr, Interval(z, z + 0.0), order=1)
    along = np.random.default_rng(0).normal(size=z.shape)
    along /= np.linalg.norm(along)
    step = 1e-5 * (1 + jnp.max(jnp.abs(z)))
    change = (function(z + step * along) - function(z - step * along)) / (2 * step)
    size = 1 + jnp.abs(value) + jnp.max(jnp.abs(slope))
    fits = ~(jnp.abs(change - along @ slope) > 1e-4 * size)
    return fits & _contains(found.value, value) & jnp.all(_contains(found.slope, slope))


def _contains(part: Interval, exact: Array) -> Array:
    """Up to rounding of ``exact``; infinite enclosures contain everything."""
    size = 1e-9 * (1 + jnp.max(jnp.abs(exact)))
    return ~((part.lo - size > exact) | (part.hi + size < exact))
