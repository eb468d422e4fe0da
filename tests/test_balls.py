"""Projections against independent solvers, feasibility, random starts and steepest ascent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxadv import balls

NORMS = ["linf", "l2", "l1"]
RADII = {"linf": 0.1, "l2": 0.6, "l1": 1.5}


def problem(seed, batch=32, shape=(3, 3, 2), reach=1.5):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(batch, *shape))
    images[0], images[1] = 0.0, 1.0  # corners of the box
    points = images + reach * rng.normal(size=images.shape)
    points[2] = images[2]
    return jnp.array(points), jnp.array(images)


def numpy_norms(deltas, norm):
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    return np.linalg.norm(np.asarray(deltas).reshape(len(deltas), -1), order, axis=1)


def optimal_projection(point, image, norm, eps):
    """Nearest point of ball and box by a general solver: no formula of the library in it."""
    point, image = np.ravel(point), np.ravel(image)
    size = point.size
    # Variables: positive and negative part of the perturbation, so that L1 is linear.
    join = lambda parts: parts[:size] - parts[size:]
    distance = lambda parts: 0.5 * np.sum((image + join(parts) - point) ** 2)

    def gradient(parts):
        residual = image + join(parts) - point
        return np.concatenate([residual, -residual])

    limit = {
        "l1": lambda parts: eps - parts.sum(),
        "l2": lambda parts: eps**2 - np.sum(join(parts) ** 2),
    }[norm]
    start = np.concatenate([np.zeros(size), np.zeros(size)]) + 1e-3
    result = scipy.optimize.minimize(
        distance,
        start,
        jac=gradient,
        method="SLSQP",
        bounds=[(0, 1 - x) for x in image] + [(0, x) for x in image],
        constraints=[{"type": "ineq", "fun": limit}],
        options={"maxiter": 500, "ftol": 1e-14},
    )
    return image + join(result.x)


@pytest.mark.parametrize("norm", NORMS)
def test_norm_of_matches_numpy_and_survives_extremes(x64, norm):
    points, images = problem(0)
    np.testing.assert_allclose(
        balls.norm_of(points - images, norm), numpy_norms(points - images, norm), 1e-13
    )
    huge = jnp.array([[3e200, 4e200], [3e-200, 4e-200], [0.0, 0.0]])
    if norm == "l2":
        np.testing.assert_allclose(balls.norm_of(huge, norm), [5e200, 5e-200, 0.0], 1e-14)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_projection_lies_in_ball_and_box_and_keeps_inner_points(x64, norm, exact):
    eps = RADII[norm]
    points, images = problem(1)
    projected = balls.project(points, images, norm=norm, eps=eps, exact=exact)
    assert (numpy_norms(projected - images, norm) <= eps + 1e-12).all()
    assert projected.min() >= 0 and projected.max() <= 1
    again = balls.project(projected, images, norm=norm, eps=eps, exact=exact)
    np.testing.assert_allclose(again, projected, atol=1e-12)
    np.testing.assert_array_equal(projected[2], images[2])


@pytest.mark.parametrize("norm", NORMS)
def test_projection_with_no_radius_is_the_image(norm):
    points, images = (jnp.asarray(a, jnp.float32) for a in problem(2))
    for exact in (False, True):
        projected = balls.project(points, images, norm=norm, eps=0.0, exact=exact)
        np.testing.assert_allclose(projected, images, atol=1e-7)


def test_linf_projection_is_the_coordinatewise_clip(x64):
    points, images = problem(3)
    expected = np.clip(points, np.maximum(images - 0.1, 0), np.minimum(images + 0.1, 1))
    np.testing.assert_array_equal(balls.project(points, images, norm="linf", eps=0.1), expected)


@pytest.mark.parametrize("eps", [0.05, 0.6, 2.0, 100.0])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_exact_projection_is_optimal(x64, norm, eps):
    """No feasible point is nearer: the variational inequality <v - p, z - p> <= 0."""
    points, images = problem(4, batch=64)
    projected = np.asarray(balls.project(points, images, norm=norm, eps=eps, exact=True))
    others, _ = problem(5, batch=64, reach=0.5)
    feasible = np.asarray(balls.project(others, images, norm=norm, eps=eps))
    products = (np.asarray(points) - projected) * (feasible - projected)
    assert (products.reshape(64, -1).sum(1) <= 1e-9).all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_exact_projection_agrees_with_a_general_solver(x64, norm):
    points, images = problem(6, batch=4, shape=(2, 2, 1))
    eps = {"l2": 0.4, "l1": 0.7}[norm]
    projected = balls.project(points, images, norm=norm, eps=eps, exact=True)
    for got, point, image in zip(projected, points, images, strict=True):
        expected = optimal_projection(point, image, norm, eps)
        np.testing.assert_allclose(np.ravel(got), expected, atol=2e-5)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_cheap_projection_without_box_contact_is_exact(x64, norm):
    rng = np.random.default_rng(7)
    images = jnp.full((16, 12), 0.5)
    points = images + jnp.array(rng.normal(size=(16, 12)))
    cheap = balls.project(points, images, norm=norm, eps=0.3)
    exact = balls.project(points, images, norm=norm, eps=0.3, exact=True)
    np.testing.assert_allclose(cheap, exact, atol=1e-12)
    np.testing.assert_allclose(numpy_norms(cheap - images, norm), 0.3, atol=1e-12)


def test_cheap_l2_projection_is_not_exact_at_the_box(x64):
    points, images = problem(8)
    cheap = balls.project(points, images, norm="l2", eps=0.6)
    exact = balls.project(points, images, norm="l2", eps=0.6, exact=True)
    further = numpy_norms(points - cheap, "l2") - numpy_norms(points - exact, "l2")
    assert further.max() > 1e-3 and further.min() > -1e-12


@pytest.mark.parametrize("norm", NORMS)
def test_projections_are_nonexpansive(x64, norm):
    """Erratum E13: the paper says that the projection of PGD is not continuous."""
    points, images = problem(9)
    others = points + 1e-3 * jax.random.normal(jax.random.key(0), points.shape)
    project = lambda p: balls.project(p, images, norm=norm, eps=RADII[norm], exact=True)
    moved = numpy_norms(project(points) - project(others), "l2")
    assert (moved <= numpy_norms(points - others, "l2") + 1e-12).all()


@pytest.mark.parametrize("norm", NORMS)
def test_samples_are_feasible_spread_and_tied_to_their_index(norm):
    images = jnp.full((400, 4, 4, 1), 0.5)
    eps = 0.3
    points = balls.sample(jax.random.key(0), images, norm=norm, eps=eps)
    norms = numpy_norms(points - images, norm)
    assert (norms <= eps + 1e-6).all()
    if norm == "linf":
        assert norms.min() > 0.2  # the largest of 16 uniform coordinates
        np.testing.assert_allclose(np.mean(points - images), 0, atol=0.01)
        np.testing.assert_allclose(np.std(points - images), eps / np.sqrt(3), rtol=0.03)
    else:  # the radius is uniform in [0, eps], not the volume
        np.testing.assert_allclose(
            np.quantile(norms, [0.25, 0.5, 0.75]) / eps, [0.25, 0.5, 0.75], atol=0.08
        )
    picked = jnp.array([7, 300, 2])
    some = balls.sample(jax.random.key(0), images[picked], norm=norm, eps=eps, indices=picked)
    # Not bitwise: XLA computes the last entries of an array by other instructions.
    np.testing.assert_allclose(some, points[picked], rtol=3e-7)
    assert len(np.unique(np.asarray(points).reshape(400, -1), axis=0)) == 400


@pytest.mark.parametrize("norm", NORMS)
def test_samples_stay_in_the_box(norm):
    images = jnp.concatenate([jnp.zeros((20, 2, 2, 1)), jnp.ones((20, 2, 2, 1))])
    points = balls.sample(jax.random.key(1), images, norm=norm, eps=1.0)
    assert points.min() >= 0 and points.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_ascent_step_beats_every_other_step_of_its_length(x64, norm):
    gradients = jax.random.normal(jax.random.key(2), (8, 3, 3, 1))
    points = jnp.full(gradients.shape, 0.5)
    step = balls.ascent_step(gradients, points, norm=norm, step_size=0.1)
    np.testing.assert_allclose(numpy_norms(step, norm), 0.1, 1e-8)
    gain = np.sum(np.asarray(step * gradients).reshape(8, -1), 1)
    for seed in range(200):
        other = np.random.default_rng(seed).normal(size=gradients.shape)
        if seed % 2:  # corners of the ball too
            other = np.sign(other) if norm == "linf" else other * (np.abs(other) > 1.5)
        lengths = numpy_norms(other, norm).reshape(-1, 1, 1, 1)
        other = 0.1 * other / np.maximum(lengths, 1e-9)
        assert (np.sum((other * np.asarray(gradients)).reshape(8, -1), 1) <= gain + 1e-9).all()


@pytest.mark.parametrize("norm", NORMS)
def test_ascent_step_without_gradient_is_zero(norm):
    step = balls.ascent_step(jnp.zeros((2, 4)), jnp.full((2, 4), 0.5), norm=norm, step_size=0.1)
    np.testing.assert_array_equal(step, 0)


def test_l1_ascent_skips_coordinates_that_the_box_holds():
    gradients, points = jnp.array([[5.0, -4.0, 1.0]]), jnp.array([[1.0, 0.0, 0.5]])
    step = balls.ascent_step(gradients, points, norm="l1", step_size=0.5)
    np.testing.assert_array_equal(step, [[0.0, 0.0, 0.5]])


def test_unknown_norm_names_the_nearest():
    with pytest.raises(ValueError, match=r"norm='linff'.*did you mean 'linf'"):
        balls.project(jnp.zeros((1, 2)), jnp.zeros((1, 2)), norm="linff", eps=0.1)
