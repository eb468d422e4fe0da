"""A user's function as a program and its arrays, retraced at every call.

JAX keys its caches by function objects, so a compiled attack that takes the model as a static
argument recompiles for every new lambda, and keeps using the old weights of an object that is
changed in place. Here a function is traced each time it is passed in: its operations become a
:class:`Program`, compared and hashed by value, and the arrays it closes over become arguments. New
weights therefore never recompile, and stale ones are never used. What is evaluated is the program
with its convolutions replaced (:mod:`jaxadv._rewrite`); digests are those of the one given.
"""

import contextlib
import functools
import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import flax.errors
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.tree_util import Partial

from ._program_key import ProgramKey, encode, exact, portable
from ._rewrite import is_enabled, replaced
from .types import Array, PyTree

_NESTED = ("jit", "pjit", "closed_call")  # calls that may be inlined to reach their constants


class Program:
    """The operations of a traced function. Programs with the same operations are equal.

    Derivative rules and callbacks do not appear among the operations: they are compared by content
    (:mod:`jaxadv._program_key`), and kept alive by the key.

    Attributes:
        args: shapes and dtypes of the arguments, a tuple of pytrees of ``jax.ShapeDtypeStruct``.
        out: shapes and dtypes of the outputs, a pytree.
    """

    def __init__(
        self, jaxpr: jex.Jaxpr, args: tuple, out: PyTree, key: "ProgramKey", *, fast: bool
    ) -> None:
        self._jaxpr, self._key = jaxpr, key
        self._evaluated = replaced(jaxpr) if fast else jaxpr
        self.args, self.out = args, out

    def __call__(self, arrays: list, *args: PyTree) -> PyTree:
        """Evaluates the function at ``args``, with ``arrays`` for those it closed over."""
        return self._evaluate(self._evaluated, arrays, args)

    def as_given(self, arrays: list, *args: PyTree) -> PyTree:
        """The same with the convolutions that the function was written with."""
        return self._evaluate(self._jaxpr, arrays, args)

    def _evaluate(self, jaxpr: jex.Jaxpr, arrays: list, args: tuple) -> PyTree:
        leaves, tree = jax.tree.flatten(args)
        wanted, wanted_tree = jax.tree.flatten(self.args)
        found = [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
        if tree != wanted_tree or found != [(leaf.shape, leaf.dtype) for leaf in wanted]:
            raise ValueError(f"called with {found}; this program was traced for {wanted}")
        split = len(jaxpr.constvars)
        outputs = jax.core.eval_jaxpr(jaxpr, arrays[:split], *arrays[split:], *leaves)
        return jax.tree.unflatten(jax.tree.structure(self.out), outputs)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Program) and self._key == other._key)

    def __hash__(self) -> int:
        return hash(self._key)

    def describe(self) -> str:
        """The operations as text, the same in every process."""
        return repr(encode(self._jaxpr, portable))


_programs: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_meanings: dict[int, Callable[[], str]] = {}  # by id of an array that is alive


def give_meaning(array: Array, describe: Callable[[], str]) -> None:
    """Lets :func:`digest` use a text in place of an array, as long as the array lives.

    Args:
        array: which stands for something outside JAX, such as the number of a model.
        describe: the text, the same in every process; must not refer to the array.
    """
    _meanings[id(array)] = describe
    weakref.finalize(array, _meanings.pop, id(array), None)


def trace(function: Callable, *args: PyTree, name: str = "logits_fn") -> Partial:
    """The function as ``Partial(program, arrays)``, which compiled functions take as an argument.

    Args:
        function: any callable with JAX operations.
        args: arrays or ``jax.ShapeDtypeStruct``, pytrees; only shapes and dtypes count.
        name: name of the argument, for messages.

    Returns:
        A pytree: its structure holds the :class:`Program`, its leaves are the arrays that the
        function closes over (tracers where it closes over tracers). Callable with arguments of the
        shapes it was traced for.

    Raises:
        ValueError: if the function cannot be traced, with the reason and the fix.

    Example:
        >>> scale = jnp.float32(2)
        >>> traced = trace(lambda x: scale * x, jnp.zeros(3))
        >>> traced(jnp.ones(3)).tolist(), len(jax.tree.leaves(traced))
        ([2.0, 2.0, 2.0], 1)
    """
    if not callable(function):
        raise ValueError(f"{name} is a {type(function).__name__}; pass a function")
    if isinstance(function, Partial) and isinstance(function.func, Program):
        return function
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), args
    )
    # A fresh closure: JAX caches traces by function object, and this one has none yet.
    fresh = lambda *args: function(*args)
    with _explained(name):
        closed, out = jax.make_jaxpr(fresh, return_shape=True)(*abstract)
        found = [*closed.consts, *_nested_constants(closed.jaxpr)]
        arrays = [_as_argument(value) for value in found]
        jaxpr = closed.jaxpr
        if len(found) > len(closed.consts) or _is_explicit(found):
            inlined = jax.make_jaxpr(functools.partial(_inlined, jaxpr))(
                arrays, jax.tree.leaves(abstract)
            )
            jaxpr, arrays = inlined.jaxpr, [*map(_as_argument, inlined.consts), *arrays]
    structure = (jax.tree.structure(abstract), jax.tree.structure(out))
    fast = is_enabled()
    key = ProgramKey((encode(jaxpr, exact), *structure, fast))
    program = _programs.get(key)
    if program is None:
        program = _programs[key] = Program(jaxpr, abstract, out, key, fast=fast)
    return Partial(program, arrays)


def program_of(traced: Partial) -> Program:
    """The program of a traced function."""
    return cast(Program, traced.func)


def digest(traced: Partial) -> str:
    """SHA-256 of a traced function: its operations, those of its derivative, and its arrays."""
    program = program_of(traced)
    sha = hashlib.sha256(program.describe().encode())
    sha.update(_derivative(program, traced.args[0]).encode())
    for leaf in jax.tree.leaves(traced):
        meaning = _meanings.get(id(leaf))
        sha.update((repr(portable(leaf)) if meaning is None else meaning()).encode())
    return sha.hexdigest()


def _derivative(program: Program, arrays: list) -> str:
    """The operations of the derivative, in which the rules of custom derivatives show."""

    def pull(arrays: list, *args: PyTree) -> PyTree:
        outputs, transpose = jax.vjp(
            lambda first: program.as_given(arrays, first, *args[1:]), args[0]
        )
        return transpose(jax.tree.map(jnp.ones_like, outputs))

    try:
        closed = jax.make_jaxpr(pull)(arrays, *program.args)
    except Exception:  # not differentiable: Square still works, and needs no derivative
        return ""
    return repr(encode(closed.jaxpr, portable))


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns an exception raised under tracing into one line that says what to do."""
    try:
        yield
    except (flax.errors.TraceContextError, flax.errors.ModifyScopeVariableError) as error:
        raise ValueError(
            f"{name} changes its own state when it is called, as BatchNorm and Dropout do in train "
            "mode; put it into evaluation mode first: model.eval(), or train=False in Flax linen"
        ) from error
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ValueError(
            f"{name} needs the values of its input while it is traced (NumPy, float(), or an if on "
            "them); write it with jax.numpy, or wrap it in jax.pure_callback"
        ) from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(f"{name} failed: {type(error).__name__}: {lines[0][:200]}") from error


def _as_argument(value: Any) -> Array:
    """A constant as an array that a compiled function takes."""
    if isinstance(value, np.ndarray | np.generic):
        return jnp.array(value)  # copy, since NumPy arrays can be changed in place
    return auto_layout(value)


def auto_layout(value: Any) -> Any:
    """Converts an array over a mesh with explicit axes to automatic axes; others are unchanged."""
    if not _is_explicit([value]):
        return value
    mesh = Mesh(value.sharding.mesh.devices, value.sharding.mesh.axis_names)
    return jax.device_put(value, NamedSharding(mesh, value.sharding.spec))


def _is_explicit(values: Iterable[Any]) -> bool:
    """Whether one of the arrays is laid out over a mesh with explicit axes."""
    layouts = (
        value.sharding
        for value in values
        if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    )
    return any(
        isinstance(layout, NamedSharding) and AxisType.Explicit in layout.mesh.axis_types
        for layout in layouts
    )


def _inlinable(equation: jex.JaxprEqn) -> jex.ClosedJaxpr | None:
    """The traced function that a nested ``jit`` calls, if it closes over arrays itself."""
    inner = equation.params.get("jaxpr")
    if equation.primitive.name not in _NESTED or not isinstance(inner, jex.ClosedJaxpr):
        return None
    return inner if inner.consts or any(True for _ in _nested_constants(inner.jaxpr)) else None


def _nested_constants(jaxpr: jex.Jaxpr) -> Iterator:
    """The arrays that jitted functions inside a program close over, in the order of use."""
    for equation in jaxpr.eqns:
        inner = _inlinable(equation)
        if inner is not None:
            yield from inner.consts
            yield from _nested_constants(inner.jaxpr)


def _inlined(jaxpr: jex.Jaxpr, arrays: list, leaves: list) -> list:
    """Evaluates a program, inlining nested jits that close over arrays."""
    constants = iter(arrays)

    def evaluate(jaxpr: jex.Jaxpr, args: list) -> list:
        first = [next(constants) for _ in jaxpr.constvars]
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*first, *args], strict=True))
        read = lambda atom: atom.val if isinstance(atom, jex.Literal) else known[atom]
        for equation in jaxpr.eqns:
            inner = _inlinable(equation)
            if inner is not None:
                results = evaluate(inner.jaxpr, [read(atom) for atom in equation.invars])
            else:
                used = [atom for atom in equation.invars if not isinstance(atom, jex.Literal)]
                used = list(dict.fromkeys(used))
                alone = jaxpr.replace(
                    constvars=[], invars=used, outvars=list(equation.outvars), eqns=[equation],
                    effects=equation.effects,
                )  # fmt: skip
                results = jax.core.eval_jaxpr(alone, [], *map(read, used))
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    return evaluate(jaxpr, leaves)
