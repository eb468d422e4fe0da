"""Balls at their limits: NaN gradients, one radius an image, keys of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import balls

NORMS = ["linf", "l2", "l1"]
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


def gradients_and_points(dtype=jnp.float32, batch=4):
    gradients = jax.random.normal(jax.random.key(0), (batch, 3, 3, 2), dtype)
    return gradients, jax.random.uniform(jax.random.key(1), gradients.shape, dtype, 0.3, 0.7)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_entries_that_are_not_finite_count_as_zero(norm, dtype, bad):
    gradients, points = gradients_and_points(dtype)
    spoilt = gradients.at[0, 0, 0, 0].set(bad).at[1].set(bad)
    zeroed = gradients.at[0, 0, 0, 0].set(0).at[1].set(0)
    step = balls.ascent_step(spoilt, points, norm=norm, step_size=0.125)
    assert step.dtype == dtype
    np.testing.assert_array_equal(
        step, balls.ascent_step(zeroed, points, norm=norm, step_size=0.125)
    )
    assert not step[1].any() and step[0].any() and step[2].any()


@pytest.mark.parametrize("power", [-110, -40, 0, 40, 100, 125])
@pytest.mark.parametrize("norm", NORMS)
def test_steps_do_not_see_the_size_of_the_gradient(norm, power):
    gradients, points = gradients_and_points()
    unit = balls.ascent_step(gradients, points, norm=norm, step_size=0.1)
    scaled = jnp.ldexp(gradients, power)  # exact: not a bit of the step may change
    step = balls.ascent_step(scaled, points, norm=norm, step_size=0.1)
    np.testing.assert_array_equal(step, unit)
    np.testing.assert_allclose(balls.norm_of(step, norm), 0.1, 1e-6)


def test_l2_norms_of_large_float16_images_do_not_overflow():
    deltas = jnp.ones((1, 300, 300, 1), jnp.float16)
    assert balls.norm_of(deltas, "l2").tolist() == [300.0]
    step = balls.ascent_step(deltas, deltas / 2, norm="l2", step_size=3.0)
    np.testing.assert_allclose(step, 0.01, rtol=1e-3)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_one_radius_an_image_is_each_image_with_its_own(norm, exact):
    gradients, images = gradients_and_points()
    points = images + gradients
    radii = jnp.array([0.0, 0.05, 0.2, 0.9]) * {"linf": 1, "l2": 2, "l1": 5}[norm]
    key = jax.random.key(2)
    project = lambda p, x, eps: balls.project(p, x, norm=norm, eps=eps, exact=exact)
    together = {
        "project": project(points, images, radii),
        "sample": balls.sample(key, images, norm=norm, eps=radii),
        "step": balls.ascent_step(gradients, images, norm=norm, step_size=radii),
    }
    for i, radius in enumerate(radii.tolist()):
        own = {
            "project": project(points, images, radius),
            "sample": balls.sample(key, images, norm=norm, eps=radius),
            "step": balls.ascent_step(gradients, images, norm=norm, step_size=radius),
        }
        for name, expected in own.items():
            np.testing.assert_allclose(
                together[name][i], expected[i], rtol=1e-6, atol=1e-6, err_msg=name
            )


def test_radii_as_lists_numpy_and_tracers_agree():
    gradients, images = gradients_and_points()
    project = lambda eps: balls.project(images + gradients, images, norm="l2", eps=eps)
    expected = project(jnp.array([0.1, 0.2, 0.3, 0.4]))
    for radii in ([0.1, 0.2, 0.3, 0.4], np.array([0.1, 0.2, 0.3, 0.4])):
        np.testing.assert_array_equal(project(radii), expected)
        assert project(radii).dtype == images.dtype
    np.testing.assert_allclose(jax.jit(project)(jnp.asarray(radii)), expected, rtol=1e-6)


@pytest.mark.parametrize("eps", [[0.1], [0.1] * 5, np.full((4, 1, 1, 1), 0.1), "8/255", None])
def test_other_radii_are_refused_by_name(eps):
    _, images = gradients_and_points()
    with pytest.raises(ValueError, match=r"^eps.*pass one"):
        balls.project(images, images, norm="linf", eps=eps)
    with pytest.raises(ValueError, match=r"^step_size"):
        balls.ascent_step(images, images, norm="linf", step_size=eps)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("norm", NORMS)
def test_samples_do_not_depend_on_the_batch_whatever_the_generator(norm, impl):
    images = jnp.full((12, 3, 3, 1), 0.5)
    key = jax.random.key(3, impl=impl)
    whole = balls.sample(key, images, norm=norm, eps=0.3)
    for start, stop in ((0, 5), (5, 12)):
        part = balls.sample(key, images[start:stop], norm=norm, eps=0.3, indices=range(start, stop))
        np.testing.assert_allclose(part, whole[start:stop], rtol=3e-7)


def test_seeds_are_keys_and_other_things_are_refused():
    images = jnp.full((2, 3, 3, 1), 0.5)
    drawn = balls.sample(5, images, norm="l2", eps=0.3)
    np.testing.assert_array_equal(
        drawn, balls.sample(jax.random.key(5), images, norm="l2", eps=0.3)
    )
    with pytest.raises(ValueError, match=r"key=None is not a PRNG key; pass key=jax.random.key"):
        balls.sample(None, images, norm="l2", eps=0.3)  # pyright: ignore
    with pytest.raises(ValueError, match=r"indices has shape \(3,\); expected \(2,\)"):
        balls.sample(5, images, norm="l2", eps=0.3, indices=[0, 1, 2])
