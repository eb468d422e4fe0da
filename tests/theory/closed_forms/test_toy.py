"""The closed forms of formulas G and K: golden numbers, structure of the surfaces, PGD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import theory

POINT, EPS = np.array(theory.TOY_POINT), theory.TOY_EPS
GOLDEN = {
    ("linear", -2.0): (0.018149927917810, 0.095277582195082, 0.183900740888339),
    ("linear", 2.0): (4.018149927917809, 5.700406486189009, 6.401660178414046),
    ("swish", -2.0): (0.019490729175178, 0.116213872105457, 0.234401785663681),
    ("swish", 2.0): (0.729766468490294, 0.803257655729558, 0.836535127451276),
}
NORMS = ("l2", "linf")


def margin_loss(u, model):
    link = u if model == "linear" else u / (1 + np.exp(-u))
    return np.log1p(np.exp(-link))


def grid_losses(model, norm, axis):
    """The surface over axis x axis, index [i, j] for theta = (axis[i], axis[j])."""
    with jax.enable_x64(True):
        loss = lambda a, b: theory.toy_loss(jnp.stack([a, b]), model=model, norm=norm)
        rows = jax.vmap(jax.vmap(loss, (None, 0)), (0, None))
        return np.asarray(jax.jit(rows)(jnp.asarray(axis), jnp.asarray(axis)))


def test_swish_minimiser():
    u = theory.SWISH_MINIMISER
    s = 1 / (1 + np.exp(-u))
    assert abs(1 + u * (1 - s)) < 1e-15
    assert abs(u * s - (u + 1)) < 1e-15
    np.testing.assert_allclose(
        theory.toy_margin_loss(u, model="swish"), 0.842041108710515, rtol=1e-14
    )


@pytest.mark.parametrize(("model", "first"), GOLDEN)
def test_golden_values(model, first):
    theta = np.array([first, -first])
    for norm, expected in zip((None, *NORMS), GOLDEN[model, first], strict=True):
        value = theory.toy_loss(theta, model=model, norm=norm)
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, expected, rtol=2e-14)
    np.testing.assert_allclose(theory.toy_loss(np.zeros(2), model=model), np.log(2), rtol=1e-15)


@pytest.mark.parametrize("y", [1.0, -1.0])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("model", ["linear", "swish"])
def test_the_attack_attains_the_loss_and_nothing_feasible_exceeds_it(model, norm, y):
    rng = np.random.default_rng(1)
    ball = rng.normal(size=(400, 2))
    if norm == "l2":
        ball *= (EPS * np.sqrt(rng.random((400, 1)))) / np.linalg.norm(ball, axis=1, keepdims=True)
    else:
        ball = rng.uniform(-EPS, EPS, size=(400, 2))
    for theta in rng.uniform(-3, 3, size=(12, 2)):
        loss = float(theory.toy_loss(theta, y=y, model=model, norm=norm))
        attack = theory.toy_attack(theta, y=y, model=model, norm=norm)
        size = np.abs(attack.delta).max() if norm == "linf" else np.linalg.norm(attack.delta)
        assert size <= EPS * (1 + 1e-14)
        link = lambda u: y * (u if model == "linear" else u / (1 + np.exp(-u)))
        reached = np.log1p(np.exp(-link(theta @ (POINT + np.asarray(attack.delta)))))
        np.testing.assert_allclose(reached, loss, rtol=1e-13)
        assert np.log1p(np.exp(-link((POINT + ball) @ theta))).max() <= loss + 1e-13


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("model", ["linear", "swish"])
def test_gradient_is_the_derivative_of_the_loss(model, norm, x64):
    for theta in np.random.default_rng(2).uniform(-2, 2, size=(8, 2)):
        envelope = theory.toy_gradient(theta, model=model, norm=norm)
        derivative = jax.grad(lambda t: theory.toy_loss(t, model=model, norm=norm))(
            jnp.asarray(theta)
        )
        np.testing.assert_allclose(envelope, derivative, atol=1e-13)


@pytest.mark.parametrize(("norm", "fraction"), [("l2", 0.321), ("linf", 0.450)])
def test_plateau(norm, fraction):
    losses = grid_losses("swish", norm, np.linspace(-2, 2, 81))
    flat = np.abs(losses - 0.842041108710515) < 1e-15
    assert abs(flat.mean() - fraction) < 5e-4
    assert losses.max() <= 0.842041108710515 + 1e-15
    # E9: the corner theta_1 > 1, theta_2 < -1 is not all plateau: at (2, -2) the maximiser is a
    # vertex, and the attack is at the upper end of the interval.
    attack = theory.toy_attack(np.array([2.0, -2.0]), model="swish", norm=norm)
    assert attack.regime == 1
    assert theory.toy_loss(np.array([2.0, -2.0]), model="swish", norm=norm) < 0.8366


@pytest.mark.parametrize(
    ("theta_2", "jump"), [(-1.5, 0.0), (-0.5, 0.093621), (0.5, 0.339850), (1.5, 0.379887)]
)
def test_kinks_of_the_linf_swish_loss(theta_2, jump):
    assert abs(float(theory.toy_kink_jump(np.array([0.0, theta_2]), model="swish")) - jump) < 1e-6
    h = 1e-6
    gradients = [
        np.asarray(theory.toy_gradient(np.array([s * h, theta_2]), model="swish", norm="linf"))
        for s in (-1, 1)
    ]
    assert abs((gradients[1] - gradients[0])[0] - jump) < 1e-5
    assert abs((gradients[1] - gradients[0])[1]) < 1e-5


def test_kink_vanishes_exactly_where_the_plateau_covers_the_axis():
    low, high = (abs(theory.SWISH_MINIMISER) / r for r in (1.6, 0.4))
    for theta_2, expected in ((-low, True), (-high, True), (-low + 1e-3, False), (-4.0, False)):
        inside = theta_2 * (1 - 1e-9) if theta_2 == -high else theta_2 * (1 + 1e-9)
        theta = np.array([0.0, inside if expected else theta_2])
        assert (float(theory.toy_kink_jump(theta, model="swish")) < 1e-12) == expected


@pytest.mark.parametrize("model", ["linear", "swish"])
@pytest.mark.parametrize("norm", NORMS)
def test_cone_at_the_origin(norm, model):
    w, h = np.array([0.3, -0.8]), 1e-7
    dual = np.abs(w).sum() if norm == "linf" else np.linalg.norm(w)
    value = lambda t: float(theory.toy_loss(t * w, model=model, norm=norm))
    total = (value(h) + value(-h) - 2 * value(0.0)) / h
    expected = EPS * dual * (1.0 if model == "linear" else 0.5)
    np.testing.assert_allclose(total, expected, rtol=1e-5)


@pytest.mark.parametrize(("norm", "expected"), [("l2", 0.917544), ("linf", 1.157940)])
def test_weak_convexity(norm, expected):
    assert abs(float(theory.toy_weak_convexity(norm=norm)) - expected) < 1e-6
    assert float(theory.toy_weak_convexity(model="linear", norm=norm)) == 0.0


def test_data_set_minima(x64):
    points, labels = theory.toy_dataset()
    for norm, theta, value in (
        ("l2", (1.0847279, 0.0456441), 0.6465367818),
        ("linf", (1.0915989, 0.0), 0.6470117217),
    ):
        loss = jax.jit(lambda t, norm=norm: theory.toy_dataset_loss(t, points, labels, norm=norm))
        least = float(loss(jnp.array(theta)))
        assert abs(least - value) < 5e-11
        for shift in np.eye(2):
            for h in (1e-4, -1e-4):
                assert float(loss(jnp.array(theta) + h * shift)) > least
    mean = (points * labels[:, None]).mean(0)
    np.testing.assert_allclose(np.linalg.norm(mean), 0.7835604292, rtol=1e-9)
    np.testing.assert_allclose(np.abs(mean).max(), 0.7794972814, rtol=1e-9)
    # Collapse: theta = 0 is the minimum exactly when eps >= the norm of the mean.
    for norm, threshold in (("l2", 0.7835604292), ("linf", 0.7794972814)):
        direction = 1e-3 * (mean if norm == "l2" else np.array([1.0, 0.0]))
        for eps, collapsed in ((threshold + 1e-2, True), (threshold - 1e-2, False)):
            value = theory.toy_dataset_loss(direction, points, labels, norm=norm, eps=eps)
            assert (float(value) > np.log(2)) == collapsed


@pytest.mark.parametrize(  # the gaps of formulas G.3
    ("norm", "steps", "fraction", "best", "gap"),
    [("l2", 10, 4, False, 0.0111), ("linf", 10, 4, False, 0.0218), ("linf", 100, 40, False, 2e-4)],
)
def test_pgd_stays_below_the_exact_loss(norm, steps, fraction, best, gap, x64):
    def difference(a, b):
        theta = jnp.stack([a, b])
        delta = theory.toy_pgd(
            theta, norm=norm, num_steps=steps, step_size=EPS / fraction, keep_best=best
        )
        u = theta @ (jnp.asarray(POINT) + delta)
        reached = theory.toy_margin_loss(u, model="swish")
        return theory.toy_loss(theta, model="swish", norm=norm) - reached

    axis = jnp.linspace(-2, 2, 81)
    gaps = jax.jit(jax.vmap(jax.vmap(difference, (None, 0)), (0, None)))(axis, axis)
    assert gaps.min() > -1e-14
    np.testing.assert_allclose(gaps.max(), gap, atol=5e-5)


def test_precision_of_the_caller_is_left_alone():
    assert theory.toy_loss(np.ones(2, np.float32)).dtype == np.float64
    assert jnp.ones(2).dtype == jnp.float32
    with pytest.raises(ValueError, match="enable_x64"):
        jax.jit(lambda t: theory.toy_loss(t))(jnp.ones(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"norm": "l3"}, "norm='l3'"), ({"model": "relu"}, "model='relu'")],
)
def test_misuse(options, message):
    with pytest.raises(ValueError, match=message):
        theory.toy_loss(np.ones(2), **options)
    with pytest.raises(ValueError, match="num_points"):
        theory.toy_dataset(num_points=0)
