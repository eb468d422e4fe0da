"""F of EntropySGD by quadrature against scipy, differences and closed forms; formulas D, K."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from jaxadv import theory

THETA = np.array([0.37, -0.81])
AXIS = np.linspace(-2, 2, 21)


def toy(norm):
    return lambda theta: theory.toy_loss(theta, norm=norm)


# One object a loss, so that its program is compiled once.
TOY = {norm: toy(norm) for norm in ("l2", "linf")}


def smooth(t):
    return jnp.sum(jnp.cos(2 * t)) + 0.3 * t[0] * t[-1] + 0.5 * jnp.sum(t**2) + 4.0


def absolute(t):
    return -6.0 * jnp.abs(t[0])


def wells(t):
    return 12.0 * jnp.minimum(jnp.abs(t[0] - 1), jnp.abs(t[0] + 1))


@pytest.mark.parametrize(
    ("norm", "gamma", "expected", "tolerance"),
    [
        ("l2", 1.0, -0.23658666502, 1e-8),
        ("l2", 0.1, -2.83705838638, 1e-8),
        ("l2", 0.03, -4.16269043597, 2e-8),
        ("linf", 1.0, -0.129917009549, 1e-12),
        ("linf", 0.1, -2.711621261944, 1e-12),
        ("linf", 0.03, -4.050685388975, 1e-11),
    ],
)
def test_golden_values(norm, gamma, expected, tolerance):
    entropy = theory.local_entropy(TOY[norm], THETA, gamma=gamma)
    np.testing.assert_allclose(-entropy.value, expected, atol=tolerance)
    assert entropy.edge < 1e-15
    assert entropy.error < 2e-7


def test_scipy_agrees():
    """One-dimensional F and its moments with scipy's adaptive rule, split at the kink."""
    gamma, beta, theta = 0.7, 1.3, 0.4
    density = lambda u: np.exp(
        -beta * (np.abs(u) ** 1.0 + 0.2 * u) - beta * gamma / 2 * (theta - u) ** 2
    )
    integrate = lambda f: sum(
        scipy.integrate.quad(f, a, b, epsabs=0, epsrel=1e-13)[0]
        for a, b in ((-30.0, 0.0), (0.0, 30.0))
    )
    total = integrate(density)
    mean = integrate(lambda u: u * density(u)) / total
    variance = integrate(lambda u: (u - mean) ** 2 * density(u)) / total
    entropy = theory.local_entropy(
        lambda t: jnp.abs(t[0]) + 0.2 * t[0], [theta], gamma=gamma, beta=beta
    )
    np.testing.assert_allclose(entropy.value, np.log(total), rtol=1e-12)
    np.testing.assert_allclose(entropy.mean, [mean], rtol=1e-12)
    np.testing.assert_allclose(entropy.covariance, [[variance]], rtol=1e-12)
    np.testing.assert_allclose(
        entropy.hessian, [[beta * gamma - (beta * gamma) ** 2 * variance]], rtol=1e-11
    )


@pytest.mark.slow
def test_scipy_agrees_in_the_plane():
    def integrand(b, a):
        u = -a + b - 0.6 * (abs(a) + abs(b))
        return np.exp(-np.logaddexp(0, -u) - 0.5 * ((THETA[0] - a) ** 2 + (THETA[1] - b) ** 2))

    total = sum(
        scipy.integrate.dblquad(integrand, *a, *b, epsabs=1e-11)[0]
        for a, b in itertools.product(((-9.0, 0.0), (0.0, 9.0)), repeat=2)
    )
    entropy = theory.local_entropy(TOY["linf"], THETA, gamma=1.0)
    np.testing.assert_allclose(entropy.value, np.log(total), atol=1e-9)


@pytest.mark.parametrize("beta", [1.0, 0.7])
def test_derivatives_are_those_of_the_value(beta):
    gamma, h = 1.3, 1e-3
    F = lambda theta: -theory.local_entropy(TOY["linf"], theta, gamma=gamma, beta=beta).value
    entropy = theory.local_entropy(TOY["linf"], THETA, gamma=gamma, beta=beta)
    shifts = h * np.eye(2)
    for i in range(2):
        # Fourth-order differences: truncation 1e-12, rounding 1e-12.
        ends = [F(THETA + k * shifts[i]) for k in (-2, -1, 1, 2)]
        slope = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)
        np.testing.assert_allclose(entropy.gradient[i], slope, rtol=1e-9)
        curvature = (-ends[0] + 16 * ends[1] - 30 * F(THETA) + 16 * ends[2] - ends[3]) / (12 * h**2)
        np.testing.assert_allclose(entropy.hessian[i, i], curvature, rtol=1e-7)
    corner = lambda a, b: F(THETA + a * shifts[0] + b * shifts[1])
    mixed = (corner(1, 1) - corner(1, -1) - corner(-1, 1) + corner(-1, -1)) / (4 * h**2)
    np.testing.assert_allclose(entropy.hessian[0, 1], mixed, rtol=1e-5)


def test_quadratic_has_a_closed_form():
    curvatures, gamma, beta = np.array([0.5, 3.0]), 2.0, 1.7
    entropy = theory.local_entropy(
        lambda t: jnp.sum(jnp.asarray(curvatures) * t**2) / 2, THETA, gamma=gamma, beta=beta
    )
    total = curvatures + gamma
    np.testing.assert_allclose(np.diag(entropy.covariance), 1 / (beta * total), rtol=1e-12)
    np.testing.assert_allclose(entropy.mean, gamma * THETA / total, rtol=1e-12)
    # The Newton matrix at temperature 1/beta (E29): gamma - beta gamma^2 Sigma.
    np.testing.assert_allclose(
        np.diag(entropy.hessian) / beta, gamma * curvatures / total, rtol=1e-11
    )


def test_integration_by_parts():
    """(I1), (I2): what EntropySGD averages is the gradient of -F."""
    gamma = 0.8
    measure = theory.gibbs_measure(smooth, THETA, gamma=gamma)
    entropy = theory.local_entropy(smooth, THETA, gamma=gamma)
    gradient = measure.mean_of(jax.grad(smooth))
    np.testing.assert_allclose(entropy.gradient, gradient, rtol=1e-12)
    outer = measure.mean_of(lambda t: jnp.outer(jax.grad(smooth)(t), jax.grad(smooth)(t)))
    hessian = measure.mean_of(jax.hessian(smooth)) - (outer - np.outer(gradient, gradient))
    np.testing.assert_allclose(entropy.hessian, hessian, atol=1e-12)
    # (I1) also for a kinked loss.
    measure = theory.gibbs_measure(TOY["linf"], THETA, gamma=gamma)
    kinked = measure.mean_of(lambda t: theory.toy_gradient(t, norm="linf"))
    entropy = theory.local_entropy(TOY["linf"], THETA, gamma=gamma)
    np.testing.assert_allclose(entropy.gradient, kinked, rtol=1e-12)


@pytest.mark.parametrize("rule", ["gauss", "uniform"])
def test_grid_agrees_with_single_points(rule):
    axes = [np.array([-1.5, 0.37]), np.array([-0.81, 0.0, 2.0])]
    grid = theory.local_entropy_grid(TOY["linf"], axes, gamma=1.0, rule=rule)
    exact = rule == "gauss"
    assert grid.edge < 1e-15
    assert grid.error < (1e-13 if exact else 1e-3)
    for i, j in itertools.product(range(2), range(3)):
        point = theory.local_entropy(TOY["linf"], [axes[0][i], axes[1][j]], gamma=1.0)
        tolerance = 1e-12 if exact else 5e-5
        for name in ("value", "smoothed", "gradient", "hessian", "mean", "covariance"):
            found, expected = getattr(grid, name)[i, j], getattr(point, name)
            np.testing.assert_allclose(found, expected, atol=tolerance, err_msg=name)


def test_one_dimensional_grid():
    grid = theory.local_entropy_grid(lambda t: jnp.abs(t[0]), [np.array([0.5, 1.0])], gamma=2.0)
    point = theory.local_entropy(lambda t: jnp.abs(t[0]), [1.0], gamma=2.0)
    assert grid.value.shape == (2,)
    assert grid.hessian.shape == (2, 1, 1)
    np.testing.assert_allclose(grid.hessian[1], point.hessian, rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_convex_loss_gives_a_convex_gamma_smooth_entropy(norm, gamma):
    entropy = theory.local_entropy_grid(TOY[norm], [AXIS, AXIS], gamma=gamma)
    eigenvalues = np.linalg.eigvalsh(entropy.hessian)
    low, high = theory.weakly_convex_bounds(gamma=gamma)
    assert low - 1e-12 <= eigenvalues.min()
    assert eigenvalues.max() <= high + 1e-12
    bounds = theory.covariance_bounds(entropy.covariance, gamma=gamma)
    np.testing.assert_allclose(bounds.exact, np.abs(eigenvalues).max(), rtol=1e-12)
    assert bounds.exact <= bounds.spectral <= bounds.paper
    # E15: by how much the paper's constant is too large.
    top = np.linalg.eigvalsh(entropy.covariance).max()
    assert bounds.paper - bounds.spectral >= min(gamma**2 * top, 2 * gamma) * (1 - 1e-12)
    expected = {0.1: (0.068, 0.20), 1.0: (0.393, 2.34), 5.0: (0.84, 12.0)}  # table of D.2, L2
    if norm == "l2":
        np.testing.assert_allclose((bounds.exact, bounds.paper), expected[gamma], rtol=0.02)


def test_weakly_convex_loss_attains_the_bound():
    gamma, w = 2.0, 0.6
    low, high = theory.weakly_convex_bounds(gamma=gamma, weak_convexity=w)
    entropy = theory.local_entropy(lambda t: -w * t[0] ** 2 / 2, [0.3], gamma=gamma, radius=12.0)
    np.testing.assert_allclose(entropy.hessian[0, 0], low, rtol=1e-12)
    assert high == gamma
    assert theory.weakly_convex_bounds(gamma=0.5, weak_convexity=0.6)[0] == -np.inf
    # Temperature: beta L is beta w - weakly convex.
    low, _ = theory.weakly_convex_bounds(gamma=gamma, weak_convexity=w, beta=3.0)
    entropy = theory.local_entropy(
        lambda t: -w * t[0] ** 2 / 2, [0.3], gamma=gamma, beta=3.0, radius=12.0
    )
    np.testing.assert_allclose(entropy.hessian[0, 0], low, rtol=1e-12)


@pytest.mark.parametrize(("slope", "variance"), [(2.0, 5.110495726), (6.0, 37.0)])
def test_lipschitz_loss_nearly_attains_the_bound(slope, variance):
    """L = -G|t|, gamma = 1 (formulas K.9)."""
    entropy = theory.local_entropy(
        lambda t: absolute(t) * slope / 6.0, [0.0], gamma=1.0, radius=slope + 14.0
    )
    bound = theory.lipschitz_variance_bound(gamma=1.0, lipschitz=slope)
    np.testing.assert_allclose(entropy.covariance[0, 0], variance, rtol=1e-7)
    assert entropy.covariance[0, 0] <= bound <= 1.15 * entropy.covariance[0, 0]
    limit = theory.lipschitz_bound(gamma=1.0, lipschitz=slope)
    assert abs(entropy.hessian[0, 0]) <= limit


def test_golden_lipschitz_bounds():
    """Formulas D.2 (e): 36.0 against 36.97 and 36.3; a temperature scales both constants."""
    bound = theory.lipschitz_bound
    np.testing.assert_allclose(bound(gamma=1.0, lipschitz=6.0), 36.97, atol=5e-3)
    np.testing.assert_allclose(bound(gamma=0.3, lipschitz=6.0), 36.30, atol=5e-3)
    assert bound(gamma=2.0, lipschitz=0.1) == 2.0
    np.testing.assert_allclose(
        bound(gamma=0.5, lipschitz=3.0, beta=2.0), bound(gamma=1.0, lipschitz=6.0), rtol=1e-15
    )


def test_two_wells_curve_more_than_the_loss_itself():
    """Formulas D.2 (h): a negative eigenvalue far below -gamma, within every bound."""
    gamma = 5.0
    entropy = theory.local_entropy_grid(
        wells, [np.linspace(-1, 1, 41)], gamma=gamma, breaks=(-1.0, 0.0, 1.0), radius=8.0
    )
    lowest = entropy.hessian.min()
    bounds = theory.covariance_bounds(entropy.covariance, gamma=gamma)
    np.testing.assert_allclose(lowest, -bounds.exact, rtol=1e-12)
    assert bounds.exact <= bounds.spectral * (1 + 1e-12) <= bounds.paper
    assert bounds.paper <= theory.lipschitz_bound(gamma=gamma, lipschitz=12.0)
    assert lowest < -3 * gamma


def test_a_kink_becomes_curvature():
    jump, gamma = 0.6, 100.0
    entropy = theory.local_entropy(lambda t: jump / 2 * jnp.abs(t[0]), [0.0], gamma=gamma)
    predicted = theory.kink_curvature(jump, gamma=gamma)
    np.testing.assert_allclose(entropy.hessian[0, 0], 2.361, atol=5e-4)
    np.testing.assert_allclose(predicted, 2.394, atol=5e-4)


@pytest.mark.parametrize(
    ("norm", "expected", "loss"), [("l2", 1.089149, 1.879893), ("linf", 1.089617, 2.028956)]
)
def test_moreau_envelope_is_the_low_temperature_limit(norm, expected, loss):
    envelope = theory.moreau_envelope(TOY[norm], THETA, gamma=1.0)
    np.testing.assert_allclose(envelope.value, expected, atol=5e-7)
    np.testing.assert_allclose(theory.toy_loss(THETA, norm=norm), loss, atol=5e-7)
    at_prox = float(theory.toy_loss(envelope.prox, norm=norm))
    direct = at_prox + np.sum((THETA - envelope.prox) ** 2) / 2
    np.testing.assert_allclose(direct, envelope.value, rtol=1e-14)
    # Its gradient is gamma (theta - prox).
    h = 1e-5
    slopes = [
        (
            theory.moreau_envelope(TOY[norm], THETA + s, gamma=1.0).value
            - theory.moreau_envelope(TOY[norm], THETA - s, gamma=1.0).value
        )
        / (2 * h)
        for s in h * np.eye(2)
    ]
    np.testing.assert_allclose(envelope.gradient, slopes, atol=1e-8)
    smoothed = [
        theory.local_entropy(TOY[norm], THETA, gamma=1.0, beta=b).smoothed for b in (1, 10, 100)
    ]
    assert smoothed[0] > smoothed[1] > smoothed[2] > envelope.value
    if norm == "l2":
        np.testing.assert_allclose(smoothed, [1.601, 1.181, 1.1026], atol=6e-4)


def test_prox_lands_on_kinks_exactly():
    envelope = theory.moreau_envelope(TOY["linf"], THETA, gamma=1.0)
    assert envelope.prox[0] == 0.0
    envelope = theory.moreau_envelope(lambda t: jnp.abs(t[0]), [0.4], gamma=2.0)
    assert envelope.prox[0] == 0.0
    np.testing.assert_allclose(envelope.gradient, [0.8], rtol=1e-15)


def test_the_smoothed_loss_has_other_minima():
    """E18: argmin of -F is not argmin of L on the data set of Figure 4."""
    points, labels = theory.toy_dataset()
    loss = lambda t: theory.toy_dataset_loss(t, points, labels, norm="l2")
    axis = np.linspace(-2, 2, 81)
    for gamma, expected in ((1.0, 2.0), (10.0, 1.3)):
        entropy = theory.local_entropy_grid(loss, [axis, axis], gamma=gamma, num_nodes=9)
        i, j = np.unravel_index(entropy.smoothed.argmin(), entropy.smoothed.shape)
        np.testing.assert_allclose((axis[i], axis[j]), (expected, 0.05), atol=1e-12)


def test_average_weights():
    """Formulas K.11."""
    for weight, lag, samples in ((0.75, 0.3333, 1.667), (0.25, 2.936, 6.956)):
        found = theory.average_weights(20, weight)
        np.testing.assert_allclose(found.weights.sum(), 1.0, rtol=1e-14)
        np.testing.assert_allclose(
            (found.mean_lag, found.effective_samples), (lag, samples), rtol=2e-4
        )
    last = theory.average_weights(7, 1.0)
    assert last.weights.tolist() == [0.0] * 7 + [1.0]


def test_langevin_chain_at_equilibrium_and_at_its_start(x64):
    """Quadratic L: (I1), temperature and the Hessian of the local entropy from the chain."""
    lam, target, gamma, step, temperature = 3.0, 1.5, 1.0, 0.05, 0.3
    grad = lambda t: lam * (t - target)
    anchor = jnp.full(500, -0.5)
    options = {"gamma": gamma, "step_size": step, "noise_std": np.sqrt(2 * step * temperature)}
    positions, gradients = theory.langevin_trace(
        jax.random.key(0), anchor, grad, num_steps=600, burn_in=100, **options
    )
    found = theory.langevin_diagnostics(anchor, positions, gradients, **options)
    assert abs(found.pull_over_gradient - 1) < 0.02
    assert found.misalignment < 0.2
    variance = float(jnp.var(positions))
    measured = theory.effective_temperature(variance, curvature=lam + gamma, step_size=step)
    np.testing.assert_allclose(measured, temperature, rtol=0.03)
    # 600 x 50 nearly independent draws of one coordinate: the covariance is a number.
    draws = theory.langevin_diagnostics(
        anchor[:1],
        positions[:, ::10].reshape(-1, 1),
        gradients[:, ::10].reshape(-1, 1),
        beta=1 / temperature,
        **options,
    )
    np.testing.assert_allclose(draws.covariance, [jnp.var(positions[:, ::10])], rtol=1e-10)
    exact = gamma - gamma**2 / (lam + gamma) / (1 - step * (lam + gamma) / 2)
    np.testing.assert_allclose(draws.hessian, [exact], rtol=0.03)
    assert not draws.hessian_indefinite
    options["noise_std"] = 0.0
    positions, gradients = theory.langevin_trace(None, anchor, grad, num_steps=2, **options)
    start = theory.langevin_diagnostics(anchor, positions, gradients, **options)
    # Both vectors point the same way, and the pull is still far too small.
    assert 0 < start.pull_over_gradient < 0.3
    assert start.drift_over_noise == np.inf


def test_langevin_covariance_by_the_gram_matrix():
    rng = np.random.default_rng(0)
    anchor = {"w": rng.normal(size=(2, 3)), "b": rng.normal(size=3)}
    positions = {"w": rng.normal(size=(5, 2, 3)), "b": rng.normal(size=(5, 3))}
    found = theory.langevin_diagnostics(
        anchor, positions, positions, gamma=2.0, step_size=0.1, noise_std=0.1, new_weight=0.4
    )
    weights = theory.average_weights(5, 0.4).weights
    rows = np.concatenate([positions["b"], positions["w"].reshape(5, -1)], axis=1)
    start = np.concatenate([anchor["b"], anchor["w"].ravel()])
    rows = np.concatenate([start[None], rows])
    covariance = np.cov(rows.T, aweights=weights, ddof=0)
    expected = np.linalg.eigvalsh(covariance)[::-1][:6]
    np.testing.assert_allclose(found.covariance, expected, atol=1e-12)
    np.testing.assert_allclose(found.pull, 2 * np.linalg.norm(start - weights @ rows), rtol=1e-12)
    assert found.hessian_indefinite == bool((2 - 4 * expected <= 0).any())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.local_entropy(absolute, [0.0], gamma=-1.0), "gamma=-1.0"),
        (lambda: theory.local_entropy(absolute, [0.0], gamma=1.0, beta=0.0), "beta=0.0"),
        (lambda: theory.local_entropy(absolute, [0.0, 0.0, 0.0], gamma=1.0), r"shape \(3,\)"),
        (lambda: theory.local_entropy(absolute, [1.0], gamma=1.0), "lower_bound=0.0"),
        (lambda: theory.moreau_envelope(absolute, [1.0], gamma=1.0), "lower_bound=0.0"),
        (
            lambda: theory.local_entropy(lambda t: 1 / t[0], [0.0], gamma=1.0),
            "not finite at theta",
        ),
        (lambda: theory.local_entropy_grid(absolute, [], gamma=1.0), "axes has 0"),
        (lambda: theory.local_entropy_grid(absolute, [AXIS], gamma=1.0, rule="hermite"), "rule="),
        (
            lambda: theory.local_entropy_grid(
                lambda t: 50 * t[0] ** 2, [np.array([0.0, 10.0])], gamma=100.0, radius=1.0
            ),
            "underflow",
        ),
        (lambda: theory.weakly_convex_bounds(gamma=1.0, weak_convexity=-0.1), "weak_convexity"),
        (lambda: theory.average_weights(3, 0.0), "new_weight=0.0"),
        (
            lambda: theory.effective_temperature(1.0, curvature=30.0, step_size=0.1),
            "step_size=0.1",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_misuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_box_that_is_too_small_says_so():
    entropy = theory.local_entropy(absolute, [0.0], gamma=1.0, radius=8.5)
    assert entropy.edge > 1e-5
