"""Training and prediction take 8-bit images and floats in [0, 1] alike, and refuse the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import objectives, training
from tests.helpers.training_cases import ATTACK, KEY, START, apply_linear

PIXELS = np.random.default_rng(3).integers(0, 256, (16, 3, 3, 1)).astype(np.uint8)
PIXELS.flat[:3] = 0, 127, 255
LABELS = (np.arange(16) % 4).astype(np.int32)


def train(images, labels=LABELS):
    objective = objectives.adversarial_cross_entropy(apply_linear, **ATTACK)
    program = training.Program(apply_linear, objective, batch_size=8)
    tx = training.sgd(0.1)
    state = training.TrainState.create(START, {}, tx)
    return program.sgd_steps(tx)(state, training.DeviceData(images, labels), KEY, 2)[0].params


def predict(images, labels=LABELS):
    run = training.make_predict(apply_linear, **ATTACK)
    return run(START, {}, KEY, images, labels, np.arange(16)).adversarial


@pytest.mark.parametrize("use", [train, predict])
@pytest.mark.parametrize(
    "same",
    [
        jnp.asarray(PIXELS / np.float32(255)),
        PIXELS.astype(np.int32),
        jnp.asarray(PIXELS, jnp.int16),
        PIXELS / np.float32(255),
    ],
    ids=["float32", "int32", "int16", "numpy"],
)
def test_floats_and_integers_of_the_same_images_give_the_same_numbers(use, same):
    np.testing.assert_allclose(use(same), use(jnp.asarray(PIXELS)), atol=1e-6)


@pytest.mark.parametrize("use", [train, predict])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            PIXELS.astype(np.float32),
            r"from 0 to 255, not within \[0, 1\]; pass uint8",
        ),
        (PIXELS / np.float32(255) - 0.5, r"float32 reach from -0.5 to 0.5"),
        (np.full(PIXELS.shape, np.nan, np.float32), "reach from nan to nan"),
        (PIXELS.astype(np.int32) + 1, r"int32 reach from 1 to 256, not within \[0, 255\]"),
        (PIXELS.astype(np.int8), r"int8 reach from -\d+ to 127"),
        (PIXELS > 100, "images has dtype bool; pass uint8, or floats"),
        (PIXELS.astype(np.complex64), "images has dtype complex64"),
    ],
    ids=["0-255", "centred", "nan", "256", "int8", "bool", "complex"],
)
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_images_of_another_scale_are_refused(use, images, message, convert):
    with pytest.raises(ValueError, match=message) as error:
        use(convert(images))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("use", [train, predict])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + 1, r"labels contains 4, but the model has 4 classes \(0 to 3\)"),
        (LABELS - 1, "labels contains -1, but the model has 4 classes"),
        (LABELS.astype(np.float32), "labels has dtype float32; pass class indices"),
        (LABELS[:-1], "labels has shape .15,. for 16 images"),
    ],
    ids=["large", "negative", "float", "short"],
)
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_labels_that_the_model_has_not_are_refused(use, labels, message, convert):
    with pytest.raises(ValueError, match=message):
        use(jnp.asarray(PIXELS), convert(labels))


def test_data_are_looked_at_once_and_new_data_again():
    objective = objectives.adversarial_cross_entropy(apply_linear, **ATTACK)
    program = training.Program(apply_linear, objective, batch_size=8)
    tx = training.sgd(0.1)
    step = program.sgd_steps(tx)
    state = training.TrainState.create(START, {}, tx)
    data = training.DeviceData(jnp.asarray(PIXELS), jnp.asarray(LABELS))
    state, _ = step(state, data, KEY, 1)
    with jax.transfer_guard_device_to_host("disallow_explicit"):
        state, _ = step(state, data, KEY, 1)
    with pytest.raises(ValueError, match="labels contains 9"):
        step(state, data._replace(labels=jnp.full(16, 9)), KEY, 1)
