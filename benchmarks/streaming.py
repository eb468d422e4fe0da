r"""Times training from a stream on the host against training from the device.

    python -m benchmarks.streaming --output=benchmarks/results/streaming-cpu.json

Adversarial training of PreActResNet-18 on images of CIFAR-10's shape, at the laptop scale by
default. The stream reads a memory map in a temporary folder. Both sides start from the same
weights, take the same minibatches in calls of as many, and alternate in one process; their states
are compared bit for bit at the end. The first call compiles and is reported separately.
"""

import json
import pathlib
import resource
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.options import Parser
from experiments.run.build import make_apply
from jaxadv import models, objectives, training
from jaxadv.augment import augmentation

from ._report import provenance
from ._timing import alternate, ratio, summary


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--width", type=int, default=16, help="64 is the full network")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_images", type=int, default=10_000)
    parser.add_argument("--num_steps", type=int, default=10, help="of PGD")
    parser.add_argument("--call", type=int, default=8, help="minibatches per compiled call")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


class Side:
    """A program that trains on one source of minibatches."""

    def __init__(self, options, module, variables, data):
        apply_fn = make_apply(module)
        self.options, self.data, self.step = options, data, 0
        total = (options.repeats + 1) * options.call
        self.program = training.Program(
            apply_fn,
            objectives.adversarial_cross_entropy(apply_fn, num_steps=options.num_steps),
            batch_size=options.batch_size,
            augment=augmentation("reflect_crop_flip"),
            clean_pass=True,
            phases=[training.Phase(total, lambda first, n_in: training.sgd(0.1))],
        )
        self.state = training.TrainState.create(
            variables["params"], variables["batch_stats"], self.program
        )
        self.key = jax.random.key(0)

    def call(self):
        """Runs the next minibatches to completion."""
        self.state, _ = self.program.advance(self.state, self.data, self.key, self.options.call)
        jax.block_until_ready(self.state)


def measure(options) -> dict:
    """The times of both sides and the ratio of their throughputs."""
    module = models.preact_resnet18(10, width=options.width)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.num_images, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, options.num_images).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "images.npy"
        np.save(path, images)
        on_device = training.DeviceData(jnp.asarray(images), jnp.asarray(labels))
        memory_map = np.load(path, mmap_mode="r")
        with training.Stream(memory_map, labels, chunk=options.call) as stream:
            resident = Side(options, module, variables, on_device)
            streamed = Side(options, module, variables, stream)
            times = alternate(
                {"resident": resident.call, "streamed": streamed.call}, options.repeats
            )
    pairs = zip(jax.tree.leaves(resident.state), jax.tree.leaves(streamed.state), strict=True)
    return {
        "seconds": summary(times),
        "throughput of streamed relative to resident": ratio(times, "streamed", "resident"),
        "images_per_second": {
            name: options.call * options.batch_size / summary(times)[name]["median"]
            for name in ("resident", "streamed")
        },
        "states_are_bitwise_equal": all(
            np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
        ),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(arguments=None):
    """Measures, prints and writes the result."""
    options = parse(arguments)
    result = measure(options) | provenance(options)
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        pathlib.Path(options.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
