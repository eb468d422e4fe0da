r"""The tables of benchmarks/README.md and of pages in docs/, from the committed results.

    python -m benchmarks.summary            # writes them between their markers
    python -m benchmarks.summary --check    # fails if the file does not match the results

A row appears if its file is in ``benchmarks/results``; the file records the command, machine and
commit that produced it.
"""

import json
import math
import pathlib
import statistics
import sys

from experiments.cli.options import Parser

from . import _clone_table, _global_table, _parity_tables, _scale_tables
from ._timing import shares, summary

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SPEED, MEASURES, RATES, PROFILES = "speed", "measures", "rates", "profiles"  # marker names
GLOBAL, CLONE = "global attacks", "fresh clone"
PAGES = {
    ROOT / "README.md": (CLONE,),
    ROOT / "benchmarks" / "README.md": (SPEED, MEASURES, PROFILES, RATES),
    ROOT / "docs" / "theory.md": (GLOBAL,),
    ROOT / "docs" / "autoattack.md": _parity_tables.MARKERS,
    ROOT / "docs" / "scale.md": _scale_tables.MARKERS,
}

SIDES = (("greatest", "least"), ("least", "greatest"))
_METHODS = {"at": "AT", "awp": "AWP", "ensgd": "EntropySGD outer step"}


def rows(results: pathlib.Path = RESULTS) -> list[tuple[str, str, str, str, str]]:
    """Peer, measurement, ratio, target, and file."""
    return _collect(results, _ROWS)


def _collect(results: pathlib.Path, kinds: dict) -> list[tuple]:
    """The rows of all files with one of the prefixes, each with its file."""
    found = []
    for path in sorted(results.glob("*.json")):
        kind = path.stem.split("_")[0]
        if kind in kinds:
            report = json.loads(path.read_text(encoding="utf-8"))
            found += [(*row, path.name) for row in kinds[kind](report)]
    return found


def _spread(ratio: dict) -> str:
    return f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['greatest']:.2f})"


def _training(report):
    options = report["options"]
    size = f"PreActResNet-18 of width {options['width']}, batch {options['batch_size']}"
    peers = {"pytorch": "PyTorch", "torch.compile": "PyTorch with torch.compile"}
    for label, ratio in report["ratio"].items():
        peer, name = label.split(", ")
        memory = " channels_last" if options["channels_last"] else ""
        alone = ", one device" if options["devices"] == 1 else ""
        what = f"{_METHODS[name]}, PGD-10, {size}{alone}"
        yield what, f"{peers[peer]}{memory}", _spread(ratio), "1"


def _pgd(report):
    options = report["options"]
    network = pathlib.Path(options["checkpoint"]).stem if options["checkpoint"] else None
    network = network or f"PreActResNet-18 of width {options['width']}{_plain(options)}"
    aims = {"foolbox": "3", "torchattacks": "1"}
    for name, ratio in report["ratio"].items():
        what = f"PGD-{options['num_steps']}, {network}, batch {options['batch_size']}"
        yield what, "Foolbox (JAX)" if name == "foolbox" else name, _spread(ratio), aims[name]


def _autoattack(report):
    options = report["options"]
    ratio = report["ratio"]
    parts = ", ".join(f"{n} {one['median']:.1f}" for n, one in ratio.items() if n != "total")
    named = _parity_tables.network(options)
    what = f"AutoAttack, {named}, {options['number']} images ({parts})"
    yield what, "pyautoattack", _spread(ratio["total"]), "3" if options["checkpoint"] else "1.3"


def _plain(options):
    return " with flax.linen.Conv" if options.get("plain") else ""


def _own(report):
    for row in report.get("rows", ()):
        yield row["what"], "convolutions as they are", _spread(row["ratio"]), "1"
    kinds: dict[str, list[float]] = {}
    for row in report.get("directions", ()):
        if row["in a loop"]:
            kind = "depthwise" if row["shape"][-1] == row["shape"][2] else "grouped"
            name = f"{kind} convolutions in a loop, {row['what']}, {{}} shapes"
            kinds.setdefault(name, []).append(row["ratio"]["median"])
    for name, found in kinds.items():
        spread = dict(median=statistics.median(found), least=min(found), greatest=max(found))
        yield name.format(len(found)), "convolutions as they are", _spread(spread), "1"
    for name, ratio in report.get("own loop", {"ratio": {}})["ratio"].items():
        yield f"PGD in a loop of one's own, {name}", "flax.linen.Conv", _spread(ratio), "1"


def _entropy(report):
    for row in report["rows"][-1:]:
        what = f"EntropySGD, {report['options']['model']}, n_in {row['n_in']}, scanned"
        yield what, "one compiled step a minibatch", _spread(row["ratio"]), "1"


def _reproduce(report):
    name = "CIFAR-10" if report["options"]["dataset"] == "cifar10" else report["options"]["dataset"]
    for method, found in report["methods"].items():
        for other, ratio in found["ratio"].items():
            what = f"training at laptop scale, {name}, {method.replace('_', '+')}"
            yield what, f"{_spread(ratio)} times as fast as with {other}"


def _startup(report):
    options, caches = report["options"], ("cold", "warm")
    run = f"{options['dataset']}, {options['method']}"
    for name, found in report["seconds"].items():
        what = f"`{name}`" if name.startswith("import") else f"`{options['dataset']} {name}`"
        if name in caches:
            what = f"time to the first minibatch, {run}, {name} cache"
        yield what, f"{_spread(found)} s"
    for name in caches:
        rows = [row["seconds"] for row in report[name]]
        parts = summary({part: [row[part] for row in rows] for part in rows[0]})
        text = "; ".join(f"{part} {_spread(found)}" for part, found in parts.items())
        yield f"its parts, {run}, {name} cache", f"{text} s"


def _matrix(report):
    for row in report["networks"]:
        what = f"norm of the attack Jacobian, PreActResNet-18 of width {row['width']}, float32"
        each = [found["attack_seconds"] + found["norm_seconds"] for found in row["examples"]]
        yield what, f"{row['seconds']:.1f} s an image ({min(each):.1f} to {max(each):.1f})"
    row = report["perceptrons"][-1]
    for name in ("matrix-free", "dense"):
        what = f"the same, perceptron of {row['parameters']:,} parameters, float64, {name}"
        yield what, f"{_spread(row['seconds'][name])} s an image"


def _scaling(report):
    for title, points in report["sweeps"].items():
        ends = f"{points[0]['value']:,} to {points[-1]['value']:,}"
        first, last = (_exponent(*points[i : i + 2]) for i in (0, len(points) - 2))
        yield f"{title}, {ends}", f"exponent {first} at first, {last} at the end"
        if floats := points[-1].get("floats"):
            moved = f"{floats['compiled']:.0f} floats a parameter, at least {floats['least']}"
            yield f"{title}: read and written, the chain's loop counted once", moved


def _exponent(before, after):
    """How the time grows with the value, with its range over the repeated calls."""
    growth = lambda a, b: math.log(b / a) / math.log(after["value"] / before["value"])
    times = [before["seconds"], after["seconds"]]
    low, high = (growth(times[0][a], times[1][b]) for a, b in SIDES)
    return f"{growth(times[0]['median'], times[1]['median']):.2f} ({low:.2f} to {high:.2f})"


def _memory(report):
    images = f"AutoAttack (short), {report['options']['images']:,} images"
    names = {"train": "training CIFAR-10 at laptop scale", "autoattack": images}
    for name, found in report["peak_gib"].items():
        yield f"peak memory, {names[name]}", f"{_spread(found)} GiB"


def _fresh(report):
    for name, found in report["seconds"].items():
        gib = report["gib"].get(name)
        size = f", largest process {_spread(gib)} GiB" if gib else ""
        command, _, what = name.partition(", ")
        yield f"`{command}`, fresh clone{' ' * bool(what)}{what}", f"{_spread(found)} s{size}"
    for name, found in report["megabytes"].items():
        yield f"`{name}`, environment", f"{found['median']:.0f} MB"


_LARGE = {"small": "two convolutions", "resnet50": "ResNet-50"}  # networks


def _large(report):
    pixels, rows = report["options"]["size"], report["options"]["rows"]
    for row in report["rows"]:
        what = (
            f"{row['attack']}, {row['norm']}, {_LARGE[row['network']]}, {pixels}x{pixels} pixels, "
            f"{rows} a block"
        )
        cost = f"{_spread(row['ratio'])} times its passes, {row['MiB an image']:.1f} MiB an image"
        yield what, cost


def _streaming(report):
    options, found = report["options"], report["throughput of streamed relative to resident"]
    what = (
        f"streamed from the host, AT, PreActResNet-18 of width {options['width']}, batch "
        f"{options['batch_size']}, against on the device"
    )
    spread = f"({found['least']:.2f} to {found['greatest']:.2f})"
    yield what, f"{found['median']:.2f} {spread} times as fast"


def _smoothness(report):
    options, loss = report["options"], report["loss"]
    what = (
        f"a snapshot of theory.trained_smoothness, {options['norm'].capitalize()}, "
        f"{options['images']} images, {options['starts']} starts and following (mean loss "
        f"{loss['new']:.4f} against {loss['old']:.4f})"
    )
    yield what, f"one start (commit {options['old'][:7]})", _spread(report["ratio"]), "1"


def _profiles(report):
    """One row for every call that was traced."""
    options = report["options"]
    parts = [("", report)] + [(f", width {n['width']}", n) for n in report.get("networks", ())]
    parts += [(f", {_LARGE[row['network']]}", row) for row in report.get("rows", ())]
    for part, found in parts:
        for label, one in found.get("profile", {}).items():
            side, _, call = label.partition(", ")
            if call.startswith("passes"):  # beside which an attack on large images is timed
                continue
            what = f"{_traced(options)}{part}{f', {call}' if call else ''}"
            text = shares(one["kinds"])
            if "starts" in options:  # of several programs
                names = {name.removeprefix("jit_"): t for name, t in one["programs"].items()}
                text += f"; by program: {shares(names, least=0.02)}"
            yield what, side, text


def _traced(options) -> str:
    """What was traced, in words."""
    if "starts" in options:
        return f"theory.trained_smoothness, {options['norm'].capitalize()}, a snapshot"
    if "norms" in options:
        return f"{options['size']}x{options['size']} pixels"
    if "widths" in options:
        return "norm of the attack Jacobian, PreActResNet-18"
    if "dataset" in options:
        return f"time to the first minibatch, {options['dataset']}, {options['method']}"
    if "methods" in options:
        return f"training, width {options['width']}, batch {options['batch_size']}"
    network = _parity_tables.network(options | {"num_steps": 100, "num_queries": 5000})
    return f"AutoAttack, {network}"


def _conv(report):
    for row in report["networks"]:
        size = f"PreActResNet-18 of width {row['width']}, batch {row['batch']}"
        for name, ratio in row["ratio"].items():
            yield f"a step of {name}, {size}", "gradients of JAX", _spread(ratio), "1"


def _gflops(report):
    for row in report["rows"]:
        rates = row["gflops"]
        cells = (rates.get(side) for side in _SIDES_OF_RATES)
        yield (
            f"{row['what']}, {report['cores']} core{'s' * (report['cores'] > 1)}",
            *(_whole(rate) if rate else "" for rate in cells),
        )


def _whole(rate: dict) -> str:
    return f"{rate['median']:.0f} ({rate['least']:.0f} to {rate['greatest']:.0f})"


_SIDES_OF_RATES = ("jaxadv", "PyTorch", "PyTorch, channels last")
_ROWS = {
    "training": _training,
    "pgd": _pgd,
    "own": _own,
    "autoattack": _autoattack,
    "entropy": _entropy,
    "smoothness": _smoothness,
    "conv": _conv,
}
_MEASURES = {
    "reproduce": _reproduce,
    "startup": _startup,
    "fresh": _fresh,
    "matrix": _matrix,
    "scaling": _scaling,
    "memory": _memory,
    "large": _large,
    "streaming": _streaming,
}
_RATES = {"rates": _gflops}
_TRACED = ("training", "traces", "matrix", "smoothness", "startup", "large")
_PROFILES = dict.fromkeys(_TRACED, _profiles)


def render(results: pathlib.Path = RESULTS) -> dict[str, str]:
    """The tables as Markdown, by marker name.

    Example:
        >>> print(render(pathlib.Path("nowhere"))["speed"].splitlines()[0])
        | times as fast as | what | ratio (least to greatest) | aim | file |
    """
    speed = ["| times as fast as | what | ratio (least to greatest) | aim | file |"]
    speed.append("|---|---|---|---|---|")
    for what, peer, ratio, aim, name in sorted(rows(results), key=lambda row: (row[1], row[0])):
        speed.append(f"| {peer} | {what} | {ratio} | {aim} | `{name}` |")
    measures = ["| what | measured | file |", "|---|---|---|"]
    measures += [f"| {what} | {n} | `{name}` |" for what, n, name in _collect(results, _MEASURES)]
    rates = [f"| GFLOP/s | {' | '.join(_SIDES_OF_RATES)} | file |", "|---|---|---|---|---|"]
    rates += [f"| {' | '.join(row[:-1])} | `{row[-1]}` |" for row in _collect(results, _RATES)]
    speed += ["", _machines(results, _ROWS)]
    measures += ["", _machines(results, _MEASURES)]
    rates += ["", _machines(results, _RATES)]
    traced = ["| what | whose | time in operations | file |", "|---|---|---|---|"]
    traced += [f"| {' | '.join(row[:-1])} | `{row[-1]}` |" for row in _collect(results, _PROFILES)]
    traced += ["", _machines(results, _PROFILES)]
    tables = {SPEED: speed, MEASURES: measures, RATES: rates, PROFILES: traced}
    for name, render_one in ((GLOBAL, _global_table.render), (CLONE, _clone_table.sentence)):
        path = results / f"{name.replace(' ', '_')}.json"
        if path.exists():
            tables[name] = [render_one(json.loads(path.read_text(encoding="utf-8")))]
    found = {name: "\n".join(lines) for name, lines in tables.items()}
    return found | _parity_tables.render(results) | _scale_tables.render(results)


def _machines(results: pathlib.Path, kinds: dict) -> str:
    """On which machines the files of a table were measured, and when."""
    names: dict[str, list[str]] = {}
    for name in dict.fromkeys(row[-1] for row in _collect(results, kinds)):
        report = json.loads((results / name).read_text(encoding="utf-8"))
        found = report.get("environment", report)
        machine = found.get("device") or found["hardware"]
        names.setdefault(f"{machine}, {found['date']}", []).append(f"`{name}`")
    if not names:
        return ""
    ordered = sorted(names.items(), key=lambda item: -len(item[1]))
    rest = [f"{', '.join(files)} on {where}" for where, files in ordered[1:]]
    return "; ".join([f"Measured on {where}" for where, _ in ordered[:1]] + rest) + "."


def fill(text: str, name: str, table: str) -> str:
    """Inserts the table between its markers.

    Raises:
        ValueError: if the markers are missing.
    """
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"expected one {start} and one {end} in the file")
    head, tail = text.index(start) + len(start), text.index(end)
    return f"{text[:head]}\n{table}\n{text[tail:]}"


def main(arguments=None) -> None:
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="fail if the file would change; write nothing"
    )
    options = parser.parse_args(arguments)
    tables = render()
    for path, names in PAGES.items():
        before = after = path.read_text(encoding="utf-8")
        for name in names:
            after = fill(after, name, tables[name]) if name in tables else after
        if after == before:
            continue
        if options.check:
            sys.exit(f"the tables of {path} are out of date; run python -m benchmarks.summary")
        path.write_text(after, encoding="utf-8")
        print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
