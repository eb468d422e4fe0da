"""What optax asks of every optimizer, asked of both forms of EntropySGD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import optim

VARIANTS = {
    "default": dict(),
    "second_order": dict(preset="ucla_exact", second_order=True, noise=0),
    "plain": dict(preset="paper_fixed", noise=0),
    "sgd": dict(n_in=0, noise=0),
}
FORMS = ("scanned", "stepwise")
pytestmark = pytest.mark.parametrize("form", FORMS)
variants = pytest.mark.parametrize("variant", VARIANTS)


def parabola(params):
    return jnp.sum(jnp.square(params - jnp.array([1.0, -1.0, 1.0], params.dtype)))


def matrix_parabola(params):
    return jnp.sum(jnp.square(params - jnp.array([[3.0, -2.0], [1.0, 4.0]], params.dtype)))


def rosenbrock(params):
    return (1 - params[0]) ** 2 + 100 * (params[1] - params[0] ** 2) ** 2


def mixed(params):
    vector, matrix = params
    return parabola(vector) + jnp.sum(jnp.square(matrix - jnp.eye(2, dtype=matrix.dtype)))


def make(form, **options):
    options = {"learning_rate": 0.1, "key": jax.random.key(0), "n_in": 3} | options
    factory = optim.entropy_sgd if form == "scanned" else optim.entropy_sgd_stepwise
    return factory(**options)


def extra_args(form, loss):
    """What the scanned form needs beyond the gradient."""
    if form == "stepwise":
        return {}
    return {"grad_fn": lambda p, batch, carry: (jax.grad(loss)(p), carry), "batches": ()}


def make_step(tx, form, loss=parabola, **more):
    def step(params, state):
        updates, state = tx.update(
            jax.grad(loss)(params), state, params, **extra_args(form, loss), **more
        )
        return optax.apply_updates(params, updates), state

    return step


@variants
def test_swallows_extra_args_and_does_not_recompile(form, variant):
    tx = make(form, **VARIANTS[variant])
    step = jax.jit(make_step(tx, form, value=1.0, an_argument_from_another_transformation=2))
    params = jnp.array([-1.0, 10.0, 1.0])
    state = tx.init(params)
    structure = jax.tree.structure(state)
    for _ in range(4):
        params, state = step(params, state)
        assert jax.tree.structure(state) == structure
    assert step._cache_size() == 1


@variants
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_keeps_dtypes_and_fits_lax_cond(x64, form, variant, dtype):
    tx = make(form, **VARIANTS[variant])
    step = make_step(tx, form)
    params = jnp.array([-1.0, 10.0, 1.0], dtype)
    state = tx.init(params)

    @jax.jit
    def maybe(take, params, state):
        return jax.lax.cond(take, step, lambda p, s: (p, s), params, state)

    for take in (False, True, True, True):
        new_params, new_state = maybe(take, params, state)
        assert new_params.dtype == jnp.dtype(dtype)
        for new, old in zip(jax.tree.leaves(new_state), jax.tree.leaves(state), strict=True):
            assert jax.typeof(new) == jax.typeof(old)
        params, state = new_params, new_state
    assert np.all(np.isfinite(np.asarray(params, np.float64)))


@pytest.mark.parametrize(
    ("loss", "start", "goal", "rate", "steps"),
    [
        (parabola, np.array([-1.0, 10.0, 1.0]), np.array([1.0, -1.0, 1.0]), 0.02, 300),
        (matrix_parabola, np.zeros((2, 2)), np.array([[3.0, -2.0], [1.0, 4.0]]), 0.02, 300),
        (rosenbrock, np.zeros(2), np.ones(2), 5e-4, 3000),
        (
            mixed,
            (np.zeros(3), np.zeros((2, 2))),
            (np.array([1.0, -1.0, 1.0]), np.eye(2)),
            0.02,
            300,
        ),
    ],
)
def test_converges(form, loss, start, goal, rate, steps):
    n_in = 10
    tx = make(
        form,
        n_in=n_in,
        learning_rate=optax.constant_schedule(0.1),
        inner_learning_rate=rate,
        noise=1e-4 if loss is mixed else 0,
        weight_decay=0.0,
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start)
    step = make_step(tx, form, loss)
    length = steps if form == "scanned" else n_in * steps
    run = jax.jit(lambda c: jax.lax.scan(lambda c, _: (step(*c), None), c, length=length)[0])
    params, state = run((params, tx.init(params)))
    assert int(state.count) == steps
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-2), params, goal)


@variants
def test_inject_hyperparams(form, variant):
    options = {"learning_rate": 0.1, "key": jax.random.key(0), "n_in": 3, "gamma": 0.03}
    options |= VARIANTS[variant]
    factory = optim.entropy_sgd if form == "scanned" else optim.entropy_sgd_stepwise
    plain = factory(**options)
    injected = optax.inject_hyperparams(factory, static_args=("key", "n_in"))(**options)
    start = jnp.array([-1.0, 10.0, 1.0])
    results = []
    for tx in (plain, injected):
        step = jax.jit(make_step(tx, form))
        params, state = start, tx.init(start)
        for _ in range(6):
            params, state = step(params, state)
        assert step._cache_size() == 1
        results.append(params)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)
    # The hyper-parameter is live: a zero learning rate leaves the slow weights alone.
    state.hyperparams["learning_rate"] = jnp.zeros([])
    slow = optim.slow_params(state, params)
    for _ in range(3):
        params, state = step(params, state)
    np.testing.assert_allclose(optim.slow_params(state, params), slow, rtol=1e-6)


@variants
def test_multi_steps(form, variant):
    tx = optax.MultiSteps(make(form, **VARIANTS[variant]), every_k_schedule=2)
    step = jax.jit(make_step(tx, form))
    params = start = jnp.array([-1.0, 10.0, 1.0])
    state = tx.init(params)
    params, state = step(params, state)
    np.testing.assert_array_equal(params, start)
    params, state = step(params, state)
    plain = make(form, **VARIANTS[variant])
    expected, _ = jax.jit(make_step(plain, form))(start, plain.init(start))
    np.testing.assert_allclose(params, expected, rtol=1e-6)
    assert step._cache_size() == 1


def test_chain_passes_the_extra_args_on(form):
    plain = make(form)
    chained = optax.chain(optax.identity(), plain, optax.scale(1.0))
    start = jnp.array([-1.0, 10.0, 1.0])
    expected, _ = jax.jit(make_step(plain, form))(start, plain.init(start))
    params, _ = jax.jit(make_step(chained, form))(start, chained.init(start))
    np.testing.assert_allclose(params, expected, rtol=1e-6)


@variants
def test_donating_params_and_state_leaves_the_callers_arrays_alone(form, variant):
    key = jax.random.key(0)
    options = {"init_carry": {"seen": jnp.zeros([])}} if form == "scanned" else {}
    tx = make(form, key=key, **VARIANTS[variant], **options)
    step = jax.jit(make_step(tx, form), donate_argnums=(0, 1))
    start = jnp.array([-1.0, 10.0, 1.0])
    params = jnp.array(start, copy=True)
    state = tx.init(params)
    first_momentum = state.momentum
    for _ in range(7):
        params, state = step(params, state)
    if first_momentum is not None:
        assert first_momentum.is_deleted()  # donation did happen
    assert not key.is_deleted()
    again = tx.init(start)
    repeated = start
    step = jax.jit(make_step(tx, form))
    for _ in range(7):
        repeated, again = step(repeated, again)
    np.testing.assert_array_equal(repeated, params)
    if options:
        assert not options["init_carry"]["seen"].is_deleted()


def test_tree_map_params(form):
    tx = make(form, second_order=True)
    params = {"a": jnp.ones(2), "b": jnp.ones((2, 2))}
    state = tx.init(params)
    mapped = optax.tree.map_params(tx, lambda v: v + 1, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    np.testing.assert_array_equal(mapped.momentum["b"], 1)
    np.testing.assert_array_equal(mapped.count, state.count)


def test_one_program_serves_every_seed_and_each_seed_draws_its_own_noise(form):
    tx = make(form, noise=0.1)
    step = jax.jit(make_step(tx, form))
    start = jnp.array([-1.0, 10.0, 1.0])
    results = []
    for seed in (0, 0, 1):
        state = tx.init(start)._replace(key_data=jax.random.key_data(jax.random.key(seed)))
        results.append(step(start, state)[0])
    assert step._cache_size() == 1
    np.testing.assert_array_equal(results[0], results[1])
    assert np.max(np.abs(results[0] - results[2])) > 1e-4
    other = make(form, noise=0.1, key=jax.random.key(1))
    assert np.all(other.init(start).key_data == state.key_data)


def test_no_key_is_needed_without_noise(form):
    tx = make(form, key=None, noise=0)
    start = jnp.array([-1.0, 10.0, 1.0])
    params, state = make_step(tx, form)(start, tx.init(start))
    assert state.key_data is None
    assert parabola(params) < parabola(start)
