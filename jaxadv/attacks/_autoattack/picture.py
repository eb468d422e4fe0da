"""A picture of a few adversarial images, as an array."""

import numpy as np


def draw(clean: np.ndarray, adversarial: np.ndarray, *, height: int = 96) -> np.ndarray:
    """Rows: clean images, perturbations, adversarial images.

    Args:
        clean: (B, H, W, C) in [0, 1], C = 1 or 3.
        adversarial: same shape.
        height: approximate height of an image in pixels.

    Returns:
        RGB bytes of shape (rows, columns, 3). Perturbations are scaled to their largest entry, gray
        is 0.
    """
    zoom = max(height // clean.shape[1], 1)
    deltas = adversarial - clean
    largest = np.abs(deltas).max(axis=(1, 2, 3), keepdims=True)
    shown = 0.5 + 0.5 * deltas / np.where(largest > 0, largest, 1)
    return np.concatenate([_row(images, zoom) for images in (clean, shown, adversarial)])


def _row(images: np.ndarray, zoom: int) -> np.ndarray:
    colors = np.broadcast_to(images, (*images.shape[:3], 3))
    bytes_ = np.round(np.clip(colors, 0, 1) * 255).astype(np.uint8)
    large = bytes_.repeat(zoom, axis=1).repeat(zoom, axis=2)
    framed = np.pad(large, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255)
    return np.concatenate(list(framed), axis=1)
