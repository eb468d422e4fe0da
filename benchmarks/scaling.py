r"""How cost grows with batch size, PGD steps, n_in, images, classes and parameters; peak memory.

    python -m benchmarks.scaling --output=scaling.json       # also scaling.png, scaling.pdf
    python -m benchmarks.scaling --memory --output=memory.json

Each sweep varies one number. The exponent in the legend is the slope between the last two points of
the log-log plot: 1 is linear. The linear model costs next to nothing and every image survives, so
that AutoAttack's bookkeeping is timed: rows, targets, sorting. "EntropySGD with noise" (and
without) is the optimizer's own arithmetic, n_in = 4, with a gradient that is free, theta' itself;
its rows also have the floats per parameter that the compiled outer step reads and writes, counting
the chain's loop once, and the least possible. ``--memory`` instead reports the peak resident memory
of two fresh processes: the first minibatches of the CIFAR-10 entry point at laptop scale, and
AutoAttack (standard, short) on many images at batch size 500.
"""

import argparse
import json
import math
import pathlib
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import settings
from experiments.cli.options import Parser
from experiments.run import build
from experiments.run.task import Stream, key_for, load_task
from jaxadv import models, optim, training
from jaxadv.attacks import autoattack, pgd

from ._programs import adversarial_training
from ._report import provenance, save
from ._timing import alternate, summary


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test the script")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of times")
    parser.add_argument(
        "--images", type=int, default=10_000, help="number of images for AutoAttack's memory"
    )
    parser.add_argument("--child", choices=("train", "autoattack"), help=argparse.SUPPRESS)
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


def _network(width: int):
    module = models.preact_resnet18(10, width=width)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return jax.tree_util.Partial(module.apply, variables), variables


def _images(number: int):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(number, 32, 32, 3)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(rng.integers(0, 10, number), jnp.int32)


def _pgd(batch_size: int = 16, num_steps: int = 10, width: int = 8):
    model, _ = _network(width)
    x, y = _images(batch_size)
    attack = jax.jit(
        lambda key, x, y: pgd(
            key, model, x, y, norm="linf", eps=8 / 255, step_size=2 / 255, num_steps=num_steps
        )
    )
    return lambda: jax.block_until_ready(attack(jax.random.key(0), x, y))


def _outer_step(n_in: int):
    module, shape = models.small_convnet(10, features=(16, 32)), (8, 8, 1)
    variables = module.init(jax.random.key(0), jnp.zeros((1, *shape)))
    program, data = adversarial_training(module, shape, batch_size=32, num_steps=10, minibatches=4)
    tx = optim.entropy_sgd(0.1, key=jax.random.key(1), n_in=n_in)
    state = training.TrainState.create(variables["params"], {}, tx)
    states = [jax.tree.map(jnp.array, state)]
    step = program.entropy_step(tx, n_in)

    def call():
        states[0], _ = jax.block_until_ready(step(states[0], data, jax.random.key(0)))

    return call


def _standard(model, images, **options):
    """Standard AutoAttack where nothing of a tiny radius breaks an image."""
    labels = model(images).argmax(1).astype(jnp.int32)
    options |= dict(norm="linf", progress=False)
    return lambda: autoattack(jax.random.key(0), model, images, labels, **options)


def _autoattack(number: int):
    module = models.small_convnet(10, features=(8, 16))
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    model = jax.tree_util.Partial(module.apply, variables)
    x = jax.random.uniform(jax.random.key(1), (number, 8, 8, 1))
    return _standard(model, x, eps=1e-4, batch_size=256, num_steps=10, num_queries=100)


def _linear_autoattack(number: int = 256, classes: int = 10):
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(64, classes)), jnp.float32)
    model = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)
    x = jnp.asarray(rng.uniform(size=(number, 8, 8, 1)), jnp.float32)
    return _standard(model, x, eps=1e-6, batch_size=500, num_steps=5, num_queries=20)


class OuterStep:
    """An outer step of EntropySGD whose gradient is free.

    Attributes:
        floats: per parameter, read and written by the compiled step and by the least one: a step of
            the chain reads slow and fast weights, momentum and average and writes the last three;
            the outer step reads slow weights, average and momentum and writes two of them.
    """

    def __init__(self, parameters: int, noise: float, n_in: int = 4):
        tx = optim.entropy_sgd(0.1, key=jax.random.key(0), n_in=n_in, noise=noise)
        gradient = lambda params, batch, carry: (params, carry)

        def step(params, state):
            nothing = jnp.zeros(n_in)
            updates, state = tx.update(None, state, params, grad_fn=gradient, batches=nothing)
            return optax.apply_updates(params, updates), state

        self._params = jnp.ones(parameters)
        self._state = tx.init(self._params)
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(self._params, self._state)
        self._step = lowered.compile()
        cost: Any = self._step.cost_analysis()
        self.floats = {"compiled": cost["bytes accessed"] / 4 / parameters, "least": 12}

    def __call__(self) -> None:
        """Takes the step."""
        self._params, self._state = jax.block_until_ready(self._step(self._params, self._state))


def sweeps(options) -> Iterator[tuple[str, dict[int, Callable[[], object]]]]:
    """Title and calls by value, one sweep after the other so that memory is free again."""
    sizes = lambda *usual: usual[:2] if options.quick else usual
    few = 4 if options.quick else 256
    yield "PGD: batch size", {n: _pgd(batch_size=n) for n in sizes(4, 8, 16, 32, 64, 128, 256)}
    yield "PGD: steps", {n: _pgd(num_steps=n) for n in sizes(1, 2, 5, 10, 20, 50)}
    yield "PGD: width of PreActResNet-18", {n: _pgd(width=n) for n in sizes(4, 8, 16, 32, 64)}
    yield "EntropySGD: n_in", {n: _outer_step(n) for n in sizes(1, 2, 5, 10, 20, 50)}
    for noise, words in ((0.0, "without"), (1e-4, "with")):
        title = f"EntropySGD {words} noise: parameters"
        yield title, {n: OuterStep(n, noise) for n in sizes(10**5, 10**6, 10**7, 10**8)}
    yield "AutoAttack: images", {n: _autoattack(n) for n in sizes(16, 64, 256, 1024, 4096)}
    title = "AutoAttack, linear model: images"
    yield title, {n: _linear_autoattack(n) for n in sizes(16, 64, 500, 2000, 10_000, 50_000)}
    title = "AutoAttack, linear model: classes"
    yield title, {n: _linear_autoattack(few, n) for n in sizes(10, 50, 200, 1000)}


def figure(report: dict, path: pathlib.Path) -> None:
    """Plots seconds against the varied number, one panel per sweep."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = report["sweeps"]
    columns = -(-len(rows) // 2)
    fig, grid = plt.subplots(2, columns, figsize=(3.1 * columns, 5.8), layout="constrained")
    axes = grid.ravel()
    for axis in axes[len(rows) :]:
        axis.remove()
    for axis, (title, points) in zip(axes, rows.items(), strict=False):
        x = np.array([point["value"] for point in points], float)
        y = np.array([point["seconds"]["median"] for point in points])
        low = y - [point["seconds"]["least"] for point in points]
        high = [point["seconds"]["greatest"] for point in points] - y
        axis.errorbar(x, y, yerr=[low, high], fmt="o-", ms=4, capsize=2, label="measured")
        axis.plot(x, y[-1] * x / x[-1], ":", color="0.5", label="linear")
        axis.set(xscale="log", yscale="log", title=title.split(": ")[0])
        axis.set_xlabel(f"{title.split(': ')[1]}\n(slope at the end {points[-1]['slope']:.2f})")
        shown = x if len(x) < 7 else x[::2]
        axis.set_xticks(shown, [_short(value) for value in shown], minor=False)
        axis.minorticks_off()
    for axis in grid[:, 0]:
        axis.set_ylabel("seconds")
    axes[0].legend(frameon=False)
    fig.savefig(path.with_suffix(".png"), dpi=200)
    fig.savefig(path.with_suffix(".pdf"))
    plt.close(fig)


def _short(value: float) -> str:
    """A tick's label: powers of ten from 10^5, thousands from 10,000."""
    power = math.log10(value)
    if value >= 1e5 and power == round(power):
        return f"$10^{power:.0f}$"
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def time_sweeps(options) -> dict:
    """Runs all sweeps, alternating between the points of each."""
    found = {}
    for title, calls in sweeps(options):
        times = summary(alternate({str(n): call for n, call in calls.items()}, options.repeats))
        found[title] = points = [{"value": n, "seconds": times[str(n)]} for n in calls]
        for before, point in zip([None, *points], points, strict=False):
            call = calls[point["value"]]
            point |= {"floats": call.floats} if isinstance(call, OuterStep) else {}
            if before is None:
                point["slope"] = None
                continue
            rise = point["seconds"]["median"] / before["seconds"]["median"]
            point["slope"] = float(np.log(rise) / np.log(point["value"] / before["value"]))
        shown = "  ".join(f"{p['value']}: {p['seconds']['median']:.3f}" for p in points)
        print(f"{title}: {shown} s; slope {points[-1]['slope']:.2f}", flush=True)
    return {"sweeps": found}


def child(options) -> None:
    """The child process whose memory is measured."""
    if options.child == "train":
        config = settings.load_config("at", "laptop", "cifar10")
        task = load_task(config)
        run = build.build(config, task)
        data, state = training.DeviceData(*map(jnp.asarray, task.train)), run.make_state()
        for _ in range(2):
            state, _ = run.program.advance(state, data, key_for(config, Stream.TRAIN), 2)
        jax.block_until_ready(state)
    else:
        model, _ = _network(4)
        x, _ = _images(options.images)
        y = jnp.concatenate([model(part).argmax(1) for part in jnp.split(x, 20)]).astype(jnp.int32)
        autoattack(
            jax.random.key(0),
            model,
            x,
            y,
            norm="linf",
            eps=8 / 255,
            batch_size=500,
            num_steps=3,
            num_queries=20,
            progress=False,
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"peak_gib": peak}))


def measure_memory(options) -> dict:
    """Peak resident memory of the two processes in GiB, over several runs of each."""
    found = {"train": [], "autoattack": []}
    for _ in range(options.repeats):
        for name, peaks in found.items():
            words = ["-m", "benchmarks.scaling", f"--child={name}", f"--images={options.images}"]
            words = [sys.executable, *words]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            peaks.append(json.loads(done.stdout.splitlines()[-1])["peak_gib"])
            print(f"{name}: peak {peaks[-1]:.2f} GiB", flush=True)
    return {"peak_gib": summary(found)}


def main(arguments=None) -> dict:
    """Measures and returns the report it writes."""
    options = parse(arguments)
    if options.child:
        child(options)
        return {}
    report = provenance(options)
    report |= measure_memory(options) if options.memory else time_sweeps(options)
    if options.output:
        path = pathlib.Path(options.output)
        save(report, path)
        if not options.memory:
            figure(report, path)
    return report


if __name__ == "__main__":
    main()
