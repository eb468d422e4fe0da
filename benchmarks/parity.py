r"""Compares jaxadv's AutoAttack with the reference, attack by attack and image by image.

    python -m benchmarks.parity --checkpoint=FILE.npz --number=1000 --output=parity.json

The reference is the package ``pyautoattack`` (PyTorch), the version is "standard". It runs once per
seed, and once per key with the start noise that jaxadv draws from that key: in the latter case the
two agree up to rounding before Square, while runs with different random numbers show the natural
variation. ``--reference=FILE.npz`` saves the reference's verdicts for reuse. For checkpoints and
images, see ``_checkpoints.py``; for single attacks, ``single_attacks.py``.
"""

import itertools
import pathlib

import jax
import numpy as np

from experiments.cli.options import Parser, integers
from jaxadv.attacks import autoattack

from ._checkpoints import ARCHITECTURES, jax_model, load_both, torch_model
from ._reference import run_reference
from ._report import provenance, save

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")


def ours(checkpoint, x, y, options, key: int):
    """Verdicts after each attack, and the result, from jaxadv."""
    result = autoattack(
        jax.random.key(key),
        jax_model(checkpoint),
        jax.numpy.asarray(x),
        jax.numpy.asarray(y),
        norm=options.norm,
        eps=options.eps,
        batch_size=options.batch_size,
        progress=options.progress,
        num_queries=options.num_queries,
        store=options.store and pathlib.Path(options.store) / f"key{key}",
    )
    verdicts, broken = {}, np.zeros(len(y), bool)
    for name in result.accuracy:
        broken = broken | (result.broken_by == name)
        verdicts[name] = ~broken
    return verdicts, result


def reference(checkpoint, x, y, options) -> dict[str, dict[str, np.ndarray]]:
    """The reference's verdicts by run: one per seed, and those with jaxadv's draws.

    Runs saved in the file ``options.reference`` are reused; new runs are added to it.
    """
    path = options.reference and pathlib.Path(options.reference)
    arrays: dict[str, np.ndarray] = {}
    if path and path.exists():
        with np.load(path) as file:
            # Files with one run contain only its first and last verdict.
            old = {"clean": "seed 0/clean", "robust": "seed 0/square"}
            arrays = {old.get(n) or n: file[n] for n in file.files if n != "pred_adv"}
    names = [f"seed {seed}" for seed in options.reference_seeds]
    names += [f"draws of key {key}" for key in options.same_draws]
    for name in names:
        if any(entry.startswith(f"{name}/") for entry in arrays):
            continue
        number = int(name.split()[-1])
        verdicts, seconds = run_reference(
            torch_model(checkpoint),
            x,
            y,
            norm=options.norm,
            eps=options.eps,
            seed=number,
            batch_size=options.reference_batch,
            attacks=ATTACKS,
            num_queries=options.num_queries,
            key=jax.random.key(number) if name.startswith("draws") else None,
        )
        accuracy = {attack: f"{100 * found.mean():.2f}" for attack, found in verdicts.items()}
        print(f"reference, {name}", accuracy, {k: f"{v:.0f} s" for k, v in seconds.items()})
        arrays |= {f"{name}/{attack}": found for attack, found in verdicts.items()}
        if path:
            np.savez_compressed(path, allow_pickle=False, **arrays)
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    for entry, value in arrays.items():
        name, attack = entry.split("/")
        if name in found:
            found[name][attack] = value.astype(bool)[: len(y)]
    return found


def table(own: dict[str, dict], others: dict[str, dict]) -> list[dict]:
    """One row for each attack and pair of runs."""
    pairs = [(one, two) for one in own for two in others]
    pairs += [pair for runs in (own, others) for pair in itertools.combinations(runs, 2)]
    everything = own | others
    return [
        {
            "first": f"{'jaxadv' if one in own else 'reference'}, {one}",
            "second": f"{'jaxadv' if two in own else 'reference'}, {two}",
            "attack": attack,
            "accuracy_first": float(verdicts.mean()),
            "accuracy_second": float(everything[two][attack].mean()),
            "agreement": float((verdicts == everything[two][attack]).mean()),
        }
        for one, two in pairs
        for attack, verdicts in everything[one].items()
        if attack in everything[two]
    ]


def spread(own: dict[str, dict], others: dict[str, dict]) -> list[dict]:
    """Mean and standard deviation of the accuracy over independent runs, for each attack."""
    seeds = {name: verdicts for name, verdicts in others.items() if name.startswith("seed")}
    rows = []
    for label, runs in (("jaxadv", own), ("reference", seeds)):
        attacks = next(iter(runs.values()), {})
        for attack in attacks:
            values = [float(found[attack].mean()) for found in runs.values() if attack in found]
            rows.append(
                {
                    "runs": f"{label}, {len(values)} runs",
                    "attack": attack,
                    "mean": float(np.mean(values)),
                    "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                }
            )
    return rows


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--arch", choices=ARCHITECTURES)
    parser.add_argument("--data", help="data set, npz or idx file; default: the checkpoint's")
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--every", type=int, default=1, help="use every EVERY-th of these images")
    parser.add_argument("--norm", default="linf", choices=("linf", "l2", "l1"))
    parser.add_argument("--eps", type=float, help="default: the checkpoint's")
    parser.add_argument("--num_queries", type=int, default=5000, help="queries of Square")
    parser.add_argument("--keys", type=integers, default=[0, 1, 2], help="jaxadv keys")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--reference", help="npz file of verdicts: read if it exists, else written")
    parser.add_argument("--reference_seeds", type=integers, default=[0, 1, 2])
    parser.add_argument("--same_draws", type=integers, default=[0], help="keys; Linf and L2 only")
    parser.add_argument("--store", help="folder for saving jaxadv's progress")
    parser.add_argument("--reference_batch", type=int, default=500)
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


def compare(checkpoint, x, y, options) -> dict:
    """Runs both and prints the tables."""
    report, own = {}, {}
    for key in options.keys:
        own[f"key {key}"], result = ours(checkpoint, x, y, options, key)
        print(result.summary(), flush=True)
        report[f"key {key}"] = {
            "accuracy": result.accuracy,
            "evaluations": {k: v._asdict() for k, v in result.evaluations.items()},
            "seconds": result.seconds,
            "settings": result.settings,
        }
    if options.norm == "l1":
        options.same_draws = []
    others = reference(checkpoint, x, y, options)
    report["rows"], report["spread"] = table(own, others), spread(own, others)
    for row in report["rows"]:
        print("{first:26} {second:30} {attack:8} {accuracy_first:7.2%} {accuracy_second:7.2%} "
              "same verdict {agreement:8.2%}".format(**row))  # fmt: skip
    for row in report["spread"]:
        deviation = "" if row["std"] is None else f" +- {row['std']:.2%}"
        print(f"{row['runs']:26} {row['attack']:8} {row['mean']:7.2%}{deviation}")
    return report


def main(arguments=None) -> dict:
    """Runs the comparison and returns the report it writes."""
    options = parse(arguments)
    checkpoint, x, y = load_both(options)
    x, y = x[:: options.every], y[:: options.every]
    report: dict = provenance(options) | compare(checkpoint, x, y, options)
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
