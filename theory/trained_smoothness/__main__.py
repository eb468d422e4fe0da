"""How smooth the adversarial loss of trained networks is: L2 against Linf, AT against AT+EnSGD.

python -m theory.trained_smoothness --output=runs/trained-smoothness
python -m theory.trained_smoothness --output=benchmarks/results/trained-smoothness-digits --redraw

Trains a small smooth network on digits with both norms and both methods, finds exact attacks along
training (float64, certified), and measures: the local smoothness between two nearby points, split
into the parameters' part and the attacks' part; the largest eigenvalue of the frozen-attack and the
true Hessian, A + B^T D; the norm of D; attacks that switch. Writes trained_smoothness.png, .pdf and
.json, the data. About five minutes on two cores.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.cli.options import Parser
from experiments.run import environment

from .. import style
from .networks import OPTIMIZERS, Probe, train

NORMS = ("l2", "linf")
LABELS = {"at": "AT", "at_ensgd": "AT+EnSGD"}
COLORS = {"at": style.BLUE, "at_ensgd": style.ORANGE}
FRACTIONS = (0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.48, 0.54, 0.64, 0.74, 0.79, 0.9, 1)
SPACINGS = (1e-2, 1e-3)  # of the norm of the parameters
NAME = "trained_smoothness"


def measure(*, num_epochs: int, num_seeds: int, num_images: int, say=print) -> dict[str, Any]:
    """Trains and measures everything.

    Args:
        num_epochs: epochs of each run.
        num_seeds: runs per norm and method.
        num_images: the probe is the first training images.
        say: called with progress messages.

    Returns:
        The data of the figure.
    """
    runs = []
    for norm in NORMS:
        probe = None
        for method in OPTIMIZERS:
            for seed in range(num_seeds):
                run = train(
                    method, norm, seed=seed, num_epochs=num_epochs, fractions=FRACTIONS,
                    num_images=num_images,
                )  # fmt: skip
                probe = probe or Probe(run)
                rows = [probe.measure(snapshot, SPACINGS) for snapshot in run.snapshots]
                for row in rows:
                    row["epoch"] = row["step"] / run.batches_per_epoch
                runs.append({"norm": norm, "method": method, "seed": seed, "rows": rows})
                say(f"{norm} {LABELS[method]} seed {seed}: loss {rows[-1]['loss']:.3f}")
    config = run.config  # pyright: ignore[reportPossiblyUnboundVariable]  # of the last run
    return _rounded(
        {
            "settings": {
                "command": "python -m theory.trained_smoothness",
                "data": "digits, scale laptop",
                "model": f"{config.model}, swish",
                "epochs": num_epochs,
                "seeds": num_seeds,
                "images": num_images,
                "spacings": SPACINGS,
                "precision": "training in float32, measurements in float64",
            },
            "environment": {n: v for n, v in environment.describe().items() if n != "command"},
            "runs": runs,
        }
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def series(data: dict[str, Any], norm: str, method: str, pick) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, and what ``pick`` takes from the rows: shape (seeds, snapshots)."""
    runs = [run for run in data["runs"] if (run["norm"], run["method"]) == (norm, method)]
    epochs = np.array([row["epoch"] for row in runs[0]["rows"]])
    return epochs, np.array([[pick(row) for row in run["rows"]] for run in runs], float)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else np.nan


# Panel: its title, whether its axis is logarithmic, and its lines: (label, dashes, number of row).
SOLID, DASHED, DOTTED = "-", (0, (4, 1.5)), (0, (1, 1))
PANELS = (
    (
        r"change of $\nabla L_\epsilon$ per length of step",
        True,
        (
            ("attacks move, step 0.1 %", SOLID, lambda row: row["secants"][1]["attack"]),
            ("attacks move, step 1 %", DOTTED, lambda row: row["secants"][0]["attack"]),
            ("parameters move, 0.1 %", DASHED, lambda row: row["secants"][1]["parameter"]),
        ),
    ),
    (
        "largest eigenvalue of the Hessian",
        True,
        (
            (r"true, $A+B^\top D$", SOLID, lambda row: row["eigenvalues"]["total"]),
            ("attack frozen, $A$", DASHED, lambda row: row["eigenvalues"]["frozen"]),
        ),
    ),
    (
        r"$\|D\|$, mean over attacks",
        True,
        (
            ("measured", SOLID, lambda row: _mean(row["norms"])),
            ("sharp bound", DASHED, lambda row: _mean(row["sharp_bounds"])),
        ),
    ),
    (
        "what jumps in a step of 1 %",
        False,
        (
            ("attacks to another maximum", SOLID, lambda row: row["secants"][0]["switches"]),
            (
                "pixels to the other bound",
                DASHED,
                lambda row: row["secants"][0].get("flips", np.nan),
            ),
        ),
    ),
)


def draw(data: dict[str, Any]) -> Figure:
    """Draws the figure: one row per norm, one column per quantity; means over seeds and ranges."""
    with rc_context(style.STYLE):
        figure = Figure(figsize=(11.0, 5.2))
        panels = figure.subplots(2, 4, sharex=True, sharey="col")
        figure.subplots_adjust(
            left=0.075, right=0.99, top=0.93, bottom=0.19, wspace=0.24, hspace=0.1
        )
        for norm, axes_row in zip(NORMS, panels, strict=True):
            for axes, (title, is_log, lines) in zip(axes_row, PANELS, strict=True):
                for method in OPTIMIZERS:
                    for _, dashes, pick in lines:
                        epochs, values = series(data, norm, method, pick)
                        values = np.where(values > 0, values, np.nan) if is_log else values
                        shown = ~np.isnan(values).all(0)
                        if not shown.any():
                            continue
                        epochs, values = np.asarray(epochs)[shown], values[:, shown]
                        color = COLORS[method]
                        axes.plot(epochs, np.nanmean(values, 0), color=color, ls=dashes, lw=1.3)
                        ends = np.nanmin(values, 0), np.nanmax(values, 0)
                        axes.fill_between(epochs, *ends, color=color, alpha=0.12, lw=0)
                axes.set_yscale("log" if is_log else "linear")
                axes.spines[["top", "right"]].set_visible(False)
                axes.grid(color="0.92", lw=0.5)
                if norm == NORMS[0]:
                    axes.set_title(title)
                else:
                    axes.set_xlabel("epoch")
                    handles = [
                        Line2D([], [], color="0.3", ls=dashes, lw=1.3, label=label)
                        for label, dashes, _ in lines
                    ]
                    axes.legend(
                        handles=handles,
                        loc="upper center",
                        bbox_to_anchor=(0.5, -0.2),
                        fontsize=7.5,
                    )
            axes_row[0].set_ylabel(style.NORM_LABELS[norm], rotation=0, labelpad=12, fontsize=12)
        handles = [Line2D([], [], color=COLORS[m], lw=2, label=LABELS[m]) for m in OPTIMIZERS]
        panels[0, 3].legend(handles=handles, loc="upper left")
    return figure


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not an integer >= 1")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and draws, or redraws from the data in the folder.

    Args:
        arguments: command line arguments, by default the process's.

    Returns:
        0.
    """
    parser = Parser(prog="python -m theory.trained_smoothness")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, default=Path("runs/trained-smoothness"))
    parser.add_argument("--redraw", action="store_true", help="redraw from the existing JSON")
    parser.add_argument("--epochs", type=_count, default=60, help="epochs of each run")
    parser.add_argument("--seeds", type=_count, default=2, help="runs per norm and method")
    parser.add_argument("--images", type=_count, default=16, help="number of images to measure on")
    options = parser.parse_args(arguments)
    file = options.output / f"{NAME}.json"
    if options.redraw and not file.is_file():
        parser.error(f"{file} does not exist; run once without --redraw")
    if not options.redraw:
        data = measure(
            num_epochs=options.epochs, num_seeds=options.seeds, num_images=options.images
        )
        options.output.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    data = json.loads(file.read_text(encoding="utf-8"))
    figure = draw(data)
    for suffix, metadata in ((".png", None), (".pdf", {"CreationDate": None})):
        figure.savefig(file.with_suffix(suffix), metadata=metadata, dpi=style.DPI)
    print(", ".join(str(file.with_suffix(suffix)) for suffix in (".png", ".pdf", ".json")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
