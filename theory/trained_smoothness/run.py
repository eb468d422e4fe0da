"""Runs the cells that have no file yet, and keeps what was trained."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.run import environment
from experiments.run.checkpoints import write_atomically

from . import design
from .design import NORMS, OPTIMIZERS, SETTINGS, Cell, Sizes
from .measure import Probe
from .networks import Trajectories, train

FRACTIONS = {"1%": 0.01, "0.1%": 0.001}  # of the norm of the weights


def run(
    output: Path,
    *,
    sizes: Sizes,
    settings=SETTINGS,
    data_dir: Path | None = None,
    cache: Path,
    say: Callable[[str], Any] = print,
) -> None:
    """Measures every cell without a file, in order; each file is written as its cell ends.

    Args:
        output: folder of the results.
        sizes: how much to measure.
        settings: what to measure.
        data_dir: folder with MNIST.
        cache: folder of the trajectories, so that a run that was stopped trains nothing again.
        say: called with progress messages.
    """
    output.mkdir(parents=True, exist_ok=True)
    for setting in settings:
        for norm in NORMS:
            cells = [Cell(setting, norm, seed) for seed in range(sizes.seeds)]
            cells = [cell for cell in cells if not (output / cell.file).is_file()]
            if not cells:
                continue
            images = design.load(setting.data, data_dir)
            runs = {m: trained(cache, setting, norm, m, images, sizes) for m in OPTIMIZERS}
            probe = Probe(setting, norm, images.pixels.shape[1:], sizes.starts)
            for cell in cells:
                begin = time.perf_counter()
                result = measured(probe, cell, runs, images, sizes)
                result["seconds"] = time.perf_counter() - begin
                result["environment"] = {
                    n: v for n, v in environment.describe().items() if n != "command"
                }
                text = json.dumps(rounded(result), indent=1) + "\n"
                write_atomically(output / cell.file, text.encode())
                say(f"{cell.file}: {result['seconds']:.0f} s")


def trained(cache: Path, setting, norm: str, method: str, images, sizes: Sizes) -> Trajectories:
    """Trajectories of all seeds, from the cache if they are there."""
    name = f"{setting.name.replace(' ', '')}-{norm}-{method}-{sizes.seeds}x{sizes.epochs}.npz"
    file = cache / name
    if file.is_file():
        with np.load(file) as arrays:
            return Trajectories(arrays["params"], arrays["losses"], int(arrays["group"]))
    found = train(setting, norm, method, images, range(sizes.seeds), sizes)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part.npz")
    np.savez(temporary, **found._asdict())
    temporary.replace(file)
    return found


def measured(probe: Probe, cell: Cell, runs: dict[str, Trajectories], images, sizes: Sizes) -> dict:
    """Both methods of one seed."""
    shown = design.probe(images, cell.seed, cell.setting.images)
    losses = {method: run.losses[cell.seed] for method, run in runs.items()}
    places = design.snapshots(losses)
    rows = []
    for snapshot, by_method in places.items():
        for method, place in by_method.items():
            params = np.asarray(runs[method].params[cell.seed], np.float64)
            step = params[place + 1] - params[place]
            weights = float(np.linalg.norm(params[place]))
            lengths = {"update": float(np.linalg.norm(step))}
            lengths |= {name: part * weights for name, part in FRACTIONS.items()}
            row = probe.measure(params[place], step, lengths, shown, 100 * cell.seed)
            row |= {"snapshot": snapshot, "method": method, "minibatch": place * runs[method].group}
            rows.append(row | {"training_loss": float(losses[method][place])})
    return {
        "setting": cell.setting.name,
        "norm": cell.norm,
        "seed": cell.seed,
        "images": cell.setting.images,
        "starts": sizes.starts,
        "epochs": sizes.epochs,
        "training_losses": {method: values.tolist() for method, values in losses.items()},
        "rows": rows,
    }


def rounded(value: Any) -> Any:
    """The same with five significant digits."""
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
