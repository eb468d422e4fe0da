"""Medians over seeds with their intervals, the verdicts on the hypotheses, and the tables."""

import collections
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .design import NORMS, OPTIMIZERS, SETTINGS

SAMPLES = 10_000
LABELS = {"at": "AT", "at_ensgd": "AT+EnSGD"}
NORM_NAMES = {"l2": "L2", "linf": "Linf"}
BASE = "base"
MARKERS = "<!-- trained smoothness -->", "<!-- end of trained smoothness -->"

Pick = Callable[[dict], float]


class Median(NamedTuple):
    """A median over seeds and its 95 % percentile bootstrap interval.

    Attributes:
        value: the median; nan without seeds.
        low: lower end.
        high: upper end.
        seeds: number of seeds with a value.
    """

    value: float
    low: float
    high: float
    seeds: int

    def text(self, form: str = "{:.2f}") -> str:
        """For a table."""
        if not self.seeds:
            return ""
        return f"{form.format(self.value)} [{form.format(self.low)}, {form.format(self.high)}]"


def median(values: Sequence[float]) -> Median:
    """The median of values of independent seeds; nan are left out.

    Example:
        >>> median([1.0, 2.0, 3.0]).value
        2.0
    """
    known = np.array([value for value in values if not np.isnan(value)])
    if not known.size:
        return Median(np.nan, np.nan, np.nan, 0)
    rows = np.random.default_rng(0).integers(known.size, size=(SAMPLES, known.size))
    low, high = np.quantile(np.median(known[rows], axis=1), (0.025, 0.975))
    return Median(float(np.median(known)), float(low), float(high), known.size)


def load(folder: Path) -> list[dict]:
    """The results in a folder, of the settings and norms whose seeds are all there."""
    cells = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    if not cells:
        raise ValueError(f"{folder} has no results; run python -m theory.trained_smoothness first")
    counts = collections.Counter((cell["setting"], cell["norm"]) for cell in cells)
    full = max(counts.values())
    return [cell for cell in cells if counts[cell["setting"], cell["norm"]] == full]


class Data:
    """Values by seed, from the cells of a folder."""

    def __init__(self, cells: Sequence[dict]) -> None:
        self.cells = cells
        self.settings = sorted({c["setting"] for c in cells}, key=lambda name: (name != BASE, name))

    def rows(self, setting: str, norm: str, method: str, snapshot: str) -> dict[int, dict]:
        """The measurements of each seed."""
        return {
            cell["seed"]: row | {"images": cell["images"]}
            for cell in self.cells
            for row in cell["rows"]
            if (cell["setting"], cell["norm"]) == (setting, norm)
            and (row["method"], row["snapshot"]) == (method, snapshot)
        }

    def values(
        self, setting: str, norm: str, method: str, snapshot: str, pick: Pick
    ) -> list[float]:
        """One number per seed."""
        return [pick(row) for row in self.rows(setting, norm, method, snapshot).values()]

    def compared(self, pick: Pick, join: Callable, one: tuple, other: tuple) -> list[float]:
        """``join`` of each seed that both (setting, norm, method, snapshot) have."""
        first, second = self.rows(*one), self.rows(*other)
        return [join(pick(first[s]), pick(second[s])) for s in first if s in second]


def _over(first: float, second: float) -> float:
    return first / second if second else np.nan


def change(step: str) -> Pick:
    """Change of the gradient per length of a step."""
    return lambda row: row["steps"][step]["total"]


def parts(step: str) -> Pick:
    """Part of the attacks over the part of the parameters."""
    return lambda row: _over(row["steps"][step]["attack"], row["steps"][step]["parameter"])


def growth(row: dict) -> float:
    """Part of the attacks per length at 0.1 % over that at 1 %."""
    return _over(row["steps"]["0.1%"]["attack"], row["steps"]["1%"]["attack"])


def share(step: str, *kinds: str) -> Pick:
    """Share of the images whose attack did one of these."""
    return lambda row: sum(row["steps"][step][kind] for kind in kinds) / row["images"]


def switches(step: str) -> Pick:
    """Share of the images whose attack went to another maximum."""
    return share(step, "ended", "crossed")


def eigenvalue(row: dict) -> float:
    """Largest eigenvalue of the true Hessian."""
    return row["eigenvalues"]["true"]


class Verdict(NamedTuple):
    """A hypothesis, its verdict and the medians that it rests on, by setting."""

    name: str
    statement: str
    verdict: str
    medians: dict[str, list[Median]]
    names: list[str]
    percent: bool = False


def _judge(medians: dict[str, list[Median]], sides: Sequence[int], null: float, against_any) -> str:
    """Compares intervals with ``null``: side 1 hopes for above, -1 for below, 0 for not above."""

    def on(found: Median, side: int) -> bool:
        if side == 0:
            return not found.low > null
        return found.low > null if side > 0 else found.high < null

    def leans(found: Median, side: int) -> bool:
        return found.value <= null if side <= 0 else found.value > null

    base = medians[BASE]
    if not all(found.seeds for found in base):
        return "not run"
    if against_any(base):
        return "contradicted"
    others = [
        found for name, found in medians.items() if name != BASE and all(m.seeds for m in found)
    ]
    same = all(leans(m, side) for found in others for m, side in zip(found, sides, strict=True))
    if all(on(m, side) for m, side in zip(base, sides, strict=True)) and same:
        return "supported" if len(others) == len(SETTINGS) - 1 else "base only"
    return "not shown"


def verdicts(data: Data) -> list[Verdict]:
    """The registered hypotheses, judged; see ``theory.trained_smoothness``."""
    per = lambda make: {setting: make(setting) for setting in data.settings}
    at = lambda s, norm, pick: median(data.values(s, norm, "at", "late", pick))
    found = []
    for norm in NORMS:
        medians = per(lambda s, n=norm: [at(s, n, parts("0.1%"))])
        verdict = _judge(medians, [1], 1, lambda base: base[0].high < 1)
        statement = "the attacks' motion is the larger source of roughness"
        found.append(Verdict(f"H1, {NORM_NAMES[norm]}", statement, verdict, medians, ["ratio"]))
    places = lambda s: [(s, norm, "at", "late") for norm in ("linf", "l2")]
    medians = per(lambda s: [median(data.compared(parts("0.1%"), _over, *places(s)))])
    verdict = _judge(medians, [1], 1, lambda base: base[0].high < 1)
    found.append(Verdict("H2", "Linf is rougher than L2", verdict, medians, ["ratio"]))
    medians = per(lambda s: [at(s, "linf", growth), at(s, "l2", growth)])
    verdict = _judge(medians, [1, 0], 1, lambda base: base[1].low > 1 or base[0].high < 1)
    found.append(Verdict("H3", "Linf has kinks, L2 has none", verdict, medians, ["Linf", "L2"]))
    medians = per(lambda s: [at(s, "l2", switches("1%"))])
    # "0 in all seeds": not only in the median.
    none = not any(data.values(BASE, "l2", "at", "late", switches("1%")))
    verdict = _judge(medians, [0], 0, lambda base: base[0].low > 0)
    verdict = "not shown" if verdict in ("supported", "base only") and not none else verdict
    found.append(
        Verdict("H4", "optimal L2 attacks do not switch within 1 %", verdict, medians, [""], True)
    )
    difference = lambda first, second: first - second
    for norm in NORMS:
        for name, statement, pick, join, null in (
            ("H5", "EntropySGD: smaller change", change("0.1%"), _over, 1),
            ("H5", "EntropySGD: smaller top eigenvalue", eigenvalue, _over, 1),
            ("H6", "EntropySGD: fewer switches within 1 %", switches("1%"), difference, 0),
        ):
            medians = per(
                lambda s, n=norm, p=pick, j=join: [
                    median(data.compared(p, j, (s, n, "at_ensgd", place), (s, n, "at", place)))
                    for place in ("late", "equal loss")
                ]
            )
            verdict = _judge(
                medians, [-1, -1], null, lambda base, z=null: any(m.low > z for m in base)
            )
            label = f"{name}, {NORM_NAMES[norm]}"
            found.append(
                Verdict(label, statement, verdict, medians, ["late", "equal loss"], null == 0)
            )
    return found


# Rows of the table: title, what it picks, its format.
ROWS: tuple[tuple[str, Pick, str], ...] = (
    ("training loss", lambda row: row["training_loss"], "{:.2f}"),
    ("change of the gradient per length, step 0.1 %: the parameters' part",
     lambda row: row["steps"]["0.1%"]["parameter"], "{:.2f}"),
    ("... the attacks' part", lambda row: row["steps"]["0.1%"]["attack"], "{:.2f}"),
    ("... the attacks' part, step 1 %", lambda row: row["steps"]["1%"]["attack"], "{:.2f}"),
    ("... the attacks' part, one update", lambda row: row["steps"]["update"]["attack"], "{:.2f}"),
    ("attacks that switch to another maximum within 0.1 %", switches("0.1%"), "{:.0%}"),
    ("... within 1 %", switches("1%"), "{:.0%}"),
    ("... within one update", switches("update"), "{:.0%}"),
    ("largest eigenvalue, attack frozen", lambda row: row["eigenvalues"]["frozen"], "{:.1f}"),
    ("... true Hessian", eigenvalue, "{:.1f}"),
    ("size of an update, % of the weights' norm",
     lambda row: 100 * row["steps"]["update"]["length"] / row["weights"], "{:.2g}"),
)  # fmt: skip


def table(data: Data, setting: str = BASE, snapshot: str = "late") -> str:
    """Both norms and methods of one setting and snapshot, in Markdown."""
    columns = [(norm, method) for norm in NORMS for method in OPTIMIZERS]
    heads = [f"{NORM_NAMES[norm]}, {LABELS[method]}" for norm, method in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    for title, pick, form in ROWS:
        cells = (median(data.values(setting, *column, snapshot, pick)) for column in columns)
        lines.append(f"| {title} | " + " | ".join(cell.text(form) for cell in cells) + " |")
    return "\n".join(lines).replace("%,", " %,").replace("%]", " %]").replace("% [", " % [")


def verdict_table(data: Data) -> str:
    """The hypotheses and their verdicts, in Markdown, with the base setting's medians."""
    lines = ["| | hypothesis | verdict | base |", "|---" * 4 + "|"]
    for found in verdicts(data):
        names = [f"{name}: " * (len(found.names) > 1) for name in found.names]
        cells = _medians(found, BASE)
        named = "; ".join(name + cell for name, cell in zip(names, cells, strict=True))
        lines.append(f"| {found.name} | {found.statement} | **{found.verdict}** | {named} |")
    return "\n".join(lines)


def other_settings(data: Data) -> str:
    """The medians of the other settings, in Markdown."""
    others = [setting for setting in data.settings if setting != BASE]
    lines = ["| " + " | ".join(["", "", *others]) + " |", "|---" * (2 + len(others)) + "|"]
    for found in verdicts(data):
        cells = ["; ".join(_medians(found, setting)) for setting in others]
        lines.append("| " + " | ".join([found.name, found.statement, *cells]) + " |")
    return "\n".join(lines)


def _medians(found: Verdict, setting: str) -> list[str]:
    form = "{:.2f}"
    if found.percent:
        form = "{:+.0%}" if len(found.names) > 1 else "{:.0%}"
    return [_spaced(one.text(form)) for one in found.medians[setting]]


def _spaced(text: str) -> str:
    return re.sub(r"(\d)%", r"\1 %", text)


def checks(data: Data) -> dict[str, Any]:
    """How good the attacks are, over all cells: what the audit and the other end found.

    Shares and medians are one number a seed, and their median over seeds.
    """
    seeds: dict[int, list[dict]] = collections.defaultdict(list)
    for cell in data.cells:
        seeds[cell["seed"]] += [row | {"norm": cell["norm"]} for row in cell["rows"]]
    images = data.cells[0]["images"]
    rows = [row for found in seeds.values() for row in found]
    steps = lambda found: [step for row in found for step in row["steps"].values()]
    part = lambda pick: median(
        [float(np.mean([pick(step) for step in steps(found)])) / images for found in seeds.values()]
    )
    missed = lambda name: median(
        [float(np.mean([row[name] for row in found])) for found in seeds.values()]
    )
    gaps = lambda found, norm: [
        gap for row in found if row["norm"] == norm for gap in row["value_gaps"]
    ]
    return {
        "pairs": len(steps(rows)) * images,
        "violations": {
            name: sum(step["violations"][name] for step in steps(rows))
            for name in ("one_start", "own_starts", "union")
        },
        "violating": {
            name: part(lambda step, name=name: step["violations"][name])
            for name in ("one_start", "own_starts")
        },
        "missed": {name: missed(f"missed_by_{name}") for name in ("one_start", "one_end")},
        "largest_gain_of_union": max(row["largest_gain_of_union"] for row in rows),
        "gap": {
            norm: median(
                [float(np.median(gaps(found, norm) or [np.nan])) for found in seeds.values()]
            )
            for norm in NORMS
        },
        "largest_residual": max(row["largest_residual"] for row in rows),
        **{
            name: part(lambda step, name=name: step[name])
            for name in ("far", "far_but_continuous", "undecided")
        },
    }


def check_table(data: Data) -> str:
    """The same in Markdown."""
    found = checks(data)
    violating, missed = found["violating"], found["missed"]
    share = lambda value: _spaced(value.text("{:.1%}"))
    rows = [
        ("pairs of an image and a step that violate (MON), one start",
         share(violating["one_start"])),
        ("... one end's starts", share(violating["own_starts"])),
        ("... union of both ends, in all", f"{found['violations']['union']:,}"),
        ("searches that one start loses by more than 1e-6", share(missed["one_start"])),
        ("... one end's starts", share(missed["one_end"])),
        ("... the largest loss of one end's starts", f"{found['largest_gain_of_union']:.2g}"),
        ("gap to the second-best maximum, L2", found["gap"]["l2"].text("{:.2g}")),
        ("... Linf", found["gap"]["linf"].text("{:.2g}")),
        ("largest relative residual of an attack", f"{found['largest_residual']:.1g}"),
        ("pairs whose attack moved over a quarter of the diameter", share(found["far"])),
        ("... continuously", share(found["far_but_continuous"])),
        ("pairs not decided by following", share(found["undecided"])),
    ]  # fmt: skip
    head = f"| check of the attacks, {found['pairs']:,} pairs | median over seeds |"
    return "\n".join([head, "|---|---|", *(f"| {a} | {b} |" for a, b in rows if b)])


def text(data: Data) -> str:
    """What the markers of a page enclose."""
    seeds = len({cell["seed"] for cell in data.cells})
    commits = ", ".join(sorted({cell["environment"]["commit"] for cell in data.cells}))
    where = ("device", "date")
    made = {", ".join(cell["environment"][key] for key in where) for cell in data.cells}
    sections = (
        f"Base setting at the end of training; medians over {seeds} seeds with 95 % bootstrap "
        f"intervals (commit {commits}; {'; '.join(sorted(made))}):",
        table(data),
        "The registered hypotheses. Medians of ratios within a seed (differences for shares):",
        verdict_table(data),
        "The same in the other settings, in the same order (late; equal loss):",
        other_settings(data),
        check_table(data),
    )
    return "\n\n".join(sections)


def fill(page: str, data: Data) -> str:
    """The page with the text between its markers replaced."""
    first, last = map(re.escape, MARKERS)
    if not re.search(f"{first}.*{last}", page, re.DOTALL):
        raise ValueError(f"the page lacks {MARKERS[0]} ... {MARKERS[1]}; add both lines")
    new = f"{MARKERS[0]}\n{text(data)}\n{MARKERS[1]}"
    return re.sub(f"{first}.*{last}", lambda _: new, page, flags=re.DOTALL)
