"""The two forms of EntropySGD: a whole chain in one ``update``, or one minibatch per call.

Everything but the loop is shared. Both store the outer transformation's state in ``momentum``, the
name used in checkpoints: for the built-in one it is the bare momentum buffer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ...types import Array, Params, PyTree
from .._langevin import GradFn, call_grad_fn, check_batches, fold, start_chain, temperature
from .._masks import check_floating, check_like, fill, hide, hides_leaves
from .._moments import Averages, widen
from .options import EntropySGDOptions, value_at


class EntropySGDState(NamedTuple):
    """State of `entropy_sgd`. The chain itself is temporary; only its carry is kept.

    Attributes:
        count: number of outer steps taken, shape (), int32.
        momentum: state of ``outer``. For the built-in one: the momentum buffer M, shaped like the
        parameters, or None if momentum is 0.
        key_data: words of the factory's key, never changed: noise comes from
            fold_in(fold_in(key, count), step).
        carry: final carry of the last chain.
    """

    count: ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]  # as in all of optax
    momentum: PyTree
    key_data: Array | None
    carry: Any


class EntropySGDStepwiseState(NamedTuple):
    """State of `entropy_sgd` with ``stepwise=True``.

    Attributes:
        count: number of outer steps taken, shape (), int32.
        momentum: as in `EntropySGDState`.
        key_data: words of the factory's key, never changed.
        inner_step: number of inner steps taken in this outer step, shape (), int32.
        slow: the slow weights theta; None if n_in is 0.
        averages: moments of theta' - theta in this outer step; None if n_in is 0.
        inner_momentum: state of ``inner``. For the built-in one: the momentum buffer of the chain,
            None if inner_momentum is 0. None if n_in is 0.
    """

    count: ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]  # as in all of optax
    momentum: PyTree
    key_data: Array | None
    inner_step: Array
    slow: PyTree
    averages: Averages | None
    inner_momentum: PyTree


def scanned(
    options: EntropySGDOptions, init_carry: PyTree
) -> optax.GradientTransformationExtraArgs:
    """One ``update`` is one outer step; its chain is a ``lax.scan``."""

    def init_fn(params: Params) -> Any:
        return EntropySGDState(**_begin(options, params), carry=_copied(init_carry))

    def update_fn(
        updates: PyTree,
        state: Any,
        params: Any = None,
        *,
        grad_fn: Any = None,
        batches: PyTree = None,
        carry: PyTree = None,
        all_params: PyTree = None,
        **extra_args: Any,
    ) -> tuple[PyTree, Any]:
        del extra_args
        count = state.count
        params, momentum = _checked(options, updates, state, params, count == 0)
        averages, carry = None, state.carry if carry is None else carry
        if options.n_in > 0:
            averages, carry = options.inner_step(count).run(
                options.chain_key(state.key_data, count),
                params,
                _checked_grad_fn(grad_fn, batches, options.n_in, params, all_params),
                batches,
                carry,
                num_steps=options.n_in,
                variance=options.second_order,
            )
        increment, momentum = _outer_step(options, averages, updates, params, momentum, count)
        return increment, EntropySGDState(
            optax.safe_increment(count), momentum, state.key_data, carry
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def stepwise(options: EntropySGDOptions) -> optax.GradientTransformationExtraArgs:
    """One ``update`` is one inner step; the last one of a chain also takes the outer step."""

    def start(params: Params) -> dict[str, PyTree]:
        """A new chain at the slow weights ``params``, as fields of the state."""
        if options.n_in == 0:
            return dict(slow=None, averages=None, inner_momentum=None)
        averages, inner = start_chain(options.inner, params, variance=options.second_order)
        return dict(slow=params, averages=averages, inner_momentum=inner)

    def init_fn(params: Params) -> Any:
        zero = jnp.zeros([], jnp.int32)
        return EntropySGDStepwiseState(
            **_begin(options, params), inner_step=zero, **start(_copied(params))
        )

    def update_fn(
        updates: PyTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        del extra_args
        count, index = state.count, state.inner_step
        first = index == 0
        params, momentum = _checked(options, updates, state, params, first & (count == 0))
        if options.n_in == 0:
            increment, momentum = _outer_step(options, None, updates, params, momentum, count)
            return increment, state._replace(count=optax.safe_increment(count), momentum=momentum)

        # At the start of an outer step the current parameters are the slow weights, even if
        # rounding, a later transformation or a checkpoint made them differ from state.slow.
        slow = jax.tree.map(lambda p, s: jnp.where(first, p, s), params, state.slow)
        key = fold(options.chain_key(state.key_data, count), index)
        increment, (averages, inner) = options.inner_step(count).advance(
            key, params, updates, slow, (state.averages, state.inner_momentum)
        )

        def carry_on() -> tuple[PyTree, Any]:
            moved = dict(slow=slow, averages=averages, inner_momentum=inner)
            return increment, state._replace(momentum=momentum, inner_step=index + 1, **moved)

        def finish() -> tuple[PyTree, Any]:
            # This update replaces the increment and leads from the fast to the new slow weights.
            step, buffer = _outer_step(options, averages, updates, slow, momentum, count)
            change = jax.tree.map(lambda s, i, p: (s + i) - p, slow, step, params)
            return change, state._replace(
                count=optax.safe_increment(count),
                momentum=buffer,
                inner_step=jnp.zeros_like(index),
                **start(jax.tree.map(jnp.add, params, change)),
            )

        return jax.lax.cond(index + 1 == options.n_in, finish, carry_on)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _copied(tree: PyTree) -> PyTree:
    """A copy that owns its buffers, so that donating the state leaves the original alive."""
    # The explicit dtype also turns Python scalars into strongly typed arrays.
    return jax.tree.map(lambda x: jnp.array(x, dtype=jnp.asarray(x).dtype, copy=True), tree)


def _begin(options: EntropySGDOptions, params: Params) -> dict[str, Any]:
    """The fields shared by both states, before the first call."""
    remedy = "keep it outside params, or hide it with optax.masked"
    check_floating(params, "EntropySGD moves", remedy)
    momentum = options.outer.init(widen(params, params))
    return dict(count=jnp.zeros([], jnp.int32), momentum=momentum, key_data=options.init_key_data())


def _checked(
    options: EntropySGDOptions, grads: PyTree, state: Any, params: Any, first: Array
) -> tuple[Params, PyTree]:
    """``params`` as arrays, and ``state.momentum``, to which the first gradient may be added."""
    if params is None:
        raise ValueError("params=None; pass the training loop's parameters")
    seeded = options.momentum_init == "gradient" and state.momentum is not None
    needed = seeded or options.n_in == 0 or isinstance(state, EntropySGDStepwiseState)
    if needed and grads is None:
        start = ", but momentum_init='gradient' (preset 'ucla_exact') starts the buffer with them"
        why = start if seeded else f" with n_in={options.n_in}"
        raise ValueError(f"grads=None{why}; pass the minibatch gradient at params")
    if needed:
        check_like("grads", grads, params)
    momentum = state.momentum
    if seeded:
        momentum = jax.tree.map(
            lambda m, g: jnp.where(first, g.astype(m.dtype), m), momentum, grads
        )
    return jax.tree.map(jnp.asarray, params), momentum


def _outer_step(
    options: EntropySGDOptions,
    averages: Any,
    grads: PyTree,
    params: Params,
    momentum: PyTree,
    count: Array,
) -> tuple[Params, PyTree]:
    """The step of the slow weights: along theta - mu, or along the gradient if n_in is 0."""
    if options.n_in == 0:
        direction = widen(grads, params)
    else:
        direction = entropy_direction(options, averages.offset, averages.variance, count)
    updates, momentum = options.outer.update(direction, momentum, widen(params, params))
    rate = value_at(options.learning_rate, count)
    return jax.tree.map(lambda u, p: (rate * u).astype(p.dtype), updates, params), momentum


def entropy_direction(
    options: EntropySGDOptions, offset: PyTree, variance: PyTree, count: Array
) -> PyTree:
    """The outer direction theta - mu, optionally times gamma or divided by the Newton matrix."""
    gamma = options.gamma_at(count)
    if not options.second_order:
        scale = -gamma if options.scale_by_gamma else -1
        return jax.tree.map(lambda e: (scale * e).astype(e.dtype), offset)
    # The Newton step gamma h (theta - mu) with gamma h = 1 / (1 - gamma var): gamma cancels.
    if options.beta_aware:
        gamma = gamma / temperature(options.noise, convention=options.noise_convention)

    def newton(e: Array, var: Array) -> Array:
        curvature = jnp.maximum(1 - gamma * var, options.min_curvature)
        return (-e / curvature).astype(e.dtype)

    return jax.tree.map(newton, offset, variance)


def _checked_grad_fn(
    grad_fn: GradFn, batches: PyTree, n_in: int, params: Params, all_params: PyTree
) -> GradFn:
    """``grad_fn`` of the parameters visible through ``optax.masked``; hidden ones are unchanged."""
    if not callable(grad_fn):
        raise ValueError(
            f"grad_fn={grad_fn!r} is not a function; call update(grads, state, params, "
            "grad_fn=..., batches=...) with grad_fn(params, batch, carry) -> (gradient, carry)"
        )
    if batches is None:
        raise ValueError(
            f"batches=None with n_in={n_in}; pass {n_in} stacked minibatches, or batches=() if "
            "grad_fn needs no data"
        )
    check_batches(batches, n_in, "n_in")
    if not hides_leaves(params):
        return grad_fn
    if all_params is None:
        raise ValueError(
            "params lacks leaves hidden by optax.masked or multi_transform, but grad_fn needs "
            "all; call update(..., all_params=params)"
        )

    def grad_fn_of_trained(trained: Params, batch: PyTree, carry: Any) -> tuple[PyTree, Any]:
        grads, carry = call_grad_fn(grad_fn, fill(trained, all_params), batch, carry)
        return hide(grads, trained), carry

    return grad_fn_of_trained
