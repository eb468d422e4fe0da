"""Frozen layers and groups: EntropySGD inside optax's wrappers, and its slow weights there."""

from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

from jaxadv import optim

N_IN = 3
INPUTS = jnp.array([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]])
PARAMS = {
    "body": {"kernel": jnp.full((3, 2), 0.5), "bias": jnp.zeros(2)},
    "head": {"kernel": jnp.eye(2)},
}
BODY = {"body": True, "head": False}
HEAD = {"body": False, "head": True}


def loss(params):
    features = INPUTS @ params["body"]["kernel"] + params["body"]["bias"][None]
    return jnp.sum((features @ params["head"]["kernel"] - 1) ** 2)


def stepwise(seed=0, **options):
    options = dict(n_in=N_IN, inner_learning_rate=0.01) | options
    return optim.entropy_sgd_stepwise(0.1, key=jax.random.key(seed), **options)


def scanned(seed=0, **options):
    options = dict(n_in=N_IN, inner_learning_rate=0.01) | options
    return optim.entropy_sgd(0.1, key=jax.random.key(seed), **options)


def train(tx, num_calls, params=PARAMS):
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(num_calls):
        updates, state = update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def same(actual, expected, **tolerances):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, **{"rtol": 1e-6, "atol": 1e-7} | tolerances),
        actual,
        expected,
    )


def head_alone(tx, num_calls):
    """The same training with the head as the only parameters."""
    rest = lambda head: loss({"body": PARAMS["body"], "head": head})
    head, state = PARAMS["head"], tx.init(PARAMS["head"])
    for _ in range(num_calls):
        updates, state = tx.update(jax.grad(rest)(head), state, head)
        head = optax.apply_updates(head, updates)
    return head, optim.slow_params(state, head)


FREEZERS = {
    "multi_transform": lambda tx: optax.multi_transform(
        {"train": tx, "freeze": optax.set_to_zero()}, {"body": "freeze", "head": "train"}
    ),
    "masked": lambda tx: optax.chain(
        optax.masked(tx, HEAD), optax.masked(optax.set_to_zero(), BODY)
    ),
    "masked by a function": lambda tx: optax.chain(
        optax.masked(
            tx, lambda p: {"body": jax.tree.map(lambda _: False, p["body"]), "head": True}
        ),
        optax.masked(optax.set_to_zero(), BODY),
    ),
}


@pytest.mark.parametrize("num_calls", [0, 1, N_IN, N_IN + 1, 2 * N_IN])
@pytest.mark.parametrize("freezer", FREEZERS)
def test_a_frozen_body_stays_and_the_head_trains_as_if_alone(freezer, num_calls):
    params, state = train(FREEZERS[freezer](stepwise()), num_calls)
    head, slow_head = head_alone(stepwise(), num_calls)
    same(params, {"body": PARAMS["body"], "head": head})
    same(optim.slow_params(state, params), {"body": PARAMS["body"], "head": slow_head})


@pytest.mark.parametrize("num_calls", [1, N_IN, N_IN + 2])
def test_leaves_frozen_behind_the_optimizer_have_no_slow_weights_of_their_own(num_calls):
    tx = optax.chain(stepwise(), optax.masked(optax.set_to_zero(), BODY))
    params, state = train(tx, num_calls)
    slow = optim.slow_params(state, params)
    same(params["body"], PARAMS["body"], rtol=0, atol=0)
    same(slow["body"], PARAMS["body"], rtol=0, atol=0)
    assert (num_calls < N_IN) == bool((slow["head"]["kernel"] == jnp.eye(2)).all())


def test_groups_have_their_own_outer_steps():
    tx = optax.multi_transform(
        {"a": stepwise(0), "b": stepwise(1, n_in=2), "c": optax.sgd(0.01)},
        {"body": {"kernel": "a", "bias": "c"}, "head": "b"},
    )
    params, state = train(tx, 2)
    slow = optim.slow_params(state, params)
    same(slow["body"]["kernel"], PARAMS["body"]["kernel"], rtol=0, atol=0)  # call 2 of 3
    same(slow["head"], params["head"], rtol=0, atol=0)  # just made its outer step
    same(slow["body"]["bias"], params["body"]["bias"], rtol=0, atol=0)
    assert not np.array_equal(slow["head"]["kernel"], PARAMS["head"]["kernel"])
    assert not np.array_equal(params["body"]["kernel"], PARAMS["body"]["kernel"])


WRAPPERS = {
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        optim.entropy_sgd_stepwise, static_args=("key", "n_in")
    )(learning_rate=0.1, key=jax.random.key(0), n_in=N_IN, inner_learning_rate=0.01),
    "apply_if_finite": lambda: optax.apply_if_finite(stepwise(), 2),
    "MultiSteps": lambda: optax.MultiSteps(stepwise(), 1).gradient_transformation(),
    "chain": lambda: optax.chain(optax.clip(1e6), stepwise(), optax.identity()),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("freezer", ["multi_transform", "masked"])
def test_freezing_round_other_wrappers(freezer, wrapper):
    params, state = train(FREEZERS[freezer](WRAPPERS[wrapper]()), N_IN + 1)
    head, slow_head = head_alone(stepwise(), N_IN + 1)
    same(params["head"], head)
    same(optim.slow_params(state, params), {"body": PARAMS["body"], "head": slow_head})


def test_a_minibatch_of_nan_is_skipped_by_apply_if_finite():
    tx = optax.apply_if_finite(FREEZERS["multi_transform"](stepwise(noise=0.0)), 3)
    params, state = PARAMS, tx.init(PARAMS)
    for call in range(2 * N_IN + 1):
        grads = jax.tree.map(
            lambda g, c=call: g * jnp.where(c == 2, jnp.nan, 1), jax.grad(loss)(params)
        )
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    same(optim.slow_params(state, params)["head"], head_alone(stepwise(noise=0.0), 2 * N_IN)[1])


def grad_fn(params, batch, carry):
    return jax.tree.map(lambda g: g * batch, jax.grad(loss)(params)), carry + 1


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("freezer", FREEZERS)
def test_the_scanned_form_trains_the_head_of_a_frozen_body(freezer, second_order):
    options = dict(second_order=second_order, init_carry=jnp.int32(0))
    tx, batches = FREEZERS[freezer](scanned(**options)), jnp.ones(N_IN)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    params, state = PARAMS, tx.init(PARAMS)
    alone, head = scanned(**options), PARAMS["head"]
    head_state = alone.init(head)

    def head_grad_fn(head, batch, carry):
        grads, carry = grad_fn({"body": PARAMS["body"], "head": head}, batch, carry)
        return grads["head"], carry

    for _ in range(2):
        updates, state = tx.update(
            zeros, state, params, grad_fn=grad_fn, batches=batches, all_params=params
        )
        params = optax.apply_updates(params, updates)
        updates, head_state = alone.update(
            None, head_state, head, grad_fn=head_grad_fn, batches=batches
        )
        head = optax.apply_updates(head, updates)
    same(params, {"body": PARAMS["body"], "head": head})
    same(optim.slow_params(state, params), params, rtol=0, atol=0)


def test_the_scanned_form_asks_for_the_parameters_that_it_cannot_see():
    tx = FREEZERS["multi_transform"](scanned(init_carry=0))
    with pytest.raises(ValueError, match=r"call update\(\.\.\., all_params=params\)$"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, grad_fn=grad_fn, batches=jnp.ones(N_IN))


class Pair(NamedTuple):
    body: Any
    head: Any


@pytest.mark.parametrize("container", [dict, flax.core.freeze, lambda p: Pair(**p)])
def test_other_containers_of_parameters(container):
    params = container(PARAMS)
    tx, grads = stepwise(), jax.tree.map(jnp.ones_like, params)
    state = tx.init(params)
    for _ in range(N_IN + 1):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    slow = optim.slow_params(state, params)
    assert jax.tree.structure(slow) == jax.tree.structure(container(PARAMS))
    assert not np.array_equal(*(jax.tree.leaves(t)[-1] for t in (slow, params)))


def test_train_state():
    state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=stepwise())
    for _ in range(N_IN + 1):
        state = state.apply_gradients(grads=jax.grad(loss)(state.params))
    params, opt_state = train(stepwise(), N_IN + 1)
    for holder in (state, state.opt_state):
        same(optim.slow_params(holder, state.params), optim.slow_params(opt_state, params))


def test_nnx_optimizer():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, stepwise(), wrt=nnx.Param)
    start = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    for _ in range(N_IN - 1):
        grads = nnx.grad(lambda m: (m(jnp.ones((4, 2))) ** 2).mean())(model)
        optimizer.update(model, grads)
    held = nnx.state(model, nnx.Param)
    slow = optim.slow_params(optimizer.opt_state, held)
    same(slow, start, rtol=0, atol=0)
    assert not np.array_equal(held["kernel"][...], slow["kernel"][...])
    nnx.update(model, slow)


def test_gaps_and_empty_trees():
    params = {"a": jnp.ones(2), "b": None, "c": {}, "d": optax.MaskedNode()}
    tx = stepwise()
    updates, state = tx.update(params, tx.init(params), params)
    slow = optim.slow_params(state, optax.apply_updates(params, updates))
    assert jax.tree.structure(slow) == jax.tree.structure(params)
    updates, state = tx.update({}, tx.init({}), {})
    assert optim.slow_params(state, {}) == {}


@pytest.mark.parametrize("factory", [stepwise, scanned])
@pytest.mark.parametrize("leaf", [np.int32(3), jnp.arange(3), jnp.array([True]), jax.random.key(0)])
def test_parameters_that_are_no_floats_are_refused(factory, leaf):
    with pytest.raises(ValueError, match=r"^params\['step'\] has dtype .* optax.masked$"):
        factory().init(PARAMS | {"step": leaf})
    hidden = optax.masked(factory(), {"body": True, "head": True, "step": False})
    hidden.init(PARAMS | {"step": leaf})


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        (PARAMS | {"head": None}, r"^grads has no leaf \['head'\]\['kernel'\].*optax.masked$"),
        (PARAMS | {"more": jnp.ones(2)}, r"^grads has a leaf \['more'\], but params has none"),
        (flax.core.freeze(PARAMS), r"^grads is a FrozenDict .*same containers$"),
        (PARAMS | {"head": {"kernel": jnp.ones(2)}}, r"^grads\['head'\]\['kernel'\] has shape"),
    ],
)
def test_gradients_of_another_structure_are_refused(grads, message):
    tx = stepwise()
    with pytest.raises(ValueError, match=message):
        tx.update(grads, tx.init(PARAMS), PARAMS)


def test_slow_params_refuses_other_parameters():
    params, state = train(stepwise(), 1)
    with pytest.raises(ValueError, match=r"params has no leaf \['head'\]\['kernel'\]"):
        optim.slow_params(state, {"body": params["body"]})
    with pytest.raises(ValueError, match=r"params\['head'\]\['kernel'\] has shape \(1,\)"):
        optim.slow_params(state, params | {"head": {"kernel": jnp.ones(1)}})


@pytest.mark.parametrize("factory", [optim.entropy_sgd, optim.entropy_sgd_stepwise])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_kind(factory, impl):
    data = lambda key: factory(0.1, key=key).init(PARAMS).key_data
    typed = jax.random.key(5, impl=impl)
    np.testing.assert_array_equal(data(typed), jax.random.key_data(typed))
    assert data(jax.random.key_data(typed)).shape == (2,)
    np.testing.assert_array_equal(data(5), jax.random.key_data(jax.random.key(5)))


def test_a_step_takes_a_seed():
    step = lambda key: optim.langevin_step(
        key, jnp.ones(2), jnp.ones(2), jnp.ones(2), step_size=0.1, gamma=0.1, noise_std=1.0
    )
    np.testing.assert_array_equal(step(3), step(jax.random.key(3)))
