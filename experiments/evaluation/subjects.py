"""Subjects of an evaluation: a run's checkpoint or published PyTorch weights, with images."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxadv import models
from jaxadv.checks import check_choice

from .. import data, settings
from ..run import build, checkpoints
from ..run.directory import RunDirectory
from ..run.task import Stream, key_for, load_task

CHECKPOINTS = ("selected", "last")
IMAGES = ("test", "selection", "train")
ARCHITECTURES = ("preact_resnet18", "wrn34_10")
# Per-channel mean and standard deviation used to train published networks.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mnist": ((0.1307,), (0.3081,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Subject(NamedTuple):
    """A model, the images to evaluate it on, and its threat model.

    Attributes:
        module: linen module.
        params: its parameters.
        batch_stats: its running statistics.
        images: uint8 of shape (N, H, W, C).
        labels: int32 of shape (N,).
        class_names: one name per class.
        norm: norm of its threat model.
        eps: radius, images in [0, 1].
        pgd: step_size, num_steps and num_restarts of its default PGD.
        batch_size: images per compiled call.
        key: key of the attacks.
        folder: where results go.
        record: identifies it in a report.
    """

    module: nn.Module
    params: Any
    batch_stats: Any
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    norm: Any
    eps: float | None
    pgd: dict[str, Any]
    batch_size: int
    key: jax.Array
    folder: Path
    record: dict[str, Any]

    def first(self, number: int | None) -> "Subject":
        """A copy with only the first images."""
        return self._replace(images=self.images[:number], labels=self.labels[:number])

    def logits_fn(self):
        """The model in evaluation mode, with its weights as arguments rather than constants."""
        variables = {"params": self.params}
        if self.batch_stats:
            variables["batch_stats"] = self.batch_stats
        return jax.tree_util.Partial(_Apply(self.module), variables)


@dataclasses.dataclass(frozen=True)
class _Apply:
    """Equal for equal modules, so that a second checkpoint does not recompile."""

    module: nn.Module

    def __call__(self, variables, images):
        return self.module.apply(variables, images)


def from_run(workdir: Path | str, checkpoint: str, images: str, data_dir: Any = None) -> Subject:
    """A checkpoint of a run directory.

    Raises:
        FileNotFoundError: if ``workdir`` is not a run directory.
        ValueError: if the checkpoint does not match.
    """
    check_choice("checkpoint", checkpoint, CHECKPOINTS)
    check_choice("images", images, IMAGES)
    directory = RunDirectory(workdir)
    config = directory.config()
    task = load_task(config, data_dir)
    module = build.build_model(config, task.dataset)
    templates = jax.eval_shape(
        lambda: build.init_variables(module, jax.random.key(0), task.dataset.image_shape)
    )
    path = directory.path / f"{checkpoint}.ckpt"
    params, batch_stats = checkpoints.load_part(path, ("params", "batch_stats"), templates)
    directory.check_checkpoint(path, config)
    chosen = getattr(task, images)
    return Subject(
        module,
        params,
        batch_stats,
        chosen.images,
        chosen.labels,
        task.dataset.class_names,
        norm=config.threat.norm,
        eps=config.eval.eps,
        pgd={n: config.eval[n] for n in ("step_size", "num_steps", "num_restarts")},
        batch_size=config.eval.batch_size,
        key=key_for(config, Stream.TEST),
        folder=directory.path,
        record={
            "workdir": str(workdir),
            "method": config.method,
            "dataset": config.dataset,
            "scale": config.scale,
            "checkpoint": checkpoint,
            "evaluated_on": images,
            "precision": config.precision,
        },
    )


def from_torch(
    path: Path | str,
    arch: str,
    dataset: str,
    *,
    normalization: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    entry: str | None = None,
    data_dir: Any = None,
) -> Subject:
    """PyTorch weights of one of the paper's two architectures, and the test images.

    The file does not record the image normalization, and a wrong guess gives a wrong
    accuracy: either ``normalization`` or ``mean`` and ``std`` is required.

    Args:
        path: file written by ``torch.save``.
        arch: "preact_resnet18" or "wrn34_10".
        dataset: name of the data set.
        normalization: a name in ``NORMALIZATIONS``; "none" for raw images in [0, 1].
        mean: per-channel mean to subtract, instead of a name.
        std: per-channel standard deviation to divide by.
        entry: entry of the file that holds the weights, if it has several.
        data_dir: folder with the data sets.

    Raises:
        ValueError: if the architecture is unknown, no normalization is given or the file does not
        match.
    """
    check_choice("arch", arch, ARCHITECTURES)
    mean, std = _normalization(normalization, mean, std)
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --torch must be a PyTorch weights file")
    loaded = data.load(dataset, data_dir)
    channels = loaded.image_shape[2]
    mean, std = (v * channels if normalization and len(v) == 1 else v for v in (mean, std))
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(
                f"{name}={values} has {len(values)} numbers; the images have "
                f"{channels} channels: give one per channel, as in --mean=0.49,0.48,0.45"
            )
    module = models.build(arch, num_classes=loaded.num_classes, mean=mean, std=std)
    variables = models.load_torch(path, module, entry=entry)
    threats: Any = settings.THREATS.get(dataset, {})
    eps, step_size = threats.get("linf", (None, None))
    return Subject(
        module,
        variables["params"],
        variables["batch_stats"],
        loaded.test_images,
        loaded.test_labels,
        loaded.class_names,
        norm="linf",
        eps=eps,
        pgd={"step_size": step_size, "num_steps": 20, "num_restarts": 1},
        batch_size=250,
        key=jax.random.key(0),
        folder=Path("runs") / "torch" / path.stem,
        record={
            "torch": str(path),
            "arch": arch,
            "dataset": dataset,
            "mean": list(mean),
            "std": list(std),
            "checkpoint": path.name,
            "evaluated_on": "test",
            "precision": "float32",
        },
    )


def _normalization(name, mean, std) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, as a name or as two tuples."""
    if name is not None and (mean is not None or std is not None):
        raise ValueError(f"got both normalization={name!r} and mean or std; give only one")
    if name is not None:
        check_choice("normalization", name, NORMALIZATIONS)
        return NORMALIZATIONS[name]
    if mean is None or std is None:
        raise ValueError(
            "a PyTorch file does not record its image normalization; give "
            f"--normalization={'|'.join(NORMALIZATIONS)}, or --mean and --std"
        )
    if min(std) <= 0:
        raise ValueError(f"std={std} must be positive; it divides the images")
    return tuple(mean), tuple(std)
