"""Optax optimizers as the inner and the outer step of EntropySGD, in both forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import optim
from tests.helpers.entropy_quadratic import W0, draws_of, grad_fn, join, make_batches, run, split

N_IN, RATE, GAMMA, NOISE = 8, 0.05, 0.3, 0.02
KEY = jax.random.key(17)
COMMON = dict(key=KEY, n_in=N_IN, gamma=GAMMA, noise=NOISE, inner_learning_rate=RATE)
NESTEROV = dict(momentum=0.9, nesterov=True)

INNER = {
    "clipped": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.sgd(RATE, momentum=0.9, nesterov=True)
    ),
    "adam": lambda: optax.adam(0.05),
    "schedule": lambda: optax.adamw(optax.linear_schedule(0.1, 0.0, N_IN), weight_decay=0.1),
    "masked": lambda: optax.chain(
        optax.masked(optax.adam(0.05), {"bias": True, "kernel": False}),
        optax.masked(optax.sgd(RATE, momentum=0.5), {"bias": False, "kernel": True}),
    ),
    "multi_transform": lambda: optax.multi_transform(
        {"a": optax.sgd(RATE), "b": optax.set_to_zero()}, {"bias": "a", "kernel": "b"}
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.sgd)(RATE, momentum=0.9),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(RATE, momentum=0.9), 3),
}
OUTER = {
    "adam": lambda: optax.adam(0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.2), optax.sgd(0.5, **NESTEROV)),
    "schedule": lambda: optax.sgd(optax.linear_schedule(0.5, 0.0, 6)),
    "multi_transform": lambda: optax.multi_transform(
        {"a": optax.sgd(0.5), "b": optax.set_to_zero()}, {"bias": "a", "kernel": "b"}
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.sgd)(0.5, momentum=0.9),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
}


def run_stepwise(tx, batches):
    """Slow weights after every outer step, as from `run`."""
    params = split(W0)
    state, path = tx.init(params), []
    update = jax.jit(lambda s, p, b: tx.update(grad_fn(p, b, None)[0], s, p))
    for batch in batches:
        for minibatch in batch:
            updates, state = update(state, params, split(minibatch))
            params = optax.apply_updates(params, updates)
        path.append(join(optim.slow_params(state, params)))
    return np.stack(path)


def both(batches, **options):
    yield run(optim.entropy_sgd(**options), batches)
    yield run_stepwise(optim.entropy_sgd(**options, stepwise=True), batches)


def by_hand(batches, inner, outer):
    """The pull and the noise are added to the updates of ``inner``; ``outer`` gets theta - mu."""
    theta, path = split(W0), []
    outer_state = outer.init(theta)
    for t, batch in enumerate(batches):
        w, state, mu = theta, inner.init(theta), theta
        draws = draws_of(KEY, N_IN, t)
        for minibatch, draw in zip(batch, draws, strict=True):
            updates, state = inner.update(grad_fn(w, split(minibatch), None)[0], state, w)
            w = jax.tree.map(
                lambda w, u, a, n: w + u + RATE * GAMMA * (a - w) + NOISE * np.sqrt(2 * RATE) * n,
                w,
                updates,
                theta,
                split(draw),
            )
            mu = jax.tree.map(lambda m, w: 0.75 * m + 0.25 * w, mu, w)
        direction = jax.tree.map(jnp.subtract, theta, mu)
        updates, outer_state = outer.update(direction, outer_state, theta)
        theta = optax.apply_updates(theta, updates)
        path.append(join(theta))
    return np.stack(path)


@pytest.mark.parametrize("name", INNER)
def test_any_optimizer_makes_the_inner_steps(x64, name):
    batches = make_batches(N_IN, 3)
    expected = by_hand(batches, INNER[name](), optax.sgd(0.1, **NESTEROV))
    for path in both(batches, learning_rate=0.1, inner=INNER[name](), weight_decay=0, **COMMON):
        np.testing.assert_allclose(path, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OUTER)
def test_any_optimizer_makes_the_outer_step(x64, name):
    batches = make_batches(N_IN, 3)
    expected = by_hand(batches, optax.sgd(RATE, **NESTEROV), OUTER[name]())
    for path in both(batches, outer=OUTER[name](), inner_weight_decay=0, **COMMON):
        np.testing.assert_allclose(path, expected, rtol=0, atol=1e-12)


def test_built_in_steps_are_what_optax_makes(x64):
    batches = make_batches(N_IN, 3)
    chain = lambda rate: optax.chain(
        optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9, nesterov=True)
    )
    for built_in, composed in zip(
        both(batches, learning_rate=0.1, **COMMON),
        both(batches, inner=chain(RATE), outer=chain(0.1), **COMMON),
        strict=True,
    ):
        np.testing.assert_allclose(built_in, composed, rtol=0, atol=1e-13)


def test_clipping_bounds_the_inner_steps(x64):
    """A gradient of norm 1e6 moves the weights as one of norm 1 does."""
    huge = np.array([0.6e6, 0.8e6, 0.0]) * np.ones((1, N_IN, 1))
    options = dict(COMMON, noise=0, gamma=0.0, new_weight=1.0)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(RATE))
    for path in both(huge, inner=clipped, outer=optax.sgd(1.0), **options):
        np.testing.assert_allclose(
            path[0] - W0, -RATE * N_IN * np.array([0.6, 0.8, 0]), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize(("form", "inner"), [("scanned", "adam"), ("stepwise", "apply_if_finite")])
def test_a_custom_optimizer_keeps_dtypes_and_structure(form, inner):
    tx = optim.entropy_sgd(0.1, key=KEY, n_in=2, inner=INNER[inner](), stepwise=form == "stepwise")
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), split(W0))
    state = tx.init(params)
    batches = split(np.zeros((2, 3)))
    call = dict(grad_fn=lambda p, b, c: (p, c), batches=batches) if form == "scanned" else {}
    types = jax.tree.map(jax.typeof, (params, state))
    for _ in range(3):
        updates, state = tx.update(params, state, params, **call)
        params = optax.apply_updates(params, updates)
        assert jax.tree.map(jax.typeof, (params, state)) == types
    if form == "stepwise":
        buffers = jax.tree.leaves(state.inner_momentum)
        assert {x.dtype for x in buffers if x.ndim} == {jnp.dtype("float32")}


def test_a_preset_with_an_optimizer_of_ones_own(x64):
    """The Lua code's chain around Adam: scoping is the preset's, momentum and decay are Adam's."""
    batches = make_batches(N_IN, 2)
    options = dict(COMMON, noise=0, inner=optax.adam(0.05))
    lua = run(optim.entropy_sgd(1.0, preset="lua", **options), batches)
    plain = dict(momentum=0, weight_decay=0)
    same = run(optim.entropy_sgd(1.0, scoping=1e-3, **plain, **options), batches)
    np.testing.assert_array_equal(lua, same)
    ucla = optim.entropy_sgd(preset="ucla_exact", outer=optax.sgd(0.1), **COMMON)
    run(ucla, batches)  # its buffer is the caller's: no gradient to start it is asked for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(inner=optax.adam(0.1), inner_momentum=0.5),
            "inner_momentum=0.5 is repl.* by inner",
        ),
        (dict(inner=optax.adam(0.1), inner_weight_decay=0.1), "inner_weight_decay=0.1 .* inner"),
        (dict(inner=optax.adam(0.1), decay_after_momentum=True), "decay_after_momentum=True"),
        (dict(outer=optax.adam(0.1), learning_rate=0.1), "learning_rate=0.1 is replaced by outer"),
        (dict(outer=optax.adam(0.1), momentum=0.5), "momentum=0.5 is replaced by outer"),
        (dict(outer=optax.adam(0.1), weight_decay=0.1), "weight_decay=0.1 is replaced by outer"),
        (dict(outer=optax.adam(0.1), momentum_init="gradient"), "momentum_init='gradient' is rep"),
        (dict(outer=0.1), "outer=0.1 is not an optax transformation"),
        (dict(learning_rate=0.1, inner=optax.adam), "inner=.*is not an optax transformation"),
        (
            dict(learning_rate=0.1, stepwise=True, init_carry=0),
            "init_carry cannot be used with stepwise=True",
        ),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        optim.entropy_sgd(key=KEY, **options)


def test_an_unknown_option_is_an_error():
    for factory in (optim.entropy_sgd, optim.entropy_sgd_stepwise):
        with pytest.raises(TypeError, match="gama"):
            factory(0.1, key=KEY, gama=0.1)
