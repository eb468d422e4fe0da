"""The tables of docs/autoattack.md, from ``parity_*.json`` and ``autoattack_*.json``."""

import itertools
import json
import pathlib
import statistics
from collections.abc import Iterable

from jaxadv.intervals import wilson

MARKERS = ("parity 10000", "parity 1000", "parity runs", "parity pgd", "parity fab", "cost")
ATTACKS = ("clean", "apgd-ce", "apgd-t", "fab-t", "square")
# What the networks' authors report for all 10,000 images: advertorch's table of attacks on MNIST.
PUBLISHED = {
    "parity_fab_l2_adversarial_first_alpha": "3.04 (mean 3.205, 98.4 %)",
    "parity_fab_linf_adversarial": "0.3509",
    "parity_fab_linf_clean": "0.112",
    "parity_fab_l2_clean": "1.423",
}
NAMES = {
    "mnist_linf0.3_advertorch_lenet5_adv": "trained adversarially",
    "mnist_advertorch_lenet5_clean": "trained cleanly",
}


def render(results: pathlib.Path) -> dict[str, str]:
    """The tables whose files exist, as Markdown by marker name."""
    makers = {
        "parity 10000": (_all_images, "parity_mnist_10000"),
        "parity 1000": (_against_reference, "parity_mnist_1000"),
        "parity runs": (_runs, "parity_apgd_ce_runs"),
        "parity pgd": (_pgd, "parity_pgd40"),
    }
    tables = {
        marker: make(read(results, name), name)
        for marker, (make, name) in makers.items()
        if (results / f"{name}.json").exists()
    }
    norms = [path.stem for path in sorted(results.glob("parity_fab_*.json"))]
    if norms:
        tables["parity fab"] = _norms({name: read(results, name) for name in norms})
    costs = [path.stem for path in sorted(results.glob("autoattack_*.json"))]
    if costs:
        tables["cost"] = _costs({name: read(results, name) for name in costs})
    return tables


def read(results: pathlib.Path, name: str) -> dict:
    """A record."""
    return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*cells: str) -> list[str]:
    return [_row(*cells), "|" + "---|" * len(cells)]


def _source(report: dict, *names: str) -> str:
    """The last line of a table."""
    found = report["environment"]
    files = ", ".join(f"`{name}.json`" for name in names)
    return f"{files}: commit {found['commit']}; {found['device']}, {found['date']}."


def percent(correct: int, images: int, digits: int = 2) -> str:
    """A share in % with its 95 % Wilson interval.

    Example:
        >>> percent(8289, 10_000), percent(980, 1000, digits=0)
        ('82.89 [82.14, 83.62]', '98 [97, 99]')
    """
    share, low, high = (
        f"{100 * value:.{digits}f}" for value in (correct / images, *wilson(correct, images))
    )
    return f"{share} [{low}, {high}]"


def _all_images(report: dict, name: str) -> str:
    number, found = report["options"]["number"], report["key 0"]["accuracy"]
    cells = [percent(round(found[attack] * number), number) for attack in ATTACKS]
    lines = _head("%, with 95 % intervals", *ATTACKS)
    lines += [_row(f"`jaxadv`, key 0, {number:,} images", *cells), ""]
    return "\n".join([*lines, _source(report, name)])


def _against_reference(report: dict, name: str) -> str:
    number, rows = report["options"]["number"], report["rows"]
    mean = {(row["runs"].split(",")[0], row["attack"]): row for row in report["spread"]}
    lines = _head(f"% of the first {number:,} images", *ATTACKS)
    for side, title, option in (
        ("jaxadv", "`jaxadv`, keys", "keys"),
        ("reference", "`pyautoattack`, seeds", "reference_seeds"),
    ):
        cells = [_mean(mean[side, attack]) for attack in ATTACKS]
        lines.append(_row(f"{title} {_listed(report['options'][option])}", *cells))
    drawn = [row for row in rows if row["second"].startswith("reference, draws of key 0")]
    own = [row for row in drawn if row["first"] == "jaxadv, key 0"]
    share = lambda value: percent(round(value * number), number, digits=1)
    cells = [share(row["accuracy_second"]) for row in own]
    lines.append(_row("`pyautoattack` with the start noise of key 0", *cells))
    sides = lambda row: (row["first"].split()[0], row["second"].split()[0])
    free = [row for row in rows if "draws" not in row["first"] + row["second"]]
    for title, pair in (
        ("two keys of `jaxadv`", ("jaxadv,", "jaxadv,")),
        ("two seeds of `pyautoattack`", ("reference,", "reference,")),
        ("`jaxadv` and `pyautoattack`, different draws", ("jaxadv,", "reference,")),
    ):
        chosen = [row for row in free if sides(row) == pair]
        lines.append(_row(f"same verdict, {title}", *_agreements(chosen)))
    cells = [f"**{share(row['agreement'])}**" for row in own]
    lines.append(_row("**same verdict, `jaxadv` and `pyautoattack`, same draws**", *cells))
    return "\n".join([*lines, "", _source(report, name)])


def _mean(row: dict) -> str:
    deviation = f" ± {100 * row['std']:.1f}" if row["std"] else ""
    return f"{100 * row['mean']:.1f}{deviation}"


def _listed(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _agreements(rows: list[dict]) -> list[str]:
    """By attack, the range over pairs of runs."""
    cells = []
    for attack in ATTACKS:
        cells.append(_range(100 * row["agreement"] for row in rows if row["attack"] == attack))
    return cells


def _range(percentages: Iterable[float]) -> str:
    found = sorted(percentages)
    low, high = (f"{x:.1f}".removesuffix(".0") for x in (found[0], found[-1]))
    return low if low == high else f"{low} to {high}"


def _runs(report: dict, name: str) -> str:
    found = report["apgd"]
    images = found["images"]
    lines = _head("APGD-CE alone", "runs", "robust accuracy, %", "same verdict as the reference, %")
    for title, side in (
        ("`jaxadv`, its own draws", "jaxadv"),
        ("`pyautoattack`", "reference"),
        ("`jaxadv`, the draws of `pyautoattack`", "reference's draws"),
    ):
        values = [100 * count / images for count in found[side]]
        spread = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
        same = _range(100 * count / images for count in found["same"])
        shared = same if side == "reference's draws" else ""
        lines.append(_row(title, f"{len(values)} of {images:,} images", spread, shared))
    return "\n".join([*lines, "", _source(report, name)])


def _pgd(report: dict, name: str) -> str:
    found = report["pgd"]
    images = found["images"]
    lines = _head("%, with 95 % intervals", "`jaxadv`", "PyTorch", "published", "other verdict")
    wrong = [percent(images - found[side], images) for side in ("jaxadv", "PyTorch")]
    steps = f"misclassified after PGD-{report['options']['num_steps']}"
    other = f"{percent(found['different'], images)} ({found['different']} images)"
    lines.append(_row(f"{steps}, {images:,} images", *wrong, "6.8", other))
    return "\n".join([*lines, "", _source(report, name)])


def _norms(reports: dict[str, dict]) -> str:
    steps = next(iter(reports.values()))["options"]["num_steps"]
    lines = _head(
        f"FAB, {steps} steps, median norm", "`jaxadv`", "`pyautoattack`",
        "norms within 0.1 %, % of images", "published",
    )  # fmt: skip
    for name, report in reports.items():
        options, found = report["options"], report["fab"]
        title = f"{NAMES[report['network']]}, {options['norm'].capitalize()}"
        title += ", `--first_alpha`" * options["first_alpha"]
        near = ""
        if "reference" in found:
            count = round(found["within 0.1 %"] * found["jaxadv"]["images"])
            near = percent(count, found["jaxadv"]["images"], digits=0)
        sides = [_norm(found[side]) if side in found else "" for side in ("jaxadv", "reference")]
        published = PUBLISHED.get(name, "") if options["number"] == 10_000 else ""
        lines.append(_row(title, *sides, near, published))
    sources = {name: _source(report, name).split(": ")[1] for name, report in reports.items()}
    groups = itertools.groupby(sorted(sources, key=sources.__getitem__), sources.__getitem__)
    text = [f"{', '.join(f'`{name}.json`' for name in names)}: {where}" for where, names in groups]
    return "\n".join([*lines, "", " ".join(text)])


def _norm(found: dict) -> str:
    low, high = found["median_95"]
    share = percent(found["found"], found["images"], digits=1)
    mean = f"mean {found['mean']:.3f} ± {found['mean_95']:.3f}"
    of = f"{share} % of {found['images']:,}"
    return f"{found['median']:.4g} [{low:.4g}, {high:.4g}] ({mean}, found for {of})"


def _costs(reports: dict[str, dict]) -> str:
    columns = ("apgd-ce", "apgd-t", "fab-t", "square", "total")
    lines = _head("network", "survive", *columns, "total with compilation")
    for name, report in reports.items():
        found = report["ratio"] | {"with compilation": report["ratio_with_compilation"]}
        cells = [ratio(found[column]) for column in columns]
        cells[-1] = f"**{cells[-1]}**"
        lines.append(
            _row(
                f"{network(report['options'])} (`{name}.json`)",
                f"{100 * report['accuracy']['square']:.0f} % of {report['options']['number']}",
                *cells,
                ratio(found["with compilation"]),
            )
        )
    rates = [f"{network(report['options'])}: {rate(report)}" for report in reports.values()]
    lines += ["", f"Rates of `jaxadv`, in GFLOP/s: {'; '.join(rates)}."]
    sources = [_source(report, name).removesuffix(".") for name, report in reports.items()]
    return "\n".join([*lines, "", f"{'; '.join(sources)}."])


def rate(report: dict) -> str:
    """GFLOP/s of each attack: the passes that it counted over its time, median (range).

    Example:
        >>> cost = {"forward": 1000, "backward": 500}
        >>> passes = {"forward": 60.0, "backward": 80.0}
        >>> spent = {"square": {"jaxadv": {"median": 2.0, "least": 1.0, "greatest": 4.0}}}
        >>> rate({"evaluations": {"square": cost}, "seconds": spent, "mflop_of_a_pass": passes})
        'square 50 (25 to 100)'
    """
    size, found = report["mflop_of_a_pass"], []
    for name in ATTACKS[1:]:
        if counts := report["evaluations"].get(name):
            work = sum(counts[way] * size[way] for way in size) / 1e3
            spent = report["seconds"][name]["jaxadv"]
            middle, low, high = (work / spent[k] for k in ("median", "greatest", "least"))
            found.append(f"{name} {middle:.0f} ({low:.0f} to {high:.0f})")
    return ", ".join(found)


def ratio(found: dict) -> str:
    """A speedup with its spread, if there were several calls.

    Example:
        >>> ratio({"median": 2.71, "least": 2.5, "greatest": 3.0})
        '2.7 (2.5 to 3.0)'
        >>> ratio({"median": 2.71, "least": 2.71, "greatest": 2.71})
        '2.7'
    """
    if found["least"] == found["greatest"]:
        return f"{found['median']:.1f}"
    return f"{found['median']:.1f} ({found['least']:.1f} to {found['greatest']:.1f})"


def network(options: dict) -> str:
    """The network of a comparison in words.

    Example:
        >>> budget = {"num_steps": 100, "num_queries": 5000}
        >>> network({"checkpoint": None, "resnet_width": 16, "plain": True} | budget)
        'PreActResNet-18 of width 16 with flax.linen.Conv, random weights that nothing breaks'
    """
    plain = " with flax.linen.Conv" if options.get("plain") else ""
    text = f"PreActResNet-18 of width {options['resnet_width']}{plain}, random weights"
    text += " that nothing breaks"
    if options["checkpoint"]:
        text = pathlib.Path(options["checkpoint"]).stem
    if options.get("run"):
        text = "PreActResNet-18 of width 16 trained with AT"
    steps, queries = options["num_steps"], options["num_queries"]
    return (
        text if (steps, queries) == (100, 5000) else f"{text}, {steps} steps, {queries:,} queries"
    )
