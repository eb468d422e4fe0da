"""Models outside JAX, by functions on NumPy arrays: every attack, as on the same model in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks
from jaxadv.interop import numpy_logits_fn
from tests.helpers.compilations import compilations
from tests.helpers.small_attacks import SMALL

SHAPE = (4, 4, 3)


def weights(seed=0):
    return np.random.default_rng(seed).normal(size=(48, 5)).astype(np.float32)


def in_jax(weights):
    weights = jnp.asarray(weights)
    return lambda x: jnp.tanh(x.reshape(x.shape[0], -1) - 0.5) @ weights


class Outside:
    """The same model in NumPy; counts what it is asked."""

    def __init__(self, weights):
        self.weights, self.images, self.cotangents = weights, 0, 0

    def logits(self, x):
        self.images += len(x)
        return np.tanh(x.reshape(len(x), -1) - 0.5) @ self.weights

    def gradient(self, x, v):
        self.cotangents += len(x)
        slope = 1 - np.tanh(x.reshape(len(x), -1) - 0.5) ** 2
        return ((v @ self.weights.T) * slope).reshape(x.shape)

    def logits_fn(self):
        return numpy_logits_fn(self.logits, self.gradient)


def data(number=12):
    x = np.random.default_rng(1).uniform(size=(number, *SHAPE)).astype(np.float32)
    return x, np.asarray(in_jax(weights())(x).argmax(1)).astype(np.int32)


@pytest.mark.parametrize("name", SMALL)
def test_every_attack_does_what_it_does_to_the_model_in_jax(name):
    x, y = data()
    attack = getattr(attacks, name)
    run = lambda logits_fn: attack(
        jax.random.key(0), logits_fn, x, y, norm="linf", eps=0.05, **SMALL[name]
    )
    ours = jax.tree.leaves(run(Outside(weights()).logits_fn()))
    wanted = jax.tree.leaves(run(in_jax(weights())))
    assert len(ours) == len(wanted)
    for one, other in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_autoattack_with_chunks_in_parallel_and_its_counts():
    x, y = data(40)
    options = dict(eps=0.05, version="custom", num_steps=3, num_queries=5, progress=False)
    options["attacks"] = ["apgd-ce", "square"]
    model = Outside(weights())
    found = attacks.autoattack(0, model.logits_fn(), x, y, **options)
    wanted = attacks.autoattack(0, in_jax(weights()), x, y, **options)
    np.testing.assert_array_equal(found.robust, wanted.robust)
    assert found.broken_by.tolist() == wanted.broken_by.tolist()
    assert found.evaluations == wanted.evaluations
    assert 0 < found.robust.sum() < 40
    verdicts = lambda result: [(check.name, check.passed) for check in result.checks]
    assert verdicts(found) == verdicts(wanted) and ("gradients", True) in verdicts(found)
    # Padding and checks come on top of what is counted.
    assert model.cotangents >= sum(n.backward for n in found.evaluations.values()) > 0


def test_another_model_needs_no_compilation_and_is_used():
    x, y = data()
    step = dict(norm="linf", eps=0.1, step_size=0.05, num_steps=3)
    run = lambda w: attacks.pgd(jax.random.key(0), Outside(w).logits_fn(), x, y, **step)
    first = run(weights())
    with compilations() as compiled:
        second = run(weights(3))
    assert not compiled
    wanted = attacks.pgd(jax.random.key(0), in_jax(weights(3)), x, y, **step)
    np.testing.assert_allclose(second, wanted, atol=1e-5)
    assert np.abs(first - second).max() > 0.01


def test_many_large_programs_at_a_time_end():
    """Callbacks that wait for a copy in the pool of threads that run them would never end."""
    from concurrent.futures import ThreadPoolExecutor

    logits_fn = numpy_logits_fn(
        lambda x: x.mean((1, 2))[:, :2],
        lambda x, v: np.repeat(v.sum(1), x[0].size).reshape(x.shape),
    )
    run = jax.jit(lambda x: logits_fn(logits_fn(x * 2).sum() + x).sum())
    x = jnp.ones((2, 200, 200, 3))
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda scale: float(run(x * scale)), range(6)))
    np.testing.assert_allclose(found, [4 * (8 * n + n) for n in range(6)], rtol=1e-6)


def test_vmap_over_cotangents_asks_for_the_logits_once():
    x, _ = data(3)
    model = Outside(weights())
    values, pull = jax.vjp(model.logits_fn(), jnp.asarray(x))
    (found,) = jax.vmap(pull)(jnp.eye(5)[:, None].repeat(3, 1))
    (wanted,) = jax.vmap(jax.vjp(in_jax(weights()), jnp.asarray(x))[1])(
        jnp.eye(5)[:, None].repeat(3, 1)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert values.shape == (3, 5)


def test_vmap_over_images():
    x = np.random.default_rng(2).uniform(size=(3, 2, *SHAPE)).astype(np.float32)
    model, same = Outside(weights()).logits_fn(), in_jax(weights())
    np.testing.assert_allclose(jax.vmap(model)(x), jax.vmap(same)(x), atol=1e-5)
    total = lambda f: jax.vmap(jax.grad(lambda x: (f(x) ** 2).sum()))(x)
    np.testing.assert_allclose(total(model), total(same), atol=1e-3)


def test_devices_share_the_work():
    x, y = data(32)
    options = dict(eps=0.05, version="custom", attacks=["apgd-ce"], num_steps=5, progress=False)
    model = Outside(weights()).logits_fn()
    found = attacks.autoattack(0, model, x, y, devices=jax.devices()[:2], **options)
    wanted = attacks.autoattack(0, model, x, y, **options)
    np.testing.assert_array_equal(found.robust, wanted.robust)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (lambda x: [1.0], "returns a list"),
        (lambda x: x.mean((1, 2))[:1, :, None], "returns shape (1, 3, 1)"),
        (lambda x: x.mean((1, 2)).astype(np.float64), "float64 logits for float32"),
    ],
)
def test_logits_that_are_none(logits, message):
    x, y = data(2)
    with pytest.raises(ValueError, match="logits_fn failed: ValueError: logits") as caught:
        attacks.fgsm(0, numpy_logits_fn(logits, lambda x, v: x), x, y, norm="linf", eps=0.1)
    assert message in str(caught.value)


def test_a_gradient_of_another_shape():
    x, y = data(2)
    logits_fn = numpy_logits_fn(Outside(weights()).logits, lambda x, v: v)
    with pytest.raises(jax.errors.JaxRuntimeError, match="gradient of logits has shape"):
        jax.block_until_ready(attacks.fgsm(0, logits_fn, x, y, norm="linf", eps=0.1))


def test_what_is_no_function():
    with pytest.raises(ValueError, match="gradient is a NoneType; pass a function"):
        numpy_logits_fn(lambda x: x, None)
