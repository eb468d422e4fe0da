r"""Times AutoAttack against the reference: same weights, images and machine, in one run.

    python -m benchmarks.autoattack --checkpoint=FILE.npz --number=128
    python -m benchmarks.autoattack --run=runs/cifar10-laptop/at/seed0 --number=64
    python -m benchmarks.autoattack --resnet_width=16 --number=32

The second command uses a finished run's network and test images. The third uses random weights,
random images, the network's own predictions as labels and a radius at which nothing breaks: no
image ever leaves, so it compares only the passes. Both implementations run the standard version on
the same images. Each repeat runs ours with empty caches, which includes compilation, ours again,
which excludes it, and the reference. ``--num_steps`` and ``--num_queries`` shorten both.
``--profile`` also traces each attack on the first images with a short budget, see ``_trace.py``;
with ``--repeats=0`` it does nothing else.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.options import Parser
from experiments.evaluation import subjects
from jaxadv.attacks import autoattack

from . import _torch_resnet, _trace
from ._checkpoints import jax_model, load_checkpoint, load_images, resnets, torch_model
from ._reference import run_reference
from ._report import provenance, save
from ._timing import operations, ratio, summary

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
PROFILED = dict(number=16, num_steps=10, num_queries=200)


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--checkpoint")
    parser.add_argument("--data", help="data set, npz or idx file; default: the checkpoint's")
    parser.add_argument("--run", help="run directory of a PreActResNet-18, instead")
    parser.add_argument(
        "--resnet_width", type=int, default=0, help="random network of this width, instead"
    )
    parser.add_argument(
        "--plain", action="store_true", help="a ResNet with the convolutions of flax.linen.Conv"
    )
    parser.add_argument("--number", type=int, default=128)
    parser.add_argument("--norm", default="linf", choices=("linf", "l2", "l1"))
    parser.add_argument("--eps", type=float, help="default: the checkpoint's")
    parser.add_argument("--batch_size", type=int, default=250)
    parser.add_argument("--num_steps", type=int, default=100, help="steps of APGD and FAB")
    parser.add_argument("--num_queries", type=int, default=5000, help="queries of Square")
    parser.add_argument(
        "--threads", type=int, default=0, help="PyTorch threads; default: PyTorch's own"
    )
    parser.add_argument("--repeats", type=int, default=1, help="of all, in turn")
    parser.add_argument("--profile", action="store_true", help="also trace where the time goes")
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


def mflop(model, x) -> dict[str, float]:
    """Operations an image of a forward pass, and of the backward pass to the images."""
    total: Any = lambda images: model(images).sum()
    forward, both = (operations(function, x) for function in (model, jax.grad(total)))
    passes = {"forward": forward, "backward": both - forward}
    return {name: flops / len(x) / 1e6 for name, flops in passes.items()}


def subject(options) -> tuple[Any, Callable, Any, Any, float]:
    """The network of a command line in JAX and PyTorch, its images, labels and radius."""
    eps = options.eps
    if options.resnet_width:
        model, torch_fn = resnets(options.resnet_width, plain=options.plain)
        x = np.random.default_rng(0).uniform(size=(options.number, 32, 32, 3)).astype(np.float32)
        y = np.asarray(model(jnp.asarray(x)).argmax(1), np.int32)
        return model, torch_fn, x, y, 2e-4 if eps is None else eps
    if options.run:
        found = subjects.from_run(options.run, "selected", "test").first(options.number)
        x, y = np.float32(found.images) / 255, np.asarray(found.labels)
        eps = (found.eps or 8 / 255) if eps is None else eps
        return found.logits_fn(), _torch_resnet.eval_fn(found), x, y, eps
    checkpoint = load_checkpoint(options.checkpoint)
    x, y = load_images(options.data or checkpoint.dataset, options.number)
    eps = checkpoint.eps if eps is None else eps
    return jax_model(checkpoint), torch_model(checkpoint), x, y, eps


def profile(model, torch_fn, x, y, budget: dict[str, Any]) -> dict[str, dict]:
    """Traces of each attack alone, on both sides."""
    number, budget = PROFILED["number"], budget | PROFILED
    del budget["number"]
    x, y, calls = x[:number], y[:number], {}
    for name in ATTACKS:
        calls[f"jaxadv, {name}"] = lambda name=name: autoattack(
            jax.random.key(0), model, jnp.asarray(x), jnp.asarray(y), progress=False,
            version="custom", attacks=[name], **budget,
        )  # fmt: skip
        calls[f"pyautoattack, {name}"] = lambda name=name: run_reference(
            torch_fn, x, y, seed=0, attacks=(name,), **budget
        )
    for call in calls.values():
        call()
    return _trace.of_all(calls)


def measure(options, model, torch_fn, x, y, budget: dict[str, Any]) -> dict:
    """Runs both on all images, in turn; prints and returns seconds, ratios, and verdicts."""
    runs: dict[str, list[dict[str, float]]] = {"compiling": [], "jaxadv": [], "reference": []}
    result, verdicts = None, {}
    for _ in range(options.repeats):
        jax.clear_caches()
        for side in ("compiling", "jaxadv"):
            started = time.monotonic()
            result = autoattack(
                jax.random.key(0), model, jnp.asarray(x), jnp.asarray(y), progress=False, **budget
            )
            runs[side].append(result.seconds | {"total": time.monotonic() - started})
        started = time.monotonic()
        verdicts, spent = run_reference(torch_fn, x, y, seed=0, attacks=ATTACKS, **budget)
        runs["reference"].append(spent | {"total": time.monotonic() - started})
    assert result is not None
    times = {
        name: {side: [run[name] for run in found] for side, found in runs.items()}
        for name in (*ATTACKS, "total")
    }
    seconds = {name: summary(found) for name, found in times.items()}
    spread = {name: ratio(found, "jaxadv", "reference") for name, found in times.items()}
    compiling = ratio(times["total"], "compiling", "reference")
    for name, found in seconds.items():
        ours, theirs = (found[side]["median"] for side in ("jaxadv", "reference"))
        print(f"{name:9} jaxadv {ours:8.1f} s  reference {theirs:8.1f} s  "
              f"ratio {spread[name]['median']:5.2f}")  # fmt: skip
    print(f"with compilation: ratio {compiling['median']:.2f}")
    return {
        "seconds": seconds,
        "ratio": spread,
        "ratio_with_compilation": compiling,
        "accuracy": result.accuracy,
        "reference_accuracy": {name: float(v.mean()) for name, v in verdicts.items()},
        "agreement": float(np.mean(result.robust == verdicts["square"])),
        "evaluations": {name: cost._asdict() for name, cost in result.evaluations.items()},
    }


def main(arguments=None) -> dict:
    """Runs both and returns the report it writes."""
    options = parse(arguments)
    if not options.repeats and not options.profile:
        raise SystemExit("--repeats=0: nothing to do; add --profile to only trace")
    import torch  # pyright: ignore[reportMissingImports]

    if options.threads:
        torch.set_num_threads(options.threads)
    model, torch_fn, x, y, eps = subject(options)
    budget: dict[str, Any] = dict(
        norm=options.norm,
        eps=eps,
        batch_size=options.batch_size,
        num_steps=options.num_steps,
        num_queries=options.num_queries,
    )
    report = {
        **provenance(options),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "precision": "float32",
        "mflop_of_a_pass": mflop(model, jnp.asarray(x)[:8]),
    }
    if options.repeats:
        report |= measure(options, model, torch_fn, x, y, budget)
    if options.profile:
        report["profile"] = profile(model, torch_fn, x, y, budget)
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
