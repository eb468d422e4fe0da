"""Checks of image and label arrays."""

from typing import Any

import numpy as np


def check_images(images: Any) -> None:
    """Checks that `images` is a batch of images in one of the project's two formats.

    Args:
      images: (B, H, W, C) array, uint8 in 0..255 or float32 in [0, 1].

    Raises:
      ValueError: with the problem and the fix.

    Example:
      >>> check_images(np.zeros((2, 8, 8, 1), np.uint8))
      >>> check_images(np.zeros((2, 8, 8, 1), np.float32))
    """
    images = np.asarray(images)
    if images.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"images must be uint8 or float32, got {images.dtype}: convert with "
            "images.astype(np.float32), and divide by 255 if the values are 0..255"
        )
    if images.ndim != 4:
        raise ValueError(
            f"images must have shape (batch, height, width, channels), got {images.shape}: add "
            "the missing axis, images[None] for one image or images[..., None] for one channel"
        )
    if images.shape[-1] not in (1, 3):
        hint = "images.transpose(0, 2, 3, 1)" if images.shape[1] in (1, 3) else "reshape the array"
        raise ValueError(
            f"images must have 1 or 3 channels on the last axis, got shape {images.shape}: {hint}"
        )
    if images.dtype == np.float32 and images.size:
        low, high = images.min(), images.max()
        # Written so that NaN, which compares false with everything, is also rejected.
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images of type float32 must lie in [0, 1], got values from {low:g} to {high:g}: "
                "divide 0..255 images by 255 and leave normalization to the model"
            )


def check_labels(labels: Any, num_classes: int) -> None:
    """Checks that `labels` is a vector of class indices.

    Args:
      labels: (B,) integer array with values in [0, num_classes).
      num_classes: number of classes, at least 2.

    Raises:
      ValueError: with the problem and the fix.

    Example:
      >>> check_labels(np.array([0, 9, 3]), num_classes=10)
    """
    labels = np.asarray(labels)
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}: count the classes")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers, got {labels.dtype}: convert with labels.astype(np.int32)"
        )
    if labels.ndim != 1:
        raise ValueError(
            f"labels must have shape (batch,), got {labels.shape}: use labels.reshape(-1), or "
            "labels.argmax(-1) if they are one-hot"
        )
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, got values from {labels.min()} to "
            f"{labels.max()}: subtract the lowest label or fix num_classes={num_classes}"
        )
