"""AutoAttack on a subject: report, adversarial images, figure."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxadv import training
from jaxadv.attacks import AutoAttackResult, autoattack

from ..run import accuracy
from .subjects import Subject


def run_autoattack(
    subject: Subject,
    *,
    norm: Any,
    eps: float,
    version: str = "standard",
    precision: str = "default",
    batch_size: int | None = None,
    store: Path | None = None,
    shard: tuple[int, int] | None = None,
    verbose: bool = True,
) -> tuple[dict, AutoAttackResult]:
    """Runs AutoAttack on a subject's images.

    Args:
        subject: model and images.
        norm: norm of the ball.
        eps: radius, images in [0, 1].
        version: "standard", "plus" or "rand".
        precision: of the attacks, "default", "high" or "highest".
        batch_size: images in flight; no effect on the result.
        store: folder for saving progress, or None.
        shard: (i, n) for the images i, i + n, ... only; needs a store.
        verbose: whether to show progress and a summary.

    Returns:
        A report section as from :func:`experiments.run.accuracy.summarize`, plus "accuracy" (in
        percent, after each attack), "accuracy_interval" (of each, 95 %), "broken_by",
        "evaluations", "seconds" and "checks"; and the
        result itself.
    """
    images = np.asarray(training.to_float(jnp.asarray(subject.images)))
    labels = np.asarray(subject.labels)
    result = autoattack(
        subject.key,
        subject.logits_fn(),
        jnp.asarray(images),
        jnp.asarray(labels),
        norm=norm,
        eps=eps,
        version=version,
        precision=precision,
        batch_size=batch_size,
        store=store,
        shard=shard,
        progress=verbose,
    )
    labels = result.labels
    clean = np.where(result.broken_by == "clean", -1, labels)
    robust = np.where(result.robust, labels, -1)
    report = accuracy.summarize(
        training.Predictions(clean, robust), labels, subject.class_names
    ) | {
        "accuracy": {name: 100 * value for name, value in result.accuracy.items()},
        "accuracy_interval": {
            name: accuracy.interval(100 * value, len(labels))
            for name, value in result.accuracy.items()
        },
        "broken_by": {name: int((result.broken_by == name).sum()) for name in result.accuracy},
        "evaluations": {name: cost._asdict() for name, cost in result.evaluations.items()},
        "seconds": result.seconds,
        "checks": [check._asdict() for check in result.checks],
        "warnings": [check.message for check in result.checks if not check.passed],
    }
    return report, result


def save(result: AutoAttackResult, subject: Subject, path: Path) -> list[Path]:
    """Writes the adversarial images next to ``path`` (.npz), and a figure of some (.png)."""
    written = [path.with_suffix(".npz")]
    result.save(written[0])
    if len(result.broken) and result.images.shape[3] in (1, 3):
        written.append(path.with_suffix(".png"))
        clean = np.asarray(training.to_float(jnp.asarray(subject.images)))
        _picture(result, clean).save(written[-1])
    return written


def _picture(result: AutoAttackResult, clean: np.ndarray, number: int = 8) -> Image.Image:
    """The figure of a result, with "label > prediction" under every column."""
    pixels = result.figure(clean, number=number)
    picked = result.broken[:number]
    width, font = pixels.shape[1] // len(picked), ImageFont.load_default(14)
    page = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + 22), "white")
    page.paste(Image.fromarray(pixels))
    draw = ImageDraw.Draw(page)
    for column, index in enumerate(picked):
        text = f"{result.labels[index]} > {result.predictions[index]}"
        place = ((column + 0.5) * width, pixels.shape[0] + 11)
        draw.text(place, text, fill="black", font=font, anchor="mm")
    return page
