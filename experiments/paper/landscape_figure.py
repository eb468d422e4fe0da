"""Figure 7: its runs, plots, numbers and flags."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxadv.checks import check_count

from .. import settings
from ..cli import process
from ..cli.options import Parser, folder
from ..evaluation import subjects
from ..reporting import style
from ..run import environment
from ..run.directory import RunDirectory, write_json
from . import curves
from .curves import Line
from .landscape import Landscape, Options
from .table1 import METHODS

LINES = tuple(Line(method) for method in METHODS)
_SETS = {"train": "training images", "test": "test images"}


def draw_lines(alphas: np.ndarray, data: dict[str, dict], title: str):
    """Plots the mean adversarial loss along a direction, on training (a) and test images (b)."""
    style.check_colors(data)
    figure = style.new_figure(figsize=(8.0, 3.0))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (images, name), letter in zip(axes, _SETS.items(), "ab", strict=True):
        for color, (label, found) in zip(style.COLORS, data.items(), strict=False):
            loss = np.asarray(found[images]["loss"])
            axis.plot(alphas, loss.mean(0), color=color, lw=1.4, label=label)
            axis.fill_between(alphas, loss.min(0), loss.max(0), color=color, alpha=0.15, lw=0)
        axis.set(xlabel=r"$\alpha$")
        axis.margins(x=0.03)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}".replace("-", "\N{MINUS SIGN}"))
        axis.set_title(f"({letter}) {name}", loc="left")
    axes[0].set_ylabel("adversarial loss")
    axes[0].set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(title, size=9)
    return figure


def draw_planes(alphas: np.ndarray, data: dict[str, dict], title: str):
    """Plots contours of the adversarial loss on the training images, one panel per method."""
    style.check_colors(data)
    columns, points = min(len(data), 4), len(alphas) // 2
    rows = -(-len(data) // columns)
    size = (2.1 * columns + 0.7, 2.2 * rows + 0.4)
    figure = style.new_figure(figsize=size)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    losses = {label: np.asarray(found["train"]["loss"]) for label, found in data.items()}
    high = max(loss.max() for loss in losses.values())
    low = max(min(loss.min() for loss in losses.values()), 1e-4 * high)
    # Levels in equal ratios: a landscape is steep outside and flat inside.
    levels = np.geomspace(low, max(high, 1.01 * low) * (1 + 1e-6), 16)
    losses = {label: np.maximum(loss, low) for label, loss in losses.items()}
    image: Any = None
    for axis, (label, loss), letter in zip(axes.flat, losses.items(), "abcdefg", strict=False):
        image = axis.contourf(alphas, alphas, loss.T, levels, cmap="viridis", norm="log")
        axis.contour(alphas, alphas, loss.T, levels, colors="w", linewidths=0.4, alpha=0.7)
        axis.plot([0], [0], "+", color="w", ms=7, mew=1.4)
        axis.set_title(f"({letter}) {label}", loc="left")
        axis.set_aspect("equal")
        axis.set(xticks=alphas[-1] * np.array([-0.5, 0, 0.5]), yticks=alphas[[0, points, -1]])
        axis.grid(False)
    for axis in axes[-1]:
        axis.set_xlabel(r"$\alpha$")
    for axis in axes[:, 0]:
        axis.set_ylabel(r"$\beta$")
    for axis in axes.flat[len(data) :]:
        axis.set_visible(False)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low <= t <= high]
    bar = figure.colorbar(image, ax=axes, shrink=0.85, ticks=ticks, format="%g")
    bar.ax.minorticks_off()
    bar.set_label("adversarial loss, training images")
    figure.suptitle(title, size=9)
    return figure


def describe_sharpness(data: dict[str, dict]) -> str:
    """The numbers of Definition 2 as Markdown."""
    lines = [
        "| | loss | r | sharpness | order | eigenvalue | second order | first order |",
        "|---|" + "---|" * 7,
    ]
    for label, record in data.items():
        order = "" if record["order"] is None else f"{record['order']:.2f}"
        lines.append(
            f"| {label} | {record['loss']:.3f} | {record['radius']:.3f} | "
            f"{record['sharpness']:.4f} | {order} | "
            f"{record['largest_eigenvalue_attack_frozen']:.1f} | "
            f"{record['quadratic_attack_frozen']:.4f} | {record['first_order']:.4f} |"
        )
    lines += [
        "",
        "Sharpness: the largest (L(t) - L(theta)) / (1 + L(theta)) for |t - theta| <= r that "
        "projected gradient ascent found with recomputed attacks, on the training images: a lower "
        "bound. Order: the power of r with which the increase grows; near 2 at a smooth minimum, "
        "near 1 at a kink or where the gradient is not 0. The eigenvalue is that of the Hessian "
        "with the attack frozen, which is at most that of the adversarial loss; the last two "
        "columns are the values implied by it and by the gradient alone.",
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m experiments.fig7",
        description="Figure 7 of the paper: the adversarial loss along a filter-normalized random "
        "direction around the checkpoints of four methods, attacks recomputed at every point, and "
        "its sharpness. Writes PNG, PDF and the data as JSON.",
    )
    curves.add_run_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the runs; default 0")
    parser.add_argument("--partial", action="store_true", help="draw only finished runs")
    parser.add_argument(
        "--workdir", type=folder, nargs="+", metavar="DIR", help="finished runs to use instead"
    )
    parser.add_argument(
        "--checkpoint", choices=subjects.CHECKPOINTS, default="selected", help="default selected"
    )
    parser.add_argument(
        "--two-dimensional", action="store_true", help="draw contours on a plane of two directions"
    )
    parser.add_argument("--draws", type=int, default=1, help="directions per line; default 1")
    parser.add_argument("--points", type=int, help="points per axis; default 21, on a plane 13")
    parser.add_argument("--reach", type=float, default=1.0, help="largest |alpha|; default 1")
    parser.add_argument(
        "--number", type=int, help="images per set; default 1000 at scale paper, else 256"
    )
    parser.add_argument("--num-steps", type=int, default=20, help="PGD steps; default 20")
    parser.add_argument(
        "--radius",
        type=float,
        default=0.02,
        help="sharpness radius r relative to the parameters' norm; default 0.02, 0 skips it",
    )
    parser.add_argument(
        "--direction-seed", type=int, default=0, help="seed of directions and attacks"
    )
    parser.add_argument("--output", type=folder, help="folder; default runs/fig7-DATASET-SCALE")
    return parser


def main() -> None:
    """The command line."""
    process.execute(lambda: _main(_parser().parse_args()))


def _main(options: argparse.Namespace) -> None:
    plane = options.two_dimensional
    number, points = options.number, options.points
    number = (1000 if options.scale == "paper" else 256) if number is None else number
    points = (13 if plane else 21) if points is None else points
    for name, value, least in (
        ("--number", number, 1),
        ("--points", points, 3),
        ("--draws", options.draws, 1),
        ("--num-steps", options.num_steps, 0),
    ):
        check_count(name, value, least)
    if points % 2 == 0:
        raise ValueError(f"--points={points} must be odd, so that the checkpoint is one of them")
    if not (options.reach > 0 and options.radius >= 0):
        raise ValueError(
            f"--reach={options.reach} must be positive and --radius={options.radius} at least 0"
        )
    dataset = curves.dataset_of(options)
    workdirs = _workdirs(options, dataset)
    measure = Options(
        options.checkpoint, number, options.num_steps, options.direction_seed, options.data_dir
    )
    alphas = np.linspace(-options.reach, options.reach, points)
    data, sharpness, runs, sets = _measure(workdirs, measure, alphas, options)
    stem = "fig7-2d" if plane else "fig7"
    output = curves.folder_of(options, "fig7", dataset)
    if options.workdir is not None and options.output is None:
        output = Path("runs/fig7")
    places = sorted({f"{run['dataset']}, {run['model']}, scale {run['scale']}" for run in runs})
    title = f"{'; '.join(places)}; {options.checkpoint} checkpoints, PGD-{options.num_steps}"
    if not plane and options.draws > 1:
        title += f"; mean and range over {options.draws} directions"
    with style.styled():
        drawn = (draw_planes if plane else draw_lines)(alphas, data, title)
        written = style.save(drawn, output / stem)
    record = {
        "figure": 7,
        "alphas": alphas.tolist(),
        "landscape": {label: _plain(found) for label, found in data.items()},
        "sharpness": sharpness,
        "runs": runs,
        "images": sets,
        "options": {**measure._asdict(), "draws": 2 if plane else options.draws},
        "environment": environment.describe(),
    }
    record["options"]["data_dir"] = None if options.data_dir is None else str(options.data_dir)
    write_json(output / f"{stem}.json", record)
    if sharpness:
        print("\n" + describe_sharpness(sharpness) + "\n")
    print("written: " + ", ".join(str(path) for path in [*written, output / f"{stem}.json"]))


def _workdirs(options: argparse.Namespace, dataset: str) -> list[Path]:
    if options.workdir is not None:
        for workdir in options.workdir:
            RunDirectory(workdir).config()  # raises if it is not a run directory
        return options.workdir
    check_count("--seed", options.seed, 0)
    found = [member for member in curves.members(LINES, options.scale, dataset, options.model, 1)]
    found = [m._replace(cell=m.cell._replace(seed=options.seed)) for m in found]
    there = [member for member in found if member.is_finished()]
    if not options.partial or not there:
        curves.require(found, "fig7", "--partial to draw finished runs")
    return [member.workdir() for member in there]


def _measure(
    workdirs: Sequence[Path], measure: Options, alphas: np.ndarray, options: argparse.Namespace
) -> tuple[dict, dict, list[dict], dict]:
    data: dict[str, dict] = {}
    sharpness, runs, sets, programs = {}, [], {}, {}
    for workdir in workdirs:
        config = RunDirectory(workdir).config()
        label: Any = settings.label(config)
        if label in data:
            raise ValueError(
                f"{workdir}: another run is also {label!r}; draw them in separate figures"
            )
        print(f"{label}: {workdir}", flush=True)
        landscape = Landscape(workdir, measure, programs)
        if options.two_dimensional:
            data[label] = {"train": landscape.plane(alphas.tolist(), "train")}
        else:
            data[label] = landscape.line(alphas.tolist(), options.draws)
        if options.radius > 0:
            sharpness[label] = landscape.sharpness(options.radius, num_starts=2, num_steps=10)
        sets = {name: len(s.labels) for name, s in landscape.subjects.items()}
        runs.append(
            {
                **landscape.subject.record,
                "label": label,
                "model": config.model,
                "seed": config.seed,
                "attack": {
                    "norm": landscape.subject.norm,
                    "eps": landscape.subject.eps,
                    **landscape.subject.pgd,
                    "num_steps": measure.num_steps,
                    "num_restarts": 1,
                },
            }
        )
    return data, sharpness, runs, sets


def _plain(found: dict) -> dict:
    return {
        images: {name: np.asarray(values).tolist() for name, values in arrays.items()}
        for images, arrays in found.items()
    }
