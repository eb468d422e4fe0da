"""One of several processes that train from a stream: python -m tests.helpers.streaming_process.

Arguments: coordinator's address, number of processes, number of this one, file for the result.
"""

import sys

import jax
import numpy as np

from jaxadv import objectives, training

PIXELS = np.random.default_rng(0).integers(0, 256, (22, 3, 3, 1)).astype(np.uint8)
LABELS = (np.arange(22) % 4).astype(np.int32)


class Counted:
    """Images that record which rows are read."""

    shape, dtype = PIXELS.shape, PIXELS.dtype

    def __init__(self):
        self.read = []

    def __getitem__(self, rows):
        self.read.append(rows)
        return PIXELS[rows]


def train():
    """Parameters after five minibatches, split over all devices, and the rows that were read."""
    # Not earlier: it makes a key, and jax.distributed.initialize must come before.
    from tests.helpers.training_cases import ATTACK, KEY, START, apply_linear

    mesh = jax.make_mesh((jax.device_count(),), ("batch",), (jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    objective = objectives.adversarial_cross_entropy(apply_linear, **ATTACK)
    phases = [training.Phase(5, lambda first, n_in: training.sgd(0.1))]
    program = training.Program(
        apply_linear, objective, batch_size=8, sharding=sharding, phases=phases
    )
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    place = lambda x: jax.make_array_from_callback(x.shape, everywhere, lambda index: x[index])
    state = training.TrainState.create(START, {}, program)
    state = jax.tree.map(lambda leaf: place(np.asarray(leaf)), state)
    images = Counted()
    with training.Stream(images, LABELS, chunk=2) as stream:
        for step in range(0, 5, 2):
            state, _ = program.advance(state, stream, KEY, min(2, 5 - step))
    return np.asarray(state.params), images.read[:5]


if __name__ == "__main__":
    address, number, index, path = sys.argv[1:]
    if number != "1":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, int(number), int(index))
    params, read = train()
    np.savez(path, params=params, read=np.stack(read))
