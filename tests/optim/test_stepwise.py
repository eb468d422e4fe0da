"""The one-minibatch-at-a-time form follows the scanned form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import optim

N_IN, NUM_STEPS = 5, 4
EXACT_RATES = dict(noise=0, learning_rate=0.125, inner_learning_rate=1 / 64)
# Curvatures and minima that are sums of few powers of two: a gradient rounds the same way
# whether or not a compiler fuses its multiplication and addition.
CURVATURE = {"w": np.array([[0.5, 0.25], [1.0, 0.125]]), "b": np.array([0.5])}


def initial(dtype=jnp.float32, scale=3.0):
    params = {"w": np.array([[1.0, -1.25], [1.5, 2.0]]), "b": np.array([-1.75])}
    return jax.tree.map(lambda x: jnp.asarray(scale * x, dtype), params)


def gradient(params, batch):
    return jax.tree.map(
        lambda c, p, x: c.astype(p.dtype) * p + x.astype(p.dtype), CURVATURE, params, batch
    )


def grad_fn(params, batch, carry):
    return gradient(params, batch), carry


def make_batches(dtype=np.float32):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda c: (rng.integers(-4, 5, size=(NUM_STEPS, N_IN, *c.shape)) / 8).astype(dtype),
        CURVATURE,
    )


def dtype_of(x):
    return x.dtype


def assert_equal(actual, expected):
    assert jax.tree.map(dtype_of, actual) == jax.tree.map(dtype_of, expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def both(params, learning_rate=0.1, **options):
    """The slow weights after every outer step, from both forms."""
    options = {"key": jax.random.key(0), "n_in": N_IN} | options
    batches = make_batches(params["b"].dtype)
    return (
        run_stepwise(optim.entropy_sgd_stepwise(learning_rate, **options), params, batches),
        run_scanned(optim.entropy_sgd(learning_rate, **options), params, batches),
    )


def run_scanned(tx, params, batches):
    @jax.jit
    def step(params, state, batch):
        grads = gradient(params, jax.tree.map(lambda x: x[0], batch))
        updates, state = tx.update(grads, state, params, grad_fn=grad_fn, batches=batch)
        return optax.apply_updates(params, updates), state

    state, path = tx.init(params), []
    for t in range(NUM_STEPS):
        params, state = step(params, state, jax.tree.map(lambda x, t=t: x[t], batches))
        path.append(params)
    return path


def run_stepwise(tx, params, batches):
    @jax.jit
    def step(params, state, batch):
        updates, state = tx.update(gradient(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    state, path, start = tx.init(params), [], params
    for t in range(NUM_STEPS):
        for i in range(N_IN):
            assert_equal(optim.slow_params(state, params), path[-1] if path else start)
            params, state = step(params, state, jax.tree.map(lambda x, t=t, i=i: x[t, i], batches))
        path.append(params)
        assert_equal(optim.slow_params(state, params), params)
    assert step._cache_size() == 1
    return path


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(preset="theory", momentum=0.9, second_order=True, beta_aware=True),
        # Without noise the last operation of an inner step is position + rate * direction, which
        # a compiler may fuse; with rates that are powers of two fusing changes nothing.
        EXACT_RATES | dict(second_order=True),
        EXACT_RATES | dict(preset="ucla_exact", nesterov=False),
        EXACT_RATES | dict(preset="lua"),
        EXACT_RATES | dict(preset="paper_literal", second_order=True),
    ],
)
def test_equals_the_scanned_form_bit_for_bit(options):
    stepwise, scanned = both(initial(), **({"inner_learning_rate": 0.02} | options))
    assert_equal(stepwise, scanned)
    moved = jax.tree.map(lambda x, y: np.max(np.abs(x - y)), scanned[-1], initial())
    assert min(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_equals_the_scanned_form_bit_for_bit_in_other_precisions(x64, dtype):
    stepwise, scanned = both(initial(dtype), inner_learning_rate=0.02, second_order=True)
    assert_equal(stepwise, scanned)


@pytest.mark.parametrize("options", [dict(noise=0), dict(second_order=True, noise=0.3)])
def test_stays_within_rounding_when_weights_change_by_more_than_a_factor_of_two(options):
    stepwise, scanned = both(initial(scale=1.0), inner_learning_rate=0.1, **options)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-6), stepwise, scanned
    )


def test_runs_inside_lax_scan_with_a_schedule(x64):
    schedule = optax.linear_schedule(0.1, 0.0, NUM_STEPS)
    tx = optim.entropy_sgd_stepwise(schedule, noise=0, n_in=N_IN)
    params = initial(jnp.float64)
    batches = make_batches(np.float64)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches)

    def body(carry, batch):
        params, state = carry
        updates, state = tx.update(gradient(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(body, (params, tx.init(params)), flat)
    scanned = run_scanned(
        optim.entropy_sgd(schedule, noise=0, n_in=N_IN),
        initial(jnp.float64),
        batches,
    )
    assert (int(state.count), int(state.inner_step)) == (NUM_STEPS, 0)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-14), params, scanned[-1]
    )


def test_without_inner_steps_it_is_nesterov_sgd_of_optax():
    tx = optim.entropy_sgd_stepwise(0.1, noise=0, n_in=0, weight_decay=0)
    reference = optax.sgd(0.1, momentum=0.9, nesterov=True)
    params = expected = initial()
    state, reference_state = tx.init(params), reference.init(params)
    batch = jax.tree.map(lambda x: x[0, 0], make_batches())
    for _ in range(5):
        updates, state = tx.update(gradient(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        updates, reference_state = reference.update(gradient(expected, batch), reference_state)
        expected = optax.apply_updates(expected, updates)
        assert_equal(optim.slow_params(state, params), params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), params, expected)


def test_an_outer_step_starts_from_the_parameters_in_hand():
    tx = optim.entropy_sgd_stepwise(0.1, noise=0, n_in=3)
    batch = jax.tree.map(lambda x: x[0, 0], make_batches())
    params, other = initial(), initial(scale=2.0)
    state = tx.init(params)
    _, state = tx.update(gradient(other, batch), state, other)
    assert_equal(optim.slow_params(state, other), other)


def test_slow_params_are_found_inside_wrappers():
    factory = optim.entropy_sgd_stepwise
    params = initial()
    arguments = dict(learning_rate=0.1, key=jax.random.key(0))
    inject = optax.inject_hyperparams(factory, static_args="key")(**arguments)
    for tx in (
        optax.chain(optax.clip(1.0), factory(**arguments)),
        optax.MultiSteps(factory(**arguments), 2),
        inject,
    ):
        state = tx.init(params)
        fast = jax.tree.map(lambda p: p + 1, params)
        assert_equal(optim.slow_params(state, fast), params)
    scanned = optim.entropy_sgd(**arguments).init(params)
    assert_equal(optim.slow_params((scanned,), fast), fast)
    with pytest.raises(ValueError, match="without an EntropySGD state"):
        optim.slow_params(optax.sgd(0.1).init(params), params)


@pytest.mark.parametrize(("missing", "message"), [("params", "params=None"), ("g", "grads=None")])
def test_bad_calls_are_named(missing, message):
    tx = optim.entropy_sgd_stepwise(0.1, key=jax.random.key(0))
    params = initial()
    state = tx.init(params)
    with pytest.raises(ValueError, match=message):
        tx.update(*((params, state) if missing == "params" else (None, state, params)))
