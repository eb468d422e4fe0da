"""Verifies that adversarial images lie in ball and box and are misclassified on their own."""

import math

import numpy as np

# How much rounding a pixel in [0, 1] to float32 may add to its distance from the clean pixel.
_PIXEL = 2.0**-24
_ROWS = 512  # a large data set in float64 at once would exhaust memory


def perturbation_norms(points: np.ndarray, clean: np.ndarray, norm: str) -> np.ndarray:
    """Norms of perturbations in float64, of shape (N,)."""
    sizes = np.zeros(len(points))
    for start in range(0, len(points), _ROWS):
        part = slice(start, start + _ROWS)
        deltas = np.abs(points[part] - clean[part].astype(np.float64))
        flat = deltas.reshape(len(deltas), -1)
        sizes[part] = {
            "linf": lambda v: v.max(axis=1),
            "l2": lambda v: np.sqrt((v**2).sum(axis=1)),
            "l1": lambda v: v.sum(axis=1),
        }[norm](flat)
    return sizes


def violations(
    points: np.ndarray, clean: np.ndarray, ids: np.ndarray, norm: str, eps: float
) -> list[str]:
    """How each candidate violates the ball or the box; an empty string if it does not."""
    features = math.prod(points.shape[1:])
    grain = {"linf": 1, "l2": math.sqrt(features), "l1": features}[norm] * _PIXEL
    limit = eps * (1 + 1e-6) + grain
    out = []
    for point, index, size in zip(
        points, ids, perturbation_norms(points, clean, norm), strict=True
    ):
        if not np.isfinite(point).all() or point.min() < 0 or point.max() > 1:
            out.append(f"image {index} leaves the box [0, 1]")
        elif size > limit:
            out.append(f"image {index} has norm {size:.8g} > {eps:.8g}")
        else:
            out.append("")
    return out
