"""The figure: parts of the change, what attacks do in a step, AT+EnSGD against AT."""

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .. import style
from .design import NORMS, OPTIMIZERS
from .summary import LABELS, Data, Median, _over, change, eigenvalue, median, share

STEPS = {"0.1%": "0.1 %", "update": "update", "1%": "1 %"}
COLORS = {"at": style.BLUE, "at_ensgd": style.ORANGE}
FATES = {
    "continuous": ("moved continuously", "0.85"),
    "crossed": ("another maximum overtook", style.SKY),
    "ended": ("maximum ceased to exist", style.PURPLE),
    "undecided": ("not decided", "0.55"),
}
COMPARED = (
    ("change, step 0.1 %", change("0.1%"), "o"),
    ("top eigenvalue", eigenvalue, "s"),
)
SNAPSHOTS = {"late": style.GREEN, "equal loss": style.YELLOW}


def draw(data: Data, setting: str = "base") -> Figure:
    """Draws the figure; medians over seeds with their intervals."""
    with rc_context(style.STYLE):
        norms = [norm for norm in NORMS if data.rows(setting, norm, "at", "late")]
        figure = Figure(figsize=(11.0, 1.0 + 2.7 * len(norms)))
        panels = figure.subplots(len(norms), 3, width_ratios=(1, 1, 1.25), squeeze=False)
        figure.subplots_adjust(
            left=0.085,
            right=0.985,
            top=1 - 0.38 / figure.get_figheight(),
            bottom=1.15 / figure.get_figheight(),
            wspace=0.42,
            hspace=0.2,
        )
        for norm, (first, second, third) in zip(norms, panels, strict=True):
            _parts(first, data, setting, norm)
            _fates(second, data, setting, norm)
            _forest(third, data, norm)
            first.set_ylabel(f"{style.NORM_LABELS[norm]}: change per length")
            for axes in (first, second, third):
                axes.spines[["top", "right"]].set_visible(False)
        panels[0, 0].set_title("change of the gradient, by source")
        panels[0, 1].set_title("what the attacks do in a step")
        panels[0, 2].set_title("AT+EnSGD over AT")
        for axes in panels[-1, :2]:
            axes.set_xlabel("step")
        panels[-1, 2].set_xlabel("ratio within a seed")
        _legends(panels[-1])
    return figure


def _bar(axes, place: float, found: Median, *, sideways: bool = False, **options) -> None:
    if not found.seeds:
        return
    error = [[found.value - found.low], [found.high - found.value]]
    options = dict(capsize=2, lw=1.2, ms=4.5, ls="none") | options
    if sideways:
        axes.errorbar(found.value, place, xerr=error, **options)
    else:
        axes.errorbar(place, found.value, yerr=error, **options)


def _plain(axis) -> None:
    """Numbers instead of powers on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 3), numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _parts(axes, data: Data, setting: str, norm: str) -> None:
    for index, step in enumerate(STEPS):
        for shift, method in zip((-0.08, 0.08), OPTIMIZERS, strict=True):
            for part, marker, offset in (("attack", "o", -0.16), ("parameter", "D", 0.16)):
                pick = lambda row, s=step, p=part: row["steps"][s][p]
                found = median(data.values(setting, norm, method, "late", pick))
                filled = COLORS[method] if part == "attack" else "white"
                _bar(axes, index + shift + offset, found, marker=marker, color=COLORS[method],
                     mfc=filled)  # fmt: skip
    axes.set_yscale("log")
    _plain(axes.yaxis)
    axes.set_xticks(range(len(STEPS)), list(STEPS.values()))
    axes.grid(axis="y", color="0.92", lw=0.5)
    axes.set_axisbelow(True)


def _fates(axes, data: Data, setting: str, norm: str) -> None:
    for index, step in enumerate(STEPS):
        for shift, method in zip((-0.2, 0.2), OPTIMIZERS, strict=True):
            bottom = 0.0
            for fate, (_, color) in FATES.items():
                mean = np.mean(data.values(setting, norm, method, "late", share(step, fate)) or [0])
                axes.bar(index + shift, mean, 0.34, bottom=bottom, color=color,
                         edgecolor=COLORS[method], lw=1.2)  # fmt: skip
                bottom += mean
    axes.set_xticks(range(len(STEPS)), list(STEPS.values()))
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of images, mean of seeds")


def _forest(axes, data: Data, norm: str) -> None:
    places = {name: -index for index, name in enumerate(data.settings)}
    for name, place in places.items():
        offset = 0.3
        for _, pick, marker in COMPARED:
            for snapshot, color in SNAPSHOTS.items():
                keys = [(name, norm, method, snapshot) for method in ("at_ensgd", "at")]
                found = median(data.compared(pick, _over, *keys))
                _bar(axes, place + offset, found, sideways=True, marker=marker, color=color)
                offset -= 0.2
    axes.axvline(1, color="0.3", lw=0.8)
    axes.set_xscale("log")
    _plain(axes.xaxis)
    axes.set_yticks(list(places.values()), list(places))
    axes.set_ylim(min(places.values()) - 0.6, 0.6)
    axes.grid(axis="x", which="both", color="0.92", lw=0.5)
    axes.set_axisbelow(True)


def _legends(panels) -> None:
    line = lambda label, **options: Line2D([], [], label=label, ls="none", **options)
    methods = [line(LABELS[m], marker="s", color=c) for m, c in COLORS.items()]
    kinds = [
        line("attacks move", marker="o", color="0.3"),
        line("parameters move", marker="D", color="0.3", mfc="white"),
    ]
    fates = [Patch(facecolor=color, label=label) for label, color in FATES.values()]
    compared = [line(name, marker=m, color="0.3") for name, _, m in COMPARED]
    compared += [line(name, marker="_", color=c, mew=2) for name, c in SNAPSHOTS.items()]
    for axes, handles in zip(panels, (methods + kinds, fates, compared), strict=True):
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
