"""Short runs of EntropySGD whose states `golden/entropy_sgd_states.npz` holds half-way."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxadv import optim

SAVED, CALLS, N_IN = 5, 12, 3  # the stepwise form is saved in the middle of a chain
PARAMS = {"bias": jnp.array([0.5]), "kernel": jnp.array([[1.0, -2.0], [0.25, 3.0]])}
RUNS = {
    "scanned": {},
    "scanned_ucla": dict(preset="ucla_exact", second_order=True),
    "scanned_paper": dict(preset="paper_fixed"),
    "scanned_sgd": dict(n_in=0),
    "stepwise": {},
    "stepwise_second": dict(second_order=True),
    "stepwise_lua": dict(preset="lua"),
    "stepwise_sgd": dict(n_in=0),
}


def optimizer(name):
    is_stepwise = name.startswith("stepwise")
    factory = optim.entropy_sgd_stepwise if is_stepwise else optim.entropy_sgd
    options = dict(key=jax.random.key(2), n_in=N_IN, noise=0.01, inner_learning_rate=0.05)
    return factory(0.1, **options | RUNS[name])


def gradient(params, batch):
    return jax.tree.map(lambda p: 0.5 * p - batch, params)


def train(name, tx, params, state, calls):
    """Parameters and state after the calls of those numbers."""
    batches = np.random.default_rng(0).normal(size=(CALLS, N_IN)).astype(np.float32)
    if name.startswith("stepwise"):
        update = jax.jit(lambda s, p, b: tx.update(gradient(p, b[0]), s, p))
    else:
        grad_fn = lambda p, batch, carry: (gradient(p, batch), carry)
        num = 0 if name == "scanned_sgd" else N_IN
        update = jax.jit(
            lambda s, p, b: tx.update(gradient(p, b[0]), s, p, grad_fn=grad_fn, batches=b[:num])
        )
    for call in calls:
        updates, state = update(state, params, batches[call])
        params = optax.apply_updates(params, updates)
    return params, state
