"""Problems whose maximiser is known because they are built round it: no search, any number.

The loss is the cross-entropy of a tanh network, a well, and a linear term c x that gives the input
gradient at the maximiser z the value that the KKT conditions ask for; c is a parameter like others.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

D, HIDDEN, CLASSES = 4, 6, 3


def loss(x, theta):
    logits = theta["w2"] @ jnp.tanh(theta["w1"] @ x + theta["b"])
    well = 0.5 * theta["kappa"] * jnp.sum((x - 0.5 - 0.1 * theta["b"][:D]) ** 2)
    return jax.nn.logsumexp(logits) - logits[0] - well + theta["c"] @ x


class Known(NamedTuple):
    """A batch of problems and their attacks; arrays have the batch in front."""

    theta: dict
    x: np.ndarray
    x_adv: np.ndarray
    eps: np.ndarray
    low: np.ndarray
    high: np.ndarray
    fixed: np.ndarray  # coordinates held by the box or the Linf ball
    multiplier: np.ndarray  # mu of the L2 sphere, 0 where it is not active


def known(seed: int, norm: str, num: int) -> Known:
    """Interior points, spheres or vertices, and faces in turn, each held firmly."""
    rng = np.random.default_rng(seed)
    theta = dict(
        w1=0.7 * rng.normal(size=(num, HIDDEN, D)),
        b=0.3 * rng.normal(size=(num, HIDDEN)),
        w2=0.7 * rng.normal(size=(num, CLASSES, HIDDEN)),
        kappa=rng.uniform(4, 6, size=num),
        c=np.zeros((num, D)),
    )
    eps = rng.uniform(0.2, 0.4, size=num)
    z = rng.uniform(0.45, 0.55, size=(num, D))
    low, high = np.zeros((num, D)), np.ones((num, D))
    kind = np.arange(num) % 3
    # The box holds some coordinates of the faces (under L2), the ball those of Linf.
    held = (rng.uniform(size=(num, D)) < 0.4) & (kind == 2)[:, None] & (np.arange(D) > 0)
    sides = rng.choice([-1.0, 1.0], size=(num, D))
    push = rng.uniform(0.5, 1.5, size=(num, D))
    if norm == "linf":
        fixed = held | (kind == 1)[:, None]
        inside = rng.uniform(-0.8, 0.8, size=(num, D))
        x = z - eps[:, None] * np.where(fixed, sides, inside)
        gradient = np.where(fixed, sides * push, 0.0)
        multiplier = np.zeros(num)
    else:
        fixed = held
        # The box passes through z there, and x lies on its inner side.
        high = np.where(held & (sides > 0), z, high)
        low = np.where(held & (sides < 0), z, low)
        r = np.where(held, 0.1 * sides, rng.normal(size=(num, D)))
        r *= eps[:, None] / np.linalg.norm(r, axis=1, keepdims=True)
        r = np.where((kind == 0)[:, None], 0.3 * r, r)
        multiplier = np.where(kind > 0, rng.uniform(0.5, 1.5, size=num), 0.0)
        x = z - r
        gradient = multiplier[:, None] * r / eps[:, None] + np.where(held, sides * push, 0.0)
    slope = jax.jit(jax.vmap(jax.grad(loss)))
    theta["c"] = gradient - np.asarray(slope(z, theta))
    return Known(theta, x, z, eps, low, high, fixed, multiplier)


def ravel(tree, lead: int) -> np.ndarray:
    """The leaves side by side, after ``lead`` axes."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(*leaf.shape[:lead], -1) for leaf in leaves], axis=-1)
