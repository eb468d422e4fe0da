"""Shapes and misuse of ResNets; their logits are in test_golden.py."""

import jax
import jax.numpy as jnp
import pytest

from jaxadv import models


def test_shapes_of_stages_and_logits():
    module = models.resnet50(7, width=4)
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    (logits, state), _ = (
        jax.eval_shape(
            lambda key, x: module.init_with_output(
                key,
                x,
                mutable=["params", "batch_stats", "intermediates"],
                capture_intermediates=True,
            ),
            jax.random.key(0),
            image,
        ),
        None,
    )
    assert logits.shape == (2, 7)
    seen = {n: v["__call__"][0].shape for n, v in state["intermediates"].items() if n != "__call__"}
    assert seen["conv1"] == (2, 112, 112, 4)
    assert seen["layer1_0"] == (2, 56, 56, 16) and seen["layer4_2"] == (2, 7, 7, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": ()}, "blocks is"),
        ({"widen_factor": 0}, "widen_factor is 0"),
        ({"activation": "rellu"}, "Did you mean 'relu'"),
    ],
)
def test_misuse(options, message):
    with pytest.raises(ValueError, match=message):
        models.build("wrn50_2", **options)
