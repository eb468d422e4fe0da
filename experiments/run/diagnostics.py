"""Smoothness of the adversarial loss along a training run, logged by ``config.diagnostics``.

Compares both ends of an update on fixed training images with one fixed attack start, so that only
theta differs. Attacks use the run's evaluation PGD in eval mode, with the running statistics after
the update at both ends; they are not exact, and ``violates_mon`` says where it matters.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import attacks, theory

from .. import data
from ..settings import Config
from . import build, devices, hosts
from .phases import schedule
from .task import Stream, Task, key_for

_KINK_LEVELS, _LANCZOS_STEPS, _PROBES, _SEGMENT_POINTS = 4, 8, 4, 5


class Diagnostics:
    """The diagnostics of one run.

    Args:
        config: resolved configuration, with ``diagnostics.every`` above 0.
        task: its data.
        run: its programs.
    """

    def __init__(self, config: Config, task: Task, run: build.Run):
        self.config, self.run = config, run
        number = min(config.diagnostics.num_images, len(task.train.labels))
        first = data.central(task.train.images, task.dataset.image_shape)[:number]
        self.images = jnp.asarray(first, jnp.float32) / 255
        self.labels = jnp.asarray(task.train.labels[:number])
        threat = config.threat
        self.bounds = None
        if threat.norm == "linf":
            low, high = self.images - threat.eps, self.images + threat.eps
            self.bounds = np.maximum(low, 0), np.minimum(high, 1)
        self.rate = schedule(config, config.learning_rate, run.batches_per_epoch)
        # All devices share the images in every pass through the network.
        self._split = devices.data_sharding(jax.device_count())
        self._everywhere = devices.everywhere(self._split)
        if number % jax.device_count():
            self._split = self._everywhere
        compiled = functools.partial(jax.jit, out_shardings=self._everywhere)
        attack = compiled(self._attack)
        placed = hosts.place((self.images, self.labels), self._split)
        self._attack_fn = lambda params, stats: hosts.fetch(attack(*placed, params, stats))
        self._gradient = compiled(jax.grad(self._loss, argnums=1))
        self._input_gradient = compiled(jax.grad(self._loss))
        self._curved = compiled(self._frozen_product)
        self._variables_loss = lambda x, v: self._loss(x, v["params"], v["batch_stats"])

    @classmethod
    def of(cls, config: Config, task: Task, run: build.Run) -> "Diagnostics | None":
        """The diagnostics of a run, or None if disabled."""
        return cls(config, task, run) if config.diagnostics.every else None

    def due(self, step: int, group: int) -> bool:
        """Whether to measure the update of ``group`` minibatches that begins after ``step``.

        Depends on nothing else, so that a resumed run measures the same updates.
        """
        return step % self.config.diagnostics.every < group

    def until_due(self, step: int) -> int:
        """Minibatches of SGD before the next measured update."""
        every = self.config.diagnostics.every
        return -step % every or every

    def measure(self, step: int, before: Any, after: Any, batch_stats: Any) -> dict[str, Any]:
        """The diagnostics of one update, as plain numbers; undefined values are None.

        Args:
            step: number of minibatches before the update.
            before: parameters before the update.
            after: parameters after the update.
            batch_stats: running statistics after the update.

        Returns:
            step, length of the update and of the parameters;
            total, parameter, attack, attack_share, attack_motion, flips, stability:
            see :class:`jaxadv.theory.SmoothnessSplit` (stability for SGD only, flips for Linf);
            quotient, weak_convexity, violates_mon: see :func:`jaxadv.theory.monotonicity_audit`;
            frozen_curvature and motion_curvature: the two parts of the quotient;
            frozen_largest: top eigenvalue of the frozen-attack Hessian, by Lanczos;
            exponent: see :class:`jaxadv.theory.SlopeExponent`, -1 at a kink, 0 where smooth;
            input_gradient: mean norm of the images' input gradients;
            radius, predicted_flips: see :class:`jaxadv.theory.ActiveSetStability` (Linf).
        """
        difference = jax.tree.map(np.subtract, after, before)
        length, size = _length(difference), _length(after)
        row: dict[str, Any] = {"step": step, "update": length, "size": size}
        if not length:  # a learning rate of 0
            return row
        points = {id(theta): self._attack_fn(theta, batch_stats) for theta in (before, after)}
        x_before, x_after = points[id(before)], points[id(after)]
        gradient = lambda x, theta: hosts.fetch(self._gradient(x, theta, batch_stats))
        is_entropy = self.run.program.phase_at(step).n_in > 0
        split = theory.smoothness_along(
            gradient,
            lambda theta: points[id(theta)],
            [before, after],
            bounds=self.bounds,
            learning_rate=None if is_entropy else float(np.asarray(self.rate(step))),
        )
        names = ("total", "parameter", "attack", "attack_share", "attack_motion", "flips")
        row |= {name: _number(getattr(split, name)[0]) for name in (*names, "stability")}
        row |= self._monotonicity(gradient, before, after, x_before, x_after, batch_stats)
        top = theory.extreme_eigenvalues(
            jax.random.key(0),
            lambda u: hosts.fetch(self._curved(u, x_after, after, batch_stats)),
            after,
            num_steps=_LANCZOS_STEPS,
        )
        slope = theory.slope_exponent(
            lambda theta: gradient(self._attack_fn(theta, batch_stats), theta),
            after,
            difference,
            spacing=length / 2,
            num_levels=_KINK_LEVELS,
        )
        flat = hosts.fetch(self._input_gradient(x_after, after, batch_stats))
        flat = flat.reshape(len(self.labels), -1)
        row |= {
            "frozen_largest": _number(top.largest),
            "exponent": _number(slope.exponent),
            "input_gradient": float(len(flat) * np.linalg.norm(flat, axis=1).mean()),
        }
        return row | self._active_set(before, difference, x_before, batch_stats)

    def _monotonicity(self, gradient, before, after, x_before, x_after, batch_stats) -> dict:
        # Share one loss between updates; otherwise each would recompile.
        start, end = ({"params": p, "batch_stats": batch_stats} for p in (before, after))
        modulus = theory.segment_weak_convexity(
            self._variables_loss, start, end, [x_before, x_after], num_points=_SEGMENT_POINTS
        )
        ends = {id(before): gradient(x_before, before), id(after): gradient(x_after, after)}
        audit = theory.monotonicity_audit(
            lambda theta: ends[id(theta)], [before, after], weak_convexity=modulus, tolerance=1e-4
        )
        frozen = {id(before): ends[id(before)], id(after): gradient(x_before, after)}
        parameter = theory.monotonicity_audit(
            lambda theta: frozen[id(theta)], [before, after], weak_convexity=modulus
        )
        return {
            "quotient": _number(audit.worst),
            "weak_convexity": _number(modulus),
            "violates_mon": bool(audit.violations.any()),
            "frozen_curvature": _number(parameter.worst),
            "motion_curvature": _number(audit.worst - parameter.worst),
        }

    def _active_set(self, theta, step, x_adv, batch_stats) -> dict[str, float | None]:
        if self.bounds is None:
            return {"radius": None, "predicted_flips": None}
        found = theory.active_set_stability(
            lambda x, theta: self._loss(x, theta, batch_stats),
            theta,
            x_adv,
            low=self.bounds[0],
            high=self.bounds[1],
            step=step,
            key=jax.random.key(0),
            num_probes=_PROBES,
        )
        assert found.flips is not None
        predicted = found.flips.sum() / max(found.active.sum(), 1)
        return {"radius": _number(found.radius), "predicted_flips": float(predicted)}

    def _loss(self, images, params, batch_stats):
        if self._split is not None:  # twice, so that its gradient is everywhere too
            images = jax.lax.with_sharding_constraint(images, self._everywhere)
            images = jax.lax.with_sharding_constraint(images, self._split)
        logits, _ = self.run.apply_fn(params, batch_stats, images, False)
        chosen = jnp.take_along_axis(logits, self.labels[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)

    def _attack(self, images, labels, params, batch_stats):
        threat, evaluation = self.config.threat, self.config.eval
        return attacks.pgd(
            key_for(self.config, Stream.SELECTION),
            lambda images: self.run.apply_fn(params, batch_stats, images, False)[0],
            images,
            labels,
            norm=threat.norm,
            eps=threat.eps,
            step_size=evaluation.step_size,
            num_steps=evaluation.num_steps,
            keep_best=True,
        )

    def _frozen_product(self, u, x_adv, params, batch_stats):
        slope = lambda params: jax.grad(self._loss, argnums=1)(x_adv, params, batch_stats)
        return jax.jvp(slope, (params,), (u,))[1]


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _length(tree: Any) -> float:
    leaves = jax.tree.leaves(tree)
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in leaves)))
