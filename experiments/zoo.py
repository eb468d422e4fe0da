"""RobustBench's models by name: what is published of each, and which ones load.

    python -m experiments.zoo                                     # all of them
    python -m experiments.zoo --dataset=cifar10 --threat=l2 --architecture=wideresnet
    python -m experiments.zoo --coverage --output=docs/zoo.md     # the share that loads, as a page

"loads" is computed: the network is traced, and the names and shapes of its tensors must be those of
the public file. No weights are downloaded; python -m experiments.evaluate --model=ID --weights=FILE
evaluates one.
"""

import argparse
import difflib

from jaxadv.models import zoo

from .cli import process
from .cli.options import Parser, check_writable, folder
from .evaluation import coverage
from .run.checkpoints import write_atomically


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m experiments.zoo",
        description="RobustBench's models by name: what is published of each, and which ones load.",
    )
    parser.add_argument(
        "--dataset", type=str.lower, choices=zoo.DATASETS, help="only of this data set"
    )
    parser.add_argument("--threat", type=str.lower, choices=zoo.THREATS, help="only of this one")
    parser.add_argument("--architecture", help="only with this text in the architecture's name")
    parser.add_argument(
        "--loads",
        choices=("true", "false"),
        help="only those that load, or only those that do not, with the reason",
    )
    parser.add_argument(
        "--coverage", action="store_true", help="the share of every leaderboard that loads"
    )
    parser.add_argument(
        "--output", type=folder, help="write the page of --coverage there instead of printing it"
    )
    return parser


def main() -> None:
    """The command line."""
    process.execute(lambda: _main(_parser().parse_args()))


def _main(options: argparse.Namespace) -> None:
    if options.output is not None:
        if not options.coverage:
            raise ValueError(f"--output={options.output} is of --coverage; give that too")
        check_writable(options.output)
    if options.coverage:
        page = coverage.page()
        if options.output is None:
            print(page, end="")
        else:
            write_atomically(options.output, page.encode())
            print(f"written: {options.output}")
        return
    found = zoo.entries(
        dataset=options.dataset, threat=options.threat, architecture=options.architecture
    )
    wanted = {"true": True, "false": False, None: None}[options.loads]
    if not found:
        known = dict.fromkeys(entry.described for entry in zoo.entries())
        close = difflib.get_close_matches(options.architecture, known, n=3, cutoff=0.3)
        raise ValueError(
            f"architecture={options.architecture!r} is in no name of these leaderboards; "
            + (f"closest are {', '.join(close)}" if close else "leave it out to see all")
        )
    count = 0
    print(coverage.HEAD)
    for entry in found:
        reason = zoo.problem(entry)
        if wanted in (None, reason is None):
            count += 1
            print(coverage.line(entry, reason), flush=True)
    print(f"{count} of {len(zoo.entries())} entries; {zoo.source()['package']}")


if __name__ == "__main__":
    main()
