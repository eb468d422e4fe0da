"""Files of arrays, read and closed."""

import numpy as np


def load_arrays(file) -> dict[str, np.ndarray]:
    """All arrays of an npz file by name."""
    with np.load(file) as stored:
        return dict(stored)
