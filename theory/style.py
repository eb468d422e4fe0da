"""Style and output of every figure: PNG, PDF, data, checks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure  # not pyplot, which would choose a backend
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette: distinguishable by color-blind readers and in grayscale print.
BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
NORM_COLORS = {"l2": BLUE, "linf": ORANGE}
NORM_LABELS = {None: "clean", "l2": r"$L_2$", "linf": r"$L_\infty$"}

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "mathtext.fontset": "cm",
}
DPI = 200  # of PNG, and of what is rasterized in PDF
KINK = "crimson"


class Check(NamedTuple):
    """One number of a figure against its expected value.

    Attributes:
        name: what is measured.
        measured: the number.
        expected: the expected value, or the bound.
        tolerance: largest absolute deviation; None for a bound.
        holds: the verdict.
        source: place in docs/formulas.md, docs/errata.md or the paper.
    """

    name: str
    measured: float
    expected: float
    tolerance: float | None
    holds: bool
    source: str


def equals(name: str, measured, expected: float, tolerance: float, source: str) -> Check:
    """A check of equality."""
    measured = float(measured)
    holds = bool(abs(measured - expected) <= tolerance)
    return Check(name, measured, expected, tolerance, holds, source)


def at_most(name: str, measured, bound: float, source: str) -> Check:
    """A check of an upper bound."""
    measured, bound = float(measured), float(bound)
    return Check(f"{name} (at most)", measured, bound, None, measured <= bound, source)


def at_least(name: str, measured, bound: float, source: str) -> Check:
    """A check of a lower bound."""
    measured, bound = float(measured), float(bound)
    return Check(f"{name} (at least)", measured, bound, None, measured >= bound, source)


def write(
    figure: Figure,
    path: Path,
    data: Mapping[str, np.ndarray],
    checks: Sequence[Check],
    settings: Mapping[str, Any],
) -> list[Path]:
    """Saves a figure as PNG and PDF, its data as NPZ, its settings and checks as JSON.

    Args:
        figure: a matplotlib figure.
        path: output path without suffix.
        data: the plotted arrays.
        checks: results of the checks.
        settings: how the figure was made.

    Returns:
        The files written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(suffix) for suffix in (".png", ".pdf", ".npz", ".json")]
    figure.savefig(files[0], dpi=DPI)
    figure.savefig(files[1], dpi=DPI, metadata={"CreationDate": None})  # the same bytes every time
    np.savez_compressed(files[2], **dict(data))  # pyright: ignore[reportArgumentType]
    report = {
        "settings": dict(settings),
        "holds": all(check.holds for check in checks),
        "checks": [check._asdict() for check in checks],
    }
    files[3].write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return files


def surface(
    axes,
    axis: np.ndarray,
    values: np.ndarray,
    *,
    limits,
    title: str,
    height: str,
    azimuth: float = -120,
) -> None:
    """A surface over the (theta_1, theta_2) square with its contour lines on the floor.

    Args:
        axes: three-dimensional axes made with ``computed_zorder=False``, so that lines that are
            drawn later stay in front.
        axis: the grid of both parameters, shape (n,).
        values: shape (n, n), index [i, j] at (axis[i], axis[j]).
        limits: of the values; the floor lies below.
        title: of the panel.
        height: name of the values, for the third axis.
        azimuth: of the camera, in degrees.
    """
    low, high = limits
    floor = low - 0.35 * (high - low)
    first, second = np.meshgrid(axis, axis, indexing="ij")
    axes.contour(
        first,
        second,
        values,
        zdir="z",
        offset=floor,
        levels=np.linspace(low, high, 13),
        cmap="viridis",
        linewidths=0.7,
        zorder=0,
        vmin=low,
        vmax=high,
    )
    axes.plot_surface(
        first,
        second,
        values,
        cmap="viridis",
        vmin=low,
        vmax=high,
        rcount=len(axis),
        ccount=len(axis),
        linewidth=0,
        antialiased=False,
        rasterized=True,
        zorder=1,
    )
    axes.set(zlim=(floor, high), xlim=(-2, 2), ylim=(-2, 2))
    axes.set_xticks([-1, 0, 1])
    axes.set_yticks([-1, 0, 1])
    ticks = MaxNLocator(4).tick_values(low, high)
    axes.set_zticks([tick for tick in ticks if low - 1e-9 <= tick <= high])
    for side in (axes.xaxis, axes.yaxis, axes.zaxis):
        side.set_rotate_label(False)  # or the symbols are sheared along the axis
    axes.set_xlabel(r"$\theta_1$", labelpad=-4)
    axes.set_ylabel(r"$\theta_2$", labelpad=-4)
    axes.set_zlabel(height, labelpad=-5, rotation=90)
    axes.tick_params(pad=-2)
    axes.view_init(elev=30, azim=azimuth)
    axes.set_box_aspect((1, 1, 0.75), zoom=1.0)
    axes.set_title(title, y=1.0)
    axes.patch.set_alpha(0)  # or it hides the tick labels of the panel to its left
    for pane in (axes.xaxis, axes.yaxis, axes.zaxis):
        pane.set_pane_color((1, 1, 1, 0))
        pane._axinfo["grid"].update(color=(0.85, 0.85, 0.85), linewidth=0.4)
