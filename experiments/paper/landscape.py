"""Weight-loss landscapes and sharpness of trained checkpoints.

Attacks are recomputed at every point of a landscape, with the same random starts everywhere;
BatchNorm is in eval mode with the checkpoint's statistics. Every model's direction comes from the
same seed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import attacks, losses, theory, training

from ..evaluation import subjects
from ..evaluation.subjects import Subject
from ..run import build

_DIRECTION, _ATTACK, _ASCENT, _LANCZOS = range(4)  # streams of the figure's seed


class Options(NamedTuple):
    """Settings for measuring a landscape.

    Attributes:
        checkpoint: "selected" or "last".
        number: maximum number of images per set; the first test images, and the first training
        images in the run's own shuffled order.
        num_steps: PGD steps at every point.
        seed: seed of directions and random starts.
        data_dir: folder with the data sets.
    """

    checkpoint: str = "selected"
    number: int = 1000
    num_steps: int = 20
    seed: int = 0
    data_dir: Any = None

    def key(self, stream: int) -> jax.Array:
        """The typed key of one stream of randomness."""
        return jax.random.fold_in(jax.random.key(self.seed), stream)


class Landscape:
    """The adversarial loss of one checkpoint as a function of its parameters.

    Programs are compiled once for all checkpoints with the same module and images: parameters and
    statistics are arguments of the compiled functions.

    Args:
        workdir: run directory.
        options: how to measure.
        programs: compiled programs shared with other checkpoints; extended in place.
    """

    def __init__(self, workdir: Path, options: Options, programs: dict | None = None):
        self.options = options
        self.subjects: dict[str, Subject] = {
            name: subjects.from_run(workdir, options.checkpoint, name, options.data_dir).first(
                options.number
            )
            for name in ("train", "test")
        }
        self.subject = self.subjects["train"]
        self.variables = {"params": self.subject.params, "batch_stats": self.subject.batch_stats}
        self.programs = {} if programs is None else programs

    def evaluation(self, images: str) -> Callable[[Any], dict]:
        """Maps variables to the mean adversarial loss and accuracy on "train" or "test" images."""
        subject = self.subjects[images]
        apply_fn = build.make_apply(subject.module)
        signature = (images, subject.module, subject.images.tobytes(), repr(self._attack(subject)))
        if signature not in self.programs:
            self.programs[signature] = theory.adversarial_evaluation(
                self.options.key(_ATTACK),
                lambda v, points: apply_fn(v["params"], v["batch_stats"], points, False)[0],
                training.to_float(jnp.asarray(subject.images)),
                jnp.asarray(subject.labels),
                batch_size=_divisor(len(subject.images), subject.batch_size),
                **self._attack(subject),
            )
        return self.programs[signature]

    def direction(self, draw: int) -> dict:
        """A filter-normalized direction; BatchNorm's statistics are unchanged."""
        key = jax.random.fold_in(self.options.key(_DIRECTION), draw)
        return {
            "params": theory.filter_normalized_direction(key, self.subject.params),
            "batch_stats": jax.tree.map(jnp.zeros_like, self.subject.batch_stats),
        }

    def line(self, alphas: Sequence[float], draws: int) -> dict:
        """Loss and accuracy along lines: arrays of shape (draws, n) for each image set."""
        found: dict[str, Any] = {}
        for images in self.subjects:
            evaluate = self.evaluation(images)
            lines = [
                theory.loss_line(evaluate, self.variables, self.direction(draw), alphas)
                for draw in range(draws)
            ]
            found[images] = {name: np.stack([line[name] for line in lines]) for name in lines[0]}
        return found

    def plane(self, alphas: Sequence[float], images: str) -> dict:
        """Loss and accuracy on a plane, arrays of shape (n, n)."""
        directions = self.direction(0), self.direction(1)
        return theory.loss_plane(
            self.evaluation(images), self.variables, directions, alphas, alphas
        )

    def sharpness(self, relative_radius: float, *, num_starts: int, num_steps: int) -> dict:
        """Definition 2 on the training images, by ascent and by a second-order expansion.

        Args:
            relative_radius: r over the norm of all parameters.
            num_starts: random starts of the ascent.
            num_steps: steps of the ascent.

        Returns:
            JSON-serializable numbers; "order" is the log2 ratio of the increases at r and r/2: 2
            where the loss is quadratic around a minimum, 1 at a kink and where the gradient is not
            0.
        """
        params = self.subject.params
        size = float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(params))))
        radius = relative_radius * size
        loss, frozen = self._losses()
        found = [
            theory.sharpness(
                self.options.key(_ASCENT),
                loss,
                params,
                radius=r,
                num_starts=num_starts,
                num_steps=num_steps,
            )
            for r in (radius, radius / 2)
        ]
        second = theory.sharpness_quadratic(
            self.options.key(_LANCZOS), frozen, params, radius=radius, num_steps=20
        )
        increases = [result.increase for result in found]
        order = float(np.log2(increases[0] / increases[1])) if min(increases) > 0 else None
        return {
            "radius": radius,
            "relative_radius": relative_radius,
            "loss": found[0].loss,
            "sharpness": found[0].value,
            "sharpness_half_radius": found[1].value,
            "order": order,
            "largest_eigenvalue_attack_frozen": second.largest_eigenvalue,
            "eigenvalue_error": second.eigenvalue_error,
            "gradient_norm": second.gradient_norm,
            "quadratic_attack_frozen": second.value,
            "first_order": second.first_order,
        }

    def _losses(self) -> tuple[Callable, Callable]:
        """The adversarial loss of the parameters with recomputed and with frozen attacks.

        The gradient of the first is Danskin's; the Hessian of the second is the part A of the true
        Hessian, so its curvature is a lower bound.
        """
        subject = self.subject
        images = training.to_float(jnp.asarray(subject.images))
        labels = jnp.asarray(subject.labels)
        size = _divisor(len(labels), subject.batch_size)
        batched = lambda x: x.reshape(-1, size, *x.shape[1:])
        batches = tuple(batched(x) for x in (images, labels, jnp.arange(len(labels))))
        attack, key = self._attack(subject), self.options.key(_ATTACK)
        apply_fn, statistics = build.make_apply(subject.module), subject.batch_stats
        logits = lambda params, points: apply_fn(params, statistics, points, False)[0]

        def attacked(params, batch) -> jax.Array:
            points, targets, indices = batch
            kept = jax.lax.stop_gradient(params)
            return attacks.pgd(
                key, lambda x: logits(kept, x), points, targets, indices=indices, **attack
            )

        # Recomputed in the backward pass: only a batch's adversarial images are stored.
        @jax.checkpoint
        def total(params, points, targets):
            return losses.cross_entropy(logits(params, points), targets).sum()

        def mean_loss(params, batches, attack_again):
            def one(batch):
                points = attacked(params, batch) if attack_again else batch[0]
                return total(params, points, batch[1])

            return jax.lax.map(one, batches).sum() / len(labels)

        anew = jax.jit(lambda params: mean_loss(params, batches, True))
        if not jax.tree.leaves(statistics):
            # Independent of this checkpoint, so that the other checkpoints can use the program.
            signature = ("loss", subject.module, subject.images.tobytes(), repr(attack))
            anew = self.programs.setdefault(signature, anew)
        points = jax.jit(lambda p: jax.lax.map(lambda b: attacked(p, b), batches))(subject.params)
        kept = (points, *batches[1:])
        return anew, jax.jit(lambda params: mean_loss(params, kept, False))

    def _attack(self, subject: Subject) -> dict[str, Any]:
        return {
            "norm": subject.norm,
            "eps": subject.eps,
            "step_size": subject.pgd["step_size"],
            "num_steps": self.options.num_steps,
        }


def _divisor(count: int, at_most: int) -> int:
    """The largest divisor of ``count`` up to the limit."""
    return next(size for size in range(min(count, at_most), 0, -1) if count % size == 0)
