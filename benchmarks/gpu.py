r"""Throughput of the networks as a share of the measured matrix-product ceiling.

    python -m benchmarks.gpu                                        # on a GPU: the full networks
    python -m benchmarks.gpu --width=4 --batch_size=8 --models=preact_resnet18 --precisions=float32

Images per second of the forward pass, forward pass with input gradient, and adversarial training
step (PGD-10, SGD) for PreActResNet-18 and WideResNet-34-10 in float32 (full-precision products),
tf32 and bfloat16; TFLOP/s from the compiler's operation count, and their share of a large matrix
product in the same precision on the same device. The training step implies the time of a CIFAR-10
epoch. `benchmarks.training` and, for AutoAttack, `benchmarks.autoattack` compare with PyTorch on
the same device.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.options import Parser
from jaxadv import models, training

from ._programs import adversarial_training
from ._report import provenance, save

MODELS = {
    "preact_resnet18": lambda width, dtype: models.preact_resnet18(10, width=width, dtype=dtype),
    "wrn34_10": lambda width, dtype: models.wide_resnet34_10(
        10, widen_factor=max(width * 10 // 64, 1), dtype=dtype
    ),
}
PRECISIONS = {
    "float32": (jnp.float32, "highest"),
    "tf32": (jnp.float32, "default"),
    "bfloat16": (jnp.bfloat16, "default"),
}


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--width", type=int, default=64, help="64 is the full network")
    parser.add_argument(
        "--batch_size", type=int, default=128, help="batch size of the training step"
    )
    parser.add_argument("--eval_batch_size", type=int, default=1024)
    parser.add_argument("--num_steps", type=int, default=10, help="of PGD")
    parser.add_argument("--product", type=int, default=8192, help="rows of the matrix product")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


def measure(function, arguments, repeats: int) -> dict:
    """Median seconds per call, compile seconds, and the floating-point operations counted."""
    started = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - started
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - started)
    cost = compiled.cost_analysis() or {}
    return {
        "seconds": float(np.median(seconds)),
        "compile_seconds": compile_seconds,
        "counted_flops": float(cost.get("flops", 0)),
    }


def ceiling(options, dtype) -> float:
    """TFLOP/s of a square matrix product."""
    n = options.product
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    found = measure(lambda a: a @ a, (a,), options.repeats)
    return 2 * n**3 / found["seconds"] / 1e12


def network(options, name: str, dtype, top: float) -> dict:
    """The three measurements of one network."""
    module = MODELS[name](options.width, dtype)
    images = jax.random.uniform(jax.random.key(1), (options.eval_batch_size, 32, 32, 3))
    variables = module.init(jax.random.key(0), images[:1])
    forward = lambda v, x: module.apply(v, x)
    rows = {
        "forward": measure(forward, (variables, images), options.repeats),
        "forward and input gradient": measure(
            lambda v, x: jax.grad(lambda x: forward(v, x).sum())(x),
            (variables, images),
            options.repeats,
        ),
    }
    one = rows["forward"]["counted_flops"] / options.eval_batch_size
    rows["training step"] = step(options, module, variables)
    # Forward with input gradient costs two forward passes, with parameter gradient three.
    passes = {"forward": 1, "forward and input gradient": 2}
    passes["training step"] = 2 * options.num_steps + 3
    for title, row in rows.items():
        batch = options.batch_size if title == "training step" else options.eval_batch_size
        row["images_per_second"] = batch / row["seconds"]
        row["tflops"] = passes[title] * one * row["images_per_second"] / 1e12
        row["share_of_ceiling"] = row["tflops"] / top
    rows["training step"]["epoch_seconds"] = 50_000 / rows["training step"]["images_per_second"]
    return rows


def step(options, module, variables) -> dict:
    """Adversarial training, ten minibatches per call as in a run."""
    tx, calls, key = training.sgd(0.1), 10, jax.random.key(0)
    program, data = adversarial_training(
        module,
        (32, 32, 3),
        batch_size=options.batch_size,
        num_steps=options.num_steps,
        minibatches=calls,
    )
    state = training.TrainState.create(variables["params"], variables["batch_stats"], tx)
    advance = program.sgd_steps(tx)
    started = time.perf_counter()
    state, _ = jax.block_until_ready(advance(state, data, key, 1))
    compile_seconds = time.perf_counter() - started
    seconds = []
    for _ in range(options.repeats):
        started = time.perf_counter()
        state, _ = jax.block_until_ready(advance(state, data, key, calls))
        seconds.append((time.perf_counter() - started) / calls)
    return {"seconds": float(np.median(seconds)), "compile_seconds": compile_seconds}


def main(arguments=None) -> dict:
    """Runs all and returns the report it writes."""
    options = parse(arguments)
    report = {**provenance(options), "ceiling_tflops": {}, "networks": {}}
    for precision in options.precisions.split(","):
        dtype, products = PRECISIONS[precision]
        with jax.default_matmul_precision(products):
            top = report["ceiling_tflops"][precision] = ceiling(options, dtype)
            print(f"{precision}: matrix product {top:.2f} TFLOP/s", flush=True)
            for name in options.models.split(","):
                rows = report["networks"][f"{name}, {precision}"] = network(
                    options, name, dtype, top
                )
                for title, row in rows.items():
                    print(f"  {name:16} {title:27} {row['images_per_second']:10.0f} images/s "
                          f"{row['tflops']:8.3f} TFLOP/s {row['share_of_ceiling']:6.1%}",
                          flush=True)  # fmt: skip
                epoch = rows["training step"]["epoch_seconds"]
                print(f"  {name:16} an epoch of 50,000 images: {epoch:.1f} s", flush=True)
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
