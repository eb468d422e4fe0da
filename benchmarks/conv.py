"""The convolution of `jaxadv.models` against JAX's native one, in and out of loops.

    python -m benchmarks.conv            # minutes on 2 cores; writes results/conv_cpu.json
    python -m benchmarks.conv --quick    # tiny sizes, seconds; writes only with --output

Milliseconds are of one convolution, or of one step of a network; trust the ratios.
"""

import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.cli.options import Parser
from jaxadv import models

from ._report import provenance, save
from ._timing import alternate, ratio, summary

SHAPES = [  # batch, image size, channels in, channels out, kernel, stride
    (64, 32, 16, 16, 3, 1),
    (64, 16, 32, 32, 3, 1),
    (64, 8, 64, 64, 3, 1),
    (64, 32, 16, 32, 3, 2),
    (64, 32, 16, 32, 1, 2),
    (32, 32, 64, 64, 3, 1),
    (32, 8, 256, 256, 3, 1),
]
QUICK = [(4, 8, 4, 4, 3, 1), (4, 8, 4, 8, 3, 2)]
MODES: tuple[models.Gradients, ...] = ("native", "explicit")
OUTPUT = pathlib.Path(__file__).parent / "results" / "conv_cpu.json"


def compare(functions, args, calls, repeats):
    """Milliseconds a call of each function, and how many times as fast explicit gradients are."""
    compiled = {name: jax.jit(f).lower(*args).compile() for name, f in functions.items()}
    times = alternate(
        {name: lambda f=f: jax.block_until_ready(f(*args)) for name, f in compiled.items()},
        repeats,
    )
    each = {name: [1e3 * t / calls[name] for t in times[name]] for name in functions}
    ratios = {
        re.sub("explicit,? ?", "", name) or "once":
            ratio(each, name, name.replace("explicit", "native"))
        for name in each if "explicit" in name and name.replace("explicit", "native") in each
    }  # fmt: skip
    return {"ms": summary(each), "ratio": ratios}


def convolution(shape, repeats, length=2):
    """One convolution: forward, input gradient and kernel gradient, in and out of a scan."""
    batch, size, channels, features, kernel, stride = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, size, size, channels)), jnp.float32)
    k = jnp.asarray(rng.normal(size=(kernel, kernel, channels, features)), jnp.float32)
    row = {}
    for what in ("forward", "input gradient", "kernel gradient"):
        functions = {}
        for mode in MODES:

            def conv(x, k, mode: models.Gradients = mode):
                padding = kernel // 2
                return models.conv2d(x, k, strides=stride, padding=padding, gradients=mode)

            g = 0.1 * conv(x, k)

            def once(x, k, g, what=what, conv=conv):
                if what == "forward":
                    return conv(x, k)
                wrt = ("input gradient", "kernel gradient").index(what)
                return jax.vjp(conv, x, k)[1](g)[wrt]

            def loop(x, k, g, once=once):
                # The carry enters every operand, so that nothing is hoisted out of the loop.
                def body(carry, _):
                    tiny = 1e-30 * carry.ravel()[0]
                    return once(x + tiny, k + tiny, g + tiny), None

                return lax.scan(body, once(x, k, g), None, length=length)[0]

            functions[f"{mode}"], functions[f"{mode} in a loop"] = once, loop
        calls = {name: 1 + length * ("loop" in name) for name in functions}
        row[what] = compare(functions, (x, k, g), calls, repeats)  # pyright: ignore[reportPossiblyUnboundVariable]  # there are modes
    return row


def network(width, batch, size, blocks, repeats, steps=5):
    """PGD and SGD steps of a PreActResNet in train mode, rolled and unrolled."""
    x = jax.random.uniform(jax.random.key(0), (batch, size, size, 3))
    labels = jnp.arange(batch) % 10
    functions = {}
    for mode in ("explicit", "native"):
        module = models.preact_resnet18(10, width=width, blocks=blocks, gradients=mode)
        variables = jax.jit(module.init)(jax.random.key(1), x)

        def loss(params, x, module=module, variables=variables):
            logits: Any = module.apply({**variables, "params": params}, x, train=True)
            return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(batch), labels])

        def attack(params, x, loss=loss):
            return x + 0.01 * jnp.sign(jax.grad(loss, 1)(params, x))

        def descend(params, x, loss=loss):
            gradient = jax.grad(loss)(params, x)
            return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)

        def rolled(params, x, attack=attack):
            return lax.fori_loop(0, steps, lambda _, x: attack(params, x), x)

        def unrolled(params, x, attack=attack):
            for _ in range(steps):
                x = attack(params, x)
            return x

        def sgd_rolled(params, x, descend=descend):
            return lax.scan(lambda p, _: (descend(p, x), None), params, None, length=steps)[0]

        def sgd_unrolled(params, x, descend=descend):
            for _ in range(steps):
                params = descend(params, x)
            return params

        functions[f"PGD, {mode}, unrolled"] = unrolled
        functions[f"PGD, {mode}, rolled"] = rolled
        functions[f"SGD, {mode}, unrolled"] = sgd_unrolled
        if mode == "explicit":  # native takes minutes
            functions[f"SGD, {mode}, rolled"] = sgd_rolled
    args = (variables["params"], x)
    found = compare(functions, args, dict.fromkeys(functions, steps), repeats)
    return {"width": width, "batch": batch, "image_size": size, **found}


def main():
    """Measures, prints and writes."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--output", type=pathlib.Path, help=f"default {OUTPUT.name}")
    options = parser.parse_args()
    repeats = 2 if options.quick else 5
    report: dict[str, Any] = {**provenance(options), "convolutions": [], "networks": []}
    for shape in QUICK if options.quick else SHAPES:
        row = convolution(shape, repeats)
        report["convolutions"].append({"shape": shape, **row})
        for what, found in row.items():
            _show(f"{shape} {what}", found)
    settings = (2, 4, 8, (1, 1)) if options.quick else (16, 64, 32, (2, 2, 2, 2))
    report["networks"].append(network(*settings, repeats))
    _show(f"PreActResNet-18 of width {settings[0]}, a step", report["networks"][-1])
    save(report, options.output or (None if options.quick else OUTPUT))


def _show(title: str, found: dict) -> None:
    ms = ", ".join(f"{name} {row['median']:.2f}" for name, row in found["ms"].items())
    ratios = ", ".join(f"{name} {row['median']:.1f}" for name, row in found["ratio"].items())
    print(f"{title}: ms {ms}; native/explicit {ratios}", flush=True)


if __name__ == "__main__":
    main()
