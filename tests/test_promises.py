"""What the README promises, tested from the outside: independence of the batch, purity, resuming.

Public functions only.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxadv
from jaxadv import attacks, balls, losses, optim, training
from tests.helpers.small_attacks import SMALL

KEY = jax.random.key(5)
IMAGES = np.asarray(jax.random.uniform(jax.random.key(1), (24, 8, 8, 1)))
WEIGHTS = jax.random.normal(jax.random.key(2), (64, 4)) / 3
LOGITS = lambda x: jnp.tanh(x.reshape(len(x), -1) @ WEIGHTS)
LABELS = np.asarray(LOGITS(jnp.asarray(IMAGES)).argmax(1).astype(jnp.int32))
AUTO = dict(
    eps=0.05, version="custom", attacks=["apgd-ce", "fab-t", "square"], num_steps=6, num_queries=30
)


def found(attack, rows, norm="linf", eps=0.05):
    result = getattr(attacks, attack)(
        KEY, LOGITS, IMAGES[rows], LABELS[rows], norm=norm, eps=eps, indices=np.arange(24)[rows],
        **SMALL[attack],
    )  # fmt: skip
    return np.asarray(getattr(result, "images", result))


@pytest.mark.parametrize("attack", SMALL)
def test_an_attack_does_not_depend_on_how_the_data_are_cut(attack):
    whole = found(attack, slice(0, 24))
    parts = [found(attack, rows) for rows in (slice(0, 5), slice(5, 24))]
    # Batches of other shapes round differently in the last bit, and an attack is a long way.
    apart = np.abs(whole - np.concatenate(parts)).reshape(24, -1).max(1)
    assert (apart < 1e-5).mean() >= 0.9


@pytest.mark.parametrize("batch_size", [1, 7, 16, 100])
def test_autoattack_is_the_same_bit_for_bit_at_every_batch_size(batch_size):
    one = attacks.autoattack(KEY, LOGITS, IMAGES, LABELS, progress=False, **AUTO)
    other = attacks.autoattack(
        KEY, LOGITS, IMAGES, LABELS, progress=False, batch_size=batch_size, **AUTO
    )
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.broken_by, other.broken_by)
    assert one.evaluations == other.evaluations


def test_autoattack_of_an_image_does_not_depend_on_the_others():
    one = attacks.autoattack(KEY, LOGITS, IMAGES, LABELS, progress=False, **AUTO)
    changed = IMAGES.copy()
    changed[10:] = 0.5
    other = attacks.autoattack(KEY, LOGITS, changed, LABELS, progress=False, **AUTO)
    np.testing.assert_array_equal(one.images[:10], other.images[:10])
    np.testing.assert_array_equal(one.robust[:10], other.robust[:10])


@pytest.mark.parametrize("stop", range(1, 8, 2))
def test_autoattack_resumes_where_it_stopped(tmp_path, stop):
    class Stop(Exception):
        pass

    seen = []

    def progress(report):
        seen.append(report)
        if len(seen) == stop:
            raise Stop

    whole = attacks.autoattack(KEY, LOGITS, IMAGES, LABELS, progress=False, **AUTO)
    with pytest.raises(Stop):
        attacks.autoattack(
            KEY, LOGITS, IMAGES, LABELS, store=tmp_path, progress=progress, batch_size=16, **AUTO
        )
    resumed = attacks.autoattack(
        KEY, LOGITS, IMAGES, LABELS, store=tmp_path, progress=False, batch_size=32, **AUTO
    )
    np.testing.assert_array_equal(whole.images, resumed.images)
    assert whole.evaluations == resumed.evaluations and whole.accuracy == resumed.accuracy


def test_the_same_call_gives_the_same_bits_and_leaves_its_arguments_alone():
    images, labels = IMAGES.copy(), LABELS.copy()
    config = copy.copy(jax.config.values)
    for attack in SMALL:
        np.testing.assert_array_equal(found(attack, slice(0, 6)), found(attack, slice(0, 6)))
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
    assert jax.config.values == config


def test_losses_are_per_example_and_pure():
    logits, labels = LOGITS(jnp.asarray(IMAGES)), jnp.asarray(LABELS)
    for loss in (losses.cross_entropy, losses.margin, losses.dlr):
        alone = jnp.concatenate([loss(logits[i : i + 1], labels[i : i + 1]) for i in range(24)])
        np.testing.assert_allclose(loss(logits, labels), alone, rtol=1e-6)


def test_starts_depend_on_the_place_of_an_image_alone():
    whole = balls.sample(KEY, jnp.asarray(IMAGES), norm="l2", eps=0.5)
    part = balls.sample(KEY, jnp.asarray(IMAGES[7:9]), norm="l2", eps=0.5, indices=jnp.arange(7, 9))
    np.testing.assert_allclose(whole[7:9], part, atol=1e-6)


def test_training_cut_into_other_calls_gives_the_same_bits():
    apply_fn = lambda params, stats, images, train: (
        images.reshape(len(images), -1) @ params, stats,
    )  # fmt: skip
    objective = jaxadv.objectives.adversarial_cross_entropy(apply_fn, eps=0.1, step_size=0.05)
    program = training.Program(apply_fn, objective, batch_size=8)
    tx = training.sgd(0.1)
    pixels = (IMAGES * 255).astype(np.uint8)

    def run(*calls):
        data = training.DeviceData(jnp.asarray(pixels), jnp.asarray(LABELS))
        state = training.TrainState.create(WEIGHTS * 0, {}, tx)
        step = program.sgd_steps(tx)
        for count in calls:
            state, _ = step(state, data, KEY, count)
        return np.asarray(state.params)

    np.testing.assert_array_equal(run(3), run(1, 2))
    np.testing.assert_array_equal(run(3), run(1, 1, 1))


def test_entropy_sgd_one_minibatch_at_a_time_is_the_scanned_form():
    loss = lambda w, batch: jnp.sum((w - batch) ** 2)
    batches = jax.random.normal(jax.random.key(3), (3, 4))
    options = dict(n_in=3, inner_learning_rate=0.01, noise=1e-3)
    grad_fn = lambda w, batch, carry: (jax.grad(loss)(w, batch), carry)
    scanned = optim.entropy_sgd(0.1, key=KEY, **options)
    w = jnp.ones(4)
    updates, _ = jax.jit(lambda s, w: scanned.update(None, s, w, grad_fn=grad_fn, batches=batches))(
        scanned.init(w), w
    )
    whole = optax.apply_updates(w, updates)
    stepwise = optim.entropy_sgd_stepwise(0.1, key=KEY, **options)
    held, state = w, stepwise.init(w)
    step = jax.jit(lambda g, s, h: stepwise.update(g, s, h))
    for batch in batches:
        updates, state = step(jax.grad(loss)(held, batch), state, held)
        held = optax.apply_updates(held, updates)
    np.testing.assert_allclose(optim.slow_params(state, held), whole, rtol=1e-6)
