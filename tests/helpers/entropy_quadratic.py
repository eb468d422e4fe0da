"""A quadratic loss whose EntropySGD runs are compared with NumPy: jaxadv's side of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

# The golden quadratic: L(w) = w.A.w / 2 - b.w, and minibatches that shift b.
A = np.array([1.0, 0.2, 3.0])
B = np.array([0.3, -1.0, 0.5])
W0 = np.array([1.0, 2.0, -1.0])
NUM_STEPS = 6


def numpy_grad(w, batch):
    return A * w - B + batch


def grad_fn(params, batch, carry):
    return {k: A[s] * params[k] - B[s] + batch[k] for k, s in SLICES.items()}, carry


SLICES = {"bias": slice(2, 3), "kernel": slice(0, 2)}  # in the order of the tree's leaves


def split(vector):
    return {k: jnp.asarray(vector[..., s]) for k, s in SLICES.items()}


def join(params):
    return np.concatenate([params["kernel"], params["bias"]], axis=-1)


def loss(params):
    w = join(params)
    return 0.5 * np.sum(A * w * w) - np.sum(B * w)


def make_batches(n_in, num_steps=NUM_STEPS, scale=0.3):
    return scale * np.random.default_rng(0).normal(size=(num_steps, n_in, 3))


def draws_of(key, n_in, count):
    """The documented noise: fold_in(fold_in(key, count), step), then fold_in by leaf."""
    if n_in == 0:
        return np.zeros((0, 3))
    result = []
    for i in range(n_in):
        step_key = jax.random.fold_in(jax.random.fold_in(key, count), i)
        leaves = [
            jax.random.normal(jax.random.fold_in(step_key, leaf), (size,), jnp.float64)
            for leaf, size in enumerate((1, 2))
        ]
        result.append(np.concatenate([leaves[1], leaves[0]]))
    return np.stack(result)


def run(tx, batches, first_gradients=None, params=None):
    """Slow weights after every outer step, as an array of shape (steps, 3)."""
    params = split(W0) if params is None else params
    state = tx.init(params)
    update = jax.jit(lambda g, s, p, b: tx.update(g, s, p, grad_fn=grad_fn, batches=b))
    path = []
    for t, batch in enumerate(batches):
        grads = (
            None if first_gradients is None else grad_fn(params, split(first_gradients[t]), None)[0]
        )
        updates, state = update(grads, state, params, split(batch))
        params = optax.apply_updates(params, updates)
        path.append(join(params))
    return np.stack(path)
