"""ResNet-50 and WideResNet-50-2 against torchvision's definitions."""

import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models
from tests.helpers.golden_weights import filled

NAMES = ("resnet50", "wide_resnet50_2")
AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # from PyTorch's layout to ours


def ours(number, name, shape):
    """A tensor of the golden file, in our layout."""
    return filled(number, name, shape).transpose(AXES[len(shape)])


def path(name):
    """Our path of a tensor of torchvision."""
    name = name.replace("downsample.0", "conv_shortcut").replace("downsample.1", "bn_shortcut")
    *module, leaf = name.split(".")
    if module[0].startswith("layer"):
        module = [f"{module[0]}_{module[1]}", *module[2:]]
    if leaf.startswith("running"):
        return "batch_stats", *module, leaf.removeprefix("running_")
    if leaf == "weight":
        leaf = "scale" if module[-1].startswith("bn") else "kernel"
    return "params", *module, leaf


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_those_of_torchvision(golden, name):
    reference = json.loads((golden / "torch_imagenet.json").read_text())[name]
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    found = jax.eval_shape(getattr(models, name)().init, jax.random.key(0), image)
    shapes = {where: leaf.shape for where, leaf in flax.traverse_util.flatten_dict(found).items()}
    assert shapes == {
        path(tensor): tuple(shape[axis] for axis in AXES[len(shape)])
        for _, tensor, shape in reference["tensors"]
    }
    size = sum(leaf.size for leaf in jax.tree.leaves(found["params"]))
    assert size == reference["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-6)])
def test_logits_are_those_of_torchvision(x64, golden, name, dtype, tolerance):
    reference = json.loads((golden / "torch_imagenet.json").read_text())[name]
    flat = {path(t[1]): jnp.asarray(ours(*t), dtype) for t in reference["tensors"]}
    shape = reference["image_shape"]
    images = 0.5 + 0.5 * np.sin(0.05 * np.arange(np.prod(shape)))
    images = images.astype(np.float32).reshape(shape).transpose(0, 2, 3, 1)
    module = getattr(models, name)()
    variables = flax.traverse_util.unflatten_dict(flat)
    logits = jax.jit(module.apply)(variables, jnp.asarray(images, dtype))
    assert logits.dtype == dtype
    np.testing.assert_allclose(logits[:, ::37], reference["logits_float64"], rtol=0, atol=tolerance)


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
