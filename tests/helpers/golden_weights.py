"""The rule by which tests/golden/torch_*.json fill the weights of PyTorch's networks."""

import numpy as np


def filled(number: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor with this number and name of a state dictionary, in PyTorch's layout."""
    size = int(np.prod(shape))
    w = np.sin(0.1 * np.arange(size) + 0.7 * number)
    if len(shape) >= 2:
        w = w * np.sqrt(2 / (size / shape[0]))
    elif name.endswith("running_var"):
        w = 1 + 0.5 * w**2
    elif name.endswith(("running_mean", ".bias")):
        w = 0.1 * w
    else:
        w = 1 + 0.1 * w
    return w.reshape(shape).astype(np.float32)


def images_of(shape: tuple[int, ...]) -> np.ndarray:
    """The images that belong to them, of shape (B, C, H, W), as float32 of shape (B, H, W, C)."""
    flat = 0.5 + 0.5 * np.sin(0.05 * np.arange(np.prod(shape)))
    return flat.astype(np.float32).reshape(shape).transpose(0, 2, 3, 1)
