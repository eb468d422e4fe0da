"""Verdicts are computed at the highest precision, attacks at the one that is asked for."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models
from jaxadv.attacks import AutoAttackResult, _driver, autoattack
from jaxadv.attacks._autoattack.chunks import Chunks
from jaxadv.attacks._autoattack.problem import Problem

KEY = jax.random.key(0)
IMAGES = np.asarray(jax.random.uniform(jax.random.key(1), (20, 4, 4, 1)))
KERNEL = jax.random.normal(jax.random.key(2), (3, 3, 1, 2))
WEIGHTS = jax.random.normal(jax.random.key(3), (32, 5))


@jax.jit
def last_layer(x):
    return x.reshape(len(x), -1) @ WEIGHTS


def model(x):
    numbers = ("NHWC", "HWIO", "NHWC")
    features = jax.lax.conv_general_dilated(x, KERNEL, (1, 1), "SAME", dimension_numbers=numbers)
    features += models.conv2d(x, KERNEL, padding=1)
    own = jnp.dot(x.reshape(len(x), -1), jnp.ones((16, 1)), precision="default")
    return last_layer(jax.nn.relu(features)) + 0.01 * own


LABELS = np.asarray(model(jnp.asarray(IMAGES)).argmax(1).astype(jnp.int32))


def evaluate(labels=LABELS, **options):
    settings = dict(
        eps=0.2, version="custom", attacks=["apgd-ce"], num_steps=3, progress=False, batch_size=16
    )
    return autoattack(KEY, model, IMAGES, labels, **settings | options)


def precisions(text):
    """The precisions of convolutions, and of matrix products, in a lowered program."""
    convolutions = re.findall(r"stablehlo\.convolution.*#stablehlo<precision (\w+)>", text)
    products = re.findall(r"stablehlo\.dot_general.*precision = \[(\w+)", text)
    return set(convolutions), set(products)


@pytest.fixture
def lowered(monkeypatch):
    """The precisions in every program that an evaluation runs, by its name, on each platform."""
    found = {}

    def watch(name):
        program = getattr(_driver, name)

        def run(*args, **kwargs):
            traced = program.trace(*args, **kwargs)
            alone = name == "logits_of" and args[3].shape[1] == 1  # images in blocks of one row
            for platform in ("cpu", "cuda", "tpu"):
                text = traced.lower(lowering_platforms=(platform,)).as_text()
                found.setdefault("alone" if alone else name, []).append(precisions(text))
            return program(*args, **kwargs)

        monkeypatch.setattr(_driver, name, run)

    for name in ("advance", "logits_of"):
        watch(name)
    return found


@pytest.mark.parametrize("precision", ["default", "high"])
def test_verdicts_have_the_highest_precision(lowered, precision):
    last_layer(jnp.ones((16, 4, 4, 2)))  # traced before, at another precision
    found = evaluate(precision=precision)
    assert (found.broken_by == "apgd-ce").any()
    # A layer's own precision stays.
    own = {"DEFAULT"}
    for verdicts in lowered["logits_of"] + lowered["alone"]:
        assert verdicts == ({"HIGHEST"}, {"HIGHEST"} | own)
    attack = {precision.upper()}
    assert lowered["advance"] and lowered["alone"]
    for attacked in lowered["advance"]:
        assert attacked == (attack, attack | own)


def test_the_precision_is_recorded(tmp_path):
    found = evaluate(precision="high", store=tmp_path / "store")
    assert found.settings["precision"] == "high float32"
    found.save(tmp_path / "result.npz")
    assert AutoAttackResult.load(tmp_path / "result.npz").settings == found.settings
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    assert manifest["precision"] == "high"
    with pytest.raises(ValueError, match="precision was 'high' and is 'default'"):
        evaluate(store=tmp_path / "store")


def test_stores_from_before_have_the_default_precision(tmp_path, monkeypatch):
    describe = Problem.describe
    with monkeypatch.context() as patch:
        patch.setattr(
            Problem, "describe", lambda self: {
                name: value for name, value in describe(self).items() if name != "precision"
            },
        )  # fmt: skip
        before = evaluate(store=tmp_path)
    assert "precision" not in json.loads((tmp_path / "manifest.json").read_text())
    with pytest.raises(ValueError, match="precision was 'default' and is 'highest'"):
        evaluate(store=tmp_path, precision="highest")
    monkeypatch.setattr(Chunks, "attack", None)
    np.testing.assert_array_equal(evaluate(store=tmp_path).images, before.images)


def test_what_jax_is_set_to_is_recorded_as_the_default():
    labels = (LABELS + 1) % 5  # all wrong already: nothing to attack
    with jax.default_matmul_precision("high"):
        assert evaluate(labels).settings["precision"] == "high float32"


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision='hihg' is not one of .* did you mean 'high'"):
        evaluate(precision="hihg")
