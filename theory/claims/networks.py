"""Attacks on random smooth networks, solved once for all claims of formulas C that need them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxadv import theory

from .registry import Trial

DIM, HIDDEN, CLASSES = 4, 6, 3
EXCESS = 1 + 1e-6  # of central differences of polished attacks


class Solved(NamedTuple):
    """Problems for one norm with their attack Jacobians, and how far their attacks actually move.

    Attributes:
        result: `theory.AttackJacobian`, batched.
        hessian: `theory.AdversarialHessian`, batched.
        motion: |x'(theta + h u) - x'(theta - h u)|/2h of re-polished attacks, with u the direction
            in which the Jacobian says that the attack moves most, shape (n,).
        bend: |grad l_eps(theta + h v) - grad l_eps(theta - h v)|/2h with v the top eigenvector of
            the Hessian A + B^T D, shape (n,).
        kind: names, shape (n,); "switched" where polishing left for another local maximum.
    """

    result: Any
    hessian: Any
    motion: np.ndarray
    bend: np.ndarray
    kind: np.ndarray

    def places(self, *kinds: str) -> np.ndarray:
        """Indices of these kinds."""
        return np.flatnonzero(np.isin(self.kind, kinds))


def network_loss(x, theta):
    """Cross-entropy of a tanh network, and a well of strength kappa that makes it concave."""
    logits = theta["w2"] @ jnp.tanh(theta["w1"] @ x + theta["b"])
    well = 0.5 * theta["kappa"] * jnp.sum((x - 0.5 - 0.1 * theta["b"][:DIM]) ** 2)
    return jax.nn.logsumexp(logits) - logits[0] - well


def _problems(seed: int, count: int):
    rng = np.random.default_rng(seed)
    theta = dict(
        w1=rng.normal(size=(count, HIDDEN, DIM)),
        b=0.3 * rng.normal(size=(count, HIDDEN)),
        w2=rng.normal(size=(count, CLASSES, HIDDEN)),
        kappa=np.resize([0.0, 3.0, 3.0, 30.0], count),
    )
    return theta, rng.uniform(0.1, 0.9, size=(count, DIM)), np.resize([0.2, 0.5, 1.0], count)


def _solve_one(norm, theta, x, eps):
    options = dict(norm=norm, eps=eps)
    result = theory.attack_jacobian(network_loss, theta, x, num_restarts=1, **options)
    hessian = theory.adversarial_hessian(network_loss, theta, x, x_adv=result.x_adv, **options)
    # Move theta along the two directions to check them; nothing else of D is used.
    rows = jax.vmap(lambda t: ravel_pytree(t)[0])(result.jacobian)
    top = lambda m: jnp.linalg.eigh(jnp.where(jnp.isfinite(m), m, 0.0))[1][:, -1]
    u = rows.T @ top(rows @ rows.T)
    u = u / jnp.where(jnp.linalg.norm(u) > 0, jnp.linalg.norm(u), 1.0)
    flat, unravel = ravel_pytree(theta)
    directions = jnp.stack([u, top(hessian.total)])

    def ends(shift):
        moved = unravel(flat + shift)
        attack = theory.polish_attack(network_loss, moved, x, result.x_adv, **options)
        slope = jax.grad(network_loss, argnums=1)(attack.x_adv, moved)
        return attack.x_adv, ravel_pytree(slope)[0]

    step = 1e-5
    shifts = step * jnp.concatenate([directions, -directions])
    points, slopes = jax.lax.map(ends, shifts)
    motion = jnp.linalg.norm(points[0] - points[2]) / (2 * step)
    bend = jnp.linalg.norm(slopes[1] - slopes[3]) / (2 * step)
    switched = jnp.max(jnp.abs(points - result.x_adv[None, :])) > 1e-3
    return result, hessian, motion, bend, switched


@functools.cache
def solved(norm: str, count: int = 96) -> Solved:
    """The problems of one norm ("l2" or "linf")."""
    with jax.enable_x64(True):
        solve = jax.jit(jax.vmap(functools.partial(_solve_one, norm)))
        *found, switched = jax.tree.map(np.asarray, solve(*_problems(0, count)))
    kinds = np.where(switched, "switched", found[0].kind)
    return Solved(*[*found, kinds])


def witness(found: Solved, places: np.ndarray):
    """Describes a problem by its number, from which it can be regenerated."""
    return lambda i: f"network {places[i]}, {found.kind[places[i]]}"


def motion_trial(norm: str, bound: str, *kinds: str) -> Trial:
    """How far the attacks of these kinds move, against a bound in the result."""
    found = solved(norm)
    places = found.places(*kinds)
    limit = EXCESS * getattr(found.result, bound)[places]
    return Trial(found.motion[places], limit, witness(found, places))
