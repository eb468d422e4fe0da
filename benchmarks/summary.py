r"""The table of speeds in README.md and benchmarks/README.md from the committed results.

    python -m benchmarks.summary            # writes it between its markers
    python -m benchmarks.summary --check    # fails where a file and the results differ

A row appears when its file is in ``benchmarks/results``; the file says with which command, on
which machine and at which commit it was made.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- speed -->", "<!-- end of speed -->"

_METHODS = {"at": "AT", "awp": "AWP", "ensgd": "EntropySGD outer step"}


def rows(results: pathlib.Path = RESULTS) -> list[tuple[str, str, str, str, str]]:
    """What was measured, against what, the ratio, the aim, and the file."""
    found = []
    for path in sorted(results.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        kind = path.stem.split("_")[0]
        if kind in _ROWS:
            found += [(*row, path.name) for row in _ROWS[kind](report)]
    return found


def _spread(ratio: dict) -> str:
    return f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['greatest']:.2f})"


def _training(report):
    options = report["options"]
    size = f"PreActResNet-18 of width {options['width']}, batch {options['batch_size']}"
    for name, ratio in report["ratio"].items():
        memory = " channels_last" if options["channels_last"] else ""
        alone = ", one device" if options["devices"] == 1 else ""
        yield f"{_METHODS[name]}, PGD-10, {size}{alone}", f"PyTorch{memory}", _spread(ratio), "1"


def _pgd(report):
    options = report["options"]
    network = pathlib.Path(options["checkpoint"]).stem if options["checkpoint"] else None
    network = network or f"PreActResNet-18 of width {options['width']}"
    aims = {"foolbox": "3", "torchattacks": "1"}
    for name, ratio in report["ratio"].items():
        what = f"PGD-{options['num_steps']}, {network}, batch {options['batch_size']}"
        yield what, "Foolbox (JAX)" if name == "foolbox" else name, _spread(ratio), aims[name]


def _autoattack(report):
    options = report["options"]
    network = options["checkpoint"] and pathlib.Path(options["checkpoint"]).stem
    if options.get("run"):
        network = "PreActResNet-18 of width 16 trained with AT"
    network = network or f"PreActResNet-18 of width {options['resnet_width']}, nothing broken"
    ratio = report["ratio"]
    parts = ", ".join(f"{name} {ratio[name]:.1f}" for name in ratio if name != "total")
    what = f"AutoAttack, {network}, {options['number']} images ({parts})"
    yield what, "pyautoattack", f"{ratio['total']:.2f}", "1.5"


def _entropy(report):
    for row in report["rows"][-1:]:
        what = f"EntropySGD, {report['options']['model']}, n_in {row['n_in']}, scanned"
        yield what, "one compiled step a minibatch", _spread(row["ratio"]), "1"


_ROWS = {"training": _training, "pgd": _pgd, "autoattack": _autoattack, "entropy": _entropy}


def render(results: pathlib.Path = RESULTS) -> str:
    """The table as Markdown.

    Example:
        >>> print(render(pathlib.Path("nowhere")).splitlines()[0])
        | times as fast as | what | ratio (least to greatest) | aim | file |
    """
    lines = ["| times as fast as | what | ratio (least to greatest) | aim | file |"]
    lines.append("|---|---|---|---|---|")
    for what, peer, ratio, aim, name in sorted(rows(results), key=lambda row: (row[1], row[0])):
        lines.append(f"| {peer} | {what} | {ratio} | {aim} | `{name}` |")
    return "\n".join(lines)


def fill(text: str, table: str) -> str:
    """The text with the table between its markers.

    Raises:
        ValueError: if the markers are missing.
    """
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"one {START} and one {END} are expected in the file")
    head, tail = text.index(START) + len(START), text.index(END)
    return f"{text[:head]}\n{table}\n{text[tail:]}"


def main(arguments=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if it would")
    options = parser.parse_args(arguments)
    table = render()
    for path in (ROOT / "README.md", ROOT / "benchmarks" / "README.md"):
        before = path.read_text(encoding="utf-8")
        after = fill(before, table)
        if after == before:
            continue
        if options.check:
            sys.exit(f"the table of {path.name} is out of date; run python -m benchmarks.summary")
        path.write_text(after, encoding="utf-8")
        print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
