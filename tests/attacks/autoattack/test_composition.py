"""The check that the logits of an image do not depend on the images beside it."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.attacks._autoattack import checks

WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
images_of = lambda n: jnp.asarray(
    np.random.default_rng(n).uniform(size=(n, 2, 2, 1)).astype(np.float32)
)


def logits(x):
    return x.reshape(len(x), -1) @ WEIGHTS


def of_pairs(x):
    """The mean of each image and its neighbor (the last one alone if their number is odd)."""
    groups = [x[i : i + 2] for i in range(0, len(x), 2)]
    return jnp.concatenate([jnp.broadcast_to(g.mean(0, keepdims=True), g.shape) for g in groups])


MODELS = {
    "mean of the batch": lambda x: logits(x - x.mean(0, keepdims=True)),
    "first image": lambda x: logits(x - x[:1]),
    "last image": lambda x: logits(x - x[-1:]),
    "image before": lambda x: logits(x - 0.1 * jnp.roll(x, 1, axis=0)),
    "two images before": lambda x: logits(x - 0.1 * jnp.roll(x, 2, axis=0)),
    "pairs": lambda x: logits(of_pairs(x)),
    "number of images": lambda x: logits(x) / len(x),
    "two halves": lambda x: logits(
        jnp.concatenate(
            [h - h.mean(0, keepdims=True) for h in (x[: len(x) // 2], x[len(x) // 2 :]) if len(h)]
        )
    ),
}


def check(model, number):
    """The check and its calls' shapes."""
    shapes = []

    def call(x, _):
        shapes.append(len(x))
        return model(x)

    images = images_of(number)
    clean = np.asarray(model(images), np.float64)
    return checks._composition(call, images, clean, 1 + np.abs(clean).max()), shapes


NUMBERS = [1, 2, 5, 16]
# With so few images these do not depend on others.
INDEPENDENT = [("two images before", 1), ("two images before", 2), ("two halves", 1),
               ("two halves", 2)]  # fmt: skip
CASES = [case for case in itertools.product(MODELS, NUMBERS) if case not in INDEPENDENT]


@pytest.mark.parametrize(("model", "number"), CASES)
def test_dependence_is_found(model, number):
    assert not check(MODELS[model], number)[0].passed


@pytest.mark.parametrize("number", NUMBERS)
def test_independence_is_found_in_few_calls_of_few_shapes(number):
    found, shapes = check(logits, number)
    assert found.passed and found.value < 1e-6
    assert len(shapes) <= 3 and len({*shapes, number}) <= 2
