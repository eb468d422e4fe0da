r"""EntropySGD: one scanned outer step against n_in separately compiled steps.

    python -m benchmarks.entropy_sgd
    python -m benchmarks.entropy_sgd --model=preact_resnet18 --width=16 --batch_size=32

Adversarial training with PGD-10. "scanned" is `jaxadv.optim.entropy_sgd`: one program for an outer
step. "one at a time" is `jaxadv.optim.entropy_sgd_stepwise` in a program called once per minibatch.
Both do the same arithmetic on the same minibatches, in alternation. For each n_in, also reports the
compile time of the scanned program and its number of instructions, which must not grow with n_in.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.cli.options import Parser
from jaxadv import models, optim, training

from ._programs import adversarial_training
from ._report import provenance, save
from ._timing import alternate, ratio, summary

MODELS = {
    "small_convnet": (lambda width: models.small_convnet(10, features=(width, 2 * width)), 8, 1),
    "preact_resnet18": (lambda width: models.preact_resnet18(10, width=width), 32, 3),
}


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="small_convnet")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_steps", type=int, default=10, help="of PGD")
    parser.add_argument("--n_in", default="5,10,20,40")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


def build(options):
    """Program, variables and data."""
    make, size, channels = MODELS[options.model]
    module = make(options.width)
    shape = (size, size, channels)
    variables = module.init(jax.random.key(0), jnp.zeros((1, *shape)))
    program, data = adversarial_training(
        module,
        shape,
        batch_size=options.batch_size,
        num_steps=options.num_steps,
        minibatches=4,
    )
    return program, variables, data


def compare(options, n_in: int) -> dict:
    """Times both for one n_in, and measures the size of the scanned program."""
    program, variables, data = build(options)
    state = lambda tx: jax.tree.map(
        jnp.array,
        training.TrainState.create(variables["params"], variables.get("batch_stats", {}), tx),
    )
    key = jax.random.key(0)
    scanned_tx = optim.entropy_sgd(0.1, key=jax.random.key(1), n_in=n_in)
    stepwise_tx = optim.entropy_sgd_stepwise(0.1, key=jax.random.key(1), n_in=n_in)
    states = {"scanned": state(scanned_tx), "one at a time": state(stepwise_tx)}

    started = time.perf_counter()
    lowered = program.entropy_step(scanned_tx, n_in).lower(states["scanned"], data, key)
    traced = time.perf_counter() - started
    started = time.perf_counter()
    scanned = lowered.compile()
    compiled = time.perf_counter() - started
    single = program.sgd_steps(stepwise_tx)

    def scanned_call():
        found, _ = scanned(states["scanned"], data, key)
        states["scanned"] = jax.block_until_ready(found)

    def stepwise_call():
        found = states["one at a time"]
        for _ in range(n_in):
            found, _ = single(found, data, key, 1)
        states["one at a time"] = jax.block_until_ready(found)

    calls: dict[str, Callable[[], object]] = {
        "scanned": scanned_call,
        "one at a time": stepwise_call,
    }
    times = alternate(calls, options.repeats)
    text = scanned.as_text() or ""
    return {
        "n_in": n_in,
        "seconds": summary(times),
        "ratio": ratio(times, "scanned", "one at a time"),
        "trace_seconds": traced,
        "compile_seconds": compiled,
        "instructions": sum(" = " in line for line in text.splitlines()),
    }


def main(arguments=None) -> dict:
    """Runs all and returns the report it writes."""
    options = parse(arguments)
    rows = []
    for n_in in map(int, options.n_in.split(",")):
        rows.append(row := compare(options, n_in))
        print(f"n_in {n_in:3}  scanned {row['seconds']['scanned']['median']:7.3f} s  one at a time "
              f"{row['seconds']['one at a time']['median']:7.3f} s  ratio "
              f"{row['ratio']['median']:5.2f}  compiled in {row['compile_seconds']:5.1f} s, "
              f"{row['instructions']} instructions", flush=True)  # fmt: skip
    report = {**provenance(options), "rows": rows}
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
