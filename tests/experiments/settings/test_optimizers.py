"""What every optimizer of the table keeps: dtypes, structure, one compilation, convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import settings
from tests.helpers.tiny_runs import load

STEPS = 2000


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", settings.OPTIMIZERS)
def test_contract_of_an_optimizer(name, dtype):
    rate = optax.linear_schedule(0.02, 0.0, STEPS)
    tx = settings.OPTIMIZERS[name](rate, momentum=0.9, weight_decay=0.0)
    goal = {"a": jnp.array([1.0, -1.0], dtype), "b": jnp.ones((2, 2), dtype)}
    loss = lambda params: optax.tree.norm(optax.tree.sub(params, goal), squared=True)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = optax.tree.zeros_like(goal)
    carry = start, tx.init(start)
    # A scan refuses a state whose structure, shapes or dtypes change.
    (params, _), _ = jax.lax.scan(step, carry, length=STEPS)
    for found, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(goal), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(np.float32(found), np.float32(wanted), atol=0.05)
    decayed = settings.OPTIMIZERS[name](rate, momentum=0.9, weight_decay=0.1)
    updates, _ = decayed.update(start, decayed.init(goal), goal)
    assert float(updates["b"].max()) < 0  # towards 0 where the gradient is 0


@pytest.mark.parametrize(("name", "expected"), [("sgd", True), ("adamw", False)])
def test_awp_adds_weight_decay_to_the_gradient_of_sgd_alone(monkeypatch, name, expected):
    make = lambda rate, *, momentum, weight_decay: optax.adamw(rate, weight_decay=weight_decay)
    monkeypatch.setitem(settings.OPTIMIZERS, "adamw", make)
    config = load("awp", dataset="digits", optimizer=name)
    assert settings.resolve(config, "digits").awp.decay_perturbed is expected
    config.awp.decay_perturbed = not expected  # what is set stays
    assert settings.resolve(config, "digits").awp.decay_perturbed is not expected
