"""Figure 5: what EntropySGD minimizes on the data set of Figure 4, and where its minimum is."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxadv import theory

from .. import style, surfaces
from . import fig4

GAMMAS = (0.1, 1.0, 10.0)  # of the contour maps
# argmin of -F on the plot square with the grid of 81 points (formulas D.2, E18), L2.
ARGMIN = {0.03: (2.0, 0.15), 1.0: (2.0, 0.05), 10.0: (1.3, 0.05)}

_MARKERS = {"l2": ("o", 8), "linf": ("s", 5)}


def make(output: Path, *, mode: surfaces.Mode, gamma: float, points: int) -> list[Path]:
    """Draws Figure 5.

    Args:
        output: folder.
        mode: unused; the smoothed losses use the exact ones.
        gamma: scope of the surfaces.
        points: grid points per axis.

    Returns:
        The files written.
    """
    del mode
    axis = np.linspace(-2, 2, points)
    data, entropies = {"axis": axis}, {}
    for norm in ("l2", "linf"):
        loss = surfaces.dataset_loss(norm)
        data[norm] = surfaces.on_grid(loss, axis)
        for scope in sorted({gamma, *GAMMAS}):
            # Nine nodes per panel: the surfaces are accurate to 1e-5, and the loss has 100 terms.
            entropy = theory.local_entropy_grid(loss, [axis, axis], gamma=scope, num_nodes=9)
            entropies[norm, scope] = entropy
            data[f"smoothed_{norm}_{scope:g}"] = entropy.smoothed
    minima = {norm: fig4.minimiser(norm)[0] for norm in ("l2", "linf")}
    checks = _checks(axis, data, entropies)
    with rc_context(style.STYLE):
        figure = _draw(axis, data, entropies, minima, gamma)
    settings = {"gamma": gamma, "gammas": list(GAMMAS), "points": points, "eps": theory.TOY_EPS}
    return style.write(figure, output / "fig5", data, checks, settings)


def argmin(axis: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The grid point with the least value."""
    i, j = np.unravel_index(values.argmin(), values.shape)
    return float(axis[i]), float(axis[j])


def _checks(axis, data, entropies) -> list[style.Check]:
    checks = []
    for (norm, gamma), entropy in entropies.items():
        what = f"-F of {norm}, gamma={gamma:g}"
        eigenvalues = np.linalg.eigvalsh(entropy.hessian)
        checks.append(style.at_least(f"{what}: eigenvalues", eigenvalues.min(), -1e-6, "D.2c"))
        checks.append(style.at_most(f"{what}: eigenvalues", eigenvalues.max(), gamma, "D.2c"))
        bounds = theory.covariance_bounds(entropy.covariance, gamma=gamma)
        name = f"{what}: true constant / Theorem 3's"
        checks.append(style.at_most(name, bounds.exact / bounds.paper, 1.0, "D.2a, E15"))
        checks.append(style.at_most(f"{what}: quadrature error", entropy.error, 1e-4, "G.4"))
        if norm == "l2" and gamma in ARGMIN and len(axis) == 81:
            found = argmin(axis, entropy.smoothed)
            for index in range(2):
                name = f"{what}: argmin on the square, theta_{index + 1}"
                expected = ARGMIN[gamma][index]
                checks.append(style.equals(name, found[index], expected, 1e-9, "D.2, E18"))
    return checks


def _draw(axis, data, entropies, minima, gamma):
    figure = Figure(figsize=(10.2, 7.2))
    top = figure.add_gridspec(1, 2, left=0.06, right=0.92, top=0.96, bottom=0.48, wspace=0.0)
    values = [entropies[norm, gamma].smoothed for norm in ("l2", "linf")]
    limits = (min(v.min() for v in values), max(v.max() for v in values))
    for column, norm in enumerate(("l2", "linf")):
        axes = figure.add_subplot(top[column], projection="3d", computed_zorder=False)
        label = style.NORM_LABELS[norm]
        title = rf"({'ab'[column]}) $-\bar F$, {label}, $\gamma={gamma:g}$"
        style.surface(
            axes, axis, values[column], limits=limits, title=title, azimuth=-55,
            height=r"smoothed loss $-\bar F$",
        )  # fmt: skip
    below = figure.add_gridspec(1, 4, left=0.055, right=0.985, top=0.42, bottom=0.15, wspace=0.28)
    for column in range(4):
        axes = figure.add_subplot(below[column])
        scope = (None, *reversed(GAMMAS))[column]
        name = r"$L_\epsilon$" if scope is None else rf"$-\bar F$, $\gamma={scope:g}$"
        _map(axes, axis, data, entropies, minima, scope)
        axes.set_title(f"({'cdef'[column]}) {name}")
        if column == 0:
            axes.set_ylabel(r"$\theta_2$", labelpad=0)
    figure.legend(handles=_marks(), loc="lower center", ncols=4)
    return figure


def _marks() -> list:
    """What (c) to (f) show, by norm."""
    handles = []
    for norm, (marker, size) in _MARKERS.items():
        color, label = style.NORM_COLORS[norm], style.NORM_LABELS[norm]
        face = "white" if norm == "l2" else color
        mark = {"color": color, "mfc": face, "ls": "", "ms": size}
        handles += [
            Line2D([], [], color=color, lw=0.8, label=f"contours, {label}"),
            Line2D(
                [], [], marker=marker, label=f"minimum of the panel's function, {label}", **mark
            ),
            Line2D([], [], marker=">", label=f"it lies outside the square, {label}", **mark),
        ]
    cross = Line2D([], [], marker="x", color="black", ls="", ms=6)
    cross.set_label(r"minima of $L_\epsilon$, both norms")
    floor = Line2D([], [], color=style.GREEN, lw=0.7, label="(a), (b): contours, on the floor")
    return [handles[0], handles[3], handles[1], handles[4], handles[2], handles[5], cross, floor]


def _map(axes, axis, data, entropies, minima, scope) -> None:
    for norm in ("l2", "linf"):
        color = style.NORM_COLORS[norm]
        values = data[norm] if scope is None else entropies[norm, scope].smoothed
        depth = values.max() - values.min()
        levels = values.min() + depth * np.array([0.003, 0.015, 0.05, 0.12, 0.25, 0.45, 0.7])
        axes.contour(axis, axis, values.T, levels=levels, colors=color, linewidths=0.8)
        marker, size = _MARKERS[norm]
        place = minima[norm] if scope is None else argmin(axis, values)
        outside = scope is not None and max(map(abs, place)) >= axis[-1]
        axes.plot(
            *place,
            ">" if outside else marker,
            color=color,
            ms=size,
            mfc="white" if norm == "l2" else color,
            clip_on=False,
            zorder=4,
        )
        if scope is not None:
            axes.plot(*minima[norm], "x", color="black", ms=6, zorder=5)
    axes.set(xlabel=r"$\theta_1$", xlim=(-2, 2), ylim=(-2, 2), aspect="equal")
    axes.set_xticks([-2, -1, 0, 1, 2])
    axes.set_yticks([-2, -1, 0, 1, 2])
