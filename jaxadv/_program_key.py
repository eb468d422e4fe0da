"""How programs of :mod:`jaxadv._program` are compared: by content, with their derivative rules."""

import functools
import hashlib
import re
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

# Functions of these modules only wrap the user's derivative rules; they are recreated at every
# trace, so look inside them instead of using them as part of the key.
_MACHINERY = re.compile(
    r"jax\._src\.(interpreters\..*|linear_util|custom_derivatives|api|api_util|core|ad_util|util|"
    r"tree_util|custom_transpose)$"
)


class ProgramKey:
    """A nested tuple with a cached hash."""

    def __init__(self, parts: tuple) -> None:
        self._parts, self._hash = parts, hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        return self is other or (self._hash == other._hash and self._parts == other._parts)


class _Same:
    """Compares by identity, and keeps its object alive so that the identity stays unique."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value


class Stable:
    """Base class of objects that always do the same: a rule that uses one keeps its key."""


def encode(jaxpr: jex.Jaxpr, leaf: Callable[[Any], Any]) -> tuple:
    """A program as nested tuples; ``leaf`` encodes what is neither operation nor variable.

    Args:
        jaxpr: the program.
        leaf: :func:`exact` or :func:`portable`.
    """
    numbers: dict = {}

    def bind(variables: Sequence[jex.Var]) -> tuple:
        first = len(numbers)
        numbers.update((variable, first + n) for n, variable in enumerate(variables))
        return tuple(leaf(variable.aval) for variable in variables)

    def atom(value: jex.Var | jex.Literal) -> int | tuple:
        if isinstance(value, jex.Literal):
            return leaf(value.aval), _encode_value(value.val, leaf)
        return numbers[value]

    inputs = bind(jaxpr.constvars), bind(jaxpr.invars)
    equations = []
    for equation in jaxpr.eqns:
        read = tuple(map(atom, equation.invars))
        parameters = _encode_value(equation.params, leaf)
        context = leaf(equation.ctx) if leaf is portable else _context(equation.ctx)
        equations.append((leaf(equation.primitive), read, parameters, context))
        equations.append(bind(equation.outvars))
    return inputs, tuple(equations), tuple(map(atom, jaxpr.outvars))


def _context(context: Any) -> tuple:
    """The context of an equation: device, mesh, precision of keys, metadata."""
    names = [name for name in type(context).__slots__ if not name.startswith("__")]
    return tuple(exact(getattr(context, name, None)) for name in names)


def _encode_value(value: Any, leaf: Callable[[Any], Any]) -> Any:
    if isinstance(value, jex.ClosedJaxpr):
        constants = tuple(_encode_value(constant, leaf) for constant in value.consts)
        return encode(value.jaxpr, leaf), constants
    if isinstance(value, jex.Jaxpr):
        return encode(value, leaf)
    if isinstance(value, list) or type(value) is tuple:
        return tuple(_encode_value(item, leaf) for item in value)
    if isinstance(value, dict):
        return tuple((name, _encode_value(value[name], leaf)) for name in sorted(value, key=str))
    return leaf(value)


def exact(value: Any) -> Any:
    """Equal where the values can stand for each other in a compiled program."""
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, float | complex):
        return type(value), repr(value)
    if isinstance(value, types.FunctionType) or _is_wrapped(value):
        return _rule_key(value, {})
    try:
        hash(value)
    except TypeError:  # arrays among others
        return _Same(value)
    return type(value), value


def portable(value: Any) -> Any:
    """Text that is the same in every process."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return str(value.dtype), portable(np.asarray(jax.random.key_data(value)))
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        data = np.ascontiguousarray(value)
        return str(data.dtype), data.shape, hashlib.sha256(data.tobytes()).hexdigest()
    if isinstance(value, types.FunctionType) or _is_wrapped(value):
        return "function"  # what it does shows in the derivative
    return re.sub(r"0x[0-9a-f]+", "", str(value))


def _is_wrapped(value: object) -> bool:
    """Whether this is a function in the wrapping of JAX's own transformations."""
    return hasattr(value, "f") and hasattr(value, "transforms")


def _rule_key(value: Any, seen: dict) -> Any:
    """The content of a derivative rule: its code, and what it closes over or reads by name.

    JAX rewraps a rule at every trace, so its own wrappers are looked through. Arrays count by
    identity. An object whose attributes might change makes the key unique: the program then
    recompiles at every call, which is slow but never wrong.
    """
    if id(value) in seen:
        return "again", seen[id(value)]
    if _is_wrapped(value) or isinstance(value, types.FunctionType | functools.partial):
        seen[id(value)] = len(seen)
    inside = functools.partial(_rule_key, seen=seen)
    if _is_wrapped(value):
        arguments = (item for _, given in getattr(value, "transforms") for item in given)  # noqa: B009
        carried = tuple(inside(item) for item in arguments if _carries_code(item))
        return inside(getattr(value, "f")), carried  # noqa: B009
    if isinstance(value, functools.partial):
        keywords = tuple(sorted(value.keywords.items()))
        return inside(value.func), inside(value.args), inside(keywords)
    if isinstance(value, types.FunctionType):
        return _function_key(value, inside)
    if isinstance(value, types.MethodType):
        return inside(value.__func__), inside(value.__self__)
    if isinstance(value, jax.custom_jvp | jax.custom_vjp):
        rules = (getattr(value, name, None) for name in ("fun", "jvp", "fwd", "bwd"))
        return tuple(inside(rule) for rule in rules)
    if isinstance(value, list | tuple):
        return type(value), tuple(inside(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, inside(item)) for name, item in value.items())
    if isinstance(value, np.ndarray | np.generic | float | complex):
        return exact(value)
    if isinstance(value, jax.Array | type | types.ModuleType | types.BuiltinFunctionType | Stable):
        return _Same(value)
    if value is None or isinstance(value, str | bytes | int | np.dtype | jax.tree_util.PyTreeDef):
        return type(value), value
    wrapped = getattr(value, "__wrapped__", None)  # a jitted function
    return inside(wrapped) if wrapped is not None else _Same(object())


def _function_key(function: types.FunctionType, inside: Callable[[Any], Any]) -> tuple:
    closed = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    module = function.__module__ or ""
    if _MACHINERY.match(module):
        return tuple(inside(item) for item in closed if _carries_code(item))
    read = []
    if module.split(".")[0] not in ("jax", "numpy", "flax", "optax"):
        space = function.__globals__
        read = [space[name] for name in _names(function.__code__) if name in space]
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return function.__code__, *(inside(item) for item in (*closed, *defaults, *read))


def _names(code: types.CodeType) -> Iterator[str]:
    """The global names that a function and those inside it may read."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _carries_code(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_carries_code, value))
    kinds = types.FunctionType | functools.partial | jax.custom_jvp | jax.custom_vjp
    return isinstance(value, kinds) or _is_wrapped(value)
