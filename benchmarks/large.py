r"""What attacks on large images cost beside the passes of the network, and their memory an image.

    python -m benchmarks.large --output=large_images.json

At 224x224 pixels the state of an attack is a dozen arrays of the size of the images. Each attack
alternates with a loop of as many forward and backward passes on the same images, which does nothing
else, in CPU seconds; the ratio is 1 if the attack costs nothing of its own. The networks are two
convolutions (strides 4 and 2) and a ResNet-50, with random weights, evaluated ``--rows`` images at
a time, as AutoAttack does on CPU. Radii are so small that every image survives. ``--profile``
traces two more calls of each, see ``_trace.py``.
"""

import functools
import time
from collections.abc import Callable

import jax
from flax import linen

from experiments.cli.options import Parser
from jaxadv import attacks, models

from . import _trace
from ._report import provenance, save
from ._timing import alternate, ratio, summary

RADII = {"linf": 1e-7, "l2": 1e-6, "l1": 1e-5}
SQUARE = 10  # queries for every step of the others


class Small(linen.Module):
    """Two convolutions, the mean over all places, and a linear layer."""

    @linen.compact
    def __call__(self, x):
        """Logits of 10 classes."""
        x = linen.relu(linen.Conv(16, (7, 7), 4)(x))
        x = linen.relu(linen.Conv(32, (3, 3), 2)(x))
        return linen.Dense(10)(x.mean((1, 2)))


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--networks", default="small,resnet50", help="comma-separated")
    parser.add_argument("--norms", default="linf,l2,l1", help="comma-separated")
    parser.add_argument("--size", type=int, default=224, help="height and width")
    parser.add_argument("--rows", type=int, default=1, help="images in a call")
    parser.add_argument("--num_steps", type=int, default=10, help="of APGD-CE and FAB-T")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="also trace where the time goes")
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


def passes(logits_fn, images, forward: int, backward: int) -> Callable[[], object]:
    """So many passes over the images, ``backward`` of the forward ones with a gradient."""
    logits_fn = models.fast_convolutions(logits_fn)
    gradient = jax.grad(lambda points: logits_fn(points).max(1).sum())

    # Every pass needs the one before it, so that none is dropped or moved out of the loop.
    @jax.jit
    def run(points):
        both = lambda _, points: points - 1e-9 * gradient(points)
        points = jax.lax.fori_loop(0, backward, both, points)
        one = lambda _, points: points - 1e-9 * logits_fn(points).sum()
        return jax.lax.fori_loop(0, forward - backward, one, points)

    return lambda: jax.block_until_ready(run(images))


def cases(options, logits_fn, images, labels, norm: str) -> dict:
    """By name the attack, as a compiled function, and its forward and backward passes."""
    steps, queries = options.num_steps, SQUARE * options.num_steps
    given = {"norm": norm, "eps": RADII[norm]}
    found = {
        "APGD-CE": (
            functools.partial(attacks.apgd, num_steps=steps, **given), steps + 1, steps + 1,
        ),
        "FAB-T": (
            functools.partial(attacks.fab_targeted, num_steps=steps, num_targets=1, **given),
            2 * steps + 3, steps,
        ),
        "Square": (functools.partial(attacks.square, num_queries=queries, **given), queries + 2, 0),
    }  # fmt: skip
    compiled = {}
    for name, (attack, forward, backward) in found.items():
        run = jax.jit(lambda images, labels, attack=attack: attack(0, logits_fn, images, labels))
        compiled[name] = run.lower(images, labels).compile(), forward, backward
    return compiled


def measure(options, name: str, size: tuple[int, ...]) -> list[dict]:
    """The rows of a network."""
    module = {"small": Small, "resnet50": lambda: models.resnet50(1000)}[name]()
    images = jax.random.uniform(jax.random.key(0), (options.rows, *size))
    variables = jax.jit(module.init)(jax.random.key(1), images[:1])
    logits_fn = lambda points: module.apply(variables, points)
    labels = jax.jit(logits_fn)(images).argmax(1).astype("int32")
    found = []
    for norm in options.norms.split(","):
        for attack, (run, forward, backward) in cases(
            options, logits_fn, images, labels, norm
        ).items():
            rivals = {
                "passes": passes(logits_fn, images, forward, backward),
                "attack": lambda run=run: jax.block_until_ready(run(images, labels)),
            }
            times = alternate(rivals, options.repeats, clock=time.process_time)
            memory = run.memory_analysis()
            bytes_used = memory.temp_size_in_bytes + memory.output_size_in_bytes
            row = {"network": name, "norm": norm, "attack": attack}
            row |= {"forward": forward, "backward": backward}
            row |= {"cpu seconds": summary(times), "ratio": ratio(times, "passes", "attack")}
            row["MiB an image"] = bytes_used / options.rows / 2**20
            print(f"{name:9} {norm:4} {attack:8} {row['ratio']['median']:6.2f} times the passes, "
                  f"{row['MiB an image']:7.1f} MiB an image", flush=True)  # fmt: skip
            if options.profile:
                label = f"{attack}, {norm}"
                traced = {"attack": f"jaxadv, {label}", "passes": f"jaxadv, passes of {label}"}
                row["profile"] = _trace.of_all({traced[what]: rivals[what] for what in traced})
            found.append(row)
    return found


def main(arguments=None) -> dict:
    """Measures all and returns the report it writes."""
    options = parse(arguments)
    size = (options.size, options.size, 3)
    rows = [row for name in options.networks.split(",") for row in measure(options, name, size)]
    report = {**provenance(options), "rows": rows}
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
