r"""A user's own network under attacks, with and without its convolutions replaced.

    python -m benchmarks.own_networks --checkpoint=FILE.npz --output=own_networks.json

A network of six ``flax.linen.Conv`` under PGD, and a published network with the layout that a port
from PyTorch has (NCHW images, OIHW kernels) under Square and APGD; networks of depthwise
convolutions (as in MobileNetV2) and of grouped ones (as in ResNeXt) under PGD and Square; with
``native_convolutions`` and without alternate in one process. Also the same plain network in a loop
over ``jax.grad`` that is not ours. Says whether results have the same bits, else the share of equal
verdicts. ``--directions`` measures grouped convolutions alone: the convolution and its gradients in
the images and in the kernel, in a loop and outside.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from experiments.cli.options import Parser
from jaxadv import attacks, models

from ._checkpoints import load_checkpoint, load_images
from ._report import provenance, save
from ._timing import alternate, ratio, summary


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--checkpoint", help="a network of the architecture cnn4s2 or cnn4s2p0")
    parser.add_argument("--data", help="data set, npz or idx file; default: the checkpoint's")
    parser.add_argument("--batch_size", type=int, default=64, help="images of PGD")
    parser.add_argument("--number", type=int, default=32, help="images of Square and APGD")
    parser.add_argument("--width", type=int, default=32, help="channels of the flax network")
    parser.add_argument("--size", type=int, default=32, help="rows of an image of PGD")
    parser.add_argument("--num_steps", type=int, default=10, help="steps of PGD")
    parser.add_argument("--num_queries", type=int, default=500)
    parser.add_argument("--apgd_steps", type=int, default=50)
    parser.add_argument("--groups", action="store_true", help="the grouped networks alone")
    parser.add_argument(
        "--directions", action="store_true", help="grouped convolutions and their gradients alone"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


class Plain(linen.Module):
    """Six convolutions with group normalization."""

    width: int

    @linen.compact
    def __call__(self, x):
        """Images (B, H, W, 3) to logits (B, 10)."""
        for layer in range(6):
            x = linen.Conv(self.width, (3, 3), strides=1 + (layer % 3 == 2))(x)
            x = linen.relu(linen.GroupNorm(4)(x))
        return linen.Dense(10)(x.mean((1, 2)))


class Grouped(linen.Module):
    """Four residual blocks with depthwise convolutions, or grouped ones with ``groups``."""

    width: int
    groups: int | None = None

    @linen.compact
    def __call__(self, x):
        """Images (B, H, W, 3) to logits (B, 10)."""
        normed = lambda x: linen.GroupNorm(4)(x)
        x = linen.relu(normed(linen.Conv(self.width, (3, 3), strides=2)(x)))
        for block in range(4):
            inner = self.width * (2 if self.groups else 4)
            stride = 2 if block == 2 else 1
            y = linen.relu6(normed(linen.Conv(inner, (1, 1))(x)))
            groups = self.groups or inner
            y = linen.Conv(inner, (3, 3), strides=stride, feature_group_count=groups)(y)
            y = normed(linen.Conv(self.width, (1, 1))(linen.relu6(normed(y))))
            x = y if stride == 2 else x + y
        return linen.Dense(10)(x.mean((1, 2)))


def ported(checkpoint):
    """A published network as ported from PyTorch line by line: NCHW images and OIHW kernels."""
    w = {name: jnp.asarray(value) for name, value in checkpoint.weights.items()}
    mean, std = (
        jnp.asarray(v, jnp.float32).reshape(1, -1, 1, 1) for v in (checkpoint.mean, checkpoint.std)
    )
    pad = 0 if checkpoint.arch == "cnn4s2p0" else 1

    def conv(x, name):
        y = jax.lax.conv_general_dilated(x, w[f"{name}.weight"], (2, 2), ((pad, pad), (pad, pad)))
        return jax.nn.relu(y + w[f"{name}.bias"].reshape(1, -1, 1, 1))

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"][None]

    def logits_fn(images):
        x = conv(conv((images.transpose(0, 3, 1, 2) - mean) / std, "0"), "2")
        return linear(jax.nn.relu(linear(x.reshape(len(x), -1), "5")), "7")

    return logits_fn


def grouped_comparisons(options):
    """As `comparisons`, for networks with grouped convolutions."""
    images = jax.random.uniform(jax.random.key(0), (options.number, options.size, options.size, 3))
    for name, module in {
        "depthwise (MobileNetV2-like)": Grouped(options.width),
        "16 groups (ResNeXt-like)": Grouped(options.width, 16),
    }.items():
        variables = module.init(jax.random.key(1), images[:1])
        logits_fn: Any = lambda x, module=module, variables=variables: module.apply(variables, x)
        labels = logits_fn(images).argmax(1).astype(jnp.int32)
        given = logits_fn, images, labels
        what = f"four blocks, {name}, width {options.width}, {options.number} images"
        threat = dict(norm="linf", eps=8 / 255, step_size=2 / 255, num_steps=options.num_steps)
        yield (
            f"PGD-{options.num_steps}, {what}",
            lambda given=given, threat=threat: attacks.pgd(jax.random.key(2), *given, **threat),
        )
        # A radius at which the network stays right, so that every query is made.
        queries = dict(norm="linf", eps=1e-4, num_queries=options.num_queries // 5)
        yield (
            f"Square, {queries['num_queries']} queries, {what}",
            lambda given=given, queries=queries: (
                attacks.square(jax.random.key(3), *given, **queries).success
            ),
        )


# Images, size, channels, features, kernel, stride, groups.
CONVOLUTIONS = [
    (4, 32, 32, 32, 3, 1, 32),
    (4, 16, 96, 96, 3, 2, 96),
    (4, 8, 128, 128, 7, 1, 128),
    (4, 32, 3, 48, 3, 1, 3),
    (4, 16, 64, 64, 3, 1, 16),
    (4, 16, 128, 128, 3, 2, 16),
    (4, 8, 256, 256, 3, 1, 32),
    (4, 16, 64, 64, 3, 1, 2),
    (4, 16, 64, 64, 1, 1, 4),
]


def directions(options):
    """Rows: one grouped convolution and its gradients, as it is and replaced."""
    rng = np.random.default_rng(0)
    for shape in CONVOLUTIONS:
        number, size, channels, features, side, stride, groups = shape
        x = jnp.asarray(rng.normal(size=(number, size, size, channels)), jnp.float32)
        k = jnp.asarray(rng.normal(size=(side, side, channels // groups, features)), jnp.float32)
        native = lambda x, k, stride=stride, groups=groups: jax.lax.conv_general_dilated(
            x, k, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip
        g = native(x, k)
        forms = {"as it is": native, "replaced": models.fast_convolutions(native)}
        for what in ("forward", "in the images", "in the kernel"):
            for looped in (True, False):
                times = alternate(
                    {
                        name: _direction(form, what, (x, k, g), 2 if looped else 0)
                        for name, form in forms.items()
                    },
                    options.repeats,
                )
                found = ratio(times, "replaced", "as it is")
                print(*shape, what, "in a loop" * looped, f"{found['median']:.2f}", flush=True)
                yield {
                    "shape": shape, "what": what, "in a loop": looped,
                    "seconds": summary(times), "ratio": found,
                }  # fmt: skip


def _direction(form, what, given, length):
    def once(x, k, g):
        if what == "forward":
            return form(x, k)
        return jax.vjp(form, x, k)[1](g)[what == "in the kernel"]

    def run(*given):
        def step(carry, _):
            tiny = 1e-30 * carry.ravel()[0]  # in every operand: nothing is moved out of the loop
            return once(*(a + tiny for a in given)), None

        first = once(*given)
        return jax.lax.scan(step, first, None, length=length)[0] if length else first

    compiled = jax.jit(run)
    return lambda: jax.block_until_ready(compiled(*given))


def comparisons(options):
    """Calls by name, each with the function of its labels that its result is judged by."""
    if not options.groups:
        yield from plain_comparisons(options)
    yield from grouped_comparisons(options)


def plain_comparisons(options):
    """As `comparisons`, for networks without groups."""
    shape = (options.batch_size, options.size, options.size, 3)
    images = jax.random.uniform(jax.random.key(0), shape)
    module = Plain(options.width)
    variables = module.init(jax.random.key(1), images[:1])
    plain: Any = lambda x: module.apply(variables, x)
    labels = plain(images).argmax(1).astype(jnp.int32)
    size = f"six flax.linen.Conv of width {options.width}, batch {options.batch_size}"
    threat = dict(norm="linf", eps=8 / 255, step_size=2 / 255, num_steps=options.num_steps)
    yield (
        f"PGD-{options.num_steps}, {size}",
        lambda: attacks.pgd(jax.random.key(2), plain, images, labels, **threat),  # pyright: ignore
    )
    if options.checkpoint:
        checkpoint = load_checkpoint(options.checkpoint)
        x, y = load_images(options.data or checkpoint.dataset, options.number)
        network, eps = ported(checkpoint), checkpoint.eps
        name = f"{checkpoint.name} with OIHW kernels, {len(x)} images"
        queries, steps = options.num_queries, options.apgd_steps
        given = (jax.random.key(3), network, jnp.asarray(x), jnp.asarray(y))
        yield (
            f"Square, {queries} queries, {name}",
            lambda: attacks.square(*given, norm="linf", eps=eps, num_queries=queries).success,
        )
        yield (
            f"APGD-CE, {steps} steps, {name}",
            lambda: attacks.apgd(*given, norm="linf", eps=eps, num_steps=steps).success,
        )


def own_loop(options):
    """Sign steps of a loop that is not ours: plain flax, flax rewritten, `jaxadv.models.Conv`."""
    shape = (options.batch_size, options.size, options.size, 3)
    images = jax.random.uniform(jax.random.key(0), shape)

    def network(conv):
        class Network(linen.Module):
            @linen.compact
            def __call__(self, x):
                for _ in range(3):
                    x = linen.relu(conv(options.width)(x))
                return x.mean((1, 2))

        module = Network()
        variables = module.init(jax.random.key(1), images[:1])
        return lambda x: module.apply(variables, x)

    flax = network(lambda width: linen.Conv(width, (3, 3)))
    ours = network(lambda width: models.Conv(width, padding=1, use_bias=True))
    calls = {}
    for name, logits_fn in {
        "flax.linen.Conv": flax,
        "flax.linen.Conv in fast_convolutions": models.fast_convolutions(flax),
        "jaxadv.models.Conv": ours,
    }.items():
        loss = lambda x, logits_fn=logits_fn: (logits_fn(x) ** 2).sum()
        step = lambda _, x, loss=loss: x + 0.01 * jnp.sign(jax.grad(loss)(x))
        run = jax.jit(lambda x, step=step: jax.lax.fori_loop(0, options.num_steps, step, x))
        calls[name] = lambda run=run: jax.block_until_ready(run(images))
    return calls


def main(arguments=None) -> dict:
    """Measures, prints and returns the report it writes."""
    options = parse(arguments)
    if options.directions:
        return _written(options, {"directions": list(directions(options))})
    rows = []
    for name, call in comparisons(options):

        def as_given(call=call):
            with models.native_convolutions():
                return jax.block_until_ready(call())

        calls = {"as it is": as_given, "replaced": lambda call=call: jax.block_until_ready(call())}
        found = [np.asarray(run()) for run in calls.values()]
        times = alternate(calls, options.repeats)
        rows.append({
            "what": name,
            "seconds": summary(times),
            "ratio": ratio(times, "replaced", "as it is"),
            "same_bits": bool(np.array_equal(found[0], found[1])),
            "equal": float((found[0] == found[1]).mean()),
        })  # fmt: skip
        print(name, *(f"{k} {v['median']:.2f} s" for k, v in rows[-1]["seconds"].items()),
              f"ratio {rows[-1]['ratio']['median']:.2f} equal {rows[-1]['equal']:.4f}")  # fmt: skip
    if options.groups:
        return _written(options, {"rows": rows})
    times = alternate(own_loop(options), options.repeats)
    peer = "flax.linen.Conv"
    loops = {
        "seconds": summary(times),
        "ratio": {k: ratio(times, k, peer) for k in times if k != peer and "," not in k},
    }
    for name, found in loops["ratio"].items():
        print(f"own loop: {name} {found['median']:.2f} times as fast as {peer}")
    return _written(options, {"rows": rows, "own loop": loops})


def _written(options, found: dict) -> dict:
    report = {**provenance(options), **found}
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
