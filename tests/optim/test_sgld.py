"""The Langevin chain: stationary laws, moments, momentum, noise and its keys."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import optim
from jaxadv.optim import _moments

# 100,000 independent one-dimensional chains give a variance to 0.45 % (one standard deviation).
NUM_CHAINS = 100_000
LAM, MINIMUM, ANCHOR, GAMMA, STEP = 2.0, 1.5, -0.5, 1.0, 0.1


def quadratic(w, batch, carry):
    del batch
    return LAM * (w - MINIMUM), carry


@pytest.mark.parametrize(
    ("convention", "noise", "temperature"),
    [("ucla", 0.7, 0.49), ("paper", 0.7, 0.245), ("temperature", 0.7, 0.7)],
)
def test_stationary_law_on_a_quadratic(convention, noise, temperature):
    """Mean (gamma theta + lambda t)/kappa, variance std^2 / (2 eta kappa - (eta kappa)^2)."""
    std = optim.noise_std(noise, step_size=STEP, convention=convention)
    np.testing.assert_allclose(std, np.sqrt(2 * STEP * temperature), rtol=1e-6)
    averages, _ = optim.langevin_chain(
        jax.random.key(0),
        jnp.full(NUM_CHAINS, ANCHOR),
        quadratic,
        (),
        num_steps=30,
        step_size=STEP,
        gamma=GAMMA,
        noise_std=std,
    )
    kappa = LAM + GAMMA
    mean = (GAMMA * ANCHOR + LAM * MINIMUM) / kappa
    variance = 2 * STEP * temperature / (2 * STEP * kappa - (STEP * kappa) ** 2)
    np.testing.assert_allclose(np.mean(averages.position), mean, atol=0.01)
    np.testing.assert_allclose(np.var(averages.position), variance, rtol=0.015)


def test_averages_of_one_long_chain_estimate_the_same_law(x64):
    averages, _ = optim.langevin_chain(
        jax.random.key(1),
        jnp.full(500, ANCHOR),
        quadratic,
        (),
        num_steps=4000,
        step_size=STEP,
        gamma=GAMMA,
        noise_std=optim.noise_std(1.0, step_size=STEP, convention="temperature"),
        new_weight=0.002,
    )
    kappa = LAM + GAMMA
    mean = (GAMMA * ANCHOR + LAM * MINIMUM) / kappa
    variance = 2 * STEP / (2 * STEP * kappa - (STEP * kappa) ** 2)
    np.testing.assert_allclose(np.mean(ANCHOR + averages.offset), mean, rtol=0.01)
    np.testing.assert_allclose(np.mean(averages.variance), variance, rtol=0.03)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fixed_point_of_the_inner_loop(x64, momentum):
    """grad L(w) = (1 - momentum) gamma (theta - w): momentum weakens the pull."""
    curvature = jnp.array([1.0, 0.2, 3.0])
    anchor = jnp.array([1.0, 2.0, -1.0])
    averages, _ = optim.langevin_chain(
        None,
        anchor,
        lambda w, batch, carry: (curvature * w - 0.3, carry),
        (),
        num_steps=3000,
        step_size=0.1,
        gamma=0.03,
        momentum=momentum,
    )
    w = averages.position
    np.testing.assert_allclose(
        curvature * w - 0.3, (1 - momentum) * 0.03 * (anchor - w), rtol=0, atol=1e-13
    )
    assert np.max(np.abs(w - anchor)) > 0.5


def average_weights(new_weight, n):
    """The weights of the n iterates: iterate k is made to be the k-th unit vector."""

    def towards_unit_vector(w, unit, carry):
        return w - unit, carry

    averages, _ = optim.langevin_chain(
        None,
        jnp.zeros(n),
        towards_unit_vector,
        jnp.eye(n),
        step_size=1.0,
        gamma=0.0,
        new_weight=new_weight,
    )
    return np.asarray(averages.offset), np.asarray(averages.variance)


@pytest.mark.parametrize(
    ("new_weight", "lag", "effective"), [(0.75, 0.3333, 1.667), (0.25, 2.936, 6.956)]
)
def test_lag_and_effective_size_of_the_average(x64, new_weight, lag, effective):
    weights, variance = average_weights(new_weight, 20)
    initial = (1 - new_weight) ** 20
    np.testing.assert_allclose(weights.sum() + initial, 1, rtol=1e-14)
    np.testing.assert_allclose(variance, weights * (1 - weights), rtol=1e-12)
    weights = weights / weights.sum()
    assert np.sum(weights * np.arange(19, -1, -1)) == pytest.approx(lag, abs=5e-4)
    assert 1 / np.sum(weights**2) == pytest.approx(effective, abs=5e-4)


def test_new_weight_one_keeps_the_last_iterate():
    averages, _ = optim.langevin_chain(
        jax.random.key(0),
        jnp.zeros(50),
        quadratic,
        (),
        num_steps=7,
        step_size=STEP,
        gamma=GAMMA,
        noise_std=0.3,
        new_weight=1.0,
    )
    np.testing.assert_array_equal(averages.offset, averages.position)
    np.testing.assert_array_equal(averages.variance, 0)


def test_variance_survives_float32():
    """Deviations of 1e-7 around a drift of 1e-3 from weights of size 1: E[w^2] - mu^2 is noise.

    The iterates are multiples of 2^-23, so float32 holds them exactly, and the same moments in
    float64 are the truth.
    """
    rng = np.random.default_rng(0)
    anchor = np.ones(100, np.float32)
    averages = _moments.init_averages(jnp.asarray(anchor), variance=True)
    mean, square = np.zeros(100), np.zeros(100)
    for k in range(80):
        e = 2.0**-10 + rng.integers(-4, 5, size=100) * 2.0**-23
        averages = _moments.update_averages(
            averages, jnp.asarray(anchor + e, jnp.float32), jnp.asarray(anchor), new_weight=0.25
        )
        mean = 0.75 * mean + 0.25 * e
        square = 0.75 * square + 0.25 * e**2
        if k == 19:  # the first jump dominates: about 1e-9
            np.testing.assert_allclose(averages.variance, square - mean**2, rtol=1e-5)
    # The first jump has decayed: what is left is the variance of the deviations, about 1e-13.
    exact = square - mean**2
    assert 1e-14 < np.min(exact) and np.max(exact) < 1e-12
    np.testing.assert_allclose(averages.variance, exact, rtol=2e-3)
    np.testing.assert_allclose(averages.offset, mean, rtol=1e-6)


def test_noise_is_independent_across_steps_leaves_and_keys():
    params = {"a": jnp.zeros(2000), "b": jnp.zeros(2000)}

    def record(w, batch, carry):
        del batch
        index, history = carry
        history = jax.tree.map(lambda h, x: h.at[index].set(x), history, w)
        return jax.tree.map(jnp.zeros_like, w), (index + 1, history)

    @jax.jit
    def increments(key):
        history = jax.tree.map(lambda x: jnp.zeros((4, *x.shape)), params)
        _, (_, history) = optim.langevin_chain(
            key, params, record, (), (0, history), num_steps=4,
            step_size=0.1, gamma=0.0, noise_std=1.0,
        )  # fmt: skip
        return jnp.concatenate([jnp.diff(h, axis=0) for h in jax.tree.leaves(history)])

    draws = np.concatenate([increments(jax.random.key(seed)) for seed in (0, 1)])
    assert draws.shape == (12, 2000)
    correlations = np.corrcoef(draws) - np.eye(12)
    assert np.max(np.abs(correlations)) < 0.1  # 4.5 standard deviations
    np.testing.assert_allclose(draws.std(axis=1), 1, atol=0.08)


def test_step_is_the_formula(x64):
    position, grad, anchor = (jnp.array(x) for x in ([1.0, -2.0], [0.5, 0.25], [0.0, 1.0]))
    key = jax.random.key(0)
    noise = jax.random.normal(jax.random.fold_in(key, 0), (2,), jnp.float64)
    new = optim.langevin_step(key, position, grad, anchor, step_size=0.1, gamma=0.5, noise_std=0.01)
    expected = position - 0.1 * (grad - 0.5 * (anchor - position)) + 0.01 * noise
    np.testing.assert_allclose(new, expected, rtol=0, atol=1e-15)
    with pytest.raises(ValueError, match="key=None with noise_std=0.01"):
        optim.langevin_step(None, position, grad, anchor, step_size=0.1, gamma=0.5, noise_std=0.01)


def test_momentum_and_weight_decay_are_pure_steps(x64):
    d, b = jnp.array([1.0]), jnp.array([2.0])
    ahead, buffer = optim.nesterov_momentum(b, d, momentum=0.5)
    assert (float(ahead[0]), float(buffer[0])) == (2.0, 2.0)
    heavy, buffer = optim.nesterov_momentum(b, d, momentum=0.25, nesterov=False)
    assert (float(heavy[0]), float(buffer[0])) == (1.5, 1.5)
    assert optim.nesterov_momentum(None, d, momentum=0.0) == (d, None)
    assert float(optim.add_weight_decay(d, b, 0.5)[0]) == 2.0


def test_any_optimizer_takes_the_gradient_steps(x64):
    start, shifts = jnp.array([1.0, -2.0]), np.random.default_rng(0).normal(size=(6, 2))
    grad_fn = lambda w, shift, carry: (LAM * (w - shift), carry)
    run = lambda **options: optim.langevin_chain(
        jax.random.key(0), start, grad_fn, jnp.asarray(shifts),
        step_size=STEP, gamma=GAMMA, noise_std=0.1, **options,
    )[0]  # fmt: skip
    sgd = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(STEP, momentum=0.5, nesterov=True))
    expected = run(momentum=0.5, weight_decay=0.1)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-14), run(inner=sgd), expected
    )
    with pytest.raises(ValueError, match=r"inner replaces MomentumSGD\(momentum=0.5"):
        run(inner=sgd, momentum=0.5)


def test_unknown_length_and_convention_are_errors():
    with pytest.raises(ValueError, match="num_steps"):
        optim.langevin_chain(None, jnp.zeros(2), quadratic, (), step_size=0.1, gamma=0.0)
    with pytest.raises(ValueError, match=r"batches\['x'\] has shape \(3, 2\), but num_steps=4"):
        batches = {"x": jnp.zeros((3, 2))}
        optim.langevin_chain(
            None, jnp.zeros(2), quadratic, batches, num_steps=4, step_size=0.1, gamma=0.0
        )
    with pytest.raises(ValueError, match="noise_convention='beta'"):
        optim.noise_std(1.0, step_size=0.1, convention="beta")


def test_decay_of_narrow_parameters_keeps_the_precision_of_the_direction():
    position = jnp.asarray([1.01, 2.77, 3.61], jnp.bfloat16)
    decayed = optim.add_weight_decay(jnp.ones(3, jnp.float32), position, 0.0123)
    exact = 1 + np.float32(0.0123) * np.asarray(position, np.float32)
    np.testing.assert_allclose(decayed, exact, rtol=2e-7)
