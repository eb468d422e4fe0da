"""Training figures from the metrics of runs, as PNG, PDF, and JSON."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..run.directory import write_json
from .reference_curves import ReferenceCurve
from .style import COLORS, check_colors, new_figure, save, styled

_KINDS = (("selection_robust", "-"), ("train_robust", "--"))
_TIMES = ((7200, "h", 3600), (300, "min", 60), (0, "s", 1))


def training_curves(
    runs: Mapping[str, Sequence[Sequence[dict]]], path: Path, *, title: str
) -> list[Path]:
    """Plots robust accuracy against epochs and training time, like the paper's Figure 3.

    Solid lines are selection images (evaluation PGD), dashed lines training images (training
    attack); bands span the seeds.

    Args:
        runs: for each method the metrics rows of its runs.
        path: output path without suffix.
        title: title of the figure.

    Returns:
        The files written: PNG, PDF and JSON.
    """
    data = {label: average(rows) for label, rows in runs.items() if rows}
    with styled():
        written = save(draw_curves(data, title=title), path)
    write_json(path.with_suffix(".json"), data)
    return [*written, path.with_suffix(".json")]


def draw_curves(
    data: Mapping[str, dict],
    *,
    title: str,
    evaluated_on: str = "selection",
    reference: Mapping[str, ReferenceCurve] | None = None,
):
    """The two panels, within :data:`STYLE`.

    Args:
        data: results of :func:`average`, by label.
        title: title of the figure; the number of seeds is appended.
        evaluated_on: images behind the solid lines.
        reference: published curves by label; drawn only in panel (a), up to our last epoch, since
        they were timed on different machines.

    Returns:
        The figure.
    """
    from matplotlib.lines import Line2D

    check_colors(data)
    figure = new_figure(figsize=(8.0, 3.0))
    axes = figure.subplots(1, 2, sharey=True)
    longest = max(curves["seconds"][-1] for curves in data.values())
    unit, size = next((name, size) for limit, name, size in _TIMES if longest >= limit)
    for color, (label, curves) in zip(COLORS, data.items(), strict=False):
        _draw(axes[0], curves, np.array(curves["epoch"], float), color)
        _draw(axes[1], curves, np.array(curves["seconds"], float) / size, color)
        if label in (reference or {}):
            _draw_reference(axes[0], (reference or {})[label], curves["epoch"][-1], color)
    axes[0].set(xlabel="epoch", ylabel="robust accuracy, %")
    axes[0].xaxis.set_major_locator(_whole_numbers())
    axes[1].set(xlabel=f"training time, {unit}")
    for axis, letter in zip(axes, "ab", strict=True):
        axis.set_title(f"({letter})", loc="left")
    lines = [Line2D([], [], color=c, lw=2, label=n) for c, n in zip(COLORS, data, strict=False)]
    lines += [
        Line2D([], [], color="0.3", ls="-", label=evaluated_on),
        Line2D([], [], color="0.3", ls="--", label="training"),
    ]
    if reference:
        lines += [
            Line2D([], [], color="0.3", ls="", marker="o", mfc="w", ms=4, label="published, test"),
            Line2D([], [], color="0.3", ls="", marker="^", mfc="w", ms=4, label="published, train"),
        ]
    figure.legend(handles=lines, loc="outside right center", handlelength=1.8)
    counts = sorted({curves["n"] for curves in data.values()})
    seeds = " to ".join(str(n) for n in counts[:: max(len(counts) - 1, 1)])
    sample = "1 seed" if counts == [1] else f"mean and range over {seeds} seeds"
    figure.suptitle(f"{title}; {sample}", size=9)
    return figure


def run_curves(rows: Sequence[dict], *, evaluated_on: str, selected_epoch: int | None) -> bytes:
    """Accuracies and loss of one run against epochs, as PNG bytes."""
    epochs = np.array([row["epoch"] for row in rows])
    of = lambda name: np.array([row.get(name) for row in rows], float)
    with styled():
        figure = new_figure(figsize=(8.4, 2.9))
        axes = figure.subplots(1, 2)
        marker = "o" if len(rows) == 1 else None
        for name, style, color, label in (
            ("selection_robust", "-", COLORS[0], f"{evaluated_on}, robust"),
            ("train_robust", "--", COLORS[0], "training, robust"),
            ("selection_clean", "-", COLORS[1], f"{evaluated_on}, clean"),
            ("train_clean", "--", COLORS[1], "training, clean"),
        ):
            there = np.isfinite(values := of(name))
            if there.any():
                axes[0].plot(
                    epochs[there],
                    values[there],
                    style,
                    color=color,
                    lw=1.4,
                    label=label,
                    marker=marker,
                    ms=4,
                )
        if selected_epoch is not None:
            axes[0].axvline(selected_epoch, color="0.5", lw=1, ls=":", label="selected")
        axes[0].set(xlabel="epoch", ylabel="accuracy, %")
        axes[0].legend(loc="best")
        axes[1].plot(epochs, of("train_loss"), color=COLORS[2], lw=1.4, marker=marker, ms=4)
        axes[1].set(xlabel="epoch", ylabel="training loss, as minimized")
        for axis in axes:
            axis.xaxis.set_major_locator(_whole_numbers())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def average(runs: Sequence[Sequence[dict]]) -> dict:
    """Mean, minimum and maximum over seeds, for the epochs that all seeds have.

    Args:
        runs: metrics rows of each seed.

    Returns:
        JSON-serializable columns: "n", "epoch", "seconds" (mean), and "mean", "min" and "max" of
        ``train_robust`` and ``selection_robust``, None where not measured.
    """
    length = min(len(rows) for rows in runs)
    result: dict = {"n": len(runs), "epoch": [row["epoch"] for row in runs[0][:length]]}
    result["seconds"] = np.mean(
        [[r["seconds"] for r in rows[:length]] for rows in runs], 0
    ).tolist()
    for name in ("train_robust", "selection_robust"):
        values = np.array([[r[name] for r in rows[:length]] for rows in runs], float)
        for statistic in ("mean", "min", "max"):
            column = getattr(values, statistic)(axis=0)
            result[f"{name}_{statistic}"] = [None if np.isnan(v) else float(v) for v in column]
    return result


def _whole_numbers():
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(6, integer=True, steps=[1, 2, 5, 10])


def _draw(axis, curves: dict, x: np.ndarray, color: str) -> None:
    for name, style in _KINDS:
        mean, low, high = (np.array(curves[f"{name}_{s}"], float) for s in ("mean", "min", "max"))
        there = np.isfinite(mean)
        axis.plot(x[there], mean[there], style, color=color, lw=1.4)
        axis.fill_between(x[there], low[there], high[there], color=color, alpha=0.15, lw=0)


def _draw_reference(axis, curve: ReferenceCurve, last_epoch: int, color: str) -> None:
    epochs = np.array(curve.epochs_done(), int)
    near = epochs <= last_epoch
    for values, marker in ((curve.test_robust, "o"), (curve.train_robust, "^")):
        points = np.array(values, float)[near]
        axis.plot(epochs[near], points, marker, color=color, mfc="w", ms=4, mew=1, ls="")
    best, epoch = curve.best
    if not curve.test_robust and epoch < last_epoch:
        axis.plot([epoch + 1], [best], "o", color=color, mfc="w", ms=4, mew=1)
