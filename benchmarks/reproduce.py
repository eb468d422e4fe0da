r"""What makes `make reproduce` fast: an epoch of its training, with and without each optimization.

    python -m benchmarks.reproduce
    python -m benchmarks.reproduce --dataset=cifar10 --minibatches=2

Adversarial training and EntropySGD at laptop scale on digits (or another data set), as the entry
point runs it, against three programs with the same result: convolutions with JAX's own gradients,
one compiled call per minibatch, and one device. All run the same minibatches from the same state,
in alternation; the final parameters are compared.
"""

from unittest import mock

import jax
import numpy as np

from experiments import settings
from experiments.cli import process
from experiments.cli.options import Parser
from experiments.run import build, environment
from experiments.run.devices import data_sharding, everywhere
from experiments.run.task import Stream, key_for, load_task
from jaxadv import training

from ._report import provenance, save
from ._timing import alternate, ratio, summary


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--methods", default="at,at_ensgd")
    parser.add_argument("--minibatches", type=int, help="minibatches per call; default: an epoch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


class Variant:
    """One way to run the first minibatches of a method."""

    def __init__(self, config, task, *, gradients="auto", sharding=None):
        make = build.build_model
        chosen = lambda *arguments: make(*arguments).clone(gradients=gradients)
        with mock.patch.object(build, "build_model", chosen):
            self.run = build.build(config, task, sharding)
        place = everywhere(sharding)
        self.key = key_for(config, Stream.TRAIN)
        data = training.DeviceData(*map(jax.numpy.asarray, task.train))
        self.data = jax.device_put(data, place)
        self.start = jax.device_put(self.run.make_state(), place)

    def call(self, minibatches: int, at_once: int):
        """Runs at least ``minibatches`` from the initial state, at most ``at_once`` per call."""
        # The compiled call donates the buffers of its state.
        state = jax.tree.map(jax.numpy.array, self.start)
        step = 0
        while step < minibatches:
            count = self.run.program.call_length(step, left=at_once)
            state, _ = self.run.program.advance(state, self.data, self.key, count)
            step += count
        return jax.block_until_ready(state.params)


def variants(method: str, dataset: str, minibatches: int | None) -> dict:
    """Calls by name; the first is what the entry point does."""
    config = settings.load_config(method, "laptop", dataset)
    task = load_task(config)
    sharding = data_sharding(config.batch_size) if jax.device_count() > 1 else None
    shipped = Variant(config, task, sharding=sharding)
    total = minibatches or shipped.run.batches_per_epoch
    # A compiled call of EntropySGD is an outer step, shorter only at the end of a run.
    entropy = config.optimizer == "entropy_sgd"
    most = 2 * config.entropy.n_in if entropy else total
    found = {"as shipped": lambda: shipped.call(total, most)}
    native = Variant(config, task, gradients="native", sharding=sharding)
    found["gradients of JAX"] = lambda: native.call(total, most)
    if not entropy:
        found["one minibatch a call"] = lambda: shipped.call(total, 1)
    if sharding is not None:
        alone = Variant(config, task)
        found["one device"] = lambda: alone.call(total, most)
    return found


def _apart(a, b) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    pairs = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in pairs]
    return (
        sum(((x - y) ** 2).sum() for x, y in pairs) / sum((y**2).sum() for _, y in pairs)
    ) ** 0.5


def main(arguments=None) -> dict:
    """Runs all and returns the report it writes."""
    options = parse(arguments)
    environment.configure()
    process.split_cpu(options.dataset)
    report = {**provenance(options), "methods": {}}
    for method in options.methods.split(","):
        calls = variants(method, options.dataset, options.minibatches)
        shipped, *others = calls
        ends = {name: call() for name, call in calls.items()}
        times = alternate(calls, options.repeats)
        row = report["methods"][method] = {
            "seconds": summary(times),
            "ratio": {name: ratio(times, shipped, name) for name in others},
            "parameters_apart": {name: _apart(ends[name], ends[shipped]) for name in others},
        }
        print(f"{method}: {row['seconds'][shipped]['median']:.3f} s as shipped", flush=True)
        for name in others:
            found = row["ratio"][name]
            print(f"  {found['median']:5.2f} times as fast as with {name} ({found['least']:.2f} to "
                  f"{found['greatest']:.2f}), parameters {row['parameters_apart'][name]:.1e} apart",
                  flush=True)  # fmt: skip
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
