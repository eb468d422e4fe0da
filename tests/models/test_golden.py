"""Logits of public PyTorch definitions on weights and images that a rule fills.

The files say which definition made them; `golden_weights.filled` is the rule of the weights.
"""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models
from tests.helpers.golden_weights import filled, images_of


class Case(NamedTuple):
    name: str
    options: dict
    threshold: float | None = None  # of all MeanSparse layers
    ignore: tuple = ()
    ordered: bool = True  # whether ours come in the order of the state dict


UNEVEN = dict(blocks=(1, 2, 1), channels=(8, 16, 24, 12))
RA = dict(blocks=(1, 2, 1), channels=(12, 16, 24, 40), squeeze=0.25)
SMALL = {
    "dm_wide_resnet_10_2": Case("dm_wide_resnet", dict(depth=10, width=2)),
    "dm_wide_resnet_16_1": Case("dm_wide_resnet", dict(depth=16, width=1)),
    "meansparse_dm_wide_resnet_10_2": Case(
        "dm_wide_resnet", dict(depth=10, width=2, mean_sparse=True), threshold=0.25
    ),
    "wide_resnet_10_2_subblock": Case("wide_resnet", dict(depth=10, width=2)),
    "xcit_32_2_patch4": Case("xcit_small12", dict(width=32, depth=2, heads=4, patch_size=4)),
    "convnext_16_convstem2": Case(
        "convnext_tiny", dict(width=16, blocks=(1, 1, 2, 1), conv_stem=True)
    ),
}
LARGE = {
    "wide_resnet_10_2_cosine": Case(
        "wide_resnet", dict(depth=10, width=2, bias_last=False, cosine=True)
    ),
    "wide_resnet_huang2021": Case("wide_resnet", dict(names="huang2021", **UNEVEN)),
    "wide_resnet_huang2022": Case(
        "wide_resnet", dict(names="huang2022", activation="silu", **UNEVEN), ordered=False
    ),
    "ra_wide_resnet": Case("dm_wide_resnet", RA),
    "meansparse_ra_wide_resnet": Case(
        "dm_wide_resnet", dict(mean_sparse=True, **RA), threshold=0.25, ordered=False
    ),
    "dm_preact_resnet18": Case("dm_preact_resnet18", {}),
    "dm_wide_resnet_28_10": Case("dm_wide_resnet", dict(depth=28, width=10)),
    "preact_resnet18_nobn_raw": Case(
        "preact_resnet18", dict(last_norm=False, shortcut_input="raw")
    ),
    "resnet18_cifar": Case("resnet18_cifar", {}),
    "resnet50_cifar": Case("resnet50_cifar", {}),
    "torchvision_resnet50": Case("resnet50", {}),
    "torchvision_wide_resnet50_2": Case("wrn50_2", {}),
    "wide_resnet_28_10": Case("wide_resnet", dict(depth=28, width=10)),
    "xcit_32_2_patch16": Case("xcit_small12", dict(width=32, depth=2, heads=4)),
    "convnext_16": Case("convnext_tiny", dict(width=16, blocks=(1, 1, 2, 1))),
    "convnext_16_convstem3": Case(
        "convnext_base", dict(width=16, blocks=(1, 1, 2, 1), conv_stem=True)
    ),
    "xcit_small12_patch16": Case("xcit_small12", {}),
    "xcit_large12_patch4": Case("xcit_large12", dict(patch_size=4)),
    "convnext_tiny": Case("convnext_tiny", {}),
    "convnext_base_convstem": Case("convnext_base", dict(conv_stem=True)),
}
CASES = SMALL | LARGE
ALL = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


def reference_of(golden, name):
    return json.loads((golden / "robustbench" / f"{name}.json").read_text())


def module_of(case, reference, normalized=True):
    mean, std = reference["normalisation"] or (None, None) if normalized else (None, None)
    classes = len(reference["logits_float64"][0])
    return models.build(case.name, num_classes=classes, mean=mean, std=std, **case.options)


def state_dict_of(case, reference, module):
    found = {name: filled(t, name, tuple(shape)) for t, name, shape in reference["tensors"]}
    if case.threshold is not None:
        zeros = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), zeros)
        for name in models.to_torch_state_dict(module, zeros):
            if name.endswith("threshold"):
                found[name] = np.float32(case.threshold)
    return found


def assert_logits(golden, name, dtype, normalized):
    case, reference = CASES[name], reference_of(golden, name)
    module = module_of(case, reference, normalized)
    state_dict = state_dict_of(case, reference, module)
    variables = models.from_torch_state_dict(state_dict, module, dtype=dtype)
    images = jnp.asarray(images_of(reference["image_shape"]), dtype)
    logits = jax.jit(module.apply)(variables, images)
    assert logits.dtype == dtype
    kind = "logits_float64" + ("" if normalized else "_unnormalised")
    largest = np.abs(reference[kind]).max()  # several units in its last place, in float32
    tolerance = {"float32": max(2e-5, 1e-6 * largest), "float64": 1e-6}[dtype]
    np.testing.assert_allclose(logits, reference[kind], rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore:ignored .* tensors of the unused stage sub_block1")
@pytest.mark.parametrize("name", ALL)
def test_logits_in_float64(x64, golden, name):
    assert_logits(golden, name, "float64", normalized=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ignored .* tensors of the unused stage sub_block1")
@pytest.mark.parametrize("name", CASES)
def test_logits_behind_the_normalization(x64, golden, name):
    if reference_of(golden, name)["normalisation"] is None:
        pytest.skip("the definition does not normalize")
    assert_logits(golden, name, "float64", normalized=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ignored .* tensors of the unused stage sub_block1")
@pytest.mark.parametrize("name", CASES)
def test_logits_in_float32(golden, name):
    assert_logits(golden, name, "float32", normalized=True)


@pytest.mark.parametrize("name", ALL)
def test_names_shapes_and_order(golden, name):
    case, reference = CASES[name], reference_of(golden, name)
    module = module_of(case, reference)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    ours = list(models.to_torch_state_dict(module, zeros).items())
    unused = [name for _, name, _ in reference["tensors"] if name.startswith("sub_block1.")]
    for number, tensor, shape in reference["tensors"]:
        if not unused and case.ordered:
            assert (ours[number][0], ours[number][1].shape) == (tensor, tuple(shape))
        elif tensor not in unused:
            assert dict(ours)[tensor].shape == tuple(shape)
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    apart = sum(
        np.prod(s) for _, n, s in reference["tensors"] if n in unused and "running" not in n
    )
    assert size + apart == reference["parameters"]
