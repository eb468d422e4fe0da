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
from .. import _langevin
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
    slow: PyTree = None
    averages: Averages | None = None
    inner_momentum: PyTree = None


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
        needs_grads = options.n_in == 0
        params, state = _checked(options, updates, state, params, state.count == 0, needs_grads)
        averages, carry = None, state.carry if carry is None else carry
        if options.n_in > 0:
            averages, carry = _langevin.langevin_chain(
                options.chain_key(state.key_data, state.count),
                params,
                _checked_grad_fn(grad_fn, batches, options.n_in, params, all_params),
                batches,
                carry,
                num_steps=options.n_in,
                variance=options.second_order,
                **options.inner_step(state.count)._asdict(),
            )
        increment, state = _outer_step(options, averages, updates, state, params)
        return increment, state._replace(carry=carry)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def stepwise(options: EntropySGDOptions) -> optax.GradientTransformationExtraArgs:
    """One ``update`` is one inner step; the last one of a chain also takes the outer step."""

    def start(params: Params) -> dict[str, PyTree]:
        """A new chain at the slow weights ``params``, as fields of the state."""
        averages, inner = _langevin.start_chain(
            options.inner, params, variance=options.second_order
        )
        return dict(slow=params, averages=averages, inner_momentum=inner)

    def init_fn(params: Params) -> Any:
        common = dict(_begin(options, params), inner_step=jnp.zeros([], jnp.int32))
        chain = start(_copied(params)) if options.n_in > 0 else {}
        return EntropySGDStepwiseState(**common, **chain)

    def update_fn(
        updates: PyTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        del extra_args
        count, index = state.count, state.inner_step
        first = index == 0
        params, state = _checked(options, updates, state, params, first & (count == 0), True)
        if options.n_in == 0:
            return _outer_step(options, None, updates, state, params)

        # At the start of an outer step the current parameters are the slow weights, even if
        # rounding, a later transformation or a checkpoint made them differ from state.slow.
        slow = optax.tree.where(first, params, state.slow)
        key = _langevin.fold(options.chain_key(state.key_data, count), index)
        increment, (averages, inner) = options.inner_step(count).advance(
            key, params, updates, slow, (state.averages, state.inner_momentum)
        )

        def carry_on() -> tuple[PyTree, Any]:
            moved = dict(slow=slow, averages=averages, inner_momentum=inner)
            return increment, state._replace(inner_step=index + 1, **moved)

        def finish() -> tuple[PyTree, Any]:
            # This update replaces the increment and leads from the fast to the new slow weights.
            step, new_state = _outer_step(options, averages, updates, state, slow)
            change = optax.tree.sub(optax.tree.add(slow, step), params)
            restarted = start(optax.tree.add(params, change))
            return change, new_state._replace(inner_step=jnp.zeros_like(index), **restarted)

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
    options: EntropySGDOptions, grads: Any, state: Any, params: Any, first: Array, needed: bool
) -> tuple[Params, Any]:
    """``params`` as arrays, and ``state``, whose momentum may start as the ``first`` gradient."""
    if params is None:
        raise ValueError("params=None; pass the training loop's parameters")
    seeded = options.momentum_init == "gradient" and state.momentum is not None
    if grads is None and (seeded or needed):
        start = ", but momentum_init='gradient' (preset 'ucla_exact') starts the buffer with them"
        why = start if seeded else f" with n_in={options.n_in}"
        raise ValueError(f"grads=None{why}; pass the minibatch gradient at params")
    if seeded or needed:
        check_like("grads", grads, params)
    if seeded:
        buffer = optax.tree.where(first, widen(grads, params), state.momentum)
        state = state._replace(momentum=buffer)
    return jax.tree.map(jnp.asarray, params), state


def _outer_step(
    options: EntropySGDOptions, averages: Any, grads: PyTree, state: Any, params: Params
) -> tuple[Params, Any]:
    """The step of the slow weights: along theta - mu, or along the gradient if n_in is 0."""
    if averages is None:
        direction = widen(grads, params)
    else:
        direction = entropy_direction(options, averages.offset, averages.variance, state.count)
    updates, momentum = options.outer.update(direction, state.momentum, widen(params, params))
    updates = optax.tree.scale(value_at(options.learning_rate, state.count), updates)
    state = state._replace(count=optax.safe_increment(state.count), momentum=momentum)
    return optax.tree.cast_like(updates, params), state


def entropy_direction(
    options: EntropySGDOptions, offset: PyTree, variance: PyTree, count: Array
) -> PyTree:
    """The outer direction theta - mu, optionally times gamma or divided by the Newton matrix."""
    gamma = options.gamma_at(count)
    if not options.second_order:
        scale = -gamma if options.scale_by_gamma else -1
        return optax.tree.cast_like(optax.tree.scale(scale, offset), offset)
    # The Newton step gamma h (theta - mu) with gamma h = 1 / (1 - gamma var): gamma cancels.
    if options.beta_aware:
        gamma = gamma / _langevin.temperature(options.noise, convention=options.noise_convention)
    curvature = lambda var: jnp.maximum(1 - gamma * var, options.min_curvature)
    return jax.tree.map(lambda e, v: (-e / curvature(v)).astype(e.dtype), offset, variance)


def _checked_grad_fn(
    grad_fn: _langevin.GradFn, batches: PyTree, n_in: int, params: Params, all_params: PyTree
) -> _langevin.GradFn:
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
    _langevin.check_batches(batches, n_in, "n_in")
    if not hides_leaves(params):
        return grad_fn
    if all_params is None:
        raise ValueError(
            "params lacks leaves hidden by optax.masked or multi_transform, but grad_fn needs "
            "all; call update(..., all_params=params)"
        )

    def grad_fn_of_trained(trained: Params, batch: PyTree, carry: Any) -> tuple[PyTree, Any]:
        grads, carry = _langevin.call_grad_fn(grad_fn, fill(trained, all_params), batch, carry)
        return hide(grads, trained), carry

    return grad_fn_of_trained
