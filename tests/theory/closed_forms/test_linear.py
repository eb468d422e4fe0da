"""The linear model: closed forms, spectrum, theorems 1 and 2, kinks (formulas B.9)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import theory

NORMS = [1, 1.5, 2, 3, np.inf]
INF = np.inf


def dual_norm(theta, p):
    q = {1: INF, INF: 1}.get(p) or p / (p - 1)
    return np.linalg.norm(theta, q)


def phi(t):
    return np.logaddexp(0, -t)


def example(seed, size=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=size), rng.normal(size=size), rng.choice([-1.0, 1.0])


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("y", [-1, 1])
def test_no_random_attack_beats_the_closed_form(p, y):
    theta, x, _ = example(0)
    rng = np.random.default_rng(1)
    deltas = rng.normal(size=(2000, 5)) * rng.choice([0.01, 1.0], size=(2000, 5))
    deltas *= 0.7 / np.linalg.norm(deltas, p, axis=1, keepdims=True)
    losses = phi(y * (x + deltas) @ theta)
    best = theory.linear_loss(theta, x, y, p=p, eps=0.7)
    assert losses.max() <= best + 1e-12
    attack = theory.linear_attack(theta, x, y, p=p, eps=0.7)
    assert np.linalg.norm(attack - x, p) <= 0.7 + 1e-12
    np.testing.assert_allclose(phi(y * attack @ theta), best, rtol=1e-13)
    np.testing.assert_allclose(best, phi(y * theta @ x - 0.7 * dual_norm(theta, p)), rtol=1e-13)


@pytest.mark.parametrize(
    "p", [pytest.param(p, marks=pytest.mark.slow) if p == 1.5 else p for p in NORMS]
)
def test_gradient_and_hessian_are_those_of_the_loss(x64, p):
    theta, x, y = example(2)
    options = dict(p=p, eps=0.4, bias=0.3)
    loss = lambda theta: theory.linear_loss(theta, x, y, **options)
    gradient = theory.linear_gradient(theta, x, y, **options)
    np.testing.assert_allclose(jax.grad(loss)(theta), gradient, atol=1e-13)
    hessian = theory.linear_hessian(theta, x, y, **options)
    np.testing.assert_allclose(jax.hessian(loss)(theta), hessian, atol=1e-13)
    attack = lambda theta: theory.linear_attack(theta, x, y, p=p, eps=0.4)
    jacobian = theory.linear_attack_jacobian(theta, y, p=p, eps=0.4)
    np.testing.assert_allclose(jax.jacfwd(attack)(theta), jacobian, atol=1e-13)
    # Envelope: the gradient with the attack frozen.
    frozen = attack(theta)
    at_frozen = lambda theta: jnp.logaddexp(0.0, -y * (theta @ frozen + 0.3))
    np.testing.assert_allclose(jax.grad(at_frozen)(theta), gradient, atol=1e-13)
    # A + B^T D, and the motion of the attack only adds curvature.
    crossed = jax.jacobian(
        lambda x: jax.grad(lambda t: jnp.logaddexp(0.0, -y * (t @ x + 0.3)))(theta)
    )
    motion = crossed(frozen) @ jacobian
    np.testing.assert_allclose(jax.hessian(at_frozen)(theta) + motion, hessian, atol=1e-13)
    assert np.linalg.eigvalsh(0.5 * (motion + motion.T)).min() > -1e-14


def test_examples_are_batched():
    theta, _, _ = example(3)
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 3, 5)), rng.choice([-1.0, 1.0], size=(2, 3))
    one = theory.linear_hessian(theta, x[1, 2], y[1, 2], p=2, eps=0.1)
    np.testing.assert_allclose(theory.linear_hessian(theta, x, y, p=2, eps=0.1)[1, 2], one)
    with pytest.raises(ValueError, match="y must be -1 or \\+1"):
        theory.linear_loss(theta, x, np.abs(y) - 1, p=2, eps=0.1)
    with pytest.raises(ValueError, match=r"p=0\.5 is not in \[1, inf\]"):
        theory.linear_loss(theta, x, y, p=0.5, eps=0.1)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_attack_in_the_box_is_optimal(p):
    rng = np.random.default_rng(5)
    theta, x, y = rng.normal(size=4), rng.uniform(size=(20, 4)), rng.choice([-1.0, 1.0], size=20)
    x[0], x[1] = 0.0, 1.0
    attacks = theory.linear_attack(theta, x, y, p=p, eps=0.5, bounds=(0.0, 1.0))
    assert attacks.min() >= 0 and attacks.max() <= 1
    assert (np.linalg.norm(attacks - x, p, axis=1) <= 0.5 + 1e-12).all()
    deltas = rng.normal(size=(4000, 1, 4)) * rng.choice([0.03, 1.0], size=(4000, 1, 4))
    deltas = np.clip(x + deltas, 0, 1) - x
    lengths = np.linalg.norm(deltas, p, axis=-1, keepdims=True)
    others = x + deltas * np.minimum(1, 0.5 / np.maximum(lengths, 1e-12))
    gain = y * ((attacks - x) @ theta)
    others_gain = y * ((others - x) @ theta)
    assert (others_gain.min(axis=0) >= gain - 1e-12).all()


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_spectrum_and_sharp_local_bound(size):
    theta, x, y = example(6, size)
    hessian = theory.linear_hessian(theta, x, y, p=2, eps=0.3)
    spectrum = theory.linear_spectrum(theta, x, y, eps=0.3)
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian), spectrum, atol=1e-14)
    bound = theory.local_smoothness_bound(theta, x, y, eps=0.3)
    assert 0 < spectrum.max() <= bound + 1e-12


def pairs(seed, size, theta_min, theta_max, num=1000):
    """Pairs in the annulus: far, near, antipodal and of equal radius theta_min."""
    rng = np.random.default_rng(seed)

    def points(radius):
        a = rng.normal(size=(num, size))
        return radius * a / np.linalg.norm(a, axis=1, keepdims=True)

    a = points(rng.uniform(theta_min, theta_max, size=(num, 1)))
    far = points(rng.uniform(theta_min, theta_max, size=(num, 1)))
    near = a + 1e-3 * rng.normal(size=a.shape)
    inner = points(theta_min)
    b = np.concatenate([far, near, -a * rng.uniform(0.9, 1.1, size=(num, 1)), points(theta_min)])
    a = np.concatenate([a, a, a, inner])
    norms = np.linalg.norm(b, axis=1)
    keep = (norms >= theta_min) & (norms <= theta_max)
    return a[keep], b[keep]


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_lemma_2_on_the_annulus(size, x64):
    eps, theta_min = 0.5, 0.4
    a, b = pairs(7, size, theta_min, 3.0)
    attack = jax.jit(
        jax.vmap(lambda t: theory.linear_attack(t, jnp.zeros(size), 1.0, p=2, eps=eps))
    )
    moved = np.linalg.norm(attack(a) - attack(b), axis=1)
    distance = np.linalg.norm(a - b, axis=1)
    apart = distance > 1e-9
    ratio = moved[apart] / distance[apart]
    assert ratio.max() <= eps / theta_min * (1 + 1e-12)
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    on_inner = np.isclose(lengths[0], theta_min) & np.isclose(lengths[1], theta_min)
    on_inner &= distance > 1e-9 * theta_min
    equal = moved[on_inner] / distance[on_inner]
    np.testing.assert_allclose(equal, eps / theta_min, rtol=1e-12)
    # The identity behind the corrected proof.
    units = [t / np.linalg.norm(t, axis=1, keepdims=True) for t in (a, b)]
    split = (lengths[0] - lengths[1]) ** 2
    split += lengths[0] * lengths[1] * np.sum((units[0] - units[1]) ** 2, axis=1)
    np.testing.assert_allclose(distance**2, split, atol=1e-13)


def test_the_attack_is_not_lipschitz_on_a_punctured_ball():
    """Erratum E6: bounded and without 0 is not enough."""
    ratios = []
    for length in (1e-1, 1e-3, 1e-5):
        a = np.array([length, 0.0])
        moved = [theory.linear_attack(t, np.zeros(2), 1, p=2, eps=0.5) for t in (a, -a)]
        ratios.append(np.linalg.norm(moved[0] - moved[1]) / (2 * length))
    np.testing.assert_allclose(ratios, [5.0, 500.0, 50000.0])


def test_lemma_3_flips():
    rng = np.random.default_rng(8)
    for flips in range(6):
        a = rng.normal(size=5)
        b = np.abs(rng.normal(size=5)) * np.sign(a)
        b[:flips] *= -1
        moved = [theory.linear_attack(t, np.zeros(5), 1, p=INF, eps=0.5) for t in (a, b)]
        assert np.linalg.norm(moved[0] - moved[1]) == 2 * 0.5 * math.sqrt(flips)


@pytest.mark.parametrize("p", [2, INF])
def test_theorems_bound_every_pair(x64, p):
    rng = np.random.default_rng(9)
    x, y, eps = rng.normal(size=(20, 3)), rng.choice([-1.0, 1.0], size=20), 0.5
    a, b = pairs(10, 3, 0.4, 3.0)
    if p == INF:
        b = np.sign(a) * np.abs(b)
        bound = theory.theorem2_bound(x, eps=eps)
    else:
        bound = theory.theorem1_bound(x, eps=eps, theta_min=0.4, theta_max=3.0)

    def gradient(theta):
        return jnp.mean(theory.linear_gradient(theta, x, y, p=p, eps=eps), axis=0)

    gradient = jax.jit(jax.vmap(gradient))
    change = np.linalg.norm(gradient(a) - gradient(b), axis=1)
    distance = np.linalg.norm(a - b, axis=1)
    assert (change <= bound * distance * (1 + 1e-12)).all()
    assert (change / distance).max() > 0.05 * bound


def test_annulus_smoothness_is_attained_and_never_exceeded(x64):
    sup = theory.annulus_smoothness(1.5, eps=0.5, theta_min=0.4, theta_max=3.0)
    rng = np.random.default_rng(11)
    x = rng.normal(size=(4000, 2))
    x *= 1.5 / np.linalg.norm(x, axis=1, keepdims=True)
    theta = rng.normal(size=(4000, 2))
    theta *= rng.uniform(0.4, 0.6, size=(4000, 1)) / np.linalg.norm(theta, axis=1, keepdims=True)
    spectra = jax.jit(jax.vmap(lambda t, x: theory.linear_spectrum(t, x, 1.0, eps=0.5)))(theta, x)
    assert sup * 0.98 < np.max(spectra) <= sup + 1e-9


@pytest.mark.parametrize("product", [0.5, 1.0, 6.0])
def test_cross_smoothness_is_the_supremum(product):
    """Brute force over x' and theta: B = -y s I + s(m)s(-m) x' theta^T."""
    rng = np.random.default_rng(12)
    angles = np.concatenate([rng.uniform(0, np.pi, 40000), [0, np.pi]])
    m = product * np.cos(angles)
    s = 1 / (1 + np.exp(m))
    c = s * (1 - s)
    x = np.stack([np.full_like(angles, 1.0), 0 * angles], 1)
    theta = product * np.stack([np.cos(angles), np.sin(angles)], 1)
    crossed = c[:, None, None] * x[:, :, None] * theta[:, None, :]
    crossed -= s[:, None, None] * np.eye(2)
    norms = np.linalg.norm(crossed, 2, axis=(1, 2))
    formula = theory.cross_smoothness(product)
    assert norms.max() <= formula + 1e-12
    assert norms.max() >= formula - 1e-4
    line = np.linspace(-product, product, 100001)
    s = 1 / (1 + np.exp(line))
    single = np.abs(s - s * (1 - s) * line).max()
    np.testing.assert_allclose(theory.cross_smoothness(product, dim=1), single, atol=1e-8)


def test_constants_and_radii():
    x = np.array([[3.0, -4.0]])
    for p, expected in [(2, 5.5), (INF, math.hypot(3.5, 4.5)), (1, math.hypot(3, 4.5))]:
        np.testing.assert_allclose(theory.adversarial_radius(x, p=p, eps=0.5), [expected], 1e-14)
    constants = theory.logistic_constants(2.0, 3.0)
    assert constants.smoothness == 1.0
    np.testing.assert_allclose(constants.lipschitz, 2 / (1 + np.exp(-6)), rtol=1e-14)
    assert constants.cross <= 1 + 6 / 4
    huge = theory.cross_smoothness(1e6)  # grows like K/4: no constant on unbounded theta (E33)
    np.testing.assert_allclose(huge, 1e6 / 4, rtol=1e-5)


@pytest.mark.parametrize("p", NORMS)
def test_kinks_jump_by_the_formula(p):
    theta, x, y = np.array([0.9, -0.4, 1.1]), np.array([-1.0, 1.0, 0.3]), -1
    kinks = theory.linear_kinks(theta, x, y, p=p, eps=0.6)
    gradient = lambda t: theory.linear_gradient(t, x, y, p=p, eps=0.6)
    for i in range(3):
        others = np.delete(np.abs(theta), i).max() if p == 1 else 0.0
        wall = theta.copy()
        wall[i] = others * np.sign(theta[i])
        step = 1e-7 * np.eye(3)[i]
        jump = np.linalg.norm(gradient(wall + step) - gradient(wall - step))
        hoelder = 10 * 1e-7 ** theory.linear_regularity(p).exponent if 2 < p < INF else 0
        np.testing.assert_allclose(jump, kinks.jump[i], atol=1e-6 + hoelder)
    # The convex kink at 0 sums to eps times the dual norm of the direction.
    w = np.array([0.3, -0.8, 0.2])
    loss = lambda t: theory.linear_loss(t * w, x, y, p=p, eps=0.6)
    total = (loss(1e-6) + loss(-1e-6) - 2 * loss(0.0)) / 1e-6
    np.testing.assert_allclose(total, kinks.origin * dual_norm(w, p), atol=1e-5)


@pytest.mark.parametrize("p", [3, 6])
def test_hoelder_exponent_above_two(p):
    """Formulas B.8: off the origin the gradient is continuous, of exponent 1/(p - 1)."""
    x = np.array([0.2, -0.5])
    steps = np.array([1e-8, 1e-10, 1e-12])
    gradient = lambda t: theory.linear_gradient(np.array([t, 1.0]), x, 1, p=p, eps=0.5)
    changes = [np.linalg.norm(gradient(h) - gradient(0.0)) for h in steps]
    slope = np.polyfit(np.log(steps), np.log(changes), 1)[0]
    np.testing.assert_allclose(slope, theory.linear_regularity(p).exponent, atol=2e-3)


@pytest.mark.parametrize("p", NORMS)
def test_monotone_because_convex(x64, p):
    rng = np.random.default_rng(13)
    a = rng.normal(size=(2000, 3))
    b = a + rng.choice([1e-3, 1.0, 10.0], size=(2000, 1)) * rng.normal(size=a.shape)
    x = np.array([0.3, -1.0, 0.2])
    gradient = jax.jit(jax.vmap(lambda t: theory.linear_gradient(t, x, 1.0, p=p, eps=0.5)))
    assert np.min(np.sum((gradient(a) - gradient(b)) * (a - b), axis=1)) > -1e-12


def test_what_a_loss_value_and_a_radius_say_about_the_origin():
    rng = np.random.default_rng(14)
    x, y = rng.normal(size=(50, 2)), rng.choice([-1.0, 1.0], size=50)
    x += y[:, None]
    for theta in rng.normal(size=(200, 2)) * rng.choice([0.05, 0.3, 1.0], size=(200, 1)):
        loss = theory.linear_loss(theta, x, y, p=2, eps=0.2).mean()
        radius = theory.theta_min_from_loss(loss, x, p=2, eps=0.2)
        assert np.linalg.norm(theta) >= radius
    threshold = theory.collapse_threshold(x, y, p=2)
    direction = (y[:, None] * x).mean(axis=0)
    for factor, collapsed in [(1.01, True), (0.99, False)]:
        loss = theory.linear_loss(1e-4 * direction, x, y, p=2, eps=factor * threshold).mean()
        assert (loss >= math.log(2)) == collapsed


def test_points_without_a_hessian_say_so(x64):
    x = np.ones(2)
    for theta, p in [([0.0, 0.0], 2), ([0.0, 1.0], INF), ([1.0, -1.0], 1), ([0.0, 1.0], 3)]:
        with pytest.raises(ValueError, match="has no Hessian"):
            theory.linear_hessian(np.array(theta), x, 1, p=p, eps=0.1)
        with pytest.raises(ValueError, match="has no attack Jacobian"):
            theory.linear_attack_jacobian(np.array(theta), 1, p=p, eps=0.1)
        gradient = theory.linear_gradient(np.array(theta), x, 1, p=p, eps=0.1)
        assert np.isfinite(gradient).all()  # a subgradient
    assert theory.local_smoothness_bound(np.zeros(2), x, 1, eps=0.1) == INF


@pytest.mark.parametrize("scale", [1e-200, 1e-8, 1e8, 1e150])
@pytest.mark.parametrize("p", NORMS)
def test_huge_and_tiny_parameters(p, scale):
    theta, x, y = example(15)
    attack = theory.linear_attack(theta * scale, x, y, p=p, eps=0.3)
    np.testing.assert_allclose(attack, theory.linear_attack(theta, x, y, p=p, eps=0.3), 1e-12)
    loss = theory.linear_loss(theta * scale, x, y, p=p, eps=0.3)
    jacobian = theory.linear_attack_jacobian(theta * scale, y, p=p, eps=0.3)
    assert np.isfinite(loss) and np.isfinite(jacobian).all()


def test_the_callers_precision_is_left_alone():
    theta, x = np.ones(2, np.float32), np.ones(2, np.float32)
    loss = theory.linear_loss(theta, x, 1, p=2, eps=0.1)
    assert isinstance(loss, np.ndarray) and loss.dtype == np.float64
    assert jnp.ones(1).dtype == jnp.float32 and not jax.config.jax_enable_x64
    with pytest.raises(ValueError, match=r"linear_loss was called inside jax\.jit.*enable_x64"):
        jax.grad(lambda t: theory.linear_loss(t, x, 1, p=2, eps=0.1))(theta)
