"""Training in float64: a model with float64 parameters sees float64 images in every pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import objectives, optim, training
from tests.helpers.training_cases import ATTACK, KEY, START, apply_linear

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 3, 3, 1), dtype=np.uint8)
LABELS = np.arange(8) % 4


def program(optimizer, n_in=0):
    objective = objectives.adversarial_cross_entropy(apply_linear, **ATTACK)
    phases = [training.Phase(4, lambda first, n: optimizer, n_in=n_in)]
    return objective, training.Program(apply_linear, objective, batch_size=8, phases=phases)


def test_sgd_takes_the_steps_of_float64_by_hand(x64):
    objective, compiled = program(training.sgd(0.5, momentum=0.0, weight_decay=0.0))
    params = START.astype(jnp.float64)
    state = training.TrainState.create(params, {}, compiled)
    data = training.DeviceData(jnp.asarray(PIXELS), jnp.asarray(LABELS))
    state, _ = compiled.advance(state, data, KEY, 1)
    assert state.params.dtype == jnp.float64

    # One minibatch has all images; their order decides the random start of each.
    rows = training._minibatches.epoch_order(KEY, 0, 8, 8)[0]
    images = jnp.asarray(PIXELS, jnp.float64)[rows] / 255
    attack_key = jax.random.fold_in(jax.random.fold_in(KEY, training._minibatches.ATTACK), 0)
    adversarial, _ = objective.perturb(attack_key, params, {}, images, LABELS[rows])
    loss = lambda params: objective.loss(params, {}, images, adversarial, LABELS[rows])[0]
    np.testing.assert_allclose(state.params, params - 0.5 * jax.grad(loss)(params), rtol=1e-13)


@pytest.mark.parametrize("n_in", [0, 2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_images_have_the_dtype_of_the_parameters(x64, dtype, n_in):
    seen = set()

    def apply_fn(params, batch_stats, images, train):
        seen.add(images.dtype)
        return apply_linear(params, batch_stats, images, train)

    objective = objectives.adversarial_cross_entropy(apply_fn, **ATTACK)
    optimizer = optim.entropy_sgd(0.1, key=KEY, n_in=2) if n_in else training.sgd(0.1)
    phases = [training.Phase(2, lambda first, n: optimizer, n_in=n_in)]
    compiled = training.Program(apply_fn, objective, batch_size=8, phases=phases)
    state = training.TrainState.create(START.astype(dtype), {}, compiled)
    data = training.DeviceData(jnp.asarray(PIXELS), jnp.asarray(LABELS))
    state, _ = compiled.advance(state, data, KEY, n_in or 1)
    predict = training.make_predict(apply_fn, **ATTACK)
    predict(state.params, {}, KEY, PIXELS, LABELS, np.arange(8))
    assert seen == {jnp.dtype(dtype)} and state.params.dtype == dtype
