"""Finds the slow weights of EntropySGD inside nested optax states."""

import jax
import jax.numpy as jnp

from ...types import Array, Params, PyTree
from .._masks import same_place
from .forms import EntropySGDState, EntropySGDStepwiseState


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
    is_state = lambda node: isinstance(node, EntropySGDState | EntropySGDStepwiseState)
    states = [node for node in jax.tree.leaves(state, is_leaf=is_state) if is_state(node)]
    if not states:
        raise ValueError(
            f"state is a {type(state).__name__} without an EntropySGD state inside; pass the "
            "state returned by init or update of entropy_sgd_stepwise"
        )
    leaves, structure = jax.tree.flatten_with_path(params)
    # By path, not by structure: masks leave gaps in state.slow, and flax.nnx wraps its leaves.
    held = {same_place(path): leaf for path, leaf in leaves}
    for node in states:
        if isinstance(node, EntropySGDStepwiseState):
            held |= _slow_leaves(node, held)
    return structure.unflatten(held[same_place(path)] for path, _ in leaves)


def _slow_leaves(state: EntropySGDStepwiseState, held: dict[tuple, Array]) -> dict[tuple, Array]:
    """The slow weights in ``state`` of the parameters that it trains, by path."""
    (count,), (inner_step,) = jax.tree.leaves(state.count), jax.tree.leaves(state.inner_step)
    slow = {}
    for path, leaf in jax.tree.leaves_with_path(state.slow):
        name, place = jax.tree_util.keystr(path), same_place(path)
        if place not in held:
            raise ValueError(
                f"params has no leaf {name}, but state has slow weights for it; pass all of the "
                "training loop's parameters"
            )
        if jnp.shape(leaf) != jnp.shape(held[place]):
            raise ValueError(
                f"params{name} has shape {jnp.shape(held[place])}, but its slow weights in state "
                f"have {jnp.shape(leaf)}; pass the parameters that this state belongs to"
            )
        slow[place] = _current(count, inner_step, held[place], leaf)
    return slow


@jax.jit
def _current(count: Array, inner_step: Array, fast: Array, slow: Array) -> Array:
    """The slow weights; after an outer step the current parameters, which others may have changed.

    A transformation after EntropySGD may freeze leaves; the state reflects this only at the next
    call.
    """
    finished = (inner_step == 0) & (count > 0)
    finished = finished.reshape(finished.shape + (1,) * (slow.ndim - finished.ndim))
    return jnp.where(finished, jnp.asarray(fast).astype(slow.dtype), slow)
