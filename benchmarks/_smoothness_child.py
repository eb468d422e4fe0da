"""A process of `smoothness_speed.py`: one snapshot measured for every line of its input.

Runs with either version of the folder `theory` on its path; prints seconds and the mean loss found,
or for the line "profile" where the time goes.
"""

import importlib
import json
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxadv import models

FRACTIONS = {"1%": 0.01, "0.1%": 0.001}


def old(case, width: int, norm: str):
    """The version with one random start."""
    module = importlib.import_module("theory._trained")
    network = models.mlp(10, hidden=(width, width), activation="swish")
    params = network.init(jax.random.key(0), jnp.zeros((1, *case["pixels"].shape[1:])))["params"]
    unravel = ravel_pytree(params)[1]
    trees = [unravel(case["params"]), unravel(case["params"] + case["step"])]
    threat = types.SimpleNamespace(norm=norm, eps=float(case["eps"]))
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(threat=threat),
        apply=lambda params, images: network.apply({"params": params}, images),
        images=case["pixels"],
        labels=case["labels"],
    )
    probe = module.Probe(run)
    return lambda: probe.measure(module.Snapshot(0, *trees), tuple(FRACTIONS.values()))["loss"]


def new(case, width: int, norm: str, starts: int):
    """This version."""
    design = importlib.import_module("theory.trained_smoothness.design")
    measure = importlib.import_module("theory.trained_smoothness.measure")
    setting = design.Setting("speed", width=width)
    probe = measure.Probe(setting, norm, case["pixels"].shape[1:], starts)
    images = design.Images(case["pixels"], case["labels"])
    size = float(np.linalg.norm(case["params"]))
    lengths = {name: part * size for name, part in FRACTIONS.items()}
    return lambda: probe.measure(case["params"], case["step"], lengths, images, 0)["loss"]


def main() -> None:
    """Warms up, says so, and measures until its input ends."""
    version, file, width, norm, starts = sys.argv[1:]
    with np.load(file) as arrays:
        case = dict(arrays)
    measure = (
        old(case, int(width), norm)
        if version == "old"
        else new(case, int(width), norm, int(starts))
    )
    begin = time.perf_counter()
    measure()
    print(json.dumps({"first call": time.perf_counter() - begin}), flush=True)
    for line in sys.stdin:
        if line.strip() == "profile":
            trace = importlib.import_module("benchmarks._trace")
            print(json.dumps(trace.of_jax(measure)), flush=True)
            continue
        begin = time.perf_counter()
        loss = measure()
        print(json.dumps({"seconds": time.perf_counter() - begin, "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
