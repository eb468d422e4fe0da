"""Figure 2: one point, two weights; linear model, swish neuron, and the smoothed losses."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from jaxadv import theory

from .. import style, surfaces

NORMS: tuple[Any, ...] = (None, "l2", "linf")
ATTACKED: tuple[Any, ...] = ("l2", "linf")
PLATEAU = 0.842041108710515
# Gaps between the exact loss and PGD with 100 steps of eps/40 and best iterate are below these.
PGD_GAP = {"l2": 2e-4, "linf": 2e-4}


def make(output: Path, *, mode: surfaces.Mode, gamma: float, points: int) -> list[Path]:
    """Draws Figure 2.

    Args:
        output: folder.
        mode: "exact" or "pgd"; the smoothed losses always use the exact ones.
        gamma: scope of the smoothed losses.
        points: grid points per axis.

    Returns:
        The files written.
    """
    axis = np.linspace(-2, 2, points)
    data = {"axis": axis}
    for model in ("linear", "swish"):
        for norm in NORMS:
            name = f"{model}_{norm or 'clean'}"
            data[name] = surfaces.on_grid(surfaces.toy_loss(model, norm, mode), axis)
    smoothed = {}
    for norm in ATTACKED:
        smoothed[norm] = theory.local_entropy_grid(
            surfaces.toy_loss("linear", norm), [axis, axis], gamma=gamma
        )
        data[f"smoothed_{norm}"] = smoothed[norm].smoothed
        data[f"smoothed_{norm}_hessian"] = smoothed[norm].hessian
    data |= _slice(gamma)
    checks = _checks(axis, data, smoothed, mode, gamma)
    with rc_context(style.STYLE):
        figure = _draw(axis, data, mode, gamma)
    settings = {"mode": mode, "gamma": gamma, "points": points, "eps": theory.TOY_EPS}
    return style.write(figure, output / "fig2", data, checks, settings)


def _slice(gamma: float, height: float = 1.5) -> dict[str, np.ndarray]:
    """The first partial derivative along theta_2 = 1.5, across the kink of the Linf loss."""
    places = np.concatenate([np.linspace(-2, -1e-9, 200), np.linspace(1e-9, 2, 200)])
    thetas = np.stack([places, np.full_like(places, height)], 1)
    found = {"slice_places": places}
    for norm in ATTACKED:
        with jax.enable_x64(True):
            gradient = jax.vmap(lambda t, n=norm: theory.toy_gradient(t, norm=n))
            found[f"slice_{norm}"] = np.asarray(jax.jit(gradient)(thetas))[:, 0]
        entropy = theory.local_entropy_grid(
            surfaces.toy_loss("linear", norm), [places, np.array([height])], gamma=gamma
        )
        found[f"slice_smoothed_{norm}"] = entropy.gradient[:, 0, 0]
    return found


def _checks(axis, data, smoothed, mode, gamma) -> list[style.Check]:
    checks, spacing = [], float(axis[1] - axis[0])
    equals, at_most, at_least = style.equals, style.at_most, style.at_least
    golden = {  # at (-2, 2) and (2, -2): formulas K.2
        "linear": ((0.018149927917810, 4.018149927917809), (0.095277582195082, 5.700406486189009),
                   (0.183900740888339, 6.401660178414046)),
        "swish": ((0.019490729175178, 0.729766468490294), (0.116213872105457, 0.803257655729558),
                  (0.234401785663681, 0.836535127451276)),
    }  # fmt: skip
    exact = mode == "exact"
    for model, corners in golden.items():
        for norm, (low, high) in zip(NORMS, corners, strict=True):
            values = data[f"{model}_{norm or 'clean'}"]
            tolerance = 1e-12 if exact or norm is None else 2e-4
            for place, value, expected in (
                ("(-2, 2)", values[0, -1], low),
                ("(2, -2)", values[-1, 0], high),
            ):
                name = f"{model} {norm or 'clean'} loss at {place}"
                checks.append(equals(name, value, expected, tolerance, "K.2"))
    for norm, fraction in zip(ATTACKED, (0.321, 0.450), strict=True):
        true = surfaces.on_grid(surfaces.toy_loss("swish", norm), np.linspace(-2, 2, 81))
        flat = np.mean(np.abs(true - PLATEAU) < 1e-14)
        checks.append(equals(f"swish {norm}: plateau fraction", flat, fraction, 5e-4, "G.2"))
        checks.append(equals(f"swish {norm}: height", true.max(), PLATEAU, 1e-14, "G.2, K.1"))
        gradients = surfaces.on_grid(
            lambda t, n=norm: theory.toy_gradient(t, model="swish", norm=n), axis
        )
        modulus = float(theory.toy_weak_convexity(norm=norm))
        worst = surfaces.smallest_quotient(gradients, axis, 40_000, seed=0)
        checks.append(at_least(f"swish {norm}: (MON) quotient", worst, -modulus, "A.9, G.2"))
        if mode == "pgd":
            exact_values = surfaces.on_grid(surfaces.toy_loss("swish", norm), axis)
            gap = (exact_values - data[f"swish_{norm}"]).max()
            checks.append(at_most(f"swish {norm}: exact - PGD", gap, PGD_GAP[norm], "G.3"))
    checks += _kink_checks()
    corner = theory.toy_attack(np.array([2.0, -2.0]), model="swish", norm="linf").regime
    checks.append(equals("E9: swish Linf at (2, -2) is no plateau", corner, 1, 0, "E9"))
    checks += _smoothing_checks(data, smoothed, spacing, gamma)
    return checks


def _kink_checks() -> list[style.Check]:
    checks, h = [], 1e-6
    table = ((-1.5, 0.0), (-0.5, 0.093621), (0.5, 0.339850), (1.5, 0.379887))
    for place, jump in table:
        sides = [
            theory.toy_gradient(np.array([s * h, place]), model="swish", norm="linf")[0]
            for s in (1, -1)
        ]
        name = f"swish Linf: jump of d/dtheta_1 at (0, {place})"
        checks.append(style.equals(name, sides[0] - sides[1], jump, 1e-5, "G.2"))
    weights = np.array([0.3, -0.8])
    for norm, total in zip(ATTACKED, (0.5126402247, 0.66), strict=True):
        value = lambda t, n=norm: float(theory.toy_loss(t * weights, norm=n))
        slopes = (value(h) + value(-h) - 2 * value(0.0)) / h
        name = f"linear {norm}: one-sided slopes along w at 0 add up to eps |w|_q"
        checks.append(style.equals(name, slopes, total, 1e-5, "G.2, K.6"))
    return checks


def _smoothing_checks(data, smoothed, spacing, gamma) -> list[style.Check]:
    checks = []
    for norm in ATTACKED:
        eigenvalues = np.linalg.eigvalsh(smoothed[norm].hessian)
        what = f"-F of linear {norm}"
        checks.append(style.at_least(f"{what}: eigenvalues", eigenvalues.min(), -1e-9, "D.2c"))
        checks.append(style.at_most(f"{what}: eigenvalues", eigenvalues.max(), gamma, "D.2c"))
        checks.append(style.at_most(f"{what}: quadrature error", smoothed[norm].error, 1e-6, "G.4"))
        rough = surfaces.gradient_lipschitz(data[f"linear_{norm}"], spacing)
        smooth = surfaces.gradient_lipschitz(data[f"smoothed_{norm}"], spacing)
        name = f"{what}: gradient-Lipschitz estimate on the grid, smoothed / not"
        checks.append(style.at_most(name, smooth / rough, 0.5, "G.4"))
        differences = surfaces.second_differences(data[f"smoothed_{norm}"], spacing)
        checks.append(style.at_most(f"{what}: second differences", differences.max(), gamma, "G.4"))
        expected = {1.0: (0.317, 0.364), 10.0: (0.881, 1.360)}.get(gamma)
        if expected and spacing == 0.05:
            value = expected[norm == "linf"]
            name = f"{what}: largest second difference"
            checks.append(style.equals(name, differences.max(), value, 2e-3, "G.4"))
    gap = surfaces.deviation(data["smoothed_l2"], data["smoothed_linf"])
    expected = {0.03: 0.025, 0.1: 0.045, 1.0: 0.199, 10.0: 0.457}.get(gamma)
    if expected:
        name = "-F: deviation of L2 and Linf surfaces after removing the means"
        checks.append(style.equals(name, gap, expected, 2e-3, "G.4"))
    return checks


def _kink_lines(axes, model: Any, norm: Any) -> None:
    """Red where the gradient of the Linf loss jumps, and at the tip of the L2 loss."""
    if norm == "l2":
        height = float(theory.toy_loss(np.zeros(2), model=model, norm=norm))
        axes.plot([0], [0], [height], "o", color=style.KINK, ms=4, zorder=5)
    if norm != "linf":
        return
    places = np.linspace(-2, 2, 401)
    for index in (0, 1):
        thetas = np.zeros((401, 2))
        thetas[:, 1 - index] = places
        with jax.enable_x64(True):
            jumps = np.array(jax.vmap(lambda t: theory.toy_kink_jump(t, model=model))(thetas))
            heights = np.array(
                jax.vmap(lambda t: theory.toy_loss(t, model=model, norm="linf"))(thetas)
            )
        heights[jumps < 1e-9] = np.nan
        axes.plot(thetas[:, 0], thetas[:, 1], heights, color=style.KINK, lw=1.8, zorder=5)


def _plateau(axes, norm: Any, floor) -> None:
    """The plateau on the floor, and the corner that the paper calls smooth by Lemma 4."""
    fine = np.linspace(-2, 2, 401)
    regimes = surfaces.on_grid(
        lambda t: theory.toy_attack(t, model="swish", norm=norm).regime, fine
    )
    flat = (regimes == 0).astype(float)
    axes.contourf(
        fine, fine, flat.T, levels=[0.5, 1.5], zdir="z", offset=floor, colors=["0.82"], zorder=-1
    )
    corner = np.array([[1, -2], [2, -2], [2, -1], [1, -1], [1, -2]], float)
    axes.plot(corner[:, 0], corner[:, 1], floor, "--", color="black", lw=1.0, zorder=4)


def _draw(axis, data, mode, gamma):
    figure = Figure(figsize=(10.2, 10.2))
    grid = figure.add_gridspec(
        3, 3, left=0.025, right=0.975, top=0.97, bottom=0.095, wspace=0.08, hspace=0.14
    )
    letters = iter("abcdefghi")
    for row, model in enumerate(("linear", "swish")):
        stacks = [data[f"{model}_{norm or 'clean'}"] for norm in NORMS]
        limits = (0.0, max(v.max() for v in stacks))
        for column, (norm, values) in enumerate(zip(NORMS, stacks, strict=True)):
            axes = figure.add_subplot(grid[row, column], projection="3d", computed_zorder=False)
            how = " (PGD)" if mode == "pgd" and norm else ""
            title = f"({next(letters)}) {model}, {style.NORM_LABELS[norm]}{how}"
            height = r"loss $\ell$" if norm is None else r"loss $\ell_\epsilon$"
            style.surface(axes, axis, values, limits=limits, title=title, height=height)
            _kink_lines(axes, model, norm)
            if model == "swish" and norm:
                _plateau(axes, norm, axes.get_zlim()[0])
    values = [data["smoothed_l2"], data["smoothed_linf"]]
    limits = (min(v.min() for v in values), max(v.max() for v in values))
    for column in range(2):
        axes = figure.add_subplot(grid[2, column], projection="3d", computed_zorder=False)
        source = "bc"[column]
        title = rf"({next(letters)}) $-\bar F$ of ({source}), $\gamma={gamma:g}$"
        height = r"smoothed loss $-\bar F$"
        style.surface(axes, axis, values[column], limits=limits, title=title, height=height)
    _draw_slice(figure.add_subplot(grid[2, 2]), data, gamma, next(letters))
    figure.legend(handles=_marks(), loc="lower center", ncols=5, columnspacing=1.4)
    return figure


def _marks() -> list:
    return [
        Line2D([], [], color=style.KINK, lw=1.8, label=r"gradient of $\ell_\epsilon$ jumps"),
        Line2D([], [], color=style.KINK, marker="o", ls="", ms=4, label=r"tip at $\theta=0$"),
        Patch(color="0.82", label="plateau of the loss, on the floor"),
        Line2D([], [], color="black", ls="--", lw=1, label="corner discussed in erratum E9"),
        Line2D([], [], color=style.GREEN, lw=0.7, label="contours, on the floor"),
    ]


def _draw_slice(axes, data, gamma, letter) -> None:
    position = axes.get_position()
    axes.set_position(
        [position.x0 + 0.055, position.y0, position.width - 0.055, position.height - 0.03]
    )
    places, middle = data["slice_places"], len(data["slice_places"]) // 2
    for norm in ATTACKED:
        color = style.NORM_COLORS[norm]
        for part in (slice(None, middle), slice(middle, None)):
            label = style.NORM_LABELS[norm] if part.start is None else None
            axes.plot(places[part], data[f"slice_{norm}"][part], color=color, label=label)
        axes.plot(
            places,
            data[f"slice_smoothed_{norm}"],
            "--",
            color=color,
            label=rf"{style.NORM_LABELS[norm]}, $-F$",
        )
    ends = data["slice_linf"][[middle - 1, middle]]
    axes.plot([0, 0], ends, ":", color=style.KINK, lw=1.4)
    axes.annotate(
        f"kink: jump {ends[1] - ends[0]:.3f}\n" + r"$=2\epsilon\,s(-M)$",
        (0, ends.mean()),
        (0.35, ends.mean() - 0.12),
        color=style.KINK,
        fontsize=8,
        arrowprops={"arrowstyle": "-", "color": style.KINK, "lw": 0.6},
    )
    axes.set(xlabel=r"$\theta_1$", xlim=(-2, 2))
    axes.set_ylabel(r"derivative $\partial/\partial\theta_1$", labelpad=1)
    axes.set_title(rf"({letter}) linear, slice at $\theta_2=1.5$")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", ncols=2, columnspacing=1.0, handlelength=1.6)
    axes.set_ylim(top=axes.get_ylim()[1] + 0.14)
