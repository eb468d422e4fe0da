"""The smoothness of the mean adversarial loss at one snapshot of training."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import theory

from .attacks import SAME, Attacks, Maxima
from .design import EPS, Images, Setting
from .networks import network, unraveler

LANCZOS_STEPS = 12
FAR = 0.25  # of the diameter
SEGMENT_POINTS = 17
EXCHANGES = 8  # rounds of candidates between the ends, at most


class Probe:
    """Measures networks of one setting and norm; compiles once.

    Args:
        setting: architecture and data.
        norm: "l2" or "linf".
        image_shape: (H, W, C).
        starts: random starts of every search.
    """

    def __init__(
        self,
        setting: Setting,
        norm: str,
        image_shape: tuple[int, int, int],
        starts: int,
    ) -> None:
        self.starts, module = starts, network(setting)
        with jax.enable_x64(True):
            unravel = unraveler(setting, image_shape)

        def loss(params, x, label):
            images = x.reshape(1, *image_shape)
            logits = module.apply({"params": unravel(params)}, images)[0]
            return jax.nn.logsumexp(logits) - logits[label]

        options: Any = dict(norm=norm, eps=EPS[setting.data][norm], bounds=(0.0, 1.0))

        def jacobian(params, images, labels, points):
            def one(given):
                x, label, point = given
                found = theory.attack_jacobian(
                    lambda x, params: loss(params, x, label), params, x, x_adv=point, **options
                )
                return found._replace(multiplier_jacobian=None)

            return jax.lax.map(one, (images, labels, points))

        gradients = jax.vmap(jax.grad(loss), (None, 0, 0))
        mean = lambda params, points, labels: gradients(params, points, labels).mean(0)

        def frozen(params, points, labels, u):
            return jax.jvp(lambda p: mean(p, points, labels), (params,), (u,))[1]

        def motion(params, points, labels, jacobians, u):
            moved = jacobians @ u
            return jax.jvp(lambda x: mean(params, x, labels), (points,), (moved,))[1]

        def monotone(start, step, labels, first, last):
            """Quotients of (MON) of each image, and their bounds."""

            def one(label, x_0, x_1):
                along = lambda x: lambda t: loss(start + t * step, x, label)
                times = jnp.linspace(0.0, 1.0, SEGMENT_POINTS)
                bend = lambda x: jax.vmap(jax.grad(jax.grad(along(x))))(times).min()
                change = jax.grad(along(x_1))(1.0) - jax.grad(along(x_0))(0.0)
                return change, jnp.minimum(jnp.minimum(bend(x_0), bend(x_1)), 0.0)

            return jax.tree.map(lambda v: v / (step @ step), jax.vmap(one)(labels, first, last))

        self.attacks = Attacks(loss, norm, EPS[setting.data][norm])
        self.loss = loss
        self._gradients, self._jacobian = jax.jit(gradients), jax.jit(jacobian)
        self._frozen, self._motion = jax.jit(frozen), jax.jit(motion)
        self._monotone = jax.jit(monotone)

    def measure(
        self,
        params: np.ndarray,
        step: np.ndarray,
        lengths: Mapping[str, float],
        images: Images,
        key: int,
    ) -> dict[str, Any]:
        """Everything at one snapshot.

        Args:
            params: flat parameters.
            step: direction of the displacements, of any length.
            lengths: displacements by name.
            images: what to measure on.
            key: seed of the starts.
        """
        with jax.enable_x64(True):
            x, labels = images.pixels.reshape(len(images.labels), -1), np.asarray(images.labels)
            theta = np.asarray(params, np.float64)
            unit = step / np.linalg.norm(step)
            ends = [theta, *(theta + length * unit for length in lengths.values())]
            own = [
                self.attacks.climb(end, x, labels, self.attacks.starts(key + i, x, self.starts))
                for i, end in enumerate(ends)
            ]
            union, residuals = self._united(ends, own, x, labels)
            here = union[0].points[:, 0]
            row: dict[str, Any] = {
                "loss": float(union[0].values[:, 0].mean()),
                "weights": float(np.linalg.norm(theta)),
            }
            row |= self._searches(own, union, residuals)
            row |= self._local(theta, x, labels, here)
            row["steps"] = {
                name: self._step(
                    theta, end - theta, x, labels, (own[0], own[i]), (union[0], union[i])
                )
                for i, (name, end) in enumerate(zip(lengths, ends[1:], strict=True), 1)
            }
        return row

    def _united(self, ends, own, x, labels):
        """The best two maxima at every end, and the best one's residuals.

        The ends exchange candidates until no end's best attack leads to a better one at another:
        climbing and Newton's steps find maxima that the first pool did not have.
        """
        pool = np.concatenate([self.attacks.distinct(found).points for found in own], axis=1)
        warm = [self.attacks.climb(end, x, labels, pool) for end in ends]
        found, rounds = own, 0
        while True:
            rounds += 1
            found = [
                Maxima(*(np.concatenate(pair, axis=1) for pair in zip(*both, strict=True)))
                for both in zip(found, warm, strict=True)
            ]
            polished = [
                self.attacks.best(end, x, labels, every)
                for end, every in zip(ends, found, strict=True)
            ]
            union = [best for best, _ in polished]
            pool = np.stack([best.points[:, 0] for best in union], axis=1)
            warm = [self.attacks.climb(end, x, labels, pool) for end in ends]
            gains = [
                new.values.max(1) - best.values[:, 0] for new, best in zip(warm, union, strict=True)
            ]
            if np.max(gains) <= 1e-9 or rounds == EXCHANGES:
                return union, np.array([residual for _, residual in polished])

    def _searches(self, own, union, residuals) -> dict[str, Any]:
        """What one start and one end's starts missed, and the gaps to the second maximum."""
        top = np.array([best.values[:, 0] for best in union])
        gain = lambda count: np.maximum(top - [found.values[:, :count].max(1) for found in own], 0)
        second = np.array([best.values[:, 1] for best in union])
        gaps = (top - second)[0]
        return {
            "missed_by_one_start": float((gain(1) > 1e-6).mean()),
            "missed_by_one_end": float((gain(None) > 1e-6).mean()),
            "largest_gain_of_union": float(gain(None).max()),
            "value_gaps": [float(gap) for gap in gaps if np.isfinite(gap)],
            "single_maxima": int((~np.isfinite(gaps)).sum()),
            "largest_residual": float(residuals.max()),
        }

    def _local(self, theta, x, labels, points) -> dict[str, Any]:
        """Jacobians of the attacks, and the top of the spectra."""
        found = self._jacobian(theta, x, labels, points)
        kinds = [str(kind) for kind in found.kind]
        regular = ~np.isin(kinds, ["degenerate", "unconverged"])
        jacobians = np.where(regular[:, None, None], np.asarray(found.jacobian), 0.0)
        frozen = lambda u: self._frozen(theta, points, labels, u)
        motion = lambda u: self._motion(theta, points, labels, jacobians, u)
        top = {
            name: theory.extreme_eigenvalues(
                jax.random.key(0), product, theta, num_steps=LANCZOS_STEPS, tolerance=1e-2
            ).largest
            for name, product in (("frozen", frozen), ("true", lambda u: frozen(u) + motion(u)))
        }
        return {
            "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "norms": np.asarray(found.norm)[regular].tolist(),
            "sharp_bounds": np.asarray(found.sharp_bound)[regular].tolist(),
            "eigenvalues": top,
        }

    def _step(self, theta, step, x, labels, own, union) -> dict[str, Any]:
        """Change of the gradient over a step, its parts, and what became of the attacks."""
        first, last = union[0].points[:, 0], union[1].points[:, 0]
        moved, length = theta + step, float(np.linalg.norm(step))
        before = np.asarray(self._gradients(theta, first, labels))
        held = np.asarray(self._gradients(moved, first, labels))
        after = np.asarray(self._gradients(moved, last, labels))
        branch = self.attacks.follow(theta, step, x, labels, first)
        diameters = self.attacks.diameters(x)
        apart = np.linalg.norm(last - first, axis=1) / diameters
        same = np.linalg.norm(branch.point - last, axis=1) <= SAME * diameters
        continuous = branch.finished & same & (branch.jumps == 0)
        ended = branch.finished & (branch.jumps > 0)
        crossed = branch.finished & ~same & (branch.jumps == 0)
        size = lambda change: float(np.linalg.norm(change.mean(0))) / length
        motion = after - held
        audits = {
            "one_start": [self._first(end, 1) for end in own],
            "own_starts": [self._first(end, None) for end in own],
            "union": [first, last],
        }
        return {
            "length": length,
            "total": size(after - before),
            "parameter": size(held - before),
            "attack": size(motion),
            "attack_of_switches": size(motion * ~continuous[:, None]),
            "attack_of_motion": size(motion * continuous[:, None]),
            "attack_per_image": float(np.median(np.linalg.norm(motion, axis=1))) / length,
            "continuous": int(continuous.sum()),
            "ended": int(ended.sum()),
            "crossed": int(crossed.sum()),
            "undecided": int((~branch.finished).sum()),
            "far": int((apart > FAR).sum()),
            "far_but_continuous": int(((apart > FAR) & continuous).sum()),
            "lead_of_crossed": (union[1].values[:, 0] - branch.value)[crossed].tolist(),
            "violations": {
                name: self._violations(theta, step, labels, *pair) for name, pair in audits.items()
            },
        }

    @staticmethod
    def _first(found: Maxima, count: int | None) -> np.ndarray:
        best = found.values[:, :count].argmax(1)
        return found.points[np.arange(len(best)), best]

    def _violations(self, theta, step, labels, first, last) -> int:
        """Images whose quotient is below what exact attacks allow, (MON)."""
        quotients, bounds = map(np.asarray, self._monotone(theta, step, labels, first, last))
        return int((quotients < bounds - 1e-6 * (1 + np.abs(bounds))).sum())
