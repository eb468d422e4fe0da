r"""How far branch and bound proves the optimal attack: boxes, seconds and gap by dimension.

    python -m benchmarks.global_attacks --output=global_attacks.json    # continues where it stopped

`theory.optimal_attack(certificate="global")` on cross-entropy of random networks (one hidden layer
of 8 units, weights of standard deviation 2 / sqrt(d) and 1, 3 classes) at a point of the unit cube,
with the cube and without it. Calls with more and more boxes are timed, until one proves it or takes
more than half of ``--limit`` seconds, and the gap that one has is reported. Compiling is not timed.
"""

import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.options import Parser, integers, names
from jaxadv import losses, theory

from ._global_table import cell
from ._report import provenance, save

RADII = {"linf": 0.2, "l2": 0.5, "l1": 0.8}
ACTIVATIONS = {"swish": jax.nn.swish, "softplus": jax.nn.softplus}
WIDTH, CLASSES = 8, 3
FIRST = 1024  # boxes of the first call


def network(activation: str):
    """The loss of (x, theta)."""

    def loss(x, theta):
        logits = ACTIVATIONS[activation](x @ theta["w"] + theta["b"]) @ theta["v"]
        return losses.cross_entropy(logits[None], jnp.array([0]))[0]

    return loss


def instance(dimension: int, seed: int) -> tuple[dict, Any]:
    """Random weights and a point of the unit cube."""
    rng = np.random.default_rng([dimension, seed])
    w = 2 / np.sqrt(dimension) * rng.normal(size=(dimension, WIDTH))
    theta = {"w": w, "b": rng.normal(size=WIDTH), "v": rng.normal(size=(WIDTH, CLASSES))}
    return theta, rng.uniform(size=dimension)


def measure(case: dict, seed: int, limit: float, gap_tol: float) -> dict:
    """Seconds, boxes and gap of one instance."""
    theta, x = instance(case["dimension"], seed)

    def attack(max_cells: int):
        return theory.optimal_attack(
            jax.random.key(0),
            network(case["activation"]),
            theta,
            x,
            norm=case["norm"],
            eps=RADII[case["norm"]],
            bounds=(0.0, 1.0) if case["cube"] else None,
            certificate="global",
            gap_tol=gap_tol,
            max_cells=max_cells,
        )

    attack(1)  # compiles
    boxes = FIRST
    found, seconds = _timed(attack, boxes)
    while not found.proved and seconds < limit / 2:
        boxes = int(boxes * min(8.0, limit / seconds))
        found, seconds = _timed(attack, boxes)
    return {
        "seed": seed,
        "seconds": seconds,
        "boxes": found.cells,
        "value": found.value,
        "gap": found.gap,
        "proved": found.proved,
        "gain": found.gain,
    }


def _timed(attack, boxes: int) -> tuple[Any, float]:
    begin = time.perf_counter()
    found = attack(boxes).certificate
    return found, time.perf_counter() - begin


def cases(dimensions, norms, activations) -> list[dict]:
    """What is measured."""
    return [
        {"dimension": dimension, "norm": norm, "activation": activation, "cube": cube}
        for activation in activations
        for dimension in dimensions
        for norm in norms
        for cube in (True, False)
    ]


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--dimensions", type=integers, default=[4, 8, 10, 12])
    parser.add_argument("--norms", type=names, default=[*RADII])
    parser.add_argument("--activations", type=names, default=[*ACTIVATIONS])
    parser.add_argument("--seeds", type=int, default=3, help="networks of each case")
    parser.add_argument("--limit", type=float, default=8.0, help="seconds of a call")
    parser.add_argument("--gap_tol", type=float, default=1e-6)
    parser.add_argument("--output", type=pathlib.Path, help="JSON; its rows are kept")
    return parser.parse_args(arguments)


def main(arguments=None) -> dict:
    """Measures the cases that the file lacks and returns the report it writes."""
    options = parse(arguments)
    report: dict = provenance(options) | {"rows": []}
    if options.output and options.output.exists():
        before = json.loads(options.output.read_text(encoding="utf-8"))
        if before["environment"]["commit"] != report["environment"]["commit"]:
            raise SystemExit(f"--output={options.output}: made by another commit; move it away")
        report["rows"] = before["rows"]
    done = [{name: row[name] for name in row if name != "runs"} for row in report["rows"]]
    for case in cases(options.dimensions, options.norms, options.activations):
        if case in done:
            continue
        runs = [
            measure(case, seed, options.limit, options.gap_tol) for seed in range(options.seeds)
        ]
        print(*case.values(), cell(runs), flush=True)
        report["rows"].append(case | {"runs": runs})
        save(report, options.output)
    return report


if __name__ == "__main__":
    main()
