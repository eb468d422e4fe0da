"""Clean and robust accuracy of a trained checkpoint, as a table and as JSON.

    python -m experiments.evaluate --workdir=runs/digits-laptop/at/seed0 --num-steps=50
    python -m experiments.evaluate --workdir=runs/digits-laptop/at/seed0 --attack=autoattack
    python -m experiments.evaluate --torch=FILE --arch=wrn34_10 --dataset=cifar10 \
        --normalization=none

Every option that is not given is that of the run's own configuration. AutoAttack keeps its progress
beside its report: the same command goes on where it was stopped.
"""

import argparse

from jaxadv.checks import NORMS

from . import data
from .cli import process
from .cli.options import Parser, folder, fraction, numbers, seed
from .evaluation import subjects
from .evaluation.evaluate import ATTACKS, VERSIONS, describe, evaluate
from .run.directory import RunDirectory


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m experiments.evaluate",
        description="Clean and robust accuracy of a trained checkpoint, overall and by class. "
        "Options that are not given are those of the run.",
    )
    parser.add_argument("--workdir", type=folder, help="run directory")
    parser.add_argument("--torch", type=folder, help="file of PyTorch weights instead")
    parser.add_argument("--arch", choices=subjects.ARCHITECTURES, help="of the PyTorch weights")
    parser.add_argument("--dataset", choices=data.NAMES, help="of the PyTorch weights")
    parser.add_argument(
        "--normalization",
        choices=subjects.NORMALIZATIONS,
        help="what the PyTorch network expects of its images; none: [0, 1] as they are",
    )
    parser.add_argument(
        "--mean", type=numbers, help="instead, by channel: 0.49,0.48,0.45; with --std"
    )
    parser.add_argument("--std", type=numbers, help="likewise")
    parser.add_argument("--entry", help="of the PyTorch file that holds the weights")
    parser.add_argument(
        "--attack", choices=ATTACKS, default="pgd", help="pgd (default) or autoattack"
    )
    parser.add_argument(
        "--version", choices=VERSIONS, default="standard", help="of AutoAttack; default standard"
    )
    parser.add_argument(
        "--checkpoint",
        choices=subjects.CHECKPOINTS,
        default="selected",
        help="the best on the selection images (default) or the last",
    )
    parser.add_argument("--images", choices=subjects.IMAGES, default="test", help="default test")
    parser.add_argument("--number", type=int, help="the first images only")
    parser.add_argument("--norm", choices=NORMS, help="norm of the ball")
    parser.add_argument("--eps", type=fraction, help="radius, for example 8/255")
    parser.add_argument("--step-size", type=fraction, help="step of PGD, for example 2/255")
    parser.add_argument("--num-steps", type=int, help="steps of PGD")
    parser.add_argument("--num-restarts", type=int, help="random starts of PGD an image")
    parser.add_argument("--batch-size", type=int, help="images a call; no effect on the result")
    parser.add_argument("--seed", type=seed, help="seed of the attack's random numbers")
    parser.add_argument("--data-dir", type=folder, help="folder of the data sets")
    parser.add_argument(
        "--download",
        choices=("true", "false"),
        default="true",
        help="of missing data",
    )
    parser.add_argument("--output", type=folder, help="JSON file; default in the run directory")
    return parser


def main() -> None:
    """The command line."""
    options = vars(_parser().parse_args())
    output, download = options.pop("output"), options.pop("download") == "true"

    def run():
        wanted = options["dataset"]
        if wanted is None and options["workdir"] is not None:
            wanted = RunDirectory(options["workdir"]).config().dataset
        if wanted is not None:
            data.ensure(wanted, options["data_dir"], download=download)
        report = evaluate(**options, save=output or True)
        print(describe(report))
        print(f"written to {', '.join(report['files'])}")

    process.execute(run)


if __name__ == "__main__":
    main()
