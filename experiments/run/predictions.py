"""A finished run's predictions, saved in its directory."""

import io

import numpy as np

from jaxadv.training import Predictions

from .checkpoints import write_atomically
from .directory import RunDirectory

FILE = "predictions-selected.npz"  # the selected checkpoint's on the test images


def save_predictions(directory: RunDirectory, predictions: Predictions, labels: np.ndarray) -> None:
    """Saves the predictions of the final evaluation, so that reports need not attack again."""
    buffer = io.BytesIO()
    clean, robust, labels = (np.asarray(part, np.int32) for part in (*predictions, labels))
    np.savez_compressed(buffer, clean=clean, robust=robust, labels=labels)
    write_atomically(directory.path / FILE, buffer.getvalue())


def load_predictions(directory: RunDirectory) -> tuple[Predictions, np.ndarray] | None:
    """The saved predictions and labels, or None."""
    path = directory.path / FILE
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        return Predictions(file["clean"], file["robust"]), file["labels"]
