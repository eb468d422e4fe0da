"""Golden numbers (formulas K) that the linear model and the optimal attacks reproduce."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxadv import theory

POINT, EPS = np.array([-1.0, 1.0]), 0.6
NORMS = {"clean": (2, 0.0), "l2": (2, EPS), "linf": (np.inf, EPS)}

LINEAR = {  # formulas K.2
    (-2.0, 2.0): (0.018149927917810, 0.095277582195082, 0.183900740888339),
    (2.0, -2.0): (4.018149927917809, 5.700406486189009, 6.401660178414046),
    (0.0, 0.0): (math.log(2),) * 3,
}
SWISH = {
    (-2.0, 2.0): (0.116213872105457, 0.234401785663681),
    (2.0, -2.0): (0.803257655729558, 0.836535127451276),
}


@pytest.mark.parametrize("theta", LINEAR)
def test_linear_toy(theta):
    for (p, eps), expected in zip(NORMS.values(), LINEAR[theta], strict=True):
        loss = theory.linear_loss(np.array(theta), POINT, 1, p=p, eps=eps)
        np.testing.assert_allclose(loss, expected, rtol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_swish_toy_by_the_optimal_attack(x64, norm):
    """The search knows nothing of the closed form."""

    def loss(x, theta):
        u = theta @ x
        return jnp.logaddexp(0.0, -u * jax.nn.sigmoid(u))

    find = jax.jit(
        lambda theta: theory.optimal_attack(
            jax.random.key(0), loss, theta, POINT, norm=norm, eps=EPS, num_restarts=1
        )
    )
    for theta, expected in SWISH.items():
        attack = find(jnp.array(theta))
        np.testing.assert_allclose(attack.value, expected[norm == "linf"], rtol=1e-12)
        assert attack.kind == ("sphere" if norm == "l2" else "vertex")
    # Erratum E9: on the plateau the maximisers are a segment, so none of them is regular.
    plateau = find(jnp.array([1.0, -1.0]))
    np.testing.assert_allclose(plateau.value, 0.842041108710515, rtol=1e-13)
    assert plateau.kind == "degenerate"


def test_cross_smoothness_of_the_logistic_loss():  # formulas K.4
    golden = {1: 0.9276705119, 6: 1.6883455534, 15: 3.8181413990, 120: 30.0083352205}
    for product, expected in golden.items():
        np.testing.assert_allclose(theory.cross_smoothness(product), expected, atol=2e-10)


def test_annulus():  # formulas K.5
    sup = theory.annulus_smoothness(1.5, eps=0.5, theta_min=0.4, theta_max=3.0)
    np.testing.assert_allclose(sup, 1.335149, atol=5e-7)


def test_kink_sums_and_jump():  # formulas K.6
    w = np.array([0.3, -0.8])
    for p, expected in [(1, 0.48), (2, 0.5126402247), (np.inf, 0.66)]:
        kinks = theory.linear_kinks(np.zeros(2), POINT, 1, p=p, eps=EPS)
        q = {1: np.inf, 2: 2, np.inf: 1}[p]
        np.testing.assert_allclose(kinks.origin * np.linalg.norm(w, q), expected, atol=1e-10)
    kinks = theory.linear_kinks(np.array([0.0, 1.3]), POINT, 1, p=np.inf, eps=EPS)
    np.testing.assert_allclose(kinks.jump[0], 0.4474226804, atol=1e-10)


@pytest.mark.parametrize(
    ("p", "argmin", "value", "threshold"),
    [
        (2, (1.0847279, 0.0456441), 0.6465367818, 0.7835604292),
        (np.inf, (1.0915989, 0.0), 0.6470117217, 0.7794972814),
    ],
)
def test_seeded_data_set(p, argmin, value, threshold):  # formulas K.7
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 2))
    y = np.sign(x[:, 0])
    np.testing.assert_allclose(theory.collapse_threshold(x, y, p=p), threshold, atol=1e-10)
    q = 2 if p == 2 else 1

    def mean_loss(theta):
        return np.logaddexp(0, -(y * (x @ theta) - EPS * np.linalg.norm(theta, q))).mean()

    found = scipy.optimize.minimize(
        mean_loss, (1.0, 0.1), method="Nelder-Mead", options=dict(xatol=1e-10, fatol=1e-16)
    )
    np.testing.assert_allclose(found.x, argmin, atol=2e-6)
    for theta in (found.x, np.array(argmin)):
        loss = theory.linear_loss(theta, x, y, p=p, eps=EPS).mean()
        np.testing.assert_allclose(loss, value, atol=1e-9)
    # Stationary: the gradient of the library vanishes, or its kink holds theta_2 at 0.
    gradient = theory.linear_gradient(found.x, x, y, p=p, eps=EPS).mean(axis=0)
    assert abs(gradient[0]) < 1e-6
    if p == 2:
        assert abs(gradient[1]) < 1e-6


def test_proposition_1_needs_the_dimension_for_linf():
    """Erratum E4: 2 eps C_thx is exceeded, 2 eps sqrt(d) C_thx is attained."""
    size, eps = 400, 0.1
    theta = np.full(size, 1e-9)
    gradients = [
        theory.linear_gradient(t, np.zeros(size), 1, p=np.inf, eps=eps) for t in (theta, -theta)
    ]
    difference = np.linalg.norm(gradients[0] - gradients[1])
    np.testing.assert_allclose(difference, 2.0, atol=1e-6)
    cross = theory.cross_smoothness(eps * math.sqrt(size) * np.linalg.norm(theta))
    assert difference > 2 * eps * cross
    assert difference <= 2 * eps * math.sqrt(size) * cross + 1e-6
