"""Compiled training and evaluation: minibatch counters in, parameters out.

The training set is stored on the device as uint8 (floats in [0, 1] are used as is). Shuffling,
augmentation, the attack and the update all run inside one compiled program; a call runs many
minibatches and returns only a handful of sums to the host. Minibatch ``t`` (counted over the whole
run) is a pure function of ``(key, t)``: its images, augmentation and attack start derive from
``fold_in(key, t)``, and the permutation of its epoch from ``fold_in(key, t // batches)``. A run
split into different calls, or killed and resumed, therefore computes the same numbers.

The last minibatch of an epoch is padded from the start of the epoch's permutation, so that all
minibatches have the same shape (CIFAR-10 at batch 128: 48 of 50,000 images are seen twice per
epoch).

Example: one epoch of adversarial training of a linear model.
    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxadv import objectives, training
    >>> def apply_fn(params, batch_stats, images, train):
    ...     return images.reshape(images.shape[0], -1) @ params, batch_stats
    >>> images = jnp.arange(64, dtype=jnp.uint8).reshape(16, 2, 2, 1)
    >>> data = training.DeviceData(images, jnp.arange(16) % 3)
    >>> objective = objectives.adversarial_cross_entropy(apply_fn, eps=0.1, step_size=0.05)
    >>> program = training.Program(apply_fn, objective, batch_size=4)
    >>> tx = training.sgd(0.1)
    >>> state = training.TrainState.create(jnp.zeros((4, 3)), {}, tx)
    >>> state, metrics = program.sgd_steps(tx)(state, data, jax.random.key(0), 4)
    >>> int(state.step), int(metrics["count"])
    (4, 16)
"""

from ._data import to_float as to_float
from ._phases import Phase as Phase
from ._predict import make_predict as make_predict
from ._program import Program as Program
from ._schedules import sgd as sgd
from ._schedules import step_decay as step_decay
from ._state import NEVER as NEVER
from ._state import DeviceData as DeviceData
from ._state import Metrics as Metrics
from ._state import Predictions as Predictions
from ._state import TrainState as TrainState
from ._stream import Stream as Stream
