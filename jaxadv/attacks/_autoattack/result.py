"""The result of AutoAttack: verdicts, accuracies, costs; printing and saving."""

import dataclasses
import json
import os
import pathlib
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from ..._files import write_atomically
from ...intervals import wilson
from ...types import ArrayLike
from .picture import draw

# What NumPy, json and zipfile raise on a file that is not what it should be.
_DAMAGE = (
    ValueError, TypeError, KeyError, AttributeError, OSError, EOFError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class Evaluations(NamedTuple):
    """Passes of single images through the model, excluding padding.

    Attributes:
        forward: forward passes.
        backward: backward passes, all of them with respect to images only.
    """

    forward: int
    backward: int


class Check(NamedTuple):
    """The result of an automatic check.

    Attributes:
        name: name of the check.
        passed: False is a warning: read the message before trusting the result.
        message: one line.
        value: the measured number.
    """

    name: str
    passed: bool
    message: str
    value: float = 0.0


@dataclasses.dataclass(frozen=True)
class AutoAttackResult:
    """The outcome of :func:`jaxadv.attacks.autoattack`.

    Attributes:
        images: (N, H, W, C), adversarial where one was found, else the clean image.
        labels: (N,) the true classes.
        predictions: (N,) the class of each of ``images``.
        robust: (N,) whether the image is classified correctly and survived every attack.
        broken_by: (N,) the attack that broke the image, "clean" where the clean image is
            misclassified, "" where it is robust.
        broken_run: (N,) the run (target or restart) of that attack, -1 if none.
        broken_step: (N,) the evaluation, step or query in that run that was first misclassified.
        norms: (N,) norm of the perturbation.
        margins: (N,) largest other logit minus the logit of the label, at ``images``.
        individual: with ``individual=True`` of shape (attacks, N): whether the image survives each
            attack by itself, in the order of ``accuracy`` without "clean"; else of shape (0, N).
        accuracy: "clean" and each attack, in order, with the accuracy after it.
        evaluations: the exact number of passes: "clean" (the clean images, and once more after
            each attack), each attack, and "verification" (every adversarial image on its own).
        seconds: wall time of each of these.
        checks: what the automatic checks found.
        settings: norm, eps, version and everything else the result depends on.
    """

    images: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    robust: np.ndarray
    broken_by: np.ndarray
    broken_run: np.ndarray
    broken_step: np.ndarray
    norms: np.ndarray
    margins: np.ndarray
    individual: np.ndarray
    accuracy: dict[str, float]
    evaluations: dict[str, Evaluations]
    seconds: dict[str, float]
    checks: list[Check]
    settings: dict

    @property
    def robust_accuracy(self) -> float:
        """The fraction of images that are robust."""
        return float(self.robust.mean())

    @property
    def broken(self) -> np.ndarray:
        """Indices of the images that an attack broke."""
        return np.flatnonzero(~self.robust & (self.broken_by != "clean"))

    @property
    def per_class(self) -> dict[int, tuple[int, float, float]]:
        """Number of images, clean accuracy and robust accuracy of each class in the labels."""
        clean = self.broken_by != "clean"
        return {
            int(label): (
                int((self.labels == label).sum()),
                float(clean[self.labels == label].mean()),
                float(self.robust[self.labels == label].mean()),
            )
            for label in np.unique(self.labels)
        }

    def summary(self) -> str:
        """A table of the attacks, the classes, and one line for each automatic check."""
        lines = [
            "AutoAttack {version}, {norm}, eps {eps:.6g}, {number} images".format(
                number=len(self.labels), **self.settings
            ),
            f"{'':14}{'accuracy':>10}{'broken':>8}{'forward':>12}{'backward':>12}{'seconds':>10}",
        ]
        for name, cost in self.evaluations.items():
            accuracy = f"{100 * self.accuracy[name]:.2f} %" if name in self.accuracy else ""
            broken = int((self.broken_by == name).sum()) if name in self.accuracy else ""
            lines.append(
                f"{name:14}{accuracy:>10}{broken:>8}{cost.forward:12,}{cost.backward:12,}"
                f"{self.seconds.get(name, 0.0):10.1f}"
            )
        low, high = wilson(int(self.robust.sum()), len(self.robust))
        lines.append(
            f"robust accuracy {100 * self.robust_accuracy:.2f} %"
            f" (95 % interval {100 * low:.2f} to {100 * high:.2f})"
        )
        names = [name for name in self.accuracy if name != "clean"]
        lines += [
            f"{name} alone: {100 * robust.mean():.2f} %"
            for name, robust in zip(names, self.individual, strict=False)
        ]
        lines.append("class: images, clean, robust")
        lines += [
            f"{label:5}: {count:6}, {100 * clean:6.2f} %, {100 * robust:6.2f} %"
            for label, (count, clean, robust) in self.per_class.items()
        ]
        lines += [
            f"{'check' if check.passed else 'WARNING'} {check.name}: {check.message}"
            for check in self.checks
        ]
        return "\n".join(lines)

    def figure(self, clean: ArrayLike, *, number: int = 8) -> np.ndarray:
        """A figure of the first broken images: clean, perturbation, adversarial.

        Args:
            clean: the attacked images.
            number: how many images.

        Returns:
            RGB bytes of shape (H, W, 3), for ``PIL.Image.fromarray`` or ``plt.imsave``.

        Raises:
            ValueError: if no image was broken, or the images have neither 1 nor 3 channels.
        """
        picked = self.broken[:number]
        if not len(picked):
            raise ValueError("no image was broken: there is nothing to draw")
        if self.images.shape[3] not in (1, 3):
            raise ValueError(
                f"images have {self.images.shape[3]} channels; only 1 or 3 can be drawn"
            )
        return draw(np.asarray(clean)[picked], self.images[picked])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to an npz file, atomically.

        Args:
            path: path of the file; its folder must exist.
        """
        path = pathlib.Path(path).expanduser()
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
        other = {name: value for name, value in fields.items() if name not in arrays}
        arrays["manifest"] = np.array(json.dumps(other))
        write = lambda file: np.savez_compressed(file, allow_pickle=False, **arrays)
        write_atomically(path, write)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "AutoAttackResult":
        """Loads a result written by :meth:`save`.

        Args:
            path: of the file.

        Returns:
            The result.

        Raises:
            ValueError: if the file is damaged or was not written by :meth:`save`.
        """
        path = pathlib.Path(path).expanduser()
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file if name != "manifest"}
                other = json.loads(str(file["manifest"]))
            other["evaluations"] = {k: Evaluations(*v) for k, v in other["evaluations"].items()}
            other["checks"] = [Check(*check) for check in other["checks"]]
            return cls(**arrays, **other)
        except FileNotFoundError:
            raise
        except _DAMAGE as error:
            raise ValueError(
                f"{path} is not an AutoAttack result or is damaged ({type(error).__name__}); "
                "evaluate again, or restore it from a copy"
            ) from error
