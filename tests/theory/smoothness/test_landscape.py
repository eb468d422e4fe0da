"""Filter normalisation, landscapes with regenerated attacks, sharpness; formulas H."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, losses, theory

KEY = jax.random.key(0)
PARAMS = {
    "conv": {"kernel": jax.random.normal(jax.random.key(1), (3, 3, 2, 4)), "bias": jnp.ones(4)},
    "dense": {"kernel": jnp.arange(6.0).reshape(2, 3), "scale": jnp.float32(2.0)},
}


@pytest.mark.parametrize("ignore_vectors", [True, False])
def test_filters_have_the_norm_of_the_weights(ignore_vectors):
    direction = theory.filter_normalized_direction(KEY, PARAMS, ignore_vectors=ignore_vectors)
    for layer, axes in (("conv", (0, 1, 2)), ("dense", (0,))):
        norms = [
            jnp.sqrt(jnp.sum(tree[layer]["kernel"] ** 2, axis=axes)) for tree in (direction, PARAMS)
        ]
        np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)
        assert not np.allclose(direction[layer]["kernel"], PARAMS[layer]["kernel"])
    expected = 0.0 if ignore_vectors else 1.0
    np.testing.assert_array_equal(direction["conv"]["bias"], expected * PARAMS["conv"]["bias"])
    assert float(direction["dense"]["scale"]) == 2.0 * expected
    other = theory.filter_normalized_direction(jax.random.key(2), PARAMS)
    overlap = jnp.vdot(other["conv"]["kernel"], direction["conv"]["kernel"])
    assert abs(overlap) < 0.5 * jnp.sum(PARAMS["conv"]["kernel"] ** 2)


def test_zero_filters_stay_zero():
    direction = theory.filter_normalized_direction(KEY, jnp.zeros((2, 3)))
    np.testing.assert_array_equal(direction, np.zeros((2, 3)))


def test_lines_and_planes_hold_the_values_of_their_places():
    params, along = np.array([1.0, 2.0]), np.array([0.5, -1.0])
    across = np.array([1.0, 0.0])
    evaluate = lambda t: {"loss": jnp.sum(t**2), "first": t[0]}
    line = theory.loss_line(evaluate, params, along, [-1.0, 0.0, 0.3])
    assert line["loss"].dtype == np.float64
    np.testing.assert_allclose(line["first"], [0.5, 1.0, 1.15], rtol=1e-15)
    plane = theory.loss_plane(evaluate, params, (along, across), [0.0, 1.0], [0.0, 2.0, 3.0])
    assert plane["loss"].shape == (2, 3)
    point = params + 1.0 * along + 3.0 * across
    np.testing.assert_allclose(plane["loss"][1, 2], np.sum(point**2), rtol=1e-14)


def apply_fn(params, images):
    hidden = jnp.tanh(images.reshape(len(images), -1) @ params["w"])
    return hidden @ params["v"]


def network(width=5):
    keys = jax.random.split(jax.random.key(3), 4)
    params = {
        "w": jax.random.normal(keys[0], (12, width)),
        "v": jax.random.normal(keys[1], (width, 3)),
    }
    images = jax.random.uniform(keys[2], (6, 2, 2, 3))
    labels = jax.random.randint(keys[3], (6,), 0, 3)
    return params, images, labels


def test_attacks_are_made_anew_at_every_place():
    params, images, labels = network()
    options = {"norm": "linf", "eps": 0.1, "step_size": 0.05}
    evaluate = theory.adversarial_evaluation(
        KEY, apply_fn, images, labels, num_steps=4, batch_size=3, **options
    )
    direction = theory.filter_normalized_direction(jax.random.key(4), params)
    line = theory.loss_line(evaluate, params, direction, [0.0, 1.0])
    for index, alpha in enumerate((0.0, 1.0)):
        moved = jax.tree.map(lambda p, d, a=alpha: p + a * d, params, direction)
        logits_fn = lambda x, p=moved: apply_fn(p, x)
        x_adv = attacks.pgd(KEY, logits_fn, images, labels, num_steps=4, **options)
        expected = losses.cross_entropy(logits_fn(x_adv), labels).mean()
        np.testing.assert_allclose(line["loss"][index], expected, rtol=1e-5)
        right = (logits_fn(x_adv).argmax(1) == labels).mean()
        np.testing.assert_allclose(line["accuracy"][index], right, rtol=1e-6)
    # Attacks crafted at the centre are weaker at the other place.
    at_centre = attacks.pgd(
        KEY, lambda x: apply_fn(params, x), images, labels, num_steps=4, **options
    )
    stale = losses.cross_entropy(apply_fn(moved, at_centre), labels).mean()
    assert stale < line["loss"][1]


def test_without_steps_the_loss_is_clean():
    params, images, labels = network()
    evaluate = theory.adversarial_evaluation(KEY, apply_fn, images, labels, num_steps=0)
    clean = losses.cross_entropy(apply_fn(params, images), labels).mean()
    np.testing.assert_allclose(evaluate(params)["loss"], clean, rtol=1e-6)


def test_sharpness_of_a_quadratic_is_exact():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    matrix = root @ root.T
    loss = lambda t: (
        jnp.concatenate([t["a"], t["b"]]) @ matrix @ jnp.concatenate([t["a"], t["b"]]) / 2 + 0.7
    )
    params = {"a": np.zeros(2), "b": np.zeros(4)}
    top = np.linalg.eigvalsh(matrix)[-1]
    found = theory.sharpness(KEY, loss, params, radius=0.2)
    second = theory.sharpness_quadratic(KEY, loss, params, radius=0.2)
    expected = top * 0.2**2 / 2 / 1.7
    assert found.value <= expected * (1 + 1e-12)
    np.testing.assert_allclose(found.value, expected, rtol=1e-3)
    np.testing.assert_allclose(second.value, expected, rtol=1e-10)
    np.testing.assert_allclose(second.largest_eigenvalue, top, rtol=1e-10)
    assert second.gradient_norm == second.first_order == 0.0
    offset = np.concatenate([found.offset["a"], found.offset["b"]])
    assert np.linalg.norm(offset) <= 0.2 * (1 + 1e-12)
    order = theory.sharpness_order(KEY, loss, params, radius=0.2)
    np.testing.assert_allclose(order, 2.0, atol=1e-2)


def test_a_slope_is_reported_beside_the_approximation():
    found = theory.sharpness_quadratic(
        KEY, lambda t: 3.0 * t[0] + t[0] ** 2, np.zeros(1), radius=0.1
    )
    np.testing.assert_allclose(found.first_order, 0.3)
    assert found.value < 0.1 * found.first_order


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_sharpness_of_a_collapsed_linear_model_is_of_first_order(norm):
    """E23: with eps beyond the norm of the mean, theta = 0 is a kink; the increase is O(r)."""
    points, labels = theory.toy_dataset()
    mean = (points * labels[:, None]).mean(0)
    size = np.linalg.norm(mean) if norm == "l2" else np.abs(mean).max()
    eps = float(size) + 0.2
    loss = lambda t: theory.toy_dataset_loss(t, points, labels, norm=norm, eps=eps)
    radius = 1e-3
    found = theory.sharpness(KEY, loss, np.zeros(2), radius=radius)
    # The dual norm of a vector of length r is at least r.
    assert found.increase >= 0.2 * radius / 2
    np.testing.assert_allclose(
        theory.sharpness_order(KEY, loss, np.zeros(2), radius=radius), 1.0, atol=0.01
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: theory.sharpness(KEY, jnp.sum, jnp.zeros(2), radius=0.0),
            "radius=0.0",
        ),
        (
            lambda: theory.sharpness_quadratic(KEY, jnp.sum, jnp.zeros(2), radius=-1.0),
            "radius=-1.0",
        ),
        (
            lambda: theory.loss_line(jnp.sum, jnp.zeros(2), jnp.zeros(3), [0.0]),
            "direction 0 has structure",
        ),
        (lambda: theory.loss_line(jnp.sum, jnp.zeros(2), jnp.zeros(2), []), "empty"),
        (
            lambda: theory.adversarial_evaluation(
                KEY, apply_fn, jnp.full((4, 2, 2, 3), 0.5), jnp.zeros(4, int), batch_size=3
            ),
            "batch_size=3 does not divide",
        ),
        (
            lambda: theory.adversarial_evaluation(
                KEY, apply_fn, jnp.full((4, 2, 2, 3), 0.5), jnp.zeros(4, int), eps=8.0
            ),
            "eps=8.0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_misuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()
