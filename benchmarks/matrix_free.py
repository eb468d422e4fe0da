r"""The norm of the attack Jacobian: matrix-free against width, and against the dense computation.

    python -m benchmarks.matrix_free                          # PreActResNet-18, widths 4, 8, 16
    python -m benchmarks.matrix_free --widths=16 --samples=3

Seconds per example for D's norm with `jaxadv.theory.matrix_free_jacobian`, for a PreActResNet-18
with a smooth activation on 32x32x3 images, random weights, in float32 (attack and norm timed
separately, excluding the first example, which compiles); and for multi-layer perceptrons small
enough for the dense `jaxadv.theory.attack_jacobian`, in float64, comparing the two norms.
``--profile`` also traces the attack and the norm of the last example, see ``_trace.py``.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.options import Parser
from jaxadv import losses, models, theory

from . import _trace
from ._report import provenance, save
from ._timing import alternate, summary


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument(
        "--widths", default="4,8,16", help="widths of PreActResNet-18; empty for none"
    )
    parser.add_argument(
        "--hidden", default="8,16,32", help="widths of the perceptrons; empty for none"
    )
    parser.add_argument("--samples", type=int, default=2, help="number of examples after the first")
    parser.add_argument("--repeats", type=int, default=5, help="calls for a perceptron")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--eps", type=float, default=0.25, help="L2")
    parser.add_argument("--profile", action="store_true", help="also trace where the time goes")
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


def numbers(text: str) -> list[int]:
    """Parses a comma-separated list of integers."""
    return [int(part) for part in text.split(",") if part]


def network(options, width: int) -> dict:
    """Times the norm of D for one PreActResNet-18."""
    size = options.image_size
    module = models.preact_resnet18(10, width=width, activation="softplus")
    variables = module.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    params, fixed = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def example_loss(label, x, theta):
        logits = jnp.asarray(module.apply({"params": theta, **fixed}, x[None]))
        return losses.cross_entropy(logits, label[None])[0]

    rng = np.random.default_rng(0)
    rows: list[dict] = []
    attack: Any = None
    jacobian: Any = None
    for _ in range(1 + options.samples):
        x = jnp.asarray(rng.uniform(size=(size, size, 3)), jnp.float32)
        label = jnp.asarray(rng.integers(10), jnp.int32)
        loss = functools.partial(example_loss, label)
        ball: dict[str, Any] = dict(norm="l2", eps=options.eps)
        attack = functools.partial(theory.climb_attack, loss, params, x, x, **ball)
        started = time.perf_counter()
        x_adv = attack()
        attacked = time.perf_counter()
        jacobian = functools.partial(theory.matrix_free_jacobian, loss, params, x, x_adv, **ball)
        found = jacobian()
        norm = found.norm() if found.kind not in ("degenerate", "unconverged") else None
        rows.append(
            {
                "attack_seconds": attacked - started,
                "norm_seconds": time.perf_counter() - attacked,
                "kind": found.kind,
                "norm": norm and norm.value,
                "error": norm and norm.error,
                "lanczos_steps": norm and norm.iterations,
            }
        )
    profile = {}
    if options.profile:
        calls: dict[str, Callable[[], object]]
        calls = {"jaxadv, attack": lambda: attack().block_until_ready()}
        if rows[-1]["norm"]:
            calls["jaxadv, norm"] = lambda: jacobian().norm()
        profile = {"profile": _trace.of_all(calls)}
    return profile | {
        "width": width,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "pixels": size * size * 3,
        "first": rows[0],
        "examples": rows[1:],
        "seconds": float(np.median([r["attack_seconds"] + r["norm_seconds"] for r in rows[1:]])),
    }


def against_dense(hidden: int, repeats: int) -> dict:
    """Both computations for one perceptron on 8x8 images, in float64."""
    rng = np.random.default_rng(hidden)
    with jax.enable_x64(True):
        shapes = [(64, hidden), (hidden,), (hidden, 10), (10,)]
        theta = [jnp.asarray(rng.normal(size=s) / np.sqrt(s[0])) for s in shapes]
        x = jnp.asarray(rng.uniform(size=64))

        def loss(x, theta):
            w1, b1, w2, b2 = theta
            logits = jnp.tanh(x @ w1 + b1) @ w2 + b2
            return losses.cross_entropy(logits[None], jnp.zeros(1, jnp.int32))[0]

        attack: dict[str, Any] = dict(norm="l2", eps=0.3)
        dense = functools.partial(theory.attack_jacobian, loss, theta, x, num_restarts=1, **attack)
        found = dense()
        free = lambda: theory.matrix_free_jacobian(loss, theta, x, found.x_adv, **attack).norm()
        times = alternate({"dense": dense, "matrix-free": free}, repeats)
        value = free().value
    return {
        "hidden": hidden,
        "parameters": sum(int(np.prod(s)) for s in shapes),
        "seconds": summary(times),
        "norm_dense": float(found.norm or 0),
        "norm_matrix_free": float(value),
    }


def main(arguments=None) -> dict:
    """Runs all and returns the report it writes."""
    options = parse(arguments)
    report = {**provenance(options), "networks": [], "perceptrons": []}
    for width in numbers(options.widths):
        report["networks"].append(row := network(options, width))
        kinds = ", ".join(r["kind"] for r in row["examples"])
        print(f"PreActResNet-18, width {width:3}, {row['parameters']:9,} parameters: "
              f"{row['seconds']:6.1f} s an example ({kinds})", flush=True)  # fmt: skip
    for hidden in numbers(options.hidden):
        report["perceptrons"].append(row := against_dense(hidden, options.repeats))
        dense, free = (row["seconds"][name]["median"] for name in ("dense", "matrix-free"))
        print(f"perceptron, {row['parameters']:6,} parameters: dense {dense:6.2f} s, matrix-free "
              f"{free:6.2f} s; norms {row['norm_dense']:.8f}, {row['norm_matrix_free']:.8f}",
              flush=True)  # fmt: skip
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
