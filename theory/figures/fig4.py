"""Figure 4: the linear model on a data set of 100 points; clean, L2 and Linf."""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxadv import theory

from .. import style, surfaces

NORMS = (None, "l2", "linf")
MINIMA = {"l2": ((1.0847279, 0.0456441), 0.6465367818), "linf": ((1.0915989, 0.0), 0.6470117217)}


def minimiser(norm: Any) -> tuple[np.ndarray, float]:
    """The minimum of the exact loss, by Nelder and Mead on a convex function of two numbers."""
    points, labels = theory.toy_dataset()

    def loss(theta):
        margins = labels * (points @ theta)
        size = np.abs(theta).sum() if norm == "linf" else np.linalg.norm(theta)
        return np.mean(np.logaddexp(0, -(margins - theory.TOY_EPS * size)))

    options = {"xatol": 1e-11, "fatol": 1e-16, "maxiter": 4000, "maxfev": 4000}
    found = scipy.optimize.minimize(loss, [1.0, 0.1], method="Nelder-Mead", options=options)
    # Use the kink itself if it is no worse: a simplex only comes close to it.
    along = scipy.optimize.minimize_scalar(
        lambda t: loss(np.array([t, 0.0])), bounds=(0.0, 3.0), method="bounded",
        options={"xatol": 1e-11},
    )  # fmt: skip
    if along.fun <= found.fun + 1e-15:
        return np.array([along.x, 0.0]), float(along.fun)
    return found.x, float(found.fun)


def make(output: Path, *, mode: surfaces.Mode, gamma: float, points: int) -> list[Path]:
    """Draws Figure 4.

    Args:
        output: folder.
        mode: "exact" or "pgd".
        gamma: unused.
        points: grid points per axis.

    Returns:
        The files written.
    """
    del gamma
    axis = np.linspace(-2, 2, points)
    data = {"axis": axis}
    for norm in NORMS:
        data[norm or "clean"] = surfaces.on_grid(surfaces.dataset_loss(norm, mode), axis)
    minima = {norm: minimiser(norm) for norm in ("l2", "linf")}
    for norm, (place, value) in minima.items():
        data[f"argmin_{norm}"], data[f"min_{norm}"] = place, np.array(value)
    checks = _checks(axis, data, minima)
    with rc_context(style.STYLE):
        figure = _draw(axis, data, minima, mode)
    settings = {"mode": mode, "points": points, "eps": theory.TOY_EPS, "seed": 0, "samples": 100}
    return style.write(figure, output / "fig4", data, checks, settings)


def _checks(axis, data, minima) -> list[style.Check]:
    checks = []
    for norm, (place, value) in MINIMA.items():
        found, least = minima[norm]
        for index in range(2):
            name = f"{norm}: argmin, theta_{index + 1}"
            checks.append(style.equals(name, found[index], place[index], 2e-7, "K.7"))
        checks.append(style.equals(f"{norm}: minimum", least, value, 1e-10, "K.7"))
        name = f"{norm}: minimum is below every point of the grid"
        checks.append(style.at_most(name, least, data[norm].min() + 1e-12, "K.7"))
        differences = surfaces.second_differences(data[norm], float(axis[1] - axis[0]))
        name = f"{norm}: convex, second differences"
        checks.append(style.at_least(name, differences.min(), -1e-4, "B.2"))
    points, labels = theory.toy_dataset()
    mean = (points * labels[:, None]).mean(0)
    for norm, size, expected in (
        ("l2", np.linalg.norm(mean), 0.7835604292),
        ("linf", np.abs(mean).max(), 0.7794972814),
    ):
        checks.append(style.equals(f"{norm}: eps of collapse", size, expected, 1e-9, "K.7, B.4"))
    h = 1e-6
    for place in ((0.0, 1.0), (1.0, 0.0)):
        direction = np.array([1.0, 0.0]) if place[0] == 0 else np.array([0.0, 1.0])
        value = lambda t, p=place, d=direction: float(
            theory.toy_dataset_loss(np.array(p) + t * d, points, labels, norm="linf")
        )
        jump = (value(h) + value(-h) - 2 * value(0.0)) / h
        margins = labels * (points @ np.array(place)) - theory.TOY_EPS
        expected = 2 * theory.TOY_EPS * np.mean(1 / (1 + np.exp(margins)))
        name = f"linf: kink at {place} is that of the mean, 2 eps mean s(-M_n)"
        checks.append(style.equals(name, jump, float(expected), 1e-4, "B.7"))
    return checks


def _draw(axis, data, minima, mode):
    figure = Figure(figsize=(10.2, 3.8))
    grid = figure.add_gridspec(1, 3, left=0.0, right=0.955, top=0.94, bottom=0.1, wspace=0.08)
    limits = (0.0, max(data[norm or "clean"].max() for norm in NORMS))
    for column, norm in enumerate(NORMS):
        axes = figure.add_subplot(grid[column], projection="3d", computed_zorder=False)
        how = " (PGD)" if mode == "pgd" and norm else ""
        title = f"({'abc'[column]}) 100 points, {style.NORM_LABELS[norm]}{how}"
        style.surface(
            axes, axis, data[norm or "clean"], limits=limits, title=title, azimuth=-55,
            height="loss $L$" if norm is None else r"loss $L_\epsilon$",
        )  # fmt: skip
        if norm is None:
            continue
        if norm == "linf":
            middle = len(axis) // 2
            zero = np.zeros_like(axis)
            axes.plot(zero, axis, data[norm][middle], color=style.KINK, lw=1.6, zorder=5)
            axes.plot(axis, zero, data[norm][:, middle], color=style.KINK, lw=1.6, zorder=5)
        else:
            axes.plot([0], [0], [np.log(2)], "o", color=style.KINK, ms=4, zorder=5)
        place, value = minima[norm]
        axes.plot(*place[:, None], [value], "*", color="white", mec="black", ms=10, zorder=6)
        floor = axes.get_zlim()[0]
        axes.plot(*place[:, None], [floor], "*", color="white", mec="black", ms=8, zorder=4)
    handles = [
        Line2D([], [], color=style.KINK, lw=1.6, label=r"gradient of $L_\epsilon$ jumps"),
        Line2D([], [], color=style.KINK, marker="o", ls="", ms=4, label=r"tip at $\theta=0$"),
        Line2D([], [], marker="*", color="white", mec="black", ls="", ms=10,
               label="minimum, on the surface and on the floor"),
        Line2D([], [], color=style.GREEN, lw=0.7, label="contours, on the floor"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="lower center", ncols=4)
    return figure
