"""The data set on the device: rows of pixels, of which compiled programs read minibatches only."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import objectives, optim, training
from tests.helpers.training_cases import ATTACK, KEY, apply_bn, init_bn

PIXELS = np.random.default_rng(0).integers(0, 256, (22, 3, 3, 1)).astype(np.uint8)
LABELS = (np.arange(22) % 4).astype(np.int32)
# They pass arrays on.
CLOSED = {"func.func", "stablehlo.while", "stablehlo.return", "return", "func.call", "call"}


def lowered(name, data):
    """The text of a compiled step of ``data``, lowered for a TPU."""
    objective = objectives.adversarial_cross_entropy(apply_bn, **ATTACK)
    program = training.Program(apply_bn, objective, batch_size=8)
    tx = optim.entropy_sgd(0.1, key=KEY, n_in=2) if name == "entropy" else training.sgd(0.1)
    state = training.TrainState.create(*init_bn(), tx)
    steps = {
        "sgd": lambda: program.sgd_steps(tx).trace(state, data, KEY, 3),
        "entropy": lambda: program.entropy_step(tx, 2).trace(state, data, KEY),
        "refresh": lambda: jax.jit(program.refresh_stats(2, objective.perturb)).trace(
            state, data, KEY
        ),
    }
    return steps[name]().lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("name", ["sgd", "entropy", "refresh"])
def test_programs_gather_from_the_whole_set_and_do_nothing_else_with_it(name):
    data = training.DeviceData(
        jax.ShapeDtypeStruct(PIXELS.shape, jnp.uint8), jax.ShapeDtypeStruct((22,), jnp.int32)
    )
    uses = set()
    for line in lowered(name, data).splitlines():
        assert "22x3x3x1x" not in line
        if "tensor<22x9xui8>" in line:
            opcode = re.match(r'\s*(?:%\S+ = )?"?([\w.]+)"?', line)[1]
            if opcode == "stablehlo.gather":
                assert line.endswith("-> tensor<8x9xui8>")
            uses.add(opcode)
    assert "stablehlo.gather" in uses and uses - {"stablehlo.gather"} <= CLOSED


def test_data_are_made_read_and_replaced_as_images():
    data = training.DeviceData(PIXELS, LABELS)
    assert np.shares_memory(data.pixels, PIXELS) and data.pixels.shape == (22, 9)
    images, labels = data
    np.testing.assert_array_equal(images, PIXELS)
    np.testing.assert_array_equal(labels, LABELS)
    other = data._replace(labels=LABELS + 1)
    np.testing.assert_array_equal(other.images, PIXELS)
    np.testing.assert_array_equal(other.labels, LABELS + 1)
    moved = jax.device_put(data, jax.devices()[1])
    assert moved.image_shape == (3, 3, 1) and moved.images.devices() == {jax.devices()[1]}
    assert jax.tree.structure(moved) == jax.tree.structure(data)
    layouts = jax.tree.map(lambda leaf: "layout", data)  # leaves need not be arrays
    assert jax.tree.leaves(layouts) == ["layout", "layout"]


@pytest.mark.parametrize("wrong", [[[0]], np.uint8(3), None])
def test_images_that_are_no_array_are_refused(wrong):
    with pytest.raises(ValueError, match=r"images is a \w+; pass an array of shape \(N, H, W, C\)"):
        training.DeviceData(wrong, LABELS)
