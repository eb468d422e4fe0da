"""Optimal attacks of many images from many starts, and the branches they belong to.

Every function takes flat parameters, so that one compilation serves all seeds and snapshots of a
network and norm; all compute in float64. Starts and images climb together, in one loop of large
matrix products; only the two best maxima of an image get Newton steps, which cost an
eigendecomposition each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import theory

POOL = 6  # distinct maxima that an image hands to the other parameters
ASCENT_STEPS, PROJECTION_ROUNDS = 100, 8
APART = 1e-3  # of eps, largest coordinate: nearer points are the same maximum

# Following a branch: lengths are fractions of the set's diameter, times of the whole step.
NEAR, SHORTEST, MOST_STEPS = 0.02, 2.0**-20, 1000
CORRECTION = NEAR / 4  # longest Newton step of a correction, which ends at twice NEAR
# Relative residual of a maximum. At a corner whose multiplier vanishes corrections end at 1e-9 to
# 1e-8: what is left to gain is rounding.
SETTLED = 1e-7
SHRINKS = 0.75  # motions of a branch shrink at least so much when the piece is halved
SAME = 1e-3  # an end this close to the optimal attack is that attack


class Maxima(NamedTuple):
    """Attacks on each image, best first.

    Attributes:
        points: flat images, shape (N, K, d).
        values: their losses, shape (N, K); -inf fills up if there are fewer.
    """

    points: np.ndarray
    values: np.ndarray


class Branch(NamedTuple):
    """Where following an attack from one parameter vector to another led; see `Attacks.follow`.

    Attributes:
        point: the attack at the end, or after the jump, (N, d).
        value: its loss, (N,).
        jumps: whether the branch ended, 0 or 1.
        largest: the longest motion in a piece without a jump, in diameters.
        finished: whether the end of the step or of the branch was reached; else undecided.
    """

    point: Any
    value: Any
    jumps: Any
    largest: Any
    finished: Any


class Attacks:
    """Attacks on the loss of one network under one norm.

    Args:
        loss: maps (flat parameters, flat image, label) to the loss of one image.
        norm: "l2" or "linf".
        eps: radius; images are in [0, 1].
    """

    def __init__(self, loss: Callable, norm: Any, eps: float) -> None:
        self.norm, self.eps = norm, eps
        options: Any = dict(norm=norm, eps=eps, bounds=(0.0, 1.0))
        of = lambda label: lambda x, params: loss(params, x, label)

        def climb(params, images, labels, starts):
            slope = jax.vmap(jax.vmap(jax.value_and_grad(loss, 1), (None, 0, None)), (None, 0, 0))
            inside = lambda points: project(points, images[:, None], norm, eps)
            return _climb(lambda points: slope(params, points, labels), inside, starts, eps)

        def polish(params, images, labels, points):
            def one(given):
                x, label, points = given
                refine = lambda point: theory.polish_attack(of(label), params, x, point, **options)
                found = jax.lax.map(refine, points)
                return found.x_adv, found.value, found.certificates.relative_residual

            return jax.lax.map(one, (images, labels, points))

        def follow(params, step, images, labels, points, diameters):
            def one(given):
                x, label, point, diameter = given
                at = lambda t, z: theory.polish_attack(
                    of(label), params + t * step, x, z, max_step=CORRECTION * diameter, **options
                )
                return _follow(at, point, diameter)

            return jax.lax.map(one, (images, labels, points, diameters))

        self._climb, self._polish = jax.jit(climb), jax.jit(polish)
        self._follow = jax.jit(follow)

    def starts(self, key: int, images: np.ndarray, count: int) -> np.ndarray:
        """Random points of the ball around each image, half of them on its boundary, (N, K, d)."""
        rng = np.random.default_rng(key)
        directions = rng.normal(size=(len(images), count, images.shape[1]))
        lengths = np.linalg.norm(directions, axis=2, keepdims=True)
        if self.norm == "linf":
            directions, lengths = rng.uniform(-1, 1, directions.shape), 1.0
            directions[:, ::2] = np.sign(directions[:, ::2])
        radii = rng.uniform(size=(len(images), count, 1)) if self.norm == "l2" else 1.0
        radii = np.where(np.arange(count)[:, None] % 2 == 0, 1.0, radii)
        return np.clip(images[:, None] + self.eps * radii * directions / lengths, 0, 1)

    def climb(self, params, images, labels, starts) -> Maxima:
        """Climbs from all starts of all images at once; results in the order of the starts."""
        return Maxima(*map(np.asarray, self._climb(params, images, labels, starts)))

    def distinct(self, found: Maxima, count: int = POOL) -> Maxima:
        """The best ``count`` different maxima of each image, best first."""
        points, values = [], []
        for rows, losses in zip(*found, strict=True):
            kept: list[int] = []
            for index in np.argsort(-losses, kind="stable"):
                gaps = np.abs(rows[kept] - rows[index]).max(1)
                if (
                    np.isfinite(losses[index])
                    and len(kept) < count
                    and (gaps > APART * self.eps).all()
                ):
                    kept.append(int(index))
            padded = kept + [kept[0]] * (count - len(kept))
            points.append(rows[padded])
            values.append(np.where(np.arange(count) < len(kept), losses[padded], -np.inf))
        return Maxima(np.array(points), np.array(values))

    def best(self, params, images, labels, found: Maxima) -> tuple[Maxima, np.ndarray]:
        """The two best maxima of each image after Newton steps, and the best one's residuals."""
        top = self.distinct(found, 2)
        points, values, residuals = map(
            np.asarray, self._polish(params, images, labels, top.points)
        )
        values = np.where(np.isfinite(top.values), values, -np.inf)
        order = np.argsort(-values, axis=1, kind="stable")
        points = np.take_along_axis(points, order[:, :, None], 1)
        residuals = np.take_along_axis(residuals, order, 1)[:, 0]
        return Maxima(points, np.take_along_axis(values, order, 1)), residuals

    def follow(self, params, step, images, labels, points) -> Branch:
        """Follows each attack while the parameters move by ``step``.

        The parameters go in pieces, and after each the attack is corrected by Newton steps of at
        most ``CORRECTION`` diameters, which cannot leap to another maximum unless one is so near.
        A piece is accepted if the corrected attack converged within ``NEAR`` diameters of the last
        one with no valley of the loss between; else it is halved. On a branch that goes on, however
        fast, motions shrink with the pieces and some piece is accepted; where the branch ends,
        they do not. A piece of ``SHORTEST`` is decided: if the motion is still too long and at
        least ``SHRINKS`` of that of the piece twice as long, the branch ended, a jump; otherwise,
        and after ``MOST_STEPS`` pieces, it stays undecided.
        """
        diameters = self.diameters(images)
        found = self._follow(params, step, images, labels, points, diameters)
        return Branch(*map(np.asarray, found))

    def diameters(self, images: np.ndarray) -> np.ndarray:
        """Diameters of the sets of allowed attacks, (N,)."""
        if self.norm == "l2":
            return np.full(len(images), 2 * self.eps)
        low, high = np.maximum(images - self.eps, 0), np.minimum(images + self.eps, 1)
        return np.linalg.norm(high - low, axis=1)


def project(points, images, norm: str, eps: float):
    """Nearest points of the ball and the box (for L2 within it: see the loop)."""
    delta = points - images
    low, high = -images, 1 - images
    if norm == "linf":
        return images + jnp.clip(delta, jnp.maximum(low, -eps), jnp.minimum(high, eps))
    room = jnp.where(delta > 0, high, -low)
    size = jnp.abs(delta)
    scale = jnp.minimum(eps / jnp.maximum(jnp.linalg.norm(delta, axis=-1, keepdims=True), 1e-30), 1)
    # Each round lets the free coordinates use what those at the box leave; it never overshoots.
    for _ in range(PROJECTION_ROUNDS):
        full = scale * size >= room
        used = jnp.sum(jnp.where(full, room, 0.0) ** 2, -1, keepdims=True)
        free = jnp.sum(jnp.where(full, 0.0, size) ** 2, -1, keepdims=True)
        wanted = jnp.sqrt(jnp.maximum(eps**2 - used, 0) / jnp.maximum(free, 1e-30))
        scale = jnp.clip(wanted, scale, 1.0)
    return images + jnp.sign(delta) * jnp.minimum(scale * size, room)


def _climb(slope: Callable, project: Callable, points, eps: float):
    """Monotone projected ascent of all points at once, each with its own step size."""

    def going(state):
        _, _, _, _, moved, count = state
        return (count < ASCENT_STEPS) & jnp.any(moved > 1e-8 * eps)

    def body(state):
        points, values, slopes, lengths, moved, count = state
        new = project(points + lengths[..., None] * slopes)
        new_values, new_slopes = slope(new)
        good = new_values >= values
        moved = jnp.where(good, jnp.abs(new - points).max(-1), moved)
        points, slopes = (
            jnp.where(good[..., None], a, b) for a, b in ((new, points), (new_slopes, slopes))
        )
        values = jnp.where(good, new_values, values)
        return points, values, slopes, jnp.where(good, 1.5, 0.4) * lengths, moved, count + 1

    points = project(points)
    values, slopes = slope(points)
    lengths = eps / jnp.maximum(jnp.linalg.norm(slopes, axis=-1), 1e-30)
    start = (points, values, slopes, lengths, jnp.full_like(values, jnp.inf), 0)
    points, values, *_ = jax.lax.while_loop(going, body, start)
    return points, values


def _follow(at: Callable, point, diameter) -> Branch:
    """Follows one branch; ``at(t, z)`` is the corrected attack near z at time t in [0, 1]."""

    def going(state):
        t, _, _, _, jumps, _, _, stuck, count = state
        return (t < 1) & (jumps == 0) & ~stuck & (count < MOST_STEPS)

    def body(state):
        t, length, z, value, jumps, largest, last, stuck, count = state
        end = jnp.minimum(t + length, 1.0)
        found = at(end, z)
        moved = found.distance / diameter
        converged = found.certificates.relative_residual <= SETTLED
        near = (moved <= NEAR) & ~found.switched & converged
        short = ~near & (length <= SHORTEST)
        jumped = short & (moved > NEAR) & (moved >= SHRINKS * last)
        return (
            jnp.where(near, end, t),
            jnp.where(near, 2 * length, length / 2),
            jnp.where(near | jumped, found.x_adv, z),
            jnp.where(near | jumped, found.value, value),
            jumps + jumped,
            jnp.where(near, jnp.maximum(largest, moved), largest),
            jnp.where(near, 0.0, moved),
            stuck | (short & ~jumped),
            count + 1,
        )

    start = (0.0, 0.25, point, -jnp.inf, 0, 0.0, 0.0, False, 0)
    t, _, z, value, jumps, largest, *_ = jax.lax.while_loop(
        going, body, jax.tree.map(jnp.asarray, start)
    )
    return Branch(z, value, jumps, largest, (t >= 1) | (jumps > 0))
