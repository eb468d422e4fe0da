"""Certificates of an attack: gap, residual, multipliers, second-order condition, and kind."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...types import Array, PyTree
from .active import ActiveSet, active_set
from .feasible import Feasible, l2_norm
from .problem import ScalarLoss

KINDS = ("interior", "sphere", "vertex", "face", "degenerate", "unconverged")
REGULAR = 1e-7  # dimensionless margins, slacks and curvatures below this count as zero
_KINK_STEP, _KINK = 1e-5, 1e-6


class Certificates(NamedTuple):
    """Certificates of a candidate attack x' (docs/formulas.md C.5).

    Attributes:
        gap: Frank-Wolfe gap max over C(x) of g^T(z - x'); 0 iff KKT, and a bound on
            l_eps - l(x') where the loss is concave in x.
        residual: norm of Pi(x' + g) - x'.
        relative_residual: norm of Pi(x' + t g) - x' over eps, with
            ``t = eps/(|g| + eps |H|)``: dimensionless; ``converged`` is based on it.
        multiplier: mu of norm(x' - x) <= eps; 0 if that constraint is inactive.
        margin: strict complementarity: the smallest multiplier of an active constraint (inf if
            there is none, negative if one has the wrong sign).
        slack: distance to the nearest inactive constraint (inf if there is none).
        curvature: smallest eigenvalue of -W on the tangent space of the active constraints, c_T;
            positive iff the second-order condition holds; inf where that space is {0}.
        tangent_dim: its dimension.
        kink: remainder of the input gradient after its first-order Taylor term over a small step,
            relative to its size: about 1e-10 where the loss is smooth, of order 1 at a kink.
    """

    gap: Array
    residual: Array
    relative_residual: Array
    multiplier: Array
    margin: Array
    slack: Array
    curvature: Array
    tangent_dim: Array
    kink: Array


class Analysis(NamedTuple):
    """A candidate with its derivatives, the input to the implicit function theorem."""

    value: Array
    gradient: Array
    hessian: Array
    active: ActiveSet
    scale: Array
    certificates: Certificates
    kind_code: Array


def kind_name(code: Array) -> Any:
    """The kind for a code, or an array of kinds for an array of codes."""
    names = np.asarray(KINDS)[np.asarray(code)]
    return str(names) if names.ndim == 0 else names


def gradient_scale(feasible: Feasible, g: Array, hessian: Array) -> Array:
    """|g| + eps |H|: the size of input gradients that the ball can show; never 0."""
    curvature = l2_norm(hessian.reshape(-1))
    scale = l2_norm(g) + feasible.eps * curvature
    return jnp.where(scale > 0, scale, 1.0)


def relative_residual(feasible: Feasible, z: Array, g: Array, scale: Array) -> Array:
    """Dimensionless projected-gradient residual, see `Certificates`."""
    eps = feasible.eps
    moved = l2_norm(feasible.project(z + (eps / scale) * g) - z)
    return moved / jnp.where(eps > 0, eps, 1.0 + l2_norm(feasible.x))


def tangent_curvature(active: ActiveSet, hessian: Array) -> Array:
    """c_T, the smallest eigenvalue of -W = mu/eps - H on the tangent space; inf if that is {0}."""
    projector = active.projector
    inside = projector @ hessian @ projector
    inside = active.pull * projector - 0.5 * (inside + inside.T)
    # Everything else is moved above the spectrum.
    above = 2.0 * l2_norm(inside.reshape(-1))
    above = jnp.where(above > 0, above, 1.0)
    shifted = inside + above * (jnp.eye(inside.shape[0]) - projector)
    return jnp.where(active.tangent_dim > 0, jnp.linalg.eigvalsh(shifted)[0], jnp.inf)


def _kink(
    gradient_fn: ScalarLoss, theta: PyTree, z: Array, g: Array, eps: Array, scale: Array
) -> Array:
    """Largest first-order Taylor remainder of grad_x l along directions of x and of theta.

    Second-order in the step where the loss is smooth; as large as the jump at a kink, whichever
    one-sided derivative (or their mean) the model's rule returns there.
    """
    rng = np.random.default_rng(0)
    v = rng.normal(size=z.shape)
    v = jnp.asarray(v / np.linalg.norm(v), z.dtype)

    def direction(leaf: Array) -> Array:
        largest = jnp.max(jnp.abs(leaf), initial=0.0)
        signs = jnp.asarray(rng.choice([-1.0, 1.0], size=leaf.shape), leaf.dtype)
        return signs * jnp.where(largest > 0, largest, 1.0)

    theta = jax.tree.map(jnp.asarray, theta)
    u = jax.tree.map(direction, theta)
    in_x = lambda h: gradient_fn(z + h * v, theta)
    in_theta = lambda h: gradient_fn(z, jax.tree.map(lambda t, d: t + h * d, theta, u))
    remainders = []
    for along, step in ((in_x, _KINK_STEP * eps), (in_theta, jnp.asarray(_KINK_STEP, z.dtype))):
        _, slope = jax.jvp(along, (jnp.zeros((), z.dtype),), (jnp.ones((), z.dtype),))
        size = l2_norm(slope)
        # No step changes the gradient by more than a small part of its size.
        limit = _KINK_STEP * scale / jnp.where(size > 0, size, 1.0)
        step = jnp.where(size > 0, jnp.minimum(step, limit), step)
        steps = jnp.stack([step, -step])
        remainders.append(jax.vmap(along)(steps) - g[None, :] - steps[:, None] * slope[None, :])
    return jnp.max(jax.vmap(l2_norm)(jnp.concatenate(remainders))) / scale


def analyse(
    loss: ScalarLoss, theta: PyTree, feasible: Feasible, z: Array, tol: float | Array
) -> Analysis:
    """Derivatives, active set, certificates and kind of a candidate; loss of (flat x, theta)."""
    gradient_fn = jax.grad(loss)
    value, g = jax.value_and_grad(loss)(z, theta)
    hessian = jax.jacfwd(gradient_fn)(z, theta)
    active = active_set(feasible, z, g)
    scale = gradient_scale(feasible, g, hessian)
    eps = jnp.where(feasible.eps > 0, feasible.eps, 1.0)
    certificates = Certificates(
        gap=feasible.gap(z, g),
        residual=feasible.residual(z, g),
        relative_residual=relative_residual(feasible, z, g, scale),
        multiplier=active.multiplier,
        margin=active.margin,
        slack=active.slack,
        curvature=tangent_curvature(active, hessian),
        tangent_dim=active.tangent_dim,
        kink=_kink(gradient_fn, theta, z, g, feasible.eps, scale),
    )
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(g)) & jnp.all(jnp.isfinite(hessian))
    converged = finite & (certificates.relative_residual <= tol)
    regular = (
        (active.margin > REGULAR * scale)
        & (active.slack > REGULAR * eps)
        & (certificates.curvature * eps > REGULAR * scale)
        & (certificates.kink < _KINK)
    )
    fixed = jnp.any(active.fixed)
    kind = jnp.where(
        active.tangent_dim == 0,
        KINDS.index("vertex"),
        jnp.where(
            fixed | (active.on_ball & (feasible.norm == "l1")),
            KINDS.index("face"),
            jnp.where(active.on_ball, KINDS.index("sphere"), KINDS.index("interior")),
        ),
    )
    kind = jnp.where(regular, kind, KINDS.index("degenerate"))
    kind = jnp.where(converged, kind, KINDS.index("unconverged"))
    return Analysis(value, g, hessian, active, scale, certificates, kind)


def is_regular(kind_code: Array) -> Array:
    """Whether the attack is differentiable."""
    return kind_code < KINDS.index("degenerate")
