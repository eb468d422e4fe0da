"""Clean and robust accuracy of a trained checkpoint, as a table and as JSON.

    python -m experiments.evaluate --workdir=runs/digits-laptop/at/seed0 --num-steps=50
    python -m experiments.evaluate --workdir=runs/digits-laptop/at/seed0 --attack=autoattack
    python -m experiments.evaluate --model=Wang2023Better_WRN-28-10 --weights=FILE
    python -m experiments.evaluate --torch=FILE --arch=wrn34_10 --dataset=cifar10 \
        --normalization=none

Options default to the run's own configuration. AutoAttack saves its progress next to its report;
run the same command to resume.
"""

import argparse
import functools
from pathlib import Path

from jaxadv.checks import NORMS, check_count
from jaxadv.models import zoo

from . import data
from .cli import process
from .cli.options import Parser, folder, fraction, numbers, seed
from .evaluation import published, shards, subjects, weights
from .evaluation.evaluate import ATTACKS, PRECISIONS, VERSIONS, describe, evaluate
from .run import hosts, metrics
from .run.directory import RunDirectory


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m experiments.evaluate",
        description="Clean and robust accuracy of a trained checkpoint, overall and by class. "
        "Options default to the run's configuration.",
    )
    parser.add_argument("--workdir", type=folder, help="run directory")
    parser.add_argument(
        "--model",
        help="id of one of RobustBench's models, whose network, normalization, threat and eps are "
        "known, on the test images of its published figures, for ImageNet RobustBench's own 5,000; "
        "python -m experiments.zoo lists them",
    )
    parser.add_argument(
        "--weights",
        help="of --model: a file of PyTorch, safetensors or flax, a folder of orbax or of a run, "
        "or hf://OWNER/NAME/FILE",
    )
    parser.add_argument(
        "--threat",
        type=str.lower,
        choices=zoo.THREATS,
        help="of the model, if several have its id; default linf",
    )
    parser.add_argument(
        "--check-clean",
        choices=("true", "false"),
        default="true",
        help="stop before the attack if the clean accuracy on the first 1,000 images is not the "
        "one published of --model; default true",
    )
    parser.add_argument(
        "--torch", type=folder, help="PyTorch weights file to evaluate instead of a run"
    )
    parser.add_argument(
        "--arch", choices=subjects.ARCHITECTURES, help="architecture of the PyTorch weights"
    )
    parser.add_argument("--dataset", choices=data.NAMES, help="data set of the weights")
    parser.add_argument(
        "--normalization",
        choices=subjects.NORMALIZATIONS,
        help="how the PyTorch network expects its images normalized; none: raw [0, 1]",
    )
    parser.add_argument(
        "--mean",
        type=numbers,
        help="per-channel mean instead of --normalization, as in 0.49,0.48,0.45; needs --std",
    )
    parser.add_argument("--std", type=numbers, help="per-channel standard deviation; needs --mean")
    parser.add_argument("--entry", help="entry of the PyTorch file that holds the weights")
    parser.add_argument(
        "--attack", choices=ATTACKS, default="pgd", help="pgd (default) or autoattack"
    )
    parser.add_argument(
        "--version",
        choices=VERSIONS,
        default="standard",
        help="AutoAttack version; default standard",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="default",
        help="of matrix products and convolutions in AutoAttack's attacks; its verdicts always "
        "have the highest",
    )
    parser.add_argument(
        "--shard",
        type=shards.parse,
        help="i/n: only AutoAttack's images i, i + n, ..., on one of n machines with a common "
        "disk; the command without it merges. auto: the shard of this process under a launcher",
    )
    parser.add_argument(
        "--checkpoint",
        choices=subjects.CHECKPOINTS,
        default="selected",
        help="best checkpoint on the selection images (default) or the last",
    )
    parser.add_argument(
        "--images", choices=subjects.IMAGES, default="test", help="which images; default test"
    )
    parser.add_argument("--number", type=int, help="use only the first NUMBER images")
    parser.add_argument("--norm", choices=NORMS, help="norm of the ball")
    parser.add_argument("--eps", type=fraction, help="radius, for example 8/255")
    parser.add_argument("--step-size", type=fraction, help="PGD step size, for example 2/255")
    parser.add_argument("--num-steps", type=int, help="PGD steps")
    parser.add_argument("--num-restarts", type=int, help="PGD restarts per image")
    parser.add_argument(
        "--batch-size", type=int, help="images per call; does not affect the result"
    )
    parser.add_argument("--seed", type=seed, help="seed of the attack's random numbers")
    parser.add_argument("--data-dir", type=folder, help="folder with the data sets")
    parser.add_argument(
        "--download",
        choices=("true", "false"),
        default="true",
        help="download missing data; default true",
    )
    parser.add_argument(
        "--log",
        type=process.logs,
        default=(),
        help="the numbers also as files next to the report: csv, or tensorboard, which needs "
        "tensorboardX, or csv,tensorboard",
    )
    parser.add_argument("--output", type=folder, help="JSON file; default: in the run directory")
    parser.add_argument(
        "--hosts",
        type=process.processes,
        help="several processes, each with this command and a common disk: auto under SLURM, Open "
        "MPI, Kubernetes or on a Cloud TPU, else ADDRESS:PORT,NUMBER,INDEX. PGD splits every batch "
        "among them, AutoAttack takes --shard=auto",
    )
    return parser


def main() -> None:
    """The command line."""
    options = vars(_parser().parse_args())
    output, download = options.pop("output"), options.pop("download") == "true"
    options["check_clean"] = options["check_clean"] == "true"
    shard, among, log = options.pop("shard"), options.pop("hosts"), options.pop("log")
    if among is not None and options["attack"] == "autoattack":
        shard = shard or "auto"

    def run():
        for name in ("number", "batch_size"):  # before anything is downloaded
            if options[name] is not None:
                check_count(name, options[name], 1)
        wanted = options["dataset"]
        if options["model"] is not None and options["weights"] is not None:
            found = published.find(options["model"], wanted, options["threat"])
            options["weights"] = weights.locate(options["weights"])
            # ImageNet is never downloaded, and only its validation images are needed.
            wanted = None if found.dataset == "imagenet" else found.dataset
        elif wanted is None and options["workdir"] is not None:
            wanted = RunDirectory(options["workdir"]).config().dataset
        if wanted is not None:
            ensure = lambda: data.ensure(wanted, options["data_dir"], download=download)
            hosts.writer_first(ensure)
        # AutoAttack's shards are saved by their own processes, PGD's report by process 0.
        save = (output or True) if shard is not None or hosts.is_writer() else False
        rows: list[dict] = []
        call = functools.partial(evaluate, **options, save=save, on_metrics=rows.append)
        report, part = shards.run(call, shard)
        if report is None or not save:
            return
        print(describe(report))
        stem, written = Path(report["files"][0]).with_suffix(""), report["files"]
        with metrics.logs(log, stem) as write:
            if write is not None and rows:  # none of a shard
                write(rows[0])
                written = [*written, *(str(metrics.ADAPTERS[name].place(stem)) for name in log)]
        print(f"written to {', '.join(written)}")
        if part is not None:
            print(f"shard {part[0]}/{part[1]}; after all, run this without --shard to merge them")

    process.execute(run, among, together=False)


if __name__ == "__main__":
    main()
