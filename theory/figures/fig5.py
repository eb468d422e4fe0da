"""Figure 5: what EntropySGD minimizes on the data set of Figure 4, and where its minimum is."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from jaxadv import theory

from .. import style, surfaces
from . import fig4

GAMMAS = (0.1, 1.0, 10.0)  # of the contour maps
# argmin of -F on the plot square with the grid of 81 points (formulas D.2, E18), L2.
ARGMIN = {0.03: (2.0, 0.15), 1.0: (2.0, 0.05), 10.0: (1.3, 0.05)}


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
    figure = Figure(figsize=(10.2, 6.8))
    top = figure.add_gridspec(1, 2, left=0.06, right=0.92, top=0.955, bottom=0.46, wspace=0.0)
    values = [entropies[norm, gamma].smoothed for norm in ("l2", "linf")]
    limits = (min(v.min() for v in values), max(v.max() for v in values))
    for column, norm in enumerate(("l2", "linf")):
        axes = figure.add_subplot(top[column], projection="3d", computed_zorder=False)
        label = style.NORM_LABELS[norm]
        title = rf"({'ab'[column]}) $-\bar F$, {label}, $\gamma={gamma:g}$"
        style.surface(axes, axis, values[column], limits=limits, title=title, azimuth=-55)
    below = figure.add_gridspec(1, 4, left=0.055, right=0.985, top=0.40, bottom=0.075, wspace=0.28)
    for column in range(4):
        axes = figure.add_subplot(below[column])
        scope = (None, *reversed(GAMMAS))[column]
        name = r"$L_\epsilon$" if scope is None else rf"$-\bar F$, $\gamma={scope:g}$"
        _map(axes, axis, data, entropies, minima, scope)
        axes.set_title(f"({'cdef'[column]}) {name}")
        if column == 0:
            axes.set_ylabel(r"$\theta_2$", labelpad=0)
        if column == 1:
            axes.legend(loc="lower left", handlelength=1.2, frameon=True, framealpha=0.9)
    return figure


def _map(axes, axis, data, entropies, minima, scope) -> None:
    for norm in ("l2", "linf"):
        color = style.NORM_COLORS[norm]
        values = data[norm] if scope is None else entropies[norm, scope].smoothed
        depth = values.max() - values.min()
        levels = values.min() + depth * np.array([0.003, 0.015, 0.05, 0.12, 0.25, 0.45, 0.7])
        axes.contour(axis, axis, values.T, levels=levels, colors=color, linewidths=0.8)
        marker = {"l2": "o", "linf": "s"}[norm]
        size = {"l2": 8, "linf": 5}[norm]
        place = minima[norm] if scope is None else argmin(axis, values)
        outside = scope is not None and max(map(abs, place)) >= axis[-1]
        if outside and norm == "l2":
            text = {"ha": "right", "va": "bottom", "fontsize": 7}
            axes.text(1.93, -1.95, r"$\triangleright$ argmin outside the square", **text)
        axes.plot(
            *place,
            ">" if outside else marker,
            color=color,
            ms=size,
            mfc="white" if norm == "l2" else color,
            clip_on=False,
            zorder=4,
            label=None if outside else rf"argmin, {style.NORM_LABELS[norm]}",
        )
        if scope is not None:
            label = r"argmin of $L_\epsilon$" if norm == "l2" else None
            axes.plot(*minima[norm], "x", color="black", ms=6, zorder=5, label=label)
    axes.set(xlabel=r"$\theta_1$", xlim=(-2, 2), ylim=(-2, 2), aspect="equal")
    axes.set_xticks([-2, -1, 0, 1, 2])
    axes.set_yticks([-2, -1, 0, 1, 2])
