"""The claims as a page: Markdown, and self-contained HTML with inline figures."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from jaxadv import theory

from .. import (
    style,
    surfaces,
)
from .registry import CORRECTED, HOLDS, IMPLIED, OURS, PRINTED, Result, Turned
from .sphere import bordered_constants

_CSS = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { border-bottom: 1px solid #ddd; padding: .35em .6em; text-align: left;
         vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.v { white-space: nowrap; font-weight: 600; }
.o { white-space: nowrap; color: #555; }
.holds { color: #006b4f; } .corrected { color: #0b5a96; } .false { color: #a33f00; }
small { color: #555; } code { overflow-wrap: anywhere; } img { max-width: 100%; }
figure { margin: 1.5em 0; } figcaption { color: #333; }
"""


def _png(figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _tightness(results: Sequence[Result]):
    shown = [r for r in results if r.tightness is not None and r.bound > 0]
    ratios = [r.tightness for r in shown if r.tightness is not None]
    if not shown:
        return None
    values = np.clip(ratios, 1e-12, None)
    order = np.argsort(values)
    figure = Figure(figsize=(8, 0.21 * len(shown) + 1), layout="constrained")
    axes = figure.subplots()
    colors = [style.BLUE if shown[i].verdict == HOLDS else style.GREEN for i in order]
    axes.scatter(values[order], range(len(shown)), c=colors, s=18, zorder=2)
    axes.axvline(1, color="0.4", linewidth=0.8)
    axes.set(xscale="log", xlabel="largest measured / bound", ylim=(-1, len(shown)))
    axes.set_yticks(range(len(shown)), [shown[i].name for i in order], fontsize=7)
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    return (
        figure,
        "How close random instances come to the bound of each statement that holds (blue: as "
        "printed, green: corrected). Points at 1 are bounds that are attained; far to the left are "
        "identities, measured against rounding.",
    )


def _across_an_axis():
    """The linear model across theta_2 = 0: where L2 is smooth and Linf is not."""
    line = np.linspace(-1, 1, 100)  # 0 is between two points
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    panels = figure.subplots(1, 2)
    thetas = np.stack([np.full_like(line, 0.8), line], 1)
    for kind, p in (("l2", 2.0), ("linf", np.inf)):
        values, slopes = [], []
        for theta in thetas:
            options = dict(p=p, eps=theory.TOY_EPS)
            values.append(float(theory.linear_loss(theta, np.array([-1.0, 1.0]), 1.0, **options)))
            slopes.append(theory.linear_gradient(theta, np.array([-1.0, 1.0]), 1.0, **options)[1])
        label = style.NORM_LABELS[kind]
        panels[0].plot(line, values, color=style.NORM_COLORS[kind], label=label)
        panels[1].plot(line, slopes, color=style.NORM_COLORS[kind], label=label)
    panels[0].set(xlabel=r"$\theta_2$", title="adversarial loss, linear model")
    panels[1].set(xlabel=r"$\theta_2$", title=r"its derivative in $\theta_2$")
    panels[0].legend()
    return figure, (
        "Across the axis theta_2 = 0 at theta_1 = 0.8: both losses are continuous (E19); the "
        "derivative of the Linf loss jumps by 2 eps s(-M) (E5)."
    )


def _constants():
    """The c of Lemma 5 against the curvature that decides."""
    curvature, sigma = bordered_constants(np.random.default_rng(0), 600)
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.scatter(curvature, sigma, s=6, color=style.BLUE)
    ends = np.array([1e-2, 1, curvature.max()])
    axes.plot(ends, np.minimum(1, ends), color=style.ORANGE, label=r"$\min(1, c_T)$")
    axes.set(xscale="log", yscale="log", xlabel=r"$c_T$", ylabel=r"$\sigma_{\min}(K)$")
    axes.legend()
    return figure, (
        "Random strict maxima on the L2 sphere: sigma_min(K), the constant of Lemma 5, never "
        "exceeds 1 however curved the loss is (E11); c_T is what decides."
    )


def _smoothing():
    """A section through the Linf loss of the swish toy and its smoothed versions."""
    axis = np.linspace(-2, 2, 41)
    loss = surfaces.toy_loss("swish", "linf")
    column = 35  # theta_1 = 1.5
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(axis, surfaces.on_grid(loss, axis)[column], color="0.2", label=r"$L_\epsilon$")
    for gamma, color in ((10.0, style.BLUE), (1.0, style.ORANGE)):
        smooth = theory.local_entropy_grid(loss, [axis, axis], gamma=gamma, num_nodes=6).smoothed
        axes.plot(axis, smooth[column], color=color, label=rf"$-F$, $\gamma = {gamma:g}$")
    axes.set(xlabel=r"$\theta_2$", title=r"swish neuron, $L_\infty$, $\theta_1 = 1.5$")
    axes.legend()
    return figure, "What Theorem 3 is about: -F has no kinks, and is smoother the smaller gamma is."


ORIGINS = {
    PRINTED: "printed in the paper",
    IMPLIED: "implied by what is printed",
    OURS: "ours, from docs/formulas.md",
}


def _noticed(entries: Sequence[Turned]) -> str:
    """Which wrong ingredients changed the verdict, and which did not."""
    words = [f"{e.ingredient} ({e.verdict if e.turned else 'UNNOTICED'})" for e in entries]
    return "; ".join(words)


def _checked(entry: Mapping[str, Any]) -> str:
    """Which claims check an erratum, or why none does."""
    names = "; ".join(entry["claims"])
    return f"Checked by {names}" if names else f"Not computable: {entry['reason']}"


def to_markdown(
    results: Sequence[Result],
    turned: Sequence[Sequence[Turned]],
    settings: Mapping[str, Any],
    errata: Mapping[str, Mapping[str, Any]],
) -> str:
    """The page as Markdown: a table, the statements, the errata.

    Args:
        results: results of the claims.
        turned: for every claim its wrong ingredients, empty if they were not tried.
        settings: how they were checked.
        errata: see `errata.register`.

    Returns:
        The page.
    """
    lines = ["# Claims of the paper, checked", ""]
    lines += [f"{name}: {value}  " for name, value in settings.items()]
    lines += [
        "",
        "| claim | place | whose | verdict | instances | measured | bound | tightness |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        tightness = "" if r.tightness is None else f"{r.tightness:.6f}"
        numbers = f"{r.instances} | {r.measured:.6g} | {r.bound:.6g} | {tightness}"
        lines.append(f"| {r.name} | {r.place} | {r.origin} | **{r.verdict}** | {numbers} |")
    lines += ["", "## Statements", ""]
    for r, entries in zip(results, turned, strict=True):
        lines.append(f"* **{r.name}** ({r.place}; {ORIGINS[r.origin]}): {r.statement}.")
        if r.correction:
            lines.append(f"  Corrected: {r.correction}.")
        if r.counterexample:
            lines.append(f"  Counterexample: `{r.counterexample}`.")
        if entries:
            lines.append(f"  With a wrong ingredient: {_noticed(entries)}.")
    lines += ["", "## Errata", ""]
    for number, entry in errata.items():
        lines.append(f"* **{number}, {entry['title']}** ({entry['where'].rstrip('.')})")
        lines.append(f"  Printed: {entry['printed']}")
        lines.append(f"  Correct: {entry['correct']}")
        lines.append(f"  {_checked(entry)}.")
    return "\n".join(lines) + "\n"


def _row(r: Result, entries: Sequence[Turned]) -> str:
    text = html.escape
    name = {HOLDS: "holds", CORRECTED: "corrected"}.get(r.verdict, "false")
    tightness = "" if r.tightness is None else f"{r.tightness:.6f}"
    story = f"<b>{text(r.name)}</b> <small>{text(r.place)}</small><br>{text(r.statement)}"
    if r.correction:
        story += f"<br><i>Corrected:</i> {text(r.correction)}"
    if r.counterexample:
        story += f"<br><code>{text(r.counterexample)}</code>"
    if entries:
        story += f"<br><small>With a wrong ingredient: {text(_noticed(entries))}</small>"
    numbers = [f"{r.instances}", f"{r.measured:.4g}", f"{r.bound:.4g}", tightness]
    cells = "".join(f'<td class="n">{number}</td>' for number in numbers)
    whose = f'<td class="o">{r.origin}</td>'
    return f'<tr><td>{story}</td>{whose}<td class="v {name}">{r.verdict}</td>{cells}</tr>'


def to_html(
    results: Sequence[Result],
    turned: Sequence[Sequence[Turned]],
    settings: Mapping[str, Any],
    errata: Mapping[str, Mapping[str, Any]],
) -> str:
    """The page as an HTML document with its figures as data URIs; for arguments, see `to_markdown`.

    Returns:
        The document.
    """
    with rc_context(style.STYLE):
        drawn = [_tightness(results), _across_an_axis(), _constants(), _smoothing()]
        pictures = [(_png(p[0]), p[1]) for p in drawn if p is not None]
    text = html.escape
    lines = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>Claims of the paper, checked</title><style>{_CSS}</style></head><body>",
        "<h1>Claims of the paper, checked</h1>",
        "<p>Every verdict is read off numbers: a statement holds if no instance exceeds its bound, "
        "and is false if one does, which is then shown. Statements are printed in the paper, "
        "implied by what is printed, or ours.</p><p>",
        " &middot; ".join(f"{text(n)}: {text(str(v))}" for n, v in settings.items()),
        "</p>",
    ]
    for picture, caption in pictures:
        lines.append(f'<figure><img alt="{text(caption)}" src="data:image/png;base64,{picture}">')
        lines.append(f"<figcaption>{text(caption)}</figcaption></figure>")
    lines.append("<table><tr><th>claim</th><th>whose</th><th>verdict</th><th>instances</th>")
    lines.append("<th>measured</th><th>bound</th><th>tightness</th></tr>")
    lines += [_row(r, entries) for r, entries in zip(results, turned, strict=True)]
    lines.append("</table><h2>Errata and the claims that check them</h2><table>")
    for number, entry in errata.items():
        lines.append(
            f"<tr><td>{number}</td><td><b>{text(entry['title'])}</b> "
            f"<small>{text(entry['where'])}</small><br>"
            f"<i>Printed:</i> {text(entry['printed'])}<br>"
            f"<i>Correct:</i> {text(entry['correct'])}<br>"
            f"<small>{text(_checked(entry))}</small></td></tr>"
        )
    return "\n".join([*lines, "</table></body></html>"]) + "\n"
