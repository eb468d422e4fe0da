"""The examples of the README run as they are printed."""

import functools
import pathlib
import re

import numpy as np
import pytest

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
SECTION = re.search(r"## Evaluate your own model\n(.*?)\n## ", README, re.DOTALL)
BLOCKS = re.findall(r"```python\n(.*?)```", SECTION.group(1) if SECTION else "", re.DOTALL)


def run(number: int, names: dict) -> dict:
    exec(compile(BLOCKS[number], f"README example {number}", "exec"), names)
    return names


@pytest.fixture(scope="module")
def function():
    return run(0, {})


def test_there_is_an_example_for_every_kind_of_model():
    assert [len(block.splitlines()) <= 13 for block in BLOCKS] == [True] * 4


def test_function(function):
    result = function["result"]
    assert result.accuracy["clean"] > 0.8 > result.robust_accuracy > 0.2
    logits = function["logits_fn"](result.images)
    np.testing.assert_array_equal(logits.argmax(1) == function["labels"], result.robust)


@pytest.mark.parametrize("number", [1, 2])
def test_linen_and_nnx(number, function):
    found = run(
        number, {name: function[name] for name in ("jax", "images", "labels", "autoattack")}
    )
    assert found["result"].robust.shape == (64,)
    assert list(found["result"].accuracy) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]


def test_pytorch_file(function, tmp_path, monkeypatch):
    import jax
    import jax.numpy as jnp

    from jaxadv import models

    monkeypatch.chdir(tmp_path)
    module = models.preact_resnet18(num_classes=10, width=1, mean=None, std=None)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    models.save_torch("weights.pt", module, variables)
    wide = models.preact_resnet18
    monkeypatch.setattr(models, "preact_resnet18", functools.partial(wide, width=1))
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    labels = np.asarray(jax.jit(module.apply)(variables, images).argmax(1)).astype(np.int32)
    short = dict(version="custom", attacks=["apgd-ce"], num_steps=3)  # 18 layers compile slowly
    attack = functools.partial(function["autoattack"], **short)
    names = {"jax": jax, "autoattack": attack, "images": images, "labels": labels}
    found = run(3, names)
    assert found["result"].accuracy["clean"] == 1
