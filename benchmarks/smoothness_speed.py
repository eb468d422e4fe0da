r"""Attacks from many starts in `theory.trained_smoothness` against the one start it had at first.

    python -m benchmarks.smoothness_speed --output=smoothness_speed.json

A snapshot of a trained network is measured by both versions in turn: that of commit ``--old``, in a
worktree of its own, searches from one random start at the snapshot and 1 % and 0.1 % of the
weights' norm further; this one from ``--starts``, hands every end the others' candidates, audits,
and follows each attack from one end to the other. The same weights, images and machine; warmed up
first. "loss" is the mean loss of the attacks at the snapshot. ``--profile`` also traces this
version, see ``_trace.py``.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np

from experiments.cli.options import Parser
from theory.trained_smoothness import design, networks

from ._report import provenance, save
from ._timing import ratio, summary

ROOT = pathlib.Path(__file__).parents[1]
CHILD = pathlib.Path(__file__).with_name("_smoothness_child.py")


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--old", default="7295a5bfdca5", help="commit to compare with")
    parser.add_argument("--norm", choices=design.NORMS, default="linf")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=6, help="that the network is trained for")
    parser.add_argument("--starts", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="also trace where the time goes")
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


def prepare(options, file: pathlib.Path) -> None:
    """Trains the network and writes what both versions measure."""
    setting = design.Setting("speed", width=options.width)
    sizes = design.Sizes(1, options.epochs, options.starts)
    images = design.load(setting.data)
    run = networks.train(setting, options.norm, "at", images, range(1), sizes)
    before, after = np.asarray(run.params[0, -2:], np.float64)
    shown = design.probe(images, 0, options.images)
    eps = design.EPS[setting.data][options.norm]
    np.savez(file, params=before, step=after - before, eps=eps, **shown._asdict())


def start(version: str, tree: pathlib.Path, file: pathlib.Path, options) -> subprocess.Popen:
    """A child with the packages of that tree, ready to measure."""
    words = [version, str(file), str(options.width), options.norm, str(options.starts)]
    rest = os.environ.get("PYTHONPATH", "")
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.read_text(encoding="utf-8"), *words],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{rest}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(child: subprocess.Popen) -> dict:
    """The next line of a child."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"the child ended with {child.wait()}; see its error above")
    return json.loads(line)


def ask(child: subprocess.Popen, what: str = "") -> dict:
    """One measurement by a child."""
    assert child.stdin is not None
    child.stdin.write(f"{what}\n")
    child.stdin.flush()
    return answer(child)


def compare(trees: dict[str, pathlib.Path], file: pathlib.Path, options) -> dict:
    """Seconds of both versions in turn, their ratio, and the losses found."""
    children, first = {}, {}
    try:
        for version, tree in trees.items():
            children[version] = start(version, tree, file, options)
            first[version] = answer(children[version])["first call"]
        found = {version: [] for version in trees}
        for repeat in range(options.repeats):
            for version in list(trees)[:: 1 if repeat % 2 == 0 else -1]:
                found[version].append(ask(children[version]))
        traced = {"jaxadv": ask(children["new"], "profile")} if options.profile else {}
    finally:
        for child in children.values():
            child.communicate()
    times = {version: [row["seconds"] for row in rows] for version, rows in found.items()}
    profile = {"profile": traced} if traced else {}
    return profile | {
        "seconds": summary(times),
        "first call": first,
        "ratio": ratio(times, "new", "old"),
        "loss": {n: statistics.fmean(row["loss"] for row in rows) for n, rows in found.items()},
    }


def main(arguments=None) -> dict:
    """Runs the comparison and returns the report it writes."""
    options = parse(arguments)
    report: dict = provenance(options)
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        before, file = pathlib.Path(folder) / "old", pathlib.Path(folder) / "case.npz"
        subprocess.run([*git, "add", "--quiet", "--detach", str(before), options.old], check=True)
        try:
            prepare(options, file)
            report |= compare({"old": before, "new": ROOT}, file, options)
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)
    print({name: report[name] for name in ("seconds", "ratio", "loss")})
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
