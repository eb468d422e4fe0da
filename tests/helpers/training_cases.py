"""A model with BatchNorm and one without, and an attack, for the tests of training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

KEY = jax.random.key(0)
START = jnp.array(0.1 * np.random.default_rng(8).normal(size=(9, 4)), jnp.float32)
ATTACK = dict(norm="linf", eps=0.1, step_size=0.04, num_steps=3)


class TinyBatchNorm(nn.Module):
    """Dense, BatchNorm, tanh, dense: the smallest model with running statistics."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(8)(images.reshape(images.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(4)(nn.tanh(x))


MODULE = TinyBatchNorm()


def apply_bn(params, batch_stats, images, train):
    variables = {"params": params, "batch_stats": batch_stats}
    if not train:
        return MODULE.apply(variables, images, False), batch_stats
    logits, changed = MODULE.apply(variables, images, True, mutable=["batch_stats"])
    return logits, changed["batch_stats"]


def apply_linear(params, batch_stats, images, train):
    return images.reshape(images.shape[0], -1) @ params, batch_stats


def init_bn():
    """Parameters and running statistics of the model with BatchNorm."""
    variables = MODULE.init(jax.random.key(5), jnp.zeros((1, 3, 3, 1)), False)
    return variables["params"], variables["batch_stats"]


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
