"""One call of every public function of the theory, for the strict modes of JAX."""

import jax.numpy as jnp
import numpy as np

from jaxadv import theory
from tests.helpers.strict_cases import (
    IMAGES,
    LABELS,
    ONES,
    ORIGIN,
    PAIR,
    PARAMS,
    POINT,
    THETA,
    TWO,
    WEIGHTS,
    ZERO,
    X,
    apply_fn,
    bilinear,
    bowl,
    concave,
    new_key,
)

_linear = {"p": 2, "eps": 0.5}
_toy = {"norm": "linf"}


def _matrix_free():
    found = theory.matrix_free_jacobian(concave, TWO, ZERO, PAIR[1], norm="l2", eps=1.0)
    products = [found.mixed, found.jacobian, found.jacobian_transpose, found.loss_hessian]
    numbers = [found.norm, found.mixed_norm, found.sharp_bound, found.paper_bound, found.smoothness]
    return [product(TWO) for product in products], [number() for number in numbers]


THEORY = {
    "attack_jacobian": lambda: theory.attack_jacobian(concave, TWO, ZERO, norm="l2", eps=1.0),
    "adversarial_hessian": lambda: theory.adversarial_hessian(
        concave, TWO, ZERO, norm="l2", eps=1.0
    ),
    "matrix_free_jacobian": _matrix_free,
    "optimal_attack": lambda: theory.optimal_attack(
        new_key(), concave, TWO, ZERO, norm="l2", eps=1.0
    ),
    "polish_attack": lambda: theory.polish_attack(
        concave, POINT, ZERO, POINT, norm="linf", eps=1.0
    ),
    "climb_attack": lambda: theory.climb_attack(concave, TWO, ZERO, PAIR[0], norm="l2", eps=1.0),
    "differentiable_attack": lambda: theory.differentiable_attack(concave, norm="l2", eps=1.0)(
        np.array([0.0, 2.0]), ORIGIN
    ),
    "adversarial_loss": lambda: theory.adversarial_loss(concave, norm="l2", eps=1.0)(
        np.array([0.0, 2.0]), ORIGIN
    ),
    "curvature_budget": lambda: theory.curvature_budget(
        new_key(), bilinear, THETA, THETA / 5, lambda u: u / 5
    ),
    "monotonicity_audit": lambda: theory.monotonicity_audit(
        lambda theta: -theta, [ORIGIN, ONES], weak_convexity=0.5
    ),
    "segment_weak_convexity": lambda: theory.segment_weak_convexity(
        lambda x, theta: x @ jnp.cos(theta), np.zeros(1), np.ones(1), [np.ones(1), np.ones(1)]
    ),
    "smoothness_along": lambda: theory.smoothness_along(
        lambda x, theta: 2 * x,
        lambda theta: -np.sign(theta),
        [np.array([1.0, 1.0]), np.array([1.0, -1.0])],
        bounds=(-ONES, ONES),
    ),
    "extreme_eigenvalues": lambda: theory.extreme_eigenvalues(
        new_key(), lambda v: v * v.dtype.type(2), TWO
    ),
    "hutchinson_trace": lambda: theory.hutchinson_trace(
        new_key(), lambda v: v * v.dtype.type(2), TWO
    ),
    "gibbs_measure": lambda: theory.gibbs_measure(
        lambda t: (t[0] - 3.0) ** 2 / 2, [1.0], gamma=1.0
    ),
    "local_entropy": lambda: theory.local_entropy(lambda t: t @ t / 2, [1.0, -2.0], gamma=3.0),
    "local_entropy_grid": lambda: theory.local_entropy_grid(
        lambda t: t @ t / 2, [np.linspace(-1, 1, 5)] * 2, gamma=1.0
    ),
    "covariance_bounds": lambda: theory.covariance_bounds(np.eye(2) / 2, gamma=1.0),
    "weakly_convex_bounds": lambda: theory.weakly_convex_bounds(gamma=2.0, weak_convexity=1.0),
    "lipschitz_variance_bound": lambda: theory.lipschitz_variance_bound(gamma=1.0, lipschitz=2.0),
    "lipschitz_bound": lambda: theory.lipschitz_bound(gamma=1.0, lipschitz=6.0),
    "kink_curvature": lambda: theory.kink_curvature(0.6, gamma=100.0),
    "slope_exponent": lambda: theory.slope_exponent(np.sign, np.zeros(1), np.ones(1)),
    "find_kinks": lambda: theory.find_kinks(
        np.sign, np.array([-0.3, 1.0]), np.array([1.0, 0.0]), length=1.0, signature_fn=np.sign
    ),
    "filter_normalized_direction": lambda: theory.filter_normalized_direction(new_key(), PARAMS),
    "loss_line": lambda: theory.loss_line(bowl, ZERO, TWO, [-1, 0, 2]),
    "loss_plane": lambda: theory.loss_plane(bowl, ZERO, PAIR, [0, 1], [0, 1, 2]),
    "adversarial_evaluation": lambda: theory.adversarial_evaluation(
        new_key(),
        lambda w, x: apply_fn(w, {}, x, False)[0],
        IMAGES,
        LABELS,
        eps=0.25,
        step_size=0.25,
    )(WEIGHTS),
    "average_weights": lambda: theory.average_weights(20, 0.25),
    "effective_temperature": lambda: theory.effective_temperature(
        0.5, curvature=2.0, step_size=0.0
    ),
    "langevin_diagnostics": lambda: theory.langevin_diagnostics(
        np.zeros(1),
        np.linspace(0, 2, 40).reshape(40, 1),
        np.linspace(-2, 0, 40).reshape(40, 1),
        gamma=1.0,
        step_size=0.1,
        noise_std=0.45,
    ),
    "langevin_trace": lambda: theory.langevin_trace(
        new_key(), TWO, lambda t: t - 1, num_steps=5, step_size=0.1, gamma=1.0, noise_std=0.1
    ),
    "linear_attack": lambda: theory.linear_attack(THETA, X, 1, **_linear),
    "linear_attack_jacobian": lambda: theory.linear_attack_jacobian(THETA, 1, **_linear),
    "linear_gradient": lambda: theory.linear_gradient(THETA, X, 1, **_linear),
    "linear_hessian": lambda: theory.linear_hessian(THETA, X, 1, **_linear),
    "linear_loss": lambda: theory.linear_loss(THETA, X, 1, **_linear),
    "linear_margin": lambda: theory.linear_margin(THETA, X, 1, **_linear),
    "linear_spectrum": lambda: theory.linear_spectrum(THETA, X, -1, eps=0.1),
    "adversarial_radius": lambda: theory.adversarial_radius(THETA, **_linear),
    "annulus_smoothness": lambda: theory.annulus_smoothness(
        1.5, eps=0.5, theta_min=0.4, theta_max=3.0
    ),
    "collapse_threshold": lambda: theory.collapse_threshold(THETA[None], np.array([1.0]), p=2),
    "cross_smoothness": lambda: theory.cross_smoothness(1.0),
    "local_smoothness_bound": lambda: theory.local_smoothness_bound(THETA, X, 1, eps=1.0),
    "logistic_constants": lambda: theory.logistic_constants(2.0, 0.0),
    "theorem1_bound": lambda: theory.theorem1_bound(
        np.ones((3, 2)), eps=0.5, theta_min=0.4, theta_max=3.0
    ),
    "theorem2_bound": lambda: theory.theorem2_bound(np.array([[1.0, 0.0]]), eps=1.0),
    "theta_min_from_loss": lambda: theory.theta_min_from_loss(0.5, np.ones((4, 2)), p=2, eps=0.6),
    "linear_kinks": lambda: theory.linear_kinks(
        np.array([0.0, 1.3]), np.array([-1.0, 1.0]), 1, p=np.inf, eps=0.6
    ),
    "linear_regularity": lambda: theory.linear_regularity(3),
    "moreau_envelope": lambda: theory.moreau_envelope(lambda t: jnp.abs(t[0]), [3.0], gamma=2.0),
    "sharpness": lambda: theory.sharpness(new_key(), bowl, TWO, radius=0.1),
    "sharpness_order": lambda: theory.sharpness_order(new_key(), bowl, TWO, radius=0.1),
    "sharpness_quadratic": lambda: theory.sharpness_quadratic(new_key(), bowl, TWO, radius=0.1),
    "active_set_stability": lambda: theory.active_set_stability(
        bilinear,
        np.array([0.5, -0.1]),
        np.array([1.0, -1.0]),
        low=-ONES,
        high=ONES,
        step=np.array([0.0, 0.2]),
    ),
    "toy_attack": lambda: theory.toy_attack(TWO, norm="l2", eps=1.0),
    "toy_gradient": lambda: theory.toy_gradient(POINT),
    "toy_kink_jump": lambda: theory.toy_kink_jump(np.array([0.0, 1.3])),
    "toy_loss": lambda: theory.toy_loss(TWO, **_toy),
    "toy_margin_loss": lambda: theory.toy_margin_loss(0.0),
    "toy_pgd": lambda: theory.toy_pgd(POINT, norm="linf", model="linear"),
    "toy_weak_convexity": lambda: theory.toy_weak_convexity(**_toy),
    "toy_dataset": lambda: theory.toy_dataset(),
    "toy_dataset_loss": lambda: theory.toy_dataset_loss(TWO, *theory.toy_dataset(), **_toy),
}
