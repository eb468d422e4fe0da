"""Style and saving of all figures.

Matplotlib takes most of a second to import, so only plotting functions import it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Okabe and Ito's palette, distinguishable by color-blind readers and in grayscale print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 9,
    "grid.alpha": 0.25,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "mathtext.fontset": "cm",
    "figure.constrained_layout.use": True,
}


def check_colors(data: Mapping[str, Any]) -> None:
    """Raises a ``ValueError`` if there is nothing to draw, or more lines than distinct colors."""
    if not 1 <= len(data) <= len(COLORS):
        raise ValueError(f"{len(data)} lines to draw; a figure takes 1 to {len(COLORS)}")


def save(figure, path: Path) -> list[Path]:
    """Writes a figure as PNG and PDF, with reproducible bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_name(f"{path.name}{suffix}") for suffix in (".png", ".pdf")]
    for file in written:
        metadata: Any = {"CreationDate": None} if file.suffix == ".pdf" else None
        figure.savefig(file, dpi=200, metadata=metadata)
    return written


def styled():
    """A context manager that applies the style."""
    from matplotlib import rc_context

    return rc_context(STYLE)


def new_figure(**options: Any):
    """An empty figure, created without pyplot, which would change a notebook's backend."""
    from matplotlib.figure import Figure

    return Figure(**options)
