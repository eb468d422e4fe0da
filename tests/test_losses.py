"""Losses against their definitions in NumPy, their invariances and their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def scaled_model(loss, scale, dtype=jnp.float32):
    """A compiled gradient through a product that the compiler may fuse into the loss."""
    weights = jax.random.normal(jax.random.key(0), (6, 5), dtype)
    labels = jnp.arange(8) % 5
    points = jax.random.uniform(jax.random.key(1), (8, 6), dtype)
    total = lambda x: loss((x @ weights) * dtype(scale), labels).sum()
    return jax.jit(jax.value_and_grad(total))(points)


@pytest.mark.parametrize("scale", [1e9, 1e10, 1e20, 1e37])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_compiled_losses_of_huge_logits_have_finite_gradients(scale, dtype):
    consistency = lambda z, y: losses.kl_divergence(z, z[:, ::-1])
    for loss in (losses.cross_entropy, consistency):
        value, gradients = scaled_model(loss, scale, dtype)
        assert not jnp.isnan(value)
        if loss is losses.cross_entropy:
            assert bool(jnp.isfinite(gradients / dtype(scale)).all())
            assert float(jnp.abs(gradients).max()) > 0  # some examples are misclassified


def test_gradients_of_huge_logits_are_softmax_minus_one_hot():
    logits = jnp.array([[3e37, 1.0, -1e37], [1e10, 1e10, 0.0]])
    labels = jnp.array([0, 2])
    gradients = jax.jit(jax.grad(lambda z: losses.cross_entropy(z, labels).sum()))(logits)
    np.testing.assert_array_equal(gradients, [[0.0, 0.0, 0.0], [0.5, 0.5, -1.0]])


def test_cross_entropy_and_its_derivatives_agree_with_optax(x64, batch):
    z, y = jnp.array(batch[0][:4]), jnp.array(batch[1][:4])
    ours = lambda z: losses.cross_entropy(z, y).sum()
    theirs = lambda z: optax.losses.softmax_cross_entropy_with_integer_labels(z, y).sum()
    for transform in (lambda f: f, jax.grad, jax.hessian, lambda f: jax.jacrev(jax.grad(f))):
        np.testing.assert_allclose(transform(ours)(z), transform(theirs)(z), 1e-10, atol=1e-15)
    third = lambda f: jax.jvp(jax.hessian(f), (z,), (z,))[1]
    np.testing.assert_allclose(third(ours), third(theirs), 1e-9, atol=1e-14)
    tied = jnp.zeros((4, 7))  # the largest logit is not unique
    np.testing.assert_allclose(jax.hessian(ours)(tied), jax.hessian(theirs)(tied), 1e-12)


def test_float32_gradients_keep_the_bits_of_optax(batch):
    z, y = jnp.array(batch[0], jnp.float32), jnp.array(batch[1])
    theirs = lambda z: optax.losses.softmax_cross_entropy_with_integer_labels(z, y).sum()
    got = jax.jit(jax.grad(lambda z: losses.cross_entropy(z, y).sum()))(z)
    np.testing.assert_array_equal(got, jax.jit(jax.grad(theirs))(z))


def test_classes_ruled_out_count_for_nothing(x64, batch):
    """Columns of -inf change neither values nor gradients of the others."""
    z, y = jnp.array(batch[0]), jnp.array(batch[1] % 5)
    q = jnp.roll(z, 1, axis=0)
    rule_out = lambda z: z.at[:, 5:].set(-jnp.inf)
    both = {
        "cross_entropy": lambda z, q: losses.cross_entropy(z, y),
        "margin": lambda z, q: losses.margin(z, y),
        "dlr": lambda z, q: losses.dlr(z, y),
        "kl_divergence": losses.kl_divergence,
    }
    for name, loss in both.items():
        total = lambda z, q, loss=loss: loss(z, q).sum()
        value, gradients = jax.value_and_grad(total, (0, 1))(rule_out(z), rule_out(q))
        want, wanted = jax.value_and_grad(total, (0, 1))(z[:, :5], q[:, :5])
        np.testing.assert_allclose(value, want, 1e-12, err_msg=name)
        for got, expected in zip(gradients, wanted, strict=True):
            np.testing.assert_allclose(got[:, :5], expected, 1e-9, atol=1e-12, err_msg=name)
            assert not got[:, 5:].any()


def test_an_impossible_label_is_a_misclassification_with_finite_gradients():
    logits, labels = jnp.array([[1.0, 3.0, 2.0, -jnp.inf]]), jnp.array([3])
    for loss in (losses.cross_entropy, losses.margin, losses.dlr):
        value, gradient = jax.value_and_grad(lambda z, loss=loss: loss(z, labels).sum())(logits)
        assert value == jnp.inf
        assert bool(jnp.isfinite(gradient).all())


@pytest.mark.parametrize(
    "logits, label, dlr",
    [([2.0, 1.0, -jnp.inf], 0, 0.0), ([2.0, -jnp.inf, -jnp.inf], 0, -1.0)]
    + [([2.0, 1.0, -jnp.inf], 2, 1.0), ([2.0, -jnp.inf, -jnp.inf], 1, 1.0)],
)
def test_dlr_with_too_few_possible_classes_is_its_limit(logits, label, dlr):
    total = lambda z: losses.dlr(z, jnp.array([label])).sum()
    value, gradient = jax.value_and_grad(total)(jnp.array([logits]))
    assert value == dlr
    np.testing.assert_array_equal(gradient, jnp.zeros((1, 3)))


def test_kl_divergence_is_infinite_where_only_the_second_rules_a_class_out():
    z, q = jnp.array([[0.0, 1.0]]), jnp.array([[0.0, -jnp.inf]])
    assert losses.kl_divergence(z, q).tolist() == [jnp.inf]
    assert bool(jnp.isfinite(losses.kl_divergence(q, z)).all())
    gradients = jax.grad(lambda z, q: losses.kl_divergence(z, q).sum(), (0, 1))(q, z)
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)


def test_losses_of_nan_logits_are_nan():
    z, y = jnp.array([[jnp.nan, 0.0, 1.0, 2.0]]), jnp.array([1])
    for loss in (losses.cross_entropy, losses.margin, losses.dlr):
        assert bool(jnp.isnan(loss(z, y)).all())
