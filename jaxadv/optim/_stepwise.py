"""EntropySGD one minibatch at a time: an optax transformation that drops into any training loop.

The nested loops of `entropy_sgd` become one state machine, as in ``optax.lookahead``: the caller
holds the fast weights theta', evaluates the gradient there, and every ``n_in``-th call also makes
the outer step and moves the fast weights to the new slow weights.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ..types import Array, Key, PyTree
from ._entropy_sgd import (
    check_trainable,
    copied,
    entropy_direction,
    gradient_direction,
    init_momentum,
    outer_increment,
    seed_momentum,
)
from ._masks import check_like
from ._moments import Averages, init_averages, update_averages, zeros_accumulator
from ._options import resolve
from ._sgld import inner_increment, is_zero


class EntropySGDStepwiseState(NamedTuple):
    """State of `entropy_sgd_stepwise`.

    Attributes:
        count: number of outer steps done, shape (), int32.
        momentum: outer momentum buffer M; None if momentum is 0.
        key_data: words of the factory's key, never changed.
        inner_step: number of inner steps done in this outer step, shape (), int32.
        slow: the slow weights theta; None if n_in is 0.
        averages: moments of theta' - theta in this outer step; None if n_in is 0.
        inner_momentum: momentum buffer of the chain; None if inner_momentum is 0.
    """

    count: ArrayLike
    momentum: PyTree
    key_data: Array | None
    inner_step: Array
    slow: PyTree
    averages: Averages | None
    inner_momentum: PyTree


def entropy_sgd_stepwise(
    learning_rate: optax.ScalarOrSchedule,
    *,
    key: Key | None = None,
    preset: str | None = None,
    n_in: int | None = None,
    inner_learning_rate: optax.ScalarOrSchedule | str | None = None,
    gamma: ArrayLike | None = None,
    scoping: ArrayLike | None = None,
    noise: ArrayLike | None = None,
    noise_convention: str | None = None,
    new_weight: ArrayLike | str | None = None,
    momentum: ArrayLike | None = None,
    inner_momentum: ArrayLike | None = None,
    nesterov: bool | None = None,
    weight_decay: ArrayLike | None = None,
    inner_weight_decay: ArrayLike | None = None,
    decay_after_momentum: bool | None = None,
    momentum_init: str | None = None,
    scale_by_gamma: bool | None = None,
    ascend: bool | None = None,
    second_order: bool | None = None,
    beta_aware: bool | None = None,
    min_curvature: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """EntropySGD one minibatch at a time; arguments and presets are those of `entropy_sgd`.

    The parameters that the loop holds are the fast weights theta', where it evaluates the
    gradient; `slow_params` gives the slow weights theta. Every ``n_in``-th call ends with the
    outer step, after which fast and slow weights agree. An outer step starts from the parameters
    as they are, so other transformations may change the updates at that call but should leave
    those in between alone.

    It draws the noise of `entropy_sgd` and follows it bit for bit, with two exceptions. The step
    back to the slow weights is handed over as the difference ``theta - theta'``, which is exact
    where they are within a factor of 2 of each other and off by one rounding elsewhere. And a
    compiler may fuse a multiplication with an addition in one program and not in the other.

    Differences of use: with ``momentum_init="gradient"`` the momentum buffer starts with the
    gradient of the very first call, which also makes the first inner step; there is no extra
    minibatch. Your loop carries BatchNorm statistics and metrics itself. With ``n_in=0`` every call
    is a step of Nesterov SGD.

    Inside ``optax.masked`` or ``optax.multi_transform`` it trains the leaves that it is given; like
    any optax transformation it says nothing about the others, so chain
    ``optax.masked(optax.set_to_zero(), ...)`` behind a mask to freeze them. Give each group a key
    of its own. A later ``optax.set_to_zero`` alone freezes leaves too.

    Args:
        learning_rate: see `entropy_sgd` for this and all others.
        key: see there.
        preset: see there.
        n_in: see there; the number of calls in an outer step.
        inner_learning_rate: see there.
        gamma: see there.
        scoping: see there.
        noise: see there.
        noise_convention: see there.
        new_weight: see there.
        momentum: see there.
        inner_momentum: see there.
        nesterov: see there.
        weight_decay: see there.
        inner_weight_decay: see there.
        decay_after_momentum: see there.
        momentum_init: see there.
        scale_by_gamma: see there.
        ascend: see there.
        second_order: see there.
        beta_aware: see there.
        min_curvature: see there.

    Returns:
        An optax transformation; its state holds up to five copies of the parameters.

    Raises:
        ValueError: as `entropy_sgd`; at ``update``, if the gradient or ``params`` is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxadv import optim
        >>> tx = optim.entropy_sgd_stepwise(0.1, key=jax.random.key(0), n_in=5)
        >>> fast = jnp.ones(2)
        >>> state = tx.init(fast)
        >>> for _ in range(500):
        ...     updates, state = tx.update(2 * fast, state, fast)  # gradient of |fast|^2
        ...     fast = optax.apply_updates(fast, updates)
        >>> bool((abs(optim.slow_params(state, fast)) < 1e-2).all())
        True
    """
    options = resolve(
        dict(
            learning_rate=learning_rate,
            key=key,
            n_in=n_in,
            inner_learning_rate=inner_learning_rate,
            gamma=gamma,
            scoping=scoping,
            noise=noise,
            noise_convention=noise_convention,
            new_weight=new_weight,
            momentum=momentum,
            inner_momentum=inner_momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            inner_weight_decay=inner_weight_decay,
            decay_after_momentum=decay_after_momentum,
            momentum_init=momentum_init,
            scale_by_gamma=scale_by_gamma,
            ascend=ascend,
            second_order=second_order,
            beta_aware=beta_aware,
            min_curvature=min_curvature,
        ),
        preset,
    )
    chained = options.n_in > 0

    def init_chain(params):
        buffer = None if is_zero(options.inner_momentum) else zeros_accumulator(params)
        return init_averages(params, variance=options.second_order), buffer

    def init_fn(params) -> Any:
        check_trainable(params)
        averages, buffer = init_chain(params) if chained else (None, None)
        return EntropySGDStepwiseState(
            count=jnp.zeros([], jnp.int32),
            momentum=init_momentum(options, params),
            key_data=options.init_key_data(),
            inner_step=jnp.zeros([], jnp.int32),
            slow=copied(params) if chained else None,
            averages=averages,
            inner_momentum=buffer,
        )

    def finish(params, increment, state):
        """The outer step; its update replaces ``increment``, the one of the last inner step."""
        del increment
        direction = entropy_direction(
            options, state.averages.offset, state.averages.variance, state.count
        )
        step, momentum = outer_increment(
            options, direction, state.slow, state.momentum, state.count
        )
        updates = jax.tree.map(lambda s, i, p: (s + i) - p, state.slow, step, params)
        averages, buffer = init_chain(params)
        return updates, EntropySGDStepwiseState(
            count=optax.safe_increment(state.count),
            momentum=momentum,
            key_data=state.key_data,
            inner_step=jnp.zeros([], jnp.int32),
            slow=jax.tree.map(jnp.add, params, updates),
            averages=averages,
            inner_momentum=buffer,
        )

    def carry_on(params, increment, state):
        del params
        return increment, state

    def update_fn(updates, state, params=None, **extra_args) -> tuple[Any, Any]:
        del extra_args
        if params is None:
            raise ValueError("params=None; pass the fast weights at which grads was evaluated")
        if updates is None:
            raise ValueError("grads=None; pass the minibatch gradient at params")
        check_like("grads", updates, params)
        params = jax.tree.map(jnp.asarray, params)
        count, index = state.count, state.inner_step
        first = index == 0
        momentum = seed_momentum(options, state.momentum, updates, first & (count == 0))
        if not chained:
            direction = gradient_direction(updates, params)
            increment, momentum = outer_increment(options, direction, params, momentum, count)
            return increment, state._replace(count=optax.safe_increment(count), momentum=momentum)

        # The parameters in hand are the slow weights at the start of an outer step, also if
        # rounding, a later transformation or a checkpoint made them differ from state.slow.
        slow = jax.tree.map(lambda p, s: jnp.where(first, p, s), params, state.slow)
        outer_key = options.step_key(state.key_data, count)
        increment, buffer = inner_increment(
            None if outer_key is None else jax.random.fold_in(outer_key, index),
            params,
            updates,
            slow,
            state.inner_momentum,
            **options.step_arguments(count),
        )
        position = jax.tree.map(jnp.add, params, increment)
        averages = update_averages(state.averages, position, slow, new_weight=options.new_weight)
        state = EntropySGDStepwiseState(
            count=count,
            momentum=momentum,
            key_data=state.key_data,
            inner_step=index + 1,
            slow=slow,
            averages=averages,
            inner_momentum=buffer,
        )
        return jax.lax.cond(index + 1 == options.n_in, finish, carry_on, params, increment, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
