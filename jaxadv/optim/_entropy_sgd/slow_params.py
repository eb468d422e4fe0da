"""Finds the slow weights of EntropySGD inside nested optax states."""

import jax
import jax.numpy as jnp

from ...types import Array, Params, PyTree
from .._masks import same_place
from .forms import EntropySGDState, EntropySGDStepwiseState

_KINDS = (EntropySGDState, EntropySGDStepwiseState)


def slow_params(state: PyTree, params: Params) -> Params:
    """The slow weights theta, which are to be evaluated and checkpointed.

    Args:
        state: state of `entropy_sgd_stepwise` or of `entropy_sgd`, possibly inside the states of
            ``optax.chain``, ``optax.masked``, ``optax.multi_transform``, ``optax.MultiSteps``,
            ``optax.inject_hyperparams`` or ``optax.apply_if_finite``; there may be several.
        params: all of the training loop's parameters. They are the fast weights of
        `entropy_sgd_stepwise`, and already the slow weights of `entropy_sgd`.

    Returns:
        The slow weights in the structure of ``params``. Leaves that are frozen or trained by
        another optimizer are taken from ``params``.

    Raises:
        ValueError: ``state`` contains no EntropySGD state, or one for other parameters.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxadv import optim
        >>> tx = optim.entropy_sgd_stepwise(0.1, key=jax.random.key(0))
        >>> fast = jnp.ones(2)
        >>> state = tx.init(fast)
        >>> updates, state = tx.update(2 * fast, state, fast)
        >>> fast = optax.apply_updates(fast, updates)
        >>> optim.slow_params(state, fast)  # still at the start of this outer step
        Array([1., 1.], dtype=float32)
    """
    is_state = lambda node: isinstance(node, _KINDS)
    states = [node for node in jax.tree.leaves(state, is_leaf=is_state) if is_state(node)]
    if not states:
        raise ValueError(
            f"state is a {type(state).__name__} without an EntropySGD state inside; pass the "
            "state returned by init or update of entropy_sgd_stepwise"
        )
    for node in states:
        if isinstance(node, EntropySGDStepwiseState) and node.slow is not None:
            params = _with_slow(node, params)
    return params


def _with_slow(state: EntropySGDStepwiseState, params: Params) -> Params:
    """``params`` with the leaves trained by ``state`` replaced by their slow weights."""
    # By path, not by structure: masks leave gaps in state.slow, and flax.nnx wraps its leaves.
    slow = {
        same_place(path): (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree.leaves_with_path(state.slow)
    }
    (count,), (inner_step,) = jax.tree.leaves(state.count), jax.tree.leaves(state.inner_step)
    leaves = []
    for path, param in jax.tree.leaves_with_path(params):
        name, value = slow.pop(same_place(path), (None, param))
        if jnp.shape(value) != jnp.shape(param):
            raise ValueError(
                f"params{name} has shape {jnp.shape(param)}, but its slow weights in state have "
                f"{jnp.shape(value)}; pass the parameters that this state belongs to"
            )
        leaves.append(param if name is None else _current(count, inner_step, param, value))
    for name, _ in slow.values():
        raise ValueError(
            f"params has no leaf {name}, but state has slow weights for it; pass all of the "
            "training loop's parameters"
        )
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


@jax.jit
def _current(count: Array, inner_step: Array, fast: Array, slow: Array) -> Array:
    """The slow weights; after an outer step the current parameters, which others may have changed.

    A transformation after EntropySGD may freeze leaves; the state reflects this only at the next
    call.
    """
    finished = (inner_step == 0) & (count > 0)
    finished = finished.reshape(finished.shape + (1,) * (slow.ndim - finished.ndim))
    return jnp.where(finished, jnp.asarray(fast).astype(slow.dtype), slow)
