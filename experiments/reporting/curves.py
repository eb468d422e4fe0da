"""Training figures from the metrics of runs, as PNG, PDF, and JSON."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..run.directory import write_json
from .reference_curves import ReferenceCurve
from .style import COLORS, check_colors, new_figure, save, styled

# Panels of a row: images, and the metric on them.
_PANELS = (("training", "train_robust"), ("selection", "selection_robust"))
_UNITS = ((1e9, "billions", 1e9), (1e6, "millions", 1e6), (0, "thousands", 1e3))


def training_curves(
    runs: Mapping[str, Sequence[Sequence[dict]]], path: Path, *, title: str, evaluated_on: str
) -> list[Path]:
    """Plots robust accuracy against epochs and passes, like the paper's Figure 3.

    Args:
        runs: for each method the metrics rows of its runs, from :func:`.passes.counted`.
        path: output path without suffix.
        title: title of the figure.
        evaluated_on: which images the runs held out, as in `draw_curves`.

    Returns:
        The files written: PNG, PDF and JSON.
    """
    data = {label: average(rows) for label, rows in runs.items() if rows}
    with styled():
        written = save(draw_curves(data, title=title, evaluated_on=evaluated_on), path)
    write_json(path.with_suffix(".json"), data)
    return [*written, path.with_suffix(".json")]


def draw_curves(
    data: Mapping[str, dict],
    *,
    title: str,
    evaluated_on: str,
    reference: Mapping[str, ReferenceCurve] | None = None,
):
    """Four panels, within :data:`STYLE`: training and held-out images, epochs and passes.

    On training images the training attack is measured, on the others the evaluation's. Bands span
    the seeds. Passes through the network replace the paper's hours, which depend on what else a
    machine does.

    Args:
        data: results of :func:`average`, by label.
        title: title of the figure; the number of seeds is appended.
        evaluated_on: images of the right panels: "validation" or "test".
        reference: published curves by label; drawn against epochs, up to our last.

    Returns:
        The figure.
    """
    from matplotlib.lines import Line2D

    check_colors(data)
    figure = new_figure(figsize=(8.0, 5.6))
    axes = figure.subplots(2, 2, sharey=True, sharex="row")
    longest = max(curves["passes"][-1] for curves in data.values())
    unit, size = next((name, size) for limit, name, size in _UNITS if longest >= limit)
    for color, (label, curves) in zip(COLORS, data.items(), strict=False):
        epochs = np.array(curves["epoch"], float)
        passes = np.array(curves["passes"], float) / size
        for column, (_, metric) in enumerate(_PANELS):
            _draw(axes[0, column], curves, metric, epochs, color)
            _draw(axes[1, column], curves, metric, passes, color)
        if label in (reference or {}):
            _draw_reference(axes[0], (reference or {})[label], curves["epoch"][-1], color)
    names = ("training", evaluated_on)
    for axis, letter, name in zip(axes.flat, "abcd", names * 2, strict=True):
        axis.set_title(f"({letter}) {name} images", loc="left")
    for axis in axes[0]:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(_whole_numbers())
    for axis in axes[1]:
        axis.set_xlabel(f"passes of images through the network, {unit}")
    for axis in axes[:, 0]:
        axis.set_ylabel("robust accuracy, %")
    lines = [Line2D([], [], color=c, lw=2, label=n) for c, n in zip(COLORS, data, strict=False)]
    if reference:
        mark = {"color": "0.3", "ls": "", "mfc": "w", "ms": 4}
        lines.append(Line2D([], [], marker="^", label="published, training", **mark))
        lines.append(Line2D([], [], marker="o", label="published, test", **mark))
    figure.legend(
        handles=lines, loc="outside lower center", ncols=min(len(lines), 4), handlelength=1.8
    )
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
        figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def compared_curves(runs: Mapping[str, Sequence[dict]], *, evaluated_on: str) -> bytes:
    """Robust accuracy of single runs against epochs and passes, as PNG bytes.

    Args:
        runs: metrics rows from :func:`.passes.counted`, by name.
        evaluated_on: which images the runs held out, as in `draw_curves`.
    """
    buffer = io.BytesIO()
    with styled():
        curves = {name: average([rows]) for name, rows in runs.items()}
        drawn = draw_curves(curves, title="", evaluated_on=evaluated_on)
        drawn.suptitle("")
        drawn.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def average(runs: Sequence[Sequence[dict]]) -> dict:
    """Mean, minimum and maximum over seeds, for the epochs that all seeds have.

    Args:
        runs: metrics rows of each seed, from :func:`.passes.counted`.

    Returns:
        JSON-serializable columns: "n", "epoch", "seconds" and "passes" (means), and "mean", "min"
        and "max" of ``train_robust`` and ``selection_robust``, None where not measured.
    """
    length = min(len(rows) for rows in runs)
    result: dict = {"n": len(runs), "epoch": [row["epoch"] for row in runs[0][:length]]}
    for name in ("seconds", "passes"):
        result[name] = np.mean([[r[name] for r in rows[:length]] for rows in runs], 0).tolist()
    for _, name in _PANELS:
        values = np.array([[r[name] for r in rows[:length]] for rows in runs], float)
        for statistic in ("mean", "min", "max"):
            column = getattr(values, statistic)(axis=0)
            result[f"{name}_{statistic}"] = [None if np.isnan(v) else float(v) for v in column]
    return result


def _whole_numbers():
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(6, integer=True, steps=[1, 2, 5, 10])


def _draw(axis, curves: dict, metric: str, x: np.ndarray, color: str) -> None:
    mean, low, high = (np.array(curves[f"{metric}_{s}"], float) for s in ("mean", "min", "max"))
    there = np.isfinite(mean)
    marker = "o" if there.sum() == 1 else None
    axis.plot(x[there], mean[there], color=color, lw=1.4, marker=marker, ms=4)
    axis.fill_between(x[there], low[there], high[there], color=color, alpha=0.15, lw=0)


def _draw_reference(axes, curve: ReferenceCurve, last_epoch: int, color: str) -> None:
    epochs = np.array(curve.epochs_done(), int)
    near = epochs <= last_epoch
    mark = {"color": color, "mfc": "w", "ms": 4, "mew": 1, "ls": ""}
    for axis, values, marker in zip(axes, (curve.train_robust, curve.test_robust), "^o",
                                    strict=True):  # fmt: skip
        if values:
            axis.plot(epochs[near], np.array(values, float)[near], marker, **mark)
    best, epoch = curve.best
    if not curve.test_robust and epoch < last_epoch:
        axes[1].plot([epoch + 1], [best], "o", **mark)
