"""Verifies that adversarial images lie in ball and box and are misclassified on their own."""

import math

import numpy as np

# How much rounding a pixel in [0, 1] to float32 may add to its distance from the clean pixel.
_PIXEL = 2.0**-24
_ROWS = 512  # a large data set in float64 at once would exhaust memory


def perturbation_norms(points: np.ndarray, clean: np.ndarray, norm: str) -> np.ndarray:
    """Norms of perturbations in float64, of shape (N,)."""
    sizes, order = np.zeros(len(points)), {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    for start in range(0, len(points), _ROWS):
        part = slice(start, start + _ROWS)
        deltas = points[part] - clean[part].astype(np.float64)
        sizes[part] = np.linalg.norm(deltas.reshape(len(deltas), -1), order, axis=1)
    return sizes


def violations(
    points: np.ndarray, clean: np.ndarray, ids: np.ndarray, norm: str, eps: float
) -> np.ndarray:
    """How each candidate violates the ball or the box; an empty string if it does not."""
    features = math.prod(points.shape[1:])
    grain = {"linf": 1, "l2": math.sqrt(features), "l1": features}[norm] * _PIXEL
    limit = eps * (1 + 1e-6) + grain
    pixels, sizes = points.reshape(len(points), features), perturbation_norms(points, clean, norm)
    inside = ((pixels >= 0) & (pixels <= 1)).all(axis=1)  # false for NaN
    far = [f"image {i} has norm {size:.8g} > {eps:.8g}" for i, size in zip(ids, sizes, strict=True)]
    out = [f"image {i} leaves the box [0, 1]" for i in ids]
    found = np.where(sizes > limit, np.array(far, str), "")
    return np.where(inside, found, np.array(out, str))
