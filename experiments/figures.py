"""Figures of training, from the metrics of runs: PNG, PDF, and the plotted data beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from .runs import write_json

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  (the backend has to be chosen first)
from matplotlib.ticker import MaxNLocator  # noqa: E402

# Okabe and Ito's palette: told apart by colour-blind readers and in grey print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def training_curves(
    runs: Mapping[str, Sequence[Sequence[dict]]], path: Path, *, title: str
) -> list[Path]:
    """Robust accuracy against epochs and against training time, after the paper's Figure 3.

    Solid lines are selection images (PGD as in the evaluation), dashed ones training images (the
    training attack); bands span the seeds.

    Args:
        runs: for each method the metrics rows of its runs.
        path: where to write, without suffix.
        title: of the figure.

    Returns:
        The files written: PNG, PDF and JSON.
    """
    data = {label: _averaged(rows) for label, rows in runs.items() if rows}
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8.0, 3.2), sharey=True)
        for color, (label, curves) in zip(COLORS, data.items(), strict=False):
            for axis, x in zip(axes, ("epoch", "seconds"), strict=True):
                _draw(axis, curves, x, label, color)
        axes[0].set(xlabel="epoch", ylabel="robust accuracy, %")
        axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[1].set(xlabel="training time, s")
        axes[0].text(0.02, 0.98, "(a)", transform=axes[0].transAxes, va="top")
        axes[1].text(0.02, 0.98, "(b)", transform=axes[1].transAxes, va="top")
        axes[1].legend(loc="lower right", fontsize=8)
        counts = sorted({curves["n"] for curves in data.values()})
        seeds = " to ".join(str(n) for n in counts[:: max(len(counts) - 1, 1)])
        sample = "1 seed" if counts == [1] else f"mean over {seeds} seeds"
        figure.suptitle(f"{title}; {sample}", size=9)
        written = [path.with_suffix(suffix) for suffix in (".png", ".pdf")]
        for file in written:
            figure.savefig(
                file, dpi=200, metadata={"CreationDate": None} if file.suffix == ".pdf" else None
            )
        plt.close(figure)
    write_json(path.with_suffix(".json"), data)
    return [*written, path.with_suffix(".json")]


def _averaged(runs: Sequence[Sequence[dict]]) -> dict:
    """Mean, lowest and highest over seeds for the epochs that all of them have."""
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


def _draw(axis, curves: dict, x: str, label: str, color: str) -> None:
    for name, style, what in (
        ("selection_robust", "-", "selection"),
        ("train_robust", "--", "training"),
    ):
        mean, low, high = (np.array(curves[f"{name}_{s}"], float) for s in ("mean", "min", "max"))
        there = np.isfinite(mean)
        at = np.array(curves[x], float)[there]
        axis.plot(at, mean[there], style, color=color, lw=1.4, label=f"{label}, {what}")
        axis.fill_between(at, low[there], high[there], color=color, alpha=0.12, lw=0)
