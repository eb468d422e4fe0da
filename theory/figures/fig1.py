"""Figure 1: how the optimal attack moves with the parameters; a sketch, but exact."""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxadv import theory

from .. import style, surfaces

EPS = 0.5
CENTER = np.zeros(2)
# (a): two parameters of the linear model whose second coordinates differ in sign.
LINEAR = (np.array([1.0, 0.12]), np.array([1.0, -0.12]))
# (b), (c): l = -(x' - m)^T Q (x' - m)/2 with theta = m, strongly concave in x'.
CURVATURE = np.array([[1.0, 0.35], [0.35, 0.6]])
INTERIOR = (np.array([0.05, 0.18]), np.array([0.16, 0.08]))
OUTSIDE = (np.array([0.75, 0.62]), np.array([0.92, 0.42]))
NORMS = ("l2", "linf")


def concave_attack(center: np.ndarray, norm: str) -> np.ndarray:
    """The maximizer of the concave quadratic with its top at ``center`` over the ball."""
    if norm == "linf":
        root = np.linalg.cholesky(CURVATURE).T
        return scipy.optimize.lsq_linear(root, root @ center, (-EPS, EPS), tol=1e-14).x
    if np.linalg.norm(center) <= EPS:
        return center
    at = lambda mu: np.linalg.solve(CURVATURE + mu * np.eye(2), CURVATURE @ center)
    mu = scipy.optimize.brentq(lambda m: np.linalg.norm(at(m)) - EPS, 0.0, 100.0, xtol=1e-15)
    return at(mu)


def linear_attack(theta: np.ndarray, norm: Any) -> np.ndarray:
    """The attack on the linear model, y = 1."""
    return np.asarray(theory.toy_attack(theta, CENTER, 1.0, norm=norm, eps=EPS).delta)


def make(output: Path, *, mode: surfaces.Mode, gamma: float, points: int) -> list[Path]:
    """Draws Figure 1.

    Args:
        output: folder.
        mode: unused; the attacks are exact.
        gamma: unused.
        points: unused.

    Returns:
        The files written.
    """
    del mode, gamma, points
    cases = {
        "linear": (LINEAR, linear_attack),
        "interior": (INTERIOR, concave_attack),
        "outside": (OUTSIDE, concave_attack),
    }
    data = {}
    for name, (thetas, attack) in cases.items():
        data[f"{name}_theta"] = np.array(thetas)
        for norm in NORMS:
            data[f"{name}_{norm}"] = np.array([attack(theta, norm) for theta in thetas])
    checks = _checks(data)
    with rc_context(style.STYLE):
        figure = _draw(data)
    return style.write(figure, output / "fig1", data, checks, {"eps": EPS})


def _ratio(data, name: str, norm: str) -> float:
    moved, step = np.diff(data[f"{name}_{norm}"], axis=0), np.diff(data[f"{name}_theta"], axis=0)
    return float(np.linalg.norm(moved) / np.linalg.norm(step))


def _checks(data) -> list[style.Check]:
    flips = np.linalg.norm(np.diff(data["linear_linf"], axis=0))
    smallest = min(float(np.linalg.norm(theta)) for theta in LINEAR)
    checks = [
        style.equals("(a) Linf: one sign flips, the attack jumps 2 eps", flips, 2 * EPS, 1e-15,
                     "B.7"),
        style.equals("(a) L2: Lemma 2 with equality for equal norms", _ratio(data, "linear", "l2"),
                     EPS / smallest, 1e-12, "B.4"),
    ]  # fmt: skip
    # d(grad_x l)/dtheta = Q, -H = Q: C.3 (U) bounds the modulus by norm(Q)/lambda_min(Q).
    eigenvalues = np.linalg.eigvalsh(CURVATURE)
    for name in ("interior", "outside"):
        for norm in NORMS:
            what = f"({'b' if name == 'interior' else 'c'}) {norm}: modulus"
            checks.append(
                style.at_most(what, _ratio(data, name, norm), eigenvalues[1] / eigenvalues[0],
                              "C.3 U, E14")
            )  # fmt: skip
            for theta, place in zip(data[f"{name}_theta"], data[f"{name}_{norm}"], strict=True):
                gradient = CURVATURE @ (theta - place)
                dual = np.abs(gradient).sum() if norm == "linf" else np.linalg.norm(gradient)
                gap = EPS * dual - gradient @ place
                checks.append(style.at_most(f"{what}, Frank-Wolfe gap", gap, 1e-9, "C.5"))
    return checks


def _ball(axes) -> None:
    angles = np.linspace(0, 2 * np.pi, 400)
    axes.plot(EPS * np.cos(angles), EPS * np.sin(angles), color=style.BLUE, lw=1.3)
    corners = EPS * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1], [1, 1]])
    axes.plot(corners[:, 0], corners[:, 1], color=style.ORANGE, lw=1.3)
    axes.plot(0, 0, "k+", ms=7)
    axes.text(-0.03, -0.03, "$x$", va="top", ha="right")


def _contours(axes, loss) -> None:
    ticks = np.linspace(-1.3, 1.3, 261)
    grid = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1)
    for theta, dashes, color in zip(loss[1], ("solid", "dashed"), ("0.55", "0.75"), strict=True):
        axes.contour(
            ticks, ticks, loss[0](grid, theta).T, levels=8, colors=color, linestyles=dashes,
            linewidths=0.7, zorder=0,
        )  # fmt: skip


def _attacks(axes, data, name: str) -> None:
    for norm, marker, sizes in (("l2", "o", (8, 5)), ("linf", "s", (6.5, 3.5))):
        color = style.NORM_COLORS[norm]
        first, second = data[f"{name}_{norm}"]
        if np.linalg.norm(second - first) > 0.3:
            # Bent, so that the edge of the square does not hide it.
            arrow = {"arrowstyle": "->", "color": color, "lw": 1.3, "shrinkA": 5, "shrinkB": 4}
            arrow["connectionstyle"] = "arc3,rad=-0.35"
            axes.annotate("", second, first, zorder=3, arrowprops=arrow)
        axes.plot(*first, marker, color=color, ms=sizes[0], zorder=4)
        axes.plot(*second, marker, color=color, mfc="white", ms=sizes[1], zorder=5)


def _draw(data):
    figure = Figure(figsize=(10.2, 3.75))
    panels = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.9, bottom=0.17, wspace=0.05)
    linear = (lambda x, t: np.logaddexp(0, -(x @ t)), LINEAR)
    concave = lambda x, t: -np.einsum("...i,ij,...j->...", x - t, CURVATURE, x - t) / 2
    titles = (
        "(a) linear model: along the circle, between corners",
        "(b) maximizer inside: the constraint plays no part",
        r"(c) active constraint: $L_\infty$ stays at its corner",
    )
    cases = (("linear", linear), ("interior", (concave, INTERIOR)), ("outside", (concave, OUTSIDE)))
    for axes, title, (name, loss) in zip(panels, titles, cases, strict=True):
        _contours(axes, loss)
        _ball(axes)
        _attacks(axes, data, name)
        ratios = [_ratio(data, name, norm) for norm in NORMS]
        text = r"$\|x'_1-x'_2\|/\|\theta_1-\theta_2\|$: "
        text += rf"$L_2$ {ratios[0]:.2f}, $L_\infty$ {ratios[1]:.2f}"
        axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top")
        if name == "linear":
            for theta, mark in zip(LINEAR, ("1", "2"), strict=True):
                tip = 0.8 * theta / np.linalg.norm(theta)
                arrow = {"arrowstyle": "->", "color": "0.3", "lw": 0.9, "shrinkA": 0}
                axes.annotate("", tip, CENTER, arrowprops=arrow)
                axes.text(*(1.08 * tip), rf"$\theta_{mark}$", ha="left", va="center")
        if name == "outside":
            for theta, face in zip(OUTSIDE, ("black", "white"), strict=True):
                axes.plot(*theta, "*", color="black", mfc=face, ms=8)
            axes.text(1.02, 0.1, "unconstrained\nmaximizers", ha="right", va="top", fontsize=7)
        axes.set_title(title)
        axes.set(xlim=(-1.05, 1.05), ylim=(-0.85, 0.85), aspect="equal", xticks=[], yticks=[])
        axes.spines[:].set_color("0.8")
    handles = [
        Line2D([], [], marker=m, color=c, ls="", label=label, mfc=f)
        for m, c, f, label in (
            ("o", style.BLUE, style.BLUE, r"$L_2$, $\theta_1$"),
            ("o", style.BLUE, "white", r"$L_2$, $\theta_2$"),
            ("s", style.ORANGE, style.ORANGE, r"$L_\infty$, $\theta_1$"),
            ("s", style.ORANGE, "white", r"$L_\infty$, $\theta_2$"),
        )
    ]
    figure.legend(handles=handles, loc="lower center", ncols=4, columnspacing=1.5)
    return figure
