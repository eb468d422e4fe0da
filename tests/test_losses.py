"""Losses against their definitions in NumPy, their invariances and their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import losses


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(64, 7)) * 3, rng.integers(0, 7, 64)


def numpy_dlr(z, y):
    result = []
    for row, label in zip(z, y, strict=True):
        order = np.argsort(-row)
        other = order[1] if order[0] == label else order[0]
        result.append(-(row[label] - row[other]) / (row[order[0]] - row[order[2]] + 1e-12))
    return np.array(result)


def numpy_dlr_targeted(z, y, t):
    top = -np.sort(-z, axis=1)
    rows = np.arange(len(z))
    return -(z[rows, y] - z[rows, t]) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)


def test_cross_entropy_is_minus_log_softmax(x64, batch):
    z, y = batch
    expected = np.log(np.exp(z).sum(1)) - z[np.arange(64), y]
    np.testing.assert_allclose(losses.cross_entropy(jnp.array(z), jnp.array(y)), expected, 1e-12)


def test_margin_is_positive_exactly_where_misclassified(x64, batch):
    z, y = batch
    others = np.where(np.arange(7) == y[:, None], -np.inf, z)
    margin = np.asarray(losses.margin(jnp.array(z), jnp.array(y)))
    np.testing.assert_allclose(margin, others.max(1) - z[np.arange(64), y], 1e-12)
    assert ((margin > 0) == (z.argmax(1) != y)).all()


def test_dlr_matches_its_definition(x64, batch):
    z, y = batch
    np.testing.assert_allclose(losses.dlr(jnp.array(z), jnp.array(y)), numpy_dlr(z, y), 1e-12)


def test_dlr_targeted_matches_its_definition(x64, batch):
    z, y = batch
    t = (y + 1 + np.arange(64) % 6) % 7
    got = losses.dlr_targeted(jnp.array(z), jnp.array(y), jnp.array(t))
    np.testing.assert_allclose(got, numpy_dlr_targeted(z, y, t), 1e-12)


@pytest.mark.parametrize("shift, scale", [(5.0, 1.0), (0.0, 7.0), (-3.0, 0.1)])
def test_dlr_does_not_see_shift_and_scale(x64, batch, shift, scale):
    z, y = jnp.array(batch[0]), jnp.array(batch[1])
    np.testing.assert_allclose(losses.dlr(scale * z + shift, y), losses.dlr(z, y), 1e-9)


def test_dlr_of_the_third_class_is_one_without_gradient(x64):
    z, y = jnp.array([[3.0, 2.0, 1.0, 0.0]]), jnp.array([2])
    value, gradient = jax.value_and_grad(lambda z: losses.dlr(z, y)[0])(z)
    assert value == pytest.approx(1.0)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-11)


def test_kl_divergence_and_both_gradients(x64, batch):
    z = jnp.array(batch[0])
    other = jnp.array(np.random.default_rng(1).normal(size=z.shape))
    p, q = (np.exp(a) / np.exp(a).sum(1, keepdims=True) for a in (np.asarray(z), np.asarray(other)))
    np.testing.assert_allclose(losses.kl_divergence(z, other), (p * np.log(p / q)).sum(1), 1e-10)
    np.testing.assert_allclose(losses.kl_divergence(z, z), 0, atol=1e-14)
    toward_q = jax.grad(lambda b: losses.kl_divergence(z, b).sum())(other)
    np.testing.assert_allclose(toward_q, q - p, atol=1e-12)
    toward_p = jax.grad(lambda a: losses.kl_divergence(a, other).sum())(z)
    log_ratio = np.log(p / q)
    expected = p * (log_ratio - (p * log_ratio).sum(1, keepdims=True))
    np.testing.assert_allclose(toward_p, expected, atol=1e-12)


@pytest.mark.parametrize(
    "call, classes",
    [
        (lambda z, y: losses.margin(z, y), 1),
        (lambda z, y: losses.dlr(z, y), 2),
        (lambda z, y: losses.dlr_targeted(z, y, y), 3),
    ],
)
def test_too_few_classes_is_an_error_that_says_what_to_use(call, classes):
    with pytest.raises(ValueError, match=rf"K >= {classes + 1}.*use cross_entropy or margin"):
        call(jnp.zeros((2, classes)), jnp.zeros(2, int))


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "dlr"])
def test_losses_keep_dtype_and_survive_extreme_logits(name):
    z = jnp.array([[1e4, -1e4, 0.0, 5.0], [3e38, -3e38, 0.0, 1.0]], jnp.float32)
    value = getattr(losses, name)(z, jnp.array([1, 1]))
    assert value.dtype == jnp.float32 and value.shape == (2,)
    assert not np.isnan(value[0])
